"""NCSN and NCSNv2 against their papers: the rules for noise levels and steps, the losses, what the networks state.

The samplers themselves are checked in ``test_checks_score.py``.
"""

from __future__ import annotations

import math
import statistics
from itertools import combinations
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.samplers import Langevin
from sfumato.testing import SigmaPoints
from sfumato.training import ladders
from sfumato.training.settings import flatten

KARRAS = sf.processes.Gaussian(sf.schedules.get("karras"))
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)


@pytest.mark.parametrize(
    ("sigma_max", "levels", "steps", "published"),
    [(50.0, 232, 5, 6.2e-6), (90.0, 500, 5, 3.3e-6), (190.0, 1086, 3, 1.8e-6), (348.0, 2311, 3, 9e-7)],
    ids=["CIFAR-10", "CelebA", "bedroom and tower", "FFHQ"],
)
def test_technique_4_gives_the_published_step_sizes(
    sigma_max: float, levels: int, steps: int, published: float
) -> None:
    eps = ladders.langevin_size(sigma_max, 0.01, levels, steps) * 0.01**2
    assert eps == pytest.approx(published, rel=0.02)
    assert eps == pytest.approx({6.2e-6: 6.18e-6, 3.3e-6: 3.34e-6, 1.8e-6: 1.77e-6, 9e-7: 8.93e-7}[published], rel=2e-3)


def test_technique_4_is_the_variance_that_langevin_leaves() -> None:
    """Proposition 3 by the sampler itself: on a point mass the chain's variance is ``spread`` times the level's."""
    gamma, steps, size = 1.5, 4, 0.1
    levels = torch.tensor([0.8, 0.1], dtype=torch.float64)
    grid = sf.schedules.time_at(KARRAS.schedule, -2 * levels.log())
    points = SigmaPoints()
    x = 0.8 * gamma * points.normal((16, 1)).double()
    point = sf.oracles.Gaussian([0.0], 1e-14).denoiser(KARRAS)
    chain = sf.sample(point, KARRAS, Langevin(steps, size, denoise=False), grid, x, rng=points)
    assert float((chain**2).mean()) / 0.8**2 == pytest.approx(ladders.spread(size, gamma, steps), rel=1e-9)


def test_technique_2_levels_overlap() -> None:
    # exactly half an overlap gives 219 levels for CIFAR-10; the published 232 overlap by .567
    assert ladders.level_count(50.0, 0.01, 3072) == 219
    assert ladders.level_ratio(3072, 0.567) == pytest.approx((50 / 0.01) ** (1 / 231), rel=1e-4)
    # by drawing it: the share of the radii of one level within three standard deviations of those of the next higher
    gamma, d = ladders.level_ratio(64), 64
    radius = sf.Stream(0).normal((40_000, d)).norm(dim=1)
    share = float(((radius - gamma * math.sqrt(d)).abs() < 3 * gamma / math.sqrt(2)).double().mean())
    assert share == pytest.approx(0.5, abs=0.03)
    for bad in ((0, 0.5), (3, 0.0), (3, 1.0)):
        with pytest.raises(sf.Refusal):
            ladders.level_ratio(*bad)


