"""The oracles against autograd, quadrature, Monte Carlo and each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.testing import check_same_law, z_mean

WEIGHTS, MEANS = [0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]]
_ROOTS = torch.tensor([[[0.5, 0.2], [0.0, 0.3]], [[0.9, -0.4], [0.1, 0.5]], [[0.3, 0.0], [0.6, 0.2]]]).double()
FULL = _ROOTS @ _ROOTS.mT + 0.05 * torch.eye(2)
COVARIANCES = {
    "one variance": 0.09,
    "a variance each": [0.1, 0.2, 0.3],
    "diagonals": [[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]],
    "full": FULL,
}
SCHEDULES = sf.schedules.names()
#: Off the knots of a 1000-step table.
T = 0.5003


def process_of(name: str) -> Any:
    return sf.processes.Gaussian(sf.schedules.get(name))


def states(n: int = 6, d: int = 2) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=COVARIANCES)
def mixture(request: pytest.FixtureRequest) -> Any:
    return sf.oracles.GaussianMixture(WEIGHTS, MEANS, COVARIANCES[request.param])


@pytest.mark.parametrize("name", SCHEDULES)
def test_identities(mixture: Any, name: str) -> None:
    process, x = process_of(name), states().requires_grad_()
    alpha, sigma, dalpha, dsigma = sf.schedules.rates(process.schedule, T)
    (slope,) = torch.autograd.grad(mixture.logp(process, x, T).sum(), x)
    score, mean = mixture.score(process, x, T), mixture.mean(process, x, T)
    assert torch.allclose(score, slope, atol=1e-9)
    # Tweedie: E[x0 | x_t] = (x_t + sigma^2 score) / alpha, and its second order
    assert torch.allclose((x + sigma**2 * score) / alpha, mean, atol=1e-8)
    rows = [torch.autograd.grad(mean[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    assert torch.allclose(torch.stack(rows, 1) * sigma**2 / alpha, mixture.covariance(process, x, T), atol=1e-7)
    velocity = mixture.velocity(process, x, T)
    assert torch.allclose(velocity, dalpha * mean + dsigma * (x - alpha * mean) / sigma, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_flow_solves_its_equation(mixture: Any, name: str) -> None:
    process, x = process_of(name), states()
    h = 1e-5
    slope = (mixture.flow(process, x, T, T + h) - mixture.flow(process, x, T, T - h)) / (2 * h)
    assert torch.allclose(slope, mixture.velocity(process, x, T), rtol=1e-4, atol=1e-4)
    there = mixture.flow(process, x, 0.9, 0.3)
    assert torch.allclose(mixture.flow(process, there, 0.3, 0.9), x, atol=1e-7)
    two = mixture.flow(process, mixture.flow(process, x, 0.9, 0.6), 0.6, 0.3)
    assert torch.allclose(two, there, atol=1e-8)


def test_the_flow_carries_the_law(mixture: Any) -> None:
    process = process_of("flow")
    data = mixture.sample(4_000, 1)
    x = mixture.flow(process, process.marginal(data, 0.8).draw(sf.Stream(2)), 0.8, 0.1)
    check_same_law(x, process.marginal(mixture.sample(40_000, 3), 0.1).draw(sf.Stream(4)), "flow of the mixture")


def test_the_flow_takes_a_time_for_each_sample() -> None:
    mixture, process, x = sf.oracles.GaussianMixture(WEIGHTS, MEANS, 0.09), process_of("flow"), states(2)
    both = mixture.flow(process, x, torch.tensor([0.9, 0.4]), torch.tensor([0.2, 0.7]))
    for k, (t, s) in enumerate([(0.9, 0.2), (0.4, 0.7)]):
        assert torch.allclose(mixture.flow(process, x[k : k + 1], t, s), both[k : k + 1], atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_both_ends(mixture: Any, name: str) -> None:
    process, x = process_of(name), states()
    assert torch.allclose(mixture.mean(process, x, 0.0), x, atol=1e-12)
    assert float(mixture.covariance(process, x, 0.0).abs().max()) < 1e-12
    alpha, _ = sf.schedules.at(process.schedule, 1.0)
    if alpha < 1e-12:
        mean = (torch.tensor(WEIGHTS)[:, None] * torch.tensor(MEANS)).sum(0).double()
        assert torch.allclose(mixture.mean(process, x, 1.0), mean.expand(6, 2), atol=1e-7)
    assert torch.isfinite(mixture.score(process, x, 1.0)).all()
    assert torch.isfinite(mixture.velocity(process, x, 1.0)).all()
    assert torch.allclose(mixture.logp(process, x, 0.0), -mixture.nll(x), atol=1e-12)


def test_densities_integrate_to_one(mixture: Any) -> None:
    process = process_of("flow")
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for t in (0.0, 0.3, 0.9):
        assert float(mixture.logp(process, grid, t).exp().sum()) * (axis[1] - axis[0]) ** 2 == pytest.approx(
            1.0, abs=1e-6
        )


def test_the_posterior_is_bayes(mixture: Any) -> None:
    # p(x0 | x_t) = p(x0) N(x_t; alpha x0, sigma^2) / p(x_t), pointwise
    process, x_t, x0 = process_of("cosine"), states(), states() + 0.2
    law = mixture.posterior(process)(x_t, T)
    bayes = mixture.nll(x0) + process.marginal(x0, T).nll(x_t) + mixture.logp(process, x_t, T)
    assert torch.allclose(law.nll(x0), bayes, atol=1e-9)


def test_posterior_draws_have_the_posterior_moments(mixture: Any) -> None:
    process, n = process_of("flow"), 100_000
    x_t = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(n, 2)
    law = mixture.posterior(process)(x_t, 0.6)
    x0 = law.draw(sf.Stream(0))
    mean, cov = mixture.mean(process, x_t[:1], 0.6)[0], mixture.covariance(process, x_t[:1], 0.6)[0]
    for i in range(2):
        assert z_mean(x0[:, i], float(mean[i])) < 4.5
        for j in range(2):
            assert z_mean((x0[:, i] - mean[i]) * (x0[:, j] - mean[j]), float(cov[i, j])) < 4.5
    assert torch.allclose(law.point()[0], mean)


def test_sampling_follows_the_law(mixture: Any) -> None:
    x, label = mixture.sample_with_label(100_000, sf.Stream(0))
    share = torch.bincount(label, minlength=3) / len(label)
    assert torch.allclose(share, torch.tensor(WEIGHTS), atol=0.007)
    # E[p(x)] by Monte Carlo equals the closed form for one pair: the mean of exp(-nll) is finite and seed-free
    for k in range(3):
        own = x[label == k]
        assert torch.allclose(own.mean(0), torch.tensor(MEANS[k]).double(), atol=4.5 * 1.2 / math.sqrt(len(own)))


def test_labels_pick_components(mixture: Any) -> None:
    process, x = process_of("flow"), states(4)
    label = torch.tensor([0, 1, 2, 3])
    mixed = mixture.mean(process, x, 0.5, {"label": label})
    for k in range(3):
        covariance = mixture.variances[k]
        basis = None if mixture.basis is None else mixture.basis[k]
        cov = torch.diag(covariance) if basis is None else basis @ torch.diag(covariance) @ basis.mT
        alone = sf.oracles.Gaussian(MEANS[k], cov).mean(process, x[k : k + 1], 0.5)
        assert torch.allclose(mixed[k : k + 1], alone, atol=1e-12)
    assert torch.allclose(mixed[3:], mixture.mean(process, x[3:], 0.5), atol=1e-12)


@pytest.mark.parametrize("covariance", [0.25, [0.25, 1.5], [[0.5, 0.2], [0.2, 0.4]]], ids=["one", "diagonal", "full"])
def test_a_gaussian_is_a_mixture_of_one(covariance: Any) -> None:
    gaussian = sf.oracles.Gaussian([0.5, -0.3], covariance)
    full = torch.as_tensor(covariance, dtype=torch.float64)
    full = full * torch.eye(2).double() if full.ndim == 0 else torch.diag(full) if full.ndim == 1 else full
    mixture = sf.oracles.GaussianMixture([1.0], [[0.5, -0.3]], full[None])
    for name in SCHEDULES:
        process, x = process_of(name), states()
        for method in ("logp", "score", "mean", "covariance", "velocity"):
            a, b = getattr(gaussian, method)(process, x, T), getattr(mixture, method)(process, x, T)
            assert torch.allclose(a, b, atol=1e-9), (name, method)
        assert torch.allclose(gaussian.flow(process, x, 0.9, 0.2), mixture.flow(process, x, 0.9, 0.2), atol=1e-8)
    assert gaussian.entropy == pytest.approx(float(torch.logdet(2 * math.pi * math.e * full)) / 2, abs=1e-12)
    x = gaussian.sample(200_000, 0)
    assert z_mean(gaussian.nll(x), gaussian.entropy) < 4.5


def test_a_diagonal_gaussian_believes_a_normal() -> None:
    process = process_of("flow")
    law = sf.oracles.Gaussian([0.0, 1.0], [0.25, 1.0]).posterior(process)(states(), 0.5)
    assert isinstance(law, sf.laws.Normal)
    assert torch.allclose(torch.as_tensor(law.var), torch.tensor([0.2, 0.5], dtype=torch.float64).expand(6, 2))


def test_images_are_flattened_and_restored() -> None:
    mean = np.linspace(-1, 1, 12).reshape(3, 2, 2)
    oracle = sf.oracles.GaussianMixture([0.4, 0.6], np.stack([mean, -mean]), [0.1, 0.2])
    flat = sf.oracles.GaussianMixture([0.4, 0.6], np.stack([mean, -mean]).reshape(2, 12), [0.1, 0.2])
    process = process_of("linear")
    x = oracle.sample(5, 0)
    assert x.shape == (5, 3, 2, 2)
    for method in ("score", "mean", "velocity"):
        image = getattr(oracle, method)(process, x, T)
        assert image.shape == x.shape
        assert torch.allclose(image.flatten(1), getattr(flat, method)(process, x.flatten(1), T), atol=1e-12)
    assert oracle.covariance(process, x, T).shape == (5, 12, 12)
    assert oracle.posterior(process)(x, T).draw(sf.Stream(0)).shape == x.shape
    assert oracle.flow(process, x, 0.9, 0.0).shape == x.shape


def test_states_come_back_in_their_dtype() -> None:
    oracle, process = sf.oracles.GaussianMixture(WEIGHTS, MEANS, 0.09), process_of("flow")
    x = states().float()
    for method in ("score", "mean", "velocity"):
        assert getattr(oracle, method)(process, x, 0.5).dtype == torch.float32
    assert oracle.logp(process, x, 0.5).dtype == torch.float64
    assert oracle.posterior(process)(x, 0.5).draw(sf.Stream(0)).dtype == torch.float32


# --------------------------------------------------------------------------------------------------------- empirical


def test_empirical_is_a_mixture_of_points() -> None:
    atoms = states(7, 3)
    data = sf.oracles.Empirical(atoms)
    points = sf.oracles.GaussianMixture([1 / 7] * 7, atoms, 0.0)
    for name in SCHEDULES:
        process = process_of(name)
        x = process.marginal(data.sample(5, 1), 0.3).draw(sf.Stream(2))
        for method in ("logp", "score", "mean", "covariance", "velocity"):
            a, b = getattr(data, method)(process, x, 0.3), getattr(points, method)(process, x, 0.3)
            assert torch.allclose(a, b, rtol=1e-7, atol=1e-7), (name, method)
        assert torch.isfinite(data.mean(process, x, 1.0)).all()
    process, x = process_of("flow"), states(5, 3).requires_grad_()
    (slope,) = torch.autograd.grad(data.logp(process, x, 0.4).sum(), x)
    assert torch.allclose(slope, data.score(process, x, 0.4), atol=1e-9)


def test_empirical_ends() -> None:
    atoms = states(9, 2)
    data, process = sf.oracles.Empirical(atoms), process_of("flow")
    x = states(4) + 0.01
    nearest = atoms[torch.cdist(x, atoms).argmin(1)]
    assert torch.equal(data.mean(process, x, 0.0), nearest)
    assert torch.allclose(data.mean(process, x, 1.0), atoms.mean(0).expand(4, 2), atol=1e-12)
    landed = data.flow(process, x, 0.9, 0.0)
    assert float(torch.cdist(landed, atoms).amin(1).max()) < 1e-6
    assert data.nll(atoms[:2]).tolist() == pytest.approx([math.log(9)] * 2)
    assert data.nll(atoms[:2] + 1).tolist() == [math.inf] * 2
    drawn = data.posterior(process)(x, 0.5).draw(sf.Stream(0))
    assert bool((torch.cdist(drawn, atoms).amin(1) == 0).all())


def test_empirical_labels() -> None:
    atoms = states(8, 2)
    label = torch.arange(8) % 2
    data, process, x = sf.oracles.Empirical(atoms, label), process_of("flow"), states(3)
    own = data.mean(process, x, 0.5, {"label": torch.tensor([0, 1, 2])})
    for k in range(2):
        alone = sf.oracles.Empirical(atoms[label == k]).mean(process, x[k : k + 1], 0.5)
        assert torch.allclose(own[k : k + 1], alone, atol=1e-12)
    assert torch.allclose(own[2:], sf.oracles.Empirical(atoms).mean(process, x[2:], 0.5), atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.6], [[0.0], [1.0]], 0.1), "sum to 1, not to 1.1"),
        (([1.5, -0.5], [[0.0], [1.0]], 0.1), "non-negative"),
        (([0.5, 0.5], [[0.0], [1.0], [2.0]], 0.1), "of the same k"),
        (([1.0], [[0.0, 1.0]], -0.1), "negative eigenvalue"),
        (([1.0], [[0.0, 1.0]], [[[1.0, 0.5], [0.2, 1.0]]]), "not symmetric"),
        (([1.0], [[0.0, 1.0]], [1.0, 2.0, 3.0]), r"give a number, \[1\], \[1, 2\] or \[1, 2, 2\]"),
    ],
)
def test_what_is_no_mixture_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(sf.Refusal, match=message):
        sf.oracles.GaussianMixture(*arguments)


def test_states_and_conditions_that_do_not_fit_are_refused() -> None:
    oracle, process = sf.oracles.GaussianMixture(WEIGHTS, MEANS, 0.09), process_of("flow")
    with pytest.raises(sf.Refusal, match="states of 3 coordinates for an oracle of 2"):
        oracle.mean(process, states(4, 3), 0.5)
    with pytest.raises(sf.Refusal, match=r"0\.\.3 \(3 = null\)"):
        oracle.mean(process, states(2), 0.5, {"label": torch.tensor([0, 4])})
    with pytest.raises(sf.Refusal, match="knows 'label' only"):
        oracle.mean(process, states(2), 0.5, {"text": torch.zeros(2)})
    with pytest.raises(sf.Refusal, match="no \\(alpha, sigma\\) schedule"):
        oracle.mean(sf.processes.Product({"x": process}), states(2), 0.5)
    with pytest.raises(sf.Refusal, match="mixture has no closed form"):
        oracle.posterior(process)(states(2), 0.5).kl(sf.laws.Dirac(states(2)))
    with pytest.raises(sf.Refusal, match="non-empty"):
        sf.oracles.Empirical(torch.zeros(0, 2))
    with pytest.raises(sf.Refusal, match="point mass"):
        sf.oracles.Gaussian([0.0], 0.0).flow(process, states(2, 1), 0.0, 0.5)
