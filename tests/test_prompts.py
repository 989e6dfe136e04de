"""Prompts and infilling: given tokens come back unchanged from every sampler, and the rest follows their condition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chi2

import sfumato as sf
from sfumato.guidance import Given, Infilled, Mapped, Prompted, cfg, prompt, tempered
from sfumato.laws import Categorical
from sfumato.processes import Jump, absorbing, marginal, uniform

V, L = 3, 3
CHAIN = sf.oracles.dirichlet(V, L)
FLOW = sf.schedules.get("flow")
PROCESSES = {
    "absorbing": Jump(absorbing(V + 1), FLOW),
    "uniform": Jump(uniform(V), FLOW),
    "marginal": Jump(marginal(torch.tensor([0.2, 0.3, 0.5])), FLOW),
}
MASKED = PROCESSES["absorbing"]
#: Token 2 in the middle, with the law of the two others given it.
MIDDLE = Given(torch.tensor([0, 2, 0]), torch.tensor([False, True, False]))
CONDITIONAL = CHAIN.p[:, 2] / CHAIN.p[:, 2].sum()
PLAIN = CHAIN.p.sum(1)
GENERAL = ["ddpm", "tau-leaping", "tau-leaping:corrections=1", "discrete-euler", "discrete-euler:noise=5"]
MASKING = ["ddpm-cache", "first-hitting", "confidence", "confidence:by=entropy", "confidence:by=random:count=drawn"]
EVERYWHERE = [(text, name) for text in GENERAL for name in PROCESSES] + [(text, "absorbing") for text in MASKING]


def start(process: Jump, n: int, seed: int = 0) -> torch.Tensor:
    return process.prior(torch.zeros(n, L, dtype=torch.int64)).draw(sf.Stream(seed))


class Watched:
    """A denoiser that remembers the states it was asked about."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.states = denoiser, []

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
        self.states.append(x_t)
        return self.denoiser(x_t, t, cond)


@pytest.mark.parametrize(("text", "name"), EVERYWHERE)
def test_given_tokens_come_back(text: str, name: str) -> None:
    process = PROCESSES[name]
    model, grid = Watched(CHAIN.posterior(process)), sf.grids.uniform(FLOW, 6)
    sampler = Prompted(sf.samplers.build(text), MIDDLE)
    walk = list(sf.trajectory(model, process, sampler, grid, start(process, 40), rng=sf.Stream(1)))
    assert all(bool((x[:, 1] == 2).all()) for x in [*walk[1:], *model.states])
    assert process.space.contains(walk[-1])
    assert len({tuple(x) for x in walk[-1].tolist()}) > 3
    assert int(walk[-1].max()) < V
    # as a denoiser alone it ends in the same tokens
    x = sf.sample(Infilled(model, MIDDLE), process, sf.samplers.build(text), grid, start(process, 40), rng=1)
    assert bool((x[:, 1] == 2).all())


@pytest.mark.parametrize("wrapper", ["sampler", "denoiser"])
@pytest.mark.parametrize("text", ["ddpm", "ddpm-cache", "discrete-euler:noise=1", "first-hitting", "tau-leaping"])
def test_the_rest_follows_the_conditional_law(text: str, wrapper: str) -> None:
    """CHECKS: ``p(x | given)`` of the enumerable language, by chi-square on the pairs of free tokens."""
    sampler, model, n = sf.samplers.build(text), CHAIN.posterior(MASKED), 2000
    grid = [1.0, 0.0] if text == "first-hitting" else sf.grids.uniform(FLOW, 150)
    walk = (model, Prompted(sampler, MIDDLE)) if wrapper == "sampler" else (Infilled(model, MIDDLE), sampler)
    x = sf.sample(walk[0], MASKED, walk[1], grid, start(MASKED, n), rng=1)
    seen = torch.bincount(x[:, 0] * V + x[:, 2], minlength=V * V).double()
    expected = CONDITIONAL.flatten() * n
    assert float(chi2.sf(float(((seen - expected) ** 2 / expected).sum()), V * V - 1)) > 1e-3
    plain = PLAIN.flatten() * n
    assert float(chi2.sf(float(((seen - plain) ** 2 / plain).sum()), V * V - 1)) < 1e-6, "the test sees no condition"


