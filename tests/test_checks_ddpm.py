"""The DDPM family against exact values: schedule, bound, ancestral variance, DDIM factors.

Every number is reached through public calls on exact Gaussian data; nothing here repeats a formula of the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.testing import SigmaPoints, check_order

LINEAR = sf.schedules.get("linear")
PROCESS = sf.processes.Gaussian(LINEAR)
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
#: All 1000 steps of the table.
FULL = sf.grids.uniform(LINEAR, 1000)


def variance_of(law: Any) -> float:
    """The (scalar) variance of a Normal."""
    return float(torch.as_tensor(law.var, dtype=torch.float64).flatten()[0])


# ---------------------------------------------------------------------------------------------------------- schedule


def test_ddpm_schedule() -> None:
    alpha, _ = LINEAR(torch.ones(1, dtype=torch.float64))
    assert float(alpha**2) == pytest.approx(4.035830e-05, rel=1e-6)


def test_ddpm_posterior_variance_of_step_2() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    beta_tilde = PROCESS.bridge(x, sf.laws.Dirac(x), 2 / 1000, 1 / 1000)
    assert variance_of(beta_tilde) == pytest.approx(5.453188e-05, rel=1e-6)


def test_ddpm_betas() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    for k, beta in ((1, 1e-4), (2, 1e-4 + 0.0199 / 999), (1000, 0.02)):
        assert variance_of(PROCESS.forward(x, (k - 1) / 1000, k / 1000)) == pytest.approx(beta, rel=1e-9)


def test_ddpm_prior_term_in_bits_per_dim() -> None:
    x0 = torch.full((2, 1), 3**-0.5, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]])
    terms = PROCESS.marginal(x0, 1.0).kl(PROCESS.prior(x0))
    # the prior of the library is N(0, sigma(1)^2), the paper's N(0, 1): the value is the paper's
    standard = PROCESS.marginal(x0, 1.0).kl(sf.laws.Normal(torch.zeros_like(x0), 1.0))
    assert float(standard.mean()) / 0.6931471805599453 == pytest.approx(9.7047e-06, rel=1e-5)
    assert float(terms.mean()) == pytest.approx(float(standard.mean()), rel=1e-4)


def test_improved_ddpm_cosine_schedule() -> None:
    cosine = sf.schedules.get("cosine")
    alpha, sigma = cosine(torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64))
    assert float(sigma[0] ** 2) == pytest.approx(4.128422e-05, rel=1e-6)
    assert float(alpha[1] ** 2) == pytest.approx(0.493844, rel=1e-6)
    assert float(alpha[2] ** 2) == pytest.approx(2.4288e-09, rel=1e-4)
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert variance_of(sf.processes.Gaussian(cosine).forward(x, 0.999, 1.0)) == pytest.approx(0.999, rel=1e-9)


def test_respacing_keeps_the_marginals() -> None:
    # a spaced chain reads the same law of continuous time: forward over a gap is the composition of its steps
    x = torch.ones(1, 1, dtype=torch.float64)
    t, law_mean, law_var = 0.1, 1.0, 0.0
    while t < 0.1999:
        step = PROCESS.forward(x, t, t + 0.01)
        scale = float(step.mean)
        law_mean, law_var, t = law_mean * scale, law_var * scale**2 + variance_of(step), round(t + 0.01, 10)
    gap = PROCESS.forward(x, 0.1, 0.2)
    assert float(gap.mean) == pytest.approx(law_mean, rel=1e-12)
    assert variance_of(gap) == pytest.approx(law_var, rel=1e-12)


# ------------------------------------------------------------------------------------------------------------- bound


@dataclass(frozen=True)
class FixedVariance:
    """An exact mean with a stated variance: how DDPM's two fixed choices are beliefs."""

    exact: Any
    process: Any
    choice: str

    def __call__(self, x_t: torch.Tensor, t: Any, cond: Any = None) -> Any:
        point = self.exact(x_t, t, cond).point()
        last = t <= 1 / 1000 + 1e-12
        _, sigma = sf.schedules.at(self.process.schedule, t)
        if self.choice == "beta":  # believing sigma_t^2 about x0 makes the step's variance beta_t
            return sf.laws.Normal(point, sigma**2)
        if not last:  # a point belief makes it beta-tilde_t
            return sf.laws.Dirac(point)
        # at the last step beta-tilde is 0 and is clipped to that of step 2 (Nichol and Dhariwal 2021)
        return sf.laws.Normal(point, variance_of(self.process.bridge(x_t, sf.laws.Dirac(point), 0.002, 0.001)))


def bound_of(variance: float, choice: str) -> float:
    oracle = sf.oracles.Gaussian([0.0], variance)
    rng = SigmaPoints()
    x0 = oracle.sample(2048, rng)
    denoiser = oracle.posterior(PROCESS)
    if choice != "exact":
        denoiser = FixedVariance(oracle.denoiser(PROCESS), PROCESS, choice)
    return float(sf.elbo(denoiser, PROCESS, x0, FULL, rng).total.mean())


