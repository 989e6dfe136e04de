"""Step by step against diffusers' deterministic schedulers, and a record of where they differ from the mathematics.

Both sides get the exact noise at the exact level the scheduler stands at; its tables are raised to float64 first, so
that what is left to differ is the method.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.testing import measure_order

#: diffusers hands tensors to numpy in a way that numpy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types=dpmsolver. is deprecated:FutureWarning"),
]

LINEAR = sf.schedules.get("linear")
PROCESS = sf.processes.Gaussian(LINEAR)
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
MODEL = MIXTURE.denoiser(PROCESS)
TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


def as_published(name: str, **settings: Any) -> Any:
    """A scheduler on DDPM's linear table."""
    return getattr(diffusers, name)(**TABLE, **settings)


def scheduler_of(name: str, steps: int, **settings: Any) -> Any:
    """A scheduler whose tables are float64."""
    scheduler = as_published(name, **settings)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.to(torch.float64)
    return scheduler


def time_of(ratio: float) -> float:
    """The time at which sigma / alpha is this."""
    return 0.0 if ratio == 0 else float(sf.schedules.time_at(LINEAR, -2 * math.log(ratio)))


def noise_at(x: Tensor, t: float) -> Tensor:
    alpha, sigma = sf.schedules.at(LINEAR, t)
    noise: Tensor = (x - alpha * MODEL(x, t).point()) / sigma
    return noise


def start() -> Tensor:
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def theirs(scheduler: Any) -> tuple[list[float], list[Tensor]]:
    """Times and states of a scheduler that keeps a table of ``sigma / alpha`` and a variance-preserving state."""
    times = [time_of(float(ratio)) for ratio in scheduler.sigmas]
    times = times[: len(dict.fromkeys(times))]
    states = [start()]
    for moment, t in zip(scheduler.timesteps, [*times, times[-1]], strict=False):
        states.append(scheduler.step(noise_at(states[-1], t), moment, states[-1]).prev_sample)
    return times, states


def ours(sampler: str, times: list[float]) -> list[Tensor]:
    return list(sf.trajectory(MODEL, PROCESS, sf.samplers.build(sampler), times, start()))


ZERO = {"final_sigmas_type": "zero"}
FULL = {"lower_order_final": False}
DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
#: their class and settings, ours, and the number of last steps in which they differ by design
MULTISTEP: list[tuple[str, dict[str, Any], str, int]] = [
    (DPM, {"solver_order": 1, **ZERO, **FULL}, "ddim", 0),
    (DPM, {"solver_order": 2, **ZERO, **FULL}, "dpmpp-2m", 0),
    (DPM, {"solver_order": 2, "use_karras_sigmas": True, **ZERO, **FULL}, "dpmpp-2m", 0),
    (DPM, {"solver_order": 2, "solver_type": "heun", **ZERO, **FULL}, "dpmpp-2m:form=mean", 0),
    (DPM, {"solver_order": 3, **ZERO, **FULL}, "dpmpp-3m:form=published", 0),
    (UNIPC, {"solver_order": 1, **ZERO}, "unipc:p=1", 0),
    (UNIPC, {"solver_order": 2, **ZERO}, "unipc:p=2", 0),
    (UNIPC, {"solver_order": 2, "solver_type": "bh1", **ZERO}, "unipc:p=2:variant=bh1", 1),  # theirs: NaN, see below
    (UNIPC, {"solver_order": 3, **ZERO}, "unipc:p=3", 2),  # theirs lowers the order at the end
    (UNIPC, {"solver_order": 2, "disable_corrector": list(range(20)), **ZERO}, "dpmpp-2m", 0),
    (DEIS, {"solver_order": 1, **FULL}, "ddim", 0),
    (DEIS, {"solver_order": 2, **FULL}, "deis:p=2:axis=log-rho", 1),  # theirs ends in a step of length 0
    (DEIS, {"solver_order": 3, **FULL}, "deis:p=3:axis=log-rho:warmup=classic", 1),
]


