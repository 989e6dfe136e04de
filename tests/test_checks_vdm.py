"""Variational diffusion against exact values: the bound, its invariance, and what the schedule's gradient descends.

The denoiser is exact everywhere: data of two normals on a line, where everything has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato.processes.decoder import Levels
from sfumato.randomness import Stream
from sfumato.schedules import Learned
from sfumato.training.grey import GreyLevels, note
from sfumato.training.optim import Optimiser
from sfumato.training.settings import Optimisation, resolve
from sfumato.training.variational import VariationalNet, bound, diffusion_term, fourier_features, reconstruction_term

LEVELS = Levels(-1.0, 1.0)


class ExactNet(nn.Module):
    """The exact noise for data ``w N(m, v) + (1 - w) N(-m, v)``, coordinate by coordinate."""

    def __init__(self, schedule: Learned, mean: float = 0.0, var: float = 0.25, weight: float = 0.5) -> None:
        super().__init__()
        self.schedule, self.mean, self.var, self.weight = schedule, mean, var, weight

    def predict(self, z: Tensor, position: Tensor, cond: Any) -> Tensor:
        low, high = self.schedule.ends()
        gamma = (low + (high - low) * position)[:, None]
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        total = alpha**2 * self.var + sigma**2
        odds = math.log(self.weight / (1 - self.weight)) + 2 * alpha * self.mean * z / total
        mean = self.mean * torch.tanh(odds / 2)
        x0 = mean + alpha * self.var / total * (z - alpha * mean)
        eps: Tensor = (z - alpha * x0) / sigma
        return eps

    def data(self, n: int, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        side = torch.where(torch.rand(n, 1, generator=g, dtype=torch.float64) < self.weight, 1.0, -1.0)
        return self.mean * side + self.var**0.5 * torch.randn(n, 1, generator=g, dtype=torch.float64)


def bent(seed: int, **settings: Any) -> Learned:
    """A schedule of a random shape with the given ends."""
    learned = Learned(**settings)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (learned.slope, learned.height, learned.steepness, learned.centre):
            parameter.add_(1.5 * torch.randn(parameter.shape, generator=g))
    return learned


def even(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def normal(n: int, seed: int) -> Tensor:
    return torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("var", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_of_normal_data_is_its_entropy(var: float, seed: int) -> None:
    # one coordinate, and the expectation over (x0, eps) by sigma points: the loss is quadratic in both
    schedule = bent(seed, gamma_0=-9.0, gamma_1=6.0)
    net = ExactNet(schedule, var=var)
    u = even(4000)
    scale = math.sqrt(2)
    total = 0.0
    with torch.no_grad():
        for x, e in ((scale, 0.0), (-scale, 0.0), (0.0, scale), (0.0, -scale)):
            x0, eps = torch.full((4000, 1), x * var**0.5), torch.full((4000, 1), e)
            total += float(diffusion_term(net, x0.double(), u, eps.double()).mean()) / 4
        low, high = (float(v) for v in schedule.ends())
    # E KL(q(z_1|x) || N(0, sigma_1^2)), and the exact decoder's entropy, that of N(x0 | z_0)
    prior = var * math.exp(-high) / 2
    posterior = 1 / (1 / var + math.exp(-low))
    reconstruction = math.log(2 * math.pi * math.e * posterior) / 2
    entropy = math.log(2 * math.pi * math.e * var) / 2
    # the prior differs from the marginal at t = 1 by a known divergence
    excess = (var * math.exp(-high) - math.log1p(var * math.exp(-high))) / 2
    assert total + prior + reconstruction == pytest.approx(entropy + excess, abs=2e-5)


def test_the_bound_of_data_on_levels_is_their_entropy() -> None:
    # grey levels 100 and 155 with weights 0.2 and 0.8, nothing in between; expectations by quadrature
    value = 2 * 155 / 255 - 1
    net = ExactNet(Learned(gamma_0=-16.0, gamma_1=6.0), mean=value, var=0.0, weight=0.8)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(80))
    u, eps = (v.reshape(-1, 1) for v in torch.meshgrid(even(2000), nodes, indexing="ij"))
    law = (weights / weights.sum()).repeat(2000) / 2000
    total = 0.0
    with torch.no_grad():
        low, high = net.schedule.ends()
        for side, share in ((1.0, 0.8), (-1.0, 0.2)):
            x0 = torch.full_like(eps, side * value)
            reconstruction = reconstruction_term(x0, torch.exp(low / 2), eps, LEVELS)
            assert float(reconstruction @ law) < 1e-3  # the level is seen
            total += share * float((diffusion_term(net, x0, u[:, 0], eps) + reconstruction) @ law)
        # the prior N(0, sigma_1^2) stands for the marginal at t = 1, a mixture of two: almost the same here
        total += value**2 * float(torch.exp(-high)) / 2
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert total == pytest.approx(entropy, abs=0.002)


def test_an_estimate_of_the_bound_is_its_three_terms() -> None:
    net = ExactNet(Learned(gamma_0=-9.0, gamma_1=6.0), mean=0.0, var=0.3)
    x0 = (2 * torch.randint(0, 256, (4000, 1)) / 255 - 1).double()
    u, eps = even(4000), normal(4000, 1)
    with torch.no_grad():
        terms = bound(net, x0, u, LEVELS, Stream(0), eps=eps)
        assert torch.equal(terms.diffusion, diffusion_term(net, x0, u, eps))
        process = sf.processes.Gaussian(net.schedule)
        prior = process.marginal(x0, 1.0).kl(process.prior(x0))
    assert torch.allclose(terms.prior, prior, rtol=1e-6)
    ratio = math.exp(-9.0 / 2)
    # levels 2/255 apart under noise of 1.4 spacings: the average entropy of a discrete normal of that spread
    assert float(terms.reconstruction.mean()) == pytest.approx(
        math.log(ratio * 255 / 2 * math.sqrt(2 * math.pi * math.e)), abs=0.05
    )
    assert torch.equal(terms.total, terms.prior + terms.diffusion + terms.reconstruction)


def test_the_expected_bound_does_not_depend_on_the_shape_of_the_schedule() -> None:
    n = 100_000
    means, errors = [], []
    for seed in range(3):
        net = ExactNet(bent(seed, gamma_0=-8.0, gamma_1=4.0), mean=0.6, var=0.02)
        with torch.no_grad():
            loss = diffusion_term(net, net.data(n, 5 + seed), even(n)[torch.randperm(n)], normal(n, 50 + seed))
        means.append(float(loss.mean()))
        errors.append(float(loss.std()) / n**0.5)
    for k in (1, 2):
        assert abs(means[k] - means[0]) < 4 * math.hypot(errors[k], errors[0])
    assert max(errors) < 0.02 * means[0]
    # and it does depend on the ends
    with torch.no_grad():
        net = ExactNet(bent(0, gamma_0=-6.0, gamma_1=4.0), mean=0.6, var=0.02)
        other = float(diffusion_term(net, net.data(n, 5), even(n), normal(n, 50)).mean())
    assert abs(other - means[0]) > 10 * errors[0]


# ------------------------------------------------------------------------------------------- the schedule's gradient


def plain_loss(net: ExactNet, x0: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Equation 17 by reverse-mode differentiation alone."""
    u = u.clone().requires_grad_()
    schedule = net.schedule
    gamma = schedule.gamma(u)
    (rate,) = torch.autograd.grad(gamma.sum(), u, create_graph=True)
    z = torch.sigmoid(-gamma).sqrt()[:, None] * x0 + torch.sigmoid(gamma).sqrt()[:, None] * eps
    return rate * ((net.predict(z, schedule.shape(u), None) - eps) ** 2).sum(1) / 2


