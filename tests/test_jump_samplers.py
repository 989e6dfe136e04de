"""The samplers of tokens on languages small enough to enumerate: their laws, their costs, their use of randomness.

A step of independent sites is a transition matrix between all states, so that the law of n steps is a product of
matrices, and a distance from the data's law is a number without noise.  What couples sites is drawn from, and compared
by chi-square.
"""

from __future__ import annotations

import itertools
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import chi2

import sfumato as sf
from sfumato.guidance import tempered
from sfumato.laws import Categorical
from sfumato.processes import Blocks, Jump, absorbing, discretised_gaussian, marginal, uniform
from sfumato.samplers.jump import poisson, stationary_rates

V, L = 3, 3
CHAIN = sf.oracles.dirichlet(V, L)
TABLE = CHAIN.p
FLOW = sf.schedules.get("flow")
MASKED = Jump(absorbing(V + 1), FLOW)
PROCESSES = {
    "absorbing": MASKED,
    "absorbing-cosine": Jump(absorbing(V + 1), sf.schedules.get("cosine-continuous")),
    "uniform": Jump(uniform(V), FLOW),
    "marginal": Jump(marginal(torch.tensor([0.2, 0.3, 0.5])), FLOW),
    "gaussian": Jump(discretised_gaussian(V, 0.5), FLOW),
}
LAWFUL = ["ddpm", "tau-leaping", "discrete-euler", "discrete-euler:noise=1"]
#: Samplers whose law tends to the data's on a process that masks.
CONVERGENT = [*LAWFUL, "ddpm-cache", "first-hitting", "confidence:by=entropy", "confidence:by=margin:count=drawn"]


def states(size: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(size), repeat=L)))


def step_law(sampler: Any, process: Jump | Blocks, q: Any, x: torch.Tensor, t: float, s: float) -> Any:
    """The law of one step: the bridge of the ancestral sampler, the stated one of the others."""
    own = getattr(sampler, "law", None)
    return process.bridge(x, q, t, s) if own is None or s == 0 else own(q, process, x, t, s)


def matrix(law: Categorical, x: torch.Tensor) -> torch.Tensor:
    """The transition matrix between all states ``x`` [n, L] of a law of independent sites."""
    p = law.logp.exp()
    return torch.stack([p[:, i][:, x[:, i]] for i in range(x.shape[1])]).prod(0)


def prior(process: Jump | Blocks, x: torch.Tensor) -> torch.Tensor:
    return process.kernel.limit[x].prod(1)


def output(sampler: Any, process: Jump, n: int) -> torch.Tensor:
    """The exact law of the sampler's n uniform steps over all states, from the process's prior."""
    x = states(process.kernel.size)
    p = prior(process, x)
    posterior = CHAIN.posterior(process)
    for t, s in pairwise(sf.grids.uniform(FLOW, n).tolist()):
        p = p @ matrix(step_law(sampler, process, posterior(x, t), x, t, s), x)
    return p


def data_law(process: Jump) -> torch.Tensor:
    x = states(process.kernel.size)
    inside = (x < V).all(1)
    return torch.where(inside, TABLE[tuple(x.clamp(max=V - 1).T)], 0.0)


def tv(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p - q).abs().sum()) / 2


def draws(sampler: Any, process: Jump, grid: Any, n: int = 8000, seed: int = 0, model: Any = None) -> torch.Tensor:
    x1 = process.prior(torch.zeros(n, L, dtype=torch.int64)).draw(sf.Stream(seed))
    return sf.sample(model or CHAIN.posterior(process), process, sampler, grid, x1, rng=sf.Stream(seed + 1))


def follows(x: torch.Tensor, law: torch.Tensor, size: int = V) -> float:
    """The chance of a chi-square as large as that of the draws ``x`` [n, L] against a law over all states."""
    law = law.reshape(-1)
    seen = torch.bincount((x * size ** torch.arange(L - 1, -1, -1)).sum(1), minlength=size**L).double()
    known = law > 0
    assert float(seen[~known].sum()) == 0, "a state of chance 0 was drawn"
    expected = law[known] * len(x)
    statistic = float(((seen[known] - expected) ** 2 / expected).sum())
    return float(chi2.sf(statistic, int(known.sum()) - 1))


