"""The magnitude-preserving primitives of Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models" (EDM2), https://arxiv.org/abs/2312.02696.

The contract: an input of unit variance gives an output of unit variance, at initialisation and after any number of
training steps, because a weight is only ever seen through its direction: every output channel's weights are normalised
on use (eq. 47), so the gradient is orthogonal to them, and are themselves put back to unit variance at every training
step (eq. 66, "forced weight normalisation"), so the effective learning rate stays put.  There are no biases.

What multiplies a layer's output or its input by a constant multiplies its few weights instead (``gain``): the 1 / 0.596
of :func:`mp_silu` and the share of a residual branch in :func:`mp_sum` cost nothing.
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.nets.layers import attend, channels_last, silu

#: ``E[silu(z)^2]^(1/2)`` for a standard normal ``z`` (eq. 81).
SILU_RMS = 0.596
#: The gain of a layer that is fed plain ``silu``: together they are :func:`mp_silu`, then the layer.
AFTER_SILU = 1 / SILU_RMS
#: The least root mean square that is divided by.
EPS = 1e-4


def mp_silu(x: Tensor) -> Tensor:
    """``silu(x) / 0.596`` (eq. 81)."""
    return silu(x) * AFTER_SILU


def mp_sum_shares(t: float) -> tuple[float, float]:
    """``(1 - t, t) / sqrt((1 - t)^2 + t^2)``: what the two inputs of :func:`mp_sum` are multiplied by."""
    norm = math.hypot(1 - t, t)
    return (1 - t) / norm, t / norm


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)`` (eq. 88)."""
    share_a, share_b = mp_sum_shares(t)
    return torch.add(a * share_a, b, alpha=share_b)


def mp_cat_shares(channels_a: int, channels_b: int, t: float) -> tuple[float, float]:
    """What the two inputs of :func:`mp_cat` are multiplied by (eq. 103): 1 and 1 for equal channels and ``t = 1/2``."""
    c = math.sqrt((channels_a + channels_b) / ((1 - t) ** 2 + t**2))
    return c * (1 - t) / math.sqrt(channels_a), c * t / math.sqrt(channels_b)


def mp_cat(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b d h w"], t: float) -> Float[Tensor, "b c+d h w"]:
    """Concatenation in which ``a`` and ``b`` contribute ``1 - t`` and ``t`` whatever their channels (eq. 103)."""
    shares = mp_cat_shares(a.shape[1], b.shape[1], t)
    return torch.cat([x if share == 1 else x * share for x, share in zip((a, b), shares, strict=True)], dim=1)


def unit_rms(x: Tensor, dim: int | tuple[int, ...], eps: float = EPS) -> Tensor:
    """``x`` divided by its root mean square over ``dim``: pixel norm over the channels (eq. 30), and cosine attention.

    The mean is taken in float32 at least; ``eps`` is added to the root mean square.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rms = x.square().mean(dim, keepdim=True, dtype=wide).sqrt()
    return x * (1 / (rms + eps)).to(x.dtype)


def row_rms(weight: Tensor) -> Tensor:
    """The root mean square of each output channel's weights, shaped to broadcast, at least 1e-4."""
    return weight.square().mean(tuple(range(1, weight.ndim)), keepdim=True).sqrt().clamp(min=EPS)


def normalised(weight: nn.Parameter, gain: float | Tensor, training: bool) -> Tensor:
    """``gain weight / |weight|``, one norm per output channel (eq. 47): the layer preserves magnitude at ``gain = 1``.

    In training the stored weight is first put back to unit root mean square (eq. 66), which leaves this value and its
    derivative's direction as they are.  It is written past autograd's version count: doing it again changes nothing,
    so several forward passes may come before one backward pass.
    """
    if training:
        with torch.no_grad():
            weight.data.div_(row_rms(weight.data))
    return weight * (gain / (math.sqrt(weight[0].numel()) * row_rms(weight)))


@final
class MPConv2d(nn.Module):
    """A convolution without bias whose output has the variance of its input (eq. 47); computes in its input's dtype."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(channels_last(torch.randn(out_channels, in_channels, kernel_size, kernel_size)))

    def forward(self, x: Float[Tensor, "b i h w"], gain: float | Tensor = 1.0) -> Float[Tensor, "b o h w"]:
        """``gain`` multiplies the output."""
        weight = normalised(self.weight, gain, self.training)
        return F.conv2d(x, weight.to(x.dtype), padding=self.weight.shape[-1] // 2)


@final
class MPLinear(nn.Module):
    """A linear map whose output has the variance of its input (eq. 47); computes in its input's dtype."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))

    def forward(self, x: Float[Tensor, "... i"], gain: float | Tensor = 1.0) -> Float[Tensor, "... o"]:
        """``gain`` multiplies the output."""
        return F.linear(x, normalised(self.weight, gain, self.training).to(x.dtype))


@final
class MPFourier(nn.Module):
    """``sqrt(2) cos(2 pi (f t + phi))`` with ``f ~ N(0, bandwidth^2)``, ``phi ~ U(0, 1)``, drawn once (eq. 75)."""

    def __init__(self, features: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * bandwidth * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))
        self.frequencies: Tensor
        self.phases: Tensor

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b features"]:
        angles = t.to(self.frequencies.dtype)[:, None] * self.frequencies + self.phases
        return math.sqrt(2) * angles.cos()


@final
class CosineAttention(nn.Module):
    """Multi-head self-attention over the sites of an image with unit queries, keys and values (section 2.4).

    The result is joined to the input by :func:`mp_sum` with ``balance``.
    """

    def __init__(self, channels: int, head_channels: int, balance: float) -> None:
        super().__init__()
        if channels % head_channels:
            raise Refusal(f"attention heads of {head_channels} channels do not divide {channels} channels")
        self.heads = channels // head_channels
        self.qkv = MPLinear(channels, 3 * channels)
        self.out = MPLinear(channels, channels)
        self.keep, self.add = mp_sum_shares(balance)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        n, d = h * w, c // self.heads
        qkv = unit_rms(self.qkv(x.permute(0, 2, 3, 1).reshape(b, n, c)).view(b, n, 3, self.heads, d), dim=-1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, b * self.heads, n, d).unbind(0)
        mixed = attend(q * d**-0.5, k, v).view(b, self.heads, n, d).transpose(1, 2).reshape(b, n, c)
        branch = self.out(mixed, gain=self.add).view(b, h, w, c).permute(0, 3, 1, 2)
        return torch.add(branch, x, alpha=self.keep)