def test_kernels_that_redraw_follow_it_approximately() -> None:
    """Given tokens pass for noisy ones: .17 from the conditional law, where samples without them are .40 from it."""
    process, n = PROCESSES["uniform"], 4000
    sampler, grid = Prompted(sf.samplers.get("ddpm"), MIDDLE), sf.grids.uniform(FLOW, 60)
    x = sf.sample(CHAIN.posterior(process), process, sampler, grid, start(process, n), rng=1)
    seen = torch.bincount(x[:, 0] * V + x[:, 2], minlength=V * V).double() / n
    reached, unconditioned = (float((law - CONDITIONAL.flatten()).abs().sum()) / 2 for law in (seen, PLAIN.flatten()))
    assert reached == pytest.approx(0.170, abs=0.03)
    assert reached < 0.5 * unconditioned


def test_only_free_tokens_are_counted() -> None:
    model = Watched(CHAIN.posterior(MASKED))
    sf.sample(model, MASKED, Prompted(sf.samplers.get("first-hitting"), MIDDLE), [1.0, 0.0], start(MASKED, 20), rng=1)
    assert len(model.states) == 2
    sampler = Prompted(sf.samplers.get("confidence"), prompt([1], L))
    grid = sf.grids.uniform(FLOW, 2)
    walk = list(sf.trajectory(model, MASKED, sampler, grid, start(MASKED, 20), rng=sf.Stream(1)))
    assert (walk[1] == V).sum(1).tolist() == [1] * 20
    assert bool((walk[2][:, 0] == 1).all())


def test_an_empty_prompt_changes_nothing_and_a_full_one_is_the_sample() -> None:
    model, grid = CHAIN.posterior(MASKED), sf.grids.uniform(FLOW, 5)
    for text in [*GENERAL, *MASKING]:
        sampler, x1 = sf.samplers.build(text), start(MASKED, 30)
        plain = sf.sample(model, MASKED, sampler, grid, x1, rng=1)
        empty = Prompted(sampler, prompt(torch.zeros(0, dtype=torch.int64), L))
        assert torch.equal(sf.sample(model, MASKED, empty, grid, x1, rng=1), plain)
        full = Prompted(sampler, prompt([2, 0, 1], L))
        assert sf.sample(model, MASKED, full, grid, x1, rng=1).tolist() == [[2, 0, 1]] * 30


def test_every_sample_may_have_its_own_tokens() -> None:
    tokens = torch.tensor([[0, 2, 1], [1, 1, 1], [2, 0, 0]])
    known = torch.tensor([[True, False, True], [False, False, False], [False, True, True]])
    sampler = Prompted(sf.samplers.get("ddpm"), Given(tokens, known))
    x = sf.sample(CHAIN.posterior(MASKED), MASKED, sampler, sf.grids.uniform(FLOW, 5), start(MASKED, 3), rng=1)
    assert bool((x == tokens)[known].all())


@pytest.mark.parametrize("text", ["ddpm", "first-hitting", "confidence:noise=1"])
def test_streams(text: str) -> None:
    """Law 12: one prompt for all; a sample is the same alone and in any batch."""
    sampler, model = Prompted(sf.samplers.build(text), MIDDLE), CHAIN.posterior(MASKED)

    def run(seeds: list[int]) -> torch.Tensor:
        rng = sf.Streams(seeds)
        x1 = MASKED.prior(torch.zeros(len(seeds), L, dtype=torch.int64)).draw(rng)
        return sf.sample(model, MASKED, sampler, sf.grids.uniform(FLOW, 5), x1, rng=rng)

    together = run(list(range(8)))
    assert all(torch.equal(run([k])[0], together[k]) for k in range(8))