def marginal_law(process: Jump, t: float) -> torch.Tensor:
    """The exact law of ``x_t`` over all states."""
    x = states(process.kernel.size)
    law = process.marginal(states(V), t).logp.exp()
    return TABLE.reshape(-1) @ torch.stack([law[:, i][:, x[:, i]] for i in range(L)]).prod(0)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.calls, self.times = denoiser, 0, []

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        self.times.append(t)
        return self.denoiser(x_t, t, cond)


# ---- laws of independent sites, exactly --------------------------------------------------------------------------


def test_the_ancestral_law_of_n_steps() -> None:
    """CHECKS, MDLM: total variation after n steps from the all-masked state."""
    expected = {1: 0.380111, 2: 0.211278, 4: 0.111191, 8: 0.056983, 16: 0.028839, 32: 0.014506, 64: 0.007275}
    ddpm = sf.samplers.get("ddpm")
    for n, value in expected.items():
        assert tv(output(ddpm, MASKED, n), data_law(MASKED)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", ["absorbing", "uniform", "marginal", "gaussian"])
@pytest.mark.parametrize("text", LAWFUL)
def test_the_error_is_of_first_order(text: str, name: str) -> None:
    sampler, process = sf.samplers.build(text), PROCESSES[name]
    target = data_law(process)
    few, many = (tv(output(sampler, process, n), target) for n in (100, 200))
    assert many < 0.05, (few, many)
    assert few / many == pytest.approx(2, abs=0.15), (few, many)


@pytest.mark.parametrize(("size", "exact"), [(1, True), (2, False), (4, False)])
def test_blocks_are_of_first_order_within_and_exact_token_by_token(size: int, exact: bool) -> None:
    chain, process = sf.oracles.dirichlet(V, 4), Blocks(MASKED, size)
    x = torch.tensor(list(itertools.product(range(V + 1), repeat=4)))
    posterior, ddpm = chain.posterior(process), sf.samplers.get("ddpm")
    inside = (x < V).all(1)
    target = torch.where(inside, chain.p[tuple(x.clamp(max=V - 1).T)], 0.0)

    def error(n: int) -> float:
        p = prior(process, x)
        for t, s in pairwise(sf.grids.uniform(FLOW, n).tolist()):
            p = p @ matrix(step_law(ddpm, process, posterior(x, t), x, t, s), x)
        return tv(p, target)

    if exact:
        assert error(4) < 1e-12
        return
    few, many = error(100), error(200)
    assert 1e-4 < many < 0.05, (few, many)
    assert few / many == pytest.approx(2, abs=0.15), (few, many)


def test_euler_without_noise_is_ancestral_where_tokens_are_masked() -> None:
    for name in ("absorbing", "absorbing-cosine"):
        process = PROCESSES[name]
        a, b = (output(sf.samplers.get(sampler), process, 5) for sampler in ("ddpm", "discrete-euler"))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["absorbing", "uniform", "marginal", "gaussian"])
@pytest.mark.parametrize(("text", "eta", "noise"), [("tau-leaping", 1.0, 0.0), ("discrete-euler:noise=5", 0.0, 5.0)])
def test_a_short_step_has_the_rates(text: str, eta: float, noise: float, name: str) -> None:
    """The step's law is ``1 + (t - s) R`` to first order, and these rates carry the marginals backwards."""
    sampler, process = sf.samplers.build(text), PROCESSES[name]
    x = states(process.kernel.size)
    q, t, h = CHAIN.posterior(process)(x, 0.6), 0.6, 1e-6
    law = sampler.law(q, process, x, t, t - h).logp.exp()
    off = torch.nn.functional.one_hot(x, process.kernel.size) == 0
    rates = process.reverse_rates(q, x, t, eta, noise)
    torch.testing.assert_close(law[off] / h, rates[off], rtol=1e-4, atol=1e-6)
    p, p_before = (marginal_law(process, time) for time in (t, t - h))
    moved = p @ matrix(sampler.law(q, process, x, t, t - h), x)
    assert tv(moved, p_before) < 1e-9 < tv(p, p_before)


