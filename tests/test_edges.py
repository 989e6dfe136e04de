"""Edges that the laws do not reach: batches of times, shared variances, several conditions, small alpha."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.errors import Refusal
from sfumato.guidance import cfg, interval
from sfumato.laws import Categorical, Dirac, Normal
from sfumato.randomness import Stream, as_rng
from sfumato.training.objectives import objective

SCHEDULES = [sf.schedules.get(name) for name in sf.schedules.names()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=sf.schedules.names())
def test_a_batch_of_steps_is_the_steps_one_by_one(schedule: Any) -> None:
    process = sf.processes.Gaussian(schedule)
    rng = Stream(0)
    x0 = rng.normal((4, 3)).double()
    times, targets = [0.001, 0.002, 0.5, 0.9], [0.0, 0.001, 0.4, 0.0]
    t, s = torch.tensor(times, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
    x_t = process.marginal(x0, t).draw(rng)
    belief = Normal(0.9 * x0, 0.1)
    together = sf.step_kl(process, belief, x0, x_t, t, s)
    for k, (a, b) in enumerate(zip(times, targets, strict=True)):
        row = slice(k, k + 1)
        alone = sf.step_kl(process, Normal(belief.mean[row], 0.1), x0[row], x_t[row], a, b)
        assert float(together[k]) == pytest.approx(float(alone), rel=1e-9)
        moved = process.bridge(x_t[row], Dirac(x0[row]), a, b, 0.5).point()
        batch = process.bridge(x_t, Dirac(x0), t, s, 0.5).point()[row]
        torch.testing.assert_close(batch, moved, rtol=1e-12, atol=1e-12)
        forward = process.forward(x_t[row], b, a) if b else None
        if forward is not None:
            assert float(process.forward(x_t, s, t).var[k]) == pytest.approx(float(forward.var), rel=1e-9)


def test_float32_states_keep_close_times_apart() -> None:
    process = sf.processes.Gaussian(sf.schedules.get("linear"))
    x = torch.ones(2, 1)
    t = torch.tensor([0.5, 0.9])
    law = process.forward(x, t, t + 1e-7)
    exact = process.forward(x.double(), t.double(), t.double() + 1e-7)
    assert law.mean.dtype == torch.float32
    assert (law.var > 0).all()
    torch.testing.assert_close(law.var.double(), exact.var, rtol=0.3, atol=0)  # t itself is float32 there


NUMBERS = [name for name in sf.samplers.names() if name not in (*sf.samplers.TOKENS, *sf.samplers.WALKS)]


@pytest.mark.parametrize("name", NUMBERS)
def test_samples_keep_the_dtype_of_their_start(name: str) -> None:
    process = sf.processes.Gaussian(sf.schedules.get("flow"))
    denoiser = sf.oracles.Gaussian([0.0, 0.0], 0.25).denoiser(process)
    x1 = process.prior(torch.zeros(3, 2)).draw(Stream(0))
    x = sf.sample(denoiser, process, sf.samplers.get(name), sf.grids.uniform(process.schedule, 4), x1, rng=0)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m", "ddim"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_float32_follows_float64_where_alpha_is_small(name: str, n: int) -> None:
    process = sf.processes.Gaussian(sf.schedules.get("cosine"))  # alpha(1) = 5e-5
    denoiser = sf.oracles.GaussianMixture([0.5, 0.5], [[-1.0], [2.0]], 0.1).denoiser(process)
    x1 = process.prior(torch.zeros(64, 1)).draw(Stream(0))
    grid = sf.grids.uniform(process.schedule, n)
    narrow, wide = (sf.sample(denoiser, process, sf.samplers.get(name), grid, x) for x in (x1, x1.double()))
    torch.testing.assert_close(narrow.double(), wide, rtol=3e-6, atol=3e-5)


def test_kl_of_forbidden_tokens_has_a_gradient() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    q = Categorical(torch.tensor([[0.3, 0.7, 0.0]]).log())
    q.kl(Categorical(logits.log_softmax(-1))).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


class Wide:
    """A belief whose variance is shared by all samples."""

    def __call__(self, x: torch.Tensor, t: Any, cond: Any = None) -> Normal:
        shift = 0.0 if cond is None else cond["label"][:, None].to(x)
        return Normal(x + shift, torch.full((1, x.shape[1]), 0.2))


def test_a_shared_variance_survives_guidance() -> None:
    null = lambda cond: {"label": torch.zeros_like(cond["label"])}  # noqa: E731
    for b in (1, 4):
        x = torch.zeros(b, 3)
        belief = cfg(Wide(), null, 2.0)(x, 0.5, {"label": torch.ones(b)})
        torch.testing.assert_close(belief.point(), torch.full((b, 3), 2.0))
        assert belief.draw(Stream(0)).shape == (b, 3)


def test_guidance_never_drops_a_condition() -> None:
    null = lambda cond: {"label": torch.zeros_like(cond["label"])}  # noqa: E731
    with pytest.raises(Refusal, match="different conditions"):
        cfg(Wide(), null, 2.0)(torch.zeros(2, 3), 0.5, {"label": torch.ones(2), "text": torch.ones(2)})


def test_an_interval_needs_one_time() -> None:
    assert interval(0.2, 0.8)(torch.tensor(0.5))
    with pytest.raises(Refusal, match="one time"):
        interval(0.2, 0.8)(torch.tensor([0.1, 0.5]))


def test_a_point_of_a_product_is_a_belief() -> None:
    process = sf.processes.Product({name: sf.processes.Gaussian(sf.schedules.get(name)) for name in ("linear", "flow")})
    x0 = {"linear": torch.ones(2, 1), "flow": torch.zeros(2, 3)}
    x_t = process.marginal(x0, 0.5).draw(Stream(0))
    for value in (process.loss(Dirac(x0), x0, x_t, 0.5), process.rate(Dirac(x0), x0, x_t, 0.5), Dirac(x0).nll(x0)):
        assert set(value) == set(x0)
        assert all(float(v.abs().sum()) == 0 for v in value.values())
    tilted = Dirac(x0).tilt(Dirac(x_t), 1.0)
    torch.testing.assert_close(tilted.point()["flow"], x0["flow"])


class Learned(torch.nn.Module):
    """A schedule with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.power = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - t**self.power, t**self.power


