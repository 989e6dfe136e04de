"""Checkpoints: ``RUN/checkpoints/step-N/`` with weights, averages, optimiser and position; whole or absent.

The contract: a checkpoint is written to a temporary folder with ``state.json`` last, flushed to the disk and renamed;
older ones are removed only after that, and the last two stay.  ``state.json`` holds the SHA-256 of every tensor file,
so reading can tell a damaged checkpoint from a whole one and falls back to the newest whole one.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor

from sfumato.errors import Refusal
from sfumato.training.files import (
    checksum,
    new_folder,
    pack_tensors,
    read_json,
    to_json,
    unpack_tensors,
    write_bytes,
)

FORMAT = 1
FILES = ("model", "ema", "optimiser")
#: Where the run keeps averages for snapshots (:mod:`sfumato.training.phema`).
EXTRA = "averages"
KEEP = 2


@final
@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to continue.  The random state is (seed, step): every draw is a function of them."""

    step: int
    seed: int
    seconds: float
    reserve: float
    position: dict[str, int]  # {"epoch": e, "offset": k}: the next datum
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    averages: dict[str, Tensor] = field(default_factory=dict)


def folder_of(run: Path, step: int) -> Path:
    """``RUN/checkpoints/step-N``."""
    return run / "checkpoints" / f"step-{step}"


def steps_of(run: Path) -> list[int]:
    """The steps of the checkpoints in ``run``, ascending."""
    found = []
    for path in (run / "checkpoints").glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and path.is_dir():
            found.append(int(number))
    return sorted(found)


def write(run: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically, then prune all but the last two; raises :class:`Refusal` where it cannot."""
    target = folder_of(run, checkpoint.step)
    if target.exists():
        shutil.rmtree(target)  # written again after a resume from before it (the later one was damaged)
    with new_folder(target) as folder:
        sums = {}
        for name in (*FILES, EXTRA) if checkpoint.averages else FILES:
            content = pack_tensors(getattr(checkpoint, name))
            (folder / f"{name}.safetensors").write_bytes(content)
            sums[name] = checksum(content)
        state = {
            "format": FORMAT,
            "step": checkpoint.step,
            "seed": checkpoint.seed,
            "seconds": checkpoint.seconds,
            "reserve": checkpoint.reserve,
            "position": checkpoint.position,
            "sha256": sums,
        }
        (folder / "state.json").write_bytes(to_json(state))
    for step in steps_of(run)[:-KEEP]:
        shutil.rmtree(folder_of(run, step), ignore_errors=True)
    return target


def write_clock(run: Path, step: int, seconds: float, reserve: float) -> None:
    """Store the clock as it is after a run's last report, into the checkpoint that this report began with."""
    path = folder_of(run, step) / "state.json"
    write_bytes(path, to_json(read_json(path) | {"seconds": seconds, "reserve": reserve}))


def read(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``; raises :class:`Refusal` where it is missing, damaged or of a newer format."""
    state: dict[str, Any] = read_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise Refusal(
            f"{folder} has checkpoint format {state.get('format')!r}, this version reads {FORMAT}; update sfumato"
        )
    try:
        names = (*FILES, EXTRA) if EXTRA in state["sha256"] else FILES
        tensors = {name: unpack_tensors(folder / f"{name}.safetensors", str(state["sha256"][name])) for name in names}
        return Checkpoint(
            step=int(state["step"]),
            seed=int(state["seed"]),
            seconds=float(state["seconds"]),
            reserve=float(state["reserve"]),
            position=dict(state["position"]),
            **tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"{folder}/state.json is damaged ({error}); an older checkpoint may be whole") from None


def sweep(run: Path) -> None:
    """Remove what a killed process left half-written: files, and folders of checkpoints and samples."""
    checkpoints = run / "checkpoints"
    for folder in (run, run / "snapshots", run / "grids", run / "best", checkpoints, *checkpoints.glob("step-*")):
        for left in folder.glob(".*.tmp"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def newest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint (None where there is none) and a line for every damaged one that was passed over.

    Raises :class:`Refusal` where there are checkpoints and none of them is whole.
    """
    passed: list[str] = []
    for step in reversed(steps_of(run)):
        try:
            return read(folder_of(run, step)), passed
        except Refusal as refusal:
            passed.append(str(refusal))
    if passed:
        raise Refusal(f"no checkpoint in {run} is whole: {passed[0]}")
    return None, []