@pytest.mark.parametrize("name", ["absorbing", "uniform", "marginal", "gaussian"])
def test_corrections_leave_the_marginal_alone(name: str) -> None:
    """The generator of independent sites maps the exact ``p_t`` to 0."""
    process, t = PROCESSES[name], 0.4
    x = states(process.kernel.size)
    rates = stationary_rates(CHAIN.posterior(process)(x, t), process, x, t)
    p = marginal_law(process, t)
    flow = torch.zeros_like(p)
    for i, y in itertools.product(range(L), range(process.kernel.size)):
        target = x.clone()
        target[:, i] = y
        index = (target * process.kernel.size ** torch.arange(L - 1, -1, -1)).sum(1)
        moved = p * rates[:, i, y] * (x[:, i] != y)
        flow = flow.index_add(0, index, moved) - moved
    assert float(rates.max()) > 0.1
    assert float(flow.abs().max()) < 1e-15


def test_the_chance_of_one_jump_and_no_other() -> None:
    """``m exp(-M)``: two jumps or more of a site are rejected, at any rate."""
    process = PROCESSES["uniform"]
    q = Categorical(torch.tensor([[[0.2, 0.3, 0.5]]], dtype=torch.float64).log())
    x = torch.tensor([[0]])
    law = sf.samplers.get("tau-leaping").law(q, process, x, 0.5, 0.1)
    means = 0.4 * process.reverse_rates(q, x, 0.5)[0, 0]
    total = float(means.sum())
    assert law.logp.exp()[0, 0].tolist() == pytest.approx(
        [1 - total * math.exp(-total), *(means[1:] * math.exp(-total)).tolist()], abs=1e-12
    )
    assert torch.equal(sf.samplers.get("tau-leaping").law(q, process, x, 1.0, 0.1).point(), x)


# ---- draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", LAWFUL)
@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_draws_follow_the_enumerated_law(text: str, name: str) -> None:
    sampler, process = sf.samplers.build(text), PROCESSES[name]
    x = draws(sampler, process, sf.grids.uniform(FLOW, 4))
    assert follows(x, output(sampler, process, 4), process.kernel.size) > 1e-3


def test_corrections_are_taken() -> None:
    """One leap stays at the prior; corrections at its end bring its law to the marginal there."""
    process, grid = PROCESSES["uniform"], torch.tensor([1.0, 0.4], dtype=torch.float64)
    model, sampler = Counted(CHAIN.posterior(process)), sf.samplers.get("tau-leaping", corrections=80, size=0.1)
    target = marginal_law(process, 0.4)

    def distance(x: torch.Tensor) -> float:
        seen = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27).double() / len(x)
        return tv(seen, target)

    plain = distance(draws(sf.samplers.get("tau-leaping"), process, grid, n=4000))
    mended = distance(draws(sampler, process, grid, n=4000, model=model))
    assert mended < 0.07 < 0.15 < plain
    assert model.calls == sampler.evaluations == 81


def test_poisson_numbers() -> None:
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for mean in (0.01, 1.0, 30.0):
        count = poisson(torch.full_like(u, mean), u).double()
        assert float(count.mean()) == pytest.approx(mean, rel=1e-3)
        assert float(count.var()) == pytest.approx(mean, rel=1e-2)
    with pytest.raises(sf.Refusal, match="expects 1000 jumps of one site in one step; use more steps"):
        poisson(torch.tensor([1000.0]), torch.tensor([0.5]))


