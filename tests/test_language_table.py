"""``benchmarks/language.py``: made, interrupted, continued, written as a page, on a small text with small networks."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sfumato as sf
from sfumato import recipes
from sfumato.denoisers.tokens import Remembers
from sfumato.training.settings import resolve

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ("width=32", "depth=1", "heads=2", "length=32", "batch=8", "reports=1", "validation_images=8")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("language_study", BENCHMARKS / "language.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["language_study"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["language_study"]


def arguments(home: Path, *more: str) -> list[str]:
    book = home / "book.txt"
    book.write_text("To be, or not to be, that is the question:\n" * 300)
    places = ["--runs", str(home / "runs"), "--results", str(home / "results"), "--page", str(home / "docs" / "t.md")]
    small = ["--data", str(book), "--steps", "3", "--n", "4", "--windows", "6"]
    return [*places, *small, *(word for pair in TINY for word in ("--set", pair)), *more]


def test_every_method_builds(script: ModuleType) -> None:
    for name, entry in script.ENTRIES.items():
        given = script.Study(3, "shakespeare", 0, 4, 6, {}).asked(name)["settings"]
        assert resolve(recipes.get(entry.recipe).defaults, given) is not None


def test_every_method_has_the_same_trunk_and_those_named_keep_what_they_read(
    script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text("To be, or not to be, that is the question:\n" * 300)
    spec = sf.data.load(tmp_path / "book.txt").cut(length=32).spec()
    tiny = {"width": 32, "depth": 2, "heads": 2, "length": 32}
    trunks, remembering = {}, []
    for name, entry in script.ENTRIES.items():
        recipe = recipes.get(entry.recipe)
        settings = resolve(recipe.defaults, script.SHARED | dict(entry.settings) | tiny)
        model = recipe.build(settings, spec, {"seed": 0, "horizon": {}})
        own = {k.removeprefix("net."): tuple(p.shape) for k, p in model.net.named_parameters()}
        trunks[name] = {(k, shape) for k, shape in own.items() if k.startswith("trunk.")}
        denoiser: Any = model.denoiser
        if isinstance(denoiser, Remembers) and denoiser.remembering() is not denoiser:
            remembering.append(name)
    common = trunks["autoregressive"]
    assert len(common) > 8
    assert all(trunk >= common for trunk in trunks.values())
    # what is more tells of the time, and is the same for all that are told
    assert len({frozenset(trunk - common) for trunk in trunks.values()}) == 2
    assert tuple(remembering) == script.REMEMBERING


def test_the_study_is_made_interrupted_and_continued(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    carry_out = script.carry_out

    def watched(study: Any, name: str, runs: Path, results: Path) -> None:
        done.append(name)
        if done == ["autoregressive", "mdlm"]:
            raise KeyboardInterrupt
        carry_out(study, name, runs, results)

    monkeypatch.setattr(script, "carry_out", watched)
    monkeypatch.setattr(script, "STEPS", (2, 4))
    command = arguments(tmp_path, "--only", "autoregressive,mdlm")
    assert script.main(command) == 130
    assert script.main(command) == 0
    assert script.main(command) == 0
    assert done == ["autoregressive", "mdlm", "mdlm"]
    text = (tmp_path / "docs" / "t.md").read_text()
    result = json.loads((tmp_path / "results" / "mdlm.json").read_text())
    assert [s["steps"] for s in result["sampled"]] == [2, 4]
    assert f"{result['bits']['value']:.3f}" in text
    assert "| exact |" in text
    assert "| NELBO |" in text
    assert text.index("| autoregressive") < text.index("| mdlm")
    assert "autoregressive and block-diffusion keep the keys and values" in text
    assert "autoregressive < sedd ~ mdlm < d3pm-absorb < d3pm-uniform; here " in text
    assert f"mdlm ({result['bits']['value']:.3f})" in text
    assert (tmp_path / "docs" / "pictures" / "language.png").read_bytes().startswith(b"\x89PNG")
    assert result["tokens"] == 3 * 8 * 32
    assert script.main(arguments(tmp_path, "--only", "mdml")) == 2
    assert "unknown method 'mdml'" in capsys.readouterr().err
