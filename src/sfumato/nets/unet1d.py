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

from sfumato.errors import Refusal
from sfumato.nets.layers import Attention, GroupNorm, Linear, channels_last, silu, time_features
from sfumato.nets.precision import best_dtype


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


def _silent(conv: Conv1d) -> Conv1d:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


@final
class ResidualBlock1d(nn.Module):
    """``skip(x) + conv(silu(film(norm(conv(silu(norm(x)))))))``; the second convolution starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = Conv1d(in_channels, out_channels, 3)
        self.norm2 = GroupNorm(out_channels, groups)
        self.dropout = dropout
        self.conv2 = _silent(Conv1d(out_channels, out_channels, 3))
        self.skip = nn.Identity() if in_channels == out_channels else Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c 1 l"], film: Float[Tensor, "b f"]) -> Float[Tensor, "b o 1 l"]:
        h = self.conv1(silu(self.norm1(x)))
        h = silu(self.norm2(h, film))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        y: Tensor = self.conv2(h).add_(self.skip(x))  # in place: no derivative reads the convolution's result
        return y


@final
class Double(nn.Module):
    """Every value twice, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv1d(channels, channels, 3)

    def forward(self, x: Float[Tensor, "b c 1 l"]) -> Float[Tensor, "b c 1 2*l"]:
        y: Tensor = self.conv(channels_last(x.repeat_interleave(2, -1)))
        return y


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
        if len(channels) != len(attention) or not channels:
            raise Refusal(f"attention has {len(attention)} entries for {len(channels)} stages; give one for each stage")
        if blocks < 1 or not 0 <= dropout < 1 or (classes is not None and classes < 1):
            found = f"blocks {blocks}, dropout {dropout}, classes {classes}"
            raise Refusal(f"{found} do not fit; use blocks >= 1, 0 <= dropout < 1, classes >= 1 or None")
        #: What rebuilds this network: ``UNet1d(**net.settings)``; survives JSON.
        self.settings: dict[str, Any] = {
            "in_channels": in_channels, "out_channels": out_channels, "channels": list(channels), "blocks": blocks,
            "attention": [bool(a) for a in attention], "classes": classes, "head_channels": head_channels,
            "groups": groups, "dropout": dropout,
        }  # fmt: skip
        self.divisor = 2 ** (len(channels) - 1)
        self._dtype: torch.dtype | None = None
        width = 4 * channels[0]
        self.time = nn.Sequential(Linear(channels[0], width), nn.SiLU(), Linear(width, width))
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        films: list[int] = []

        def residual(c_in: int, c_out: int) -> ResidualBlock1d:
            films.append(2 * c_out)
            return ResidualBlock1d(c_in, c_out, groups, dropout)

        def attend(c: int, wanted: bool) -> nn.Module:
            return Attention(c, min(head_channels, c), groups) if wanted else nn.Identity()

        self.stem = Conv1d(in_channels, channels[0], 5)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, skips = channels[0], [channels[0]]
        for i, (c_out, attended) in enumerate(zip(channels, attention, strict=True)):
            for _ in range(blocks):
                self.down.append(nn.ModuleList([residual(c, c_out), attend(c_out, attended)]))
                c = c_out
                skips.append(c)
            if i < len(channels) - 1:
                self.down.append(Conv1d(c, c, 3, stride=2))
                skips.append(c)
        self.middle = nn.ModuleList([residual(c, c), attend(c, True), residual(c, c)])
        for i, (c_out, attended) in reversed(list(enumerate(zip(channels, attention, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(nn.ModuleList([residual(c + skips.pop(), c_out), attend(c_out, attended)]))
                c = c_out
            if i > 0:
                self.up.append(Double(c))
        self.norm = GroupNorm(c, groups)
        self.head = _silent(Conv1d(c, out_channels, 3))
        #: One affine map gives the scale and shift of every block.
        self.films = Linear(width, sum(films))
        self._film_sizes = films

    @property
    def compute_dtype(self) -> torch.dtype:
        """The format of the arithmetic inside, as in :class:`~sfumato.nets.unet.UNet`."""
        return self._dtype or best_dtype(self.stem.weight.device)

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype

    def _embed(self, t: Tensor, cond: Mapping[str, Tensor] | None) -> list[Tensor]:
        """The scale-shift vectors of every residual block, in order, float32."""
        features = time_features(t, self.settings["channels"][0])
        emb: Tensor = self.time(features.to(self.stem.weight.dtype))
        label = cond.get("label") if cond is not None else None
        if self.label is not None:
            null = torch.full(t.shape, self.label.num_embeddings - 1, dtype=torch.long, device=t.device)
            emb = emb + self.label(null if label is None else label)
        elif label is not None:
            raise Refusal("this network was built without classes, and was given a label; build it with classes=K")
        return list(self.films(F.silu(emb)).split(self._film_sizes, dim=1))

    def forward(
        self, x: Float[Tensor, "b c l"], t: Float[Tensor, "b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "b out l"]:
        """The network at series ``x`` [b, c, length] and times ``t`` [b] in [0, 1].

        ``cond["label"]`` [b] holds class indices, K meaning "no label"; without it all samples have none.
        """
        length = x.shape[-1]
        films = iter(self._embed(t, cond))
        padded = F.pad(x, (0, -length % self.divisor), mode="replicate") if length % self.divisor else x
        h = self.stem(channels_last(padded[:, :, None].to(self.compute_dtype)))
        skips = [h]
        for stage in self.down:
            h = stage[1](stage[0](h, next(films))) if isinstance(stage, nn.ModuleList) else stage(h)
            skips.append(h)
        first, attend, second = self.middle
        h = second(attend(first(h, next(films))), next(films))
        for stage in self.up:
            if isinstance(stage, nn.ModuleList):
                h = stage[1](stage[0](torch.cat([h, skips.pop()], dim=1), next(films)))
            else:
                h = stage(h)
        h = self.head(silu(self.norm(h))).to(torch.promote_types(self.compute_dtype, torch.float32))
        y: Tensor = h[:, :, 0, :length].contiguous()
        return y
