"""Distance to the exactly solved ODE, from the same noise.

The contract: the reference is the end at ``t = 0`` of the probability-flow ODE of the very denoiser that is sampled
from (guided, clipped, in its own arithmetic), solved on hundreds of steps evenly spaced in log-SNR; its own error is
measured as its distance to the same solve on half the steps, and stands next to every value as the floor.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato import __version__, samplers
from sfumato.errors import Refusal
from sfumato.grids import LOG_SNR_SPAN, Grid
from sfumato.metrics.records import Record
from sfumato.schedules import Schedule, log_snr, time_at
from sfumato.training.sampling import Plan, carry_out


@final
@dataclass(frozen=True)
class ODE:
    """How the reference is solved: ``sampler`` on ``steps`` steps, and on half as many for its error.

    Raises :class:`Refusal` for an odd number of steps, fewer than 100, and a sampler that draws noise.
    """

    sampler: str = "dpmpp-2m"
    steps: int = 400

    def __post_init__(self) -> None:
        if self.steps < 100 or self.steps % 2:
            raise Refusal(f"steps={self.steps} of the reference: needs an even number of at least 100")
        if samplers.build(self.sampler).order is None:
            raise Refusal(f"{self.sampler} draws noise and solves no ODE; use 'dpmpp-2m' or 'heun' for the reference")


def fine_grid(schedule: Schedule, first: float, n: int) -> Grid:
    """``n`` times evenly spaced in log-SNR from ``first`` (or log-SNR -12) to 12, then 0."""
    top = max(log_snr(schedule, first), LOG_SNR_SPAN[0])
    times = time_at(schedule, torch.linspace(top, LOG_SNR_SPAN[1], n, dtype=torch.float64))
    times[0] = first
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


class Reference(NamedTuple):
    """The end points ``x`` in model units, their RMS distance ``error`` to half the steps, and what it took."""

    x: Float[Tensor, "n c h w"]
    error: float
    nfe: float
    seconds: float


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square difference of two sets of states."""
    return float((a.double() - b.double()).square().mean().sqrt())


def solve(model: Any, job: Plan, ode: ODE, *, batch: int = 256) -> Reference:
    """The reference for the noise of ``job``, from the time at which its grid begins."""
    began = time.perf_counter()
    ends, nfe = [], 0.0
    for steps in (ode.steps // 2, ode.steps):
        times = fine_grid(model.process.schedule, float(job.times[0]), steps)
        fine = replace(
            job, sampler_name=ode.sampler, solver=ode.sampler, sampler=samplers.build(ode.sampler), times=times
        )
        walked = carry_out(model, fine, batch=batch)
        ends.append(walked.x)
        nfe += walked.nfe
    return Reference(ends[1], rms(*ends), nfe, time.perf_counter() - began)


def distance(model: Any, x: Tensor, reference: Reference, ode: ODE, generated: dict[str, Any]) -> Record:
    """The record ``ode-distance``: RMS per pixel between end points ``x [n, c, h, w]`` and the reference's, in grey
    levels.
    """
    low, high = model.transform.limits
    grey = 255 / (high - low)
    found = rms(x, reference.x)
    worst = float((x.double() - reference.x.double()).square().flatten(1).mean(1).sqrt().max())
    return Record(
        name="ode-distance",
        value=found * grey,
        floor=reference.error * grey,
        better="lower",
        n=len(x),
        n_ref=len(x),
        reference=f"ode/{ode.sampler}-{ode.steps}",
        data_sha256=str(model.data["sha256"]),
        rule="root mean square difference per pixel to the end of the ODE from the same noise, in grey levels of 255",
        floor_rule=f"the same between the references on {ode.steps} and {ode.steps // 2} steps, even in log-SNR",
        extractor="pixels",
        extractor_sha256="",
        preparation="none",
        sampler=generated["sampler"],
        steps=generated["steps"],
        nfe=generated["nfe"],
        seed=generated["seed"],
        guidance=generated["guidance"],
        version=__version__,
        settings={
            **{k: v for k, v in generated.items() if k not in {"sampler", "steps", "nfe", "seed", "guidance"}},
            "model_units": found,
            "model_units_worst_sample": worst,
        },
    )


def stochastic(jobs: Iterable[Plan]) -> dict[str, str]:
    """Sampler -> why it has no distance to the ODE, for those that draw noise."""
    return {job.sampler_name: "not applicable, it draws noise on its way" for job in jobs if job.sampler.order is None}
