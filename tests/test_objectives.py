"""Weightings, score matching, learned variance and loss-aware steps against their formulas and identities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.denoisers import PREDICTIONS, GaussianHead, Preconditioned
from sfumato.laws import Dirac
from sfumato.likelihood import Hutchinson, Levels
from sfumato.testing.models import MLP
from sfumato.testing.statistics import z_mean
from sfumato.training import score_matching, weightings
from sfumato.training.grey import GreyLevels
from sfumato.training.hybrid import Hybrid, LearnedRange, LossHistory, StepBound, vlb_term
from sfumato.training.objectives import prediction_loss

MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
Z_LIMIT = 4.0

# ---------------------------------------------------------------------------------------------------------- weightings

#: Every weighting as a function of the SNR, written as its paper does: on the eps-loss where that is its own.
FORMULAS = {
    "x0": lambda snr: 1.0,
    "simple": lambda snr: snr,
    "snr+1": lambda snr: snr + 1,
    "truncated-snr": lambda snr: max(snr, 1.0),
    "min-snr:gamma=3": lambda snr: snr * min(snr, 3.0) / snr,  # Hang et al.: min(SNR, gamma) / SNR for an eps-net
    "p2": lambda snr: snr / (1 + snr),
    "p2:k=2:gamma=0.5": lambda snr: snr / (2 + snr) ** 0.5,
    "edm": lambda snr: (1 / snr + 0.25) / (0.25 / snr),  # (sigma^2 + s^2) / (sigma s)^2 at sigma^2 = 1 / SNR
    "sigmoid": lambda snr: snr / (1 + math.exp(math.log(snr) - 2)),
    "sigmoid:bias=-1": lambda snr: snr / (1 + math.exp(math.log(snr) + 1)),
}
SCHEDULES = {"linear": "eps", "flow": "flow", "karras": "edm", "cosine-continuous": "v"}


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("name", list(FORMULAS))
def test_a_weighting_means_the_same_for_every_prediction(name: str, prediction: str) -> None:
    process = sf.processes.Gaussian(sf.schedules.get("linear"))
    net = MLP(2, width=8, depth=1).double()
    nn.init.normal_(net.last.weight)
    denoiser = Preconditioned(lambda x, t, cond: net(x, t.double()), GaussianHead(process, prediction, 0.5))
    x0, eps = MIXTURE.sample(6, 0), torch.randn(6, 2, dtype=torch.float64)
    t = torch.tensor([0.001, 0.01, 0.1, 0.3, 0.6, 1.0], dtype=torch.float64)
    found = weightings.weighted(name)(denoiser, x0, t, None, eps=eps)
    x_t = process.marginal(x0, t, sf.schedules.at(process.schedule, 1.0)[1] * eps).point()
    snr = [float(v) for v in sf.schedules.snr(process.schedule, t)]
    factor = torch.tensor([FORMULAS[name](v) for v in snr], dtype=torch.float64)
    error = (denoiser(x_t, t).point() - x0).square().mean(1)
    assert torch.allclose(found, factor * error, rtol=1e-6)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", [n for n in weightings.names() if n != "vlb"])
def test_weighted_losses_are_finite_over_all_times(name: str, schedule: str) -> None:
    process = sf.processes.Gaussian(sf.schedules.get(schedule))
    denoiser = Preconditioned(MLP(2, width=8, depth=1), GaussianHead(process, SCHEDULES[schedule], 0.5))
    t = torch.tensor([1e-3, 0.5, 1.0], dtype=torch.float64)
    loss = weightings.weighted(name)(denoiser, torch.ones(3, 2), t, None, 0)
    assert bool(torch.isfinite(loss).all())
    assert loss.shape == (3,)


def test_own_targets_are_some_of_the_weightings() -> None:
    # the eps-loss is "simple", the v-loss is "snr+1" on a variance-preserving path, EDM's F-loss is "edm"
    x0, eps, t = MIXTURE.sample(4, 0), torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.3, 0.5, 0.9])
    for schedule, prediction, name in (
        ("linear", "eps", "simple"),
        ("cosine-continuous", "v", "snr+1"),
        ("karras", "edm", "edm"),
        ("linear", "x0", "x0"),
    ):
        head = GaussianHead(sf.processes.Gaussian(sf.schedules.get(schedule)), prediction, 0.5)
        denoiser = Preconditioned(lambda x, t, cond: 0.1 * x, head)
        own = prediction_loss(denoiser, x0, t, None, eps=eps)
        assert torch.allclose(weightings.weighted(name)(denoiser, x0, t, None, eps=eps), own, rtol=1e-9)


@pytest.mark.parametrize("recipe", ["ddpm", "flow", "edm"])
def test_recipes_take_a_weighting(recipe: str) -> None:
    from sfumato.training.settings import resolve

    found, net = sf.recipes.get(recipe), nn.Linear(1, 1)
    assert found.compose(found.defaults, net).objective is prediction_loss
    chosen = found.compose(resolve(found.defaults, {"weighting": "min-snr:gamma=2"}), net).objective
    assert isinstance(chosen, weightings.WeightedLoss)
    for wrong in ("minsnr", "min-snr:gama=2", "p2:k=-1"):
        with pytest.raises(sf.Refusal):
            resolve(found.defaults, {"weighting": wrong})


# ------------------------------------------------------------------------------------------------------ score matching


@dataclass(frozen=True)
class Affine:
    """``s(x) = A x + b`` with parameters of its own for every sample, so that one backward pass gives each gradient."""

    parameters: torch.Tensor  # [b, 2, 3]

    @staticmethod
    def of(n: int) -> Affine:
        one = torch.tensor([[-0.5, 0.2, 0.1], [0.3, -0.8, -0.2]], dtype=torch.float64)
        return Affine(one.expand(n, 2, 3).clone().requires_grad_())

    def __call__(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        return torch.einsum("bij,bj->bi", self.parameters[:, :, :2], x) + self.parameters[:, :, 2]


def gradients(loss: torch.Tensor, model: Affine) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss.sum(), model.parameters)
    return gradient.flatten(1)


def test_all_score_matching_has_one_gradient() -> None:
    process, n, t = sf.processes.Gaussian(sf.schedules.get("flow")), 20_000, 0.3
    x0, rng = MIXTURE.sample(n, 0), sf.Stream(1)
    eps = rng.normal((n, 2)).double()
    alpha, sigma = sf.schedules.at(process.schedule, t)
    x_t = alpha * x0 + sigma * eps
    model = Affine.of(n)
    esm = gradients(score_matching.explicit(model, x_t, t, MIXTURE.score(process, x_t, t)), model)
    dsm = gradients(score_matching.denoising(model, process, x0, t, eps=eps), model)
    ssm = gradients(score_matching.sliced(model, x_t, t, rng), model)
    plain = gradients(score_matching.sliced_plain(model, x_t, t, rng, Hutchinson(2, "gaussian")), model)
    assert float(esm.mean(0).abs().min()) > 0.02
    for other in (dsm, ssm, plain):
        for gap in (other - esm).T:
            assert z_mean(gap, 0.0) < Z_LIMIT


def test_slices_see_the_trace() -> None:
    model = Affine.of(4000)
    x = torch.randn(4000, 2, dtype=torch.float64)
    square = model(x, None).square().sum(1) / 2
    for law in ("rademacher", "gaussian"):
        trace = score_matching.sliced(model, x, 0.5, sf.Stream(0), Hutchinson(1, law)) - square
        assert z_mean(trace.detach(), -1.3) < Z_LIMIT
    # signs are exact for a diagonal Jacobian
    diagonal = score_matching.sliced(lambda x, t: -x * torch.tensor([1.0, 3.0]), x, 0.5, sf.Stream(0))
    assert torch.allclose(diagonal, (x * torch.tensor([1.0, 3.0])).square().sum(1) / 2 - 4, rtol=1e-9)


def test_a_denoiser_is_a_score() -> None:
    process, x = sf.processes.Gaussian(sf.schedules.get("linear")), MIXTURE.sample(16, 0)
    t = torch.linspace(0.1, 1, 16, dtype=torch.float64)
    score = score_matching.score_of(MIXTURE.denoiser(process), process)
    assert torch.allclose(score(x, t), MIXTURE.score(process, x, t), rtol=1e-8)
    with pytest.raises(sf.Refusal, match="rng is None"):
        score_matching.denoising(score, process, x, t)


# ---------------------------------------------------------------------------------------------------- learned variance


@dataclass(frozen=True)
class Constant:
    """The exact noise of N(0, 1/4) data, scaled by ``mean``, beside a variance output of its own for every step."""

    process: Any
    mean: torch.Tensor
    v: torch.Tensor

    def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        alpha, sigma = sf.schedules.at(self.process.schedule, t.double(), x)
        x_t = x * (alpha**2 + sigma**2).sqrt()
        step = (t.double() * len(self.v)).round().long() - 1
        return torch.cat([self.mean * x_t * sigma / (alpha**2 / 4 + sigma**2), self.v[step][:, None]], 1)


def learned(steps: int, v: torch.Tensor, mean: float = 1.0, schedule: str = "cosine") -> tuple[Any, Preconditioned]:
    law = sf.schedules.get(schedule, steps=steps)
    process = sf.processes.Gaussian(law)
    net = Constant(process, torch.tensor(mean, dtype=torch.float64), v)
    return process, Preconditioned(LearnedRange(net, law, steps), GaussianHead(process, "eps"))


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 10), ("linear", 1000), ("cosine", 1000)])
def test_the_variance_is_interpolated_between_beta_tilde_and_beta(schedule: str, steps: int) -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)
    for v in (-0.98, -0.5, 0.0, 0.7, 1.0, 1.3):
        process, denoiser = learned(steps, torch.full((steps,), v, dtype=torch.float64), schedule=schedule)
        for k in (1, 2, 3, steps // 2, steps - 1, steps):
            t, s = k / steps, (k - 1) / steps
            beta = float(process.forward(x, s, t).var)
            clipped = (max(k, 2) / steps, (max(k, 2) - 1) / steps)
            beta_tilde = float(process.bridge(x, Dirac(x), *clipped).var)
            step = process.bridge(x, denoiser(x, t), t, s)
            expected = math.exp((1 + v) / 2 * math.log(beta) + (1 - v) / 2 * math.log(beta_tilde))
            assert float(step.var) == pytest.approx(expected, rel=1e-6)


def test_training_the_variance_reaches_the_entropy() -> None:
    steps, oracle = 10, sf.oracles.Gaussian([0.0], 0.25)
    v = torch.zeros(steps, dtype=torch.float64, requires_grad=True)
    process, denoiser = learned(steps, v)
    grid = sf.grids.uniform(process.schedule, steps)

    def gap() -> float:
        with torch.no_grad():
            rng = sf.testing.SigmaPoints()
            return float(sf.elbo(denoiser, process, oracle.sample(128, rng), grid, rng).total.mean()) - 0.725791

    assert gap() > 5e-3  # half way between the two is not the optimum
    optimiser, objective = torch.optim.Adam([v], lr=0.1), Hybrid(StepBound(steps))
    t = (torch.arange(steps, dtype=torch.float64) + 1).repeat(128) / steps
    for step in range(150):
        optimiser.zero_grad()
        rng = sf.testing.SigmaPoints()
        x0 = oracle.sample(128, rng).repeat_interleave(steps, 0)
        eps = rng.normal((128, 1)).double().repeat_interleave(steps, 0)
        objective(denoiser, x0, t, None, eps=eps).mean().backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
    assert -1e-6 < gap() < 1e-3


def test_the_bound_does_not_move_the_mean() -> None:
    _process, denoiser = learned(10, torch.zeros(10, dtype=torch.float64, requires_grad=True))
    net = denoiser.net.net
    net.mean.requires_grad_()
    x0, t = torch.randn(10, 1, dtype=torch.float64), torch.arange(1, 11).double() / 10
    eps = torch.randn(10, 1, dtype=torch.float64)
    by_weight = [
        torch.autograd.grad(Hybrid(StepBound(10), w)(denoiser, x0, t, None, eps=eps).sum(), [net.mean, net.v])
        for w in (0.001, 1000.0)
    ]
    assert torch.equal(by_weight[0][0], by_weight[1][0])
    assert float(by_weight[0][0].abs()) > 0
    assert torch.allclose(1e6 * by_weight[0][1], by_weight[1][1])
    (whole,) = torch.autograd.grad(StepBound(10)(denoiser, x0, t, None, eps=eps).sum(), net.mean)
    assert float(whole.abs()) > 0


def test_the_first_step_is_the_discretised_decoder() -> None:
    process, denoiser = learned(10, torch.zeros(10, dtype=torch.float64))
    levels, t = Levels(-1.0, 1.0), torch.tensor([0.1, 0.2], dtype=torch.float64)
    x0 = torch.full((2, 1), 2 * 200 / 255 - 1, dtype=torch.float64)
    x_t = process.marginal(x0, t).draw(sf.Stream(0))
    terms = vlb_term(denoiser, denoiser.raw(x_t, t), x0, x_t, t, 10, levels)
    belief = denoiser(x_t, t)
    law = sf.likelihood.Discretised(belief.mean[:1], belief.var[:1], levels)
    assert float(terms[0]) == pytest.approx(float(law.nll(x0[:1])))
    density = vlb_term(denoiser, denoiser.raw(x_t, t), x0, x_t, t, 10, None)
    assert float(density[0]) == pytest.approx(float(terms[0]) + math.log(levels.width), abs=1e-3)
    assert float(density[1]) == float(terms[1])
    grey = GreyLevels()
    assert grey.levels() is None
    grey.set(-1.0, 1.0)
    assert grey.levels() == levels


# ---------------------------------------------------------------------------------------------------- loss-aware steps


def filled(steps: int, depth: int) -> LossHistory:
    history = LossHistory(steps, depth)
    for turn in range(depth + 1):  # the first turn is forgotten again
        history.record(torch.arange(1, steps + 1), (turn + 1.0) * torch.arange(1.0, steps + 1) ** 2)
    return history


def test_steps_are_drawn_by_the_root_mean_square_of_their_last_losses() -> None:
    history = filled(5, 2)
    size = torch.arange(1.0, 6).double() ** 2 * math.sqrt((2**2 + 3**2) / 2)
    expected = 0.999 * size / size.sum() + 0.001 / 5
    assert torch.allclose(history.probabilities(), expected, rtol=1e-6)
    k, factor = history.draw((torch.arange(100_000) + 0.5).double() / 100_000)
    counts = torch.bincount(k - 1, minlength=5) / 100_000
    assert torch.allclose(counts.double(), expected, atol=1e-4)
    # the factors keep the mean over steps
    assert float((factor * k**2).mean()) == pytest.approx(11.0, rel=1e-3)


def test_steps_are_uniform_until_every_one_is_known() -> None:
    history = LossHistory(4, 2)
    history.record(torch.tensor([1, 1, 2, 2, 3, 3, 4]), torch.ones(7) * torch.arange(7))
    assert torch.equal(history.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    history.record(torch.tensor([4]), torch.tensor([math.nan]))
    assert int(history.seen[3]) == 1
    copy = LossHistory(4, 2)
    copy.load_state_dict(history.state_dict())
    assert torch.equal(copy.losses, history.losses)
    assert torch.equal(copy.seen, history.seen)


def test_the_bound_draws_and_records_in_training_alone() -> None:
    _, denoiser = learned(10, torch.zeros(10, dtype=torch.float64), mean=0.5)
    history = LossHistory(10, 3)
    objective = StepBound(10, history)
    x0, t = 0.5 * torch.randn(4000, 1, dtype=torch.float64), (torch.arange(4000) % 10 + 1).double() / 10
    plain = StepBound(10)(denoiser, x0, t, None, sf.Stream(0))
    history.eval()
    assert torch.equal(objective(denoiser, x0, t, None, sf.Stream(0)), plain)
    assert int(history.seen.sum()) == 0
    history.train()
    objective(denoiser, x0, t, None, sf.Stream(0))
    assert int(history.seen.sum()) == 4000
    assert int(history.seen.min()) > 3
    aware = objective(denoiser, x0, t, None, sf.Stream(1))
    error = (plain.var() / 4000 + aware.var() / 4000).sqrt()
    assert float((aware.mean() - plain.mean()).abs() / error) < Z_LIMIT
    assert float(aware.var()) < float(plain.var())


def test_improved_ddpm_stores_its_history_and_levels(tmp_path: Any) -> None:
    data, run = sf.data.load("mnist"), tmp_path / "run"
    tiny: dict[str, Any] = {
        "channels": (8, 8), "attention": (False, False), "blocks": 1, "patch": 2, "batch": 8, "quiet": True,
        "validation_images": 8, "grid_columns": 0,
    }  # fmt: skip
    model = sf.train("improved-ddpm", data, steps=3, out=run, objective="vlb", table_steps=20, **tiny)
    again = sf.load(run)
    assert int(again.net.history.seen.sum()) == 24
    low, high = model.transform.limits
    levels = again.net.grey.levels()
    assert (levels.low, levels.high) == pytest.approx((low, high), rel=1e-6)
    belief = again.denoiser(torch.zeros(2, 1, 28, 28), 0.5, {"label": torch.zeros(2, dtype=torch.int64)})
    assert isinstance(belief, sf.laws.Normal)
    assert belief.var.shape == (2, 1, 28, 28)
    assert again.sample(2, steps=3).x.shape == (2, 28, 28)
