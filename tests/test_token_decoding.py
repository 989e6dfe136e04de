"""Which tokens, in which order: decoding by confidence, temperature, top-p and guidance change no count of masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import chi2

import sfumato as sf
from sfumato.guidance import Mapped, cfg, tempered
from sfumato.laws import Categorical
from sfumato.processes import Jump, absorbing
from sfumato.samplers.jump_masked import best

V, L = 3, 3
CHAIN = sf.oracles.dirichlet(V, L)
FLOW = sf.schedules.get("flow")
MASKED = Jump(absorbing(V + 1), FLOW)
#: Samplers of a process that masks.
MASKING = ["ddpm", "tau-leaping", "discrete-euler:noise=1", "ddpm-cache", "first-hitting", "confidence"]


def draws(sampler: Any, process: Jump, n_steps: int, n: int = 8000) -> torch.Tensor:
    x1 = process.prior(torch.zeros(n, L, dtype=torch.int64)).draw(sf.Stream(0))
    grid = sf.grids.uniform(FLOW, n_steps)
    return sf.sample(CHAIN.posterior(process), process, sampler, grid, x1, rng=sf.Stream(1))


def follows(x: torch.Tensor, law: torch.Tensor) -> float:
    """The chance of a chi-square as large as that of the draws ``x`` [n, L] against a law of the language's words."""
    expected = law[(slice(V),) * L].flatten() * len(x)
    seen = CHAIN.counts(x)
    assert float(seen.sum()) == len(x), "a mask is left"
    return float(chi2.sf(float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1))


@pytest.mark.parametrize("by", ["entropy", "margin", "random"])
def test_one_token_a_step_is_exact_where_the_order_looks_at_shown_tokens_alone(by: str) -> None:
    x = draws(sf.samplers.get("confidence", by=by), MASKED, L)
    assert follows(x, CHAIN.p) > 1e-3


def test_random_order_with_drawn_counts_is_ancestral() -> None:
    sampler = sf.samplers.get("confidence", by="random", count="drawn")
    for process in (MASKED, Jump(absorbing(V + 1), sf.schedules.get("cosine-continuous"))):
        x = draws(sampler, process, 2)
        assert follows(x, CHAIN.output(process, sf.grids.uniform(FLOW, 2))) > 1e-3


def test_confidence_favours_likely_sequences() -> None:
    """An order that looks at the drawn tokens is biased to the likely: its samples cost less nats than the data."""
    x = draws(sf.samplers.get("confidence"), MASKED, L)
    nll = -CHAIN.p[tuple(x.T)].log()
    entropy = float(-(CHAIN.p * CHAIN.p.log()).sum())
    error = float(nll.std()) / math.sqrt(len(x))
    assert float(nll.mean()) < entropy - 10 * error
    assert follows(x, CHAIN.p) < 1e-3


def random_language(k: int = 6) -> Callable[..., Categorical]:
    """A denoiser of 16 sites whose belief depends on what is shown; token k is the mask."""
    weights = sf.Stream(3).normal((k + 1, k)).double()

    def denoiser(x: Any, t: Any, cond: Any = None) -> Categorical:
        near = weights[x.roll(1, -1)] + 0.5 * weights[x.roll(-1, -1)]
        logp = torch.cat([near.log_softmax(-1), torch.full((*x.shape, 1), -math.inf, dtype=torch.float64)], -1)
        shown = torch.nn.functional.one_hot(x, k + 1).double().log()
        return Categorical(torch.where((x < k)[..., None], shown, logp))

    return denoiser


WIDE = Jump(absorbing(7), sf.schedules.get("cosine-continuous"))


def wide_walk(sampler: Any, model: Any, n: int = 12, batch: int = 64) -> list[torch.Tensor]:
    x1 = WIDE.prior(torch.zeros(batch, 16, dtype=torch.int64)).draw(sf.Stream(0))
    return list(sf.trajectory(model, WIDE, sampler, sf.grids.uniform(FLOW, n), x1, rng=sf.Streams(range(batch))))


