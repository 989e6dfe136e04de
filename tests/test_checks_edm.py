"""EDM and the fast solvers against exact values: preconditioning, Heun, Euler, DPM-Solver++(2M), guidance bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.testing import SigmaPoints, measure_order

KARRAS = sf.schedules.get("karras")
PROCESS = sf.processes.Gaussian(KARRAS)
GRID = sf.grids.get("karras")(KARRAS, 18)
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)


def time_of(sigma: float) -> float:
    """The time at which the schedule has this noise level."""
    return float(sf.schedules.time_at(KARRAS, -2 * torch.log(torch.tensor(sigma, dtype=torch.float64))))


# --------------------------------------------------------------------------------------------------- preconditioning

HEAD = GaussianHead(PROCESS, "edm", sigma_data=0.5)


class Zero:
    """A network whose output is 0; remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        self.seen.append(x)
        return torch.zeros_like(x)


def data_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    """Sigma points of N(0, .5^2) data and of unit noise."""
    points = SigmaPoints()
    return 0.5 * points.normal((4, 1)).double(), points.normal((4, 1)).double()


@pytest.mark.parametrize("sigma", [0.002, 0.5, 5.0, 80.0])
def test_edm_preconditioning(sigma: float) -> None:
    t = time_of(sigma)
    x0, eps = data_and_noise()
    x_t = x0 + sigma * eps
    net = Zero()
    belief = Preconditioned(net, HEAD)(x_t, t).point()
    # the input, the target and the weighted loss all have unit variance, at every level
    assert float((net.seen[0] ** 2).mean()) == pytest.approx(1.0, abs=1e-12)
    target = HEAD.target_from_noise(x0, eps, t)
    assert float((target**2).mean()) == pytest.approx(1.0, abs=1e-12)
    # for data of standard deviation sigma_data the optimum is F = 0 and the weighted loss is exactly 1
    assert float((target * x_t).mean()) == pytest.approx(0.0, abs=1e-12 * (1 + sigma))
    loss = HEAD.weight(t) * PROCESS.loss(sf.laws.Dirac(belief), x0, x_t, t)
    assert float(loss.mean()) == pytest.approx(1.0, abs=1e-12)
    exact = sf.oracles.Gaussian([0.0], 0.25).denoiser(PROCESS)(x_t, t).point()
    assert torch.allclose(belief, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 5.0, 80.0])
def test_edm_weight_undoes_the_output_scale(sigma: float) -> None:
    t = time_of(sigma)
    x = torch.zeros(1, 1, dtype=torch.float64)
    c_out = float(HEAD(torch.ones_like(x), x, t).point())
    assert HEAD.weight(t) * c_out**2 == pytest.approx(1.0, abs=1e-12)
    # lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, table 1)
    assert HEAD.weight(t) == pytest.approx({0.002: 250004.0, 0.5: 8.0, 5.0: 4.04, 80.0: 4.00015625}[sigma], rel=1e-12)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 5.0, 80.0])
def test_edm_training_loss_of_the_optimum_is_one(sigma: float) -> None:
    x0, _ = data_and_noise()

    class Same:
        """Hands out the sigma points' noise."""

        def normal(self, shape: tuple[int, ...], rows: Any = None) -> torch.Tensor:
            return data_and_noise()[1].float()

        uniform = normal

    model = Preconditioned(Zero(), HEAD)
    t = torch.full((4,), time_of(sigma), dtype=torch.float64)
    loss = sf.training.objectives.prediction_loss(model, x0, t, None, Same())
    assert float(loss.mean()) == pytest.approx(1.0, abs=1e-12)


# ----------------------------------------------------------------------------------------------------------- solvers


@pytest.mark.parametrize(
    ("sampler", "std", "expected"),
    [
        ("heun", 0.5, 0.52762464),
        ("euler", 0.5, 0.42303144),
        ("ddim", 0.5, 0.42303144),
        ("dpmpp-2m", 0.5, 0.53114007),
        ("heun", 1.0, 1.04472884),
    ],
)
def test_edm_sampler_std(sampler: str, std: float, expected: float) -> None:
    model = sf.oracles.Gaussian([0.0], std**2).denoiser(PROCESS)
    x1 = torch.full((1, 1), 80.0, dtype=torch.float64)
    x = sf.sample(model, PROCESS, sf.samplers.get(sampler), GRID, x1)
    assert float(x) == pytest.approx(expected, abs=1e-7)


