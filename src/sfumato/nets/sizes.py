"""Which image sizes a network fits: height and width must be multiples of what it halves them by."""

from __future__ import annotations

from sfumato.errors import Refusal


def require_multiple(height: int, width: int, divisor: int) -> None:
    """Raises :class:`Refusal`, naming the nearest sizes that fit, unless both are positive multiples of ``divisor``."""
    if min(height, width) < 1 or height % divisor or width % divisor:
        below = [max(divisor, n // divisor * divisor) for n in (height, width)]
        above = [max(divisor, -(-n // divisor) * divisor) for n in (height, width)]
        near = " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))
        raise Refusal(
            f"size {height}x{width} does not fit: height and width must be multiples of {divisor}; nearest: {near}; "
            "--resolution sets it"
        )
