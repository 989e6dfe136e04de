"""Bits per dimension of a trained model on test images, as metric records.

The contract: three numbers on the same images, each with its standard error and all it depends on.

* ``bits-per-dim``: the probability-flow ODE, dequantised by the model's own noise at its lowest trained level;
* ``bits-per-dim-uniform``: the same ODE from a level as noisy as a uniform place in a bin, uniformly dequantised; left
  out where that level lies so far below the trained ones that the flow there is out of reach (a coarse ladder's);
* ``bits-per-dim-vlb``: the evidence bound, with its parts ``L_T``, ``L_t``, ``L_0``: on the table's steps where the
  recipe trains on steps, else in continuous time.

The first and the last share noise, latents and decoder, and differ in one thing: ``-log p(z)`` is the flow's own in one
and is bounded in the other.  A class-conditional model is asked for ``log p(image | its label)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato import __version__, grids
from sfumato.data.sets import Data
from sfumato.errors import Refusal
from sfumato.likelihood.bits import bits_per_dim, equal_noise, uniform_bits, uniform_dequantise
from sfumato.likelihood.ode import FlowLikelihood, level_of, log_prob, times_at
from sfumato.likelihood.trace import Hutchinson
from sfumato.likelihood.vlb import (
    DataBound,
    continuous_bound,
    grid_bound,
    latent,
    latent_log_prob,
    reconstruction,
)
from sfumato.metrics import units
from sfumato.metrics.records import Record
from sfumato.processes.decoder import Levels
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.randomness import Streams
from sfumato.schedules import at
from sfumato.training.seeds import mix
from sfumato.training.times import Steps
from sfumato.training.velocity import AtOne

#: The share of training times below which a level counts as never trained.
RARE = 5e-4
#: Evaluations of an image after which its flow counts as out of reach: several times what trained levels take.
REACH = 1000


@final
@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension of every image, float64 ``[n]``: by the ODE with ``variational`` and ``uniform``
    dequantisation (not a number where the flow is out of reach), and the ``bound``'s three parts (not a number for a
    coupled path, which has no bound); with the evaluations an image took.
    """

    variational: Tensor
    uniform: Tensor
    bound: Mapping[str, Tensor]
    evaluations: Mapping[str, float]


def lowest_noise(model: Any, levels: Levels) -> float:
    """``sigma / alpha`` of the lowest level that likelihoods are measured from: a bin's own spread, or the lowest level
    the model was trained at where that is higher.
    """
    t = float(model.times(torch.tensor([RARE], dtype=torch.float64)))
    alpha, sigma = at(model.process.schedule, t)
    trained: float = sigma / alpha
    return max(trained, equal_noise(levels))


def _bound(
    model: Any, denoiser: Any, x0: Tensor, levels: Levels, noise: float, cond: Any, rng: Any, draws: int
) -> DataBound:
    """The evidence bound; for a coupled path, which has none, its last term alone."""
    if not isinstance(model.process, Gaussian):
        t = float(times_at(model.process.schedule, torch.tensor([level_of(noise)], dtype=torch.float64)))
        x_t = latent(model.process, x0, t, rng)
        last = reconstruction(denoiser, model.process, x0, x_t, t, levels, cond)
        unknown = torch.full_like(last, math.nan)
        return DataBound(unknown, unknown, last, x_t, t, 1)
    if isinstance(model.times, Steps):
        grid = grids.uniform(model.process.schedule, model.times.steps)
        return grid_bound(denoiser, model.process, x0, grid, levels, rng, cond, draws)
    return continuous_bound(denoiser, model.process, x0, levels, rng, cond, draws, noise)


def measure(
    model: Any,
    x: Tensor,
    label: Tensor | None,
    *,
    seed: int = 0,
    tolerance: float = 1e-3,
    probes: int = 1,
    draws: int = 32,
    batch: int = 64,
) -> Likelihood:
    """The likelihood of images ``x [n, c, h, w]`` in the user's units under a trained model.

    Image ``k`` draws from seed ``seed + k``, so it has the same numbers in any batch.  ``label [n]`` is needed by a
    class-conditional model.  Networks compute in float32 here, whatever they were trained in: rounding to bfloat16
    would be integrated along.
    """
    if isinstance(model.times, AtOne):
        raise Refusal("this model was distilled to one step and has no density; measure its teacher")
    if not isinstance(model.process, Gaussian | Interpolant):
        raise Refusal(f"a {type(model.process).__name__} process has no probability-flow ODE, so no density to measure")
    net = copy.deepcopy(model.net)
    net.compute_dtype = torch.float32
    denoiser = model.with_net(net.eval().requires_grad_(False), model.weights).denoiser
    process, levels = model.process, Levels.of(model.transform)
    noise, trace = lowest_noise(model, levels), Hutchinson(probes)
    parts: list[dict[str, Tensor]] = []
    reached = True
    for first in range(0, len(x), batch):
        rows = slice(first, first + batch)
        x0 = model.transform.encode(x[rows].to(model.device))
        d, seeds = x0[0].numel(), range(seed + first, seed + first + len(x0))
        cond = {"label": label[rows].to(model.device)} if model.classes and label is not None else None
        noises, places, signs = (
            Streams(mix(k, use) for k in seeds) for use in ("bound", "dequantisation", "trace probes")
        )
        with torch.no_grad():
            bound = _bound(model, denoiser, x0, levels, noise, cond, noises, draws)
        t = bound.time
        alpha, sigma = at(process.schedule, t)
        options: dict[str, Any] = {"trace": trace, "tolerance": tolerance, "cond": cond, "rng": signs}
        options |= {"max_evaluations": REACH}
        # the flow's density is that of z / alpha
        exact = log_prob(denoiser, process, bound.latent / alpha, noise=sigma / alpha, **options)
        paid = latent_log_prob(process, x0, bound.latent, t).cpu() + d * math.log(alpha)
        blurred = uniform_dequantise(x0, levels, places)
        flat = FlowLikelihood(torch.full((len(x0),), math.nan).double(), blurred, exact.evaluations)
        try:
            if reached:
                flat = log_prob(denoiser, process, blurred, noise=equal_noise(levels), **options)
        except Refusal:
            if noise == equal_noise(levels):  # a level that the model was trained at
                raise
            reached = False
        parts.append(
            {
                "variational": bits_per_dim(paid - exact.logp + bound.reconstruction.cpu(), d),
                "uniform": uniform_bits(flat.logp, levels, d),
                "L_T": bits_per_dim(bound.prior.cpu(), d),
                "L_t": bits_per_dim(bound.diffusion.cpu(), d),
                "L_0": bits_per_dim(bound.reconstruction.cpu(), d),
                "variational evaluations": exact.evaluations.double() + 1,
                "uniform evaluations": flat.evaluations.double(),
                "bound evaluations": torch.full((len(x0),), bound.evaluations, dtype=torch.float64),
            }
        )
    found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return Likelihood(
        variational=found["variational"],
        uniform=found["uniform"],
        bound={key: found[key] for key in ("L_T", "L_t", "L_0")},
        evaluations={key: float(found[f"{key} evaluations"].mean()) for key in ("variational", "uniform", "bound")},
    )


