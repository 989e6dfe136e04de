"""Every code block of the README, CONTRIBUTING and docs runs.

Python blocks of one page run in order in one namespace, in an empty folder.  Shell blocks may hold ``sfumato``
commands, which run, and ``make`` targets, which must exist.  Budgets are cut so that the tests stay short:
``minutes`` become two steps, networks are told to be tiny, ``mnist`` stays ``mnist``.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.__main__ import run as run_sfumato

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = ["--set", "channels=8,8", "--set", "attention=false,false", "--set", "blocks=1", "--set", "patch=2"]
#: For networks of text and points.
SMALL = ["--set", "width=32", "--set", "depth=1"]
ALL = ["--set", "batch=8", "--set", "validation_images=16", "--set", "grid_columns=1", "--set", "reports=1"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def pages_with(language: str) -> list[object]:
    return [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if blocks(p, language)]


@pytest.fixture
def unregistered():  # type: ignore[no-untyped-def]
    """Pages that register a part leave no trace."""
    registries = (sf.schedules.registry, sf.samplers.registry)
    before = [dict(registry._builders) for registry in registries]
    yield
    for registry, builders in zip(registries, before, strict=True):
        registry._builders = builders


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unregistered: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        tiny = "steps=2, reports=1, channels=(8, 8), attention=(False, False), blocks=1, patch=2"
        code = re.sub(r"minutes=[\d.]+", tiny, block)
        code = re.sub(r"steps, batch = \d+, \d+", "steps, batch = 2, 8", code)
        exec(compile(code, str(page), "exec"), namespace)


def commands(page: Path) -> list[list[str]]:
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def make_photos(folder: Path) -> None:
    """The user's own folder that the pages speak of."""
    folder.mkdir()
    for k in range(12):
        Image.effect_noise((48 + k, 40), 64).save(folder / f"{k}.png")


def make_rows(folder: Path) -> None:
    """The user's own table and time series that the pages speak of."""
    rows = [f"{('Bern', 'Zürich')[k % 2]},{800 + 7 * k}.50,{k % 6},2024-{1 + k % 12:02d}-01" for k in range(120)]
    (folder / "prices.csv").write_text("\n".join(["city,price,rooms,sold", *rows]), encoding="utf-8")
    np.save(folder / "waves.npy", 100 + 20 * np.sin(np.arange(120)[:, None] + np.arange(30) / 4))


@pytest.mark.parametrize("page", pages_with("sh"))
def test_shell_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos")
    make_rows(tmp_path)
    for program, *rest in commands(page):
        if program == "make":
            assert set(rest) <= set(targets)
            continue
        assert program == "sfumato", f"{page.name}: a shell block may hold make and sfumato lines, not {program!r}"
        assert run(rest) == 0, f"sfumato {' '.join(rest)}: {capsys.readouterr().err}"


def run(arguments: list[str]) -> int:
    """The exit code of one command, its budget cut."""
    files = [Path(after) for option, after in pairwise(arguments) if option == "--config"]
    if arguments[0] == "train" and not any(path.suffix for path in files):  # a file has its own budget, a preset none
        k = arguments.index("--minutes") if "--minutes" in arguments else len(arguments)
        arguments[k : k + 2] = [] if "--steps" in arguments else ["--steps", "2"]
        kind = sf.recipes.get(arguments[1]).kind
        own = TINY if kind == "images" else [*SMALL, "--set", "heads=2"] if kind == "text" else SMALL
        own = {".csv": SMALL, ".npy": TINY[:-2]}.get(Path(arguments[arguments.index("--data") + 1]).suffix, own)
        arguments = [*arguments, *own, *ALL, *(["--set", "pairs=64"] if arguments[1] == "reflow" else [])]
    if arguments[0] == "eval":
        texts = sf.recipes.get(sf.load(arguments[1]).recipe).kind == "text"
        some = ["--n", "2"] if "--likelihood" in arguments else ["--steps", "1", "--n", "4" if texts else "100"]
        arguments = [*arguments, *some]
    if arguments[0] == "compare" and "--n" not in arguments:
        arguments = [*arguments, "--n", "100"]
    if arguments[0] == "bakeoff":
        k = arguments.index("--minutes")
        arguments[k : k + 2] = ["--steps", "2", "--n", "100", "--few", "50", "--moments", "1", "--nfe", "1"]
        arguments = [*arguments, *TINY]
    return run_sfumato(arguments)
