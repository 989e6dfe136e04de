"""Campbell et al. 2024's staircases: how many samples of short steps are valid, exactly.

Given what is shown, the undecided sites of a staircase are a gap of ``m`` sites between the last one and the first
zero, and ``m + 1`` completions are equally likely.  Sites that appear within one step are drawn independently, so two
of them may contradict each other; the chance that none ever do follows by recursion over ``m``.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch

import sfumato as sf
from sfumato.oracles import staircase
from sfumato.processes import Jump, absorbing

PROCESS = Jump(absorbing(3), sf.schedules.get("flow"))


def transitions(m: int) -> dict[tuple[int, int], float]:
    """By ``(r, rest)``: the chance that ``r`` sites of a gap of ``m`` agree and leave ``rest``, over all choices."""
    ones = [0.0] + [(m + 1 - site) / (m + 1) for site in range(1, m + 1)]
    found: dict[tuple[int, int], float] = {}
    for r in range(m + 1):
        for shown in combinations(range(1, m + 1), r):
            borders = [0, *shown, m + 1]
            for j in range(r + 1):  # the first j that appear are ones, the others zeros
                chance = math.prod(ones[s] for s in shown[:j]) * math.prod(1 - ones[s] for s in shown[j:])
                key = r, borders[j + 1] - borders[j] - 1
                found[key] = found.get(key, 0.0) + chance
    return found


def valid(length: int, times: list[float]) -> float:
    """The exact share of valid staircases that ancestral sampling along ``times`` writes."""
    table = {m: transitions(m) for m in range(length + 1)}
    later = [1.0] + [0.0] * length  # after the last step every gap is closed
    for t, s in reversed(list(pairwise(times))):
        u = (t - s) / t
        weight = [[u**r * (1 - u) ** (m - r) for r in range(m + 1)] for m in range(length + 1)]
        later = [sum(weight[m][r] * p * later[rest] for (r, rest), p in table[m].items()) for m in range(length + 1)]
    return later[length]


def grid(steps: int) -> list[float]:
    return [1 - k / steps for k in range(steps)] + [0.0]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_recursion_is_the_enumerated_law(steps: int) -> None:
    chain = staircase(4)
    law = chain.output(PROCESS, torch.tensor(grid(steps), dtype=torch.float64))
    share = float(law[:2, :2, :2, :2][chain.p > 0].sum())
    assert share == pytest.approx(valid(4, grid(steps)), abs=1e-12)
    assert share < 1


def test_ten_sites_at_steps_of_a_thousandth() -> None:
    """CHECKS: the published toy counts all of them valid; 1.2 in 1000 are not, and halving the step halves them."""
    short, half = valid(10, grid(1000)), valid(10, grid(2000))
    assert short == pytest.approx(0.998831, abs=1e-6)
    assert (1 - short) / (1 - half) == pytest.approx(2, abs=0.01)


def test_samples_are_valid_as_often() -> None:
    chain, n, steps = staircase(10), 3000, 40
    x1 = PROCESS.prior(torch.zeros(n, 10, dtype=torch.int64)).draw(sf.Stream(0))
    times = torch.tensor(grid(steps), dtype=torch.float64)
    x = sf.sample(chain.posterior(PROCESS), PROCESS, sf.samplers.get("ddpm"), times, x1, rng=1)
    share, exact = float(chain.counts(x)[chain.p.flatten() > 0].sum()) / n, valid(10, grid(steps))
    assert 0.95 < exact < 0.98
    assert abs(share - exact) < 4.5 * math.sqrt(exact * (1 - exact) / n)
