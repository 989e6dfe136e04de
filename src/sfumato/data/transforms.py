"""From the user's units to the model's, and back: ``decode(encode(x)) == x``.

A transform is stored in the checkpoint, so samples always come back in the units the data came in.  The model's side is
float32 of about unit range; the user's side is uint8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sfumato.data.text_transform import TextTransform
from sfumato.data.views import Images, View
from sfumato.errors import Refusal, nearest


@runtime_checkable
class Transform(Protocol):
    """An invertible change of units between the user's data and the model's state."""

    def encode(self, x: Tensor) -> Tensor:
        """The model's state for stored data."""
        ...

    def decode(self, x: Tensor) -> Any:
        """The user's units for a model's state (pixels, strings); refuses states that are none."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's state."""
        ...

    @property
    def view(self) -> View:
        """How samples in the user's units are stored and shown."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The settings that :func:`from_json` rebuilds it from."""
        ...


@final
@dataclass(frozen=True)
class Uint8Image:
    """Grey levels to the model's units by ``(x - centre) / spread``; back by rounding and clipping.

    The defaults give [-1, 1]; :meth:`standardised` gives mean 0 and standard deviation 0.5, EDM's ``sigma_data``.
    Raises :class:`Refusal` unless ``spread`` is positive.
    """

    centre: float = 127.5
    spread: float = 127.5
    dtype: ClassVar[torch.dtype] = torch.float32
    view: ClassVar[View] = Images()

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise Refusal(f"spread={self.spread}: grey levels are divided by it, so it must be positive")

    @classmethod
    def standardised(cls, x: UInt8[Tensor, "n c h w"], std: float = 0.5) -> Uint8Image:
        """The transform that gives the images ``x`` mean 0 and standard deviation ``std`` over all pixels.

        Raises :class:`Refusal` where all pixels are equal.
        """
        counts = torch.bincount(x.flatten(), minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64)
        mean = (counts @ levels / counts.sum()).item()
        spread = (counts @ (levels - mean) ** 2 / counts.sum()).sqrt().item()
        if spread == 0:
            raise Refusal("all pixels of the training images are equal; there is nothing to learn from them")
        return cls(mean, spread / std)

    @property
    def limits(self) -> tuple[float, float]:
        """Black and white in the model's units."""
        return -self.centre / self.spread, (255 - self.centre) / self.spread

    def encode(self, x: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """uint8 ``[b, c, h, w]`` to float32 ``[b, c, h, w]``, on the same device."""
        return x.to(torch.float32).sub_(self.centre).mul_(1 / self.spread)

    def decode(self, x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b h w"] | UInt8[Tensor, "b h w c"]:
        """Float ``[b, c, h, w]`` to uint8: ``[b, h, w]`` for one channel, ``[b, h, w, c]`` for more.

        Values beyond :attr:`limits` are clipped.  Raises :class:`Refusal` where a value is not finite: such a state is
        never made into an image.
        """
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            bad = int((~finite).flatten(1).any(1).sum())
            raise Refusal(f"{bad} of {len(x)} images have non-finite values; sample with more steps or less guidance")
        levels = x.detach().to(torch.float32).mul(self.spread).add_(self.centre).round_().clamp_(0, 255).to(torch.uint8)
        return levels[:, 0] if levels.shape[1] == 1 else levels.permute(0, 2, 3, 1).contiguous()

    def to_json(self) -> dict[str, Any]:
        """Its name and settings."""
        return {"name": "uint8-image", "centre": self.centre, "spread": self.spread}


def _points(data: str) -> Transform:
    from sfumato.data.points import PointTransform

    return PointTransform(data)


def _table(columns: Any, label: Any) -> Transform:
    from sfumato.data.table_transform import TableTransform

    return TableTransform.stored(columns, label)


def _series(**settings: Any) -> Transform:
    from sfumato.data.series_transform import SeriesTransform

    return SeriesTransform.stored(**settings)


#: What rebuilds every transform, by the name that its ``to_json`` writes.
TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "uint8-image": Uint8Image,
    "text": TextTransform.stored,
    "points": _points,
    "table": _table,
    "series": _series,
}


def from_json(record: Mapping[str, Any]) -> Transform:
    """The transform that ``to_json`` described.  Raises :class:`Refusal` for an unknown name or setting."""
    name = str(record.get("name"))
    if name not in TRANSFORMS:
        raise Refusal(f"unknown data transform {name!r}; {nearest(name, TRANSFORMS)}")
    settings = {key: value for key, value in record.items() if key != "name"}
    try:
        return TRANSFORMS[name](**settings)
    except TypeError:
        raise Refusal(
            f"data transform {name!r} cannot be made with the settings {settings}; is config.json damaged?"
        ) from None
