"""What the U-Nets of images and of series have alike: their stages down and up, and how time and class reach them.

The contract: :func:`stages` makes the modules in one order, so that a seed gives one set of weights; :func:`through`
calls them with a vector of ``films`` for every residual block, in that order.  A network keeps what is made here under
``time``, ``label``, ``down``, ``up``, ``middle``, ``films`` and ``film_sizes``: checkpoints know it by these names, in
this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.nets.layers import Attention, GroupNorm, Linear, silu, time_features

#: ``channels in, channels out, kernel -> a convolution that keeps the size``.
Conv = Callable[[int, int, int], nn.Module]
#: ``channels -> a layer that halves or doubles the size``.
Resize = Callable[[int], nn.Module]


def zeroed(module: nn.Module) -> nn.Module:
    """``module`` with all its parameters at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@final
class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu(film(norm(conv(silu(norm(x)))))))``; the second convolution starts at zero.

    Source: Dhariwal and Nichol 2021, "adaptive group normalization" (without the up- and downsampling inside).
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float, conv: Conv) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = conv(in_channels, out_channels, 3)
        self.norm2 = GroupNorm(out_channels, groups)
        self.dropout = dropout
        self.conv2 = zeroed(conv(out_channels, out_channels, 3))
        self.skip = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], film: Float[Tensor, "b f"]) -> Float[Tensor, "b o h w"]:
        h = self.conv1(silu(self.norm1(x)))
        h = silu(self.norm2(h, film))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        y: Tensor = self.conv2(h).add_(self.skip(x))  # in place: no derivative reads the convolution's result
        return y


def require_stages(
    channels: Sequence[int], attention: Sequence[bool], blocks: int, dropout: float, classes: int | None
) -> None:
    """Raises :class:`Refusal` for settings of a U-Net that do not fit."""
    if len(channels) != len(attention) or not channels:
        raise Refusal(f"attention has {len(attention)} entries for {len(channels)} stages; give one for each stage")
    if blocks < 1 or not 0 <= dropout < 1 or (classes is not None and classes < 1):
        found = f"blocks {blocks}, dropout {dropout}, classes {classes}"
        raise Refusal(f"{found} do not fit; use blocks >= 1, 0 <= dropout < 1, classes >= 1 or None")


def conditioning(channels: Sequence[int], classes: int | None) -> tuple[int, nn.Sequential, nn.Embedding | None]:
    """The width of the embedding of time and class, and what embeds either."""
    width = 4 * channels[0]
    time = nn.Sequential(Linear(channels[0], width), nn.SiLU(), Linear(width, width))
    return width, time, None if classes is None else nn.Embedding(classes + 1, width)


class Stages(NamedTuple):
    """The stages, and how many numbers of ``films`` every residual block is given, in the order of their calls."""

    down: nn.ModuleList
    up: nn.ModuleList
    middle: nn.ModuleList
    film_sizes: list[int]


def stages(
    channels: Sequence[int], attention: Sequence[bool], blocks: int, head_channels: int, groups: int, dropout: float,
    conv: Conv, halve: Resize, double: Resize,
) -> Stages:  # fmt: skip
    """The stages of a U-Net, whose settings are those of :class:`~sfumato.nets.unet.UNet`."""
    film_sizes: list[int] = []

    def residual(c_in: int, c_out: int) -> ResidualBlock:
        film_sizes.append(2 * c_out)
        return ResidualBlock(c_in, c_out, groups, dropout, conv)

    def attend(c: int, wanted: bool) -> nn.Module:
        return Attention(c, min(head_channels, c), groups) if wanted else nn.Identity()

    down, up = nn.ModuleList(), nn.ModuleList()
    c, skips = channels[0], [channels[0]]
    for i, (c_out, attended) in enumerate(zip(channels, attention, strict=True)):
        for _ in range(blocks):
            down.append(nn.ModuleList([residual(c, c_out), attend(c_out, attended)]))
            c = c_out
            skips.append(c)
        if i < len(channels) - 1:
            down.append(halve(c))
            skips.append(c)
    middle = nn.ModuleList([residual(c, c), attend(c, True), residual(c, c)])
    for i, (c_out, attended) in reversed(list(enumerate(zip(channels, attention, strict=True)))):
        for _ in range(blocks + 1):
            up.append(nn.ModuleList([residual(c + skips.pop(), c_out), attend(c_out, attended)]))
            c = c_out
        if i > 0:
            up.append(double(c))
    return Stages(down, up, middle, film_sizes)


def films(net: Any, t: Float[Tensor, "b"], cond: Mapping[str, Tensor] | None) -> Iterator[Tensor]:
    """The scale-shift vectors of every residual block, in order, float32.

    Raises :class:`Refusal` for a label where the network has no classes.
    """
    first = net.time[0]
    emb: Tensor = net.time(time_features(t, first.in_features).to(first.weight.dtype))
    label = cond.get("label") if cond is not None else None
    if net.label is not None:
        null = torch.full(t.shape, net.label.num_embeddings - 1, dtype=torch.long, device=t.device)
        emb = emb + net.label(null if label is None else label)
    elif label is not None:
        raise Refusal("this network was built without classes, and was given a label; build it with classes=K")
    return iter(net.films(F.silu(emb)).split(net.film_sizes, dim=1))


def through(net: Any, h: Float[Tensor, "b c h w"], film: Iterator[Tensor]) -> Float[Tensor, "b c h w"]:
    """What the stages make of the stem's feature map."""
    skips = [h]
    for stage in net.down:
        h = stage[1](stage[0](h, next(film))) if isinstance(stage, nn.ModuleList) else stage(h)
        skips.append(h)
    first, attend, second = net.middle
    h = second(attend(first(h, next(film))), next(film))
    for stage in net.up:
        if isinstance(stage, nn.ModuleList):
            h = stage[1](stage[0](torch.cat([h, skips.pop()], dim=1), next(film)))
        else:
            h = stage(h)
    return h