def test_jumps_of_ordered_tokens_add_up() -> None:
    """Grey levels: sums of jumps reach the data's law, and the mean of a step is the sum of rates times distances."""
    kernel = discretised_gaussian(9, 0.2)
    process = Jump(kernel, sf.schedules.get("linear"))
    p = torch.tensor([0, 4, 3, 0, 0, 0, 1, 2, 0], dtype=torch.float64) / 10
    model = sf.oracles.EnumerableChain(p).posterior(process)
    sampler = sf.samplers.get("tau-leaping", several="sum")
    x1 = process.prior(torch.zeros(4000, 1, dtype=torch.int64)).draw(sf.Stream(0))
    x = sf.sample(model, process, sampler, sf.grids.uniform(FLOW, 100), x1, rng=sf.Stream(1))
    seen = torch.bincount(x[:, 0], minlength=9).double() / 4000
    assert tv(seen, p) < 0.05
    x = torch.full((20_000, 1), 4)
    q = model(x, 0.5)
    moved, _ = sampler.step(lambda *_: q, process, x, 0.5, 0.499, None, sf.Stream(2))
    rates = process.reverse_rates(q, x, 0.5)[0, 0]
    drift = 0.001 * float((rates * (torch.arange(9) - 4)).sum())
    spread = math.sqrt(0.001 * float((rates * (torch.arange(9) - 4) ** 2).sum()) / 20_000)
    assert float(moved.double().mean()) - 4 == pytest.approx(drift, abs=4.5 * spread)
    with pytest.raises(sf.Refusal, match="several=sum: the rates are infinite at t=1"):
        sf.trajectory(model, PROCESSES["uniform"], sampler, [1.0, 0.0], x)


# ---- the cached and the exact sampler ----------------------------------------------------------------------------


def test_the_cache_changes_no_sample() -> None:
    grid = sf.grids.uniform(FLOW, 40)
    plain, cached = Counted(CHAIN.posterior(MASKED)), Counted(CHAIN.posterior(MASKED))
    for seed in range(3):
        a = draws(sf.samplers.get("ddpm"), MASKED, grid, n=2, seed=seed, model=plain)
        b = draws(sf.samplers.get("ddpm-cache"), MASKED, grid, n=2, seed=seed, model=cached)
        assert torch.equal(a, b)
    assert plain.calls == 120
    assert 3 * 2 <= cached.calls <= 3 * (2 * L + 2)  # a call a change of any token, and one to compare


def test_the_cache_refuses_a_network_that_reads_the_time() -> None:
    exact = CHAIN.posterior(MASKED)

    def warmer(x: Any, t: Any, cond: Any = None) -> Any:
        return tempered(1 + 0.1 * float(t))(exact(x, t))

    with pytest.raises(sf.Refusal, match=r"ddpm-cache: at t=.* the network reads the time; use 'ddpm'"):
        draws(sf.samplers.get("ddpm-cache"), MASKED, sf.grids.uniform(FLOW, 40), n=1, model=warmer)


@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.6, 0.1, 0.0]])
@pytest.mark.parametrize("name", ["absorbing", "absorbing-cosine"])
def test_first_hitting_is_exact(name: str, times: list[float]) -> None:
    process = PROCESSES[name]
    x = draws(sf.samplers.get("first-hitting"), process, times)
    assert follows(x, TABLE) > 1e-3


def test_first_hitting_costs_one_evaluation_a_token() -> None:
    for at_once, calls in ((1, 3), (2, 2), (3, 1)):
        model = Counted(CHAIN.posterior(MASKED))
        x = draws(sf.samplers.get("first-hitting", at_once=at_once), MASKED, [1.0, 0.0], n=100, model=model)
        assert model.calls == calls
        assert int(x.max()) < V
    # all tokens on one belief: the law of one ancestral step
    x = draws(sf.samplers.get("first-hitting", at_once=L), MASKED, [1.0, 0.0])
    assert follows(x, output(sf.samplers.get("ddpm"), MASKED, 1), V + 1) > 1e-3