NAMES = {
    "bits-per-dim": ("variational", "probability-flow ODE, dequantised by the model's noise at its lowest level"),
    "bits-per-dim-uniform": ("uniform", "probability-flow ODE, uniform dequantisation"),
    "bits-per-dim-vlb": ("bound", "evidence bound L_T + L_t + L_0"),
}


def evaluate(
    model: Any,
    data: Data,
    n: int = 128,
    *,
    seed: int = 0,
    tolerance: float = 1e-3,
    probes: int = 1,
    draws: int = 32,
    batch: int = 64,
) -> list[Record]:
    """The likelihood of ``n`` test images (a fixed choice for each n) as three records (two for a coupled path, which
    has no evidence bound).

    ``tolerance``: of the ODE solver; ``probes``: Hutchinson probes of its trace; ``draws``: steps or times at which the
    bound is estimated.  Raises :class:`Refusal` for data other than the model's, and for more images than there are.
    """
    own, test = model.data, data.test
    if tuple(own["shape"]) != tuple(test.x.shape[1:]):
        raise Refusal(f"{data.name} has images {list(test.x.shape[1:])}, the model was made for {own['shape']}")
    if not 2 <= n <= len(test):
        raise Refusal(f"n={n}: {data.name} has {len(test)} test images; give 2 to {len(test)}")
    index = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:n]
    label = None if test.label is None else test.label[index]
    options = {"seed": seed, "tolerance": tolerance, "probes": probes, "draws": draws}
    found = measure(model, test.x[index], label, batch=batch, **options)  # type: ignore[arg-type]
    values: dict[str, Any] = {
        "variational": found.variational,
        "uniform": found.uniform,
        "bound": sum(found.bound.values()),
    }
    common = {key: value for key, value in options.items() if key != "seed"}
    common |= {"conditional": bool(model.classes), "weights": model.weights, "recipe": model.recipe}

    def record(name: str) -> Record:
        key, rule = NAMES[name]
        value: Any = values[key]
        settings = common | {"standard_error": float(value.std() / math.sqrt(n))}
        if key == "bound":
            settings |= {part: float(own.mean()) for part, own in found.bound.items()}
        return Record(
            name=name,
            value=float(value.mean()),
            floor=0.0,
            better="lower",
            n=n,
            n_ref=n,
            reference=units.reference(data, "test"),
            data_sha256=data.sha256,
            rule=rule,
            floor_rule="0: the entropy of the images is not known",
            extractor="the model itself",
            extractor_sha256="",
            preparation="none",
            sampler=rule.split(",")[0].split(" L_T")[0],
            steps=None,
            nfe=found.evaluations[key],
            seed=seed,
            guidance=None,
            version=__version__,
            settings=settings,
        )

    return [record(name) for name, (key, _) in NAMES.items() if bool(torch.isfinite(values[key]).all())]


def table(records: list[Record]) -> str:
    """The records as text: bits per dimension with their standard error, evaluations, and the parts of the bound."""
    lines = [f"{'':<22}bits/dim   +-        evaluations"]
    for r in records:
        error = r.settings["standard_error"]
        lines.append(f"{r.name:<22}{r.value:<11.4f}{error:<10.4f}{r.nfe:<8.0f}{r.rule}")
        if "L_0" in r.settings:
            parts = "  ".join(f"{part} {r.settings[part]:.4f}" for part in ("L_T", "L_t", "L_0"))
            lines.append(f"{'':<22}= {parts}")
    if all(r.name != "bits-per-dim-uniform" for r in records):
        lines.append(f"bits-per-dim-uniform: left out, below the trained levels it takes over {REACH} evaluations")
    lines.append(f"{records[0].n} images of {records[0].reference}, seed {records[0].seed}")
    return "\n".join(lines)
