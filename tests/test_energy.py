"""The energy-based view: symmetric Jacobians, second derivatives of the layers, log-density differences, training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato import nets, recipes
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.energies import log_density
from sfumato.errors import Refusal
from sfumato.nets import layers
from sfumato.nets.energy import FORMS, Energy
from sfumato.training.settings import resolve


def small_unet(kind: str, **settings: object) -> nn.Module:
    made = {"in_channels": 1, "out_channels": 1, "size": (8, 8), "channels": (8,), "attention": (True,), "blocks": 1}
    net = nets.get(kind, **(made | settings))
    for parameter in net.parameters():  # gains and last layers start at zero
        parameter.data += 0.3 * torch.randn_like(parameter)
    net.compute_dtype = torch.float64
    return net.double().eval()


def jacobian(f: nn.Module, x: Tensor) -> Tensor:
    """The whole Jacobian of one image, by second derivatives where ``f`` is an energy."""
    x = x.detach().requires_grad_()
    y = f(x, torch.full((len(x),), 0.4)).flatten()
    rows = [torch.autograd.grad(y[k], x, retain_graph=True)[0].flatten() for k in range(len(y))]
    return torch.stack(rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["unet", "mp-unet"])
def test_the_jacobian_of_an_energys_gradient_is_symmetric(kind: str, form: str) -> None:
    net, x = small_unet(kind), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    free, conservative = jacobian(net, x), jacobian(Energy(net, form), x)
    assert float((free - free.T).abs().max()) > 1e-2  # a free network's is not
    assert float((conservative - conservative.T).abs().max()) < 1e-10 * float(conservative.abs().max())


def test_the_output_is_the_gradient_of_the_energy_row_by_row() -> None:
    model = Energy(small_unet("unet", size=(4, 4)), "inner")
    x, t, h = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9]), 1e-5
    with torch.no_grad():
        gradient = model(x, t)
        step = torch.zeros_like(x)
        step[:, 0, 1, 2] = h
        slope = (model.energy(x + step, t) - model.energy(x - step, t)) / (2 * h)
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient[:, 0, 1, 2], slope, atol=1e-7, rtol=1e-7)


def test_layers_have_right_second_derivatives() -> None:
    torch.manual_seed(1)
    wide = {"dtype": torch.float64, "requires_grad": True}
    x, scale, shift = torch.randn(2, 4, 4, 3, **wide), torch.randn(2, 4, 1, 1, **wide), torch.randn(1, 4, 1, 1, **wide)
    assert torch.autograd.gradgradcheck(lambda *a: layers.modulated_group_norm(*a, 2), (x, scale, shift))
    rows = [torch.randn(2, 66, 2, **wide) for _ in range(3)]  # more than FEW_TOKENS: the blockwise kernel
    assert torch.autograd.gradgradcheck(layers.attend, rows, fast_mode=True)
    up = layers.Upsample(2).double()
    assert torch.autograd.gradgradcheck(up, (torch.randn(1, 2, 2, 3, **wide),))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "edm"])
def test_energy_differences_are_log_density_differences(prediction: str) -> None:
    """On the exact network of N(0, s^2): F = c x is the gradient of c |x|^2 / 2, whatever F predicts."""
    s, t = 0.7, 0.6
    process = sf.processes.Gaussian(sf.schedules.get({"edm": "karras", "flow": "flow"}.get(prediction, "linear")))
    head = GaussianHead(process, prediction, 0.5)
    alpha, sigma = sf.schedules.at(process.schedule, t)
    x = torch.randn(5, 2, dtype=torch.float64)
    var = alpha**2 * s**2 + sigma**2
    exact = head.target(alpha * s**2 / var * x, x, t)  # the best output states E[x0 | x_t]
    slope = float((exact / (head.input_scale(t, x) * x)).mean())

    class Half(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return slope / 2 * x

    found = log_density(Preconditioned(Energy(Half()), head), x, t)
    true = -x.square().sum(1) / (2 * var)
    torch.testing.assert_close(found - found[0], true - true[0], atol=1e-10, rtol=1e-10)


class Tiny(nn.Module):
    """A smooth network of 2-D points."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.layers(torch.cat([x, t[:, None].to(x)], 1))  # type: ignore[no-any-return]