@pytest.mark.parametrize("name", ["absorbing", "absorbing-cosine"])
def test_first_hitting_shows_tokens_when_the_process_does(name: str) -> None:
    process = PROCESSES[name]
    times = [1.0, 0.7, 0.2, 0.0]
    model = Counted(CHAIN.posterior(process))
    x1 = process.prior(torch.zeros(6000, L, dtype=torch.int64)).draw(sf.Stream(0))
    walk = list(sf.trajectory(model, process, sf.samplers.get("first-hitting"), times, x1, rng=sf.Stream(1)))
    for t, x in zip(times[1:3], walk[1:3], strict=True):
        masked, chance = (x == V).double().mean(0), 1 - process.signal(t)  # at every place alike
        assert masked.tolist() == pytest.approx([chance] * L, abs=4.5 * math.sqrt(chance * (1 - chance) / 6000))
    assert all(bool(((t >= 0) & (t <= 1)).all()) for t in model.times)
    # the first of three hits: E[1 - alpha] = 3/4
    first = 1 - process.signal(model.times[0])
    hit = (walk[1] < V).any(1)
    assert float(first[hit].mean()) > 0.75 > float(first[hit].min())


STAIRS = torch.tensor([[1] * ones + [0] * (10 - ones) for ones in range(11)])


def by_counting(x: Any, t: Any, cond: Any = None) -> Categorical:
    """The exact belief on the staircase language: the sequences that agree with what is shown, equally likely."""
    agree = ((x[:, None] == STAIRS) | (x[:, None] == 2)).all(-1).double()
    ones = (agree @ STAIRS.double() / agree.sum(1, keepdim=True)).nan_to_num(0.5)
    shown = torch.nn.functional.one_hot(x, 3).double()
    belief = torch.stack([1 - ones, ones, 0 * ones], -1)
    return Categorical(torch.where((x < 2)[..., None], shown, belief).log())


@pytest.mark.parametrize(
    ("text", "n", "least"),
    [("discrete-euler", 1000, 0.97), ("discrete-euler:noise=10", 300, 0.9), ("first-hitting", 1, 1.0)],
)
def test_the_staircase_language(text: str, n: int, least: float) -> None:
    """CHECKS, discrete flow matching: eleven sequences ``1^k 0^(10-k)``, all drawn alike (Campbell et al. 2024)."""
    process = Jump(absorbing(3), FLOW)
    x1 = process.prior(torch.zeros(300, 10, dtype=torch.int64)).draw(sf.Stream(0))
    x = sf.sample(by_counting, process, sf.samplers.build(text), sf.grids.uniform(FLOW, n), x1, rng=1)
    seen = (x[:, None] == STAIRS).all(-1).double().sum(0)
    valid = float(seen.sum())
    assert valid >= least * 300, valid
    statistic = float(((seen - valid / 11) ** 2).sum() / (valid / 11))
    assert float(chi2.sf(statistic, 10)) > 1e-3, seen


# ---- every sampler -----------------------------------------------------------------------------------------------


def on_every_process() -> list[Any]:
    """Every sampler of tokens with every process it fits."""
    masking = [t for t in CONVERGENT if t not in LAWFUL] + ["confidence", "first-hitting:at_once=2"]
    general = [*LAWFUL, "tau-leaping:corrections=1"]
    pairs = [(text, name) for text in general for name in PROCESSES]
    pairs += [(text, name) for text in masking for name in ("absorbing", "absorbing-cosine")]
    return [pytest.param(*pair, id="-".join(pair)) for pair in pairs]


@pytest.mark.parametrize(("text", "name"), on_every_process())
def test_ends_and_membership(text: str, name: str) -> None:
    """Laws 11 and 2: any number of steps ends in data without a mask; every state is a member."""
    sampler, process = sf.samplers.build(text), PROCESSES[name]
    model = CHAIN.posterior(process)
    for n in (1, 2, 3, 5, 10, 50):
        x1 = process.prior(torch.zeros(16, L, dtype=torch.int64)).draw(sf.Stream(n))
        before = x1.clone()
        walk = list(sf.trajectory(model, process, sampler, sf.grids.uniform(FLOW, n), x1, rng=sf.Stream(0)))
        assert len(walk) == n + 1
        assert all(process.space.contains(x) and x.shape == x1.shape for x in walk)
        assert int(walk[-1].max()) < V
        assert torch.equal(x1, before)


