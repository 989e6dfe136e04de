"""What a training will take, before it starts: parameters, arithmetic, memory and time of a step.

The contract: everything is measured on a trial of a few rows with a copy of the network; nothing of the run changes.

* **FLOPs** of a step: those of the matrix products and convolutions of a forward and a backward pass, counted by
  PyTorch (``torch.utils.flop_counter``; a multiplication and an addition are 2), in proportion to the rows.
* **Memory**: the most that tensors take at once, followed allocation by allocation through a trial with
  :data:`ROWS` rows; a line through the two gives ``fixed + per_row rows``.  The weights, the optimiser's moments and
  the averages are added, at 4 bytes a number.  Work space inside a library's kernel is not seen: leave a margin.
* **Time**: a trial of :data:`TIMED` rows, in proportion.  The optimiser, the averages and reading come on top; whole
  batches are faster per row.
"""

from __future__ import annotations

import copy
import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sfumato.data.rows import Rows
from sfumato.errors import Refusal
from sfumato.randomness import Stream
from sfumato.training.horizon import Horizon, Seconds
from sfumato.training.horizon import Steps as StepCount
from sfumato.training.parallel import units

#: Rows of the two trials whose memory is followed.
ROWS = (2, 6)
#: Rows of the trial that is timed, at most.
TIMED = 16
#: Batches that are chosen are multiples of this, from it on.
MULTIPLE = 8
#: What is chosen keeps this share of the limit free, for work space.
MARGIN = 0.1
_UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@final
class _Whole:
    """Counts for the whole network alone: hooks on its modules do not stand a gradient inside the forward pass (the
    energies')."""

    parents: ClassVar[frozenset[str]] = frozenset({"Global"})

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to undo."""


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of tensors that are made while it is on: ``live`` bytes now, ``peak`` bytes at most.

    ``known``: tensors that were there before, whose memory is not counted.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        self._ignored = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value)
        return out

    def _see(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._ignored:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


@final
@dataclass(frozen=True)
class Expected:
    """What a step takes.  ``flops_per_row``; ``held`` bytes of weights, moments and averages, ``fixed`` more in a step,
    ``per_row`` more for every row that is worked on at once; ``seconds_per_row``; ``unused``: parameters that got no
    gradient.
    """

    parameters: int
    flops_per_row: float
    held: int
    fixed: float
    per_row: float
    seconds_per_row: float
    unused: bool

    def memory(self, rows: int) -> float:
        """Bytes of tensors at most, with ``rows`` rows at once."""
        return self.held + self.fixed + self.per_row * rows

    def divided(self, count: int) -> Expected:
        """The same where weights, moments and their averages are divided among ``count`` processes, each of which
        holds one average whole, for reports.
        """
        return replace(self, held=self.held // count + 4 * self.parameters)

    def steps_in(self, seconds: float, batch: int, count: int) -> int:
        """About how many steps fit into so many seconds."""
        return max(1, round(seconds * count / (self.seconds_per_row * batch)))

    def lines(self, horizon: Horizon, batch: int, accumulate: int, count: int) -> list[str]:
        """What to print: a line for a step, a line for the horizon; ``count`` processes."""
        rows = -(-batch // (count * accumulate))
        seconds = self.seconds_per_row * batch / count
        step = f"a step of {batch}: {_scaled(self.flops_per_row * batch, 'FLOP')}, {_scaled(self.memory(rows), 'B')}"
        more = "" if count == 1 else f" on each of {count} processes"
        what = f"expected: {self.parameters:,} parameters; {step} of memory{more}, {seconds:.2g} s"
        match horizon:
            case StepCount(steps):
                whole = f"expected: {steps} steps take about {_duration(seconds * steps)}"
            case Seconds(given):
                steps = self.steps_in(given, batch, count)
                whole = f"expected: {horizon} are about {_round(steps)} steps, {_round(steps * batch)} samples"
            case _:
                return [what]
        return [what, whole]


def _scaled(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} P{unit}"


def _round(value: int) -> str:
    return f"{int(float(f'{value:.2g}')):,}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} minutes" if seconds < 6000 else f"{seconds / 3600:.3g} hours"


def expect(model: Any, rows: Rows) -> Expected:
    """Measure ``model`` (untrained or not, on its device) on a few of its ``rows``."""
    net = copy.deepcopy(model.net).train()
    if model.settings.optimisation.recompute:
        recompute(units(net))
    trial = model.with_net(net, "raw")
    tensors = [*net.parameters(), *net.buffers()]
    peaks: list[int] = []
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    with counter:
        _pass(trial, rows, ROWS[0])
    unused = any(p.requires_grad and p.grad is None for p in net.parameters())
    for n in ROWS:
        net.zero_grad()
        with Allocations(tensors) as seen:
            _pass(trial, rows, n)
        peaks.append(seen.peak)
    net.zero_grad()
    timed = min(TIMED, model.settings.optimisation.batch)
    _settled(tensors[0].device)
    began = time.perf_counter()
    _pass(trial, rows, timed)
    _settled(tensors[0].device)
    seconds = time.perf_counter() - began
    per_row = max(0.0, (peaks[1] - peaks[0]) / (ROWS[1] - ROWS[0]))
    return Expected(
        parameters=sum(p.numel() for p in net.parameters()),
        flops_per_row=counter.get_total_flops() / ROWS[0],
        held=_held(net, model.settings.optimisation),
        fixed=max(0.0, peaks[0] - per_row * ROWS[0]),
        per_row=per_row,
        seconds_per_row=seconds / timed,
        unused=unused,
    )


def _held(net: nn.Module, settings: Any) -> int:
    """Bytes that stay between steps: weights, an average, two moments (one for Muon, not told apart), snapshots."""
    copies = 4 + (2 if settings.snapshots else 0)
    return copies * sum(p.numel() * p.element_size() for p in net.parameters())


def _settled(device: torch.device) -> None:
    """Wait for what a GPU was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _pass(model: Any, rows: Rows, n: int) -> None:
    """A forward and a backward pass over ``n`` rows."""
    batch = rows.batch(torch.arange(n) % len(rows))
    here = next(iter(batch.values())).device
    with torch.random.fork_rng([here] if here.type == "cuda" else []):
        torch.manual_seed(0)
        losses: Mapping[str, Tensor] = model.losses(batch, Stream(0))
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------------------------------------------- what to choose


