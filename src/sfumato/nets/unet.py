"""The U-Net of Ho et al. 2020 with scale-shift conditioning (Nichol and Dhariwal 2021).

The contract: ``net(x, t, cond)`` maps a batch of images ``[b, c, h, w]``, times ``[b]`` in [0, 1] and optional class
labels to a batch ``[b, out, h, w]``; row k of the result depends on row k of the arguments alone.  At initialisation
the output is zero and every residual block keeps to its skip.  The network knows nothing of diffusion.

Shape of the network, for ``channels = (c1, ..., cn)`` and ``blocks = B``: a stem; ``n`` stages downwards of ``B``
residual blocks, each but the last ending in a stride-2 convolution; two residual blocks around attention in the middle;
``n`` stages upwards of ``B + 1`` residual blocks, each fed the matching feature map of the way down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import Refusal
from sfumato.nets.layers import Attention, Conv2d, GroupNorm, Linear, Upsample, channels_last, silu, time_features
from sfumato.nets.precision import best_dtype
from sfumato.nets.sizes import require_multiple


@final
class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu(film(norm(conv(silu(norm(x)))))))``; the second convolution starts at zero.

    Source: Dhariwal and Nichol 2021, "adaptive group normalization" (without the up- and downsampling inside).
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = Conv2d(in_channels, out_channels, 3)
        self.norm2 = GroupNorm(out_channels, groups)
        self.dropout = dropout
        self.conv2 = Conv2d(out_channels, out_channels, 3)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)
        self.skip = nn.Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], film: Float[Tensor, "b f"]) -> Float[Tensor, "b o h w"]:
        h = self.conv1(silu(self.norm1(x)))
        h = silu(self.norm2(h, film))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        y: Tensor = self.conv2(h).add_(self.skip(x))  # in place: no derivative reads the convolution's result
        return y


@final
class UNet(nn.Module):
    """A U-Net for images of any height and width that fit.

    Args:
        in_channels, out_channels: channels of the image in and out.
        size: (height, width) it is meant for; one that does not fit is refused here, and so it is in a call.
        channels: of each stage, from the finest to the coarsest; every stage but the first halves height and width.
        blocks: residual blocks in each stage on the way down (one more on the way up).
        attention: for each stage, whether every residual block is followed by self-attention; the middle always is.
        classes: number of classes K; labels are 0..K-1, and K is the null label (classifier-free guidance).
        patch: 2 folds every 2x2 block of pixels into channels at the input and back at the output; 1 does not.
        head_channels: channels of an attention head.
        groups: groups of group norm, at most; ``gcd(groups, channels)`` are used.
        dropout: probability of dropping an activation before the second convolution of a block, in training mode.

    Raises:
        Refusal: a setting that does not fit, with the divisor and the nearest legal sizes where it is a size.
    """

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
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) != len(attention) or not channels:
            raise Refusal(f"attention has {len(attention)} entries for {len(channels)} stages; give one for each stage")
        if patch not in (1, 2):
            raise Refusal(f"patch {patch} is not known; use 1 or 2")
        if blocks < 1 or not 0 <= dropout < 1 or (classes is not None and classes < 1):
            found = f"blocks {blocks}, dropout {dropout}, classes {classes}"
            raise Refusal(f"{found} do not fit; use blocks >= 1, 0 <= dropout < 1, classes >= 1 or None")
        #: What rebuilds this network: ``UNet(**net.settings)``; survives JSON.
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
            "groups": groups,
            "dropout": dropout,
        }
        self.classes, self.patch = classes, patch
        self.divisor = patch * 2 ** (len(channels) - 1)
        require_multiple(size[0], size[1], self.divisor)
        self._dtype: torch.dtype | None = None

        width = 4 * channels[0]
        self.time = nn.Sequential(Linear(channels[0], width), nn.SiLU(), Linear(width, width))
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

        films: list[int] = []

        def residual(c_in: int, c_out: int) -> ResidualBlock:
            films.append(2 * c_out)
            return ResidualBlock(c_in, c_out, groups, dropout)

        def attend(c: int, wanted: bool) -> nn.Module:
            return Attention(c, min(head_channels, c), groups) if wanted else nn.Identity()

        self.stem = Conv2d(in_channels * patch**2, channels[0], 3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, skips = channels[0], [channels[0]]
        for i, (c_out, attended) in enumerate(zip(channels, attention, strict=True)):
            for _ in range(blocks):
                self.down.append(nn.ModuleList([residual(c, c_out), attend(c_out, attended)]))
                c = c_out
                skips.append(c)
            if i < len(channels) - 1:
                self.down.append(Conv2d(c, c, 3, stride=2))
                skips.append(c)
        self.middle = nn.ModuleList([residual(c, c), attend(c, True), residual(c, c)])
        for i, (c_out, attended) in reversed(list(enumerate(zip(channels, attention, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(nn.ModuleList([residual(c + skips.pop(), c_out), attend(c_out, attended)]))
                c = c_out
            if i > 0:
                self.up.append(Upsample(c))
        self.norm = GroupNorm(c, groups)
        self.head = Conv2d(c, out_channels * patch**2, 3)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        #: One affine map gives the scale and shift of every block.
        self.films = Linear(width, sum(films))
        self._film_sizes = films

    @property
    def compute_dtype(self) -> torch.dtype:
        """The format of the arithmetic inside; parameters, input and output stay float32.

        By default the fastest safe one where the parameters are (:func:`sfumato.nets.precision.best_dtype`); assign
        ``torch.float32`` or ``torch.bfloat16`` to fix it.
        """
        return self._dtype or best_dtype(self.stem.weight.device)

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype

    def _embed(self, t: Tensor, cond: Mapping[str, Tensor] | None) -> list[Tensor]:
        """The scale-shift vectors of every residual block, in order, float32."""
        emb: Tensor = self.time(time_features(t, self.stem.out_channels).to(self.stem.weight.dtype))
        label = cond.get("label") if cond is not None else None
        if self.label is not None:
            null = torch.full(t.shape, self.label.num_embeddings - 1, dtype=torch.long, device=t.device)
            emb = emb + self.label(null if label is None else label)
        elif label is not None:
            raise Refusal("this network was built without classes, and was given a label; build it with classes=K")
        return list(self.films(F.silu(emb)).split(self._film_sizes, dim=1))

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """The network at images ``x`` [b, c, h, w] and times ``t`` [b] in [0, 1].

        ``cond["label"]`` [b] holds class indices, K meaning "no label"; without it all samples have none.
        """
        require_multiple(x.shape[-2], x.shape[-1], self.divisor)
        films = iter(self._embed(t, cond))
        h = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        h = self.stem(channels_last(h.to(self.compute_dtype)))
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
        return (F.pixel_shuffle(h, self.patch) if self.patch > 1 else h).contiguous()
