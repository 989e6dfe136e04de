"""The laws of laws: densities, divergences and pooling agree with what is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.laws import Categorical, pool
from sfumato.laws.manifold import Along
from sfumato.processes.bound import add_parts
from sfumato.testing.statistics import Z_LIMIT, columns, require, z_gap, z_mean


def check_law(law: Any, other: Any, rng: RNG) -> None:
    """Two laws of one kind over the same states, each the same for all of a large batch, keep their contract.

    ``E_law[exp(nll_law - nll_other)] = 1`` (both densities are normalised), ``law.kl(other)`` is the expectation of
    ``other.nll - law.nll`` over draws, ``law.kl(law) = 0``, and a tilt of weight 1 or 0 is the law or the reference.
    """
    name = f"law {type(law).__name__}"
    x = law.draw(rng)
    ratio = add_parts(other.nll(x)) - add_parts(law.nll(x))
    z = z_mean((-ratio).exp().to(torch.float64), 1.0)
    require(
        z < Z_LIMIT, name, f"densities are not normalised: E[p/q] = {float((-ratio).exp().mean()):.5f}, |z| = {z:.1f}"
    )
    kl = add_parts(law.kl(other)).to(torch.float64)
    require(kl.shape == ratio.shape, name, f"kl has shape {tuple(kl.shape)}, must be [b] = {tuple(ratio.shape)}")
    z = z_mean(ratio.to(torch.float64) - kl, 0.0)
    message = f"kl = {float(kl.mean()):.6f}, Monte Carlo {float(ratio.mean()):.6f}, |z| = {z:.1f}"
    require(z < Z_LIMIT, name, message)
    own = float(add_parts(law.kl(law)).abs().max())
    require(own < 1e-9, name, f"kl of a law with itself is {own:.2e}")
    check_pool([other, law], rng)


def _same(a: Any, b: Any) -> float:
    """The largest difference between two laws' tensors (-inf equals -inf)."""
    if isinstance(a, dict):
        return max(_same(a[k], b[k]) for k in a)
    if hasattr(a, "leaves"):
        return max(_same(getattr(a, k), getattr(b, k)) for k in a.leaves)
    x, y = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return float(torch.where(x == y, 0.0, (x - y).abs()).max())


def _stated(law: Any) -> Tensor:
    """What mixes linearly, side by side: the tangent vector of a point stated by one, else the point."""
    return columns(law.v if isinstance(law, Along) else law.point())


def check_pool(laws: Sequence[Any], rng: RNG) -> None:
    """Pooling a reference and a law: weight 1 is the law, weight 0 the reference, ``tilt`` is the pool.

    The points of laws of numbers mix linearly, as do the tangent vectors of points stated by them.  For categorical
    laws: a token that a term of non-zero weight forbids is never drawn at any guidance scale.
    """
    reference, law = laws[0], laws[-1]
    name = f"pool of {type(law).__name__}"
    gap = _same(pool([reference, law], [0.0, 1.0]), law)
    require(gap < 1e-9, name, f"weight 1 is off the law by {gap:.2e}")
    back = pool([law, reference], [0.0, 1.0])
    gap = _same(back, reference)
    require(gap < 1e-9, name, f"weight 0 is off the reference by {gap:.2e}")
    for w in (0.0, 1.0, 2.5):
        gap = _same(law.tilt(reference, w), pool([reference, law], [1 - w, w]))
        require(gap < 1e-9, name, f"tilt(ref, {w}) is off the pool by {gap:.2e}")
    if isinstance(law, Categorical):
        _check_forbidden(reference, law, name, rng)
    else:
        twice, linear = _stated(pool([reference, law], [-1.0, 2.0])), 2 * _stated(law) - _stated(reference)
        gap = float((twice - linear).abs().max())
        require(gap < 1e-6 * (1 + float(linear.abs().max())), name, f"w = 2 is off ref + 2 (law - ref) by {gap:.2e}")


def _check_forbidden(reference: Categorical, law: Categorical, name: str, rng: RNG) -> None:
    forbidden = (reference.logp == -math.inf) | (law.logp == -math.inf)
    for w in (0.5, 2.0, 7.5):
        mixed: Categorical = pool([reference, law], [1 - w, w])
        require(bool((mixed.logp[forbidden] == -math.inf).all()), name, f"w={w} gives mass to a forbidden token")
        total = mixed.logp.exp().sum(-1)
        require(bool(((total - 1).abs() < 1e-6).all()), name, f"w={w} sums to {float(total.flatten()[0]):.6f}")
        drawn: Tensor = mixed.draw(rng)
        hit = forbidden.gather(-1, drawn[..., None]).any()
        require(not bool(hit), name, f"w={w} draws a forbidden token")


def check_same_law(a: Any, b: Any, what: str) -> None:
    """Two samples of states have the same first and second moments: two-sample |z| below 4.5."""
    from sfumato.testing.statistics import moments

    z = z_gap(moments(columns(a)), moments(columns(b)))
    require(z < Z_LIMIT, what, f"two-sample |z| = {z:.1f}, must stay below {Z_LIMIT}")
