"""The U-Net keeps its contract: shapes, refusals, conditioning, independent rows, precision, derivatives."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato import nets
from sfumato.errors import Refusal
from sfumato.nets import layers, masks, precision
from sfumato.nets.unet import UNet


def awake(net: UNet) -> UNet:
    """The network with its zero-initialised layers made random, so that every path has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return net


def small(**settings: object) -> UNet:
    torch.manual_seed(0)
    chosen: dict[str, object] = {
        "in_channels": 1,
        "out_channels": 1,
        "size": (8, 12),
        "channels": (16, 24),
        "blocks": 1,
        "attention": (False, True),
        "classes": 5,
        "head_channels": 8,
        **settings,
    }
    net = nets.get("unet", **chosen)
    assert isinstance(net, UNet)
    return awake(net)


def batch(net: UNet, b: int = 3, size: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(b, net.settings["in_channels"], *size, generator=generator)
    return x, torch.rand(b, generator=generator)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (28, 16), (4, 32)])
def test_any_size_that_fits_gives_the_same_size(size: tuple[int, int], patch: int) -> None:
    net = small(in_channels=3, out_channels=6, patch=patch)
    x, t = batch(net, size=size)
    y = net(x, t)
    assert y.shape == (3, 6, *size)
    assert y.dtype == torch.float32
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [((28, 30), 2, "multiples of 4; nearest: 28x28 or 28x32"), ((27, 28), 1, "multiples of 2; nearest: 26x28 or 28x28"),
     ((1, 8), 1, "multiples of 2; nearest: 2x8"), ((0, 8), 1, "multiples of 2; nearest: 2x8")],
)  # fmt: skip
def test_a_size_that_does_not_fit_is_refused_with_the_nearest(size: tuple[int, int], patch: int, expected: str) -> None:
    with pytest.raises(Refusal, match=expected):
        small(size=size, patch=patch)
    net = small(patch=patch, size=(8, 8))
    if min(size):
        with pytest.raises(Refusal, match=expected):
            net(torch.zeros(1, 1, *size), torch.zeros(1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"attention": (True,)}, "1 entries for 2 stages"), ({"patch": 3}, "patch 3"), ({"blocks": 0}, "blocks 0"),
     ({"head_channels": 7}, "7 channels do not divide 24"), ({"classes": 0}, "classes 0"),
     ({"dropout": 1.0}, "dropout 1.0"), ({"chanels": (8,)}, "chanels")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(Refusal, match=expected):
        small(**settings)


def test_a_fresh_network_answers_zero_and_its_blocks_are_the_identity() -> None:
    net = nets.get("unet", size=(8, 8), channels=(16, 16), attention=(True, True), blocks=1)
    assert not net(torch.randn(2, 3, 8, 8), torch.rand(2)).any()
    assert isinstance(net, UNet)
    block = net.middle[0]
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 32)), x)


def test_labels_and_times_have_an_effect_and_the_null_label_is_no_label() -> None:
    net = small()
    net.compute_dtype = torch.float32
    x, t = batch(net)
    label = torch.tensor([0, 1, 4])
    conditional, unconditional = net(x, t, {"label": label}), net(x, t)
    assert (conditional - unconditional).abs().amax((1, 2, 3)).min() > 1e-3
    assert (net(x, t, {"label": label.flip(0)})[0] - conditional[0]).abs().max() > 1e-3
    assert torch.equal(net(x, t, {"label": torch.full((3,), 5)}), unconditional)
    assert torch.equal(net(x, t, {}), unconditional)
    assert (net(x, t.flip(0)) - unconditional)[0].abs().max() > 1e-3


def test_a_label_for_a_network_without_classes_is_refused() -> None:
    net = small(classes=None)
    x, t = batch(net)
    with pytest.raises(Refusal, match="without classes"):
        net(x, t, {"label": torch.zeros(3, dtype=torch.long)})


def test_the_time_features_tell_fine_levels_apart() -> None:
    t = torch.tensor([0.0, 1e-4, 3e-4, 1e-3, 0.5, 0.999, 1.0])
    distance = torch.pdist(layers.time_features(t, 64))
    assert distance.min() > 0.09


@pytest.mark.parametrize("patch", [1, 2])
def test_rows_are_independent(patch: int) -> None:
    net = small(patch=patch)
    net.compute_dtype = torch.float32
    x, t = batch(net, b=4)
    label = torch.tensor([0, 5, 2, 3])
    together = net(x, t, {"label": label})
    for k in range(4):
        alone = net(x[k : k + 1], t[k : k + 1], {"label": label[k : k + 1]})
        torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-5)


