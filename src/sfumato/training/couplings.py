"""Couplings: which draw of the prior each data point is joined to.

The contract: a coupling takes a batch of data and as many independent draws of the prior, and gives to every data point
one of those draws, so that averaged over batches the ends keep the prior's law.  It is a function of its arguments and
of ``rng`` alone.  In a conditional model pairs are made **within each label**: joined across labels, the noise that
label ``c`` meets would be the part of the prior that lies nearest to class ``c``, and sampling ``p(x | c)`` from the
whole prior would start where the network was never trained.  Within a label the draws are the prior's, whatever the
label.  (Rows whose label training hides are paired within their own label, too: what they share is the prior.)

Minibatch optimal transport is biased towards independence: the plan of a batch of ``n`` approaches the plan of the laws
as ``n`` grows, slowly in high dimension; classes divide ``n``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal, nearest
from sfumato.training.composition import Coupling


@final
@dataclass(frozen=True)
class Independent:
    """Every data point keeps its own draw: the coupling of flow matching (Lipman et al. 2022) and of diffusion."""

    def __call__(
        self, x0: Float[Tensor, "b *shape"], end: Float[Tensor, "b *shape"], label: Tensor | None, rng: RNG
    ) -> Float[Tensor, "b *shape"]:
        """``end`` itself."""
        return end


@final
@dataclass(frozen=True)
class Exact:
    """The optimal transport plan of the batch for the squared distance (Tong et al. 2023, section 3; OT-CFM).

    Between two sets of ``n`` equal weights a plan of least cost is a permutation, so every data point and every draw is
    used exactly once: no row is lost to sampling the plan with replacement.
    """

    def __call__(
        self, x0: Float[Tensor, "b *shape"], end: Float[Tensor, "b *shape"], label: Tensor | None, rng: RNG
    ) -> Float[Tensor, "b *shape"]:
        """The draws in the order of the data that they are joined to."""
        return _within(x0, end, label, exact_pairs)


@final
@dataclass(frozen=True)
class Entropic:
    """Pairs drawn from the entropic plan of ``reg = 2 sigma^2``: the static Schroedinger bridge of the batch, whose
    reference is Brownian motion of variance ``sigma^2`` (Tong et al. 2023, section 3; SB-CFM).

    Every data point draws its end from its own row of the plan, by one uniform number of ``rng``.
    """

    sigma: float = 1.0
    iterations: int = 2000

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise Refusal(f"sigma={self.sigma}: the reference needs a positive noise; use the exact coupling for 0")
        if self.iterations < 1:
            raise Refusal(f"iterations={self.iterations}: Sinkhorn needs at least 1")

    def __call__(
        self, x0: Float[Tensor, "b *shape"], end: Float[Tensor, "b *shape"], label: Tensor | None, rng: RNG
    ) -> Float[Tensor, "b *shape"]:
        """Draws of the prior, one per data point, from the rows of the plan."""
        u = rng.uniform((len(x0),)).double()
        used = 0

        def pairs(cost: Tensor) -> Tensor:
            nonlocal used
            mine, used = u[used : used + len(cost)], used + len(cost)
            plan = entropic_plan(cost, 2 * self.sigma**2, iterations=self.iterations)
            cdf = plan.cumsum(1)
            drawn = torch.searchsorted(cdf, mine[:, None] * cdf[:, -1:], right=True)[:, 0]
            return drawn.clamp(max=len(cost) - 1)

        return _within(x0, end, label, pairs)


COUPLINGS: dict[str, Callable[..., Coupling]] = {"independent": Independent, "exact": Exact, "entropic": Entropic}


def squared_distances(x0: Tensor, noise: Tensor) -> Float64[Tensor, "n m"]:
    """``|x0_i - noise_j|^2``, float64 on the CPU."""
    a, b = (x.detach().flatten(1).cpu().double() for x in (x0, noise))
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.mT).clamp(min=0)


def _within(x0: Tensor, noise: Tensor, label: Tensor | None, pairs: Callable[[Tensor], Tensor]) -> Tensor:
    """Pair the rows of each label apart; ``pairs(cost [n, n]) -> [n]`` gives the column that joins each row."""
    cost = squared_distances(x0, noise)
    chosen = torch.arange(len(x0))
    kind = torch.zeros(len(x0), dtype=torch.int64) if label is None else label.cpu()
    groups = [(kind == c).nonzero()[:, 0] for c in sorted(set(kind.tolist()))]
    for rows in groups:
        chosen[rows] = rows[pairs(cost[rows][:, rows])]
    return noise[chosen.to(noise.device)]


def exact_pairs(cost: Float[Tensor, "n n"]) -> Int64[Tensor, " n"]:
    """The column joined to each row by a permutation of least total cost."""
    if len(cost) == 1:
        return torch.zeros(1, dtype=torch.int64)
    return exact_plan(cost).argmax(1)


def _weights(given: Tensor | None, n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64) if given is None else given.double()


def exact_plan(
    cost: Float[Tensor, "n m"], a: Float[Tensor, " n"] | None = None, b: Float[Tensor, " m"] | None = None
) -> Float64[Tensor, "n m"]:
    """A plan of least cost between weights ``a`` and ``b`` (even unless given), by the network simplex method of POT.

    Raises :class:`Refusal` where the solver stops before the optimum.
    """
    import ot

    n, m = cost.shape
    plan, log = ot.emd(
        _weights(a, n).numpy(), _weights(b, m).numpy(), cost.double().numpy(), numItermax=10_000_000, log=True
    )
    if log["warning"] is not None:
        raise Refusal(f"optimal transport of {n} x {m} points stopped early ({log['warning']}); use smaller batches")
    return torch.from_numpy(plan)


#: Potentials are renewed in the log domain after this many scalings.
_SCALINGS = 20


def entropic_plan(
    cost: Float[Tensor, "n m"],
    reg: float,
    a: Float[Tensor, " n"] | None = None,
    b: Float[Tensor, " m"] | None = None,
    *,
    iterations: int = 2000,
    tolerance: float = 1e-9,
) -> Float64[Tensor, "n m"]:
    """The plan that minimises ``<P, cost> + reg KL(P | a b^T)``, by Sinkhorn's scalings (Cuturi 2013), float64.

    Large costs are met by stabilised scalings (Schmitzer 2019) with ``reg`` lowered in steps.  A plan left short of
    its marginals after ``iterations`` scalings is rounded onto them (Altschuler et al. 2017, algorithm 2): it is then a
    coupling in any case, and the closest to optimal that the iterations bought.  Raises :class:`Refusal` unless
    ``reg > 0``.
    """
    if not reg > 0:
        raise Refusal(f"reg={reg}: the entropic plan needs a positive regularisation; use exact_plan for 0")
    cost = cost.double()
    a, b = _weights(a, cost.shape[0]), _weights(b, cost.shape[1])
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    eps = max(reg, float(cost.max()) / 8)
    left = iterations
    while True:
        last = eps <= reg
        while left > 0:
            g = eps * (b.log() - ((f[:, None] - cost) / eps).logsumexp(0))
            f = eps * (a.log() - ((g - cost) / eps).logsumexp(1))
            kernel = torch.exp((f[:, None] + g - cost) / eps)
            u, v = torch.ones_like(a), torch.ones_like(b)
            for _ in range(min(_SCALINGS, left)):
                v = b / (kernel.mT @ u).clamp(min=1e-300)
                u = a / (kernel @ v).clamp(min=1e-300)
            left -= _SCALINGS
            f, g = f + eps * u.log(), g + eps * v.log()
            plan = u[:, None] * kernel * v
            if float((plan.sum(0) - b).abs().sum()) < (tolerance if last else 1e-2):
                break
        if last or left <= 0:
            return _rounded(torch.exp((f[:, None] + g - cost) / eps), a, b)
        eps = max(reg, eps / 4)


def _rounded(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A plan scaled down to its marginals, what is missing spread evenly (Altschuler et al. 2017, algorithm 2)."""
    plan = plan * (a / plan.sum(1)).clamp(max=1)[:, None]
    plan = plan * (b / plan.sum(0)).clamp(max=1)
    rows, columns = a - plan.sum(1), b - plan.sum(0)
    missing = float(rows.sum())
    return plan + rows[:, None] * columns / missing if missing > 0 else plan


def get(name: str, **settings: Any) -> Coupling:
    """The coupling called ``name``; raises :class:`Refusal` for an unknown name."""
    if name not in COUPLINGS:
        raise Refusal(f"unknown coupling {name!r}; {nearest(name, COUPLINGS)}")
    return COUPLINGS[name](**settings)
