"""From the user's units to the model's, and back: ``decode(encode(x)) == x``.

A transform is stored in the checkpoint, so samples always come back in the units the data came in.  The model's side is
float32 of about unit range; the user's side is uint8 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sfumato.errors import Refusal, nearest


@runtime_checkable
class Transform(Protocol):
    """An invertible change of units between the user's data and the model's state."""

    def encode(self, x: Tensor) -> Tensor:
        """The model's state for stored data."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """The user's units for a model's state; refuses non-finite states."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The settings that :func:`from_json` rebuilds it from."""
        ...


@final
@dataclass(frozen=True)
class Uint8Image:
    """Grey levels 0..255 to [-1, 1] by ``x / 127.5 - 1``; back by rounding to the nearest level and clipping."""

    def encode(self, x: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """uint8 ``[b, c, h, w]`` to float32 ``[b, c, h, w]`` in [-1, 1], on the same device."""
        return x.to(torch.float32).mul_(1 / 127.5).sub_(1.0)

    def decode(self, x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b h w"] | UInt8[Tensor, "b h w c"]:
        """Float ``[b, c, h, w]`` to uint8: ``[b, h, w]`` for one channel, ``[b, h, w, c]`` for more.

        Values beyond [-1, 1] are clipped.  Raises :class:`Refusal` where a value is not finite: such a state is never
        made into an image.
        """
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            bad = int((~finite).flatten(1).any(1).sum())
            raise Refusal(f"{bad} of {len(x)} images have non-finite values; sample with more steps or less guidance")
        levels = x.detach().to(torch.float32).add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
        return levels[:, 0] if levels.shape[1] == 1 else levels.permute(0, 2, 3, 1).contiguous()

    def to_json(self) -> dict[str, Any]:
        """Its name; it has no settings."""
        return {"name": "uint8-image"}


#: Every transform by the name that its ``to_json`` writes.
TRANSFORMS: dict[str, type[Uint8Image]] = {"uint8-image": Uint8Image}


def from_json(record: Mapping[str, Any]) -> Transform:
    """The transform that ``to_json`` described.  Raises :class:`Refusal` for an unknown name."""
    name = str(record.get("name"))
    if name not in TRANSFORMS:
        raise Refusal(f"unknown data transform {name!r}; {nearest(name, TRANSFORMS)}")
    return TRANSFORMS[name](**{key: value for key, value in record.items() if key != "name"})