@pytest.mark.parametrize(("name", "settings", "sampler", "last"), MULTISTEP)
def test_multistep(name: str, settings: dict[str, Any], sampler: str, last: int) -> None:
    times, reference = theirs(scheduler_of(name, 16, **settings))
    states = ours(sampler, times)
    assert len(reference) == 17
    for k in range(17 - last):
        # DPMSolverMultistepScheduler rounds its states to float32
        assert torch.allclose(states[k], reference[k], rtol=0, atol=2e-5 if name == DPM else 2e-7), (k, times[k])


@pytest.mark.parametrize(
    ("order", "algorithm", "sampler"),
    [
        (2, "dpmsolver", "dpm-solver:p=2"),
        (2, "dpmsolver++", "dpm-solver:p=2:integrates=data"),
    ],
)
def test_singlestep(order: int, algorithm: str, sampler: str) -> None:
    times, reference = theirs(singlestep(order, algorithm, 6))
    states = ours(sampler, times[::order])
    for k in range(len(states)):
        assert torch.allclose(states[k], reference[k * order], rtol=0, atol=1e-7), k


@pytest.mark.parametrize(
    ("algorithm", "sampler"), [("dpmsolver", "dpm-solver"), ("dpmsolver++", "dpm-solver:integrates=data")]
)
def test_singlestep_of_order_3(algorithm: str, sampler: str) -> None:
    """Theirs reads the line to its second evaluation half-way, the paper (eq. 4.4) at its mean: both are of order 3."""
    gaps = []
    for steps in (20, 40):
        times, reference = theirs(singlestep(3, algorithm, steps))
        gaps.append(float((ours(sampler, times[::3])[-1] - reference[-1]).norm(dim=1).mean()))
    assert 1e-9 < gaps[0] < 1e-2
    assert math.log2(gaps[0] / gaps[1]) > 2.5


def singlestep(order: int, algorithm: str, steps: int) -> Any:
    """Their singlestep scheduler on levels even in lambda, where its grid points fall where our steps evaluate."""
    scheduler = scheduler_of(
        "DPMSolverSinglestepScheduler", order * steps, solver_order=order, algorithm_type=algorithm,
        lower_order_final=False, solver_type="midpoint", final_sigmas_type="sigma_min",
    )  # fmt: skip
    lams = torch.linspace(math.log(150.0), math.log(0.05), order * steps + 1, dtype=torch.float64)
    scheduler.sigmas = lams.exp()
    scheduler.order_list = [k % order + 1 for k in range(order * steps)]
    return scheduler


def on_table_steps(scheduler: Any) -> Tensor:
    """The end of a scheduler that is asked at steps of the table."""
    x = start()
    for moment in scheduler.timesteps:
        x = scheduler.step(noise_at(x, (int(moment) + 1) / 1000), moment, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [4, 10, 50])
def test_ddim(steps: int) -> None:
    reference = on_table_steps(scheduler_of("DDIMScheduler", steps, clip_sample=False))
    x = sf.sample(MODEL, PROCESS, sf.samplers.get("ddim"), sf.grids.leading(LINEAR, steps), start())
    assert torch.allclose(x, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("skip", "warmup"), [(True, "heun"), (False, "runge-kutta")])
@pytest.mark.parametrize("steps", [5, 10, 50])
def test_pndm(steps: int, skip: bool, warmup: str) -> None:
    scheduler = scheduler_of("PNDMScheduler", steps, skip_prk_steps=skip, set_alpha_to_one=True)
    reference = on_table_steps(scheduler)
    x = sf.sample(MODEL, PROCESS, sf.samplers.get("pndm", warmup=warmup), sf.grids.leading(LINEAR, steps), start())
    assert torch.allclose(x, reference, rtol=0, atol=1e-6)


