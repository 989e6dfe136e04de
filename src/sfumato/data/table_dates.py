"""Dates as whole numbers of microseconds, written back as they were written.

The contract: ``write(read(cells)) == cells`` for a column that is dated in one style: the order of year, month and day,
their separator, the digits of the clock, and one offset from UTC.  A column with several offsets is read as UTC and
comes back so.  Years are those of the Gregorian calendar, 1 to 9999.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, final

import numpy as np

#: Where days are counted from.
EPOCH = datetime(1970, 1, 1)
#: The orders that dates are written in; where the day and the month could be exchanged, the first is taken.
ORDERS = ("y-m-d", "y/m/d", "d.m.y", "m/d/y", "d/m/y")
#: Steps of time in microseconds, the coarsest first.
UNITS = (86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000, 1_000, 1)

_CLOCK = r"(?:(?P<sep>[T ])(?P<H>\d\d):(?P<M>\d\d)(?P<S>:\d\d)?(?P<f>\.\d{1,6})?(?P<z>Z|[+-]\d\d:?\d\d)?)?"


def _pattern(order: str) -> re.Pattern[str]:
    digits = {"y": r"(?P<y>\d{4})", "m": r"(?P<m>\d\d)", "d": r"(?P<d>\d\d)"}
    return re.compile("".join(digits.get(c, re.escape(c)) for c in order) + _CLOCK)


_PATTERNS = {order: _pattern(order) for order in ORDERS}


@final
@dataclass(frozen=True)
class Style:
    """``order``: one of :data:`ORDERS`; ``clock``: what separates the clock from the day, "" for days alone;
    ``seconds``: whether they are written; ``digits``: those after their point; ``zone``: the offset as written."""

    order: str
    clock: str = ""
    seconds: bool = False
    digits: int = 0
    zone: str = ""

    def write(self, ticks: int) -> str:
        """A date, in microseconds since 1970 at the column's own offset, as text."""
        when = EPOCH + timedelta(microseconds=ticks)
        day = {"y": f"{when.year:04d}", "m": f"{when.month:02d}", "d": f"{when.day:02d}"}
        text = "".join(day.get(c, c) for c in self.order)
        if self.clock:
            text += f"{self.clock}{when.hour:02d}:{when.minute:02d}"
            text += f":{when.second:02d}" if self.seconds else ""
            text += f".{when.microsecond:06d}"[: self.digits + 1] if self.digits else ""
            text += self.zone
        return text

    def to_json(self) -> dict[str, Any]:
        """Its settings."""
        return asdict(self)


def _offset(zone: str) -> timedelta:
    if zone in ("", "Z"):
        return timedelta(0)
    minutes = 60 * int(zone[1:3]) + int(zone[-2:])
    return timedelta(minutes=minutes if zone[0] == "+" else -minutes)


def _ticks(found: re.Match[str]) -> int:
    part = found.groupdict()
    fraction = (part["f"] or ".")[1:].ljust(6, "0")
    seconds = int((part["S"] or ":0")[1:])
    year, month, day, hour, minute = (int(part[key] or 0) for key in ("y", "m", "d", "H", "M"))
    when = datetime(year, month, day, hour, minute, seconds, int(fraction))
    return (when - EPOCH) // timedelta(microseconds=1)


def read(cells: Sequence[str], orders: Sequence[str] = ORDERS) -> tuple[list[int], Style, str | None] | None:
    """The microseconds since 1970 of dated cells, their style, and a note where something was decided for the user.

    ``orders``: those that are tried, the first that fits is taken.  None where the cells are no dates of one style.
    """
    for order in orders:
        pattern = _PATTERNS[order]
        matches = [pattern.fullmatch(text) for text in cells]
        found = [match for match in matches if match is not None]
        if len(found) < len(cells):
            continue
        shapes = {(m["sep"] or "", m["S"] is not None, len(m["f"] or ".") - 1) for m in found}
        zones = {m["z"] or "" for m in found}
        if len(shapes) > 1 or ("" in zones and len(zones) > 1):
            return None
        try:
            ticks = [_ticks(match) for match in found]
        except ValueError:  # there is no such day in this order
            continue
        clock, seconds, digits = shapes.pop()
        if len(zones) == 1:
            return ticks, Style(order, clock, seconds, digits, zones.pop()), _ambiguous(order, found)
        moved = [t - _offset(m["z"]) // timedelta(microseconds=1) for t, m in zip(ticks, found, strict=True)]
        zone = "Z" if any(z == "Z" for z in zones) else "+00:00"
        return moved, Style(order, clock, seconds, digits, zone), f"{len(zones)} offsets from UTC: read as UTC"
    return None


def _ambiguous(order: str, found: Sequence[re.Match[str]]) -> str | None:
    if order == "m/d/y" and all(int(m["d"]) <= 12 for m in found):
        return "read as month/day/year, which its cells do not settle"
    return None


def unit_of(ticks: Sequence[int]) -> int:
    """The coarsest step of time that all ticks are whole numbers of."""
    return next(unit for unit in UNITS if all(t % unit == 0 for t in ticks))


def as_array(ticks: Sequence[int], missing: np.ndarray, style: Style) -> np.ndarray:
    """Dates as ``datetime64``: UTC where the style has an offset, else as written; NaT where ``missing``."""
    shift = _offset(style.zone) // timedelta(microseconds=1)
    found = np.array([t - shift for t in ticks], dtype="int64").astype("datetime64[us]")
    found[missing] = np.datetime64("NaT")
    return found
