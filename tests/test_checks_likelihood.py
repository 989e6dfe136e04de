"""Likelihoods against exact values: the flow's log-density, its trace, dequantisation, the decoder, the bound."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato import likelihood
from sfumato.data.transforms import Uint8Image
from sfumato.likelihood.ode import level
from sfumato.testing.statistics import z_mean
from sfumato.training import weightings

LINEAR = sf.processes.Gaussian(sf.schedules.get("linear"))
FLOW = sf.processes.Gaussian(sf.schedules.get("flow"))
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
Z_LIMIT = 4.0


def log_prob(process: Any, x: torch.Tensor, **settings: Any) -> likelihood.FlowLikelihood:
    return likelihood.log_prob(MIXTURE.denoiser(process), process, x, **settings)


# ------------------------------------------------------------------------------------------------- the flow's density


@pytest.mark.parametrize("schedule", ["linear", "cosine", "karras", "flow", "cosine-continuous"])
def test_the_exact_prior_gives_the_exact_likelihood(schedule: str) -> None:
    process, x = sf.processes.Gaussian(sf.schedules.get(schedule)), MIXTURE.sample(24, 0)
    found = log_prob(process, x, prior=lambda z: MIXTURE.logp(process, z, 1.0))
    assert float((found.logp + MIXTURE.nll(x)).abs().mean()) < 1e-4
    assert 60 < float(found.evaluations.double().mean()) < 200


@pytest.mark.parametrize("schedule", ["vp", "karras", "flow"])
def test_the_error_falls_with_the_tolerance(schedule: str) -> None:
    process, x = sf.processes.Gaussian(sf.schedules.get(schedule)), MIXTURE.sample(24, 0)
    found = log_prob(process, x, prior=lambda z: MIXTURE.logp(process, z, 1.0), tolerance=1e-8)
    assert float((found.logp + MIXTURE.nll(x)).abs().max()) < 1e-6


def test_an_unreached_prior_leaves_its_mismatch_whatever_the_tolerance() -> None:
    x = MIXTURE.sample(16, 0)
    errors = []
    for tolerance in (1e-5, 1e-7):
        found = log_prob(LINEAR, x, tolerance=tolerance)
        errors.append(float((found.logp + MIXTURE.nll(x)).abs().max()))
        mismatch = -LINEAR.prior(found.latent).nll(found.latent) - MIXTURE.logp(LINEAR, found.latent, 1.0)
        assert torch.allclose(found.logp + MIXTURE.nll(x), mismatch, rtol=0, atol=50 * tolerance)
    assert 2e-3 < errors[1] < 2e-2
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_the_largest_error_of_vp_is_its_priors_at_any_tolerance() -> None:
    """1.05e-2 nats: ``sqrt(alpha_bar_1) |E[x0]|`` is 3.5e-3 a standard deviation of the latent, and the largest of 300
    latents is three of them out.  Their mean is 3e-4 or so, within its standard error of 2e-4.
    """
    process, x = sf.processes.Gaussian(sf.schedules.get("vp")), MIXTURE.sample(300, 0)
    errors = [log_prob(process, x, tolerance=v).logp + MIXTURE.nll(x) for v in (1e-5, 1e-7)]
    assert all(abs(abs(float(error.mean())) - 3e-4) < 6e-4 for error in errors)
    worst = [float(error.abs().max()) for error in errors]
    assert worst[1] == pytest.approx(1.05e-2, rel=0.05)
    assert worst[0] == pytest.approx(worst[1], rel=0.05)


def test_the_latent_is_where_the_exact_flow_ends() -> None:
    x = MIXTURE.sample(8, 0)
    found = log_prob(FLOW, x, tolerance=1e-8)
    assert torch.allclose(found.latent, MIXTURE.flow(FLOW, x, 1e-4, 1.0), rtol=0, atol=1e-3)


def test_noise_is_convolved_with_the_data() -> None:
    blurred = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09 + 0.04)
    x = MIXTURE.sample(16, 0)
    found = log_prob(FLOW, x, noise=0.2, tolerance=1e-7)
    assert torch.allclose(found.logp, -blurred.nll(x), rtol=0, atol=1e-5)


def test_a_condition_gives_the_conditional_likelihood() -> None:
    x, label = MIXTURE.sample_with_label(16, 0)
    found = log_prob(FLOW, x, cond={"label": label}, tolerance=1e-6)
    assert torch.allclose(found.logp, -MIXTURE.nll(x, {"label": label}), rtol=0, atol=1e-3)


def test_a_coupled_path_has_a_likelihood_too() -> None:
    from sfumato.processes.interpolant import Interpolant

    process, x = Interpolant(sf.schedules.get("flow")), MIXTURE.sample(8, 0)
    assert torch.allclose(
        likelihood.log_prob(MIXTURE.denoiser(FLOW), process, x, tolerance=1e-6).logp, -MIXTURE.nll(x), rtol=0, atol=1e-4
    )


# ----------------------------------------------------------------------------------------------------------- the trace


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(law: str) -> None:
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    exact = float(log_prob(FLOW, x, tolerance=1e-4).logp)
    found = log_prob(
        FLOW, x.expand(512, 2), trace=likelihood.Hutchinson(1, law), rng=sf.Streams(range(512)), tolerance=1e-4
    )
    assert float(found.logp.std()) > 0.05
    assert z_mean(found.logp, exact) < Z_LIMIT


def test_probes_lower_the_variance() -> None:
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64).expand(256, 2)
    one, eight = (
        log_prob(FLOW, x, trace=likelihood.Hutchinson(k), rng=sf.Streams(range(256)), tolerance=1e-3).logp.var()
        for k in (1, 8)
    )
    assert 4 < float(one / eight) < 16


def test_signs_are_exact_for_a_diagonal_jacobian() -> None:
    oracle = sf.oracles.Gaussian([0.0, 1.0, -1.0], torch.tensor([0.25, 1.0, 4.0]).diag())
    x = oracle.sample(8, 0)
    found = likelihood.log_prob(
        oracle.denoiser(FLOW), FLOW, x, trace=likelihood.Hutchinson(), rng=sf.Streams(range(8)), tolerance=1e-8
    )
    assert torch.allclose(found.logp, -oracle.nll(x), rtol=0, atol=1e-6)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x = MIXTURE.sample(5, 0)
    whole = log_prob(FLOW, x, trace=likelihood.Hutchinson(), rng=sf.Streams(range(5)), tolerance=1e-3)
    alone = log_prob(FLOW, x[3:4], trace=likelihood.Hutchinson(), rng=sf.Streams([3]), tolerance=1e-3)
    assert float(alone.logp) == pytest.approx(float(whole.logp[3]), abs=1e-10)
    assert int(alone.evaluations) == int(whole.evaluations[3])


# ---------------------------------------------------------------------------------------------------- bits, the decoder


def test_bits_of_256_levels_on_minus_1_to_1_are_offset_by_7() -> None:
    levels = likelihood.Levels.of(Uint8Image(127.5, 128.0))
    assert float(likelihood.uniform_bits(torch.zeros(1), levels, 5)) == pytest.approx(7.0, abs=1e-12)


@pytest.mark.parametrize("transform", [Uint8Image(), Uint8Image(33.3, 157.0)])
def test_a_uniform_density_over_all_bins_has_8_bits(transform: Uint8Image) -> None:
    levels = likelihood.Levels.of(transform)
    logp = torch.tensor([-12 * math.log(256 * levels.width)], dtype=torch.float64)
    assert float(likelihood.uniform_bits(logp, levels, 12)) == pytest.approx(8.0, abs=1e-12)


def test_dequantised_data_fill_their_bins() -> None:
    transform = Uint8Image(33.3, 157.0)
    levels = likelihood.Levels.of(transform)
    x0 = transform.encode(torch.full((4000, 1, 1, 1), 200, dtype=torch.uint8))
    place = (likelihood.uniform_dequantise(x0, levels, 0) - x0) / levels.width
    assert -0.5 <= float(place.min()) < -0.49
    assert 0.49 < float(place.max()) <= 0.5
    assert float(place.var()) == pytest.approx((likelihood.equal_noise(levels) / levels.width) ** 2, rel=0.05)


@pytest.mark.parametrize(("mean", "var"), [(0.3, 1e-4), (-1.0, 0.01), (2.5, 0.3), (0.0, 1e-9)])
def test_the_decoder_sums_to_one(mean: float, var: float) -> None:
    levels = likelihood.Levels(-1.0, 1.0)
    law = likelihood.Discretised(torch.full((256,), mean, dtype=torch.float64), var, levels)
    logp = law.log_prob(torch.arange(256))
    assert float(logp.exp().sum()) == pytest.approx(1.0, abs=1e-6)


def test_the_decoder_is_the_integral_over_a_bin_with_open_edges() -> None:
    levels, normal = likelihood.Levels(-1.0, 1.0), torch.distributions.Normal(0.2, 0.5)
    edges = torch.linspace(-1, 1, 256, dtype=torch.float64)
    law = likelihood.Discretised(torch.full((256,), 0.2, dtype=torch.float64), 0.25, levels)
    upper, lower = normal.cdf(edges + 1 / 255), normal.cdf(edges - 1 / 255)
    upper[-1], lower[0] = 1.0, 0.0
    assert torch.allclose(law.log_prob(torch.arange(256)).exp(), upper - lower, rtol=0, atol=1e-7)
    # 60 standard deviations off it is still a number
    far = likelihood.Discretised(torch.zeros(1, 1, dtype=torch.float64), 1e-4, levels)
    assert 1000 < float(far.nll(torch.full((1, 1), 153 / 255, dtype=torch.float64))) < 2000


# ------------------------------------------------------------------------------------------------------------ the bound

#: Eight of 256 levels on [-1, 1].
ATOMS = torch.tensor([3, 4, 40, 100, 101, 103, 180, 252], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.1, 0.05, 0.2, 0.05, 0.1, 0.15, 0.05], dtype=torch.float64)
LEVELS = likelihood.Levels(-1.0, 1.0)
DATA = sf.oracles.GaussianMixture(WEIGHTS, (2 * ATOMS / 255 - 1)[:, None], 0.0)
ENTROPY = float(-(WEIGHTS * WEIGHTS.log()).sum())


def test_the_bound_of_256_level_data_is_its_entropy_or_more() -> None:
    x0 = DATA.sample(4000, 0)
    bound = likelihood.continuous_bound(DATA.denoiser(FLOW), FLOW, x0, LEVELS, sf.Stream(1), draws=64, noise=1e-3)
    gap, error = float(bound.total.mean()) - ENTROPY, float(bound.total.std()) / 4000**0.5
    assert -Z_LIMIT * error < gap < 0.02 + Z_LIMIT * error
    coarse = likelihood.grid_bound(
        DATA.denoiser(LINEAR), LINEAR, x0, sf.grids.uniform(LINEAR.schedule, 1000), LEVELS, sf.Stream(1), draws=64
    )
    assert float(coarse.total.mean()) > ENTROPY
    # at the noise of DDPM's first step a decoder of that variance cannot tell neighbours apart
    assert 0.1 < float(coarse.reconstruction.mean()) < 2.5


def test_the_flow_obeys_the_same_bound() -> None:
    x0 = DATA.sample(512, 0)
    denoiser = DATA.denoiser(FLOW)
    bound = likelihood.continuous_bound(denoiser, FLOW, x0, LEVELS, sf.Stream(1), noise=2e-3)
    alpha, sigma = sf.schedules.at(FLOW.schedule, bound.time)
    flow = likelihood.log_prob(denoiser, FLOW, bound.latent / alpha, noise=sigma / alpha, tolerance=1e-4)
    paid = likelihood.latent_log_prob(FLOW, x0, bound.latent, bound.time) + math.log(alpha)
    exact = paid - flow.logp + bound.reconstruction
    assert float(exact.mean()) == pytest.approx(ENTROPY, abs=Z_LIMIT * float(exact.std()) / 512**0.5)
    # of the exact model the bound's middle is tight: it is what the latent's own likelihood costs
    assert z_mean(bound.prior + bound.diffusion - (paid - flow.logp), 0.0) < Z_LIMIT


@pytest.mark.parametrize("schedule", ["karras", "flow", "cosine-continuous"])
def test_the_continuous_bound_is_the_integral_of_the_rate(schedule: str) -> None:
    # of a model that says 0, the integral is (SNR(start) - SNR(1)) x0^2 / 2 for every schedule
    process = sf.processes.Gaussian(sf.schedules.get(schedule))
    x0 = torch.full((2, 1), 2 * 200 / 255 - 1, dtype=torch.float64)

    def zero(x: torch.Tensor, t: Any, cond: Any = None) -> sf.laws.Dirac:
        return sf.laws.Dirac(torch.zeros_like(x))

    bound = likelihood.continuous_bound(zero, process, x0, LEVELS, 0, draws=400, noise=0.1)
    expected = (100 - math.sinh(level(process.schedule, 1.0)) ** 2) / 2 * float(x0[0]) ** 2
    assert float(bound.diffusion[0]) == pytest.approx(expected, rel=2e-3)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    rate = process.rate(sf.laws.Dirac(torch.zeros_like(x0)), x0, x0, t)
    weight = weightings.get("vlb")(process, t, (x0**2)[:, 0])
    assert torch.allclose(rate, weight, rtol=1e-9)


def test_some_steps_estimate_all_of_them() -> None:
    x0 = DATA.sample(64, 0).repeat_interleave(64, 0)
    grid = sf.grids.uniform(LINEAR.schedule, 40)
    denoiser = DATA.denoiser(LINEAR)
    whole = likelihood.grid_bound(denoiser, LINEAR, x0, grid, LEVELS, sf.Stream(1))
    some = likelihood.grid_bound(denoiser, LINEAR, x0, grid, LEVELS, sf.Stream(2), draws=5)
    assert (whole.evaluations, some.evaluations) == (40, 6)
    gap = float(whole.diffusion.mean() - some.diffusion.mean())
    error = float((whole.diffusion.var() + some.diffusion.var()).sqrt()) / len(x0) ** 0.5
    assert abs(gap) < Z_LIMIT * error
    assert error < 0.2
    assert torch.equal(whole.prior, some.prior)


# --------------------------------------------------------------------------------------------------- of a trained model

TINY = {"channels": (8, 8), "attention": (False, False), "blocks": 1, "patch": 2, "batch": 8, "quiet": True}


@pytest.fixture(scope="module")
def digits() -> Any:
    return sf.data.load("mnist")


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("edm", {"conditional": False}), ("improved-ddpm", {"schedule": "linear", "table_steps": 100})],
)
def test_a_models_likelihood_is_the_same_in_any_batch(recipe: str, settings: dict[str, Any], digits: Any) -> None:
    model = sf.train(recipe, digits, steps=2, grid_columns=0, validation_images=8, **TINY, **settings)
    options: dict[str, Any] = {"tolerance": 0.1, "draws": 4}
    records = likelihood.evaluate(model, digits, 3, **options)
    again = likelihood.evaluate(model, digits, 3, batch=2, **options)
    assert [r.name for r in records] == ["bits-per-dim", "bits-per-dim-uniform", "bits-per-dim-vlb"]
    for a, b in zip(records, again, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-4)
        assert a.value > 1
        assert sf.metrics.Record.from_json(a.to_json()) == a
        assert a.settings["standard_error"] > 0
        assert a.n == 3
        assert a.nfe is not None
    assert sum(records[2].settings[part] for part in ("L_T", "L_t", "L_0")) == pytest.approx(records[2].value)
    assert "bits-per-dim-vlb" in likelihood.table(records)


@pytest.mark.parametrize("recipe", ["ncsn", "ncsnv2", "edm2", "vdm", "ot-cfm", "sb-cfm", "interpolant"])
def test_every_kind_of_recipe_has_a_likelihood(recipe: str) -> None:
    """Ladders of levels, learned schedules, networks told the noise number; coupled paths have no evidence bound."""
    data = sf.data.load("digits")
    model = sf.train(recipe, data, steps=1, grid_columns=0, validation_images=8, **TINY)
    records = likelihood.evaluate(model, data, 2, tolerance=0.3, draws=2)
    coupled = recipe in ("ot-cfm", "sb-cfm", "interpolant")
    assert [r.name for r in records] == ["bits-per-dim", "bits-per-dim-uniform", "bits-per-dim-vlb"][
        : 2 if coupled else 3
    ]
    assert all(0 < r.value < 30 for r in records)


@pytest.mark.parametrize(("recipe", "left"), [("edm", 2), ("flow", 0)])
def test_a_flow_out_of_reach_below_the_trained_levels_is_left_out(
    monkeypatch: pytest.MonkeyPatch, recipe: str, left: int
) -> None:
    """EDM was not trained down to a bin's own spread: its record is left out. A flow was: it is refused."""
    data = sf.data.load("digits")
    model = sf.train(recipe, data, steps=1, grid_columns=0, validation_images=8, **TINY)
    module = importlib.import_module("sfumato.likelihood.evaluate")
    lowest = likelihood.equal_noise(likelihood.Levels.of(model.transform))
    begun: list[float] = []

    def reach(denoiser: Any, process: Any, x0: Any, *, noise: float, **options: Any) -> Any:
        begun.append(noise)
        if noise == lowest and len(begun) > 1:
            raise sf.Refusal("out of reach")
        return likelihood.log_prob(denoiser, process, x0, noise=noise, **options)

    monkeypatch.setattr(module, "log_prob", reach)
    if not left:
        with pytest.raises(sf.Refusal, match="out of reach"):
            likelihood.evaluate(model, data, 4, tolerance=0.3, draws=2, batch=2)
        return
    records = likelihood.evaluate(model, data, 4, tolerance=0.3, draws=2, batch=2)
    assert [r.name for r in records] == ["bits-per-dim", "bits-per-dim-vlb"]
    assert len(begun) == 3  # both batches by the model's noise, the first alone from below
    assert "bits-per-dim-uniform: left out" in likelihood.table(records)


