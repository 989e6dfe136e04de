"""Schedulers of diffusers 0.42.1 step by step on levels of ours, and where they differ from the mathematics.

The adapters of :mod:`sfumato.testing` hand them a perfect model at the exact level they stand at and read their states
back in our scale, so that what is left to differ is the method.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.testing import GivenTimes

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

PEER: Any = diffusers  # its classes are untyped
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
LINEAR = sf.processes.Gaussian(sf.schedules.get("linear"))
EDM = sf.processes.Gaussian(sf.schedules.get("karras"))
FLOW = sf.processes.Gaussian(sf.schedules.get("flow"))
TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def start(process: Any) -> Tensor:
    return torch.as_tensor(process.prior(torch.zeros(6, 2, dtype=torch.float64)).draw(sf.Stream(0)))


def walk(sampler: Any, process: Any, grid: Any) -> list[Tensor]:
    return list(sf.trajectory(MIXTURE.denoiser(process), process, sampler, grid, start(process)))


def gaps(peer: Any, sampler: str, process: Any, grid: Any, evaluations: int = 1) -> list[float]:
    """The largest difference after every step, over the size of the states there."""
    theirs, ours = (
        walk(GivenTimes(peer, 1, evaluations), process, grid),
        walk(sf.samplers.build(sampler), process, grid),
    )
    assert len(theirs) == len(ours) == len(grid)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(theirs, ours, strict=True)]


@pytest.mark.parametrize(
    ("settings", "sampler"),
    [
        ({"solver_order": 1}, "euler"),
        ({"solver_order": 2}, "dpmpp-2m"),
        ({"solver_order": 2, "solver_type": "heun"}, "dpmpp-2m:form=mean"),
        ({"solver_order": 3}, "dpmpp-3m:form=published"),
    ],
)
def test_edm_dpm_solver_multistep(settings: dict[str, Any], sampler: str) -> None:
    peer = PEER.EDMDPMSolverMultistepScheduler(**settings, lower_order_final=False)
    assert max(gaps(peer, sampler, EDM, sf.grids.karras(EDM.schedule, 16))) < 5e-6  # its states are float32


def test_its_third_order_is_not_the_exact_one() -> None:
    """The last term of their order 3 lacks a factor 2, and the first step is left as it is: see the audit."""
    peer = PEER.EDMDPMSolverMultistepScheduler(solver_order=3, lower_order_final=False)
    assert max(gaps(peer, "dpmpp-3m", EDM, sf.grids.karras(EDM.schedule, 16))) > 1e-2


def test_kdpm2() -> None:
    """DPM-Solver-2: its middle is even in log sigma, and its last step, to 0, is Euler's."""
    peer, grid = PEER.KDPM2DiscreteScheduler(**TABLE), sf.grids.trailing(LINEAR.schedule, 12)
    assert max(gaps(peer, "dpm-solver:p=2", LINEAR, grid, evaluations=2)) < 1e-6