def test_the_karras_grid_is_the_papers() -> None:
    _, sigma = KARRAS(GRID)
    assert len(GRID) == 19
    assert float(sigma[0]) == pytest.approx(80.0, rel=1e-12)
    assert float(sigma[-2]) == pytest.approx(0.002, rel=1e-9)
    assert float(sigma[-1]) == 0.0
    # (80^(1/7) + 1/17 (.002^(1/7) - 80^(1/7)))^7, the second of 18 levels
    assert float(sigma[1]) == pytest.approx(57.5860, abs=1e-3)


class Counting:
    """A model that counts its evaluations."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        return self.model(x_t, t, cond)


@pytest.mark.parametrize(("steps", "evaluations"), [(18, 35), (40, 79), (256, 511)])
def test_heun_costs_2n_minus_1_evaluations(steps: int, evaluations: int) -> None:
    model = Counting(sf.oracles.Gaussian([0.0], 0.25).denoiser(PROCESS))
    grid = sf.grids.get("karras")(KARRAS, steps)
    sf.sample(model, PROCESS, sf.samplers.get("heun"), grid, torch.full((1, 1), 80.0, dtype=torch.float64))
    assert model.calls == evaluations


@pytest.mark.parametrize(("sampler", "expected"), [("dpmpp-2m", 1.94), ("ddim", 1.02), ("heun", 2.0)])
def test_orders_on_the_karras_grid(sampler: str, expected: float) -> None:
    def grid_of(n: int) -> torch.Tensor:
        # n steps between sigma 10 and .1: the grid of n + 1 levels without its step to 0
        levels = torch.linspace(10 ** (1 / 7), 0.1 ** (1 / 7), n + 1, dtype=torch.float64) ** 7
        return torch.as_tensor(sf.schedules.time_at(KARRAS, -2 * levels.log()))

    order, _ = measure_order(sf.samplers.get(sampler), PROCESS, MIXTURE, grid_of, (160, 320))
    assert order == pytest.approx(expected, abs=0.1)


# ---------------------------------------------------------------------------------------------------------- guidance


class TwoGaussians:
    """p(x | 0) = N(0, 1) under label 0, p(x) = N(0, 2) under the null label 1."""

    def __init__(self) -> None:
        self.own = sf.oracles.Gaussian([0.0], 1.0).denoiser(PROCESS)
        self.free = sf.oracles.Gaussian([0.0], 2.0).denoiser(PROCESS)

    def __call__(self, x_t: torch.Tensor, t: Any, cond: Any = None) -> Any:
        own, free = self.own(x_t, t).point(), self.free(x_t, t).point()
        return sf.laws.Dirac(torch.where((cond["label"] == 0)[:, None], own, free))


def null(cond: Any) -> Any:
    return {"label": torch.ones_like(cond["label"])}


@pytest.mark.parametrize(("w", "ode", "sde"), [(2.0, 0.5, 0.583333), (3.0, 0.25, 0.3875), (5.0, 0.0625, 0.221788)])
def test_guidance_bias(w: float, ode: float, sde: float) -> None:
    model = sf.guidance.cfg(TwoGaussians(), null, w)

    def variance(sampler: str, steps: int, batch: int) -> float:
        rng = SigmaPoints()
        x1 = 80.0 * rng.normal((batch, 1)).double()
        cond = {"label": torch.zeros(batch, dtype=torch.int64)}
        grid = sf.grids.get("karras")(KARRAS, steps)
        return float((sf.sample(model, PROCESS, sf.samplers.get(sampler), grid, x1, cond=cond, rng=rng) ** 2).mean())

    assert variance("heun", 200, 2) == pytest.approx(ode, rel=0.01)
    # the two variances of DDPM's step close in on the reverse SDE from both sides, at first order
    small, large = variance("ddpm", 500, 512), variance("ddpm-large", 500, 512)
    assert small < sde < large
    assert (small + large) / 2 == pytest.approx(sde, rel=0.01)


@pytest.mark.parametrize(("w", "expected"), [(0.0, 2.0), (1.0, 1.0)])
def test_guidance_scale_convention(w: float, expected: float) -> None:
    model = sf.guidance.cfg(TwoGaussians(), null, w)
    cond = {"label": torch.zeros(1, dtype=torch.int64)}
    grid = sf.grids.get("karras")(KARRAS, 200)
    x = sf.sample(
        model, PROCESS, sf.samplers.get("heun"), grid, torch.full((1, 1), 80.0, dtype=torch.float64), cond=cond
    )
    assert float(x**2) == pytest.approx(expected, rel=0.01)
