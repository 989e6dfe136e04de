"""The layers of the convolutional networks, written for speed on a processor and for clarity everywhere.

The contract: every layer keeps float32 parameters and computes in the dtype of its input, so a network runs in
bfloat16 by casting its input once; every feature map is ``channels_last`` (in memory ``[b, h, w, c]``), so that
convolutions, the per-channel passes and attention over ``h w`` tokens all read the same memory without a copy.

Why not ``torch.autocast``: it casts group norm back to float32, and on a CPU the built-in backward pass of group norm
is the slowest operation of a training step (as slow as a convolution), as is its forward pass on small images.
:class:`_GroupNorm` states both in a few plain tensor operations, 10 times faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import Refusal


def channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels last in memory; a copy only where needed."""
    return x.contiguous(memory_format=torch.channels_last)


def silu(x: Tensor) -> Tensor:
    """``x sigmoid(x)``; overwrites ``x``, a result nobody else holds, where no derivative will need it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


@final
class Conv2d(nn.Conv2d):
    """A convolution that keeps float32 parameters and computes in the dtype of its input."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self.weight.data = channels_last(self.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.stride, self.padding)


@final
class Linear(nn.Linear):
    """An affine map that keeps float32 parameters and computes in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def _site_sum(x: Tensor) -> Tensor:
    """The sum over h and w, ``[b, c, h, w]`` -> ``[b, c]``, at least float32.

    First over a few strips of rows in the dtype of ``x`` (10 times faster than a float32 sum of a bfloat16 tensor; the
    kernel accumulates in float32 and rounds once), then over the strips in float32, which averages those roundings.
    """
    b, c, h, w = x.shape
    strips = next(n for n in range(min(h, 4), h + 1) if h % n == 0)
    rows = x.permute(0, 2, 3, 1).reshape(b, strips, h // strips * w, c).sum(2)
    return rows.to(torch.promote_types(x.dtype, torch.float32)).sum(1)


class _GroupNorm(torch.autograd.Function):
    """``normalise(x) * scale + shift``, ``scale`` and ``shift`` of shape ``[b or 1, c, 1, 1]``, in few passes.

    With n = normalise(x), u = dy * scale, and means over a group:  dx = (u - mean(u) - n mean(u n)) / std  (the
    derivative of batch normalisation, Ioffe and Szegedy 2015, over the groups of Wu and He 2018).  Mean and variance
    come from the sums of x and x^2; the factors of a channel are combined first, so that what remains for an element
    is ``a x + b`` forwards and ``a dy + b x + c`` backwards.
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, rstd = _statistics(x, groups, eps)
        factor = rstd * scale
        return torch.addcmul((shift - mean * factor).to(x.dtype), x, factor.to(x.dtype)), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, scale, _shift, ctx.groups, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, scale, mean, rstd)
        ctx.save_for_forward(x, scale, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, rstd = ctx.saved_tensors
        twice = torch.is_grad_enabled()  # a second derivative is asked for: it goes through mean and rstd, too
        if twice:
            mean, rstd = _statistics(x, ctx.groups, ctx.eps)
        dy = channels_last(grads[0])
        dshift = _site_sum(dy)[..., None, None]
        dscale = rstd * (_site_sum(dy * x)[..., None, None] - mean * dshift)
        slope = -rstd.square() * _group_mean(dscale * scale, x, ctx.groups)
        offset = -rstd * _group_mean(dshift * scale, x, ctx.groups) - slope * mean
        dx = torch.addcmul(offset.to(x.dtype), x, slope.to(x.dtype))
        factor = (rstd * scale).to(x.dtype)
        dx = torch.addcmul(dx, dy, factor) if twice else torch.addcmul(dx, dy, factor, out=dx)
        return dx, dscale.sum_to_size(scale.shape), dshift.sum_to_size(scale.shape), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dscale: Tensor, dshift: Tensor, *_: None) -> tuple[Tensor, None, None]:
        x, scale, mean, rstd = ctx.saved_tensors
        normal = (x - mean) * rstd
        centred = dx - _group_mean(_site_sum(dx), x, ctx.groups)
        turned = centred - normal * _group_mean(_site_sum(dx * normal), x, ctx.groups)
        return (turned * rstd * scale + normal * dscale + dshift).to(x.dtype), None, None


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of every channel's group, ``[b, c, 1, 1]``, at least float32."""
    mean = _group_mean(_site_sum(x), x, groups)
    variance = _group_mean(_site_sum(x.square()), x, groups) - mean.square()
    return mean, (variance.clamp(min=0) + eps).rsqrt()