def test_with_guidance_and_temperature() -> None:
    """Outside guidance, which doubles the batch, one prompt a sample fits, too; temperature keeps it certain."""

    def labelled(x: Any, t: Any, cond: Any) -> Any:
        exact = CHAIN.posterior(MASKED)(x, t)
        return Categorical(torch.where((cond["label"] == 1)[:, None, None], tempered(0.5)(exact).logp, exact.logp))

    guided = cfg(labelled, lambda cond: {"label": torch.zeros_like(cond["label"])}, 2.0)
    given = Given(torch.tensor([[0, 2, 0]] * 10), MIDDLE.known.expand(10, 3))
    model = Mapped(Infilled(guided, given), tempered(0.7, 0.9))
    cond = {"label": torch.ones(10, dtype=torch.int64)}
    x = sf.sample(
        model, MASKED, sf.samplers.get("ddpm"), sf.grids.uniform(FLOW, 5), start(MASKED, 10), cond=cond, rng=1
    )
    assert bool((x[:, 1] == 2).all())
    inside = cfg(Infilled(labelled, given), lambda cond: {"label": torch.zeros_like(cond["label"])}, 2.0)
    with pytest.raises(sf.Refusal, match="inside guidance: for all samples alike"):
        inside(start(MASKED, 10), 0.5, cond)
    alike = cfg(Infilled(labelled, MIDDLE), lambda cond: {"label": torch.zeros_like(cond["label"])}, 2.0)
    torch.testing.assert_close(alike(x, 0.5, cond).logp.exp(), Infilled(guided, given)(x, 0.5, cond).logp.exp())


def test_a_token_that_the_network_forbids_is_given_all_the_same() -> None:
    forbidding = Categorical(torch.tensor([[[0.5, 0.5, 0.0, 0.0]] * 3], dtype=torch.float64).log())
    q = Infilled(lambda *_: forbidding, MIDDLE)(torch.full((1, 3), V), 0.5)
    assert q.logp.exp()[0].tolist() == [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0]]


def test_refusals() -> None:
    model, x1 = CHAIN.posterior(MASKED), start(MASKED, 2)
    ddpm = sf.samplers.get("ddpm")
    with pytest.raises(sf.Refusal, match="a prompt of 4 tokens for 3 places"):
        prompt([0, 1, 2, 0], L)
    with pytest.raises(sf.Refusal, match="needs integers and booleans"):
        Given(torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(sf.Refusal, match="needs integers and booleans"):
        Given(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(sf.Refusal, match=r"given tokens of shape \(3,\) but known of \(2,\)"):
        Given(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(sf.Refusal, match="a given token is -1; tokens are 0 or more"):
        prompt([-1], L)
    beyond = prompt([7], L)
    with pytest.raises(sf.Refusal, match=r"beyond the vocabulary 0\.\.3"):
        beyond.belief(model(x1, 0.5))
    for tokens, message in {
        (0, 7, 0): r"a given token lies beyond the vocabulary 0\.\.3",
        (0, 3, 0): "the mask, token 3, is among the given ones",
        (0, 2, 0, 0): r"given tokens of shape \(4,\) for samples of \(3,\)",
    }.items():
        given = Given(torch.tensor(tokens), torch.arange(len(tokens)) == 1)
        with pytest.raises(sf.Refusal, match=message):
            sf.sample(model, MASKED, Prompted(ddpm, given), [1.0, 0.0], x1, rng=1)

    class Map:
        takes, order, evaluations = "map", None, 1

        def start(self, model: Any, process: Any, grid: list[float]) -> Any:
            return None

        def step(self, *arguments: Any) -> Any:
            return arguments

    with pytest.raises(sf.Refusal, match="a prompt needs a sampler of beliefs; Map samples maps"):
        Prompted(Map(), MIDDLE).start(model, MASKED, [1.0, 0.0])
    gaussian = sf.oracles.Gaussian([0.0, 0.0, 0.0], 1.0)
    process = sf.processes.Gaussian(FLOW)
    with pytest.raises(sf.Refusal, match="needs a belief over tokens"):
        sf.sample(gaussian.denoiser(process), process, Prompted(ddpm, MIDDLE), [1.0, 0.0], torch.zeros(2, 3), rng=1)
