"""Recipes that keep more than weights (losses seen, learned schedules, snapshots, pairs) continue exactly, too."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import sfumato as sf
from sfumato.training import checkpoint as checkpoints
from sfumato.training.monitor import Log
from sfumato.training.run import Stopped

STEPS, STOPPED = 8, 5
TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "blocks": 1, "batch": 16, "warmup": 2, "precision": "float32",
    "reports": 2, "validation_images": 8, "grid_columns": 0,
}  # fmt: skip
#: What a reflow run takes from its teacher is left out.
OWN = {key: value for key, value in TINY.items() if key not in ("channels", "attention", "blocks")}
#: Recipe and settings: the history of losses; the schedule's own network; averages of two widths.
RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("improved-ddpm", {"objective": "vlb", "table_steps": 4, "patch": 2, **TINY}),
    ("vdm", {"patch": 2, **TINY}),
    ("edm2", {"snapshots": 4, **TINY}),
]


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupt, as the keyboard does, in the report of this step."""
    real = Log.step

    def interrupted(self: Log, record: Any) -> None:
        if record.step == step:
            signal.raise_signal(signal.SIGINT)
        real(self, record)

    patch.setattr(Log, "step", interrupted)


def assert_same(run: Path, whole: Path) -> None:
    """Every tensor file that the whole run kept for its last step, bitwise, and the losses of its validations."""
    kept = [path.relative_to(whole) for path in whole.rglob("*.safetensors") if "checkpoints" not in path.parts]
    last = checkpoints.folder_of(whole, STEPS).relative_to(whole)
    for name in [*kept, *(path.relative_to(whole) for path in (whole / last).glob("*.safetensors"))]:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs"
    logs = [[json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()] for r in (run, whole)]
    losses = [[(line["step"], line["loss"]) for line in log if line["kind"] == "validation"] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


@pytest.mark.parametrize(("recipe", "settings"), RECIPES, ids=[recipe for recipe, _ in RECIPES])
def test_a_stopped_run_ends_as_the_whole_one(
    recipe: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    sf.train(recipe, "digits", steps=STEPS, out=whole, quiet=True, **settings)
    with monkeypatch.context() as patch:
        stop_at(STOPPED, patch)
        with pytest.raises(Stopped):
            sf.train(recipe, "digits", steps=STEPS, out=run, quiet=True, **settings)
    assert checkpoints.steps_of(run)[-1] == STOPPED
    sf.train(recipe, "digits", out=run, resume=True, quiet=True)
    assert_same(run, whole)
    assert bool(list((whole / "snapshots").glob("*.safetensors"))) == ("snapshots" in settings)


def test_a_stopped_reflow_ends_as_the_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, whole, run = tmp_path / "teacher", tmp_path / "whole", tmp_path / "run"
    sf.train("flow", "digits", steps=2, out=teacher, quiet=True, sampling_steps=2, patch=2, **TINY)
    given = {"teacher": str(teacher), "pairs": 40, **OWN}
    sf.train("reflow", "digits", steps=STEPS, out=whole, quiet=True, **given)
    with monkeypatch.context() as patch:
        stop_at(STOPPED, patch)
        with pytest.raises(Stopped):
            sf.train("reflow", "digits", steps=STEPS, out=run, quiet=True, **given)
    sf.train("reflow", "digits", out=run, resume=True, quiet=True)
    assert_same(run, whole)
