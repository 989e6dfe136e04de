"""The few statistics the laws are tested with.

The contract: a Monte Carlo statement is a z-score against its own standard error, or a ratio to the floor that two
independent samples of the truth reach; never an absolute distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

#: The largest |z| a correct implementation may show: with a few hundred comparisons a run, false alarms are 1 in 1000.
Z_LIMIT = 4.5


def fail(law: str, message: str) -> NoReturn:
    """Raise the ``AssertionError`` of a broken law, in one readable line."""
    raise AssertionError(f"law broken: {law}: {message}")


def require(holds: bool, law: str, message: str) -> None:
    """``fail`` unless ``holds``."""
    if not holds:
        fail(law, message)


def leaves(state: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a state by name, each flattened to ``[b, d]`` float64 (a plain tensor is named ``"x"``)."""
    if isinstance(state, dict):
        return {key: value for part in state for key, value in leaves(state[part], f"{name}{part}").items()}
    flat = state.detach().to(torch.float64)
    return {name or "x": flat.reshape(len(flat), -1)}


def columns(state: Any) -> Float[Tensor, "b d"]:
    """All coordinates of a state side by side, float64."""
    return torch.cat(list(leaves(state).values()), 1)


def moments(x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
    """Every coordinate, its square, and (up to 12 coordinates) every product of two: what a z-test compares."""
    d = x.shape[1]
    if d > 12:
        return torch.cat([x, x**2], 1)
    i, j = torch.triu_indices(d, d)
    return torch.cat([x, x[:, i] * x[:, j]], 1)


def z_gap(a: Float[Tensor, "n m"], b: Float[Tensor, "k m"]) -> float:
    """The largest two-sample |z| between the means of the columns of two independent samples."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    gap = (a.mean(0) - b.mean(0)).abs()
    # a column that never varies must agree to rounding
    scale = 1e-9 * (1 + a.mean(0).abs())
    return float((gap / torch.maximum(error, scale)).max())


def z_mean(values: Float[Tensor, " n"], expected: float) -> float:
    """The |z| of a sample mean against a known expectation."""
    error = float(values.std()) / math.sqrt(len(values))
    return abs(float(values.mean()) - expected) / max(error, 1e-12)


def sliced_w2(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], directions: int = 64) -> float:
    """The sliced 2-Wasserstein distance between two samples of equal size, over fixed random directions."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=0)
    gap = (a.to(torch.float64) @ axes).sort(0).values - (b.to(torch.float64) @ axes).sort(0).values
    return float((gap**2).mean().sqrt())


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The measured order: minus the least-squares slope of ``log error`` against ``log steps``."""
    x = torch.tensor([math.log(n) for n in steps], dtype=torch.float64)
    y = torch.tensor([math.log(max(e, 1e-300)) for e in errors], dtype=torch.float64)
    x = x - x.mean()
    return -float((x * (y - y.mean())).sum() / (x * x).sum())
