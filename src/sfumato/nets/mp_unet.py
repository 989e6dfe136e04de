"""The magnitude-preserving U-Net of Karras et al. 2024 (EDM2, configuration G), https://arxiv.org/abs/2312.02696.

The contract: ``net(x, t, cond)`` maps a batch of images ``[b, c, h, w]``, one number ``t`` for each and optional class
labels to a batch ``[b, out, h, w]``; row k of the result depends on row k of the arguments alone.  At initialisation
the output is zero, no block depends on ``t``, and every feature map has unit variance; training changes directions of
weights and a few gains, so that it stays near one (figure 3 of the paper).

``t`` is whatever real number tells the noise level, of order one: EDM's ``ln(sigma) / 4`` in recipe ``edm2``.  The
paper's clamp of activations at 256 guards the range of float16; bfloat16 has float32's, and does without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.nets.layers import channels_last, silu
from sfumato.nets.mp_layers import (
    AFTER_SILU,
    CosineAttention,
    MPConv2d,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    mp_sum_shares,
    unit_rms,
)
from sfumato.nets.precision import computing
from sfumato.nets.sizes import require_multiple
from sfumato.nets.stages import require_stages

#: The share of the residual branch and of attention in a block (section 2.5; the paper's 0.3).
BALANCE = 0.3
#: The share of the way down's feature map in a concatenation, and of the label in the embedding (the paper's 0.5).
EVEN = 0.5


@final
class MPBlock(nn.Module):
    """``mp_sum(x, conv(mp_silu(c conv(mp_silu(x)))), 0.3)``, ``c = 1 + gain (W emb)`` (figure 21 of the paper).

    On the way down ``x`` is first halved (where ``resample`` says so), widened by a 1x1 convolution and
    pixel-normalised; on the way up it is doubled, and narrowed beside the residual branch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, head_channels: int | None, dropout: float, place: str, resample: str
    ) -> None:
        super().__init__()
        self.place, self.resample, self.dropout = place, resample, dropout
        self.skip = None if in_channels == out_channels else MPConv2d(in_channels, out_channels, 1)
        self.conv1 = MPConv2d(out_channels if place == "down" else in_channels, out_channels, 3)
        self.conv2 = MPConv2d(out_channels, out_channels, 3)
        self.attention = None if head_channels is None else CosineAttention(out_channels, head_channels, BALANCE)

    def forward(self, x: Float[Tensor, "b i h w"], film: Float[Tensor, "b o"]) -> Float[Tensor, "b o k l"]:
        keep, add = mp_sum_shares(BALANCE)
        x = _RESAMPLE[self.resample](x)
        if self.place == "down":
            x = unit_rms(x if self.skip is None else self.skip(x), dim=1)
        h = self.conv1(F.silu(x), gain=AFTER_SILU)
        h = silu(h * film[:, :, None, None].to(h.dtype))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        if self.place == "up" and self.skip is not None:
            x = self.skip(x)
        h = self.conv2(h, gain=AFTER_SILU * add)
        h = torch.add(h, x, alpha=keep)
        return h if self.attention is None else self.attention(h)


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _as_is(x: Tensor) -> Tensor:
    return x


_RESAMPLE = {"keep": _as_is, "half": _half, "double": _double}


