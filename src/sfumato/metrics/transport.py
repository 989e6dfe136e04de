"""How a flow carries the prior to the data: straightness, transport cost, path energy, and what one step misses.

The contract: along the trajectories of ``dx/dt = v`` from ``x1`` to ``x0``, in the time ``t`` of the process,

* transport cost ``C = E |x1 - x0|^2``;
* path energy ``E = E int_0^1 |v|^2 dt``;
* straightness ``S = E int_0^1 |(x1 - x0) - v|^2 dt`` (Liu et al. 2022), 0 where one Euler step is exact;
* one-step distance ``E |(x1 - v(x1, 1)) - x0|^2``: Euler's single step from ``t = 1`` against the end of the path;
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
from sfumato.trees import flat_sum, precise


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
            squares = [flat_sum(precise(k).cpu() ** 2) for k in (k1, k2, k3)]
            energy = energy - h / 9 * (2 * squares[0] + 3 * squares[1] + 4 * squares[2])
    return Transport(x, x1, energy, flat_sum(precise(x1 - x).cpu() ** 2))


def one_step(denoiser: Any, process: Any, x1: Float[Tensor, "b *shape"], cond: Cond | None = None) -> Tensor:
    """``x1 - v(x1, 1)``: all the way to the data by Euler's method in one step, without gradients; shape of ``x1``."""
    with torch.no_grad():
        return x1 - velocity(denoiser, process, x1, 1.0, cond)


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
    "one-step-distance": "E |x0 of one Euler step - x0|^2 from the same noise, summed over coordinates, in model units",
    "npe": "|E int |v|^2 dt - W2^2| / W2^2 (Tong et al. 2023), W2^2 exact between the n ends",
}


#: What the floors of the records are.
FLOORS = {
    "transport-cost": "exact optimal transport between the same ends",
    "straightness": "0: one Euler step is exact",
    "one-step-distance": "0: one Euler step is exact",
    "npe": "0: dynamic optimal transport",
}


def require_flow(model: Any) -> None:
    """Raises :class:`Refusal` for a model whose path is not one in time, and for one that knows ``t = 1`` alone."""
    from sfumato.processes.gaussian import Gaussian
    from sfumato.processes.interpolant import Interpolant
    from sfumato.schedules import Flow
    from sfumato.training.velocity import AtOne

    if isinstance(model.times, AtOne):
        raise Refusal("this model was distilled to one step and has no path; measure its teacher")
    process = model.process
    straight = isinstance(process, Interpolant) or (
        isinstance(process, Gaussian) and isinstance(process.schedule, Flow)
    )
    if not straight or model.parts.codec is not None:
        raise Refusal(
            f"recipe {model.recipe!r} is no flow: how straight its paths are depends on how its time is counted; "
            "measure a run of flow, ot-cfm, sb-cfm, interpolant or reflow"
        )


def measure(model: Any, *, n: int = 256, steps: int = 25, seed: int = 0, batch: int = 128) -> list[Record]:
    """Transport cost, straightness, one-step distance and NPE of a trained flow (``sfumato.load``): plain conditional,
    all classes in turn, noise of the seeds ``seed .. seed + n - 1``.

    Raises :class:`Refusal` for fewer than 2 samples, a model that is no flow, and paths that are not finite.
    """
    from sfumato import __version__
    from sfumato.randomness import Streams

    if n < 2:
        raise Refusal(f"n={n}: transport needs at least 2 samples")
    if batch < 1:
        raise Refusal(f"batch={batch}: needs at least 1")
    require_flow(model)
    shape, parts, missed = tuple(model.data["shape"]), [], []
    for first in range(0, n, batch):
        count = min(batch, n - first)
        x1 = model.process.prior(torch.zeros((count, *shape))).draw(Streams(range(seed + first, seed + first + count)))
        cond = None
        if model.classes:
            cond = {"label": (torch.arange(first, first + count) % len(model.classes)).to(model.device)}
        x1 = x1.to(model.device)
        parts.append(walk(model.denoiser, model.process, x1, steps=steps, cond=cond))
        jumped = one_step(model.denoiser, model.process, x1, cond)
        missed.append(flat_sum(precise(jumped - parts[-1].x0).cpu() ** 2))
    energy, cost = (torch.cat([getattr(p, name) for p in parts]) for name in ("energy", "cost"))
    if not bool(torch.isfinite(energy).all()):
        raise Refusal("the velocities of this model are not finite; train it longer, and an interpolant with bump=none")
    ends = [torch.cat([getattr(p, name) for p in parts]) for name in ("x1", "x0")]
    squared = wasserstein2_squared(*ends)
    values = {
        "transport-cost": (float(cost.mean()), squared),
        "straightness": (float((energy - cost).mean()), 0.0),
        "one-step-distance": (float(torch.cat(missed).mean()), 0.0),
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
            floor_rule=FLOORS[name],
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