def test_the_shape_descends_the_squared_loss_and_the_ends_the_bound() -> None:
    net = ExactNet(bent(3, gamma_0=-5.0, gamma_1=3.0, hidden=4), mean=0.5, var=0.05)
    schedule = net.schedule
    shape = [schedule.slope, schedule.height, schedule.steepness, schedule.centre]
    ends = [schedule.low, schedule.log_span]
    x0, u, eps, unit = net.data(7, 1), torch.rand(7, dtype=torch.float64), normal(7, 2), 0.7
    found = torch.autograd.grad(diffusion_term(net, x0, u, eps, unit=unit).sum(), shape + ends)
    loss = plain_loss(net, x0, u, eps)
    assert torch.allclose(loss, diffusion_term(net, x0, u, eps), rtol=1e-10)
    squared = torch.autograd.grad((loss**2 / unit).sum(), shape, retain_graph=True)
    plain = torch.autograd.grad(loss.sum(), ends)
    for own, expected in zip(found, (*squared, *plain), strict=True):
        assert torch.allclose(own, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_training_the_shape_lowers_the_variance_and_keeps_the_mean() -> None:
    net = ExactNet(Learned(gamma_0=-6.0, gamma_1=8.0, hidden=16))
    schedule = net.schedule
    grid = torch.meshgrid(even(300), torch.special.ndtri(even(60)), torch.special.ndtri(even(16)), indexing="ij")
    u, eps, x0 = (v.reshape(-1) for v in grid)

    def moments() -> tuple[float, float, float]:
        """The mean, the second moment, and the least second moment of any shape (Cauchy and Schwarz)."""
        with torch.no_grad():
            loss = diffusion_term(net, net.var**0.5 * x0[:, None], u, eps[:, None]).reshape(300, -1)
        square = (loss**2).mean(1)
        return float(loss.mean()), float(square.mean()), float(square.sqrt().mean() ** 2)

    mean, before, least = moments()
    shape = [schedule.slope, schedule.height, schedule.steepness, schedule.centre]
    optimiser = torch.optim.Adam(shape, lr=0.05)
    for step in range(120):
        optimiser.zero_grad()
        loss = diffusion_term(net, net.data(512, step), even(512), normal(512, 900 + step)).mean()
        torch.autograd.backward([loss])
        optimiser.step()
    mean_after, after, least_after = moments()
    assert mean_after == pytest.approx(mean, rel=1e-3)  # the bound itself did not move
    assert least_after == pytest.approx(least, rel=1e-2)
    assert before > 2 * least
    assert after < 1.25 * least


# -------------------------------------------------------------------------------------------------- decoder, network


@pytest.mark.parametrize("ratio", [1.3e-3, 0.01, 0.3, 2.0])
def test_the_decoder_is_a_law_over_the_grey_levels(ratio: float) -> None:
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    for z in (-1.01, 0.123, 0.1, 1.4):
        nll = reconstruction_term(levels, torch.tensor(ratio, dtype=torch.float64), (z - levels) / ratio, LEVELS)
        assert float(torch.exp(-nll).sum()) == pytest.approx(1.0, abs=1e-9)
        # it is Bayes' rule: the odds of two levels are those of q(z | x)
        assert float(nll[3] - nll[7]) == pytest.approx(
            float((z - levels[3]) ** 2 - (z - levels[7]) ** 2) / 2 / ratio**2
        )


def test_the_network_is_told_the_noise_level_and_not_the_time() -> None:
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            seen.append(t)
            return x[:, :1]

    x, t = torch.zeros(3, 1, 4, 4), torch.tensor([0.0005, 0.3, 1.0])
    for seed in (0, 1):
        net = VariationalNet(Recorder(), bent(seed), GreyLevels())
        with torch.no_grad():
            net(x, t, None)
            level = sf.schedules.log_snr(net.schedule, t.double())
        low, high = (float(v.detach()) for v in net.schedule.ends())
        expected = ((-level - low) / (high - low)).clamp(min=0)
        assert torch.allclose(seen[-1].double(), expected, atol=1e-6)
    assert not torch.allclose(seen[0][1], seen[1][1], atol=1e-3)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.65, 1.38)])
