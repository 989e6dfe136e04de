"""Schedulers of diffusers under our laws, through the adapters of ``sfumato.testing``."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch

import sfumato as sf
from sfumato.oracles.problems import three_modes
from sfumato.testing import check_driver, check_order, check_schedule, check_streams
from sfumato.testing.adapters import GivenTimes, OwnTimes, diffusers_schedule, kind_of, model_output, visits

pytestmark = pytest.mark.filterwarnings("ignore")

LIKE = torch.zeros(1, 2, dtype=torch.float64)
MIXTURE = three_modes()
LINEAR = sf.processes.Gaussian(sf.schedules.get("linear"))


def levels_kept(name: str, **settings: Any) -> Any:
    return getattr(diffusers, name)(**settings)


def test_their_tables_are_schedules_of_ours() -> None:
    for name, settings in (
        ("DDPMScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}),
        ("EDMEulerScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {}),
    ):
        check_schedule(diffusers_schedule(levels_kept(name, **settings)))
    theirs = diffusers_schedule(levels_kept("DDIMScheduler"))
    ours = LINEAR.schedule
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    assert torch.allclose(theirs(t)[1], ours(t)[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "order"),
    [
        ("DEISMultistepScheduler", {"solver_order": 2, "lower_order_final": False}, 2),
        ("UniPCMultistepScheduler", {"solver_order": 2, "lower_order_final": False}, 3),
        ("EulerDiscreteScheduler", {}, 1),
    ],
)
def test_their_order_is_measured_on_our_levels(name: str, settings: Any, order: int) -> None:
    check_order(GivenTimes(levels_kept(name, **settings), order), LINEAR, MIXTURE)


def test_a_boast_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"measured 1\.0\d inside, declared 2"):
        check_order(GivenTimes(levels_kept("EulerDiscreteScheduler"), 2), LINEAR, MIXTURE)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("EulerDiscreteScheduler", "euler"), ("UniPCMultistepScheduler", "unipc:p=2")]
)
def test_given_the_same_levels_they_walk_as_we_do(theirs: str, ours: str) -> None:
    settings = {} if theirs.startswith("Euler") else {"solver_order": 2, "lower_order_final": False}
    grid = sf.grids.get("karras")(LINEAR.schedule, 12, sigma_max=50.0)[:-1]
    x = LINEAR.marginal(MIXTURE.sample(16, 0), float(grid[0])).draw(sf.Stream(1))
    ends = [
        sf.sample(MIXTURE.denoiser(LINEAR), LINEAR, sampler, grid, x)
        for sampler in (GivenTimes(levels_kept(theirs, **settings), 1), sf.samplers.build(ours))
    ]
    assert float((ends[0] - ends[1]).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_black_boxes_keep_the_laws_of_drivers(name: str) -> None:
    known = {"clip_sample": False} if name == "DDIMScheduler" else {}
    sampler = OwnTimes(levels_kept(name, **known), None if "Ancestral" in name else 1)
    check_driver(sampler, LINEAR, MIXTURE, LIKE)
    if sampler.order is not None:
        check_streams(sampler, LINEAR, MIXTURE, LIKE)


def test_a_scheduler_that_computes_its_own_next_time_refuses_ours() -> None:
    with pytest.raises(sf.Refusal, match="DDIMScheduler computes its next time itself"):
        sf.sample(MIXTURE.denoiser(LINEAR), LINEAR, GivenTimes(levels_kept("DDIMScheduler"), 1), [1.0, 0.5, 0.0], LIKE)


def test_a_scheduler_of_tokens_is_refused() -> None:
    with pytest.raises(sf.Refusal, match="AmusedScheduler is not among the"):
        kind_of(diffusers.AmusedScheduler(mask_token_id=3))


def test_alpha_0_is_refused_where_the_table_holds_sigma_over_alpha() -> None:
    flow = sf.processes.Gaussian(sf.schedules.get("flow"))
    with pytest.raises(sf.Refusal, match="infinite at t=1; start where alpha > 0"):
        sf.sample(MIXTURE.denoiser(flow), flow, GivenTimes(levels_kept("EulerDiscreteScheduler"), 1), [1.0, 0.0], LIKE)


def test_every_prediction_type_is_one_belief() -> None:
    ends = []
    for kind in ("epsilon", "sample", "v_prediction"):
        sampler = OwnTimes(levels_kept("DDIMScheduler", clip_sample=False, prediction_type=kind), 1)
        x1 = LINEAR.prior(LIKE.repeat(8, 1)).draw(sf.Stream(0))
        ends.append(sf.sample(MIXTURE.denoiser(LINEAR), LINEAR, sampler, sf.grids.uniform(LINEAR.schedule, 10), x1))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-4
    assert float((ends[0] - ends[2]).abs().max()) < 1e-4
    with pytest.raises(sf.Refusal, match="prediction_type='noise'"):
        model_output(levels_kept("EulerDiscreteScheduler", prediction_type="noise"), LIKE, LIKE, 1.0)


@pytest.mark.parametrize(("steps", "factor"), [(10, 0.374128), (50, 0.472439), (100, 0.485981)])
def test_a_pipeline_of_ddim_shrinks_a_gaussian_as_computed(steps: int, factor: float) -> None:
    """On N(0, 1/4) DDIM with leading times multiplies the noise by a known number."""
    oracle = sf.oracles.Gaussian([0.0], [0.25])
    sampler = OwnTimes(levels_kept("DDIMScheduler", clip_sample=False), 1)
    noise = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    x1 = noise * sf.schedules.at(LINEAR.schedule, 1.0)[1]
    x = sf.sample(oracle.denoiser(LINEAR), LINEAR, sampler, sf.grids.uniform(LINEAR.schedule, steps), x1)
    assert float((x / noise - factor).abs().max()) < 2e-6


def test_visits_measure_where_a_state_really_ends() -> None:
    seen = visits(levels_kept("DDIMScheduler", clip_sample=False), 10)
    assert len(seen) == 10
    assert [v.timestep for v in seen] == [900.0 - 100 * k for k in range(10)]
    a, s = seen[-1].reached
    assert abs(a - 1) < 1e-6
    assert abs(s) < 1e-6
    # without the last table value set to one the walk stops at the first training level, short of the data
    short = visits(levels_kept("DDIMScheduler", clip_sample=False, set_alpha_to_one=False), 10)
    assert abs(short[-1].reached[1] - math.sqrt(1e-4)) < 1e-5
    # and the evaluations of trailing start from the prior
    trailing = visits(levels_kept("DDIMScheduler", clip_sample=False, timestep_spacing="trailing"), 10)
    assert trailing[0].timestep == 999.0
