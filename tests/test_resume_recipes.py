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
#: Texts and points.
SMALL: dict[str, Any] = {"width": 16, "depth": 1, **OWN}
TEXT: dict[str, Any] = {"heads": 2, "length": 16, **SMALL}
#: Recipe, data and settings: the history of losses; the schedule's own network; averages of two widths; fitted priors;
#: points of manifolds; tokens, blocks of them, learned embeddings, two networks at once.
RECIPES: list[tuple[str, str, dict[str, Any]]] = [
    ("improved-ddpm", "digits", {"objective": "vlb", "table_steps": 4, "patch": 2, **TINY}),
    ("vdm", "digits", {"patch": 2, **TINY}),
    ("edm2", "digits", {"snapshots": 4, **TINY}),
    ("cold", "digits", {"patch": 2, "degradation": "blur:width=2", **TINY}),
    ("heat", "digits", {"patch": 2, "levels": 6, "greatest": 3.0, "points": 64, **TINY}),
    ("geodesic", "torsions", SMALL),
    ("geodesic", "rotations", SMALL),
    ("mdlm", "book.txt", TEXT),
    ("d3pm", "book.txt", {"kernel": "uniform", **TEXT}),
    ("block-diffusion", "book.txt", {"block": 4, **TEXT}),
    ("diffusion-lm", "book.txt", TEXT),
    ("latent-text", "book.txt", {"latent": 8, **TEXT}),
]
BOOK = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n\n" * 40


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


@pytest.mark.parametrize(("recipe", "name", "settings"), RECIPES, ids=[f"{row[0]}, {row[1]}" for row in RECIPES])
def test_a_stopped_run_ends_as_the_whole_one(
    recipe: str, name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run, data = tmp_path / "whole", tmp_path / "run", name
    if name == "book.txt":
        (tmp_path / name).write_text(BOOK)
        data = str(tmp_path / name)
    sf.train(recipe, data, steps=STEPS, out=whole, quiet=True, **settings)
    with monkeypatch.context() as patch:
        stop_at(STOPPED, patch)
        with pytest.raises(Stopped):
            sf.train(recipe, data, steps=STEPS, out=run, quiet=True, **settings)
    assert checkpoints.steps_of(run)[-1] == STOPPED
    sf.train(recipe, data, out=run, resume=True, quiet=True)
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
