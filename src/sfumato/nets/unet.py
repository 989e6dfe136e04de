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
from sfumato.nets.layers import Conv2d, GroupNorm, Linear, Upsample, channels_last, silu
from sfumato.nets.precision import computing
from sfumato.nets.sizes import require_multiple
from sfumato.nets.stages import conditioning, films, require_stages, stages, through, zeroed


def _halve(channels: int) -> Conv2d:
    return Conv2d(channels, channels, 3, stride=2)


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
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_stages(channels, attention, blocks, dropout, classes)
        if patch not in (1, 2):
            raise Refusal(f"patch {patch} is not known; use 1 or 2")
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

        width, self.time, self.label = conditioning(channels, classes)
        self.stem = Conv2d(in_channels * patch**2, channels[0], 3)
        self.down, self.up, self.middle, self.film_sizes = stages(
            channels, attention, blocks, head_channels, groups, dropout, Conv2d, _halve, Upsample
        )
        self.norm = GroupNorm(channels[0], groups)
        self.head = zeroed(Conv2d(channels[0], out_channels * patch**2, 3))
        #: One affine map gives the scale and shift of every block.
        self.films = Linear(width, sum(self.film_sizes))

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """The network at images ``x`` [b, c, h, w] and times ``t`` [b] in [0, 1].

        ``cond["label"]`` [b] holds class indices, K meaning "no label"; without it all samples have none.
        """
        require_multiple(x.shape[-2], x.shape[-1], self.divisor)
        film = films(self, t, cond)
        h = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        h = through(self, self.stem(channels_last(h.to(self.compute_dtype))), film)
        h = self.head(silu(self.norm(h))).to(torch.promote_types(self.compute_dtype, torch.float32))
        return (F.pixel_shuffle(h, self.patch) if self.patch > 1 else h).contiguous()