def test_ddim_inversion() -> None:
    """The same step.  (Their pipelines evaluate the network at the time that the step goes *to*; we do not.)"""
    scheduler = scheduler_of("DDIMInverseScheduler", 20, clip_sample=False)
    x0 = MIXTURE.sample(6, 0)
    x, t = x0, 0.0
    for moment in scheduler.timesteps:
        noise = noise_at(x, t) if t else torch.zeros_like(x)
        x, t = scheduler.step(noise, moment, x).prev_sample, (int(moment) + 1) / 1000
    states = list(sf.samplers.inversion(MODEL, PROCESS, sf.samplers.get("ddim"), sf.grids.leading(LINEAR, 20), x0))
    assert torch.allclose(states[-1], x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "sampler", "tolerance"),
    [
        ("EulerDiscreteScheduler", "euler", 1e-6),
        ("HeunDiscreteScheduler", "heun", 1e-6),
        ("LMSDiscreteScheduler", "lms", 2e-4),
    ],
)
def test_variance_exploding_states(name: str, sampler: str, tolerance: float) -> None:
    """Schedulers whose state is ``x / alpha``; LMS integrates its coefficients to 1e-4 only."""
    scheduler = scheduler_of(name, 14)
    ratios = [*dict.fromkeys(scheduler.sigmas.tolist())]
    times = [time_of(ratio) for ratio in ratios]
    alpha, _ = sf.schedules.at(LINEAR, times[0])
    y, stage = start() / alpha, 0
    for moment in scheduler.timesteps:
        # Heun asks at the end of a step before it takes it
        t = time_of(float(scheduler.sigmas[stage]))
        alpha, _ = sf.schedules.at(LINEAR, t)
        scheduler.scale_model_input(y, moment)
        y, stage = scheduler.step(noise_at(alpha * y, t), moment, y).prev_sample, stage + 1
    assert torch.allclose(ours(sampler, times)[-1], y, rtol=0, atol=tolerance)


# ----------------------------------------------------------------------------------------------- where they are wrong


def test_sigma_min_as_the_last_level_makes_their_order_3_nan() -> None:
    """``final_sigmas_type="sigma_min"`` ends in a step of length 0, by whose length order 3 divides."""
    for name, settings in (
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
        ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun", "lower_order_final": False}),
    ):
        scheduler = scheduler_of(name, 16, final_sigmas_type="sigma_min", use_karras_sigmas=True, **settings)
        assert float(scheduler.sigmas[-1]) == float(scheduler.sigmas[-2])
        _, states = theirs(scheduler)
        assert bool(torch.isnan(states[-1]).any())
    with pytest.raises(sf.Refusal, match="strictly decreasing"):
        ours("dpmpp-3m", [1.0, 0.5, 0.001, 0.001])


def test_their_bh1_is_nan_at_sigma_0() -> None:
    """UniPC's ``B(h) = h`` is infinite in the last step, where they multiply it by 0."""
    times, reference = theirs(scheduler_of(UNIPC, 16, solver_order=2, solver_type="bh1", **ZERO))
    assert times[-1] == 0
    assert bool(torch.isnan(reference[-1]).all())
    assert bool(torch.isfinite(ours("unipc:p=2:variant=bh1", times)[-1]).all())


def test_their_third_order_is_the_second() -> None:
    """Their 3M is our ``form="published"`` (above): half of the second derivative is missing, so its order is 2."""
    process = sf.processes.Gaussian(sf.schedules.get("karras"))

    def grid(n: int) -> Tensor:
        levels = torch.linspace(10 ** (1 / 7), 0.1 ** (1 / 7), n + 1, dtype=torch.float64) ** 7
        return torch.as_tensor(sf.schedules.time_at(process.schedule, -2 * levels.log()))

    published, _ = measure_order(sf.samplers.build("dpmpp-3m:form=published"), process, MIXTURE, grid, (160, 320))
    exact, _ = measure_order(sf.samplers.build("dpmpp-3m"), process, MIXTURE, grid, (160, 320))
    assert published < 2.4
    assert exact > 2.9


def test_float32_tables_cost_six_digits() -> None:
    """Their tables are float32: PNDM with 500 steps returns .500006 for .500008."""
    model = sf.oracles.Gaussian([0.0], 0.25).denoiser(PROCESS)
    exact = sf.sample(
        model, PROCESS, sf.samplers.get("pndm"), sf.grids.leading(LINEAR, 500), torch.ones(1, 1, dtype=torch.float64)
    )
    scheduler = as_published("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.set_timesteps(500)
    x = torch.ones(1, 1, dtype=torch.float64)
    for moment in scheduler.timesteps:
        ab = float(scheduler.alphas_cumprod[moment])
        x = scheduler.step(np.sqrt(1 - ab) * x / (ab * 0.25 + 1 - ab), moment, x).prev_sample
    assert float(x) == pytest.approx(0.500006, abs=1e-6)
    assert 1e-6 < float(exact - x) < 4e-6
