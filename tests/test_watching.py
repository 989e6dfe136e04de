"""Watching a run tells the truth: validation does not depend on the batch, levels are named right, plots show all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato.nets import Bundle, Energy
from sfumato.nets.delegated import Delegated
from sfumato.recipes.ncsnv2 import NoiseBlind
from sfumato.schedules import Learned
from sfumato.training.grey import GreyLevels
from sfumato.training.pictures import loss_figure, loss_limits
from sfumato.training.validation import Validation
from sfumato.training.variational import VariationalNet

TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 32, "warmup": 2, "precision": "float32",
    "reports": 1, "validation_images": 16, "grid_columns": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> sf.data.Data:
    return sf.data.load("digits")


@pytest.mark.parametrize("name", ["flow", "vdm", "interpolant", "improved-ddpm"])
def test_the_held_out_loss_does_not_depend_on_the_batch(name: str, digits: sf.data.Data) -> None:
    model = sf.train(name, digits, steps=1, quiet=True, **TINY)
    whole, parts, ones = (Validation(model, digits.test, 16, seed=0, batch=b)(model) for b in (16, 5, 1))
    for other in (parts, ones):
        for a, b in zip(whole["levels"], other["levels"], strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_two_images_do_not_share_a_stream(digits: sf.data.Data) -> None:
    """What an objective draws in validation differs from row to row."""
    model = sf.train("flow", digits, steps=1, quiet=True, **TINY)
    seen: list[Tensor] = []

    def objective(denoiser: Any, x0: Tensor, t: Tensor, cond: Any, rng: Any, **_: Any) -> Tensor:
        seen.append(rng.normal((len(x0), 3)))
        return seen[-1].mean(1)

    from dataclasses import replace

    model.__dict__["parts"] = replace(model.parts, objective=objective)
    Validation(model, digits.test, 16, seed=0, batch=5)(model)
    assert len(torch.cat(seen).unique(dim=0)) == 16


def test_the_level_named_is_the_one_that_the_loss_history_drew(digits: sf.data.Data) -> None:
    model = sf.train("improved-ddpm", digits, steps=1, quiet=True, objective="vlb", table_steps=20, **TINY)
    history = model.net.history
    history.seen.fill_(10)
    history.losses.fill_(1e-9)
    history.losses[13] = 1.0  # step 14 of 20 is drawn, whatever time arrives
    model.net.train()
    batch = {"x": digits.train.x[:8], "label": digits.train.label[:8]}  # type: ignore[index]
    model.losses(batch, sf.Stream(5))
    arrived = model.draw_times(8, sf.Stream(5))
    assert int((arrived == 0.7).sum()) < 8
    named = {model.describe_level(8, k, sf.Stream(5)).split(",")[0] for k in range(8)}
    assert named == {"t=0.7000"}
    # the hybrid objective trains at the times that arrive
    plain = sf.train("improved-ddpm", digits, steps=1, quiet=True, table_steps=20, **TINY)
    t = float(plain.draw_times(8, sf.Stream(5))[3])
    assert plain.describe_level(8, 3, sf.Stream(5)).startswith(f"t={t:.4f}, log-SNR")


def lines(train: list[float], held_out: list[float]) -> list[dict[str, Any]]:
    """A log with these losses."""
    return [{"kind": "train", "step": k, "loss": loss} for k, loss in enumerate(train)] + [
        {
            "kind": "validation", "step": k, "loss": loss,
            "levels": [{"t": 0.1, "log_snr": 3.0, "loss": loss}, {"t": 0.9, "log_snr": None, "loss": 2 * loss}],
        }
        for k, loss in enumerate(held_out)
    ]  # fmt: skip


def test_the_loss_plot_shows_negative_losses() -> None:
    """EDM2's uncertainty makes the training loss negative while the held-out one stays positive."""
    over, levels = loss_figure(lines([1.0, -0.5, -2.0], [0.4, 0.2, 0.1]), "edm2").axes
    low, high = over.get_ylim()
    assert low < -2.0
    assert high == pytest.approx(0.6)
    assert levels.get_yscale() == "log"
    over, levels = loss_figure(lines([1.0, 0.5], [0.4, 0.2, 0.1]), "edm").axes
    assert over.get_ylim() == pytest.approx((0.0, 0.6))
    # a bound of densities may fall below 0 on held-out images, too: there is no logarithm of that
    over, levels = loss_figure(lines([1.0, -1.0], [-0.1, -0.5, -1.0]), "density").axes
    assert over.get_ylim()[0] < -1.0 < 1.0 < over.get_ylim()[1]
    assert levels.get_yscale() == "linear"


def test_the_first_losses_do_not_set_the_scale() -> None:
    assert loss_limits([50.0, 1.0], [0.9, 0.5, 0.5]) == pytest.approx((0.0, 1.5))
    assert loss_limits([2.0], []) == pytest.approx((0.0, 6.0))
    assert loss_limits([], []) is None


class Inner(nn.Module):
    """A network with an arithmetic format."""

    def __init__(self) -> None:
        super().__init__()
        self.compute_dtype = torch.float32


def test_wrappers_hand_on_the_format_of_their_network() -> None:
    inner = Inner()
    for outer in (
        Bundle(inner),
        Energy(inner),
        VariationalNet(inner, Learned(), GreyLevels()),
        NoiseBlind(inner, sf.denoisers.GaussianHead(sf.processes.Gaussian(sf.schedules.get("levels")), "eps")),
    ):
        inner.compute_dtype = torch.float32
        assert outer.compute_dtype == torch.float32
        outer.compute_dtype = torch.bfloat16
        assert inner.compute_dtype == torch.bfloat16
        assert "compute_dtype" not in vars(outer)
    assert isinstance(Bundle.compute_dtype, Delegated)