def loss_and_gradient(net: UNet, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    net.zero_grad()
    y = net(x, t, {"label": torch.tensor([1, 2, 5])})
    (y - torch.sin(3 * x)).square().mean().backward()
    return y.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_bfloat16_agrees_with_float32_and_float32_with_float64() -> None:
    net = small(channels=(16, 32), size=(16, 16))
    x, t = batch(net, size=(16, 16))
    results = {}
    for dtype in (torch.bfloat16, torch.float32):
        net.compute_dtype = dtype
        results[dtype] = loss_and_gradient(net, x, t)
    net.double().compute_dtype = torch.float64
    exact = loss_and_gradient(net, x.double(), t.double())
    for got, tolerance in ((results[torch.bfloat16], 0.05), (results[torch.float32], 1e-5)):
        assert relative(got[0], exact[0]) < tolerance
        assert relative(got[1], exact[1]) < tolerance


def test_bfloat16_group_norm_survives_a_large_mean() -> None:
    x = (5 + torch.randn(4, 8, 14, 14)).bfloat16().contiguous(memory_format=torch.channels_last)
    one = torch.ones(1, 8, 1, 1)
    got = layers.modulated_group_norm(x, one, 0 * one, 8).float()
    assert relative(got, F.group_norm(x.float(), 8)) < 0.03
    assert layers.modulated_group_norm(torch.full_like(x, 3.0), one, 0 * one, 4).abs().max() < 5


@pytest.mark.parametrize("rows", [1, 2])
def test_group_norm_is_torchs_and_its_derivatives_are_exact(rows: int) -> None:
    shapes = (2, 8, 3, 2), (rows, 8, 1, 1), (rows, 8, 1, 1)
    x, scale, shift = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)

    def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return layers.modulated_group_norm(x, scale, shift, 4)

    torch.testing.assert_close(norm(x, scale, shift), F.group_norm(x, 4) * scale + shift)
    check: Callable[..., bool] = torch.autograd.gradcheck
    assert check(norm, (x, scale, shift), check_forward_ad=True)


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (4, 2)])
def test_upsampling_is_nearest_doubling_then_a_convolution(size: tuple[int, int]) -> None:
    layer = layers.Upsample(6).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), layer.conv(F.interpolate(x, scale_factor=2)))
    small_x = x.detach()[:1].requires_grad_()
    assert torch.autograd.gradcheck(layer, (small_x,), check_forward_ad=True)


def test_a_directional_derivative_of_the_whole_network_matches_reverse_mode() -> None:
    net = small().double()
    net.compute_dtype = torch.float64
    x, t = batch(net, b=2)
    x, t = x.double(), t.double()
    v, u = torch.randn_like(x), torch.randn_like(x)
    forward: Tensor = torch.func.jvp(lambda x: net(x, t), (x,), (v,))[1]
    (reverse,) = torch.autograd.grad((net(x.requires_grad_(), t) * u).sum(), x)
    torch.testing.assert_close((forward * u).sum(), (reverse * v).sum())


@pytest.mark.parametrize("limits", [(0, 0), (0, 256)])
def test_many_tokens_attend_as_few_do(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers.Attention(16, 8, 4)
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 16, 4, 6)
    few = layer(x)
    monkeypatch.setattr(layers, "FEW_TOKENS", limits[0])
    monkeypatch.setattr(layers, "BLOCK_TOKENS", limits[1])
    torch.testing.assert_close(layer(x), few, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 10**6])
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_attention_in_blocks_is_attention_and_its_derivatives_are_exact(
    block: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers._Attend, "block", block)
    monkeypatch.setattr(layers, "KEPT", kept)
    q, k, v = (torch.randn(5, 6, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = layers._Attend.apply(q, k, v, True)[0]  # type: ignore[no-untyped-call]
        return y

    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v, scale=1.0))
    assert torch.autograd.gradcheck(attend, (q, k, v), check_forward_ad=True)


def test_scores_are_kept_for_a_way_back_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def watched(q: Tensor, k: Tensor, back: bool, own: Any = layers.scores) -> Tensor:
        found: Tensor = own(q, k, back)
        kept.append(len(found))
        return found

    monkeypatch.setattr(layers, "scores", watched)
    bias = masks.bias(masks.Causal(), 0, 80, torch.float32, torch.device("cpu"))
    for attend in (layers.attend, lambda q, k, v: masks.attend(q, k, v, bias)):
        q, k, v = (torch.randn(3, 80, 4) for _ in range(3))
        plain = attend(q, k, v)
        graded = attend(q, k, v.requires_grad_())
        with torch.no_grad():
            assert torch.equal(attend(q, k, v), plain)
        assert torch.equal(graded, plain)
        graded.sum().backward()
        assert v.grad is not None
    assert kept == [0, 3, 0, 0, 3, 0]


def test_settings_survive_json_and_rebuild_the_network() -> None:
    net = small(patch=2, size=(8, 12), dropout=0.1)
    twin = UNet(**json.loads(json.dumps(net.settings)))
    twin.load_state_dict(net.state_dict())
    x, t = batch(net)
    assert twin.settings == net.settings
    assert torch.equal(twin.eval()(x, t), net.eval()(x, t))


def test_dropout_acts_in_training_only() -> None:
    net = small(dropout=0.5)
    x, t = batch(net)
    assert not torch.equal(net.train()(x, t), net(x, t))
    assert torch.equal(net.eval()(x, t), net(x, t))


def test_the_compute_dtype_is_detected_and_can_be_fixed() -> None:
    net = small()
    assert net.compute_dtype == precision.best_dtype("cpu") in (torch.bfloat16, torch.float32)
    net.compute_dtype = torch.float32
    assert net.compute_dtype == torch.float32
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refusal, match="did you mean unet"):
        nets.get("unett")
    assert "unet" in nets.names()
