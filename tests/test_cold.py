"""Cold diffusion: degradations, algorithm 2 against algorithm 1, fitted priors, and the recipe from data to digits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato import degradations
from sfumato.degradations import Blur, Fade, Mask, Pixelate, Scatter
from sfumato.laws import Dirac
from sfumato.processes import Cold
from sfumato.processes.cold import naive
from sfumato.processes.fitted import FittedPrior, gaussian_mixture, kernel_prior, mixture_prior, principal, start
from sfumato.testing.statistics import z_mean

NAMES = degradations.names()
B, SIDE = 4, 12
TINY: dict[str, Any] = {
    "channels": (8, 8), "attention": (False, False), "blocks": 1, "patch": 2, "batch": 8, "validation_images": 16,
    "grid_columns": 0,
}  # fmt: skip


def images(n: int = B, *, channels: int = 1, height: int = SIDE, width: int = SIDE) -> Tensor:
    return sf.Stream(1).normal((n, channels, height, width)).double()


# --------------------------------------------------------------------------------------------------- degradations


@pytest.mark.parametrize("name", NAMES)
def test_a_degradation_begins_at_the_image_itself(name: str) -> None:
    degrade = degradations.build(name)
    for x in (images(), images().float(), images(channels=3, height=10, width=13), images()[:, 0]):
        assert torch.equal(degrade(x, 0.0), x)
        assert torch.equal(degrade(x, torch.zeros(len(x), dtype=torch.float64)), x)


@pytest.mark.parametrize("name", NAMES)
def test_a_degradation_is_continuous_and_keeps_to_its_own_image(name: str) -> None:
    degrade, x = degradations.build(name), images(height=10, width=13)
    t = torch.tensor([0.0, 0.21, 0.7, 1.0], dtype=torch.float64)
    together = degrade(x, t)
    alone = torch.cat([degrade(x[k : k + 1], float(t[k])) for k in range(len(x))])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)
    assert degrade(x.float(), t).dtype == torch.float32
    grid = torch.linspace(0, 1, 501, dtype=torch.float64).tolist()
    path = torch.stack([degrade(x[:1], k) for k in grid])
    assert float((path.diff(dim=0)).abs().max()) < 0.1 * float(x.abs().max())
    assert float((path[0] - path[-1]).abs().max()) > 0.5


def test_the_ends_of_what_hides_and_fades() -> None:
    x = images()
    for degrade, fill in ((Mask(fill=0.3), 0.3), (Scatter(fill=-0.2), -0.2), (Fade(0.7), 0.7)):
        assert torch.allclose(degrade(x, 1.0), torch.full_like(x, fill), rtol=0, atol=1e-12)
    assert torch.equal(Fade(0.5)(x, 0.25), 0.75 * x + 0.25 * 0.5)


def test_blur_adds_up_in_variance() -> None:
    x = images()
    assert float(Blur(7.0, 0.0).time(0.25)) == pytest.approx(7.0**2 * 0.25 / 2, rel=1e-14)
    assert float(Blur(7.0, 3.0).time(0.5)) == pytest.approx(24.5 * math.expm1(3) / math.expm1(6), rel=1e-14)
    for growth in (0.0, 3.0):
        assert float(Blur(7.0, growth).time(1.0)) == pytest.approx(24.5, rel=1e-14)
    again = degradations.diffuse(degradations.diffuse(x, 1.5), 0.7)
    assert torch.allclose(again, degradations.diffuse(x, 2.2), rtol=0, atol=1e-14)


def test_sharpening_is_the_best_linear_guess() -> None:
    """Images of unit variance in every mode: the error of the guess is ``noise^2 / (a^2 + noise^2)`` in each."""
    n, time, noise = 20_000, 0.6, 0.3
    x0 = sf.Stream(0).normal((n, 1, 3, 4)).double()
    seen = degradations.diffuse(x0, time) + noise * sf.Stream(1).normal((n, 1, 3, 4)).double()
    off = degradations.cosines(3) @ (degradations.sharpen(seen, time, noise) - x0) @ degradations.cosines(4).T
    moment = torch.tensor(time, dtype=torch.float64)
    left = degradations.decay(3, moment)[:, None] * degradations.decay(4, moment)
    assert torch.allclose((off**2).mean((0, 1)), noise**2 / (left**2 + noise**2), rtol=0.06)
    times = torch.tensor([0.0, 0.2, 1.4], dtype=torch.float64)
    each = torch.cat([degradations.sharpen(seen[k : k + 1], float(times[k]), noise) for k in range(3)])
    assert torch.allclose(degradations.sharpen(seen[:3], times, noise), each, atol=1e-13)


def test_pixelate_passes_through_the_means_of_cells() -> None:
    x = images(height=16, width=16)
    degrade = Pixelate(4)
    for t, size in ((0.5, 2), (1.0, 4)):
        means = torch.nn.functional.avg_pool2d(x, size)
        assert torch.allclose(degrade(x, t), means.repeat_interleave(size, 2).repeat_interleave(size, 3), atol=1e-14)
    half = 0.5 * (degrade(x, 0.5) + degrade(x, 1.0))
    assert torch.allclose(degrade(x, 0.75), half, atol=1e-14)
    assert torch.allclose(degrade(x, 0.3).mean((-1, -2)), x.mean((-1, -2)), atol=1e-14)
    odd = Pixelate(3)(images(height=10, width=13), 1.0)
    assert all(len(torch.unique(row.round(decimals=9))) <= 3 for row in odd[0, 0])


def test_the_hole_grows_around_its_centre_and_the_order_is_the_seeds_own() -> None:
    kept = Mask(row=0.0, column=1.0, edge=1.0).kept(9, 9, 0.5)
    assert kept[0, 8] == 0
    assert kept[8, 0] == pytest.approx(1.0, abs=1e-3)
    later = Mask(row=0.0, column=1.0, edge=1.0).kept(9, 9, 0.6)
    assert bool((later <= kept).all())
    x = images()
    assert torch.equal(Scatter(3)(x, 0.5), Scatter(3)(x.clone(), 0.5))
    assert not torch.equal(Scatter(3)(x, 0.5), Scatter(4)(x, 0.5))
    share = (Scatter(0, soft=0.01)(torch.ones(1, 1, 50, 50), 0.3) > 0.5).double().mean()
    assert float(share) == pytest.approx(0.7, abs=0.05)


# ---------------------------------------------------------------------------------------------------- algorithms


def shifting(e: Tensor) -> Any:
    """``D(x, t) = x + t e``."""

    def degrade(x0: Tensor, t: Any) -> Tensor:
        return x0 + (t.reshape(-1, *[1] * (x0.ndim - 1)) if torch.is_tensor(t) else t) * e

    return degrade


def garbage(x_t: Tensor, t: Any, cond: Any = None) -> Dirac:
    """A restorer that restores nothing."""
    return Dirac(3 * torch.sin(5 * x_t) + float(t))


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_algorithm_2_is_exact_with_a_garbage_restorer_and_algorithm_1_is_not(steps: int) -> None:
    x0, e = images(64), images(65)[1:]
    found = {}
    for name, process in {"2": Cold(shifting(e)), "1": Cold(shifting(e), step=naive)}.items():
        x1 = process.marginal(x0, 1.0).point()
        grid = sf.grids.uniform(process.schedule, steps)
        for sampler in ("ddim", "ddpm"):
            x = sf.sample(garbage, process, sf.samplers.get(sampler), grid, x1, rng=0)
            found[name, sampler] = float((x - x0).pow(2).mean().sqrt())
    assert found["2", "ddim"] == found["2", "ddpm"] < 1.4e-14  # 1e-15 is measured
    assert found["1", "ddim"] == pytest.approx(2.2, abs=0.6)


@pytest.mark.parametrize("name", NAMES)
def test_both_algorithms_are_exact_with_a_perfect_restorer(name: str) -> None:
    x0 = images()
    for process in (Cold(degradations.build(name)), Cold(degradations.build(name), step=naive)):
        grid = sf.grids.uniform(process.schedule, 9)
        x1 = process.marginal(x0, 1.0).point()
        x = sf.sample(lambda x, t, cond=None: Dirac(x0), process, sf.samplers.get("ddim"), grid, x1)
        assert torch.allclose(x, x0, rtol=0, atol=1e-12)


def test_algorithm_2_errs_by_the_restorer_times_the_second_order_of_the_path() -> None:
    """On a smooth path the restorer's error cancels to first order; on algorithm 1 all of it stays."""
    x0 = images()
    off = {}
    for name, process in {"2": Cold(Blur(3.0)), "1": Cold(Blur(3.0), step=naive)}.items():
        law = process.bridge(process.marginal(x0, 0.5).point(), Dirac(x0 + 0.1), 0.5, 0.45)
        wrong = process.bridge(process.marginal(x0, 0.5).point(), Dirac(1.1 * x0), 0.5, 0.45)
        off[name] = [float((law_.point() - process.marginal(x0, 0.45).point()).abs().max()) for law_ in (law, wrong)]
    assert off["2"][0] < 1e-13  # blur keeps constants: their error cancels altogether
    assert off["1"][0] == pytest.approx(0.1, abs=1e-12)
    assert off["2"][1] < 0.3 * off["1"][1]


