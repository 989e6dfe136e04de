"""Pairs for reflow: draws of the prior and where a trained flow carries them.

The contract: pair ``k`` is a function of the teacher, the seed and ``k`` alone: its noise is the stream of one seed,
its label the data's own in a seeded order, its end the teacher's ODE solved by the teacher's own solver and grid (what
``auto`` stands for, too), guided as asked (a guided field is a field, too) and never clipped.  Pairs are made once, in
parts that a killed run keeps, and stored whole in ``RUN/pairs.safetensors`` with their record ``RUN/pairs.json``.
Either says which teacher made them, by the checksum of its weights: no run goes on with pairs of another.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.data.sets import Data
from sfumato.errors import Refusal
from sfumato.guidance import cfg
from sfumato.processes.interpolant import Interpolant
from sfumato.randomness import Streams
from sfumato.training.files import checksum, make_folder, pack_tensors, read_json, to_json, unpack_tensors, write_bytes
from sfumato.training.sampling import Plan, plan
from sfumato.training.seeds import epoch_order, mix

#: Pairs of one part.
PART = 256
#: Beside the parts: whose they are, and how long they took.
SOURCE = "source.json"
#: How often progress is told, in seconds.
TELL = 15.0


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """``x0`` and ``end`` ``[n, ...]`` in model units, ``label`` ``[n]`` or None; ``held_out`` are for validation."""

    x0: Tensor
    end: Tensor
    label: Tensor | None
    device: torch.device
    held_out: Pairs | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The pairs at ``index``, on the training device."""
        return {name: rows[index].to(self.device) for name, rows in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """``x0`` and ``end``, and ``label`` where there is one, by name."""
        rows = {"x0": self.x0, "end": self.end}
        return rows if self.label is None else rows | {"label": self.label}

    def split(self, held_out: int) -> Pairs:
        """All but the last ``held_out`` pairs, which go apart."""
        parts = []
        for part in (slice(None, len(self) - held_out), slice(len(self) - held_out, None)):
            label = None if self.label is None else self.label[part]
            parts.append(Pairs(self.x0[part], self.end[part], label, self.device))
        return Pairs(parts[0].x0, parts[0].end, parts[0].label, self.device, parts[1])


def require_teacher(teacher: Any, run: Path | str, guidance: float = 1.0) -> None:
    """Raises :class:`Refusal` unless ``teacher`` states the velocity of the straight path, which is what reflow
    straightens further; unless its own sampler solves the ODE; and for guidance that it was not trained for."""
    head = teacher.denoiser.head
    noisy = isinstance(head.process, Interpolant) and head.process.gamma is not None
    if getattr(head, "prediction", None) != "flow" or head.process.schedule != schedules.get("flow") or noisy:
        raise Refusal(f"teacher={run} ({teacher.recipe}) is no flow on the straight path; use flow, ot-cfm or reflow")
    if guidance != 1 and (not teacher.classes or teacher.settings.optimisation.label_dropout == 0):
        raise Refusal(f"pair_guidance={guidance:g}: teacher={run} was trained without label dropout; use 1")
    job = own_plan(teacher, guidance)
    if job.sampler.order is None:
        raise Refusal(
            f"teacher={run} samples by {job.solver!r}, which draws noise; train one with an ODE solver, e.g. 'heun'"
        )


def own_plan(teacher: Any, guidance: float) -> Plan:
    """The solver and the grid that the teacher samples with unless told otherwise, guided with this weight."""
    return plan(teacher, 1, teacher.classes[0], guidance=guidance) if teacher.classes else plan(teacher, 1)


@final
@dataclass(frozen=True, eq=False)
class Source:
    """What makes ``n`` pairs: a ``teacher`` (a trained model) and the checksum of its ``weights``, how it is guided,
    every pair's label, the first one's seed."""

    teacher: Any
    weights: str
    guidance: float
    label: Tensor | None
    seed: int
    n: int

    def identity(self) -> dict[str, Any]:
        """All that a pair depends on but its number, as JSON."""
        job = own_plan(self.teacher, self.guidance)
        return {
            "weights": self.weights,
            "teacher": self.teacher.recipe,
            "seed": self.seed,
            "guidance": self.guidance,
            "solver": job.solver,
            "grid": job.grid_name,
            "steps": job.steps,
        }

    def require(self, record: Mapping[str, Any], folder: Path) -> None:
        """Raises :class:`Refusal` where the ``record`` of the pairs in ``folder`` names another source."""
        now = self.identity()
        for name in now:
            if now[name] != record.get(name, now[name]):
                raise Refusal(
                    f"the pairs in {folder} were made by another teacher (other {name}); bring that one back, or "
                    "remove them to make them anew"
                )

    def _denoiser(self) -> Any:
        null = len(self.teacher.classes)
        if self.guidance == 1:
            return self.teacher.denoiser
        return cfg(self.teacher.denoiser, lambda c: c and {"label": torch.full_like(c["label"], null)}, self.guidance)

    def make(self, first: int, last: int) -> dict[str, Tensor]:
        """Pairs ``first .. last - 1``, on the CPU."""
        teacher, device, job = self.teacher, self.teacher.device, own_plan(self.teacher, self.guidance)
        shape = (last - first, *(int(v) for v in teacher.data["shape"]))
        x1 = teacher.process.prior(torch.zeros(shape)).draw(Streams(range(self.seed + first, self.seed + last)))
        cond = None
        if teacher.classes:
            classes = (
                torch.full((last - first,), len(teacher.classes)) if self.label is None else self.label[first:last]
            )
            cond = {"label": classes.to(device)}
        start = x1.to(device)
        x0 = samplers.sample(self._denoiser(), teacher.process, job.sampler, job.times, start, cond=cond).cpu()
        if not bool(torch.isfinite(x0).all()):
            raise Refusal(f"the teacher's samples {first}..{last - 1} are not finite; train it longer")
        pairs = {"x0": x0, "end": x1}
        return pairs if self.label is None else pairs | {"label": self.label[first:last]}


def source(teacher: Any, data: Data, n: int, seed: int, guidance: float = 1.0) -> Source:
    """The source of ``n`` pairs of a teacher that :func:`require_teacher` passed; labels are the training data's."""
    label = None
    if teacher.classes and data.train.label is not None:
        order = epoch_order(mix(seed, "pair labels"), 0, len(data.train))
        label = data.train.label[order.repeat(-(-n // len(order)))[:n]]
    # another teacher, other noise: a second round must not meet the draws that the first one was trained on
    weights = checksum(pack_tensors(teacher.net.state_dict()))
    return Source(teacher, weights, guidance, label, mix(seed, "pairs", weights) >> 1, n)


def collect(
    made: Source, run: Path | None, say: Callable[[str], None], stop: Callable[[], bool]
) -> dict[str, Tensor] | None:
    """All pairs of a source: those that ``run`` has already, then the rest; None where ``stop()`` came first.

    Without a run folder nothing is stored.  Raises :class:`Refusal` where those are another source's.
    """
    folder = None if run is None else _begun(made, run / "pairs")
    began, told, parts, here = time.perf_counter(), time.perf_counter(), [], 0
    identity, past = made.identity(), 0.0 if folder is None else float(read_json(folder / SOURCE).get("seconds", 0.0))
    for first in range(0, made.n, PART):
        last = min(first + PART, made.n)
        path = None if folder is None else folder / f"{first:08d}.safetensors"
        if path is not None and path.exists():
            parts.append(unpack_tensors(path))
            continue
        if stop():
            return None
        parts.append(made.make(first, last))
        here += last - first
        if path is not None:
            write_bytes(path, pack_tensors(parts[-1]))
            seconds = past + time.perf_counter() - began  # of the parts that are made before a stop, too
            write_bytes(path.with_name(SOURCE), to_json(identity | {"seconds": seconds}))
        if time.perf_counter() - told > TELL or first == 0:
            told = time.perf_counter()
            say(f"pairs: {last} of {made.n}, {(told - began) / here * (made.n - last):.0f} s to go")
    pairs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if run is not None and folder is not None:
        cost = (pairs["end"] - pairs["x0"]).double().flatten(1).square().sum(1)
        record = identity | {
            "n": made.n,
            "sampler": made.teacher.settings.sampling.sampler,
            "transport_cost": float(cost.mean()),
            "seconds": past + time.perf_counter() - began,
        }
        write_bytes(run / "pairs.json", to_json(record))
        write_bytes(run / "pairs.safetensors", pack_tensors(pairs))
        shutil.rmtree(folder)
    return pairs


def _begun(made: Source, folder: Path) -> Path:
    """The folder of the parts, which says whose they are from before the first one on."""
    path = make_folder(folder) / SOURCE
    if path.exists():
        made.require(read_json(path), folder)
    elif any(folder.glob("*.safetensors")):
        raise Refusal(f"{folder} does not say which teacher made its pairs; remove it to make them anew")
    else:
        write_bytes(path, to_json(made.identity()))
    return folder


def stored(run: Path | None, n: int) -> dict[str, Tensor] | None:
    """The whole set of pairs of a run, None where it is not there yet; raises :class:`Refusal` where it is damaged."""
    if run is None or not (run / "pairs.safetensors").exists():
        return None
    pairs = unpack_tensors(run / "pairs.safetensors")
    if read_json(run / "pairs.json").get("n") != n or len(pairs["x0"]) != n:
        raise Refusal(f"{run}/pairs.safetensors does not hold the {n} pairs of its config.json; remove it and resume")
    return pairs