def test_a_learning_schedule_is_read_anew() -> None:
    schedule = Learned()
    before = sf.schedules.at(schedule, 0.5)
    with torch.no_grad():
        schedule.power += 1
    assert sf.schedules.at(schedule, 0.5)[1] == pytest.approx(before[1] ** 2)


def test_schedules_take_plain_numbers() -> None:
    for schedule in SCHEDULES:
        alpha, sigma = schedule(0.5)
        assert alpha.dtype == sigma.dtype == torch.float64
        assert float(sf.schedules.time_at(schedule, math.inf)) == 0.0


def test_karras_grid_begins_where_it_is_told() -> None:
    schedule = sf.schedules.get("karras")
    grid = sf.grids.karras(schedule, 4, sigma_max=10.0)
    assert sf.schedules.at(schedule, float(grid[0]))[1] == pytest.approx(10.0)
    with pytest.raises(Refusal, match="reaches 80"):
        sf.grids.karras(schedule, 4, sigma_max=100.0)


def test_a_bound_needs_a_grid_to_the_data() -> None:
    process = sf.processes.Gaussian(sf.schedules.get("flow"))
    oracle = sf.oracles.Gaussian([0.0], 1.0)
    with pytest.raises(Refusal, match="ends in 0"):
        sf.elbo(oracle.posterior(process), process, torch.zeros(2, 1, dtype=torch.float64), [1.0, 0.5], rng=0)


def test_losses_say_when_they_need_randomness() -> None:
    process = sf.processes.Gaussian(sf.schedules.get("flow"))
    denoiser = sf.oracles.Gaussian([0.0], 1.0).denoiser(process)
    with pytest.raises(Refusal, match="rng is None"):
        objective(denoiser, process, torch.zeros(2, 1), torch.full((2,), 0.5))
    assert objective(denoiser, process, torch.zeros(2, 1), torch.full((2,), 0.5), rng=3).shape == (2,)


def test_rows_that_a_sample_does_not_own_are_not_drawn() -> None:
    rows = torch.tensor([1, 3])
    x = Stream(0).normal((2, 3, 2), rows)
    assert (x[0, 1:] == 0).all()
    assert (x[1] != 0).all()
    import numpy as np

    torch.testing.assert_close(as_rng(np.int64(5)).normal((2, 2)), Stream(5).normal((2, 2)))