def test_what_a_cold_process_has_not() -> None:
    process, x = Cold(Blur(3.0)), images()
    for call in (
        lambda: process.forward(x, 0.2, 0.5), lambda: process.rate(Dirac(x), x, x, 0.5),
        lambda: process.marginal(x, 0.5, end=x),
    ):  # fmt: skip
        with pytest.raises(sf.Refusal, match="degrades the data itself"):
            call()
    with pytest.raises(sf.Refusal, match=r"no prior until it is fitted: use Cold\(...\)\.fit"):
        process.prior(x)
    with pytest.raises(sf.Refusal, match=r"needs a process with an \(alpha, sigma\) schedule, not Cold"):
        sf.sample(garbage, process, sf.samplers.get("heun"), [1.0, 0.0], x)
    assert process.loss(Dirac(x + 0.5), x, x, 0.3).tolist() == [pytest.approx(0.5 * SIDE**2)] * B
    q = sf.laws.Normal(x, 0.3)
    drawn = process.bridge(x, q, 0.6, 0.2).draw(sf.Stream(4))
    point = q.draw(sf.Stream(4))
    assert torch.equal(drawn, x - process.degrade(point, 0.6) + process.degrade(point, 0.2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blurr", "unknown degradation 'blurr'"),
        ("blur:width=0", "width=0.0: needs a positive number"),
        ("blur:growth=-1", "growth=-1.0"),
        ("pixelate:coarsest=0", "coarsest=0"),
        ("mask:row=2", "row=2.0"),
        ("mask:edge=-1", "edge=-1.0"),
        ("scatter:soft=0", "soft=0.0"),
    ],
)
def test_bad_degradations(text: str, message: str) -> None:
    with pytest.raises(sf.Refusal, match=message):
        degradations.build(text)


