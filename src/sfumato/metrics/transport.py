"""How a flow carries the prior to the data: straightness, transport cost, path energy.

The contract: along the trajectories of ``dx/dt = v`` from ``x1`` to ``x0``, in the time ``t`` of the process,

* transport cost ``C = E |x1 - x0|^2``;
* path energy ``E = E int_0^1 |v|^2 dt``;
* straightness ``S = E int_0^1 |(x1 - x0) - v|^2 dt`` (Liu et al. 2022), 0 where one Euler step is exact;
* normalised path energy ``NPE = |E - W2^2| / W2^2`` (Tong et al. 2023), 0 for dynamic optimal transport.

Since ``int v dt = x1 - x0``, ``S = E - C``; the quadrature used here keeps that identity to the last digit, because it
weighs the velocities as the solver does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sfumato.core import Cond
from sfumato.errors import Refusal
from sfumato.metrics.records import Record
from sfumato.schedules import rates
from sfumato.trees import flat_sum


@final
@dataclass(frozen=True, eq=False)
class Transport:
    """Trajectories from ``x1`` ``[b, ...]`` to ``x0``; ``energy`` and ``cost`` ``[b]``, float64, summed over
    coordinates."""

    x0: Tensor
    x1: Tensor
    energy: Tensor
    cost: Tensor

    @property
    def straightness(self) -> Tensor:
        """``int |(x1 - x0) - v|^2 dt``, ``[b]``."""
        return self.energy - self.cost


def velocity(denoiser: Any, process: Any, x: Tensor, t: float, cond: Cond | None = None) -> Tensor:
    """``dx/dt = alpha' x0hat + sigma' epshat`` of the probability-flow ODE, or of a coupled path; needs ``t > 0``."""
    alpha, sigma, dalpha, dsigma = rates(process.schedule, t)
    x0 = denoiser(x, t, cond).point()
    moved: Tensor = dalpha * x0 + dsigma * (x - alpha * x0) / sigma
    return moved


def walk(
    denoiser: Any, process: Any, x1: Float[Tensor, "b *shape"], *, steps: int = 100, cond: Cond | None = None
) -> Transport:
    """Carry ``x1`` from ``t = 1`` to the data by Ralston's method (1962; order 3), without gradients.

    Three evaluations a step, all inside it or at its start: none at ``t = 0``, where a velocity may be infinite.
    Raises :class:`Refusal` for fewer than 1 step.
    """
    if steps < 1:
        raise Refusal(f"steps={steps}: a trajectory needs at least 1 step")
    x, energy = x1, torch.zeros(len(x1), dtype=torch.float64)
    with torch.no_grad():
        for t, s in pairwise([k / steps for k in range(steps, -1, -1)]):
            h = s - t
            k1 = velocity(denoiser, process, x, t, cond)
            k2 = velocity(denoiser, process, x + h / 2 * k1, t + h / 2, cond)
            k3 = velocity(denoiser, process, x + 3 * h / 4 * k2, t + 3 * h / 4, cond)
            x = x + h / 9 * (2 * k1 + 3 * k2 + 4 * k3)
            squares = [flat_sum(k.cpu().double() ** 2) for k in (k1, k2, k3)]
            energy = energy - h / 9 * (2 * squares[0] + 3 * squares[1] + 4 * squares[2])
    return Transport(x, x1, energy, flat_sum((x1 - x).cpu().double() ** 2))


def wasserstein2_squared(a: Float[Tensor, "n *shape"], b: Float[Tensor, "m *shape"]) -> float:
    """``W2^2`` between two sets of equal weights, exactly (network simplex); the mean square distance of the pairing.

    Between ``n`` samples of one law it is not 0: compare with that floor at the same ``n``.
    """
    from sfumato.training.couplings import exact_plan, squared_distances

    cost: Float64[Tensor, "n m"] = squared_distances(a, b)
    return float((exact_plan(cost) * cost).sum())


def normalised_path_energy(energy: float, w2_squared: float) -> float:
    """``|energy - W2^2| / W2^2``.  Raises :class:`Refusal` unless ``W2^2 > 0``."""
    if not w2_squared > 0:
        raise Refusal(f"W2^2={w2_squared:g}: between equal laws the path energy has no scale")
    return abs(energy - w2_squared) / w2_squared


#: What the records say they follow.
RULES = {
    "transport-cost": "E |x1 - x0|^2 along the ODE, summed over coordinates, in model units",
    "straightness": "E int |(x1 - x0) - v|^2 dt (Liu et al. 2022), summed over coordinates, in model units",
    "npe": "|E int |v|^2 dt - W2^2| / W2^2 (Tong et al. 2023), W2^2 exact between the n ends",
}


def measure(model: Any, *, n: int = 256, steps: int = 25, seed: int = 0, batch: int = 128) -> list[Record]:
    """Transport cost, straightness and NPE of a trained model (``sfumato.load``): plain conditional, all classes in
    turn, noise of the seeds ``seed .. seed + n - 1``.

    Raises :class:`Refusal` for fewer than 2 samples.
    """
    from sfumato import __version__
    from sfumato.randomness import Streams

    if n < 2:
        raise Refusal(f"n={n}: transport needs at least 2 samples")
    shape, parts = tuple(model.data["shape"]), []
    for first in range(0, n, batch):
        count = min(batch, n - first)
        x1 = model.process.prior(torch.zeros((count, *shape))).draw(Streams(range(seed + first, seed + first + count)))
        cond = None
        if model.classes:
            cond = {"label": (torch.arange(first, first + count) % len(model.classes)).to(model.device)}
        parts.append(walk(model.denoiser, model.process, x1.to(model.device), steps=steps, cond=cond))
    energy, cost = (torch.cat([getattr(p, name) for p in parts]) for name in ("energy", "cost"))
    ends = [torch.cat([getattr(p, name) for p in parts]) for name in ("x1", "x0")]
    squared = wasserstein2_squared(*ends)
    values = {
        "transport-cost": (float(cost.mean()), squared),
        "straightness": (float((energy - cost).mean()), 0.0),
        "npe": (normalised_path_energy(float(energy.mean()), squared), 0.0),
    }
    how: Mapping[str, Any] = {"recipe": model.recipe, "weights": model.weights}
    return [
        Record(
            name=name,
            value=value,
            floor=floor,
            better="lower",
            n=n,
            n_ref=n,
            reference="prior",
            data_sha256=str(model.data["sha256"]),
            rule=RULES[name],
            floor_rule="exact optimal transport between the same ends" if floor else "0: dynamic optimal transport",
            extractor="none",
            extractor_sha256="",
            preparation="model units",
            sampler="ralston",
            steps=steps,
            nfe=3 * steps,
            seed=seed,
            guidance=1.0,
            version=__version__,
            settings=how,
        )
        for name, (value, floor) in values.items()
    ]