@final
class MPUNet(nn.Module):
    """A magnitude-preserving U-Net for images of any height and width that fit.

    Args:
        in_channels, out_channels: channels of the image in and out.
        size: (height, width) it is meant for; one that does not fit is refused here, and so it is in a call.
        channels: of each stage, from the finest to the coarsest; every stage but the first halves height and width.
        blocks: blocks in each stage on the way down (one more on the way up), beside those that change the size.
        attention: for each stage, whether its blocks end in self-attention; the middle always does.
        classes: number of classes K; labels are 0..K-1, and K is the null label (classifier-free guidance).
        patch: 2 folds every 2x2 block of pixels into channels at the input and back at the output; 1 does not.
        head_channels: channels of an attention head.
        dropout: probability of dropping an activation before the second convolution of a block, in training mode.
        bandwidth: of the Fourier features of ``t``: its variation over ``1 / bandwidth`` is told apart.

    Raises:
        Refusal: a setting that does not fit, with the divisor and the nearest legal sizes where it is a size.
    """

    compute_dtype = computing("stem")

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        size: Sequence[int] = (32, 32),
        channels: Sequence[int] = (64, 128, 128),
        blocks: int = 2,
        attention: Sequence[bool] = (False, True, True),
        classes: int | None = None,
        patch: int = 1,
        head_channels: int = 32,
        dropout: float = 0.0,
        bandwidth: float = 1.0,
    ) -> None:
        super().__init__()
        require_stages(channels, attention, blocks, dropout, classes)
        if patch not in (1, 2):
            raise Refusal(f"patch {patch} is not known; use 1 or 2")
        if not bandwidth > 0:
            raise Refusal(f"bandwidth {bandwidth} does not fit; use more than 0")
        #: What rebuilds this network: ``MPUNet(**net.settings)``; survives JSON.
        self.settings: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "size": list(size),
            "channels": list(channels),
            "blocks": blocks,
            "attention": [bool(a) for a in attention],
            "classes": classes,
            "patch": patch,
            "head_channels": head_channels,
            "dropout": dropout,
            "bandwidth": bandwidth,
        }
        self.classes, self.patch = classes, patch
        self.divisor = patch * 2 ** (len(channels) - 1)
        require_multiple(size[0], size[1], self.divisor)

        width = 4 * channels[0]
        self.fourier = MPFourier(channels[0], bandwidth)
        self.time = MPLinear(channels[0], width)
        self.label = None if classes is None else MPLinear(classes + 1, width)

        films: list[int] = []

        def block(c_in: int, c_out: int, attended: bool, place: str, resample: str = "keep") -> MPBlock:
            films.append(c_out)
            return MPBlock(c_in, c_out, min(head_channels, c_out) if attended else None, dropout, place, resample)

        # one more input channel of ones stands in for a bias
        self.stem = MPConv2d(in_channels * patch**2 + 1, channels[0], 3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, skips = channels[0], [channels[0]]
        for i, (c_out, attended) in enumerate(zip(channels, attention, strict=True)):
            if i > 0:
                self.down.append(block(c, c, False, "down", "half"))
                skips.append(c)
            for _ in range(blocks):
                self.down.append(block(c, c_out, attended, "down"))
                c = c_out
                skips.append(c)
        self.middle = nn.ModuleList([block(c, c, True, "up"), block(c, c, False, "up")])
        #: Whether the block is fed the matching feature map of the way down.
        self.joins: list[bool] = []
        for i, (c_out, attended) in reversed(list(enumerate(zip(channels, attention, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(block(c + skips.pop(), c_out, attended, "up"))
                self.joins.append(True)
                c = c_out
            if i > 0:
                self.up.append(block(c, c, False, "up", "double"))
                self.joins.append(False)
        self.head = MPConv2d(c, out_channels * patch**2, 3)
        #: The output's gain, learned from zero (section 2.5).
        self.gain = nn.Parameter(torch.zeros(()))
        #: One linear map gives the modulation of every block, each with a gain learned from zero.
        self.films = MPLinear(width, sum(films))
        self.film_gains = nn.Parameter(torch.zeros(len(films)))
        self._film_sizes = films

    def _embed(self, t: Tensor, cond: Mapping[str, Tensor] | None) -> list[Tensor]:
        """The modulation ``1 + gain (W emb)`` of every block, in order, float32."""
        emb = self.time(self.fourier(t))
        label = cond.get("label") if cond is not None else None
        if self.label is not None and self.classes is not None:
            count = self.classes + 1
            index = torch.full(t.shape, self.classes, device=t.device) if label is None else label
            # one-hot of unit root mean square
            emb = mp_sum(emb, self.label(F.one_hot(index, count).to(emb.dtype) * count**0.5), EVEN)
        elif label is not None:
            raise Refusal("this network was built without classes, and was given a label; build it with classes=K")
        parts = self.films(mp_silu(emb)).split(self._film_sizes, dim=1)
        return [1 + gain * part for gain, part in zip(self.film_gains, parts, strict=True)]

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """The network at images ``x`` [b, c, h, w] and noise numbers ``t`` [b].

        ``cond["label"]`` [b] holds class indices, K meaning "no label"; without it all samples have none.
        """
        require_multiple(x.shape[-2], x.shape[-1], self.divisor)
        films = iter(self._embed(t, cond))
        h = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        h = F.pad(h, (0, 0, 0, 0, 0, 1), value=1.0)
        h = self.stem(channels_last(h.to(self.compute_dtype)))
        skips = [h]
        for stage in self.down:
            h = stage(h, next(films))
            skips.append(h)
        for stage in self.middle:
            h = stage(h, next(films))
        for stage, joined in zip(self.up, self.joins, strict=True):
            h = stage(mp_cat(h, skips.pop(), EVEN) if joined else h, next(films))
        h = self.head(h, gain=self.gain).to(torch.promote_types(self.compute_dtype, torch.float32))
        return (F.pixel_shuffle(h, self.patch) if self.patch > 1 else h).contiguous()