def test_kdpm2_ancestral() -> None:
    """Down by DPM-Solver-2 to the ancestral level, up by noise."""
    scheduler = PEER.KDPM2AncestralDiscreteScheduler(**TABLE)
    scheduler.set_timesteps(7)
    for name in ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down"):
        setattr(scheduler, name, getattr(scheduler, name).double())
    generator, model = torch.Generator().manual_seed(3), MIXTURE.denoiser(LINEAR)
    levels = [*dict.fromkeys(scheduler.sigmas.tolist())]
    x = start(LINEAR)
    y = x / sf.schedules.at(LINEAR.schedule, time_of(levels[0]))[0]
    for k, moment in enumerate(scheduler.timesteps):
        level = float(scheduler.sigmas[k] if scheduler.state_in_first_order else scheduler.sigmas_interpol[k - 1])
        alpha, sigma = sf.schedules.at(LINEAR.schedule, time_of(level))
        x0 = model(alpha * y, time_of(level)).point()
        y = scheduler.step((alpha * y - alpha * x0) / sigma, moment, y, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(3)
    for high, low in pairwise(levels):
        up = low * math.sqrt(1 - (low / high) ** 2)
        ends = [time_of(high), time_of(math.sqrt(low**2 - up**2))]
        x = sf.sample(model, LINEAR, sf.samplers.build("dpm-solver:p=2"), ends, x)
        z = x / sf.schedules.at(LINEAR.schedule, ends[1])[0]
        if low > 0:
            z = z + up * torch.randn(6, 2, dtype=torch.float64, generator=generator)
        x = sf.schedules.at(LINEAR.schedule, time_of(low))[0] * z
    assert torch.allclose(y, x, rtol=0, atol=1e-5), float((x - y).abs().max())


def time_of(ratio: float) -> float:
    """The time at which sigma / alpha is this."""
    return 0.0 if ratio == 0 else float(sf.schedules.time_at(LINEAR.schedule, -2 * math.log(ratio)))


# -------------------------------------------------------------------------------------------------------------- flows

TIMES = [1.0, 0.9, 0.72, 0.5, 0.3, 0.1, 0.0]


def test_flow_match_euler_is_ddim() -> None:
    assert max(gaps(PEER.FlowMatchEulerDiscreteScheduler(), "ddim", FLOW, TIMES)) < 2e-6


def test_flow_match_heun_is_heun_in_the_time_of_the_flow() -> None:
    """Ours is Heun's method in sigma / alpha (Karras et al. 2022): another solver of the same order."""
    model, x = MIXTURE.denoiser(FLOW), start(FLOW)

    def velocity(x: Tensor, t: float) -> Tensor:
        return torch.as_tensor((x - model(x, t).point()) / t)

    states = walk(GivenTimes(PEER.FlowMatchHeunDiscreteScheduler(), 1, 2), FLOW, TIMES)
    for (t, s), state in zip(pairwise(TIMES), states[1:], strict=True):
        first = velocity(x, t)
        x = x + (s - t) * (first if s == 0 else (first + velocity(x + (s - t) * first, s)) / 2)
        assert torch.allclose(state, x, rtol=0, atol=5e-6), t
    assert float((walk(sf.samplers.get("heun"), FLOW, TIMES)[-1] - x).abs().max()) > 1e-2


@pytest.mark.parametrize("churn", [0.0, 2.0])
def test_flow_match_heun_churns_off_the_path(churn: float) -> None:
    """Raising the noise of ``(1 - t) x0 + t eps`` must shrink ``x0`` too; their ``s_churn`` adds noise alone.

    Fed the exact velocity, its first step should leave ``1 - s`` of the data.  Two data and one noise show how much it
    leaves: right without churn, with it too much by ``(t' - t) s / t'``, where ``t'`` is the raised time.
    """
    ends = []
    for x0 in (0.0, 1.0):
        scheduler = PEER.FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(5)
        t, s = (float(v) for v in scheduler.sigmas[:2])
        t = 0.8  # below 1, where there is data to shrink
        scheduler.sigmas[0] = t
        x = torch.full((1, 1), (1 - t) * x0, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        moved = scheduler.step(0 * x - x0, scheduler.timesteps[0], x, s_churn=churn, generator=generator)
        ends.append(float(moved.prev_sample))
    raised = t * (1 + min(churn / (len(scheduler.sigmas) - 1), 2**0.5 - 1))
    assert ends[1] - ends[0] == pytest.approx(1 - t * s / raised, abs=1e-6)
    assert (abs(ends[1] - ends[0] - (1 - s)) < 1e-6) == (churn == 0)


# -------------------------------------------------------------------------------------------------------------- iPNDM


def ipndm(levels: Tensor) -> Any:
    """Their scheduler on these levels ``sigma / alpha``; its ``betas`` are noise levels, not variances."""
    scheduler = PEER.IPNDMScheduler()
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.alphas, scheduler.betas = 1 / (1 + levels**2).sqrt(), levels / (1 + levels**2).sqrt()
    return scheduler


def test_ipndm_on_even_levels() -> None:
    """Its fixed weights are those of even steps in sigma / alpha: there it is ``lms``, its warm-up included."""
    levels = torch.linspace(6.0, 0.0, 13, dtype=torch.float64)
    times, scheduler, model = [time_of(float(u)) for u in levels], ipndm(levels), MIXTURE.denoiser(LINEAR)
    x = start(LINEAR)
    states = list(sf.trajectory(model, LINEAR, sf.samplers.get("lms"), times, x))
    for k, moment in enumerate(scheduler.timesteps):
        alpha, sigma = sf.schedules.at(LINEAR.schedule, times[k])
        x0 = model(x, times[k]).point()
        x = scheduler.step(alpha * (x - alpha * x0) / sigma - sigma * x0, moment, x).prev_sample
        assert torch.allclose(states[k + 1], x, rtol=0, atol=1e-6), k


def test_ipndm_forgets_the_data_in_its_first_step() -> None:
    """On its own levels it begins at alpha = 0, and divides the data's share there, 0, by 1e-8 in place of taking it.

    The step to ``(alpha, sigma)`` should be ``alpha E[x0] + sigma x``; theirs is ``sigma x``, whatever the data are.
    """
    scheduler = PEER.IPNDMScheduler()
    scheduler.set_timesteps(10)
    alpha, sigma = float(scheduler.alphas[1]), float(scheduler.betas[1])
    x, mean = torch.ones(1, 1), torch.full((1, 1), 3.0)
    moved = scheduler.step(-mean, scheduler.timesteps[0], x).prev_sample  # v = -x0 where all is noise
    assert float(moved) == pytest.approx(sigma, abs=1e-6)
    process = sf.processes.Gaussian(sf.schedules.get("cosine-continuous"))
    right, _ = sf.samplers.DDIM()(sf.laws.Dirac(mean), process, x, 1.0, 0.5, None, None)
    a, s = sf.schedules.at(process.schedule, 0.5)
    assert float(right) == pytest.approx(3 * a + s, abs=1e-6)
    assert 3 * alpha > 0.5


# --------------------------------------------------------------------------------------------------------------- DDPM


def ddpm(variance: str, spacing: str, sampler: str) -> tuple[list[Tensor], list[Tensor]]:
    """States after every one of ten steps, theirs and ours, from the same noise."""
    scheduler = PEER.DDPMScheduler(**TABLE, variance_type=variance, clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    model, x = MIXTURE.denoiser(LINEAR), torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    grid = sf.grids.get(spacing)(LINEAR.schedule, 10)
    assert scheduler.timesteps.tolist() == [round(1000 * float(t)) - 1 for t in grid[:-1]]
    ours = list(sf.trajectory(model, LINEAR, sf.samplers.get(sampler), grid, x, rng=3))[1:]
    generator, theirs = torch.Generator().manual_seed(3), []
    for t, moment in zip(grid.tolist(), scheduler.timesteps, strict=False):
        alpha, sigma = sf.schedules.at(LINEAR.schedule, t)
        x0 = model(x, t).point()
        x = scheduler.step((x - alpha * x0) / sigma, moment, x, generator=generator).prev_sample
        theirs.append(x)
    return theirs, ours


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("variance", "sampler"), [("fixed_small", "ddpm"), ("fixed_large", "ddpm-large")])
def test_ddpm(variance: str, sampler: str, spacing: str) -> None:
    theirs, ours = ddpm(variance, spacing, sampler)
    differing = (variance, spacing) == ("fixed_large", "trailing")  # in the last step: see below
    for k in range(9 if differing else 10):
        assert torch.allclose(theirs[k], ours[k], rtol=0, atol=2e-3), (k, float((theirs[k] - ours[k]).abs().max()))


def test_ddpm_of_large_variance_leaves_noise_on_the_data() -> None:
    """Theirs draws no noise at timestep 0 alone.  Spacings that end elsewhere add ``beta`` of the whole last step to
    the data; Ho et al. 2020, algorithm 2, adds none in the step that ends there.
    """
    theirs, ours = ddpm("fixed_large", "trailing", "ddpm-large")
    beta = 1 - sf.schedules.at(LINEAR.schedule, 0.1)[0] ** 2
    noise = (theirs[-1] - ours[-1]) / beta**0.5
    assert 0.7 < float(noise.std()) < 1.3
    assert beta > 0.05
