"""Post-hoc EMA: the average of any length, after the training, from snapshots of two.

The contract (Karras et al. 2024, section 3, algorithms 1-3, https://arxiv.org/abs/2312.02696): a run keeps averages
with power-function profiles of the relative widths :data:`WIDTHS` beside the one it samples from, and stores both at
even parts of its horizon.  The average of another width is the combination of stored ones whose profile is nearest in
L2.  The system is ill-conditioned (1e6 at 64 snapshots), so it is solved in float64.  In addition to the paper's
algorithm the coefficients sum to 1 exactly: a weight that never changed stays as it is, whatever the width.

A snapshot is ``RUN/snapshots/step-N-W.safetensors`` with the parameters in float16, as in the paper: rounding to 11
bits disturbs a weight by less than 1e-3 of itself, less than the noise of training.  Whole or absent, like every file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.training.ema import EMA, exponent
from sfumato.training.files import make_folder, pack_tensors, unpack_tensors, write_bytes

#: The relative widths of the two averages that are stored (the paper's).
WIDTHS = (0.05, 0.10)
#: A profile may miss the one asked for by this share of its norm; the weights' own error is ten times smaller.
WORST = 0.1
#: Widths that are tried to tell a user what can be reached.
_TRIED = tuple(k / 200 for k in range(2, 56))
#: Larger numbers are stored in float32.
_FLOAT16_MAX = 6e4


@final
@dataclass(frozen=True, order=True)
class Profile:
    """The power-function profile of relative width ``width`` over steps 1..``step``, with exponent ``exponent``."""

    step: int
    width: float

    @property
    def exponent(self) -> float:
        """``gamma`` of the width (algorithm 2)."""
        return exponent(self.width)


def inner(a: Sequence[Profile], b: Sequence[Profile]) -> Float64[Tensor, "a b"]:
    """The products ``integral p_a(t) p_b(t) dt`` of continuous profiles ``p(t) = (g + 1) t^g / T^(g+1)`` on [0, T].

    Equation 118 of the paper: ``(g_a + 1)(g_b + 1) / (g_a + g_b + 1) / max(T_a, T_b)`` times the ratio of the shorter
    to the longer length to the power of the longer one's exponent.
    """
    t_a, g_a = _columns(a)
    t_b, g_b = (v.T for v in _columns(b))
    ratio = torch.where(t_a < t_b, (t_a / t_b) ** g_b, (t_b / t_a) ** g_a)
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * ratio / torch.maximum(t_a, t_b)


def _columns(profiles: Sequence[Profile]) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor([[p.step, p.exponent] for p in profiles], dtype=torch.float64)
    return pairs[:, :1], pairs[:, 1:]


@final
@dataclass(frozen=True)
class Combination:
    """``target ~ sum_i coefficients[i] stored[i]``; ``residual`` is the miss of the profile relative to its norm."""

    target: Profile
    stored: tuple[Profile, ...]
    coefficients: Float64[Tensor, " n"]
    residual: float


def combine(stored: Sequence[Profile], target: Profile) -> Combination:
    """The nearest combination of ``stored`` profiles to ``target`` whose coefficients sum to 1 (algorithm 3).

    A stored profile is its own combination.  Raises :class:`Refusal` without profiles and for a width out of (0, 0.28).
    """
    if not stored:
        raise Refusal("no snapshots to combine; train with snapshots=16")
    gram, goal = inner(stored, stored), inner(stored, [target])
    solved = torch.linalg.solve(gram, torch.cat([goal, torch.ones_like(goal)], dim=1))
    free, shift = solved[:, 0], solved[:, 1]
    coefficients = free + shift * (1 - free.sum()) / shift.sum()
    square = float(inner([target], [target]))
    miss = square - 2 * float(coefficients @ goal[:, 0]) + float(coefficients @ gram @ coefficients)
    return Combination(target, tuple(stored), coefficients, (max(miss, 0.0) / square) ** 0.5)


def blend(combination: Combination, tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The combination of the stored averages ``tensors``, summed in float64, as float32."""
    total: dict[str, Tensor] = {}
    for coefficient, part in zip(combination.coefficients.tolist(), tensors, strict=True):
        for name, value in part.items():
            scaled = coefficient * value.double()
            total[name] = total[name].add_(scaled) if name in total else scaled
    return {name: value.float() for name, value in total.items()}


# ---------------------------------------------------------------------------------------------------- while training