def test_fourier_features_tell_neighbouring_grey_levels_apart(low: float, high: float) -> None:
    grey = GreyLevels().double()
    grey.set(low, high)
    x = (low + (high - low) * torch.arange(256, dtype=torch.float64) / 255).reshape(1, 1, 16, 16)
    paper = (torch.arange(256, dtype=torch.float64) * 2 / 256 - 1).reshape(1, 1, 16, 16)  # its encoding of levels
    assert torch.allclose(grey.unit(x), paper, atol=1e-5)
    features = fourier_features(x, grey.unit(x))
    assert features.shape == (1, 5, 16, 16)
    assert torch.equal(features[:, :1], x)
    # cos(2^7 pi x) is +1 on even levels and -1 on odd ones: the last bit of the pixel
    bit = torch.where(torch.arange(256) % 2 == 0, 1.0, -1.0).double().reshape(16, 16)
    assert torch.allclose(features[0, 2], bit, atol=1e-2)


def test_the_recipe_trains_stores_and_samples(tmp_path: Path) -> None:
    from sfumato.recipes.vdm import RECIPE
    from sfumato.training.diffusion import load

    data = sf.data.load("digits")
    small = {"channels": (8, 16), "attention": (False, False), "blocks": 1}
    settings = resolve(RECIPE.defaults, {**small, "conditional": False})
    model = RECIPE.build(settings, data.spec(), {"seed": 0, "horizon": {"steps": 30}})
    optimiser = torch.optim.Adam(model.net.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        optimiser.zero_grad()
        loss = model.losses({"x": data.train.x[32 * step : 32 * step + 32]}, Stream(step))["net"].mean()
        torch.autograd.backward([loss])
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert float(model.net.schedule.low.detach()) != pytest.approx(-13.3, abs=1e-4)
    model.save(tmp_path / "run")
    again = load(tmp_path / "run")
    for own, stored in zip(model.net.schedule.ends(), again.net.schedule.ends(), strict=True):
        assert own.item() == stored.item()
    trained = replace(model, net=model.net.eval().requires_grad_(False))
    assert torch.equal(again.sample(2, steps=3).x, trained.sample(2, steps=3).x)


@pytest.mark.parametrize("standardise", [True, False])
def test_the_decoder_knows_the_grey_levels_of_the_data(standardise: bool) -> None:
    from sfumato.recipes.vdm import RECIPE

    data = sf.data.load("digits")
    data = data.standardised() if standardise else data
    small = {"channels": (8, 16), "attention": (False, False), "blocks": 1}
    model = RECIPE.build(resolve(RECIPE.defaults, small), data.spec(), {"seed": 0})
    note(model, data)
    levels = model.net.grey.levels()
    assert (levels.low, levels.high) == pytest.approx(model.transform.limits, abs=1e-6)
    assert (levels.low == pytest.approx(-1)) != standardise
    x = model.transform.encode(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))
    assert torch.equal(levels.index(x).flatten(), torch.arange(256))


def test_weight_decay_leaves_the_schedule_alone() -> None:
    """A schedule's ends are no weights: decay towards 0 would move them whatever the bound says."""
    net = VariationalNet(nn.Linear(3, 3), Learned(-13.3, 5.0), GreyLevels())
    optimiser = Optimiser(net, Optimisation(lr=0.1, warmup=0, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.apply(1, 0.0)
    for name, parameter in net.named_parameters():
        kept = 0.95 if name.startswith("net.") else 1.0
        assert torch.allclose(parameter, kept * before[name], rtol=1e-6), name
