"""Priors that are fitted to data: where a process without a known end begins.

The contract: a process that keeps something of the data at ``t = 1`` has no prior of its own; a :class:`FittedPrior` is
a module (its buffers are stored with a model) that was fitted once to degraded data and then gives a law for states of
any batch, by class where it was fitted with labels.  :func:`start` is the law of the state at which sampling begins,
for every process.

The law is a Gaussian mixture on the few directions in which degraded data differ, with a little noise in all
coordinates: without that noise every pixel would keep to the directions for good (the "symmetry" of Bansal et al. 2022,
section 5.2).  With a few components of full covariance it is the mixture fitted there, with one component of no width
for every training image the kernel density estimate of Rissanen et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from sfumato.core import RNG, Cond, Law, Process
from sfumato.errors import Refusal
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.trees import cast, flat_sum, precise

#: Images that a fit looks at, at most.
MOST = 10_000


@runtime_checkable
class Beginning(Protocol):
    """A process that says where sampling begins, at which times and for which condition."""

    def start(self, like: Tensor, t: float, cond: Cond | None) -> Law[Tensor]:
        """The law of the state at ``t``, shaped like ``like``."""
        ...


def start(process: Process[Any], like: Any, t: float, cond: Cond | None = None) -> Law[Any]:
    """The law of the state at which a grid that begins at ``t`` begins, shaped like ``like`` (empty states).

    The prior at ``t = 1``; below it (some grids) the noise of that level, which is a law of its own for Gaussian paths
    alone: others raise :class:`Refusal`.  A fitted prior is that of the condition's class.
    """
    if isinstance(process, Beginning):
        return process.start(like, t, cond)
    if t == 1:
        return process.prior(like)
    if not isinstance(process, Gaussian | Interpolant):
        raise Refusal(
            f"the grid begins at t={t:g}, but the prior of {type(process).__name__} is at t=1; use the grid 'uniform'"
        )
    return process.marginal(like, t)


def start_fitted(process: Any, like: Tensor, t: float, cond: Cond | None) -> Law[Tensor]:
    """:func:`start` of a process whose prior is fitted; raises :class:`Refusal` for a grid that begins below 1."""
    if t != 1:
        raise Refusal(f"the grid begins at t={t:g}, but the prior is fitted at t=1; use the grid 'uniform'")
    law = process.prior(like)
    return law.given(cond) if isinstance(law, Mixture) else law


def fitted_law(process: str, law: Any, like: Tensor) -> Law[Tensor]:
    """What the ``law`` of a process says; raises :class:`Refusal` where there is none."""
    if law is None:
        raise Refusal(f"a {process} process has no prior until it is fitted: use {process}(...).fit(images)")
    found: Law[Tensor] = law(like)
    return found


# -------------------------------------------------------------------------------------------------------------- law


@final
@dataclass(frozen=True)
class Mixture:
    """``centre + sum_k y_k directions_k + noise z`` with ``y`` of a Gaussian mixture on ``r`` directions.

    ``like``: what it is shaped after, ``[b, ...]`` of ``d`` coordinates; ``centre [d]``; ``directions [r, d]``,
    orthonormal; ``weight [b, m]``: of the components, for every sample; ``mean [m, r]``; ``root [g, r, r]``: factors of
    covariances, that of component ``j`` being ``root[group[j]]``; ``label [m]``: its class; ``noise``: of a coordinate.
    """

    like: Tensor
    centre: Float64[Tensor, " d"]
    directions: Float64[Tensor, "r d"]
    weight: Float64[Tensor, "b m"]
    mean: Float64[Tensor, "m r"]
    root: Float64[Tensor, "g r r"]
    group: Int64[Tensor, " m"]
    label: Int64[Tensor, " m"]
    noise: float

    def _placed(self, y: Tensor) -> Tensor:
        """``centre + y directions``, term by term: a row's digits do not depend on the batch."""
        x = self.centre.expand(len(y), -1)
        for k, direction in enumerate(self.directions):
            x = x + y[:, k : k + 1] * direction
        return x

    def draw(self, rng: RNG) -> Tensor:
        """One draw a sample, from a uniform number and ``r + d`` normal ones of its own."""
        b = len(self.like)
        cdf = self.weight.cumsum(1)
        u = precise(rng.uniform((b,)).to(self.centre.device))[:, None] * cdf[:, -1:]
        last = cdf.shape[1] - 1 - (self.weight > 0).flip(1).to(torch.int8).argmax(1)
        component = torch.minimum(torch.searchsorted(cdf, u, right=True)[:, 0], last)
        z = precise(rng.normal((b, len(self.directions))).to(self.centre.device))
        y, root = self.mean[component], self.root[self.group[component]]
        for k in range(z.shape[1]):
            y = y + root[:, :, k] * z[:, k : k + 1]
        drawn = cast(self._placed(y), self.like).reshape(self.like.shape)
        return drawn + self.noise * rng.normal(tuple(self.like.shape)).to(self.like)

    def point(self) -> Tensor:
        """The mean of the mixture."""
        share = self.weight / self.weight.sum(1, keepdim=True)
        return cast(self._placed(share @ self.mean), self.like).reshape(self.like.shape)

    def nll(self, x: Float[Tensor, "b ..."]) -> Float64[Tensor, " b"]:
        """Negative log-density in nats; raises :class:`Refusal` without noise, where there is no density."""
        if self.noise == 0:
            raise Refusal("noise=0: a law on a few directions has no density; fit it with noise")
        off = precise(x).flatten(1).to(self.centre.device) - self.centre
        y = off @ self.directions.T
        d, r, var = off.shape[1], y.shape[1], self.noise**2
        beyond = flat_sum((off - y @ self.directions) ** 2)
        eye = torch.eye(r, dtype=torch.float64, device=y.device)
        factor = torch.linalg.cholesky(self.root @ self.root.mT + var * eye)[self.group]
        gap = torch.linalg.solve_triangular(factor, (y[:, None] - self.mean)[..., None], upper=False)[..., 0]
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_weight = (self.weight / self.weight.sum(1, keepdim=True)).log()
        inside = torch.logsumexp(log_weight - log_scale - (gap**2).sum(-1) / 2, 1)
        rest = beyond / (2 * var) + (d - r) / 2 * math.log(var)
        found: Tensor = rest - inside + d / 2 * math.log(2 * math.pi)
        return found

    def kl(self, other: Law[Any]) -> Any:
        """Refused: that of a mixture has no closed form."""
        raise Refusal("KL from a Mixture has no closed form; average nll over draws")

    def tilt(self, ref: Law[Any], w: Any) -> Any:
        """Refused: a prior is not guided."""
        raise Refusal("a fitted prior cannot be tilted; give a label for its class")

    def given(self, cond: Cond | None) -> Mixture:
        """The law of every sample's class, ``cond["label"] [b]``; a class it was not fitted to leaves all of it."""
        if cond is None or "label" not in cond:
            return self
        own = self.label == cond["label"].to(self.label.device)[:, None]
        return replace(self, weight=self.weight * torch.where(own.any(1, keepdim=True), own, True))