def test_technique_1_is_the_largest_distance() -> None:
    x = torch.randn(57, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    apart = max(float((a - b).double().norm()) for a in x for b in x)
    assert ladders.widest_distance(x, block=10) == pytest.approx(apart, rel=1e-8)


def test_a_blind_network_falls_behind_a_ladder_that_is_climbed_down_too_fast() -> None:
    """Its pull is ``1 / sigma_i`` whatever noise is there: two steps a level leave ever more of it, five 1.23 of it."""
    levels, top, bottom = 94, 25.0, 0.016
    process = sf.processes.Gaussian(sf.schedules.get("levels", sigma_max=top, sigma_min=bottom, count=levels))
    grid = sf.grids.uniform(process.schedule, levels)
    x1 = process.prior(torch.zeros(4, 4096, dtype=torch.float64)).draw(sf.Stream(0))
    head = GaussianHead(process, "eps", sigma_data=0.5)

    def blind(x: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        x = x / head.input_scale(t, x)
        return x / x.square().mean(1, keepdim=True).sqrt()  # all that is there is noise, of whatever size

    ratio = (top / bottom) ** (1 / (levels - 1))
    for steps, left in ((2, math.inf), (5, 1.231)):
        size = ladders.langevin_size(top, bottom, levels, steps)
        assert ladders.blind_lag(size, ratio, steps) == pytest.approx(left, abs=1e-3)
        sampler = Langevin(steps=steps, size=size, denoise=False)
        x = sf.sample(Preconditioned(blind, head), process, sampler, grid, x1, rng=1)
        there = float(x.square().mean().sqrt()) / bottom
        assert there == pytest.approx(left, abs=0.02) if math.isfinite(left) else there > 3
    assert ladders.blind_steps(top, bottom, levels) == 5
    assert ladders.blind_steps(top, bottom, 40) == 8
    assert ladders.blind_steps(top, bottom, 2) == 100


def test_defaults_follow_the_rules() -> None:
    v2 = flatten(sf.recipes.get("ncsnv2").defaults)
    assert v2["levels"] == ladders.level_count(v2["sigma_max"], v2["sigma_min"], 28 * 28)
    sampler = sf.samplers.build(v2["sampler"])
    assert isinstance(sampler, Langevin)
    assert sampler.size == pytest.approx(
        ladders.langevin_size(v2["sigma_max"], v2["sigma_min"], v2["levels"], sampler.steps), abs=5e-4
    )
    assert sampler.denoise
    v1 = flatten(sf.recipes.get("ncsn").defaults)
    own = sf.samplers.build(v1["sampler"])
    assert isinstance(own, Langevin)
    assert own.size == pytest.approx(2e-5 / 2 / 0.01**2)
    assert v1["levels"] == 10
    assert not own.denoise
    for defaults, chain, most in ((v1, own, 201), (v2, sampler, 471)):
        assert defaults["levels"] == defaults["sampling_steps"]
        assert defaults["levels"] * chain.steps + 1 <= most


class Seen(torch.nn.Module):
    """Any network; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.tensor([0.2, -0.4], dtype=torch.float64))
        self.shown: list[Any] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        self.shown.append((x, t))
        return x @ self.weight.T + self.bias


def parts_of(name: str) -> tuple[Any, Seen]:
    recipe, net = sf.recipes.get(name), Seen()
    return recipe.compose(recipe.defaults, recipe.wrap(recipe.defaults, net)), net


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_the_levels_are_a_geometric_ladder(name: str) -> None:
    parts, _ = parts_of(name)
    settings = sf.recipes.get(name).defaults
    ladder = settings.ladder
    u = (torch.arange(ladder.levels, dtype=torch.float64) + 0.5) / ladder.levels
    alpha, sigma = sf.schedules.at(parts.denoiser.head.process.schedule, parts.times(u))
    assert bool((alpha == 1).all())
    assert len(set(sigma.tolist())) == ladder.levels
    assert float(sigma[-1]) == pytest.approx(ladder.sigma_max, rel=1e-12)
    assert float(sigma[0]) == pytest.approx(ladder.sigma_min, rel=1e-12)
    ratios = sigma[1:] / sigma[:-1]
    assert torch.allclose(ratios, ratios[:1])
    # sampling walks exactly these levels
    sampling = settings.sampling
    grid = sf.grids.get(sampling.grid)(parts.denoiser.head.process.schedule, sampling.sampling_steps)
    _, walked = sf.schedules.at(parts.denoiser.head.process.schedule, grid[:-1])
    assert torch.allclose(walked, sigma.flip(0), rtol=1e-12)


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_the_loss_is_sigma_squared_times_score_matching(name: str) -> None:
    """NCSN eq. 6: ``sigma^2 |s + (x - x0) / sigma^2|^2`` for the score ``s`` that the denoiser states."""
    parts, _ = parts_of(name)
    process = parts.denoiser.head.process
    x0, eps = MIXTURE.sample(40, 0), sf.Stream(1).normal((40, 2)).double()
    t = parts.times(torch.linspace(0.01, 0.99, 40, dtype=torch.float64))
    loss = parts.objective(parts.denoiser, x0, t, None, eps=eps)
    _, sigma = sf.schedules.at(process.schedule, t, x0)
    x = x0 + sigma * eps
    score = (parts.denoiser(x, t).point() - x) / sigma**2
    assert torch.allclose(loss, (sigma**2 * (score + (x - x0) / sigma**2) ** 2).mean(1), rtol=1e-5)


def test_ncsn_states_the_score_and_knows_its_level() -> None:
    parts, net = parts_of("ncsn")
    process = parts.denoiser.head.process
    x = MIXTURE.sample(5, 0)
    for t in (0.1, 0.5, 1.0):
        score = (parts.denoiser(x, t).point() - x) / sf.schedules.at(process.schedule, t)[1] ** 2
        shown, time = net.shown[-1]
        assert torch.allclose(score, net(shown, time), rtol=1e-6, atol=1e-9)
        assert bool((time == torch.tensor(t)).all())


def test_ncsnv2_divides_one_field_by_the_level() -> None:
    """Technique 3: ``sigma s(x, sigma)`` is one function of ``x``, whatever the level."""
    parts, net = parts_of("ncsnv2")
    process = parts.denoiser.head.process
    x = MIXTURE.sample(5, 0)
    for t in (0.05, 0.5, 1.0):
        sigma = sf.schedules.at(process.schedule, t)[1]
        score = (parts.denoiser(x, t).point() - x) / sigma**2
        shown, time = net.shown[-1]
        assert torch.allclose(shown, x, rtol=1e-6)
        assert bool((time == 0).all())
        assert torch.allclose(sigma * score, net(x, time), rtol=1e-4, atol=1e-6)


def test_denoising_score_matching_has_the_gradient_of_explicit_score_matching() -> None:
    """The gradients of ``|s - score of q(x_t | x0)|^2`` and of ``|s - score of p_t|^2`` agree on the mixture (Vincent
    2011), at 4 sigma over 100 batches of 1000."""
    parts, net = parts_of("ncsn")
    process = parts.denoiser.head.process
    gaps = []
    for k in range(100):
        rng = sf.Stream(k)
        x0 = MIXTURE.sample(1000, rng)
        eps = rng.normal((1000, 2)).double()
        t = torch.full((1000,), 0.9, dtype=torch.float64)
        denoising = parts.objective(parts.denoiser, x0, t, None, eps=eps).mean()
        _, sigma = sf.schedules.at(process.schedule, 0.9)
        x = x0 + sigma * eps
        stated = parts.denoiser.raw(x, 0.9)
        explicit = (sigma**2 * (stated - MIXTURE.score(process, x, 0.9)) ** 2).mean(1).mean()
        gradients = [torch.autograd.grad(loss, list(net.parameters())) for loss in (denoising, explicit)]
        net.shown.clear()
        gaps.append(torch.cat([(a - b).flatten() for a, b in zip(*gradients, strict=True)]))
    gap = torch.stack(gaps)
    z = gap.mean(0) / (gap.std(0) / math.sqrt(len(gap)))
    assert float(z.abs().max()) < 4, z
    assert bool((torch.stack(gaps).std(0) > 1e-4).all())


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_the_recipes_own_sampler_returns_the_data(name: str) -> None:
    """With the exact score, two-dimensional data within a model unit, at the recipe's own ladder and steps."""
    data = sf.oracles.GaussianMixture([0.5, 0.5], [[0.5, 0.0], [-0.3, 0.4]], 0.04)
    parts, _ = parts_of(name)
    process, own = parts.denoiser.head.process, sf.recipes.get(name).defaults.sampling
    grid = sf.grids.get(own.grid)(process.schedule, own.sampling_steps)
    x1 = process.prior(torch.zeros(1000, 2, dtype=torch.float64)).draw(sf.Stream(3))
    x = sf.sample(data.denoiser(process), process, sf.samplers.build(own.sampler), grid, x1, rng=4)
    truth = [data.sample(1000, seed) for seed in range(10, 18)]
    floor = statistics.mean(sf.testing.sliced_w2(a, b) for a, b in combinations(truth, 2))
    reached = statistics.mean(sf.testing.sliced_w2(x, other) for other in truth)
    # 200 evaluations in place of the published 1000 to 1160 leave a bias of their own
    assert reached < 2.5 * floor, (reached, floor)