def test_degradations_refuse_what_is_no_image() -> None:
    with pytest.raises(sf.Refusal, match=r"no batch of images \[b, ..., h, w\]"):
        Mask()(torch.zeros(4, 1, 3)[:, 0], 0.5)
    with pytest.raises(sf.Refusal, match="images are 4x4 already"):
        Pixelate(4)(torch.zeros(1, 1, 4, 4), 0.5)


# -------------------------------------------------------------------------------------------------------- priors


def clusters(n: int = 3000) -> tuple[Tensor, Tensor]:
    """Two classes on a plane of R^6: class 0 at (3, 0), class 1 half at (-3, 2) and half at (-3, -2)."""
    rng = sf.Stream(5)
    label = (rng.uniform((n,)) < 0.5).long()
    side = (rng.uniform((n,)) < 0.5).double() * 4 - 2
    plane = torch.stack([torch.where(label == 0, 3.0, -3.0).double(), torch.where(label == 0, 0.0, side)], 1)
    plane = plane + rng.normal((n, 2)).double() * torch.tensor([0.3, 0.6])
    axes = torch.linalg.qr(sf.Stream(6).normal((6, 2)).double()).Q
    return (plane @ axes.T + 1).reshape(n, 1, 2, 3), label


def test_the_fit_finds_the_law_of_every_class() -> None:
    x, label = clusters()
    prior = mixture_prior((1, 2, 3), directions=2, per_class=2, classes=2, noise=0.01).fit_mixture(x, label, 0)
    like = torch.zeros(20_000, 1, 2, 3, dtype=torch.float64)
    for k in (0, 1, 2):  # 2 is the label that stands for none
        own = x if k == 2 else x[label == k]
        drawn = prior(like).given({"label": torch.full((len(like),), k)}).draw(sf.Stream(k))
        assert torch.allclose(drawn.mean(0), own.mean(0), atol=0.06)
        assert torch.allclose(torch.cov(drawn.flatten(1).T), torch.cov(own.flatten(1).T), atol=(0.03, 0.25, 0.4)[k])
    bimodal = prior(like).given({"label": torch.ones(len(like), dtype=torch.int64)}).draw(sf.Stream(3)).flatten(1)
    second = principal(x.flatten(1) - x.flatten(1).mean(0), 2)[1]
    spread = (bimodal - bimodal.mean(0)) @ second
    assert float((spread.abs() < 0.5).double().mean()) < 0.1  # nothing between the two modes of class 1


