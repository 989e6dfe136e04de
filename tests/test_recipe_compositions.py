"""What every recipe composes, asserted through the recipe: schedule, prediction, law of times, value of its loss.

Replacing a recipe's distinguishing equation makes its own row fail; the coupled flows and EDM2 have files of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato.schedules import at, rates

B = 6


class Wrong(nn.Module):
    """A network that states something else: a fixed function of its input and its time."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs, self.compute_dtype = outputs, torch.float32

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        y = 0.3 * x[:, :1] + 0.1 * t.reshape(-1, 1, 1, 1)
        return y if self.outputs == 1 else torch.cat([y, 0.2 * x[:, :1]], 1)


def batch() -> tuple[Tensor, Tensor]:
    points = sf.Stream(3)
    return (0.5 * points.normal((B, 1, 2, 2))).clamp(-1, 1), points.normal((B, 1, 2, 2))


def compose(name: str, **changes: Any) -> Any:
    from sfumato.training.settings import resolve

    recipe = sf.recipes.get(name)
    settings = resolve(recipe.defaults, changes)
    return recipe.compose(settings, recipe.wrap(settings, Wrong(recipe.outputs)))


def noised(process: Any, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x0, eps = batch()
    alpha, sigma = at(process.schedule, t, x0)
    return x0, eps, alpha, sigma


def mean_square(error: Tensor) -> Tensor:
    return (error**2).flatten(1).mean(1)


def plain_eps(parts: Any, t: Tensor) -> Tensor:
    """``|eps - eps_net(x_t, t)|^2`` of a network that sees ``x_t`` at unit variance (its input scale is 1 on VP)."""
    x0, eps, alpha, sigma = noised(parts.denoiser.head.process, t)
    scale = (alpha**2 + sigma**2) ** -0.5
    return mean_square(Wrong()(scale * (alpha * x0 + sigma * eps), t.float()) - eps)


def edm_loss(parts: Any, t: Tensor) -> Tensor:
    """Karras et al. 2022, eq. 8: ``lambda |D - x0|^2`` with ``D = c_skip x + c_out F(c_in x)`` and table 1."""
    x0, eps, _, sigma = noised(parts.denoiser.head.process, t)
    s, x = 0.5, x0 + sigma * eps
    c_skip, c_in = s**2 / (sigma**2 + s**2), (sigma**2 + s**2) ** -0.5
    c_out = sigma * s * c_in
    denoised = c_skip * x + c_out * Wrong()(c_in * x, t.float())
    return mean_square((denoised - x0) * (sigma**2 + s**2) ** 0.5 / (sigma * s))


def flow_loss(parts: Any, t: Tensor) -> Tensor:
    """Liu et al. 2022, eq. 1: ``|v - (eps - x0)|^2`` on the straight path."""
    x0, eps, alpha, sigma = noised(parts.denoiser.head.process, t)
    scale = (alpha**2 + sigma**2) ** -0.5
    return mean_square(Wrong()(scale * (alpha * x0 + sigma * eps), t.float()) - (eps - x0))


#: Recipe: the name of its schedule, a law of times at the quantiles .1, .5 and .9, and its loss written out.
ROWS: dict[str, tuple[Any, tuple[float, float, float], Callable[[Any, Tensor], Tensor]]] = {
    "ddpm": (sf.schedules.get("linear"), (0.101, 0.501, 0.901), plain_eps),
    "vp-sde": (sf.schedules.get("vp"), (0.100009, 0.500005, 0.900001), plain_eps),
    "subvp-sde": (sf.schedules.get("sub-vp"), (0.100009, 0.500005, 0.900001), plain_eps),
    "ve-sde": (
        sf.schedules.get("geometric", sigma_min=0.01, sigma_max=20.0),
        (0.100009, 0.500005, 0.900001),
        plain_eps,
    ),
    "edm": (
        sf.schedules.get("karras"),
        tuple((math.exp(-1.2 + 1.2 * z) / 80) ** (1 / 7) for z in (-1.2815515655446004, 0.0, 1.2815515655446004)),  # type: ignore[dict-item]
        edm_loss,
    ),
    "flow": (sf.schedules.get("flow"), (0.1, 0.5, 0.9), flow_loss),
}


@pytest.mark.parametrize("name", ROWS)
def test_schedule_times_and_loss(name: str) -> None:
    schedule, quantiles, loss = ROWS[name]
    parts = compose(name)
    assert parts.denoiser.head.process.schedule == schedule
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(parts.times(u), torch.tensor(quantiles, dtype=torch.float64), rtol=1e-9)
    t = torch.linspace(0.3, 0.95, B, dtype=torch.float64)
    x0, eps = batch()
    found = parts.objective(parts.denoiser, x0, t, None, eps=eps)
    assert torch.allclose(found, loss(parts, t), rtol=1e-4), name
    assert parts.coupling is None


def test_improved_ddpm_is_hybrid_on_the_cosine_table() -> None:
    """``L_simple + .001 L_vlb`` (Nichol and Dhariwal 2021, eq. 16): twice the weight adds the bound once more."""
    parts = compose("improved-ddpm")
    assert parts.denoiser.head.process.schedule == sf.schedules.get("cosine")
    t = (torch.arange(1, B + 1, dtype=torch.float64) * 150).clamp(max=999) / 1000
    x0, eps = batch()

    def loss(weight: float) -> Tensor:
        own = compose("improved-ddpm", vlb_weight=weight)
        return own.objective(own.denoiser, x0, t, None, sf.Stream(0), eps=eps)

    bound = loss(2.0) - loss(1.0)
    simple = loss(1.0) - bound
    assert bool((bound.abs() > 1e-7).all())
    assert torch.allclose(simple, plain_eps(parts, t), rtol=1e-3, atol=1e-4)
    default = parts.objective(parts.denoiser, x0, t, None, sf.Stream(0), eps=eps)
    assert torch.allclose(default, loss(0.001), rtol=1e-6)
    assert not torch.allclose(loss(1.0), simple, rtol=1e-4)


def test_vdm_is_the_bound_in_bits() -> None:
    """Kingma et al. 2021: ``(1/2) gamma'(t) |eps - eps_net|^2`` in bits per dimension, above the prior and decoder."""
    parts = compose("vdm")
    process = parts.denoiser.head.process
    assert type(process.schedule).__name__ == "Learned"
    t = torch.linspace(0.3, 0.7, B, dtype=torch.float64)
    # grey levels of [-1, 1], as the decoder needs
    x0 = (batch()[0] * 127.5 + 127.5).round() / 127.5 - 1
    eps = batch()[1]
    found = parts.objective(parts.denoiser, x0, t, None, sf.Stream(0), eps=eps).double()
    assert found.shape == (B,)
    alpha, sigma, dalpha, dsigma = (v.detach() for v in rates(process.schedule, t, x0.double()))
    raw = parts.denoiser.raw((alpha * x0.double() + sigma * eps.double()).float(), t, None)
    raw = raw[0] if isinstance(raw, tuple) else raw
    # gamma' = -d log-SNR / du, where u runs over [0, 1] above the schedule's short ramp
    slope = 2 * (dsigma / sigma - dalpha / alpha) * (1 - process.schedule.first)
    diffusion = (slope / 2 * (raw.double() - eps.double()) ** 2).flatten(1).mean(1) / math.log(2)
    rest = (found - diffusion).detach()
    # what is left, L_0 and L_T, does not depend on t or on the network's error
    assert bool((rest > 0).all())
    assert float((diffusion / found).detach().min()) > 0.2
    other = parts.objective(parts.denoiser, x0, t.flip(0), None, sf.Stream(0), eps=eps).double().detach()
    assert not torch.allclose(other, found.detach(), rtol=1e-3)


@pytest.mark.parametrize(("name", "settings"), [("linear", {}), ("levels", {"count": 12}), ("zero-terminal", {})])
def test_schedules_made_alike_are_equal(name: str, settings: dict[str, Any]) -> None:
    one, other = sf.schedules.get(name, **settings), sf.schedules.get(name, **settings)
    assert one == other
    assert hash(one) == hash(other)
    assert one != sf.schedules.get("cosine")