@pytest.mark.parametrize("by", ["confidence", "entropy", "margin", "random"])
@pytest.mark.parametrize("count", ["drawn", "expected"])
def test_temperature_and_top_p_never_change_the_number_of_masks(by: str, count: str) -> None:
    model = random_language()
    walks = [
        wide_walk(sf.samplers.get("confidence", by=by, count=count, temperature=temperature, top_p=top_p), model)
        for temperature, top_p in ((1.0, 1.0), (0.3, 1.0), (0.0, 1.0), (1.0, 0.5), (2.0, 0.9))
    ]
    for other in walks[1:]:
        assert [(x == 6).sum(1).tolist() for x in other] == [(x == 6).sum(1).tolist() for x in walks[0]]
    ends = [walk[-1] for walk in walks]
    assert not torch.equal(ends[0], ends[1]), "the temperature changed no token at all"
    assert not torch.equal(ends[0], ends[3]), "top_p changed no token at all"


@pytest.mark.parametrize("settings", [(0.5, 1.0), (0.0, 1.0), (1.0, 0.4)])
@pytest.mark.parametrize("name", ["ddpm", "discrete-euler", "tau-leaping", "ddpm-cache"])
def test_tempered_beliefs_unmask_the_same_sites(name: str, settings: tuple[float, float]) -> None:
    """The same uniform numbers show the same sites at the same steps, whatever the temperature."""
    model, sampler = random_language(), sf.samplers.get(name)
    plain, sharp = wide_walk(sampler, model), wide_walk(sampler, Mapped(model, tempered(*settings)))
    for x, y in zip(plain, sharp, strict=True):
        assert torch.equal(x == 6, y == 6)
    assert not torch.equal(plain[-1], sharp[-1])


def test_drawn_counts_are_the_process_s() -> None:
    """Each masked site is shown with chance ``(alpha_s - alpha_t) / (1 - alpha_t)``: binomial counts at every step."""
    walk = wide_walk(sf.samplers.get("confidence", count="drawn"), random_language(), n=4, batch=2000)
    for t, x in zip((0.75, 0.5, 0.25), walk[1:], strict=False):
        chance, count = 1 - WIDE.signal(t), (x == 6).sum(1).double()
        assert float(count.mean()) == pytest.approx(16 * chance, abs=4.5 * math.sqrt(16 * chance * (1 - chance) / 2000))
        assert float(count.var()) == pytest.approx(16 * chance * (1 - chance), rel=0.2)


def test_expected_counts_are_the_schedule_s() -> None:
    walk = wide_walk(sf.samplers.get("confidence"), random_language(), n=8)
    for k, x in enumerate(walk):
        assert (x == 6).sum(1).tolist() == [round(16 * (1 - WIDE.signal(1 - k / 8)))] * 64
    # from a start that shows some tokens already the rest follows the same schedule
    x1 = torch.full((5, 16), 6)
    x1[:, :8] = 2
    walk = list(
        sf.trajectory(random_language(), WIDE, sf.samplers.get("confidence"), sf.grids.uniform(FLOW, 4), x1, rng=0)
    )
    assert [int((x == 6).sum(1)[0]) for x in walk] == [round(8 * (1 - WIDE.signal(1 - k / 4))) for k in range(5)]
    # and from a time below 1
    times = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    walk = list(sf.trajectory(random_language(), WIDE, sf.samplers.get("confidence"), times, x1, rng=0))
    quarter = round(8 * (1 - WIDE.signal(0.25)) / (1 - WIDE.signal(0.5)))
    assert [int((x == 6).sum(1)[0]) for x in walk] == [8, quarter, 0]


def test_greedy_decoding_shows_the_surest_token_first() -> None:
    """By hand: of three masked sites the one whose belief is surest is shown, with its likeliest token."""
    process = Jump(absorbing(3), FLOW)
    p = torch.tensor([[[0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0]]], dtype=torch.float64)
    x = torch.full((1, 3), 2)
    for by in ("confidence", "entropy", "margin"):
        sampler = sf.samplers.get("confidence", by=by, temperature=0.0)
        moved, _ = sampler.step(lambda *_: Categorical(p.log()), process, x, 1.0, 2 / 3, None, sf.Stream(0))
        assert moved.tolist() == [[2, 1, 2]]