# -------------------------------------------------------------------------------------------------------------- fit


def principal(x: Float64[Tensor, "n d"], r: int) -> Float64[Tensor, "r d"]:
    """The ``r`` orthonormal directions in which centred rows ``x`` differ most."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, _, v = torch.svd_lowrank(x, q=min(r + 8, *x.shape), niter=6)
    basis = torch.linalg.qr(torch.cat([v[:, :r], torch.eye(x.shape[1], r, dtype=x.dtype)], 1)).Q[:, :r]
    directions: Tensor = basis.T.contiguous()
    return directions


def _nearest_means(y: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """``m`` rows far from each other (k-means++), where expectation maximisation starts."""
    means = y[torch.randint(len(y), (1,), generator=generator)]
    for _ in range(m - 1):
        far = torch.cdist(y, means).amin(1) ** 2 + 1e-12
        means = torch.cat([means, y[torch.multinomial(far, 1, generator=generator)]])
    return means


def gaussian_mixture(
    y: Float64[Tensor, "n r"], m: int, floor: float, generator: torch.Generator, rounds: int = 50
) -> tuple[Float64[Tensor, " m"], Float64[Tensor, "m r"], Float64[Tensor, "m r r"]]:
    """Weights, means and covariances of ``m`` Gaussians fitted to the rows ``y`` by expectation maximisation.

    ``floor``: the variance of noise on them, which is not part of what is returned; it keeps components from collapsing
    onto an image.
    """
    r = y.shape[1]
    eye = torch.eye(r, dtype=y.dtype) * (floor + 1e-6 * float(y.var(0, correction=0).mean()) + 1e-12)
    share = torch.nn.functional.one_hot(torch.cdist(y, _nearest_means(y, m, generator)).argmin(1), m).to(y)
    for _ in range(rounds):
        total = share.sum(0) + 1e-9
        weight, mean = total / total.sum(), (share.T @ y) / total[:, None]
        gap = y[:, None] - mean
        spread = (share[..., None] * gap).permute(1, 2, 0) @ gap.transpose(0, 1)
        cov = spread / total[:, None, None]
        if m == 1:
            break
        factor = torch.linalg.cholesky(cov + eye)
        scaled = torch.linalg.solve_triangular(factor, gap.permute(1, 2, 0), upper=False)
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        share = (weight.log() - log_scale - (scaled**2).sum(1).T / 2).softmax(1)
    return weight, mean, cov


def _root(cov: Tensor) -> Tensor:
    """``A`` with ``A A^T = cov``, also where directions are empty."""
    values, vectors = torch.linalg.eigh(cov)
    root: Tensor = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return root


@final
class FittedPrior(nn.Module):
    """A :class:`Mixture` to be fitted: buffers of fixed shapes, so that a model stores it and finds it again.

    ``shape``: of one state; ``directions`` r; ``components`` m of ``groups`` g covariances; ``noise``: of a coordinate.
    Made by :func:`mixture_prior` or :func:`kernel_prior`.  Calling it with empty states gives the law; raises
    :class:`Refusal` before it is fitted and for states of another size.
    """

    centre: Tensor
    directions: Tensor
    weight: Tensor
    mean: Tensor
    root: Tensor
    group: Tensor
    label: Tensor

    def __init__(self, shape: Sequence[int], directions: int, components: int, groups: int, noise: float) -> None:
        super().__init__()
        d = math.prod(shape)
        if not 1 <= directions <= d:
            raise Refusal(f"directions={directions}: a state of shape {tuple(shape)} has 1 to {d} of them")
        if components < 1:
            raise Refusal(f"components={components}: a prior has at least 1")
        if not 0 <= noise < math.inf:
            raise Refusal(f"noise={noise}: needs 0 or more")
        self.noise = noise
        empty = {
            "centre": torch.full((d,), math.nan), "directions": torch.zeros(directions, d),
            "weight": torch.ones(components), "mean": torch.zeros(components, directions),
            "root": torch.zeros(groups, directions, directions), "group": torch.zeros(components, dtype=torch.int64),
            "label": torch.zeros(components, dtype=torch.int64),
        }  # fmt: skip
        for name, value in empty.items():
            self.register_buffer(name, value)

    def forward(self, like: Tensor) -> Mixture:
        """The law of states shaped like ``like`` ``[b, ...]``, all classes together."""
        if bool(self.centre.isnan().any()):
            raise Refusal("this prior has not been fitted; train the model, or fit the process to images")
        if like[0].numel() != len(self.centre):
            raise Refusal(f"this prior was fitted to {len(self.centre)} coordinates, not to {tuple(like.shape[1:])}")
        centre, directions, mean, root = (precise(v) for v in (self.centre, self.directions, self.mean, self.root))
        weight = precise(self.weight).expand(len(like), -1)
        group, label = self.group.to(mean.device), self.label.to(mean.device)
        return Mixture(like, centre, directions, weight, mean, root, group, label, self.noise)

    def _project(self, x: Tensor, label: Tensor | None, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Set centre and directions; the coordinates ``[n, r]`` and classes ``[n]`` of some of the states."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(x), generator=generator)[:MOST]
        flat = precise(x[chosen].cpu()).flatten(1)
        self.centre.copy_(flat.mean(0))
        self.directions.copy_(principal(flat - flat.mean(0), len(self.directions)))
        own = torch.zeros(len(flat), dtype=torch.int64) if label is None else label[chosen].cpu()
        return (flat - precise(self.centre.cpu())) @ precise(self.directions.cpu()).T, own, generator

    def fit_mixture(
        self,
        x: Float[Tensor, "n ..."],
        label: Int64[Tensor, " n"] | None = None,
        seed: int = 0,
        classes: int | None = None,
    ) -> FittedPrior:
        """Fit equally many Gaussians to the degraded states of every class.  The same seed gives the same fit.
        ``classes``: how many there are, where not all need have a state.

        Raises :class:`Refusal` where the components cannot be shared out among the classes.
        """
        y, own, generator = self._project(x, label, seed)
        classes, m = int(own.max()) + 1 if classes is None else classes, len(self.mean)
        if m % classes:
            raise Refusal(f"components={m} cannot be shared out among {classes} classes; use a multiple of {classes}")
        each = m // classes
        for k in range(classes):
            rows, part = y[own == k], slice(k * each, (k + 1) * each)
            if len(rows) == 0:
                self.weight[part] = 0
                continue
            weight, mean, cov = gaussian_mixture(rows, each, self.noise**2, generator)
            self.weight[part] = (weight * len(rows) / len(y)).to(self.weight)
            self.mean[part], self.root[part] = mean.to(self.mean), _root(cov).to(self.root)
            self.label[part] = k
        self.group.copy_(torch.arange(m))
        return self

    def fit_kernels(
        self, x: Float[Tensor, "n ..."], label: Int64[Tensor, " n"] | None = None, seed: int = 0
    ) -> FittedPrior:
        """Put a component of no width on every degraded state, or on as many as there are components."""
        y, own, generator = self._project(x, label, seed)
        order = torch.randperm(len(y), generator=generator)
        index = order.repeat(-(-len(self.mean) // len(y)))[: len(self.mean)]
        self.mean.copy_(y[index])
        self.label.copy_(own[index])
        self.weight.fill_(1 / len(index))
        return self


def mixture_prior(
    shape: Sequence[int], directions: int = 16, per_class: int = 4, classes: int = 1, noise: float = 0.002
) -> FittedPrior:
    """A prior of ``per_class`` Gaussians for each of ``classes`` classes, to be fitted by ``fit_mixture``."""
    directions = min(directions, math.prod(shape))
    return FittedPrior(shape, directions, per_class * classes, per_class * classes, noise)


def kernel_prior(shape: Sequence[int], directions: int = 16, points: int = 4096, noise: float = 0.0125) -> FittedPrior:
    """A prior of ``points`` degraded images with ``noise`` around each, to be fitted by ``fit_kernels``."""
    return FittedPrior(shape, min(directions, math.prod(shape)), points, 1, noise)
