"""The U-Net of :mod:`sfumato.nets.unet` along one axis: time series of any length.

The contract: ``net(x, t, cond)`` maps series ``[b, c, length]``, times ``[b]`` in [0, 1] and optional class labels to
``[b, out, length]``; row k of the result depends on row k of the arguments alone; at initialisation the output is zero.
Every stage but the first halves the length: one that does not divide is continued at its end by its last value, and
what was added is cut off the output.  Inside, a series is an image of height 1, so that norms and attention are those
of images; the first convolution is 5 wide, the others 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.nets.layers import GroupNorm, Linear, channels_last, silu
from sfumato.nets.precision import computing
from sfumato.nets.stages import conditioning, films, require_stages, stages, through, zeroed


@final
class Conv1d(nn.Module):
    """A convolution along the last axis of ``[b, c, 1, length]``: float32 parameters, the dtype of its input."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        made = nn.Conv1d(in_channels, out_channels, kernel_size)
        self.weight = nn.Parameter(channels_last(made.weight.data[:, :, None]))
        self.bias = nn.Parameter(made.bias.data if made.bias is not None else torch.zeros(out_channels))
        self.stride, self.padding = (1, stride), (0, kernel_size // 2)

    def forward(self, x: Float[Tensor, "b c 1 l"]) -> Float[Tensor, "b o 1 m"]:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.stride, self.padding)


@final
class Double(nn.Module):
    """Every value twice, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv1d(channels, channels, 3)

    def forward(self, x: Float[Tensor, "b c 1 l"]) -> Float[Tensor, "b c 1 2*l"]:
        y: Tensor = self.conv(channels_last(x.repeat_interleave(2, -1)))
        return y


def _halve(channels: int) -> Conv1d:
    return Conv1d(channels, channels, 3, stride=2)


@final
class UNet1d(nn.Module):
    """A U-Net for series of any length.

    Args:
        in_channels, out_channels: channels of the series in and out.
        channels: of each stage, from the finest to the coarsest; every stage but the first halves the length.
        blocks: residual blocks in each stage on the way down (one more on the way up).
        attention: for each stage, whether every residual block is followed by self-attention; the middle always is.
        classes: number of classes K; labels are 0..K-1, and K is the null label (classifier-free guidance).
        head_channels: channels of an attention head.
        groups: groups of group norm, at most; ``gcd(groups, channels)`` are used.
        dropout: probability of dropping an activation before the second convolution of a block, in training mode.

    Raises:
        Refusal: a setting that does not fit.
    """

    compute_dtype = computing("stem")

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: Sequence[int] = (48, 96, 96),
        blocks: int = 2,
        attention: Sequence[bool] = (False, False, True),
        classes: int | None = None,
        head_channels: int = 32,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(channels, attention, blocks, dropout, classes)
        #: What rebuilds this network: ``UNet1d(**net.settings)``; survives JSON.
        self.settings: dict[str, Any] = {
            "in_channels": in_channels, "out_channels": out_channels, "channels": list(channels), "blocks": blocks,
            "attention": [bool(a) for a in attention], "classes": classes, "head_channels": head_channels,
            "groups": groups, "dropout": dropout,
        }  # fmt: skip
        self.divisor = 2 ** (len(channels) - 1)
        width, self.time, self.label = conditioning(channels, classes)
        self.stem = Conv1d(in_channels, channels[0], 5)
        self.down, self.up, self.middle, self.film_sizes = stages(
            channels, attention, blocks, head_channels, groups, dropout, Conv1d, _halve, Double
        )
        self.norm = GroupNorm(channels[0], groups)
        self.head = zeroed(Conv1d(channels[0], out_channels, 3))
        #: One affine map gives the scale and shift of every block.
        self.films = Linear(width, sum(self.film_sizes))

    def forward(
        self, x: Float[Tensor, "b c l"], t: Float[Tensor, "b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "b out l"]:
        """The network at series ``x`` [b, c, length] and times ``t`` [b] in [0, 1].

        ``cond["label"]`` [b] holds class indices, K meaning "no label"; without it all samples have none.
        """
        length = x.shape[-1]
        film = films(self, t, cond)
        padded = F.pad(x, (0, -length % self.divisor), mode="replicate") if length % self.divisor else x
        h = through(self, self.stem(channels_last(padded[:, :, None].to(self.compute_dtype))), film)
        h = self.head(silu(self.norm(h))).to(torch.promote_types(self.compute_dtype, torch.float32))
        y: Tensor = h[:, :, 0, :length].contiguous()
        return y