def test_noise_in_the_choice_is_gumbel_s() -> None:
    """With noise of scale 1 at ``1 - alpha_s``= 1/2, site i is first with chance ``p_i^2 / sum p^2``."""
    process = Jump(absorbing(3), FLOW)
    p = torch.tensor([0.9, 0.6, 0.75], dtype=torch.float64)
    q = Categorical(torch.stack([p, 1 - p, 0 * p], -1).log().expand(20_000, 3, 3))
    x = torch.full((20_000, 3), 2)
    sampler = sf.samplers.get("confidence", temperature=0.0, noise=1.0)
    moved, _ = sampler.step(lambda *_: q, process, x, 0.75, 0.5, None, sf.Stream(0))
    shown = (moved < 2).double()
    assert shown.sum(1).tolist() == [1.0] * 20_000
    chance = p**2 / (p**2).sum()
    error = (chance * (1 - chance) / 20_000).sqrt()
    assert bool(((shown.mean(0) - chance).abs() < 4.5 * error).all()), shown.mean(0)


def test_best_never_chooses_outside() -> None:
    scores = torch.tensor([[3.0, -math.inf, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    among = torch.tensor([[False, True, True, False], [True, True, True, True]])
    assert best(scores, among, torch.tensor([3, 2])).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]


def test_tempered_beliefs() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    q = Categorical(p.log()[None])

    def after(*settings: float) -> list[list[float]]:
        return tempered(*settings)(q).logp.exp()[0].tolist()

    carried = [0.0, 0.0, 1.0, 0.0]
    assert after(1.0, 1.0) == [pytest.approx(p[0].tolist()), carried]
    assert after(0.5) == [pytest.approx([0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38, 0.0]), carried]
    assert after(0.0) == [[1.0, 0.0, 0.0, 0.0], carried]
    assert after(1.0, 0.5) == [[1.0, 0.0, 0.0, 0.0], carried]
    assert after(1.0, 0.51) == [pytest.approx([0.625, 0.375, 0.0, 0.0]), carried]
    assert after(1.0, 0.01) == [[1.0, 0.0, 0.0, 0.0], carried]
    assert after(0.5, 0.7) == [pytest.approx([0.25 / 0.34, 0.09 / 0.34, 0.0, 0.0]), carried]


def test_guidance_on_tokens() -> None:
    """``log p = (1 - w) log p(x|null) + w log p(x|label)``; forbidden and carried-over tokens stay as they are."""
    exact = CHAIN.posterior(MASKED)

    def labelled(x: Any, t: Any, cond: Any) -> Any:  # label k: the language at temperature 1, 1/2; 2 is the null label
        hot = exact(x, t)
        sharp = tempered(0.5)(hot)
        return Categorical(torch.where((cond["label"] == 1)[:, None, None], sharp.logp, hot.logp))

    rows = []

    def watched(x: Any, t: Any, cond: Any = None) -> Any:
        rows.append(len(x))
        return labelled(x, t, cond)

    guided = cfg(watched, lambda cond: {"label": torch.full_like(cond["label"], 2)}, 3.0)
    x = torch.tensor([[3, 3, 3], [0, 3, 2], [1, 2, 0]])
    q = guided(x, 0.5, {"label": torch.tensor([1, 1, 1])})
    assert rows == [6]
    # weights -2 and 3 of exponents 1 and 2: p^(-2 + 6) = p^4
    torch.testing.assert_close(q.logp.exp(), tempered(0.25)(exact(x, 0.5)).logp.exp())
    assert torch.equal(q.logp.exp()[2], torch.nn.functional.one_hot(x[2], 4).double())
    assert float(q.logp[..., 3].max()) == -math.inf
    grid = sf.grids.uniform(FLOW, 6)
    for text in MASKING:
        x1 = MASKED.prior(torch.zeros(50, L, dtype=torch.int64)).draw(sf.Stream(0))
        cond = {"label": torch.ones(50, dtype=torch.int64)}
        ends = sf.sample(guided, MASKED, sf.samplers.build(text), grid, x1, cond=cond, rng=1)
        assert int(ends.max()) < V, text