def test_the_command_line_appends_its_records(tmp_path: Path, digits: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato.__main__ import run

    sf.train("edm", digits, steps=2, grid_columns=0, validation_images=8, out=tmp_path / "run", **TINY)
    assert run(["eval", str(tmp_path / "run"), "--likelihood", "--n", "2"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum("bits-per-dim" in line for line in lines) == 3
    assert "bits/dim" in capsys.readouterr().out
    assert run(["eval", str(tmp_path / "run"), "--likelihood", "--steps", "5"]) == 2
    assert "--steps goes with samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: log_prob(FLOW, x, noise=0.0), "noise=0.0"),
        (lambda x: log_prob(LINEAR, x, noise=1e6), "less"),
        (lambda x: log_prob(FLOW, x, tolerance=0.0), "tolerance=0.0"),
        (lambda x: log_prob(FLOW, x, trace=likelihood.Hutchinson()), "rng is None"),
        (lambda x: log_prob(FLOW, x, max_evaluations=20), "more than 20 evaluations"),
        (lambda x: likelihood.Hutchinson(0), "count=0"),
        (lambda x: likelihood.Hutchinson(1, "gauss"), "gaussian"),
        (lambda x: likelihood.Levels(1.0, 0.0), "low=1.0"),
        (lambda x: LEVELS.index(x), "off the 256 levels"),
        (lambda x: likelihood.grid_bound(MIXTURE.denoiser(FLOW), FLOW, x, [1.0, 0.5], LEVELS, 0), "ends at t=0.5"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(sf.Refusal, match=message):
        call(MIXTURE.sample(2, 0))
