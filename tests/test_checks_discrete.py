"""Published and enumerated values of the discrete methods: D3PM, MDLM, SEDD, discrete flow matching."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import sfumato as sf
from sfumato.denoisers.tokens import Subs
from sfumato.laws import Categorical, Dirac
from sfumato.oracles import EnumerableChain, dirichlet, staircase, total_variation
from sfumato.processes import Jump, RateMatrix, absorbing, discretised_gaussian, gaussian_matrix, marginal, survival
from sfumato.processes import uniform as uniform_kernel

FLOW = sf.schedules.get("flow")
#: Three sites of three tokens, and one site of five, from one stream of numpy's generator 0.
CHAIN = dirichlet(3, 3)
ENTROPY = 2.63125161
ABSORBING = Jump(absorbing(4), FLOW)


def one_token() -> EnumerableChain:
    draw = np.random.default_rng(0)
    draw.dirichlet(0.7 * np.ones(27))
    return EnumerableChain(torch.from_numpy(draw.dirichlet(np.ones(5))))


def grid(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def average(chain: EnumerableChain, terms: Tensor) -> float:
    return float((chain.p.flatten() * terms).sum())


def test_the_enumerable_oracle() -> None:
    assert CHAIN.entropy == pytest.approx(ENTROPY, abs=1e-8)
    assert one_token().entropy == pytest.approx(1.24010214, abs=1e-8)
    x = CHAIN.sample(20_000, 0)
    assert ABSORBING.space.contains(x)
    assert chisquare(CHAIN.counts(x).numpy(), 20_000 * CHAIN.p.flatten().numpy()).pvalue > 1e-3
    assert float(CHAIN.nll(x).mean()) == pytest.approx(ENTROPY, abs=0.03)
    assert float(CHAIN.nll(torch.tensor([[0, 3, 1]]))) == math.inf
    # the law of x_t is that of data drawn, then destroyed
    x_t = ABSORBING.marginal(x, 0.6).draw(sf.Stream(1))
    seen = torch.bincount((x_t * torch.tensor([16, 4, 1])).sum(1), minlength=64).double()
    law = CHAIN.law_at(ABSORBING, 0.6).flatten()
    assert chisquare(seen.numpy(), 20_000 * law.numpy()).pvalue > 1e-3


# ------------------------------------------------------------------------------------------------------------- D3PM

D3PM_BOUNDS = {1: 3.071650, 2: 2.864048, 4: 2.750799, 8: 2.691813, 16: 2.661729, 64: 2.638908, 256: 2.633168}


def test_d3pm_absorbing_bounds_with_exact_marginals() -> None:
    exact = CHAIN.posterior(ABSORBING)
    found = {steps: average(CHAIN, CHAIN.elbo(exact, ABSORBING, grid(steps)).total) for steps in D3PM_BOUNDS}
    for steps, value in D3PM_BOUNDS.items():
        assert found[steps] == pytest.approx(value, abs=1e-6), steps
    marginals = CHAIN.marginals
    assert found[1] == pytest.approx(float(-(marginals * marginals.log()).sum()), abs=1e-12)
    assert (found[64] - ENTROPY) / (found[256] - ENTROPY) == pytest.approx(4, abs=0.02)  # the gap falls as 1 / T


def test_d3pm_uniform_bound_of_one_token() -> None:
    chain = one_token()
    for steps in (1, 2, 4, 10):
        process = Jump(uniform_kernel(5), survival(np.linspace(0.02, 0.5, steps)))
        bound = average(chain, chain.elbo(chain.posterior(process), process, grid(steps)).total)
        last = chain.law_at(process, 1.0)
        surplus = float((last * (5 * last).log()).sum())  # KL(p_T || uniform), nothing with the exact prior
        assert bound - surplus == pytest.approx(1.24010214, abs=1e-8)
        if steps == 2:
            assert bound == pytest.approx(1.32910748, abs=1e-8)


def test_the_library_bound_averages_to_the_enumerated_one() -> None:
    exact, x0 = CHAIN.posterior(ABSORBING), CHAIN.sample(4000, 1)
    bound = sf.elbo(exact, ABSORBING, x0, grid(4), 2).total
    truth = CHAIN.elbo(exact, ABSORBING, grid(4)).total[(x0 * torch.tensor([9, 3, 1])).sum(1)]
    assert abs(float((bound - truth).mean())) < 4.5 * float((bound - truth).std()) / math.sqrt(4000)


@pytest.mark.parametrize("size", [5, 256])
def test_d3pm_discretised_gaussian_is_doubly_stochastic(size: int) -> None:
    for beta in (0.001, 0.02, 0.5):
        step = gaussian_matrix(size, beta)
        assert float((step.sum(0) - 1).abs().max()) < 1e-15
        assert float((step.sum(1) - 1).abs().max()) < 1e-15
        assert float(step.min()) >= 0
        assert torch.equal(step, step.T)


def test_d3pm_discretised_gaussian_is_the_paper() -> None:
    size, beta = 5, 0.1
    weights = [math.exp(-4 * d**2 / ((size - 1) ** 2 * beta)) for d in range(-(size - 1), size)]
    step = gaussian_matrix(size, beta)
    for i in range(size):
        for j in range(size):
            if i != j:
                assert float(step[i, j]) == pytest.approx(weights[i - j + size - 1] / sum(weights), rel=1e-12)


def test_d3pm_posterior_by_brute_force() -> None:
    steps, k = 6, 4
    jumps = torch.linspace(0.05, 0.4, steps, dtype=torch.float64)
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    hot = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    falling = [1 / (steps - i) for i in range(steps)]  # D3PM's absorbing rates, which end at 1
    gaussian = discretised_gaussian(4, 0.2)
    unit = torch.linalg.matrix_exp(gaussian.rates * -math.log(0.8))
    cases = [
        (Jump(uniform_kernel(4), survival(jumps)), [(1 - b) * eye + b / 4 for b in jumps]),
        (Jump(marginal(pi), survival(jumps)), [(1 - b) * eye + b * pi for b in jumps]),
        (Jump(absorbing(4), FLOW), [(1 - b) * eye + b * hot for b in falling]),
        (Jump(gaussian, survival([0.2] * steps)), [unit] * steps),
    ]
    for process, chain in cases:
        before = torch.linalg.multi_dot(chain[: k - 1])
        after = before @ chain[k - 1]
        for x0 in range(4):
            for x_t in range(4):
                if after[x0, x_t] == 0:
                    continue
                brute = before[x0] * chain[k - 1][:, x_t] / after[x0, x_t]
                law: Any = process.bridge(
                    torch.tensor([[x_t]]), Dirac(torch.tensor([[x0]])), k / steps, (k - 1) / steps
                )
                assert float((law.logp[0, 0].exp() - brute).abs().max()) < 1e-13


# ------------------------------------------------------------------------------------------------------------- MDLM


@pytest.mark.parametrize("schedule", ["flow", "cosine-continuous"])
def test_mdlm_bound_is_the_entropy_on_every_schedule(schedule: str) -> None:
    process = Jump(absorbing(4), sf.schedules.get(schedule))
    bound = CHAIN.nelbo(CHAIN.posterior(process), process, 32)
    assert average(CHAIN, bound.total) == pytest.approx(CHAIN.entropy, abs=1e-8)
    assert float((bound.total - CHAIN.nll(CHAIN.sequences)).abs().max()) < 1e-8  # each sequence's own, too


def test_mdlm_bound_is_the_mean_over_orders_of_decoding() -> None:
    exact = CHAIN.posterior(ABSORBING)

    def bold(x_t: Tensor, t: Any, cond: Any = None) -> Categorical:
        return Categorical((1.5 * exact(x_t, t).logp).log_softmax(-1))

    # -log q(x_i | what is known) of the bold model, summed along every order of the three sites
    paths = []
    for order in permutations(range(3)):
        path = torch.zeros(3, 3, 3, dtype=torch.float64)
        for depth, site in enumerate(order):
            hidden = [axis for axis in range(3) if axis not in (*order[:depth], site)]
            seen = CHAIN.p.sum(hidden, keepdim=True) if hidden else CHAIN.p
            path = path - (1.5 * seen.log()).log_softmax(site)
        paths.append(path.flatten())
    bound = CHAIN.nelbo(bold, ABSORBING, 32).total
    assert float((bound - torch.stack(paths).mean(0)).abs().max()) < 1e-8
    likelihood = torch.stack(paths).neg().exp().mean(0).log().neg()
    assert bool((bound >= likelihood - 1e-12).all())
    assert float((bound - likelihood).max()) > 0.01


def test_mdlm_finite_steps_cost_of_the_order_of_one_over_steps() -> None:
    exact = CHAIN.posterior(ABSORBING)
    for steps, gap in ((4, 0.120), (256, 0.0019)):
        cost = average(CHAIN, CHAIN.elbo(exact, ABSORBING, grid(steps)).total) - CHAIN.entropy
        assert cost == pytest.approx(gap, abs=5e-4 if steps == 4 else 5e-5)


MDLM_TV = {1: 0.380111, 2: 0.211278, 4: 0.111191, 8: 0.056983, 16: 0.028839, 32: 0.014506, 64: 0.007275}


def test_mdlm_output_of_n_steps() -> None:
    for steps, value in MDLM_TV.items():
        assert total_variation(CHAIN.output(ABSORBING, grid(steps)), CHAIN.p) == pytest.approx(value, abs=1e-6)
    # and that is what the sampler writes
    n = 20_000
    x1 = ABSORBING.prior(torch.zeros(n, 3, dtype=torch.int64)).draw(sf.Stream(0))
    x = sf.sample(CHAIN.posterior(ABSORBING), ABSORBING, sf.samplers.get("ddpm"), grid(4), x1, rng=1)
    law = CHAIN.output(ABSORBING, grid(4))[:3, :3, :3].flatten()
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert chisquare(CHAIN.counts(x).numpy(), n * law.numpy()).pvalue > 1e-3


# ------------------------------------------------------------------------------------------------------------- SEDD

#: The rate matrix 11'/5 - I run for a total time of 8: alpha = exp(-8 t).
EIGHT = sf.schedules.get("vp", beta_min=16.0, beta_max=16.0)


@pytest.mark.parametrize("kernel", ["uniform", "matrix"])
def test_sedd_score_entropy_is_the_entropy_at_the_exact_score(kernel: str) -> None:
    rates = torch.full((5, 5), 0.2, dtype=torch.float64) - torch.eye(5, dtype=torch.float64)
    process = Jump(uniform_kernel(5) if kernel == "uniform" else RateMatrix(rates), EIGHT)
    chain = one_token()
    exact = chain.posterior(process)
    last = chain.law_at(process, 1.0)
    # with KL(p_T || prior) in place of the mean KL of q(x_T | x0)
    start = float((last * (5 * last).log()).sum())
    integral = average(chain, chain.nelbo(exact, process).diffusion.sum(0))
    assert integral + start == pytest.approx(1.240102, abs=1e-6)
    loud = chain.nelbo(exact, process, score=lambda q, x_t, t: 1.3 * process.ratio(q, x_t, t))
    assert average(chain, loud.diffusion.sum(0)) + start == pytest.approx(1.480971, abs=1e-6)


def test_sedd_is_least_at_the_exact_ratio() -> None:
    chain, t, states = one_token(), 0.1, torch.arange(5)[:, None]
    for process in (Jump(uniform_kernel(5), EIGHT), Jump(discretised_gaussian(5, 0.3), EIGHT)):
        law = chain.law_at(process, t)
        exact: Any = chain.posterior(process)(states, t)
        score = process.ratio(exact, states, t)
        assert torch.allclose(score[:, 0], law / law[:, None], rtol=1e-12)  # p_t(y) / p_t(x)
        weight = process.marginal(states, t).logp.exp()[:, 0] * chain.p[:, None]  # rows x0, columns x_t

        def expected(score: Tensor, process: Jump = process, weight: Tensor = weight) -> Tensor:
            x0, x_t = states.repeat_interleave(5, 0), states.repeat(5, 1)
            return (weight.flatten() * process.score_entropy(score.repeat(5, 1, 1), x0, x_t, t)).sum()

        free = score.clone().requires_grad_()
        (slope,) = torch.autograd.grad(expected(free), free)
        assert float(slope.abs().max()) < 1e-12
        for sign in (1, -1):
            for y in range(5):
                moved = score.clone()
                moved[..., y] *= 1 + 0.1 * sign
                assert float(expected(moved)) > float(expected(score)) + 1e-6


def test_sedd_and_mdlm_are_one_where_tokens_are_absorbed() -> None:
    x0, t = CHAIN.sample(200, 0), torch.linspace(0.02, 0.999, 200, dtype=torch.float64)
    x_t = ABSORBING.marginal(x0, t).draw(sf.Stream(1))
    noise = torch.Generator().manual_seed(0)
    raw = torch.randn(200, 3, 4, generator=noise, dtype=torch.float64)
    q = Subs(ABSORBING)(raw, x_t, t)
    mdlm = ABSORBING.unmasking(t) * ABSORBING.loss(q, x0, x_t, t)
    assert torch.allclose(ABSORBING.rate(q, x0, x_t, t), mdlm, rtol=1e-10)
    # score = p(x0) / (e^sigma - 1) at a mask
    sigma = -ABSORBING.signal(t).log()
    score = q.logp.exp() / torch.expm1(sigma)[:, None, None]
    assert torch.allclose(ABSORBING.ratio(q, x_t, t)[x_t == 3][:, :3], score[x_t == 3][:, :3], rtol=1e-10)
    assert torch.allclose(ABSORBING.score_entropy(score, x0, x_t, t), mdlm, rtol=1e-10)


# ------------------------------------------------------------------------------------------ discrete flow matching


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_discrete_flow_reaches_the_data_whatever_its_noise(noise: float) -> None:
    law = CHAIN.reversed_law(ABSORBING, eta=0.0, noise=noise, tolerance=1e-7)
    assert total_variation(law, CHAIN.p) == pytest.approx(1.5e-6, abs=1e-7)  # what is still masked at t = 1e-6
    assert float((law - CHAIN.law_at(ABSORBING, 1e-6)).abs().sum()) < 1e-6


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_both_reverse_chains_of_a_kernel_that_redraws_reach_the_data(eta: float) -> None:
    chain = dirichlet(3, 2)
    process = Jump(uniform_kernel(3), FLOW)
    law = chain.reversed_law(process, eta=eta, noise=0.5, start=0.9, tolerance=1e-8)
    assert total_variation(law, chain.p) < 1e-5
    assert float((law - chain.law_at(process, 1e-6)).abs().sum()) < 1e-6
    believed = chain.posterior(process)

    def hasty(x_t: Tensor, t: Any, cond: Any = None) -> Categorical:
        return Categorical((1.5 * believed(x_t, t).logp).log_softmax(-1))

    off = chain.reversed_law(process, hasty, eta=eta, start=0.9, tolerance=1e-6)
    assert total_variation(off, chain.p) > 0.02  # only the exact belief does


def test_discrete_flow_on_staircases() -> None:
    chain = staircase(10)
    assert len(chain.support[0]) == 11
    process = Jump(absorbing(3), FLOW)
    n = 300
    x1 = process.prior(torch.zeros(n, 10, dtype=torch.int64)).draw(sf.Stream(0))
    x = sf.sample(chain.posterior(process), process, sf.samplers.get("ddpm"), grid(1000), x1, rng=1)
    seen = chain.counts(x)[chain.p.flatten() > 0]
    # two undecided sites that appear within one step of 1e-3 may disagree: 1.2 samples in 1000
    assert float(seen.sum()) >= 0.99 * n
    assert chisquare(seen.numpy()).pvalue > 1e-3
    # one site at a time all are valid
    x = sf.sample(chain.posterior(process), process, sf.samplers.get("first-hitting"), grid(1), x1, rng=2)
    seen = chain.counts(x)[chain.p.flatten() > 0]
    assert float(seen.sum()) == n
    assert chisquare(seen.numpy()).pvalue > 1e-3
