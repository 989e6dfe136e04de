"""The magnitude-preserving network: its primitives by their equations, its magnitudes, its weights while training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import nets
from sfumato.errors import Refusal
from sfumato.nets import mp_layers as mp
from sfumato.nets.mp_unet import MPBlock, MPUNet
from sfumato.training.optim import Optimiser
from sfumato.training.settings import Optimisation

SMALL: dict[str, Any] = {
    "in_channels": 1, "out_channels": 1, "size": (8, 8), "channels": (16, 32), "attention": (False, True), "blocks": 1,
    "classes": 3,
}  # fmt: skip


def rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def noise(*shape: int) -> Tensor:
    return torch.randn(shape)


# --------------------------------------------------------------------------------------------------------- primitives


def test_mp_silu_has_unit_magnitude() -> None:
    assert rms(mp.mp_silu(noise(1_000_000))) == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_mp_sum_and_mp_cat(t: float) -> None:
    a, b = noise(64, 8, 16, 16), noise(64, 24, 16, 16)
    wide = noise(64, 24, 16, 16)
    assert rms(mp.mp_sum(wide, b, t)) == pytest.approx(1, abs=0.01)
    expected = ((1 - t) * wide + t * b) / math.sqrt((1 - t) ** 2 + t**2)
    torch.testing.assert_close(mp.mp_sum(wide, b, t), expected)
    joined = mp.mp_cat(a, b, t)
    assert rms(joined) == pytest.approx(1, abs=0.01)
    power = [float(part.double().square().sum()) for part in (joined[:, :8], joined[:, 8:])]
    assert power[1] / sum(power) == pytest.approx(t**2 / (t**2 + (1 - t) ** 2), abs=0.01)


def test_fourier_features_have_unit_magnitude_at_every_time() -> None:
    features = mp.MPFourier(4096)(torch.tensor([-1.5, 0.0, 0.7, 1.1]))
    for row in features:
        assert rms(row) == pytest.approx(1, abs=0.05)
    near, far = features[0] @ features[1] / 4096, mp.MPFourier(4096, 1e-3)(torch.tensor([-1.5, 0.0]))
    assert abs(float(near)) < 0.1 < 0.9 < float(far[0] @ far[1] / 4096)


@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_layers_preserve_magnitude_and_have_no_bias(gain: float) -> None:
    conv, linear = mp.MPConv2d(32, 64, 3), mp.MPLinear(48, 4096)
    conv.weight.data.mul_(7)  # the size of a weight is no matter
    x = noise(16, 32, 16, 16)
    assert rms(conv(x, gain)[..., 1:-1, 1:-1]) == pytest.approx(gain, rel=0.02)
    assert rms(linear(noise(64, 48), gain)) == pytest.approx(gain, rel=0.03)
    assert rms(conv(torch.zeros_like(x))) == 0
    rows = mp.normalised(conv.weight, 1.0, False).flatten(1).norm(dim=1)
    torch.testing.assert_close(rows, torch.ones(64))


def test_unit_rms_is_pixel_norm() -> None:
    x = 9 * noise(2, 256, 4, 4)
    torch.testing.assert_close(mp.unit_rms(x, 1).square().mean(1), torch.ones(2, 4, 4), rtol=1e-3, atol=0)


def test_attention_is_cosine_attention() -> None:
    attention, x = mp.CosineAttention(32, 16, 0.3).eval(), noise(2, 32, 4, 4)
    assert rms(attention(x)) == pytest.approx(1, abs=0.1)
    large = torch.cat([attention.qkv.weight.data[:64] * 1, attention.qkv.weight.data[64:]])
    torch.testing.assert_close(large, attention.qkv.weight.data)
    qkv = mp.normalised(attention.qkv.weight, 1.0, False)
    tokens = x.flatten(2).mT
    q, k, v = (mp.unit_rms(p.reshape(2, 16, 2, 16), -1).transpose(1, 2) for p in (tokens @ qkv.T).chunk(3, -1))
    mixed = torch.softmax(q @ k.mT / 4, -1) @ v
    out = mixed.transpose(1, 2).reshape(2, 16, 32) @ mp.normalised(attention.out.weight, 1.0, False).T
    expected = mp.mp_sum(x, out.mT.reshape_as(x), 0.3)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_a_block_is_the_papers_composition() -> None:
    block, x, film = MPBlock(8, 12, None, 0.0, "down", "half").eval(), noise(2, 8, 8, 8), 1 + 0.1 * noise(2, 12)
    assert block.skip is not None
    y = mp.unit_rms(block.skip(torch.nn.functional.avg_pool2d(x, 2)), 1)
    h = block.conv2(mp.mp_silu(block.conv1(mp.mp_silu(y)) * film[:, :, None, None]))
    torch.testing.assert_close(block(x, film), mp.mp_sum(y, h, 0.3), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ network


def test_every_block_preserves_magnitude_at_initialisation() -> None:
    net = MPUNet(
        **(SMALL | {"size": (32, 32), "channels": (32, 64, 64), "attention": (False, True, True), "out_channels": 16})
    )
    net.gain.data.fill_(1)
    found: dict[str, float] = {}

    def record(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            found[name] = rms(output)

        return hook

    for name, module in net.named_modules():
        if isinstance(module, MPBlock) or name in ("stem", "time", "label", "films"):
            module.register_forward_hook(record(name))
    found["out"] = rms(net(noise(8, 1, 32, 32), torch.rand(8), {"label": torch.randint(0, 4, (8,))}))
    assert len(found) == 3 + 2 + 2 + 3 * 2 + 2 + 4 + 1
    for name, value in found.items():
        assert 0.75 < value < 1.25, f"{name}: {value}"


def test_the_output_starts_at_zero_and_every_gain_learns() -> None:
    net = MPUNet(**SMALL)
    x, t = noise(4, 1, 8, 8), torch.rand(4)
    assert rms(net(x, t)) == 0
    (net(x, t) - x).square().mean().backward()
    assert float(net.gain.grad.abs()) > 0  # type: ignore[union-attr]
    net.gain.data.fill_(1)
    net.zero_grad()
    (net(x, t) - x).square().mean().backward()
    assert net.film_gains.grad is not None
    assert bool((net.film_gains.grad != 0).all())
    assert not any("bias" in name for name, _ in net.named_parameters())


def weights(net: MPUNet) -> list[Tensor]:
    return [p for p in net.parameters() if p.ndim > 1]


def test_weights_stay_unit_and_gradients_orthogonal_while_training() -> None:
    torch.manual_seed(1)
    net = live(MPUNet(**SMALL)).train()
    net.compute_dtype = torch.float32
    optimiser = Optimiser(net, Optimisation(lr=0.02, warmup=0))
    before = [w.detach().clone() for w in weights(net)]
    for step in range(8):
        x, t, label = noise(8, 1, 8, 8), torch.rand(8), torch.randint(0, 4, (8,))
        (net(x, t, {"label": label}) - x.roll(1, -1)).square().mean().backward()
        for w in weights(net):
            torch.testing.assert_close(mp.row_rms(w), torch.ones_like(mp.row_rms(w)), rtol=1e-5, atol=0)
            assert w.grad is not None
            rows, slopes = w.detach().flatten(1), w.grad.flatten(1)
            along = (rows * slopes).sum(1).abs().max()
            assert float(along) < 1e-5 * float(rows.norm(dim=1).max() * slopes.norm(dim=1).max())
        optimiser.apply(step, 0.0)
    assert all(float((w.detach() - old).abs().max()) > 0.01 for w, old in zip(weights(net), before, strict=True))
    # put back in the next forward pass alone, and never in evaluation
    drifted = max(float((mp.row_rms(w.detach()) - 1).abs().max()) for w in weights(net))
    assert drifted > 1e-5
    net.eval()(noise(1, 1, 8, 8), torch.rand(1))
    assert drifted == max(float((mp.row_rms(w.detach()) - 1).abs().max()) for w in weights(net))


def test_two_forward_passes_may_share_a_backward_pass() -> None:
    net = MPUNet(**SMALL)
    net.gain.data.fill_(1)
    x, t = noise(2, 1, 8, 8), torch.rand(2)
    net(net(x, t), t).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def live(net: MPUNet) -> MPUNet:
    net.gain.data.fill_(1)
    net.film_gains.data.fill_(0.5)
    return net.eval()


@torch.no_grad()
def test_rows_are_independent() -> None:
    net = live(MPUNet(**SMALL))
    net.compute_dtype = torch.float32
    x, t, label = noise(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 1, 2, 3])
    together = net(x, t, {"label": label})
    for k in range(4):
        alone = net(x[k : k + 1], t[k : k + 1], {"label": label[k : k + 1]})
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-4, atol=1e-5)
    # time and label matter, and no label is the null label
    assert float((net(x, t.flip(0), {"label": label}) - together).abs().max()) > 1e-3
    assert float((net(x, t, {"label": label.flip(0)}) - together).abs().max()) > 1e-3
    torch.testing.assert_close(net(x, t), net(x, t, {"label": torch.full((4,), 3)}))


def test_bfloat16_is_close_to_float32() -> None:
    net, outputs = live(MPUNet(**(SMALL | {"patch": 2}))), []
    x, t = noise(8, 1, 8, 8), torch.rand(8)
    for dtype in (torch.float32, torch.bfloat16):
        net.compute_dtype = dtype
        with torch.no_grad():
            outputs.append(net(x, t))
    assert outputs[0].dtype == outputs[1].dtype == torch.float32
    assert 0 < rms(outputs[1] - outputs[0]) < 0.03 * rms(outputs[0])


def test_gradient_mode_does_not_change_the_result() -> None:
    net = live(MPUNet(**SMALL))
    x, t = noise(2, 1, 8, 8), torch.rand(2)
    with torch.no_grad():
        free = net(x, t)
    torch.testing.assert_close(free, net(x, t))


def test_settings_rebuild_it_and_what_does_not_fit_is_refused() -> None:
    net = nets.get("mp-unet", **SMALL)
    again = nets.get("mp-unet", **net.settings)
    again.load_state_dict(net.state_dict())
    x, t = noise(1, 1, 8, 8), torch.rand(1)
    torch.testing.assert_close(live(net)(x, t), live(again)(x, t))
    for change, message in (
        ({"size": (7, 8)}, "multiples of 2; nearest: 6x8 or 8x8"),
        ({"attention": (True,)}, "attention has 1 entries for 2 stages"),
        ({"patch": 3}, "patch 3 is not known"),
        ({"bandwidth": 0.0}, "bandwidth 0.0 does not fit"),
        ({"head_channels": 24}, "heads of 24 channels do not divide 32"),
    ):
        with pytest.raises(Refusal, match=message):
            MPUNet(**(SMALL | change))
    with pytest.raises(Refusal, match="built without classes"):
        MPUNet(**(SMALL | {"classes": None}))(x, t, {"label": torch.tensor([0])})
