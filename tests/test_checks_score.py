"""Stochastic samplers against exact values: churn, the reverse SDE, restarts, Langevin, correctors.

Variances are exact: linear samplers are fed sigma points, so the mean square of a batch is the true second moment.
"""

from __future__ import annotations

import math
import statistics
from itertools import combinations
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.samplers import Churned, Heun, Langevin, PredictorCorrector, Restart
from sfumato.samplers.ancestral import AncestralLarge
from sfumato.testing import SigmaPoints, slope

KARRAS = sf.processes.Gaussian(sf.schedules.get("karras"))
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)


def process_of(name: str, **settings: Any) -> Any:
    return sf.processes.Gaussian(sf.schedules.get(name, **settings))


def time_of(process: Any, level: float) -> float:
    """The time at which sigma / alpha is ``level``."""
    return float(sf.schedules.time_at(process.schedule, -2 * math.log(level)))


def variance(sampler: Any, process: Any, grid: Any, data: float, batch: int, start: float | None = None) -> float:
    """The exact output variance on data ``N(0, data)``, from the prior (or a start of variance ``start``)."""
    rng = SigmaPoints()
    x = rng.normal((batch, 1)).double()
    x = process.prior(x).var ** 0.5 * x if start is None else start**0.5 * x
    model = sf.oracles.Gaussian([0.0], data).denoiser(process)
    return float((sf.sample(model, process, sampler, grid, x, rng=rng) ** 2).mean())


# ---------------------------------------------------------------------------------------------------- Heun with churn


@pytest.mark.parametrize(
    ("std", "steps", "s_noise", "expected", "tolerance"),
    [
        (0.5, 18, 1.003, 0.56404989, 1e-8),
        (0.5, 18, 1.0, 0.562365, 1e-6),
        (0.5, 256, 1.003, 0.502488, 1e-6),
        (1.0, 18, 1.003, 1.10957964, 1e-8),
    ],
)
def test_heun_with_churn(std: float, steps: int, s_noise: float, expected: float, tolerance: float) -> None:
    sampler = sf.samplers.get("heun", churn=40.0, s_min=0.05, s_max=50.0, s_noise=s_noise)
    grid = sf.grids.karras(KARRAS.schedule, steps)
    reached = variance(sampler, KARRAS, grid, std**2, 64 if steps == 18 else 512) ** 0.5
    assert reached == pytest.approx(expected, abs=tolerance)


def test_churn_raises_the_level_and_no_level_above_the_prior() -> None:
    process = process_of("vp")
    grid = sf.grids.uniform(process.schedule, 10)
    raised = sf.samplers.get("heun", churn=2.0).start(None, process, grid.tolist())
    assert 1.0 not in raised
    for t, higher in raised.items():
        levels = [math.exp(-sf.schedules.log_snr(process.schedule, v) / 2) for v in (t, higher)]
        assert t < higher <= 1.0
        assert levels[1] / levels[0] == pytest.approx(1.2, rel=1e-9) or higher == 1.0
    limited = sf.samplers.get("heun", churn=2.0, s_min=0.5, s_max=2.0).start(None, process, grid.tolist())
    assert set(limited) < set(raised)


def test_without_churn_heun_is_the_solver_of_the_ode() -> None:
    assert sf.samplers.get("heun") == Heun()
    assert sf.samplers.get("heun", churn=1.0) == Churned(Heun(), 1.0)
    for bad in ({"churn": -1.0}, {"churn": 1.0, "s_min": 2.0, "s_max": 1.0}, {"churn": 1.0, "s_noise": -1.0}):
        with pytest.raises(sf.Refusal):
            sf.samplers.get("heun", **bad)
    with pytest.raises(sf.Refusal, match="keeps a history"):
        Churned(sf.samplers.Restart(), 1.0).start(None, KARRAS, [1.0, 0.0])


# ---------------------------------------------------------------------------------------------------- the reverse SDE


