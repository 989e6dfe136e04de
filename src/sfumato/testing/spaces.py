"""The laws of spaces: membership, projection, noise of the right dimension, geodesics, the uniform law, symmetry.

The contract checked: ``project`` lands in the space and moves no member, ``contains`` refuses what is off it, noise is
standard in exactly ``dof`` dimensions (of tokens: uniform at ``dof`` independent sites) and depends on a sample's own
seed alone; on manifolds ``exp`` and ``log`` are inverse, distances are lengths of logs, and densities integrate to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sfumato.core import RNG, Space
from sfumato.randomness import Stream, Streams
from sfumato.spaces.manifold import Manifold
from sfumato.testing.statistics import Z_LIMIT, columns, fail, require, z_mean
from sfumato.trees import flat_sum

#: Rounding that float64 may leave in a chain of a few geodesic operations.
TOLERANCE = 1e-9


def check_space(space: Space, x: Tensor, outside: Sequence[Tensor] = (), seed: int = 0) -> None:
    """The laws of any space at a batch of members ``x`` (float64, or int64 tokens; two samples or more).

    ``outside``: states off it.  Noise of tokens must be uniform over the space's ``size`` at every real site,
    independently of all others.
    For a space with geodesics call :func:`check_manifold` as well.  Raises ``AssertionError`` naming the law.
    """
    name = type(space).__name__
    require(space.contains(x), "2 membership", f"{name}: a member is not contained")
    for k, state in enumerate(outside):
        require(not space.contains(state), "2 membership", f"{name}: state {k} off the space is contained")
        require(space.contains(space.project(state)), "2 membership", f"{name}: projecting state {k} leaves the space")
    _check_projection(space, x, Stream(seed), name)
    _check_dimension(space, x, Stream(seed + 1), name)
    _check_noise_streams(space, x, name)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((columns(a) - columns(b)).abs().max())


def _check_projection(space: Space, x: Tensor, rng: RNG, name: str) -> None:
    gap = _gap(space.project(x), x)
    require(gap < TOLERANCE, "2 membership", f"{name}: project moves a member by {gap:.2e}")
    shaken = space.project(x + 3 * rng.normal(tuple(x.shape)).to(x))
    require(space.contains(shaken), "2 membership", f"{name}: project leaves the space")
    gap = _gap(space.project(shaken), shaken)
    require(gap < TOLERANCE, "2 membership", f"{name}: projecting twice moves a state by {gap:.2e}")


def _check_dimension(space: Space, x: Tensor, rng: RNG, name: str, n: int = 4000) -> None:
    """Noise at one member spans ``dof`` dimensions and has that mean square, counted by ``sites`` or the metric."""
    dof = space.dof(x)
    require(dof.shape == (len(x),), "dimension", f"{name}: dof has shape {tuple(dof.shape)}, must be [b] = [{len(x)}]")
    for k in range(len(x)):
        copies = x[k : k + 1].expand(n, *x.shape[1:])
        own = _restrict(space, k, x)
        noise = own.noise(copies, rng)
        if not noise.is_floating_point():
            require(own.contains(noise), "2 membership", f"{name}: noise leaves the space")
            _check_uniform((noise * own.sites(noise)).long(), own.size, int(dof[k]), name)
            continue
        rank = int(torch.linalg.matrix_rank(columns(noise)[:400], rtol=1e-6))
        require(rank == int(dof[k]), "dimension", f"{name}: noise spans {rank} dimensions, dof is {int(dof[k])}")
        square = own.square(noise) if isinstance(own, Manifold) else flat_sum(noise**2 * own.sites(noise))
        z = z_mean(square.to(torch.float64), float(dof[k]))
        require(z < Z_LIMIT, "dimension", f"{name}: noise has mean square {float(square.mean()):.4f}, |z| = {z:.1f}")


def _check_uniform(noise: Tensor, size: int, dof: int, name: str) -> None:
    """Tokens ``[n, ...]`` are uniform at ``dof`` independent sites and 0 at all others (mirrored ones among them)."""
    sites = columns(noise)
    real = sites[:, (sites != 0).any(0)]
    if size == 1 or dof == 0:  # the only token is 0
        require(real.shape[1] == 0, "dimension", f"{name}: noise at {real.shape[1]} sites, which can only hold 0")
        return
    require(real.shape[1] == dof, "dimension", f"{name}: noise at {real.shape[1]} sites, dof is {dof}")
    rank = int(torch.linalg.matrix_rank(real - real.mean(0), rtol=1e-6))
    require(rank == min(dof, len(real) - 1), "dimension", f"{name}: noise spans {rank} dimensions, dof is {dof}")
    # a dozen sites one by one: among very many |z| would pass the limit by chance
    few = (real - (size - 1) / 2)[:, :12].T
    z = max([z_mean(a * b, 0.0) for a, b in combinations(few, 2)], default=0.0)
    require(z < Z_LIMIT, "dimension", f"{name}: noise at two sites is not independent, |z| = {z:.1f}")
    for token in range(size):
        hit = (real == token).double()
        z = max(z_mean(site, 1 / size) for site in [hit.mean(1), *hit[:, :12].T])
        require(z < Z_LIMIT, "dimension", f"{name}: noise is token {token} too often or too rarely, |z| = {z:.1f}")


def _restrict(space: Any, k: int, x: Tensor) -> Any:
    """The space of sample ``k`` alone: a mask (of tokens: what is real), where there is one, cut to its row."""
    mask, real = getattr(space, "mask", None), getattr(space, "real", None)
    if real is not None:
        return replace(space, real=real.expand(x.shape)[k : k + 1])
    if mask is None:
        return space
    row = mask[k % len(mask)][None]
    if is_dataclass(space) and not isinstance(space, type):
        return replace(space, mask=row)
    return type(space)(row)


def _check_noise_streams(space: Space, x: Tensor, name: str) -> None:
    """Law 12: the noise of a seed is bitwise its own, alone or in a batch."""
    seeds = list(range(11, 11 + len(x)))
    together = space.noise(x, Streams(seeds))
    require(together.shape == x.shape and together.dtype == x.dtype, "12 streams", f"{name}: noise is not like x")
    for k, seed in enumerate(seeds):
        alone = _restrict(space, k, x).noise(x[k : k + 1], Streams([seed]))
        require(
            bool((alone[0] == together[k]).all()), "12 streams", f"{name}: noise of seed {seed} depends on its batch"
        )


def check_manifold(space: Manifold, like: Tensor, *, edges: bool = False, n: int = 2000, seed: int = 0) -> None:
    """The laws of geodesics on ``space``, at ``n`` uniform draws shaped like the float64 ``like`` ``[b, ...]``.

    ``edges``: the space ends somewhere, so that a long geodesic stops there.
    """
    name, rng = type(space).__name__, Stream(seed)
    like = like[:1].expand(n, *like.shape[1:])
    x, y = space.uniform(like, rng), space.uniform(like, rng)
    require(space.contains(x), "2 membership", f"{name}: a uniform draw is no member")
    v = space.log(x, y)
    pairs = {
        "exp(x, log(x, y)) is not y": (space.exp(x, v), y),
        "log(x, y) is not tangent": (space.tangent(x, v), v),
        "distance^2 is not the square of the log": (space.distance(x, y) ** 2, space.square(v)),
        "distances are not symmetric": (space.distance(x, y), space.distance(y, x)),
        "exp(x, 0) is not x": (space.exp(x, torch.zeros_like(x)), x),
    }
    middle, share = space.exp(x, 0.3 * v), 0.7 * space.distance(x, y)
    pairs["a geodesic's rest is not as long as what is left of it"] = (space.distance(middle, y), share)
    pairs["a geodesic bends"] = (space.exp(middle, 0.5 * space.log(middle, y)), space.exp(x, 0.65 * v))
    pairs["log(x, exp(x, v)) is not v"] = (space.log(x, space.exp(x, 0.4 * v)), 0.4 * v)
    for what, (a, b) in pairs.items():
        gap = _gap(a, b)
        require(gap < 1e-6, "geodesics", f"{name}: {what}: off by {gap:.2e}")
    require(space.contains(space.exp(x, 5 * space.noise(x, rng))), "2 membership", f"{name}: exp leaves the space")
    long = space.cut(9 * space.noise(x, rng))
    if not edges:
        gap = _gap(space.log(x, space.exp(x, long)), long)
        require(gap < 1e-5, "geodesics", f"{name}: a cut vector is not its own log: off by {gap:.2e}")
    for edge in (space.log(x, x), space.log(x, space.exp(x, 1.000001 * space.cut(1e9 * space.noise(x, rng))))):
        require(bool(torch.isfinite(edge).all()), "geodesics", f"{name}: a log is not finite")


def check_spread(space: Manifold, like: Tensor, n: int = 20_000, seed: int = 0) -> None:
    """A uniform draw drawn in towards ``x`` has the density ``log_spread`` says: it integrates to 1, and is the draws'.

    The second by a moment: the mean squared distance of draws against its integral under the density.
    """
    name, rng = type(space).__name__, Stream(seed)
    x = space.uniform(like[:1], rng).expand(n, *like.shape[1:])
    u, volume = space.uniform(x, rng), space.log_volume(x)
    for share in (1.0, 0.75, 0.4):
        weight = (space.log_spread(x, u, share) + volume).exp()
        z = z_mean(weight, 1.0) if share < 1 else float((weight - 1).abs().max()) * 1e6
        require(
            z < Z_LIMIT, "density", f"{name}: share {share} integrates to {float(weight.mean()):.4f}, |z| = {z:.1f}"
        )
        drawn = space.square(space.log(x, space.exp(x, share * space.log(x, space.uniform(x, rng)))))
        expected = weight * space.square(space.log(x, u))
        error = float((drawn.var() / n + expected.var() / n).sqrt())
        z = abs(float(drawn.mean() - expected.mean())) / error
        require(z < Z_LIMIT, "density", f"{name}: share {share}: draws and density disagree, |z| = {z:.1f}")


def check_isometry(space: Manifold, act: Callable[[Tensor], Tensor], like: Tensor, seed: int = 0) -> None:
    """Law 9: a symmetry ``act`` keeps membership and distances and carries geodesics to geodesics."""
    name, rng = type(space).__name__, Stream(seed)
    x, y = space.uniform(like, rng), space.uniform(like, rng)
    if not space.contains(act(x)):
        fail("9 equivariance", f"{name}: a moved state leaves the space")
    gap = _gap(space.distance(act(x), act(y)), space.distance(x, y))
    require(gap < 1e-6, "9 equivariance", f"{name}: a symmetry changes distances by {gap:.2e}")
    middle = space.exp(x, 0.3 * space.log(x, y))
    moved = space.exp(act(x), 0.3 * space.log(act(x), act(y)))
    gap = float(space.distance(act(middle), moved).max())
    require(gap < 1e-6, "9 equivariance", f"{name}: a moved geodesic is off by {gap:.2e}")
