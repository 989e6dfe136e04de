"""A run that is killed (SIGKILL) at any moment resumes from a valid checkpoint and ends as the uninterrupted one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfumato.training import checkpoint as checkpoints
from sfumato.training.files import unpack_tensors

Forks = Callable[..., dict[str, Any]]
STEPS, KILLS = 40, 20
#: A checkpoint after every second step; every fourth kill comes while one is being written.
JOB: dict[str, Any] = {
    "task": "train", "recipe": "flow", "data": "digits",
    "settings": {
        "channels": [4], "attention": [False], "blocks": 1, "patch": 2, "batch": 8, "warmup": 2, "dropout": 0.1,
        "precision": "float32", "reports": STEPS // 2, "validation_images": 8, "grid_columns": 0, "snapshots": 4,
    },
}  # fmt: skip


def job(run: Path, resumed: bool, **more: Any) -> dict[str, Any]:
    way: dict[str, Any] = {"resume": True} if resumed else {"steps": STEPS} | JOB["settings"]
    return {**JOB, "out": str(run), "settings": way, **more}


def weights(run: Path) -> dict[str, bytes]:
    """All that a run ends with, bitwise."""
    files = [*checkpoints.folder_of(run, STEPS).glob("*.safetensors"), *run.glob("*.safetensors")]
    files += (run / "snapshots").glob("*.safetensors")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_killed_at_random_moments(forks: Forks, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = forks(**job(whole, False))
    assert done["codes"] == [0]
    chance, killed, half, gained, reached = random.Random(5), 0, 0, 0, 0
    for attempt in range(8 * KILLS):
        if killed == KILLS:
            break
        began = (run / "config.json").exists()
        # a run gets on by some steps in most attempts, and is killed before it is ready
        moment: dict[str, Any] = {"kill": chance.uniform(0.0, 0.45) * done["seconds"]}
        if killed % 4 == 3:
            moment = {"kill_while": str(run / "checkpoints" / ".step-*.tmp")}
        code = forks(**job(run, began, **moment))["codes"]
        if code == [0]:  # ready before it was killed: begin another one
            assert weights(run) == weights(whole)
            run, gained, reached = tmp_path / f"run-{attempt}", gained + 1, 0
            continue
        assert code == [-9], "it ends by the kill alone"
        killed += 1
        half += any((run / "checkpoints").glob(".step-*.tmp"))
        steps = checkpoints.steps_of(run)
        if steps:
            found, passed = checkpoints.newest(run)
            assert passed == [], "a checkpoint is whole or absent"
            assert found is not None
            assert found.step == steps[-1] >= reached, "what was saved stays"
            gained, reached = gained + (found.step > reached), found.step
        if (run / "model.safetensors").exists():
            unpack_tensors(run / "model.safetensors")  # it can be sampled from, too
    assert killed == KILLS, "nearly all attempts end before they are killed"
    assert gained >= KILLS // 4, "the run does not get anywhere"
    assert half >= 1, "no kill came while a checkpoint was half-written"
    if not (run / "config.json").exists():
        assert forks(**job(run, False))["codes"] == [0]
    assert forks(**job(run, True))["codes"] == [0]
    assert weights(run) == weights(whole)
    left = [path.name for path in run.rglob(".*.tmp")]
    assert left == [], "what a killed process left is removed"


@pytest.mark.parametrize("left", [".config.json.77.tmp", "nothing"])
def test_killed_before_it_has_a_configuration(forks: Forks, tmp_path: Path, left: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if left != "nothing":
        (run / left).write_text("{")
    settings = {"steps": 2} | JOB["settings"]
    assert forks(**(JOB | {"out": str(run), "settings": settings}))["codes"] == [0]
    assert checkpoints.steps_of(run)[-1] == 2


def test_what_was_half_written_is_removed(forks: Forks, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert forks(**(JOB | {"out": str(run), "settings": {"steps": 2} | JOB["settings"]}))["codes"] == [0]
    for left in (".model.safetensors.7.tmp", "grids/.step-1.png.7.tmp", "snapshots/.step-1.7.tmp"):
        (run / left).write_text("half")
    for left in ("checkpoints/.step-9.x.tmp", ".samples.x.tmp", "best/.model.safetensors.7.tmp"):
        (run / left).mkdir(parents=True)  # one of a sampling, and of the best weights, too
        (run / left / "half").write_text("half")
    assert forks(**job(run, True))["codes"] == [0]
    assert list(run.rglob(".*.tmp")) == []