class Averages:
    """The averages of :data:`WIDTHS` that a run keeps for ``count`` snapshots over its horizon (0: none are kept)."""

    def __init__(self, net: nn.Module, count: int) -> None:
        self.count = count
        self.parts = {width: EMA(net, width) for width in WIDTHS} if count else {}

    def update(self, step: int) -> None:
        """Take in the weights after step ``step``."""
        for ema in self.parts.values():
            ema.update(step)

    def due(self, before: float, after: float) -> bool:
        """Whether a snapshot belongs between two values of the progress (the end of the horizon is one)."""
        return self.count > 0 and int(min(after, 1.0) * self.count) > int(before * self.count)

    def unwritten(self, run: Path, step: int) -> bool:
        """Whether snapshots are kept and ``step`` has none yet."""
        return self.count > 0 and all(profile.step != step for profile in stored(run))

    def tensors(self) -> dict[str, Tensor]:
        """The averages by ``WIDTH/NAME``, for a checkpoint."""
        return {
            f"{width:.3f}/{name}": value
            for width, ema in self.parts.items()
            for name, value in ema.net.state_dict().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors`; raises :class:`Refusal` where they belong to another network."""
        for width, ema in self.parts.items():
            head = f"{width:.3f}/"
            own = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
            if own.keys() != ema.net.state_dict().keys():
                raise Refusal(f"the checkpoint holds no average of width {width:g}; train again with snapshots")
            ema.net.load_state_dict(own)

    def write(self, run: Path, step: int) -> None:
        """Store a snapshot; raises :class:`Refusal` where it cannot be written."""
        folder = make_folder(run / "snapshots")
        for width, ema in self.parts.items():
            parameters = {name: _narrow(value.detach()) for name, value in ema.net.named_parameters()}
            write_bytes(folder / _name(Profile(step, width)), pack_tensors(parameters))


def _narrow(value: Tensor) -> Tensor:
    return value.half() if value.numel() == 0 or float(value.abs().max()) < _FLOAT16_MAX else value.float()


# -------------------------------------------------------------------------------------------------------- afterwards


def _name(profile: Profile) -> str:
    return f"step-{profile.step}-{profile.width:.3f}.safetensors"


def stored(run: Path) -> list[Profile]:
    """The snapshots of a run, by step and width."""
    found = []
    for path in (run / "snapshots").glob("step-*.safetensors"):
        step, _, width = path.stem.removeprefix("step-").partition("-")
        if step.isdigit() and width.replace(".", "", 1).isdigit():
            found.append(Profile(int(step), float(width)))
    return sorted(found)


def forget_after(run: Path, step: int) -> None:
    """Remove the snapshots of steps after ``step``: a resumed run makes them again."""
    for profile in stored(run):
        if profile.step > step:
            (run / "snapshots" / _name(profile)).unlink(missing_ok=True)


def average(run: Path, width: float) -> dict[str, Tensor]:
    """The parameters of a run averaged with relative width ``width`` up to its last snapshot, float32.

    Raises :class:`Refusal` where the run has no snapshots, for a width that they cannot give, and where one is damaged
    or missing.
    """
    exponent(width)  # refuses what is no width
    profiles = stored(run)
    if not profiles:
        raise Refusal(f"{run} has no snapshots for ema={width:g}; train with --set snapshots=16, or leave --ema out")
    combination = combine(profiles, Profile(profiles[-1].step, width))
    if combination.residual > WORST:
        raise Refusal(_out_of_reach(run, profiles, combination))
    files = [unpack_tensors(run / "snapshots" / _name(profile)) for profile in profiles]
    return blend(combination, files)


def _out_of_reach(run: Path, profiles: Sequence[Profile], combination: Combination) -> str:
    last = profiles[-1].step
    near = [w for w in _TRIED if combine(profiles, Profile(last, w)).residual <= WORST]
    return (
        f"ema={combination.target.width:g}: the {len(profiles) // len(WIDTHS)} snapshots of {run} reach widths "
        f"{min(near, default=min(WIDTHS)):g} to {max(near, default=max(WIDTHS)):g}; choose one of these"
    )


def load_average(net: Any, run: Path, width: float) -> None:
    """Put :func:`average` into ``net``; its buffers stay.  Raises :class:`Refusal` where they do not fit."""
    load_parameters(net, average(run, width), run / "snapshots")


def load_parameters(net: Any, found: Mapping[str, Tensor], source: Path) -> None:
    """Copy parameters into ``net`` by name; raises :class:`Refusal` where they are not its own."""
    own = dict(net.named_parameters())
    for name in own.keys() | found.keys():
        if name not in own or name not in found or own[name].shape != found[name].shape:
            raise Refusal(f"{source} does not fit its config.json at {name}; restore the file or train again")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])
