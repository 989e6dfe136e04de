"""Point sets without a centre: ``[b, n, d]``, padded to ``n`` points, every set's own mean at the origin.

The contract: the mask says which rows are points; padding is 0; the mean over a set's own points is 0.  A set of ``m``
points has ``(m - 1) d`` free dimensions, and its noise depends on its own points alone, whatever the padding
(Hoogeboom et al. 2022, E(3) equivariant diffusion, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal
from sfumato.spaces.manifold import tolerance


def require_leading(mask: Tensor, what: str) -> None:
    """Raises :class:`Refusal` unless ``mask`` is ``[b, n]`` with each sample's own rows before its padding."""
    if mask.ndim != 2 or mask.shape[1] < 1:
        raise Refusal(f"a mask of shape {tuple(mask.shape)} for {what}; give [b, n], True where a row is real")
    own = mask.bool()
    if bool((own[:, 1:] & ~own[:, :-1]).any()):
        raise Refusal(f"a mask of {what} has real rows behind padding; move every sample's own rows to the front")


@final
@dataclass(frozen=True, eq=False)
class ZeroCoM:
    """Padded point sets with the centre of mass at 0; ``mask`` ``[b, n]``, or ``[1, n]`` for all samples."""

    mask: Tensor

    def __post_init__(self) -> None:
        require_leading(self.mask, "ZeroCoM")

    def _own(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] != self.mask.shape[1] or len(self.mask) not in (1, len(x)):
            raise Refusal(
                f"a state of shape {tuple(x.shape)} for a mask of shape {tuple(self.mask.shape)}; states are [b, n, d]"
            )
        return self.mask[..., None].to(x)

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """Standard normal noise of the space: normal points of each set's own, less their mean."""
        rows = self.mask.bool().sum(1).expand(len(like))
        return self.project(rng.normal(tuple(like.shape), rows).to(like))

    def project(self, x: Tensor) -> Tensor:
        """Padding to 0, the mean of a set's own points subtracted from them."""
        own = self._own(x)
        mean = (x * own).sum(1, keepdim=True) / own.sum(1, keepdim=True).clamp(min=1)
        return (x - mean) * own

    def contains(self, x: Tensor) -> bool:
        """Whether padding is 0 and every set balances."""
        padding = x.masked_select((self._own(x) == 0).expand_as(x))
        scale = 1 + float(x.abs().max()) if x.numel() else 1.0
        balanced = float(x.sum(1).abs().max()) <= tolerance(x) * scale * x.shape[1] if x.numel() else True
        return not bool(padding.any()) and balanced

    def sites(self, x: Tensor) -> Tensor:
        """1 on a set's own points, 0 on padding: ``[b, n, 1]``."""
        return self._own(x)

    def dof(self, x: Tensor) -> Tensor:
        """``(m - 1) d`` for ``m`` points, ``[b]``."""
        return ((self._own(x)[..., 0].sum(1) - 1).clamp(min=0) * x.shape[2]).expand(len(x))