def parse_bytes(text: str) -> float:
    """``"4GB"``, ``"500 MB"`` or ``"2e9"`` as bytes; raises :class:`Refusal` for anything else."""
    number = text.strip().upper().rstrip("KMGTB ")
    unit = text.strip().upper()[len(number) :].strip() or "B"
    try:
        value = float(number) * _UNITS[unit if unit.endswith("B") else unit + "B"]
    except (ValueError, KeyError):
        raise Refusal(f"memory limit {text!r}: write a number of bytes as in 4GB or 500MB") from None
    if not 0 < value < float("inf"):
        raise Refusal(f"memory limit {text!r}: needs to be positive")
    return value


def rows_that_fit(expected: Expected, limit: float, taken: float = 0.0) -> int:
    """The most rows at once for which a step stays below ``limit`` bytes less :data:`MARGIN`, of which others have
    ``taken`` some already; a multiple of :data:`MULTIPLE` where it is as large.

    Raises :class:`Refusal` where not one row fits.
    """
    free = limit * (1 - MARGIN) - taken - expected.held - expected.fixed
    rows = int(free // max(expected.per_row, 1.0))
    if rows < 1:
        least = (taken + expected.memory(1)) / (1 - MARGIN)
        raise Refusal(
            f"memory limit {_scaled(limit, 'B')}: a step of one row takes {_scaled(least, 'B')}; give more, a smaller "
            "network, or recompute=true"
        )
    return rows - rows % MULTIPLE if rows >= MULTIPLE else rows


def taken(device: torch.device) -> float:
    """Bytes that this process has taken already where it trains: its resident memory, or what it has on the GPU."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE")) if statm.exists() else 0.0


#: ``compile=auto`` compiles for horizons of at least so many seconds on a GPU; on a CPU it was measured not to pay.
COMPILED = 1800.0


def compiles(option: str, device: torch.device, horizon: Horizon) -> bool:
    """Whether the network is compiled for a run (``compile``: on, off, auto)."""
    long = isinstance(horizon, Seconds) and horizon.seconds >= COMPILED
    return option == "on" or (option == "auto" and device.type == "cuda" and long)


# ------------------------------------------------------------------------------------------------------- recompute


def recompute(layers: list[nn.Module]) -> None:
    """Let every layer keep its input alone and compute the rest again on the way back, in place (Chen et al. 2016)."""
    from torch.utils.checkpoint import checkpoint

    for layer in layers:
        layer.forward = _Again(layer.forward, checkpoint)


@final
class _Again:
    """A layer's forward pass, done again where its insides are needed."""

    def __init__(self, forward: Any, checkpoint: Any) -> None:
        self.forward, self.checkpoint = forward, checkpoint

    def __call__(self, *args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **named)
        return self.checkpoint(self.forward, *args, use_reentrant=False, **named)
