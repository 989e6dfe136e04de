"""Stochastic samplers step by step against diffusers 0.42.1, from the same noise; where it differs, why.

Its schedules are float32, so states agree to about 1e-4 of their size.  ``DPMSolverSDEScheduler`` is k-diffusion's
singlestep solver on a Brownian tree, which needs torchsde; ``dpmpp-sde`` is the multistep one.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

import sfumato as sf
from sfumato.samplers import Churned, Euler, PredictorCorrector
from sfumato.samplers.ancestral import AncestralLarge

#: numpy asks torch for a keyword that it does not know, from inside the schedulers.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PEER: Any = diffusers  # its classes are untyped
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
LINEAR = sf.processes.Gaussian(sf.schedules.get("linear"))


def noise_of(x: torch.Tensor, t: float, process: Any) -> torch.Tensor:
    """The exact ``eps`` prediction at ``x``."""
    alpha, sigma = sf.schedules.at(process.schedule, t)
    x0 = MIXTURE.denoiser(process)(x, t).point()
    eps: torch.Tensor = (x - alpha * x0) / sigma
    return eps


@pytest.mark.parametrize("steps", [7, 10, 25])
def test_euler_ancestral(steps: int) -> None:
    theirs = PEER.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    x1 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    y = x1 / sf.schedules.at(LINEAR.schedule, 1.0)[0]  # its states are x / alpha
    for t in theirs.timesteps:
        x = theirs.scale_model_input(y, t)
        y = theirs.step(noise_of(x, (float(t) + 1) / 1000, LINEAR), t, y, generator=generator).prev_sample
    grid = sf.grids.trailing(LINEAR.schedule, steps)
    assert theirs.timesteps.tolist() == [round(1000 * float(t)) - 1 for t in grid[:-1]]
    ours = sf.sample(MIXTURE.denoiser(LINEAR), LINEAR, sf.samplers.get("euler-ancestral"), grid, x1, rng=3)
    assert torch.allclose(ours, y, atol=2e-3), float((ours - y).abs().max())


@pytest.mark.parametrize("steps", [7, 10, 25])
def test_dpmpp_2m_sde(steps: int) -> None:
    theirs = PEER.DPMSolverMultistepScheduler(
        **BETAS,
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    x1 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    x = x1
    for t in theirs.timesteps:
        x = theirs.step(noise_of(x, (float(t) + 1) / 1000, LINEAR), t, x, generator=generator).prev_sample
    grid = sf.grids.trailing(LINEAR.schedule, steps)
    ours = sf.sample(MIXTURE.denoiser(LINEAR), LINEAR, sf.samplers.get("dpmpp-sde"), grid, x1, rng=3)
    assert torch.allclose(ours, x, atol=2e-3), float((ours - x).abs().max())


# --------------------------------------------------------------------------------------------- predictor and corrector

WIDE = sf.oracles.GaussianMixture([0.25] * 4, sf.Stream(0).normal((4, 64)) * 1.5, 0.09)
LADDER = {"sigma_max": 30.0, "sigma_min": 0.01}


def score_sde_ve(x: torch.Tensor, steps: int, process: Any, corrections: int = 1) -> torch.Tensor:
    """Its pipeline's loop with the exact score: correct, predict; the last prediction without noise."""
    theirs = PEER.ScoreSdeVeScheduler(**LADDER, snr=0.16, correct_steps=corrections)
    theirs.set_timesteps(steps)
    theirs.set_sigmas(steps)
    generator = torch.Generator().manual_seed(3)
    for k, t in enumerate(theirs.timesteps):
        level = (steps - k) / steps
        for _ in range(corrections):
            x = theirs.step_correct(WIDE.score(process, x, level), x, generator=generator).prev_sample
        output = theirs.step_pred(WIDE.score(process, x, level), t, x, generator=generator)
        x = output.prev_sample
    mean: torch.Tensor = output.prev_sample_mean
    return mean


@pytest.mark.parametrize(("steps", "corrections"), [(12, 1), (40, 1), (40, 2)])
def test_score_sde_ve(steps: int, corrections: int) -> None:
    process = sf.processes.Gaussian(sf.schedules.get("levels", count=steps, **LADDER))
    x1 = 30.0 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    theirs = score_sde_ve(x1, steps, process, corrections)
    sampler = PredictorCorrector(AncestralLarge(), corrections, snr=0.16, rule="norm")
    grid = sf.grids.uniform(process.schedule, steps)
    ours = sf.sample(WIDE.denoiser(process), process, sampler, grid, x1, rng=3)
    assert torch.allclose(ours, theirs, atol=2e-3), float((ours - theirs).abs().max())


def test_score_sde_ve_couples_its_batch() -> None:
    """Its corrector takes the mean of the norms over the batch, so samples depend on each other; ours do not."""
    process = sf.processes.Gaussian(sf.schedules.get("levels", count=12, **LADDER))
    x = 30.0 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    far = x * torch.tensor([[1.0], [1000.0]])
    assert not torch.allclose(score_sde_ve(x, 12, process)[0], score_sde_ve(far, 12, process)[0], atol=1e-2)
    sampler, grid = sf.samplers.get("pc", rule="norm"), sf.grids.uniform(process.schedule, 12)
    a, b = (sf.sample(WIDE.denoiser(process), process, sampler, grid, v, rng=3)[0] for v in (x, far))
    assert torch.allclose(a, b, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- EDM churn


def test_edm_euler_raises_the_noise_after_the_evaluation() -> None:
    """``EDMEulerScheduler.step`` adds churn to the state that the caller has evaluated already.

    So its step takes the slope of another state at another level: not algorithm 2 of Karras et al. 2022.  Given the
    network's output at the raised state it agrees with ours; given what its callers can know, it does not.
    """
    karras = sf.processes.Gaussian(sf.schedules.get("karras"))
    steps, churn = 6, 1.8
    theirs = PEER.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    theirs.set_timesteps(steps)
    x1 = 80.0 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    gamma = churn / steps

    def output(x: torch.Tensor, level: float) -> torch.Tensor:
        """What an EDM network would state: ``F`` with ``D = c_skip x + c_out F``."""
        t = float(sf.schedules.time_at(karras.schedule, -2 * torch.log(torch.tensor(level, dtype=torch.float64))))
        skip, out = theirs.precondition_outputs(x, 0 * x, level), theirs.precondition_outputs(0 * x, 1 + 0 * x, level)
        stated: torch.Tensor = (MIXTURE.denoiser(karras)(x, t).point() - skip) / out
        return stated

    def walk(raised: bool) -> torch.Tensor:
        theirs.set_timesteps(steps)
        generator, x = torch.Generator().manual_seed(3), x1
        for k, t in enumerate(theirs.timesteps):
            level, seen = float(theirs.sigmas[k]), x
            if raised and level < 60.0:
                twin = torch.Generator()
                twin.set_state(generator.get_state())
                seen = x + torch.randn(x.shape, generator=twin) * level * ((1 + gamma) ** 2 - 1) ** 0.5
                level *= 1 + gamma
            x = theirs.step(output(seen, level), t, x, s_churn=churn, s_tmax=60.0, generator=generator).prev_sample
        return x

    sampler = Churned(Euler(), churn, s_max=60.0)
    ours = sf.sample(MIXTURE.denoiser(karras), karras, sampler, sf.grids.karras(karras.schedule, steps), x1, rng=3)
    assert torch.allclose(walk(raised=True), ours, atol=2e-3)
    assert not torch.allclose(walk(raised=False), ours, atol=0.05)