def test_the_density_of_the_mixture_is_normalised_and_its_own() -> None:
    x, label = clusters()
    prior = mixture_prior((1, 2, 3), directions=2, per_class=2, classes=2, noise=0.2).fit_mixture(x, label, 0)
    like = torch.zeros(20_000, 1, 2, 3, dtype=torch.float64)
    law = prior(like)
    other = dataclasses.replace(law, noise=0.18, mean=law.mean + 0.05)
    drawn = law.draw(sf.Stream(0))
    assert z_mean((law.nll(drawn) - other.nll(drawn)).exp(), 1.0) < 4.5
    assert float((other.nll(drawn) - law.nll(drawn)).mean()) > 0
    one = mixture_prior((1, 2, 3), directions=6, per_class=1, noise=0.5).fit_mixture(x)
    flat = x.flatten(1)
    exact = torch.distributions.MultivariateNormal(flat.mean(0), torch.cov(flat.T, correction=0) + 0.25 * torch.eye(6))
    gap = one(x).nll(x) + exact.log_prob(flat)
    assert float(gap.abs().max()) < 0.05
    with pytest.raises(sf.Refusal, match="no density"):
        dataclasses.replace(law, noise=0.0).nll(drawn)


def test_the_mean_of_the_mixture_is_its_point() -> None:
    x, label = clusters()
    prior = mixture_prior((1, 2, 3), directions=2, per_class=2, classes=2).fit_mixture(x, label)
    law = prior(x[:2]).given({"label": torch.tensor([0, 1])})
    assert torch.allclose(law.point(), torch.stack([x[label == k].mean(0) for k in (0, 1)]), atol=1e-4)


def test_a_single_gaussian_is_fitted_exactly() -> None:
    y = sf.Stream(2).normal((500, 3)).double() @ torch.tensor([[1.0, 0.5, 0.2], [0, 1, 0.3], [0, 0, 1]]).double()
    weight, mean, cov = gaussian_mixture(y, 1, 0.0, torch.Generator().manual_seed(0))
    assert torch.allclose(weight, torch.ones(1, dtype=torch.float64))
    assert torch.allclose(mean[0], y.mean(0), atol=1e-10)
    assert torch.allclose(cov[0], torch.cov(y.T, correction=0), atol=1e-4)