@pytest.mark.parametrize(("text", "name"), on_every_process())
def test_streams(text: str, name: str) -> None:
    """Law 12: a sample is the same alone, in any batch and in any order; one object serves twice."""
    sampler, process = sf.samplers.build(text), PROCESSES[name]
    model, grid = CHAIN.posterior(process), sf.grids.uniform(FLOW, 7)

    def run(seeds: list[int]) -> torch.Tensor:
        rng = sf.Streams(seeds)
        x1 = process.prior(torch.zeros(len(seeds), L, dtype=torch.int64)).draw(rng)
        return sf.sample(model, process, sampler, grid, x1, rng=rng)

    seeds = list(range(12))
    together = run(seeds)
    assert torch.equal(run(seeds), together)
    assert torch.equal(run(seeds[::-1]).flip(0), together)
    assert all(torch.equal(run([k])[0], together[k]) for k in seeds)
    assert len({tuple(x) for x in together.tolist()}) > 3


@pytest.mark.parametrize("text", CONVERGENT)
def test_recovery(text: str) -> None:
    """Law 4: with the exact belief and many steps the draws follow the data's law."""
    x = draws(sf.samplers.build(text), MASKED, sf.grids.uniform(FLOW, 150), n=2000)
    assert follows(x, TABLE) > 1e-3


def test_refusals() -> None:
    model, x1 = CHAIN.posterior(MASKED), torch.full((1, L), V)
    gaussian = sf.processes.Gaussian(FLOW)
    for name in ("tau-leaping", "discrete-euler"):
        with pytest.raises(
            sf.Refusal, match="steps the rates of a Jump process, not of Gaussian; use 'ddpm' or 'ddim'"
        ):
            sf.trajectory(model, gaussian, sf.samplers.get(name), [1.0, 0.0], x1)
    way = [[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]  # to the mask by way of another token
    detour = Jump(sf.processes.RateMatrix(way), FLOW)
    for name in ("confidence", "first-hitting", "ddpm-cache"):
        for process, message in (
            (gaussian, "shows masked tokens, and Gaussian has none; use 'ddpm' or 'ddim'"),
            (PROCESSES["uniform"], "and this Jump process masks none at once; use 'ddpm' or 'discrete-euler'"),
            (detour, "and this Jump process masks none at once; use 'ddpm' or 'discrete-euler'"),
            (sf.processes.Blocks(MASKED, 1), "shows the masks of a Jump process, not those of Blocks; use 'ddpm'"),
        ):
            with pytest.raises(sf.Refusal, match=message):
                sf.trajectory(model, process, sf.samplers.get(name), [1.0, 0.0], x1)
    for name in sf.samplers.TOKENS:
        with pytest.raises(sf.Refusal, match="rng is None; pass rng="):
            sf.sample(model, MASKED, sf.samplers.get(name), [1.0, 0.5], x1)
    for text, message in {
        "tau-leaping:several=all": "TauLeaping: several='all'; known: reject, sum",
        "tau-leaping:corrections=-1": "corrections=-1, size=0.1: needs 0 or more, of a positive size",
        "discrete-euler:noise=-1": "noise=-1.0: the rate of added jumps",
        "confidence:by=luck": "by='luck'",
        "confidence:count=all": "count='all'",
        "confidence:temperature=-1": "temperature=-1.0: needs 0",
        "confidence:top_p=0": "top_p=0.0: the mass of the nucleus",
        "confidence:noise=-1": "noise=-1.0: the scale of the Gumbel noise",
        "first-hitting:at_once=0": "at_once=0: at least one token",
    }.items():
        with pytest.raises(sf.Refusal, match=message):
            sf.samplers.build(text)
    with pytest.raises(sf.Refusal, match="tempered needs a belief over tokens"):
        tempered()(sf.laws.Dirac(x1))
