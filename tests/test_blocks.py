"""Blocks from left to right: the same laws as any process, autoregression and masked diffusion as its two ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.denoisers.tokens import Subs, TokenDenoiser
from sfumato.laws import Categorical, Dirac
from sfumato.processes.blocks import Blocks
from sfumato.processes.jump import Jump
from sfumato.processes.kernels import RateMatrix, absorbing, uniform
from sfumato.testing.processes import check_belief_bridge, check_bridge, check_markov, check_rate
from sfumato.training.text import BlockBound, BlockNelbo, BlockNet

LENGTH, TOKENS = 4, 3
MASK = TOKENS


def blocks(size: int, schedule: str = "flow") -> Blocks:
    return Blocks(Jump(absorbing(TOKENS + 1), sf.schedules.get(schedule)), size)


def table() -> Tensor:
    """The probability of every text ``[3, 3, 3, 3]``: correlated, none impossible."""
    logits = torch.randn((TOKENS,) * LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.softmax(1.5 * logits.flatten(), 0).reshape(logits.shape)


class Exact:
    """The exact belief given the tokens shown: marginals of the conditional law, site by site."""

    def __init__(self, p: Tensor) -> None:
        self.p = p
        self.texts = torch.tensor(list(itertools.product(range(TOKENS), repeat=LENGTH)))

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Categorical:
        shown = x_t != MASK
        agree = ((self.texts[None] == x_t[:, None]) | ~shown[:, None]).all(-1)
        weight = self.p.flatten() * agree
        weight = weight / weight.sum(1, keepdim=True)
        onehot = torch.nn.functional.one_hot(self.texts, TOKENS + 1).double()
        return Categorical(torch.einsum("bn,nlk->blk", weight, onehot).log())


def sampled_law(process: Blocks, steps: int, n: int = 40_000) -> Tensor:
    """Frequencies of all texts among ancestral samples of the exact belief."""
    like = torch.zeros((n, LENGTH), dtype=torch.int64)
    grid = sf.grids.uniform(sf.schedules.get("flow"), steps)
    x = sf.sample(Exact(table()), process, sf.samplers.get("ddpm"), grid, process.prior(like).draw(sf.Stream(1)), rng=2)
    index = (x * torch.tensor([27, 9, 3, 1])).sum(1)
    return torch.bincount(index, minlength=81).double() / n


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("schedule", ["flow", "cosine-continuous"])
def test_blocks_keep_the_laws_of_a_process(size: int, schedule: str) -> None:
    process = blocks(size, schedule)
    clean = torch.tensor([[0, 1, 2, 1]]).expand(20_000, -1)
    wrong = torch.log_softmax(torch.tensor([0.2, 1.0, -0.5, -math.inf], dtype=torch.float64), 0)

    def believe(x0: Tensor) -> Categorical:
        return Categorical(wrong.expand(*x0.shape, -1))

    for t, s in ((0.7003, 0.3002), (0.35, 0.0701), (1.0, 0.55)):
        check_bridge(process, clean, t, s, sf.Stream(0))
        check_markov(process, clean, t, s, sf.Stream(1))
        check_belief_bridge(process, clean, believe, t, s, sf.Stream(2))
    check_rate(process, clean[:8], believe, sf.Stream(3))


def test_blocks_appear_from_left_to_right() -> None:
    process, x0 = blocks(2), torch.tensor([[0, 1, 2, 1]])
    assert torch.equal(process.marginal(x0, 0.5).point(), torch.tensor([[0, 1, MASK, MASK]]))
    assert torch.equal(process.marginal(x0, 1.0).point(), torch.full((1, 4), MASK))
    assert [process.active(4, t) for t in (1.0, 0.75, 0.5, 0.25, 0.0)] == [0, 0, 1, 1, 1]
    moved = process.bridge(torch.tensor([[0, MASK, MASK, MASK]]), Dirac(x0), 0.7, 0.5).point()
    assert torch.equal(moved, torch.tensor([[0, 1, MASK, MASK]]))


def test_blocks_of_one_token_are_an_exact_autoregressive_model() -> None:
    """As many steps as tokens: the law itself, where masked diffusion of so few steps is far off."""
    exact = table().flatten()
    one = float((sampled_law(blocks(1), LENGTH) - exact).abs().sum() / 2)
    whole = float((sampled_law(blocks(LENGTH), LENGTH) - exact).abs().sum() / 2)
    assert one < 0.02 < 0.05 < whole


def test_one_block_is_the_inner_process() -> None:
    process, x0 = blocks(LENGTH), torch.tensor([[0, 1, 2, 1]])
    x_t = process.marginal(x0, 0.6).draw(sf.Stream(0))
    q = Exact(table())(x_t, 0.6)
    for own, inner in (
        (process.bridge(x_t, q, 0.6, 0.2), process.inner.bridge(x_t, q, 0.6, 0.2)),
        (process.marginal(x0, 0.3), process.inner.marginal(x0, 0.3)),
    ):
        assert torch.allclose(own.logp.exp(), inner.logp.exp(), atol=1e-12)
    rate = process.rate(q, x0, x_t, 0.6)
    assert torch.allclose(rate, process.inner.rate(q, x0, x_t, 0.6))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_bound_of_exact_beliefs_is_the_entropy(size: int) -> None:
    """Law 7: the integral of the rate, over texts drawn from the law, is its entropy for every size of blocks."""
    process, p = blocks(size), table()
    exact, entropy = Exact(p), float(-(p * p.log()).sum())
    n, draws = 4000, 16
    index = torch.multinomial(p.flatten(), n, replacement=True, generator=torch.Generator().manual_seed(3))
    x0, rng = exact.texts[index], sf.Stream(4)
    offset, parts = rng.uniform((n,)).double(), []
    for k in range(draws):
        t = ((offset + k) / draws).clamp(min=1e-6)
        x_t = process.marginal(x0, t).draw(rng)
        parts.append(process.rate(exact(x_t, t), x0, x_t, t))
    bound = torch.stack(parts).mean(0)
    assert abs(float(bound.mean()) - entropy) < 4.5 * float(bound.std()) / math.sqrt(n)


# ------------------------------------------------------------------------------- the estimate of block diffusion


def visible(noisy: Tensor, clean: Tensor, first: int, size: int) -> Tensor:
    """What the block that begins at place ``first`` sees: clean blocks before it, itself, and masks."""
    later = torch.full((len(noisy), LENGTH - first - size), MASK)
    return torch.cat([clean[:, :first], noisy[:, first : first + size], later], 1)


class Leaning:
    """A network whose belief leans, unevenly, on every token that it sees; it is wrong."""

    def __init__(self, size: int) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(7)
        self.weight = torch.randn(LENGTH, LENGTH, TOKENS + 1, TOKENS + 1, generator=generator, dtype=torch.float64)

    def logits(self, x: Tensor) -> Tensor:
        """``[b, L, K]``."""
        sites = range(LENGTH)
        return torch.stack([torch.stack([self.weight[i, j][x[:, j]] for j in sites]).sum(0) for i in sites], 1)

    def blocks(self, noisy: Tensor, clean: Tensor, t: Any, cond: Any) -> Tensor:
        """As of the transformer: all blocks in one call, here one by one."""
        size, ends = self.size, range(0, noisy.shape[1], self.size)
        return torch.cat([self.logits(visible(noisy, clean, k, size))[:, k : k + size] for k in ends], 1)


class Knowing(Leaning):
    """The exact belief in the same place."""

    def logits(self, x: Tensor) -> Tensor:
        return Exact(table())(x, 0.5).logp.clamp(min=-1e4)


def enumerated(net: Leaning) -> Tensor:
    """The bound of every text ``[81]`` over all sets of masks of a block of ``n`` places: of ``m`` masks it weighs the
    integral of ``t^(m - 1) (1 - t)^(n - m)``, which is ``(m - 1)! (n - m)! / n!``."""
    texts, n = torch.tensor(list(itertools.product(range(TOKENS), repeat=LENGTH))), net.size
    total = torch.zeros(len(texts), dtype=torch.float64)
    for first in range(0, LENGTH, n):
        for count in range(1, n + 1):
            weight = math.factorial(count - 1) * math.factorial(n - count) / math.factorial(n)
            for places in itertools.combinations(range(first, first + n), count):
                noisy = texts.clone()
                noisy[:, places] = MASK
                logp = net.blocks(noisy, texts, None, None)[..., :TOKENS].log_softmax(-1)
                total -= weight * logp.gather(-1, texts[..., None])[:, places, 0].sum(1)
    return total


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("belief", [Leaning, Knowing])
def test_the_estimate_of_blocks_is_the_enumerated_bound(belief: type[Leaning], size: int) -> None:
    """Of a wrong belief, text by text; of the exact one it is ``-log p`` of every text, in any order of places."""
    process, net, chain = blocks(size), belief(size), sf.oracles.EnumerableChain(table())
    denoiser = TokenDenoiser(BlockNet(net, process), Subs(process))
    bound = enumerated(net)
    if belief is Knowing:
        assert torch.allclose(bound, -chain.p.flatten().log(), atol=1e-9)
    else:
        assert float((chain.p.flatten() * bound).sum()) > chain.entropy + 1
    # a chain of n steps costs more than the limit, by what it shows at once
    elbo = chain.elbo(denoiser, process, sf.grids.uniform(sf.schedules.get("flow"), 32)).total
    assert torch.allclose(elbo, bound, rtol=0.1)
    rng, n = sf.Stream(5), 5000
    x0 = chain.sample(n, rng)
    exact = bound[(x0 * torch.tensor([27, 9, 3, 1])).sum(1)]
    once = BlockBound()(denoiser, x0, rng.uniform((n,)), None, rng) * LENGTH
    for found, spread in ((BlockNelbo(draws=8)(denoiser, x0, rng), 0.02), (once, 0.04)):
        gap = found - exact
        error = float(gap.std()) / math.sqrt(n)
        assert error < spread * float(exact.mean())
        assert abs(float(gap.mean())) < 4.5 * error


def test_blocks_that_stand_still_have_no_rate() -> None:
    """While the last block is destroyed, what is believed of the first does not matter."""
    process, x0 = blocks(2), torch.tensor([[0, 1, 2, 1]])
    x_t = torch.tensor([[0, 1, MASK, 1]])
    sure = Categorical(torch.nn.functional.one_hot(x0, TOKENS + 1).double().log())
    assert float(process.rate(sure, x0, x_t, 0.25)[0]) == pytest.approx(0.0, abs=1e-9)
    # all mask at the boundary between the two: only the first block's tokens count on the later side
    hidden = torch.full_like(x0, MASK)
    even = Categorical(torch.tensor([1.0, 1.0, 1.0, 0.0]).double().log().log_softmax(-1).expand(1, 4, -1))
    assert float(process.rate(even, x0, hidden, 0.75)[0]) == pytest.approx(2 * 2 * math.log(3) / 0.5, rel=1e-6)


def test_what_is_no_whole_number_of_blocks_is_refused() -> None:
    with pytest.raises(sf.Refusal, match="divisor"):
        blocks(3).marginal(torch.zeros((1, 4), dtype=torch.int64), 0.5)
    with pytest.raises(sf.Refusal, match="at least 1"):
        blocks(0)
    with pytest.raises(sf.Refusal, match="absorbing"):
        Blocks(Jump(uniform(4), sf.schedules.get("flow")), 2)


def test_masks_that_are_reached_by_way_of_other_tokens_are_refused() -> None:
    rates = RateMatrix([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    assert rates.mask == 2
    with pytest.raises(
        sf.Refusal, match=r"which RateMatrix\(size=3\) does not go to at once; use absorbing"
    ) as refused:
        Blocks(Jump(rates, sf.schedules.get("flow")), 2)
    assert "\n" not in str(refused.value)