def test_kernels_are_the_images_themselves() -> None:
    x, label = clusters(50)
    prior = kernel_prior((1, 2, 3), directions=2, points=80, noise=0.0).fit_kernels(x, label, 0)
    law = prior(torch.zeros(400, 1, 2, 3, dtype=torch.float64))
    drawn = law.given({"label": torch.zeros(400, dtype=torch.int64)}).draw(sf.Stream(0))
    y = (x.flatten(1) - law.centre) @ law.directions.T @ law.directions + law.centre
    off = torch.cdist(drawn.flatten(1), y).min(1)
    assert float(off.values.max()) < 1e-5
    assert bool((label[off.indices] == 0).all())
    assert len(off.indices.unique()) > 0.8 * int((label == 0).sum())


def test_priors_draw_every_seed_by_itself() -> None:
    x, label = clusters()
    prior = mixture_prior((1, 2, 3), directions=2, per_class=2, classes=2, noise=0.05).fit_mixture(x, label, 0)
    seeds = [7, 3, 11, 5, 2]

    def draw(chosen: list[int], labels: list[int]) -> Tensor:
        law = prior(torch.zeros(len(chosen), 1, 2, 3)).given({"label": torch.tensor(labels)})
        return law.draw(sf.Streams(chosen))

    together = draw(seeds, [0, 1, 0, 1, 1])
    for k, (seed, own) in enumerate(zip(seeds, [0, 1, 0, 1, 1], strict=True)):
        assert torch.equal(draw([seed], [own])[0], together[k])
    assert torch.equal(draw(seeds[::-1], [1, 1, 0, 1, 0]).flip(0), together)


def test_a_prior_is_stored_and_found_again() -> None:
    x, label = clusters(400)
    one, other = (mixture_prior((1, 2, 3), 2, 2, 2) for _ in range(2))
    with pytest.raises(sf.Refusal, match="has not been fitted"):
        other(x[:2])
    other.load_state_dict(one.fit_mixture(x, label, 0).state_dict())
    assert torch.equal(one(x[:3]).draw(sf.Stream(1)), other(x[:3]).draw(sf.Stream(1)))
    again = mixture_prior((1, 2, 3), 2, 2, 2).fit_mixture(x, label, 0)
    assert torch.equal(again.mean, one.mean)
    with pytest.raises(sf.Refusal, match="fitted to 6 coordinates, not to"):
        one(torch.zeros(2, 1, 2, 4))
    with pytest.raises(sf.Refusal, match="multiple of 2"):
        mixture_prior((1, 2, 3), 2, 3, 1).fit_mixture(x, label, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((7, 1, 1, 0.1), "directions=7"), ((2, 0, 1, 0.1), "components=0"), ((2, 1, 1, -1.0), "noise=-1")],
)
def test_bad_priors(arguments: Any, message: str) -> None:
    with pytest.raises(sf.Refusal, match=message):
        FittedPrior((1, 2, 3), *arguments)


def test_sampling_starts_at_the_prior_of_the_class() -> None:
    x, label = clusters()
    process = Cold(Fade(), step=naive).fit(x, label, directions=2, per_class=1, noise=0.0)
    like = torch.zeros(3, 1, 2, 3)
    assert torch.equal(start(process, like, 1.0).draw(sf.Stream(0)), torch.zeros_like(like))  # all has faded
    kept = Cold(lambda x0, t: x0).fit(x, label, directions=2, per_class=2, noise=0.0)
    drawn = start(kept, torch.zeros(200, 1, 2, 3), 1.0, {"label": torch.zeros(200, dtype=torch.int64)}).draw(
        sf.Stream(1)
    )
    assert torch.allclose(drawn.mean(0).double(), x[label == 0].mean(0), atol=0.2)
    with pytest.raises(sf.Refusal, match=r"grid begins at t=0.951, but the prior is fitted at t=1"):
        start(kept, like, 0.951)
    gaussian = sf.processes.Gaussian(sf.schedules.get("linear"))
    assert torch.equal(start(gaussian, like, 1.0).draw(sf.Stream(0)), gaussian.prior(like).draw(sf.Stream(0)))
    below = gaussian.marginal(like, 0.5).draw(sf.Stream(0))
    assert torch.equal(start(gaussian, like, 0.5).draw(sf.Stream(0)), below)


