"""A run that is stopped, killed or damaged continues exactly: bitwise on the CPU, across the end of an epoch."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.errors import Refusal
from sfumato.training import checkpoint as checkpoints
from sfumato.training.files import new_folder, pack_tensors, unpack_tensors, write_bytes
from sfumato.training.monitor import Log, Reporter
from sfumato.training.run import Stopped

#: 1,437 images in batches of 128: an epoch ends within step 12, the next within step 23.
SETTINGS: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 128, "warmup": 2, "precision": "float32",
    "reports": 4, "validation_images": 8, "grid_columns": 0, "dropout": 0.1,
}  # fmt: skip
STEPS = 24

#: Trains, and is killed (SIGKILL) while it writes its third checkpoint: weights on the disk, state.json not yet.
KILLED = f"""
import os, signal
import sfumato as sf
from sfumato.training import checkpoint
real, written = checkpoint.to_json, []
def to_json(value):
    written.append(value)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(value)
checkpoint.to_json = to_json
sf.train("flow", "digits", steps={STEPS}, out=os.environ["RUN"], quiet=True, **{SETTINGS!r})
"""


def start(run: Path) -> sf.Diffusion:
    return sf.train("flow", "digits", steps=STEPS, out=run, quiet=True, **SETTINGS)


def resume(run: Path) -> sf.Diffusion:
    return sf.train("flow", "digits", out=run, resume=True, quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    start(run)
    return run


def assert_equal(run: Path, whole: Path) -> None:
    """Weights, EMA and optimiser of the last checkpoint, and the model to sample from, are bitwise the same."""
    for name in checkpoints.FILES:
        file = f"checkpoints/step-{STEPS}/{name}.safetensors"
        assert (run / file).read_bytes() == (whole / file).read_bytes(), f"{name} differs"
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    mine, theirs = ([json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()] for r in (run, whole))
    measured = ("step", "loss", "levels")
    pick = [[{k: line[k] for k in measured} for line in log if line["kind"] == "validation"] for log in (mine, theirs)]
    assert pick[0] == pick[1]


def test_killed_while_saving_then_resumed(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", KILLED], env=_environment(RUN=str(run)), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert checkpoints.steps_of(run) == [6, 12]
    left = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    assert len(left) == 1, "the kill was meant to come while a checkpoint was half-written"
    assert len(sf.load(run).sample(2, label="1", steps=2)) == 2, "a killed run can be sampled"
    resume(run)
    assert_equal(run, whole)
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def _environment(**more: str) -> dict[str, str]:
    import os

    source = str(Path(sf.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, **more}


def test_interrupted_saves_and_says_how_to_go_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = tmp_path / "run", Log.step

    def step(self: Log, step: Any) -> None:
        if step.step == 11:
            signal.raise_signal(signal.SIGINT)
        real(self, step)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", step)
        with pytest.raises(
            Stopped, match=r"step 11 and saved; continue with: sfumato train flow --data digits --out .* --resume"
        ):
            start(run)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints.steps_of(run) == [6, 11]
    resume(run)
    assert_equal(run, whole)


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    file = run / "checkpoints" / f"step-{STEPS}" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    sf.train("flow", "digits", out=run, resume=True)
    assert "passed over" in capsys.readouterr().err
    assert_equal(run, whole)


@pytest.mark.parametrize("damage", ["cut", "gone", "state"])
def test_no_whole_checkpoint_is_refused(whole: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in checkpoints.steps_of(run):
        folder = checkpoints.folder_of(run, step)
        if damage == "cut":
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
        elif damage == "gone":
            (folder / "optimiser.safetensors").unlink()
        else:
            (folder / "state.json").write_text("{}")
    with pytest.raises(Refusal, match=r"no checkpoint in .* is whole"):
        resume(run)


def test_resuming_a_finished_run_changes_nothing(whole: Path) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*.safetensors")}
    model = resume(whole)
    assert {path: path.read_bytes() for path in whole.rglob("*.safetensors")} == before
    assert torch.equal(model.sample(2, label="5", steps=3).x, sf.load(whole).sample(2, label="5", steps=3).x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "edm"}, "recipe flow, not edm"),
        ({"steps": 48}, "horizon steps=24, not steps=48"),
        ({"minutes": 1.0}, "horizon steps=24, not seconds=60.0"),
        ({"lr": 0.5}, "lr 0.001, not 0.5"),
        ({"seed": 3}, "seed 0, not 3"),
        ({"data": "mnist"}, "data name digits, not mnist"),
    ],
)
def test_resuming_as_something_else_is_refused(whole: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        sf.train(**({"recipe": "flow", "data": "digits", "out": whole, "resume": True, "quiet": True} | arguments))


def test_a_run_of_minutes_resumes_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = tmp_path / "run", Log.step

    def step(self: Log, step: Any) -> None:
        if step.seconds > 0.8:
            signal.raise_signal(signal.SIGINT)
        real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", step)
        with pytest.raises(Stopped):
            sf.train("flow", "digits", minutes=2.4 / 60, out=run, quiet=True, **SETTINGS)
    first = json.loads((checkpoints.folder_of(run, checkpoints.steps_of(run)[-1]) / "state.json").read_text())
    resume(run)
    last = json.loads((checkpoints.folder_of(run, checkpoints.steps_of(run)[-1]) / "state.json").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"train"' in line]
    # the last report, which is stored with its time, comes after the last step
    assert 0.8 < first["seconds"] < lines[-1]["seconds"] < 4.0
    assert lines[-1]["seconds"] <= last["seconds"]
    assert last["step"] > first["step"]
    rates = [line["lr"] for line in lines]
    assert rates[-1] < 0.05 * max(rates), "the rate falls to zero at the end of the time"


def test_a_run_that_a_long_report_has_ended_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of the report at half of the time take the other half: there is nothing left to continue."""
    run, real = tmp_path / "run", Reporter.pictures

    def pictures(self: Reporter, *rest: Any) -> None:
        time.sleep(0.9)
        real(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "pictures", pictures)
        sf.train("flow", "digits", minutes=0.8 / 60, out=run, quiet=True, **(SETTINGS | {"reports": 2}))
    [*_, last] = checkpoints.steps_of(run)
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*")}
    resume(run)
    assert checkpoints.steps_of(run)[-1] == last
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*")} == before
    assert checkpoints.read(checkpoints.folder_of(run, last)).seconds > 0.9


# ------------------------------------------------------------------------------------------------------- atomicity


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def fill() -> None:
        with new_folder(target) as folder:
            (folder / "a").write_text("a")
            assert not target.exists()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fill()
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as folder:
        (folder / "a").write_text("a")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(Refusal, match=r"cannot write .*file: No space left on device"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_tensor_files_know_when_they_are_damaged(tmp_path: Path) -> None:
    path, tensors = tmp_path / "t.safetensors", {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(())}
    path.write_bytes(pack_tensors(tensors))
    found = unpack_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    with pytest.raises(Refusal, match="checksum differs"):
        unpack_tensors(path)


def test_pruning_keeps_the_last_two(whole: Path) -> None:
    assert checkpoints.steps_of(whole) == [18, 24]
