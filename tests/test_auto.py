"""The rule behind ``auto``: pure, documented, and as good as it says on mixtures it was not made on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.oracles.problems import scattered, three_modes, unequal
from sfumato.samplers.adams import Adams
from sfumato.samplers.auto import STAIRS, choose
from sfumato.testing import check_order, check_order_at_ends, check_same_path

LIKE = torch.zeros(1, 2, dtype=torch.float64)


def process_of(name: str) -> Any:
    return sf.processes.Gaussian(sf.schedules.get(name))


def error(oracle: Any, process: Any, sampler: Any, grid: Any, x1: Any, truth: Any) -> float:
    x = sf.sample(oracle.denoiser(process), process, sampler, grid, x1)
    return float((x - truth).norm(dim=1).mean() / truth.norm(dim=1).square().mean().sqrt())


def test_every_choice_takes_exactly_the_evaluations_asked_for() -> None:
    oracle = three_modes()
    for schedule, n, guidance in itertools.product(
        ("linear", "karras", "flow"), (1, 2, 3, 5, 9, 10, 20), (0.0, 1.0, 4.0)
    ):
        process = process_of(schedule)
        choice = choose(process.schedule, n, guidance)
        calls = 0

        def model(x: Any, t: Any, cond: Any = None, process: Any = process) -> Any:
            nonlocal calls
            calls += 1
            return oracle.denoiser(process)(x, t, cond)

        x1 = process.prior(LIKE.repeat(4, 1)).draw(sf.Stream(0))
        x = sf.sample(model, process, choice.build(), choice.times(), x1)
        assert calls == n
        assert bool(torch.isfinite(x).all())


def test_the_stairs_are_those_of_the_page() -> None:
    schedule = sf.schedules.get("flow")
    asked = {
        (1, 1.0): (1, 2), (4, 1.0): (1, 2), (5, 1.0): (2, 3), (9, 1.0): (2, 3), (10, 1.0): (3, 4), (11, 1.0): (4, 4),
        (13, 1.0): (4, 4), (5, 2.0): (1, 2), (6, 2.0): (2, 3), (12, 4.0): (2, 3), (15, 4.0): (3, 4), (20, 4.0): (4, 4),
        (6, 7.5): (1, 0), (8, 7.5): (1, 2), (15, 7.5): (2, 3), (20, 7.5): (3, 4), (40, 0.0): (4, 4),
    }  # fmt: skip
    for (n, guidance), counts in asked.items():
        settings = choose(schedule, n, guidance).settings
        assert (settings["predictor"], settings["corrector"]) == counts, (n, guidance)
    assert STAIRS[-1][:2] == (0.0, 0.0), "the last stair holds everywhere"


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_evaluations_are_refused_in_one_line(n: Any) -> None:
    with pytest.raises((sf.Refusal, TypeError), match="evaluations"):
        choose(sf.schedules.get("flow"), n)


def test_guidance_is_refused_in_one_line() -> None:
    with pytest.raises(sf.Refusal, match="guidance=nan: needs a finite weight"):
        choose(sf.schedules.get("flow"), 10, float("nan"))


@pytest.mark.parametrize("make", [three_modes, unequal])
def test_the_rule_beats_the_usual_choices(make: Any) -> None:
    """At most half the error of DPM-Solver++(2M) and of DDIM on each of their usual grids."""
    oracle, process = make(), process_of("linear")
    x1 = process.prior(torch.zeros(64, *oracle.shape, dtype=torch.float64)).draw(sf.Stream(3))
    truth = oracle.flow(process, x1, 1.0, 0.0)
    for n in (6, 10, 20):
        choice = choose(process.schedule, n)
        own = error(oracle, process, choice.build(), choice.times(), x1, truth)
        for name, grid in itertools.product(("dpmpp-2m", "ddim"), ("karras", "uniform", "uniform-logsnr")):
            times = sf.grids.get(grid)(process.schedule, n)
            other = error(oracle, process, sf.samplers.get(name), times, x1, truth)
            assert own < 0.5 * other, (n, name, grid, own, other)


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (2, 0), (1, 2), (2, 3)])
def test_adams_has_its_order(predictor: int, corrector: int) -> None:
    sampler = Adams(predictor, corrector)
    check_order(sampler, process_of("linear"), three_modes())
    # no end is special on the straight path
    whole = check_order_at_ends(sampler, process_of("flow"), three_modes())
    assert abs(whole - (corrector or predictor)) < 0.1


def test_adams_of_one_velocity_is_ddim() -> None:
    for schedule in ("linear", "karras", "flow"):
        process = process_of(schedule)
        grid = sf.grids.get("shifted")(process.schedule, 9)
        check_same_path(Adams(1, 0), sf.samplers.get("ddim"), process, three_modes(), LIKE, grid, 1e-9)


def test_adams_of_last_steps_alone_is_ddim_up_and_down() -> None:
    """Where every step is one of the last, the predictor has one velocity, whatever it remembers."""
    process = process_of("linear")
    model, grid = three_modes().denoiser(process), sf.grids.get("shifted")(process.schedule, 3)
    check_same_path(Adams(3, 0, 3), sf.samplers.get("ddim"), process, three_modes(), LIKE, grid, 1e-9)
    data = three_modes().sample(8, sf.Stream(1))
    risen = [sf.samplers.invert(model, process, s, grid, data) for s in (Adams(3, 0, 3), sf.samplers.get("ddim"))]
    assert torch.allclose(*risen, rtol=0, atol=1e-9)
    longer = sf.grids.get("shifted")(process.schedule, 4)
    x1 = process.prior(LIKE).draw(sf.Stream(0))
    ends = [sf.sample(model, process, Adams(3, 0, k), longer, x1) for k in (0, 2, 3)]
    assert len({round(float(x.sum()), 9) for x in ends}) == 3


@pytest.mark.parametrize(("predictor", "corrector"), [(2, 3), (3, 4), (2, 0)])
def test_a_last_step_of_first_order_leaves_two(predictor: int, corrector: int) -> None:
    sampler = Adams(predictor, corrector, 1)
    assert sampler.order == 2
    whole = check_order_at_ends(sampler, process_of("flow"), three_modes())
    assert abs(whole - 2) < 0.1


@pytest.mark.parametrize("schedule", ["linear", "karras", "flow"])
def test_low_order_at_the_end_pays_on_six_steps_in_many_dimensions(schedule: str) -> None:
    process, oracle = process_of(schedule), unequal()
    x1 = process.prior(torch.zeros(64, 64, dtype=torch.float64)).draw(sf.Stream(3))
    truth = oracle.flow(process, x1, 1.0, 0.0)
    grid, model = sf.grids.shifted(process.schedule, 6, 4.0, 2.0), oracle.denoiser(process)
    ends = [sf.sample(model, process, Adams(2, 3, k), grid, x1) for k in (0, 3)]
    plain, eased = (float((x - truth).norm(dim=1).median()) for x in ends)  # some start ends in another mode by either
    assert eased < 0.75 * plain, (plain, eased)


def test_adams_depends_on_the_path_not_on_the_schedule() -> None:
    """The same levels on two schedules are the same walk, rescaled."""
    oracle, ends = three_modes(), []
    for schedule in ("linear", "karras"):
        process = process_of(schedule)
        levels = torch.tensor([3.0, 1.5, 0.8, 0.3, 0.1], dtype=torch.float64)
        grid = [*sf.schedules.time_at(process.schedule, -2 * levels.log()).tolist(), 0.0]
        alpha, sigma = sf.schedules.at(process.schedule, grid[0])
        z = sf.Stream(4).normal((8, 2)).double()
        ends.append(sf.sample(oracle.denoiser(process), process, Adams(), grid, z * (alpha + sigma)))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-8


def test_adams_refuses_more_than_it_remembers() -> None:
    with pytest.raises(sf.Refusal, match="corrector=4 needs more velocities than predictor=2 remembers; use at most 3"):
        Adams(2, 4)
    with pytest.raises(sf.Refusal, match="predictor=7"):
        Adams(7)


def test_shifted_grid() -> None:
    flow = sf.schedules.get("flow")
    even = sf.grids.get("shifted")(flow, 8, shift=1.0, rho=1.0)
    assert torch.allclose(even, sf.grids.uniform(flow, 8), atol=1e-12)
    moved = sf.grids.get("shifted")(flow, 8, shift=3.0, rho=1.0)
    tau = sf.grids.uniform(flow, 8)
    assert torch.allclose(moved, 3 * tau / (1 + 2 * tau), atol=1e-12)
    with pytest.raises(sf.Refusal, match="both must be positive"):
        sf.grids.get("shifted")(flow, 8, shift=0.0)


def test_problems_are_of_unit_scale_and_fixed() -> None:
    for oracle in (three_modes(), unequal(), scattered([0.5, 0.5], 5, 1.0, (0.1, 0.2), seed=1)):
        deviation = float(oracle.sample(4000, 0).std(0).mean())
        assert 0.5 < deviation < 2.0
    assert torch.equal(unequal().means, unequal().means)
    spread = torch.linalg.eigvalsh(unequal().covariance(process_of("karras"), torch.zeros(1, 64).double(), 0.05))
    assert float(spread.max()) > 0