# -------------------------------------------------------------------------------------------------------- recipe


@pytest.mark.parametrize("degradation", ["blur:width=3", "pixelate:coarsest=2", "mask", "fade", "scatter:seed=1"])
def test_the_recipe_trains_stores_and_samples(tmp_path: Path, degradation: str) -> None:
    data = sf.data.load("digits")
    model = sf.train("cold", data, steps=1, out=tmp_path / "run", quiet=True, degradation=degradation, **TINY)
    first = model.sample(4, label=["3", "7"], seed=5, steps=3)
    loaded = sf.load(tmp_path / "run").sample(4, label=["3", "7"], seed=5, steps=3)
    assert torch.equal(first.x, loaded.x)
    alone = model.sample(2, label="7", seed=6, steps=3, batch=1)
    assert int((alone.x[0].int() - first.x[1].int()).abs().max()) <= 1
    assert first.record["nfe"] == 3


def test_the_recipe_is_algorithm_2_and_the_l1_norm_of_what_the_network_adds() -> None:
    data = sf.data.load("digits")
    model = sf.train("cold", data, steps=1, quiet=True, degradation="blur:width=2", **TINY)
    x0 = model.transform.encode(data.train.x[:3])
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    cond = {"label": data.train.label[:3]}
    x_t = Blur(2.0)(x0, t)
    eps = torch.randn_like(x0)
    seen = x_t + 0.01 * eps
    view = torch.cat([seen, degradations.sharpen(seen, Blur(2.0).time(t), 0.01)], 1)
    restored = seen + model.net.net(view, t.float(), cond)
    loss = model.parts.objective(model.denoiser, x0, t, cond, eps=eps)
    assert torch.allclose(loss, (restored - x0).abs().flatten(1).mean(1), rtol=1e-5)
    again = model.parts.objective(model.denoiser, x0, t, cond, sf.Stream(0))
    assert torch.allclose(again, model.parts.objective(model.denoiser, x0, t, cond, eps=sf.Stream(0).normal(eps.shape)))
    moved = model.process.bridge(x_t, Dirac(restored), t, t - 0.1)
    assert torch.allclose(moved.point(), x_t - Blur(2.0)(restored, t) + Blur(2.0)(restored, t - 0.1))
    drawn = start(model.process, model.like(2), 1.0, {"label": torch.tensor([1, 1])}).draw(sf.Stream(0))
    ones = Blur(2.0)(model.transform.encode(data.train.x[data.train.label == 1]), 1.0)
    assert float((drawn - ones.mean(0)).norm() / 2) < 2 * float((ones - ones.mean(0)).flatten(1).norm(dim=1).mean())


def test_the_recipe_refuses() -> None:
    with pytest.raises(sf.Refusal, match="unknown algorithm 'best'"):
        sf.train("cold", "digits", steps=1, quiet=True, algorithm="best", **TINY)
    with pytest.raises(sf.Refusal, match="unknown degradation"):
        sf.train("cold", "digits", steps=1, quiet=True, degradation="snow", **TINY)
    model = sf.train("cold", "digits", steps=1, quiet=True, **TINY)
    with pytest.raises(sf.Refusal, match="use the grid 'uniform'"):
        model.sample(1, grid="leading")
    for name in ("heun", "dpmpp-2m"):
        with pytest.raises(sf.Refusal, match="not Cold"):
            model.sample(1, sampler=name)
    for spacing in ("karras", "uniform-logsnr", "shifted", "optimised"):
        with pytest.raises(sf.Refusal, match="no noise that grows with t"):
            model.sample(1, grid=spacing)
    with pytest.raises(sf.Refusal, match="no noise that grows with t"):
        model.sample(1, sampler="auto")
    with pytest.raises(sf.Refusal, match="a Cold process has no probability-flow ODE"):
        sf.likelihood.evaluate(model, sf.data.load("digits"), 2)
