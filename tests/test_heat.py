"""Inverse heat dissipation: exact values of the heat equation, its laws and bound, and the recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.degradations import cosines, decay, diffuse, sharpen
from sfumato.laws import Dirac, Normal
from sfumato.processes import Heat
from sfumato.processes.heat import Restoration, Widths
from sfumato.testing import SigmaPoints, check_bridge, check_ends_of_process, z_mean

TINY: dict[str, Any] = {
    "channels": (8, 8), "attention": (False, False), "blocks": 1, "patch": 2, "batch": 8, "validation_images": 16,
    "grid_columns": 0,
}  # fmt: skip


def line(values: Tensor) -> Tensor:
    """A signal as an image of one row."""
    return values.double().reshape(1, 1, 1, -1)


def images(n: int = 4, side: int = 8) -> Tensor:
    return sf.Stream(1).normal((n, 1, side, side)).double()


# -------------------------------------------------------------------------------------------------- heat equation


def test_semigroup_and_mean() -> None:
    """Of images within [-1, 1], 32 by 32: to 4e-16 and to 1e-17 (1.1e-16 and 2.6e-18 are measured)."""
    x = images(side=32)
    x = x / x.abs().max()
    assert float((diffuse(diffuse(x, 1.3), 0.7) - diffuse(x, 2.0)).abs().max()) < 4e-16
    assert float((diffuse(x, 5.0).mean((-1, -2)) - x.mean((-1, -2))).abs().max()) < 1e-17


def test_mode_factor() -> None:
    """Mode 3 of 32 pixels after a time of 2 decays by exp(-(3 pi / 32)^2 2) = .8407262815."""
    mode = line(cosines(32)[3])
    factor = (diffuse(mode, 2.0) / mode).flatten()
    assert torch.allclose(factor, torch.full_like(factor, 0.8407262815), rtol=0, atol=5e-11)
    assert float(decay(32, torch.tensor(2.0, dtype=torch.float64))[3]) == pytest.approx(0.8407262815, abs=5e-11)


def test_a_point_becomes_a_gaussian() -> None:
    """On a line to 3e-17, twice the spacing of floats at its height; in the plane to 7e-18."""
    place = torch.arange(128) - 64
    blurred = diffuse(line(place == 0), 3.0**2 / 2).flatten()
    gaussian = torch.exp(-(place.double() ** 2) / 18) / math.sqrt(2 * math.pi * 9)
    assert float((blurred - gaussian).abs().max()) < 3e-17
    assert float((blurred * place**2).sum()) == pytest.approx(9.0, abs=1e-13)
    point = ((place[:, None] == 0) & (place == 0)).double()[None, None]
    plane = diffuse(point, 3.0**2 / 2)[0, 0]
    assert float((plane - gaussian[:, None] * gaussian).abs().max()) < 7e-18


def test_borders_reflect_and_columns_are_as_rows() -> None:
    x = images(side=10)
    mirrored = torch.cat([x, x.flip(-1)], -1)
    assert torch.allclose(diffuse(mirrored, 3.0)[..., :10], diffuse(x, 3.0), atol=1e-14)
    assert torch.allclose(diffuse(x.mT, 3.0), diffuse(x, 3.0).mT, atol=1e-14)
    times = torch.tensor([0.0, 0.4, 2.0, 30.0], dtype=torch.float64)
    each = torch.cat([diffuse(x[k : k + 1], float(times[k])) for k in range(4)])
    assert torch.allclose(diffuse(x, times), each, rtol=0, atol=1e-14)


def test_the_cosines_are_those_of_scipy() -> None:
    from scipy.fft import dctn

    x = images(1, 16)[0, 0]
    ours = cosines(16) @ x @ cosines(16).T
    assert torch.allclose(ours, torch.from_numpy(dctn(x.numpy(), norm="ortho")), atol=1e-13)


def test_widths_are_the_papers_levels() -> None:
    widths = Widths(0.5, 20.0, 100)
    t = torch.arange(101, dtype=torch.float64) / 100
    paper = torch.cat([torch.zeros(1), torch.logspace(math.log10(0.5), math.log10(20), 100, dtype=torch.float64)])
    assert torch.allclose(widths(t), paper, rtol=1e-12)
    fine = widths(torch.linspace(0, 1, 5001, dtype=torch.float64))
    assert bool((fine.diff() > 0).all())
    assert float(fine.diff().max()) < 0.02


# ---------------------------------------------------------------------------------------------------- the process


def test_laws_of_the_process() -> None:
    process = Heat(Widths(0.5, 3.0, 20), 0.1, 0.125, law=lambda like: Normal(torch.zeros_like(like) + 0.2, 0.125**2))
    x0 = torch.tensor([[1.0, 0.2], [-0.3, 0.6]], dtype=torch.float64).reshape(1, 1, 2, 2)
    rng = sf.Stream(0)
    x_t = process.marginal(x0, 0.4).draw(rng)
    for eta in (1.0, 0.6, 0.0):
        assert torch.equal(process.bridge(x_t, Dirac(x0), 0.4, 0.0, eta).point(), x0)
    clean = x0.expand(50_000, -1, -1, -1)
    for t, s in ((0.7003, 0.3002), (1.0, 0.55)):
        check_bridge(process, clean, t, s, rng)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    law = process.marginal(x0.repeat(3, 1, 1, 1), times)
    assert law.var.flatten().tolist() == pytest.approx([0.0, 0.01, 0.01])
    assert torch.equal(law.draw(sf.Stream(0))[0], x0[0])
    moved = process.bridge(law.mean, Dirac(law.mean), times + 0.1, times)
    assert moved.var.flatten().tolist() == pytest.approx([0.0, 0.01, 0.01])


def test_ends_with_a_prior_that_fits() -> None:
    x0 = images(1, 2)
    end = Heat(Widths(0.5, 3.0, 20)).blurred(x0, 1.0)
    process = Heat(Widths(0.5, 3.0, 20), law=lambda like: Normal(end.expand_as(like), 0.01**2))
    check_ends_of_process(process, x0, sf.Stream(0))


def test_a_restoration_steps_with_its_own_noise() -> None:
    process, x = Heat(), images(side=12)
    guess = Restoration(0.5 * x, 0.0125)
    law = process.bridge(x, guess, 0.8, 0.7)
    assert torch.equal(law.mean, process.blurred(0.5 * x, 0.7))
    assert law.var == pytest.approx(0.0125**2)
    last = process.bridge(x, guess, 0.01, 0.0)
    assert torch.equal(last.mean, 0.5 * x)
    assert last.var == pytest.approx(0.0125**2)
    half = process.bridge(x, guess, 0.8, 0.7, 0.6)
    kept = 0.8 * (x - process.blurred(0.5 * x, 0.8))
    assert torch.allclose(half.mean, process.blurred(0.5 * x, 0.7) + kept, atol=1e-14)
    assert half.var == pytest.approx((0.6 * 0.0125) ** 2)
    cold = process.bridge(x, guess, 0.8, 0.7, 0.0)
    improved = x - process.blurred(0.5 * x, 0.8) + process.blurred(0.5 * x, 0.7)
    assert torch.allclose(cold.point(), improved, atol=1e-14)
    guided = guess.tilt(Restoration(x, 0.5), 2.0)
    assert torch.equal(guided.x, 2 * 0.5 * x - x)
    assert guided.delta == 0.0125
    clipped = sf.guidance.clip(-0.1, 0.1)(guess)
    assert torch.equal(clipped.x, (0.5 * x).clamp(-0.1, 0.1))
    assert clipped.delta == 0.0125
    drawn = process.bridge(x, Normal(x, 0.3), 0.6, 0.2).draw(sf.Stream(4))
    assert drawn.shape == x.shape


def test_a_step_of_the_exact_model_costs_a_constant() -> None:
    """``(sigma^2/delta^2 - 1 + log(delta^2/sigma^2)) / 2 = .04314355`` nats a coordinate for .01 and .0125."""
    process, x0 = Heat(), images(3, 6)
    x_t = process.marginal(x0, 0.6).draw(sf.Stream(0))
    exact = sf.step_kl(process, Restoration(x0, process.delta), x0, x_t, 0.6, 0.55)
    assert torch.allclose(exact / 36, torch.full((3,), 0.04314355).double(), rtol=0, atol=5e-9)
    off = sf.step_kl(process, Restoration(x0 + images(4, 6)[1:], process.delta), x0, x_t, 0.6, 0.59)
    at_level = process.loss(Restoration(x0 + images(4, 6)[1:], process.delta), x0, x_t, 0.6)
    assert torch.allclose(off - exact, at_level / (2 * process.delta**2), rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_the_bound_of_the_exact_model(steps: int) -> None:
    """The ELBO is ``L_K + K consts + L_0``: prior, a constant for each of K steps above the data, and the last."""
    x0 = images(4, 6)
    prior = Normal(torch.zeros_like(x0), 1.0)
    process = Heat(law=lambda like: prior)
    found = sf.elbo(
        lambda x, t, cond=None: Restoration(x0, process.delta), process, x0,
        sf.grids.uniform(process.schedule, steps), sf.Stream(0),
    )  # fmt: skip
    d = 36
    end = Normal(process.blurred(x0, 1.0), process.sigma**2)
    last = d / 2 * math.log(2 * math.pi * process.delta**2)
    assert torch.allclose(found.prior, end.kl(prior))
    assert torch.allclose(found.reconstruction, torch.full((4,), last).double())
    assert torch.allclose(found.total, end.kl(prior) + (steps - 1) * d * 0.043143551 + last, rtol=0, atol=1e-5)


def test_the_bound_from_a_fitted_prior() -> None:
    """Of two blurred images far apart: the KL of two normals of one mean, and log 2 where the class is not told."""
    x0, n, d = images(2, 6), 2000, 36
    label = torch.arange(2)
    process = Heat().fit(x0, label, points=2, directions=2)
    clean, grid = x0.repeat(n, 1, 1, 1), sf.grids.uniform(process.schedule, 2)

    def exact(x: Tensor, t: Any, cond: Any = None) -> Restoration:
        return Restoration(clean, process.delta)

    for cond, extra in ((None, math.log(2)), ({"label": label.repeat(n)}, 0.0)):
        found = sf.elbo(exact, process, clean, grid, sf.Stream(0), cond)
        assert z_mean(found.prior.double(), d * 0.043143551 + extra) < 4.5
        assert float(found.prior.std()) / math.sqrt(2 * n) < 0.05


def test_gaussian_images_are_recovered_by_the_right_noise() -> None:
    """On a mode of variance v the exact reverse step has ``delta^2 = sigma^2 (1 + a_s^2 v / (a_t^2 v + sigma^2))``.

    That is between 1 and about sqrt 2 times sigma, as the paper's 1.25; the draws have the marginal's variance.
    """
    process, v = Heat(Widths(0.5, 4.0, 20), 0.1, 0.1), 1.0
    mode = (cosines(8)[2][:, None] * cosines(8)[0]).reshape(1, 1, 8, 8)
    t, s = 0.8, 0.75
    a_t, a_s = (float((process.blurred(mode, u) * mode).sum()) for u in (t, s))
    delta = (process.sigma**2 * (1 + a_s**2 * v / (a_t**2 * v + process.sigma**2))) ** 0.5
    assert 1 < delta / process.sigma < math.sqrt(2) * a_s / a_t
    x0 = SigmaPoints().normal((4096, 1)).double().reshape(-1, 1, 1, 1) * v**0.5 * mode
    x_t = process.marginal(x0, t).draw(sf.Stream(0))
    y = (x_t * mode).sum((1, 2, 3), keepdim=True)
    restored = a_t * v / (a_t**2 * v + process.sigma**2) * y * mode
    x_s = process.bridge(x_t, Restoration(restored, delta), t, s).draw(sf.Stream(1))
    var = float((x_s * mode).sum((1, 2, 3)).var())
    assert var == pytest.approx(a_s**2 * v + process.sigma**2, rel=0.1)


@pytest.mark.parametrize("eta", [2.0, -0.5, 1.000001])
def test_a_share_of_noise_beyond_the_whole_is_refused(eta: float) -> None:
    process, x = Heat(), images()
    for q in (Dirac(x), Restoration(x, 0.1), Normal(x, 0.1)):
        with pytest.raises(sf.Refusal, match=rf"eta={eta:g}: the share of fresh noise of a Heat bridge lies in"):
            process.bridge(x, q, 0.5, 0.2, eta)


def test_what_heat_has_not() -> None:
    process, x = Heat(), images()
    for call in (lambda: process.forward(x, 0.2, 0.5), lambda: process.marginal(x, 0.5, end=x)):
        with pytest.raises(sf.Refusal, match="draws every state from the data alone"):
            call()
    with pytest.raises(sf.Refusal, match="no continuous-time bound"):
        process.rate(Dirac(x), x, x, 0.5)
    with pytest.raises(sf.Refusal, match=r"no prior until it is fitted: use Heat"):
        process.prior(x)
    for bad in (lambda: Heat(sigma=0.0), lambda: Heat(delta=-1.0), lambda: Widths(2.0, 1.0), lambda: Widths(levels=1)):
        with pytest.raises(sf.Refusal):
            bad()


def test_the_prior_is_a_blurred_image_with_noise() -> None:
    x0, label = images(60), torch.arange(60) % 3
    process = Heat(Widths(0.5, 2.0, 20)).fit(x0, label, points=60, directions=64)
    like = torch.zeros(500, 1, 8, 8, dtype=torch.float64)
    drawn = sf.processes.fitted.start(process, like, 1.0, {"label": torch.ones(500, dtype=torch.int64)}).draw(
        sf.Stream(0)
    )
    blurred = process.blurred(x0, 1.0)
    near = torch.cdist(drawn.flatten(1), blurred.flatten(1)).min(1)
    assert bool((label[near.indices] == 1).all())
    assert len(near.indices.unique()) == 20
    assert float(near.values.square().mean() / 64) == pytest.approx(0.0125**2, rel=0.05)
    nll = process.prior(drawn[:50]).nll(drawn[:50])
    kernels = [Normal(blurred[k : k + 1].expand(50, -1, -1, -1), 0.0125**2).nll(drawn[:50]) for k in range(60)]
    assert torch.allclose(nll, -torch.logsumexp(-torch.stack(kernels), 0) + math.log(60), rtol=1e-4)


# --------------------------------------------------------------------------------------------------------- recipe


def test_the_recipe_trains_stores_and_samples(tmp_path: Path) -> None:
    data = sf.data.load("digits")
    settings = TINY | {"levels": 6, "greatest": 3.0, "points": 64}
    model = sf.train("heat", data, steps=1, out=tmp_path / "run", quiet=True, **settings)
    first = model.sample(4, label=["3", "7"], seed=5, steps=6, guidance=1.5)
    loaded = sf.load(tmp_path / "run").sample(4, label=["3", "7"], seed=5, steps=6, guidance=1.5)
    assert torch.equal(first.x, loaded.x)
    assert model.process.widths == Widths(0.5, 3.0, 6)
    u = torch.tensor([0.05, 0.5, 0.99], dtype=torch.float64)
    assert torch.allclose(model.times(u) * 6, torch.tensor([1.0, 4.0, 6.0]).double())  # the levels themselves
    assert model.process.delta / model.process.sigma == pytest.approx(1.25)


def test_the_recipe_begins_at_blurred_training_images_with_its_own_noise() -> None:
    data = sf.data.load("digits")
    model = sf.train("heat", data, steps=1, quiet=True, levels=10, greatest=3.0, points=2000, directions=64, **TINY)
    process, like = model.process, torch.zeros(200, 1, 8, 8)
    blurred = process.blurred(model.transform.encode(data.train.x), 1.0).flatten(1)
    law = sf.processes.fitted.start(process, like, 1.0, {"label": torch.arange(200) % 10})
    near = torch.cdist(law.draw(sf.Stream(0)).flatten(1), blurred).amin(1)
    # the prior keeps some directions of the blur exactly and the noise of all
    assert float(near.square().mean() / 64) == pytest.approx(process.delta**2, rel=0.25)
    sharp = torch.cdist(law.draw(sf.Stream(0)).flatten(1), model.transform.encode(data.train.x).flatten(1)).amin(1)
    assert float(sharp.square().mean()) > 20 * float(near.square().mean())


def test_the_recipe_regresses_the_slightly_less_blurred_image() -> None:
    data = sf.data.load("digits")
    model = sf.train("heat", data, steps=1, quiet=True, levels=10, greatest=3.0, points=64, **TINY)
    process = model.process
    x0, cond = model.transform.encode(data.train.x[:3]), {"label": data.train.label[:3]}
    t, eps = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), torch.randn(3, 1, 8, 8)
    x_t = process.blurred(x0, t) + process.sigma * eps
    view = torch.cat([x_t, sharpen(x_t, process.widths(t) ** 2 / 2, process.sigma)], 1)
    restored = x_t + model.net.net(view, t.float(), cond)
    less = process.blurred(x0, t - 0.1)
    error = (process.blurred(restored, t - 0.1) - less).square().flatten(1).mean(1)
    loss = model.parts.objective(model.denoiser, x0, t, cond, eps=eps)
    assert torch.allclose(loss, error, rtol=1e-4)
    q = model.denoiser(x_t, t, cond)
    assert isinstance(q, Restoration)
    assert q.delta == process.delta