@pytest.mark.parametrize(
    ("variance", "choice", "expected"),
    [
        (1.0, "exact", 1.418939),
        (0.25, "exact", 0.725791),
        (4.0, "exact", 2.112086),
        (1.0, "beta", 1.418939),
        (0.25, "beta", 0.726884),
        (4.0, "beta", 2.112939),
        (1.0, "beta-tilde", 1.997533),
        (0.25, "beta-tilde", 1.295717),
        (4.0, "beta-tilde", 2.695960),
    ],
)
def test_ddpm_bound(variance: float, choice: str, expected: float) -> None:
    assert bound_of(variance, choice) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("steps", "gap"), [(10, 0.056881), (50, 0.012085), (100, 0.006084)])
def test_improved_ddpm_gap_of_a_fixed_beta(steps: int, gap: float) -> None:
    schedule = sf.schedules.get("cosine", steps=steps)
    process = sf.processes.Gaussian(schedule)
    oracle = sf.oracles.Gaussian([0.0], 0.25)
    rng = SigmaPoints()
    x0 = oracle.sample(128, rng)
    grid = sf.grids.uniform(schedule, steps)
    fixed = sf.elbo(FixedVariance(oracle.denoiser(process), process, "beta"), process, x0, grid, rng).total.mean()
    rng = SigmaPoints()
    exact = sf.elbo(oracle.posterior(process), process, oracle.sample(128, rng), grid, rng).total.mean()
    assert float(fixed - exact) == pytest.approx(gap, abs=1e-6)


# --------------------------------------------------------------------------------------------------------- ancestral


@pytest.mark.parametrize(
    ("sampler", "variance", "expected"),
    [
        ("ddpm", 0.25, 0.246125),
        ("ddpm-large", 0.25, 0.250752),
        ("ddpm", 4.0, 3.974777),
        ("ddpm-large", 4.0, 3.990569),
        ("ddpm", 1.0, 0.991067),
        ("ddpm-large", 1.0, 0.999900),
    ],
)
def test_ddpm_ancestral_variance(sampler: str, variance: float, expected: float) -> None:
    rng = SigmaPoints()
    x1 = rng.normal((2048, 1)).double()
    model = sf.oracles.Gaussian([0.0], variance).denoiser(PROCESS)
    x = sf.sample(model, PROCESS, sf.samplers.get(sampler), FULL, x1, rng=rng)
    assert float((x**2).mean()) == pytest.approx(expected, abs=1e-6)
    assert float(x.mean()) == pytest.approx(0.0, abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- DDIM


@pytest.mark.parametrize(
    ("std", "steps", "expected"),
    [
        (0.5, 10, 0.374128),
        (0.5, 50, 0.472439),
        (0.5, 100, 0.485981),
        (0.5, 1000, 0.498495),
        (2.0, 10, 1.719879),
        (2.0, 50, 1.940627),
        (2.0, 100, 1.970021),
    ],
)
def test_ddim_factor(std: float, steps: int, expected: float) -> None:
    model = sf.oracles.Gaussian([0.0], std**2).denoiser(PROCESS)
    x1 = torch.ones(1, 1, dtype=torch.float64)
    x = sf.sample(model, PROCESS, sf.samplers.get("ddim"), sf.grids.get("leading")(LINEAR, steps), x1)
    assert float(x) == pytest.approx(expected, abs=1e-6)


def test_ddim_is_of_first_order() -> None:
    process = sf.processes.Gaussian(sf.schedules.get("karras"))
    assert check_order(sf.samplers.get("ddim"), process, MIXTURE, steps=(160, 320), tolerance=0.05) > 0


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
def test_ddim_eta_scales_the_standard_deviation(eta: float) -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    whole = variance_of(PROCESS.bridge(x, sf.laws.Dirac(x), 0.5, 0.4))
    assert variance_of(PROCESS.bridge(x, sf.laws.Dirac(x), 0.5, 0.4, eta)) == pytest.approx(eta**2 * whole, rel=1e-12)


def test_ddim_with_eta_1_is_ddpm_fixed_small() -> None:
    model = sf.oracles.Gaussian([0.0], 0.25).denoiser(PROCESS)
    x1 = torch.ones(4, 1, dtype=torch.float64)
    grid = sf.grids.uniform(LINEAR, 50)
    a = sf.sample(model, PROCESS, sf.samplers.get("ddim", eta=1.0), grid, x1, rng=sf.Streams(range(4)))
    b = sf.sample(model, PROCESS, sf.samplers.get("ddpm"), grid, x1, rng=sf.Streams(range(4)))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