@pytest.mark.parametrize(
    ("sampler", "order"), [("euler-ancestral", 1.0), ("euler-maruyama", 1.0), ("dpmpp-sde", 2.0), ("ddpm-large", 1.0)]
)
@pytest.mark.parametrize("schedule", ["vp", "sub-vp", "geometric"])
def test_weak_order(sampler: str, order: float, schedule: str) -> None:
    """The error of the output variance falls at the order of the method, between sigma/alpha of 20 and .05."""
    process = process_of(schedule)
    ends = [time_of(process, level) for level in (20.0, 0.05)]
    alpha, sigma = sf.schedules.at(process.schedule, ends[0])
    errors = []
    for n in (100, 200):
        levels = torch.linspace(math.log(20.0), math.log(0.05), n + 1, dtype=torch.float64)
        grid = sf.schedules.time_at(process.schedule, -2 * levels)
        grid[0], grid[-1] = ends
        reached = variance(sf.samplers.get(sampler), process, grid, 0.25, 256, alpha**2 * 0.25 + sigma**2)
        alpha_s, sigma_s = sf.schedules.at(process.schedule, ends[1])
        errors.append(abs(reached - (alpha_s**2 * 0.25 + sigma_s**2)))
    assert slope((100, 200), errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("schedule", ["vp", "sub-vp", "geometric", "flow"])
def test_euler_maruyama_is_the_textbook_step(schedule: str) -> None:
    """``x - (f x - g^2 score) h + g sqrt(h) z`` (Song et al. 2021, eq. 6), f and g read off ``process.forward``."""
    process = process_of(schedule)
    x = torch.tensor([[0.7, -1.1]], dtype=torch.float64)
    model = MIXTURE.denoiser(process)
    for t in (0.1, 0.5, 0.9):
        h = 1e-5
        transition = process.forward(torch.ones(1, 1, dtype=torch.float64), t - h, t)
        drift, diffusion = (float(transition.mean) - 1) / h, float(transition.var) / h
        noise = sf.Stream(3).normal((1, 2)).double()
        score = MIXTURE.score(process, x, t)
        textbook = x - (drift * x - diffusion * score) * h + (diffusion * h) ** 0.5 * noise
        grid = torch.tensor([t, t - h], dtype=torch.float64)
        step = sf.sample(model, process, sf.samplers.get("euler-maruyama"), grid, x, rng=3)
        size = float((textbook - x).abs().max())
        assert float((step - textbook).abs().max()) < 2e-3 * size


def test_euler_ancestral_moves_down_and_up() -> None:
    """``u_up = min(u_s, eta u_s sqrt(1 - u_s^2 / u_t^2))`` and ``u_down = sqrt(u_s^2 - u_up^2)`` around ``x0``."""
    t, s = (time_of(KARRAS, level) for level in (5.0, 3.0))
    point = torch.tensor([[1.0]], dtype=torch.float64)

    class Fixed:
        def __call__(self, x: Any, t: Any, cond: Any = None) -> Any:
            return sf.laws.Dirac(point.expand_as(x))

    def ends(eta: float) -> tuple[float, float]:
        rng = SigmaPoints()
        x = torch.full((4, 1), 6.0, dtype=torch.float64)
        grid = torch.tensor([t, s], dtype=torch.float64)
        moved = sf.sample(Fixed(), KARRAS, sf.samplers.get("euler-ancestral", eta=eta), grid, x, rng=rng)
        return float(moved.mean()), float(moved.var(correction=0)) ** 0.5

    # u_s = 3, u_t = 5: u_up = 3 * 4/5 = 2.4 and u_down = 1.8; half the noise: 1.2 and sqrt(9 - 1.44)
    assert ends(1.0) == pytest.approx((1 + 5 * 1.8 / 5, 2.4), rel=1e-9)
    assert ends(0.5) == pytest.approx((1 + 7.56**0.5, 1.2), rel=1e-9)
    assert ends(0.0) == pytest.approx((1 + 3.0, 0.0), abs=1e-9)
    # beyond eta = 1.25 all of the new level is fresh noise
    assert ends(1.3) == pytest.approx((1.0, 3.0), rel=1e-6)


def test_noise_scale() -> None:
    grid = torch.tensor([time_of(KARRAS, 5.0), time_of(KARRAS, 3.0)], dtype=torch.float64)
    x = torch.zeros(4, 1, dtype=torch.float64)
    model = sf.oracles.Gaussian([0.0], 0.25).denoiser(KARRAS)
    for name in ("euler-ancestral", "dpmpp-sde"):
        half, whole = (
            sf.sample(model, KARRAS, sf.samplers.get(name, s_noise=k), grid, x, rng=SigmaPoints()) for k in (0.5, 1.0)
        )
        assert torch.allclose(half, whole / 2)
        assert float(whole.std()) > 1


def test_dpmpp_sde_without_noise_is_dpmpp_2m() -> None:
    for schedule in ("flow", "linear", "karras"):
        process = process_of(schedule)
        x1 = process.prior(torch.zeros(8, 2, dtype=torch.float64)).draw(sf.Stream(0))
        grid = sf.grids.uniform(process.schedule, 12)
        a, b = (
            sf.sample(MIXTURE.denoiser(process), process, s, grid, x1)
            for s in (sf.samplers.get("dpmpp-sde", eta=0.0), sf.samplers.get("dpmpp-2m"))
        )
        assert torch.allclose(a, b, atol=1e-10)


def test_dpmpp_sde_solves_the_linear_sde_exactly() -> None:
    """``(sigma_s/sigma_t) e^(-eta h) x + alpha_s (1 - e^(-(1 + eta) h)) x0 + sigma_s sqrt(1 - e^(-2 eta h)) z``."""
    process = process_of("vp")
    t, s, eta = 0.6, 0.3, 0.7
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (sf.schedules.at(process.schedule, v) for v in (t, s))
    h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
    x0 = torch.tensor([[0.4]], dtype=torch.float64)

    class Fixed:
        def __call__(self, x: Any, t: Any, cond: Any = None) -> Any:
            return sf.laws.Dirac(x0.expand_as(x))

    x = torch.full((4, 1), 1.3, dtype=torch.float64)
    grid = torch.tensor([t, s], dtype=torch.float64)
    moved = sf.sample(Fixed(), process, sf.samplers.get("dpmpp-sde", eta=eta), grid, x, rng=SigmaPoints())
    mean = sigma_s / sigma_t * math.exp(-eta * h) * 1.3 - alpha_s * math.expm1(-(1 + eta) * h) * 0.4
    assert float(moved.mean()) == pytest.approx(mean, rel=1e-12)
    expected = sigma_s * math.sqrt(-math.expm1(-2 * eta * h))
    assert float(moved.std(correction=0)) == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize("restarts", [1, 3])
def test_restarts_contract_the_error(restarts: int) -> None:
    """A wrong variance at ``low`` comes back with ``(s2 + low^2) / (s2 + high^2)`` of its error after every restart."""
    data, low, high, wrong = 0.25, 0.3, 2.0, 0.1
    grid = torch.tensor([time_of(KARRAS, 2.5), time_of(KARRAS, low)], dtype=torch.float64)
    exact = (data + low**2) / (data + 2.5**2)  # the flow's factor of the variance from 2.5 to low
    start = (data + low**2 + wrong) / exact
    sampler = Restart(sf.samplers.get("dpmpp-3m"), restarts, steps=150, low=low, high=high)
    whole = torch.linspace(float(grid[0]), float(grid[1]), 200, dtype=torch.float64)
    reached = variance(sampler, KARRAS, whole, data, 16, start)
    contraction = ((data + low**2) / (data + high**2)) ** restarts
    assert reached - (data + low**2) == pytest.approx(wrong * contraction, rel=0.02, abs=2e-6)


class Counting:
    """A model that counts its evaluations."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        return self.model(x_t, t, cond)


def evaluations(sampler: Any, process: Any, grid: Any) -> int:
    model = Counting(MIXTURE.denoiser(process))
    x1 = process.prior(torch.zeros(2, 2, dtype=torch.float64)).draw(sf.Stream(0))
    sf.sample(model, process, sampler, grid, x1, rng=1)
    return model.calls


def test_what_samplers_cost() -> None:
    grid = sf.grids.karras(KARRAS.schedule, 10)
    assert evaluations(sf.samplers.get("euler-ancestral"), KARRAS, grid) == 10
    assert evaluations(sf.samplers.get("euler-maruyama"), KARRAS, grid) == 10
    assert evaluations(sf.samplers.get("dpmpp-sde"), KARRAS, grid) == 10
    assert evaluations(sf.samplers.get("heun", churn=5.0), KARRAS, grid) == 19
    assert evaluations(sf.samplers.get("pc", corrections=2), KARRAS, grid) == 30
    assert evaluations(sf.samplers.get("langevin", steps=3), KARRAS, grid) == 31
    assert evaluations(sf.samplers.get("langevin", steps=3, denoise=False), KARRAS, grid) == 30
    # Euler: 10 steps, one more to reach low exactly, 2 restarts of 3 steps
    assert evaluations(sf.samplers.get("restart", solver="euler"), KARRAS, grid) == 17
    at_low = torch.cat([grid[:-1], torch.tensor([time_of(KARRAS, 0.06)]), grid[-1:]]).sort(descending=True).values
    assert evaluations(sf.samplers.get("restart", solver="euler"), KARRAS, at_low) == 17


def test_restarts_outside_the_grid_are_refused() -> None:
    for grid in ([time_of(KARRAS, 0.2), 0.0], [1.0, time_of(KARRAS, 0.1)]):
        with pytest.raises(sf.Refusal, match="does not span the restart interval"):
            sf.samplers.get("restart").start(None, KARRAS, grid)
    for bad in ({"restarts": 0}, {"steps": 0}, {"low": 0.4}, {"low": 0.0}):
        with pytest.raises(sf.Refusal):
            sf.samplers.get("restart", **bad)


# ------------------------------------------------------------------------------------------ Langevin and correctors


def test_langevin_stationarity() -> None:
    """``x + a s + sqrt(2 a) z`` on N(0, s2) ends at the variance ``s2 / (1 - a / (2 s2))``: 1.052632 for a .1, s2 1."""
    grid = torch.tensor([time_of(KARRAS, 0.5**0.5), time_of(KARRAS, 0.1)], dtype=torch.float64)
    sampler = Langevin(steps=200, size=0.2, denoise=False)  # a = .2 sigma^2 = .1; data and noise of variance .5 each
    reached = variance(sampler, KARRAS, grid, 0.5, 256, 1.0)
    assert reached == pytest.approx(1.052632, abs=1e-6)
    assert reached == pytest.approx(1 / 0.95, abs=1e-9)


def test_langevin_steps_are_proportional_to_the_level() -> None:
    """The step at level i is ``eps sigma_i^2 / sigma_L^2``: with NCSN's numbers 1e-5 (2e-5 / 2) at .01, .1 at 1."""
    process = process_of("levels", sigma_max=1.0, sigma_min=0.01, count=10)
    for level, a in ((1.0, 0.1), (0.01, 1e-5)):
        t = time_of(process, level)
        x = torch.zeros(2, 1, dtype=torch.float64)
        model = sf.oracles.Gaussian([5.0], 1e-12).denoiser(process)
        sampler = Langevin(steps=1, size=1e-5 / 0.01**2, denoise=False)
        moved = sf.sample(model, process, sampler, torch.tensor([t, t / 2], dtype=torch.float64), x, rng=SigmaPoints())
        assert float(moved.mean()) == pytest.approx(a * 5.0 / level**2, rel=1e-6)
        assert float(moved.std(correction=0)) == pytest.approx(math.sqrt(2 * a), rel=1e-6)


def test_the_denoising_step_of_ncsnv2() -> None:
    """``x + sigma_L^2 score`` at the last level: on N(0, s2) it shrinks the variance by ``(s2 / (s2 + sigma^2))^2``."""
    grid = torch.tensor([time_of(KARRAS, 0.5), 0.0], dtype=torch.float64)
    chain, denoised = (
        variance(Langevin(steps=3, size=0.1, denoise=d), KARRAS, grid, 1.0, 16, 1.25) for d in (False, True)
    )
    assert denoised == pytest.approx(chain * (1 / 1.25) ** 2, rel=1e-12)


@pytest.mark.parametrize("schedule", ["vp", "sub-vp", "geometric", "flow"])
@pytest.mark.parametrize("level", [0.1, 1.0])
def test_the_corrector_leaves_the_marginal_as_it_is(schedule: str, level: float) -> None:
    """20 corrections of draws from p_t: the mean energy ``-log p_t`` stays within 4 sigma."""
    process = process_of(schedule)
    t = time_of(process, level)
    model = sf.samplers.driver.Conditioned(MIXTURE.denoiser(process), None)
    x = process.marginal(MIXTURE.sample(4000, 1), t).draw(sf.Stream(2))
    before, rng = -MIXTURE.logp(process, x, t), sf.Stream(3)
    for _ in range(20):
        x = PredictorCorrector(snr=0.1).correct(model, process, x, t, rng)
    after = -MIXTURE.logp(process, x, t)
    error = math.sqrt((float(before.var()) + float(after.var())) / 4000)
    assert abs(float(after.mean() - before.mean())) < 4 * error


def test_the_rule_of_norms_needs_many_dimensions() -> None:
    """With the published step ``2 (snr |z| / |s|)^2`` the energy stays in 64 dimensions and is far off in 2."""
    process = process_of("geometric")
    t = time_of(process, 0.5)
    sixty_four = sf.oracles.GaussianMixture([0.25] * 4, sf.Stream(0).normal((4, 64)) * 1.5, 0.09)
    for oracle, dimension, holds in ((sixty_four, 64, True), (MIXTURE, 2, False)):
        model = sf.samplers.driver.Conditioned(oracle.denoiser(process), None)
        x = process.marginal(oracle.sample(2000, 1), t).draw(sf.Stream(2))
        before, rng = -oracle.logp(process, x, t), sf.Stream(3)
        for _ in range(20):
            x = PredictorCorrector(snr=0.1, rule="norm").correct(model, process, x, t, rng)
        gap = abs(float((-oracle.logp(process, x, t) - before).mean())) / dimension
        assert (gap < 0.05) == holds, (dimension, gap)


def test_the_corrector_never_couples_the_batch() -> None:
    """An outlier in the batch does not move another sample, by either rule."""
    process = process_of("geometric")
    grid = sf.grids.uniform(process.schedule, 6)
    x1 = process.prior(torch.zeros(3, 2, dtype=torch.float64)).draw(sf.Streams([1, 2, 3]))
    far = x1 * torch.tensor([[1.0], [1.0], [50.0]])
    for rule in ("level", "norm"):
        sampler = sf.samplers.get("pc", rule=rule)
        model = MIXTURE.denoiser(process)
        a, b = (sf.sample(model, process, sampler, grid, x, rng=sf.Streams([1, 2, 3])) for x in (x1, far))
        assert torch.equal(a[:2], b[:2])
        assert not torch.equal(a[2], b[2])


def sliced_w1(a: torch.Tensor, b: torch.Tensor) -> float:
    angles = torch.arange(32) * math.pi / 32
    axes = torch.stack([angles.cos(), angles.sin()]).double()
    return float(((a @ axes).sort(0).values - (b @ axes).sort(0).values).abs().mean())


@pytest.mark.parametrize("schedule", ["vp", "geometric", "sub-vp"])
@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        ("euler-maruyama", 300),
        ("euler-ancestral", 300),
        ("dpmpp-sde", 100),
        ("heun", 60),
        ("heun:churn=10", 100),
        ("pc", 150),
        ("pc:predictor=ddpm-large", 200),
        ("langevin:steps=10:size=0.2", 100),
        ("restart", 60),
    ],
)
def test_the_mixture_comes_back(sampler: str, steps: int, schedule: str) -> None:
    """Reverse SDE, probability-flow ODE and predictor-corrector: sliced W1 within 1.5 of the floor of 1000 draws."""
    process = process_of(schedule)
    grid = sf.grids.uniform_logsnr(process.schedule, steps)
    x1 = process.prior(torch.zeros(2000, 2, dtype=torch.float64)).draw(sf.Stream(5))
    x = sf.sample(MIXTURE.denoiser(process), process, sf.samplers.build(sampler), grid, x1, rng=6)
    truth = [MIXTURE.sample(1000, seed) for seed in range(10, 18)]
    floor = statistics.mean(sliced_w1(a, b) for a, b in combinations(truth, 2))
    reached = statistics.mean(sliced_w1(part, other) for part in x.split(1000) for other in truth)
    assert reached < 1.5 * floor, (reached, floor)


def test_a_reverse_diffusion_predictor() -> None:
    """Song et al. 2021, algorithm 2, is ``ddpm-large`` on a variance-exploding path: ``x + (sigma_t^2 - sigma_s^2)
    score``, noise of that variance."""
    t, s = time_of(KARRAS, 2.0), time_of(KARRAS, 1.5)
    x = torch.full((4, 1), 3.0, dtype=torch.float64)
    model = sf.oracles.Gaussian([0.0], 0.25).denoiser(KARRAS)
    grid = torch.tensor([t, s], dtype=torch.float64)
    moved = sf.sample(model, KARRAS, AncestralLarge(), grid, x, rng=SigmaPoints())
    assert float(moved.mean()) == pytest.approx(3.0 - (4 - 2.25) * 3.0 / 4.25, rel=1e-9)
    assert float(moved.var(correction=0)) == pytest.approx(1.75, rel=1e-9)
