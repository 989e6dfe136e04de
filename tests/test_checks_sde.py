"""The SDE recipes against their papers' SDEs: drift and diffusion of each, its transition, and what its loss matches.

Drift and diffusion are read off ``process.forward`` over a short time; nothing here repeats a formula of a schedule.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.training.objectives import prediction_loss

MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
BETA_MIN, BETA_MAX = 0.1, 20.0


def beta(t: float) -> float:
    return BETA_MIN + t * (BETA_MAX - BETA_MIN)


def integral(t: float) -> float:
    return BETA_MIN * t + t**2 / 2 * (BETA_MAX - BETA_MIN)


def ladder(t: float) -> float:
    return 0.01 * (20.0 / 0.01) ** t


#: The published drift (of x) and squared diffusion: eq. 11, 12 and 9 of Song et al. 2021.
SDES = {
    "vp-sde": (lambda t: -beta(t) / 2, beta),
    "subvp-sde": (lambda t: -beta(t) / 2, lambda t: beta(t) * (1 - math.exp(-2 * integral(t)))),
    "ve-sde": (lambda t: 0.0, lambda t: 2 * math.log(20.0 / 0.01) * ladder(t) ** 2),
}


def parts_of(recipe: str, net: Any = None) -> Any:
    chosen = sf.recipes.get(recipe)
    return chosen.compose(chosen.defaults, net)


@pytest.mark.parametrize("t", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("recipe", SDES)
def test_drift_and_diffusion(recipe: str, t: float) -> None:
    process = parts_of(recipe).denoiser.head.process
    drift, diffusion = SDES[recipe]
    dt = 1e-6
    step = process.forward(torch.ones(1, 1, dtype=torch.float64), t - dt / 2, t + dt / 2)
    assert float(step.mean) == pytest.approx(1 + drift(t) * dt, abs=1e-10)
    assert float(step.var) / dt == pytest.approx(diffusion(t), rel=1e-4)


@pytest.mark.parametrize(
    ("recipe", "mean", "variance"),
    [
        ("vp-sde", math.exp(-integral(1.0) / 2), 1 - math.exp(-integral(1.0))),
        ("subvp-sde", math.exp(-integral(1.0) / 2), (1 - math.exp(-integral(1.0))) ** 2),
        ("ve-sde", 1.0, ladder(1.0) ** 2 - ladder(0.0) ** 2),
    ],
)
def test_transition_to_the_prior(recipe: str, mean: float, variance: float) -> None:
    law = parts_of(recipe).denoiser.head.process.marginal(torch.ones(1, 1, dtype=torch.float64), 1.0)
    assert float(law.mean) == pytest.approx(mean, rel=1e-9)
    assert float(law.var) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("recipe", SDES)
def test_the_loss_is_denoising_score_matching(recipe: str) -> None:
    """eq. 7 with lambda = sigma^2: ``sigma^2 |s + eps / sigma|^2`` is the loss for the score ``s`` it states."""

    class Wrong:
        def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
            return 0.3 * x + t[:, None]

    parts = parts_of(recipe, Wrong())
    process = parts.denoiser.head.process
    x0, eps = MIXTURE.sample(64, 0), sf.Stream(1).normal((64, 2)).double()
    t = parts.times(torch.linspace(0.02, 0.98, 64, dtype=torch.float64))
    loss = prediction_loss(parts.denoiser, x0, t, None, eps=eps)
    alpha, sigma = sf.schedules.at(process.schedule, t, x0)
    x_t = alpha * x0 + sigma * eps
    score = (alpha * parts.denoiser(x_t, t).point() - x_t) / sigma**2
    matched = (sigma**2 * (score + eps / sigma) ** 2).mean(1)
    assert torch.allclose(loss, matched, rtol=1e-6)


@pytest.mark.parametrize("recipe", SDES)
def test_training_times(recipe: str) -> None:
    times = parts_of(recipe).times
    assert float(times(torch.tensor(0.0))) == pytest.approx(1e-5)
    assert float(times(torch.tensor(1.0))) == 1.0
    assert float(times(torch.tensor(0.5))) == pytest.approx(0.500005)


@pytest.mark.parametrize("recipe", SDES)
def test_the_default_sampler_returns_the_data(recipe: str) -> None:
    """With the exact score the recipe's own sampler and grid give the mixture back, at its default number of steps."""
    process = parts_of(recipe).denoiser.head.process
    own = sf.recipes.get(recipe).defaults.sampling
    grid = sf.grids.build(own.grid)(process.schedule, own.sampling_steps)
    n = 4000
    x1 = process.prior(torch.zeros(n, 2, dtype=torch.float64)).draw(sf.Stream(3))
    x = sf.sample(MIXTURE.denoiser(process), process, sf.samplers.build(own.sampler), grid, x1, rng=4)
    truth = [MIXTURE.sample(n, seed) for seed in range(10, 16)]
    floor = sum(sf.testing.sliced_w2(a, b) for a, b in zip(truth[0::2], truth[1::2], strict=True)) / 3
    reached = sum(sf.testing.sliced_w2(x, other) for other in truth) / 6
    assert reached < 1.6 * floor, (reached, floor)