def _group_mean(sums: Tensor, x: Tensor, groups: int) -> Tensor:
    """Per-channel sums over the sites of ``x`` -> the mean over the channel's group, ``[b, c, 1, 1]``."""
    b, c, h, w = x.shape
    means = sums.reshape(b, groups, c // groups).sum(2, keepdim=True) / (c // groups * h * w)
    return means.expand(b, groups, c // groups).reshape(b, c, 1, 1)


def modulated_group_norm(
    x: Float[Tensor, "b c h w"],
    scale: Float[Tensor, "#b c 1 1"],
    shift: Float[Tensor, "#b c 1 1"],
    groups: int,
    eps: float = 1e-5,
) -> Float[Tensor, "b c h w"]:
    """``group_norm(x) * scale + shift``, with a scale and a shift for every sample and channel (FiLM).

    Source: Wu and He 2018 (group norm); Perez et al. 2018 (FiLM).  On a CPU it is :class:`_GroupNorm`, with first
    derivatives in both modes and second ones backwards; elsewhere PyTorch's own, which is fast there.
    """
    if x.device.type == "cpu":
        y: Tensor = _GroupNorm.apply(x, scale, shift, groups, eps)[0]  # type: ignore[no-untyped-call]
        return y
    return torch.addcmul(shift.to(x.dtype), F.group_norm(x, groups, eps=eps), scale.to(x.dtype))


@final
class GroupNorm(nn.Module):
    """Group normalisation of ``c`` channels in ``gcd(groups, c)`` groups, optionally modulated per sample (FiLM)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = math.gcd(groups, channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """``film`` [b, 2c]: the scale minus one, then the shift, applied after the affine map."""
        weight, bias = self.weight[None], self.bias[None]
        if film is not None:
            scale, shift = film.chunk(2, dim=1)
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        return modulated_group_norm(x, weight[..., None, None], bias[..., None, None], self.groups)


class _Interleave(torch.autograd.Function):
    """``[b, 4c, h+1, w+1]`` -> ``[b, c, 2h, 2w]``: site (2i+p, 2j+q) is channel block 2p+q of site (i+p, j+q)."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        b, c, h, w = y.shape[0], y.shape[1] // 4, y.shape[2] - 1, y.shape[3] - 1
        size = (b, c, 2 * h, 2 * w)
        out = torch.empty(size, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
        for p in (0, 1):
            for q in (0, 1):
                block = (2 * p + q) * c
                out[:, :, p::2, q::2] = y[:, block : block + c, p : p + h, q : q + w]
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, dy: Tensor) -> Tensor:
        return _Interleave.forward(dy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dout,) = grads
        b, c, h, w = dout.shape[0], dout.shape[1], dout.shape[2] // 2, dout.shape[3] // 2
        dy = channels_last(dout.new_zeros(b, 4 * c, h + 1, w + 1))
        for p in (0, 1):
            for q in (0, 1):
                block = (2 * p + q) * c
                dy[:, block : block + c, p : p + h, q : q + w] = dout[:, :, p::2, q::2]
        return dy


@final
class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution, without ever convolving the doubled image.

    Every 2x2 block of the doubled image is constant, so each of the four output phases is a 2x2 convolution of the
    small image whose taps are sums of the 3x3 taps: the same function with 4/9 of the arithmetic (Shi et al. 2016,
    sub-pixel convolution).  The parameters are those of the plain 3x3 convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3)
        # folds[p, r, k] = 1: in phase p, tap k of the 3x3 kernel reads row r of the 2x2 window
        folds = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        self.register_buffer("folds", folds, persistent=False)
        self.folds: Tensor

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        c = self.conv.out_channels
        assert self.conv.bias is not None
        kernel = torch.einsum("prk,qsl,oikl->pqoirs", self.folds, self.folds, self.conv.weight).reshape(4 * c, -1, 2, 2)
        phases = F.conv2d(x, channels_last(kernel.to(x.dtype)), self.conv.bias.repeat(4).to(x.dtype), padding=1)
        y: Tensor = _Interleave.apply(phases)  # type: ignore[no-untyped-call]
        return y


#: Up to so many scores in all are kept for the way back.
KEPT = 2**23


def way_back(*inputs: Tensor) -> bool:
    """Whether a gradient may flow back to any of ``inputs``."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def scores(q: Tensor, k: Tensor, back: bool) -> Tensor:
    """Room for the scores of ``q`` with ``k``, ``[rows, n, m]``, for the way back; without rows where they are many, or
    there is none."""
    few = back and q.shape[0] * q.shape[1] * k.shape[1] <= KEPT
    return q.new_empty((len(q) if few else 0, q.shape[1], k.shape[1]))


class _Attend(torch.autograd.Function):
    """``softmax(q k^T) v`` for ``q, k, v`` of shape ``[rows, tokens, d]``, a few rows at a time.

    ``back``: whether there is a way back (:func:`way_back`).
    The scores of one block of rows stay in the processor's cache.  Where there are few in all their softmax is kept for
    the way back, else it is worked out again, the same (Dao et al. 2022, which also gives the row term of the softmax's
    derivative, ``sum(dy y)``).  At 256 tokens on a CPU this takes half the time of PyTorch's fused kernel, or of the
    same products over all rows at once, whose scores leave the cache.
    """

    #: Scores in one block.
    block = 2**19

    @staticmethod
    def blocks(q: Tensor) -> Iterator[slice]:
        rows, tokens, _ = q.shape
        step = max(1, _Attend.block // tokens**2)
        return (slice(first, first + step) for first in range(0, rows, step))

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        y, kept = torch.empty_like(v), scores(q, k, back)
        for i in _Attend.blocks(q):
            p = torch.softmax(q[i] @ k[i].mT, -1)
            if len(kept):
                kept[i] = p
            y[i] = p @ v[i]
        return y, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:3], *output)
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, y, kept = ctx.saved_tensors
        dy = grads[0].contiguous()
        if torch.is_grad_enabled():  # a second derivative is asked for: all rows at once, nothing in place
            p = torch.softmax(q @ k.mT, -1)
            ds = p * (dy @ v.mT - (dy * (p @ v)).sum(-1, keepdim=True))
            return ds @ k, ds.mT @ q, p.mT @ dy, None
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        row = (dy * y).sum(-1, keepdim=True)
        for i in _Attend.blocks(q):
            p = kept[i] if len(kept) else torch.softmax(q[i] @ k[i].mT, -1)
            dv[i] = p.mT @ dy[i]
            ds = (dy[i] @ v[i].mT).sub_(row[i]).mul_(p)
            dq[i] = ds @ k[i]
            dk[i] = ds.mT @ q[i]
        return dq, dk, dv, None

    @staticmethod
    def jvp(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, _: None) -> tuple[Tensor, None]:
        q, k, v = ctx.saved_tensors
        p = torch.softmax(q @ k.mT, -1)
        dp = p * (dq @ k.mT + q @ dk.mT)
        tangent: Tensor = (dp - p * dp.sum(-1, keepdim=True)) @ v + p @ dv
        return tangent, None


#: On a CPU: up to so many tokens all scores at once, up to so many in blocks (both measured), beyond them fused.
FEW_TOKENS, BLOCK_TOKENS = 64, 256


def attend(
    q: Float[Tensor, "rows n d"], k: Float[Tensor, "rows n d"], v: Float[Tensor, "rows n d"]
) -> Float[Tensor, "rows n d"]:
    """``softmax(q k^T) v`` in every row; scale ``q`` beforehand.  The fastest way for the device and the tokens."""
    tokens = q.shape[1] if q.device.type == "cpu" else math.inf
    if tokens <= FEW_TOKENS:
        return torch.softmax(q @ k.mT, -1) @ v
    if tokens <= BLOCK_TOKENS:
        y: Tensor = _Attend.apply(q, k, v, way_back(q, k, v))[0]  # type: ignore[no-untyped-call]
        return y
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


@final
class Attention(nn.Module):
    """Multi-head self-attention over the ``h w`` sites of an image, with a residual connection.

    Source: Vaswani et al. 2017; in this place Ho et al. 2020.  The output projection starts at zero.
    """

    def __init__(self, channels: int, head_channels: int, groups: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise Refusal(f"attention heads of {head_channels} channels do not divide {channels} channels")
        self.heads = channels // head_channels
        self.norm = GroupNorm(channels, groups)
        self.qkv = Linear(channels, 3 * channels)
        self.out = Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        n, d = h * w, c // self.heads
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(b, n, c)
        qkv = self.qkv(tokens).view(b, n, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * self.heads, n, d).unbind(0)
        mixed = attend(q * d**-0.5, k, v).view(b, self.heads, n, d)
        y: Tensor = x + self.out(mixed.transpose(1, 2).reshape(b, n, c)).view(b, h, w, c).permute(0, 3, 1, 2)
        return y


def time_features(t: Float[Tensor, "b"], width: int, resolution: float = 1000.0) -> Float[Tensor, "b width"]:
    """Cosines and sines of ``t`` in [0, 1] at ``width / 2`` geometric frequencies, ``resolution`` down to 1e-4 of it.

    With ``resolution = 1000`` these are the features of Ho et al. 2020 at step ``1000 t``; the fastest turns by 0.1
    radian between t = 0 and t = 1e-4, the slowest is monotone over [0, 1].  Computed in float32.
    """
    half = width // 2
    frequencies = resolution * torch.exp(-math.log(1e4) / half * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