def test_a_trained_energy_recovers_the_score_and_the_log_density_of_a_mixture() -> None:
    torch.manual_seed(0)
    process = sf.processes.Gaussian(sf.schedules.get("linear"))
    mixture = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]], 0.16)
    model = Preconditioned(Energy(Tiny()), GaussianHead(process, "eps"))
    optimiser = torch.optim.Adam(model.net.parameters(), 3e-3)
    t, rng = 0.2, sf.Stream(0)  # sigma is 0.56
    _, sigma = sf.schedules.at(process.schedule, t)
    steps = 600
    for step in range(steps):
        x0 = mixture.sample(512, rng).float()
        eps = torch.randn(512, 2)
        x_t = process.marginal(x0, t, eps).point()
        loss = (model.raw(x_t, t) - eps).square().mean()
        loss.backward()
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimiser.step()
        optimiser.zero_grad()
    x0 = mixture.sample(2000, rng)
    x_t = process.marginal(x0, t, torch.randn(2000, 2, dtype=torch.float64)).point()
    true = -sigma * mixture.score(process, x_t, t)
    with torch.no_grad():
        found = model.raw(x_t.float(), t).double()
        density = log_density(model, x_t.float(), t).double()
    assert float((found - true).square().mean() / true.square().mean()) < 0.01
    exact = mixture.logp(process, x_t, t)
    residual = (density - density.mean()) - (exact - exact.mean())
    assert float(residual.std() / exact.std()) < 0.1


def test_a_recipe_trains_an_energy_by_one_setting() -> None:
    tiny = {"channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 16, "validation_images": 8}
    model = sf.train("ddpm", "digits", steps=3, quiet=True, energy="inner", grid_columns=0, **tiny)
    assert isinstance(model.net, Energy)
    assert model.sample(2, steps=2).x.shape == (2, 8, 8)
    x_t = torch.randn(2, 1, 8, 8)
    assert bool(torch.isfinite(log_density(model.denoiser, x_t, 0.5, {"label": torch.tensor([1, 2])})).all())
    with pytest.raises(Refusal, match=r"unknown energy 'iner'.*inner"):
        sf.train("ddpm", "digits", steps=1, energy="iner")
    for recipe in ("improved-ddpm", "vdm"):
        with pytest.raises(Refusal, match="energy=inner: needs as many outputs as inputs"):
            sf.train(recipe, "digits", steps=1, energy="inner", **tiny)


@pytest.mark.parametrize("recipe", ["ddpm", "edm2", "ncsnv2"])
def test_log_densities_are_those_of_the_score(recipe: str) -> None:
    """Whatever a recipe puts around its energy: the gradient is ``(alpha x0 - x_t) / sigma^2`` of its own belief."""
    tiny = {"channels": (8,), "attention": (False,), "blocks": 1, "precision": "float32", "energy": "inner"}
    chosen = recipes.get(recipe)
    model = chosen.build(resolve(chosen.defaults, tiny), sf.data.load("digits").spec(), {"seed": 0, "horizon": {}})
    for parameter in model.net.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    model.net.eval()
    t, label = 0.4, {"label": torch.tensor([1, 2])}
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (score,) = torch.autograd.grad(log_density(model.denoiser, x, t, label).sum(), x)
    alpha, sigma = sf.schedules.at(model.process.schedule, t)
    with torch.no_grad():
        expected = (alpha * model.denoiser(x, t, label).point() - x) / sigma**2
    torch.testing.assert_close(score, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)


def test_refusals() -> None:
    with pytest.raises(Refusal, match=r"unknown energy 'iner'.*inner"):
        Energy(Tiny(), "iner")
    pair = nets.get("unet", in_channels=1, out_channels=2, size=(4, 4), channels=(8,), attention=(False,), blocks=1)
    with pytest.raises(Refusal, match="shaped like the input"):
        Energy(pair)(torch.randn(1, 1, 4, 4), torch.rand(1))
    head = GaussianHead(sf.processes.Gaussian(sf.schedules.get("linear")), "eps")
    with pytest.raises(Refusal, match="the network is Tiny, the gradient of no energy"):
        log_density(Preconditioned(Tiny(), head), torch.randn(1, 2), 0.5)
    with pytest.raises(Refusal, match="the network is Tiny, the gradient of no energy"):
        log_density(Preconditioned(nets.Bundle(Tiny()), head), torch.randn(1, 2), 0.5)
