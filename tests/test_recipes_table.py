"""``benchmarks/recipes.py``: every recipe has its entry, and an interrupted table continues."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import sfumato as sf
from sfumato import recipes
from sfumato.training.settings import resolve

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "recipes.py"
TINY = [
    "channels=8", "attention=no", "blocks=1", "patch=2", "batch=32", "reports=1", "validation_images=16",
    "grid_columns=0", "precision=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipes_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipes_table"] = module
    spec.loader.exec_module(module)
    return module


def arguments(home: Path, *more: str) -> list[str]:
    places = ["--runs", str(home / "runs"), "--results", str(home / "results"), "--page", str(home / "docs" / "t.md")]
    small = ["--data", "digits", "--minutes", "0.005", "--n", "100", "--images", "2", "--no-longer"]
    return [*places, *small, *(word for pair in TINY for word in ("--set", pair)), *more]


def test_every_recipe_has_an_entry_that_builds(script: ModuleType) -> None:
    assert set(script.ENTRIES) == set(recipes.names("images")) - {"cold", "heat"}  # restorers, shown on their own pages
    assert set(script.LONGER) <= set(script.ENTRIES)
    spec = sf.data.load("mnist").spec()
    for name in script.ENTRIES:
        job = script.Job(name, 3.0, False, "mnist", 0, 2000, 128, {})
        recipe, asked = recipes.get(name), job.settings(Path("runs"))
        settings = resolve(recipe.defaults, asked)  # a pupil's defaults settle when its teacher is there
        assert sum(p.numel() for p in recipe.build(settings, spec, {"seed": 0}).net.parameters()) > 1e5


def test_teachers_come_before_their_pupils(script: ModuleType) -> None:
    options = script.parser().parse_args([])
    jobs = script.jobs_for(["reflow", "ddpm"], options, {})
    assert [job.recipe for job in jobs][:3] == ["flow", "reflow", "ddpm"]
    assert jobs[1].settings(Path("r"))["teacher"] == str(Path("r") / "flow")


def test_the_table_is_made_interrupted_and_continued(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    train = script.Bench.train

    def watched(bench: Any, job: Any) -> Any:
        trained.append(job.name)
        if trained == ["edm", "flow"]:
            raise KeyboardInterrupt
        return train(bench, job)

    monkeypatch.setattr(script.Bench, "train", watched)
    command = arguments(tmp_path, "--only", "edm,flow")
    assert script.main(command) == 130
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"edm.json", "edm.png"}
    assert script.main(command) == 0
    assert trained == ["edm", "flow", "flow"]
    capsys.readouterr()
    assert script.main(command) == 0
    assert trained == ["edm", "flow", "flow"]
    assert "2 of 2 are done" in capsys.readouterr().out

    before = json.loads((tmp_path / "results" / "flow.json").read_text())
    monkeypatch.setattr(script.Bench, "milliseconds", lambda bench, job, model: 12345.0)
    assert script.main([*command, "--again", "time"]) == 0
    monkeypatch.setattr(script.Bench, "bits", lambda bench, job, model: {"likelihood": [], "likelihood_refused": "no"})
    capsys.readouterr()
    assert script.main([*command, "--again", "bits"]) == 0
    assert "edm: no\nflow: no" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "flow.json").read_text())["likelihood"] == []
    text = (tmp_path / "docs" / "t.md").read_text()
    result = json.loads((tmp_path / "results" / "flow.json").read_text())
    assert before["sampling"].pop("milliseconds_per_sample") > 0
    assert result["sampling"].pop("milliseconds_per_sample") == 12345.0
    assert result["sampling"] == before["sampling"]
    assert "1.23e+04" in text
    row = next(line for line in text.splitlines() if line.startswith("| flow"))
    frechet = next(r for r in result["records"] if r["name"] == "frechet")
    assert f"| {frechet['value']:.3g} |" in row
    assert result["sampling"]["guidance"] == script.GUIDANCE
    assert result["trained"]["steps"] > 0
    assert {r["name"] for r in before["likelihood"]} >= {"bits-per-dim"}
    assert "| real images |" in text
    assert text.index("| edm") < text.index("| flow")
    with Image.open(tmp_path / "docs" / "pictures" / "recipes.png") as picture:
        assert picture.size[1] == 2 * (8 * 2 + 2 + 2)


def test_unknown_recipes_and_settings_are_told(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(arguments(tmp_path, "--only", "edn")) == 2
    assert "unknown recipe 'edn'" in capsys.readouterr().err
    assert script.main(arguments(tmp_path, "--only", "edm", "--set", "lrr=1")) == 1
    assert "edm: unknown setting 'lrr'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what is committed

COMMITTED = Path(__file__).parents[1] / "benchmarks" / "results" / "recipes"


def test_every_recipe_is_measured_and_legible_at_some_budget(script: ModuleType) -> None:
    found = script.stored(COMMITTED)
    assert {result["recipe"] for result in found if not result["longer"]} == set(script.ENTRIES)
    assert {result["recipe"] for result in found if script.legible(result)} == set(script.ENTRIES)
    for result in found:
        assert result["asked"]["n"] == 2000
        assert result["sampling"]["milliseconds_per_sample"] > 0, result["name"]
        if not result["longer"]:
            assert result["asked"]["minutes"] == 3


def test_the_page_is_what_is_stored(script: ModuleType) -> None:
    page = (Path(__file__).parents[1] / "docs" / "recipes-table.md").read_text(encoding="utf-8")
    assert page == script.page(script.stored(COMMITTED), "pictures/recipes.png")


def test_edm_costs_no_less_by_its_bound() -> None:
    """Of one run: bits per dimension by the probability-flow ODE, and the variational bound of the chain."""
    likelihood = json.loads((COMMITTED / "edm.json").read_text())["likelihood"]
    values = {record["name"]: record["value"] for record in likelihood}
    assert values["bits-per-dim-vlb"] >= values["bits-per-dim"] > 1
