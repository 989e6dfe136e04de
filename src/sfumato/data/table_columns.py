"""The types of a table's columns, found from their cells, and each type's way into the model's state and back.

The contract: a column is a constant, a category, a number or a date; ``write(*read(cells)) == cells`` but for rounding
beyond the digits that the column was written with.  In the state a category is one token; a number or a date is one
float and, where some cells hold something else (nothing, or a word such as ``unknown``), one token that says what.

How a type is found, the first that fits:

==========  =========================================================================================================
constant    all cells are alike (or all empty); it is not modelled and comes back as it is
category    two different values, whatever they are; or text of at most 1000 values that repeat
number      whole numbers within 2^53 of each other, or decimals; ``00123`` is text, a decimal comma is understood
date        one style of :mod:`sfumato.data.table_dates`
left out    text that hardly repeats (names, identifiers): there is nothing to learn of it
==========  =========================================================================================================
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from sfumato.data import table_codes, table_dates
from sfumato.data.table_codes import Code
from sfumato.data.table_dates import Style
from sfumato.data.table_read import Cell, RawColumn
from sfumato.errors import Refusal, nearest

#: A column of text has at most this many values, each of which occurs about twice or more, unless it is short.
MOST_VALUES, SHORT = 1000, 20
#: Words that may stand among numbers: this share of the cells at most, and this many different ones.
WORDS, MOST_WORDS = 0.2, 8
#: What has more digits than this is no number.
LONGEST = 400

_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)")
_DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.(\d*))?|\.(\d+))(?:[eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?(?:0|[1-9]\d*)(?:,(\d+))?")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)

Numbers = Float64[np.ndarray, " n"]
Tokens = Int64[np.ndarray, " n"]


@runtime_checkable
class Column(Protocol):
    """One column: ``numbers`` floats (0 or 1) and tokens of ``sizes`` (none or one of them) in the state."""

    @property
    def name(self) -> str: ...
    @property
    def numbers(self) -> int: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...

    def read(self, cells: Sequence[Cell]) -> tuple[list[Numbers], list[Tokens]]:
        """Cells in the column's own units (NaN where a cell holds no number), and its tokens."""
        ...

    def write(self, x: Sequence[Numbers], tokens: Sequence[Tokens], n: int) -> tuple[np.ndarray, list[str]]:
        """``n`` cells as a typed array and as text."""
        ...

    def encode(self, x: Numbers) -> Numbers:
        """Model units of its numbers; 0 where there is none."""
        ...

    def decode(self, z: Numbers) -> Numbers:
        """Its own units again."""
        ...

    def describe(self) -> tuple[str, str]:
        """Its type, and what a reader of the report should know of it."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What :func:`from_json` rebuilds it from."""
        ...


def _unchanged(x: Numbers) -> Numbers:
    return x


@final
@dataclass(frozen=True)
class Constant:
    """All cells hold ``value`` (None: nothing)."""

    name: str
    value: Cell
    numbers: ClassVar[int] = 0
    sizes: ClassVar[tuple[int, ...]] = ()

    def read(self, cells: Sequence[Cell]) -> tuple[list[Numbers], list[Tokens]]:
        """Nothing."""
        return [], []

    def write(self, x: Sequence[Numbers], tokens: Sequence[Tokens], n: int) -> tuple[np.ndarray, list[str]]:
        """The value, ``n`` times."""
        return np.full(n, self.value or ""), [self.value or ""] * n

    encode = staticmethod(_unchanged)
    decode = staticmethod(_unchanged)

    def describe(self) -> tuple[str, str]:
        """The value."""
        return "constant", "empty in every row" if self.value is None else f"{self.value!r} in every row"

    def to_json(self) -> dict[str, Any]:
        """Its name and value."""
        return {"type": "constant", "name": self.name, "value": self.value}


@final
@dataclass(frozen=True)
class Category:
    """Cells hold one of ``values``; None, where it is one of them, is an empty cell."""

    name: str
    values: tuple[Cell, ...]
    numbers: ClassVar[int] = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values there are."""
        return (len(self.values),)

    def read(self, cells: Sequence[Cell]) -> tuple[list[Numbers], list[Tokens]]:
        """The index of every cell's value; raises :class:`Refusal` for a value that it does not know."""
        index = {value: k for k, value in enumerate(self.values)}
        for value in cells:
            if value not in index:
                raise Refusal(f"column {self.name!r} has no value {value!r}; {nearest(str(value), map(str, index))}")
        return [], [np.array([index[value] for value in cells], dtype=np.int64)]

    def write(self, x: Sequence[Numbers], tokens: Sequence[Tokens], n: int) -> tuple[np.ndarray, list[str]]:
        """The values."""
        names = np.array([value or "" for value in self.values])
        found = names[tokens[0]]
        return found, found.tolist()

    encode = staticmethod(_unchanged)
    decode = staticmethod(_unchanged)

    def describe(self) -> tuple[str, str]:
        """How many values, and the first of them."""
        named = [str(value) for value in self.values if value is not None]
        shown = ", ".join(named[:4]) + (", ..." if len(named) > 4 else "")
        return "category", f"{len(named)} values: {shown}" + (", or empty" if None in self.values else "")

    def to_json(self) -> dict[str, Any]:
        """Its name and values."""
        return {"type": "category", "name": self.name, "values": list(self.values)}


def _with_words(cells: Sequence[Cell], others: tuple[Cell, ...]) -> tuple[np.ndarray, list[Tokens]]:
    """Which cells hold no number, and the token column that says what they hold: 0 for a number."""
    index = {word: k + 1 for k, word in enumerate(others)}
    tokens = np.array([index.get(text, 0) for text in cells], dtype=np.int64)
    return tokens > 0, [tokens] if others else []


def _spelled(written: list[str], others: tuple[Cell, ...], tokens: Sequence[Tokens]) -> list[str]:
    """The words that tokens say in the place of numbers."""
    if not others:
        return written
    return [others[k - 1] or "" if k else text for text, k in zip(written, tokens[0].tolist(), strict=True)]


def _positive(text: str) -> str:
    """A number as text, its sign taken off where nothing but zeros is left of it."""
    return text.removeprefix("-") if float(text) == 0 else text


def _scaled(code: Code, x: Numbers) -> Numbers:
    return np.where(np.isnan(x), 0.0, code.encode(np.nan_to_num(x)))


def _others(others: tuple[Cell, ...]) -> str:
    words = ["empty" if word is None else repr(word) for word in others]
    return f"; or {', '.join(words)}" if words else ""


@final
@dataclass(frozen=True)
class Number:
    """Whole numbers (``decimals`` 0) or decimals (so many digits after the point; None: 7 significant digits).

    ``base`` is taken off before anything else, so that large whole numbers keep their digits; ``others``: what cells
    hold that are no number.
    """

    name: str
    code: Code
    decimals: int | None
    base: int = 0
    comma: bool = False
    others: tuple[Cell, ...] = ()
    numbers: ClassVar[int] = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """A number, or one of the others."""
        return (1 + len(self.others),) if self.others else ()

    def read(self, cells: Sequence[Cell]) -> tuple[list[Numbers], list[Tokens]]:
        """The numbers less ``base``, NaN where there is none."""
        gone, tokens = _with_words(cells, self.others)
        whole = self.decimals == 0
        texts = [None if g else str(text) for g, text in zip(gone, cells, strict=True)]
        x = [np.nan if t is None else float(int(t) - self.base) if whole else _float(t, self.comma) for t in texts]
        return [np.array(x, dtype=np.float64)], tokens

    def write(self, x: Sequence[Numbers], tokens: Sequence[Tokens], n: int) -> tuple[np.ndarray, list[str]]:
        """int64 (float64 with NaN where there are others) or float64, and text with the column's own digits."""
        gone = tokens[0] > 0 if self.others else np.zeros(n, dtype=bool)
        if self.decimals == 0:
            exact = [int(v) + self.base for v in np.rint(np.where(gone, 0.0, x[0])).tolist()]
            array = np.where(gone, np.nan, np.array(exact, dtype=np.float64)) if self.others else np.array(exact)
            return array, _spelled([str(v) for v in exact], self.others, tokens)
        form = ".7g" if self.decimals is None else f".{self.decimals}f"
        written = [_positive(format(v, form)) for v in np.where(gone, 0.0, x[0]).tolist()]
        array = np.where(gone, np.nan, np.array([float(text) for text in written]))
        written = [text.replace(".", ",") for text in written] if self.comma else written
        return array, _spelled(written, self.others, tokens)

    def encode(self, x: Numbers) -> Numbers:
        """By its code."""
        return _scaled(self.code, x)

    def decode(self, z: Numbers) -> Numbers:
        """By its code."""
        return self.code.decode(z)

    def describe(self) -> tuple[str, str]:
        """Its digits and its code."""
        digits = "7 significant digits" if self.decimals is None else f"{self.decimals} decimals"
        kind, detail = ("integer", self.code.name) if self.decimals == 0 else ("number", f"{digits}, {self.code.name}")
        return kind, detail + (", decimal comma" if self.comma else "") + _others(self.others)

    def to_json(self) -> dict[str, Any]:
        """Its settings."""
        return {
            "type": "number", "name": self.name, "code": self.code.to_json(), "decimals": self.decimals,
            "base": self.base, "comma": self.comma, "others": list(self.others),
        }  # fmt: skip


@final
@dataclass(frozen=True)
class Date:
    """Dates in ``unit`` microseconds from ``base``, written in ``style``; ``others`` as for numbers."""

    name: str
    code: Code
    style: Style
    base: int
    unit: int
    others: tuple[Cell, ...] = ()
    numbers: ClassVar[int] = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """A date, or one of the others."""
        return (1 + len(self.others),) if self.others else ()

    def read(self, cells: Sequence[Cell]) -> tuple[list[Numbers], list[Tokens]]:
        """Steps of ``unit`` since ``base``; raises :class:`Refusal` for a date of another style."""
        gone, tokens = _with_words(cells, self.others)
        x = np.full(len(cells), np.nan)
        if gone.all():
            return [x], tokens
        dated = [str(text) for g, text in zip(gone, cells, strict=True) if not g]
        found = table_dates.read(dated, (self.style.order,))
        if found is None:
            raise Refusal(f"column {self.name!r} holds dates of another style than {self.style.write(self.base)}")
        x[~gone] = [(t - self.base) / self.unit for t in found[0]]
        return [x], tokens

    def write(self, x: Sequence[Numbers], tokens: Sequence[Tokens], n: int) -> tuple[np.ndarray, list[str]]:
        """``datetime64`` (UTC where dates have an offset; NaT for the others), and text in the column's style."""
        gone = tokens[0] > 0 if self.others else np.zeros(n, dtype=bool)
        ticks = [self.base + self.unit * int(v) for v in np.rint(np.where(gone, 0.0, x[0])).tolist()]
        written = [self.style.write(t) for t in ticks]
        return table_dates.as_array(ticks, gone, self.style), _spelled(written, self.others, tokens)

    def encode(self, x: Numbers) -> Numbers:
        """By its code."""
        return _scaled(self.code, x)

    def decode(self, z: Numbers) -> Numbers:
        """By its code."""
        return self.code.decode(z)

    def describe(self) -> tuple[str, str]:
        """An example and its code."""
        return "date", f"as {self.style.write(self.base)}, {self.code.name}{_others(self.others)}"

    def to_json(self) -> dict[str, Any]:
        """Its settings."""
        return {
            "type": "date", "name": self.name, "code": self.code.to_json(), "style": self.style.to_json(),
            "base": self.base, "unit": self.unit, "others": list(self.others),
        }  # fmt: skip


def from_json(record: Mapping[str, Any]) -> Any:
    """The column that ``to_json`` described.  Raises :class:`Refusal` for an unknown type."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    known = {"constant": Constant, "category": Category, "number": Number, "date": Date}
    name = str(settings.pop("type", None))
    if name not in known:
        raise Refusal(f"unknown type of column {name!r}; {nearest(name, known)}")
    if "code" in settings:
        settings["code"] = table_codes.from_json(settings["code"])
    if "style" in settings:
        settings["style"] = Style(**settings["style"])
    return known[name](**settings)


# ---------------------------------------------------------------------------------------------------------- inference


@final
@dataclass(frozen=True)
class Found:
    """What a column was found to be: None where it is left out, and ``note`` says why, or what was decided."""

    column: Any
    note: str | None = field(default=None)


def _float(text: str, comma: bool) -> float:
    return float(text.replace(",", ".") if comma else text)


def ordered(values: set[Cell]) -> tuple[Cell, ...]:
    """Values in a fixed order: whole numbers by size, then text, then the empty cell."""
    return tuple(
        sorted(
            values,
            key=lambda v: (v is None, v is not None and not _WHOLE.fullmatch(v), _size(v), v or ""),
        )
    )


def _size(value: Cell) -> int:
    return int(value) if value is not None and len(value) <= LONGEST and _WHOLE.fullmatch(value) else 0


def infer(raw: RawColumn) -> Found:
    """The type of a column by its cells; raises :class:`Refusal` where a number is infinite."""
    counts = Counter(raw.cells)
    if len(counts) == 1:
        value = raw.cells[0]
        return Found(Constant(raw.name, value), "empty in every row: it comes back empty" if value is None else None)
    if not raw.text:
        found = _numeric(raw, counts) or _dated(raw, counts)
        if found is not None:
            return found
    return _text(raw, counts)


def _words(counts: Counter[Cell], fits: Any) -> tuple[Cell, ...] | None:
    """What the cells hold that does not fit, where it is little enough to stand among what does; None else."""
    words = {value for value in counts if value is None or not fits(value)}
    rare = sum(counts[word] for word in words if word is not None)
    present = sum(counts.values()) - counts.get(None, 0)
    if len(words) > MOST_WORDS or rare > WORDS * present:
        return None
    return ordered(words)


def _require_points(raw: RawColumn, counts: Counter[Cell]) -> None:
    """Raises :class:`Refusal` for a column of numbers whose commas may group thousands: ``950`` beside ``1,050``."""
    texts = [text for text in counts if text is not None]
    grouped = [text for text in texts if _GROUPED.fullmatch(text)]
    if not grouped:
        return
    beside = sum(_DECIMAL.fullmatch(text) is not None for text in texts)
    settled = any("," in text and _COMMA.fullmatch(text) and not _GROUPED.fullmatch(text) for text in texts)
    if settled or len(grouped) + beside < 3 or not (beside or any(text.count(",") > 1 for text in grouped)):
        return
    if _words(counts, lambda text: _GROUPED.fullmatch(text) or _DECIMAL.fullmatch(text)) is not None:
        raise Refusal(
            f"column {raw.name!r}: is {grouped[0]} a thousand or a decimal? write such cells without the comma, or "
            "with a point"
        )


def _numeric(raw: RawColumn, counts: Counter[Cell]) -> Found | None:
    _require_points(raw, counts)
    tails = {len(found[1]) for text in counts if text is not None and (found := _COMMA.fullmatch(text)) and found[1]}
    comma = bool(tails) and not any("." in text for text in counts if text is not None)
    form = _COMMA if comma else _DECIMAL
    others = _words(counts, lambda text: form.fullmatch(text) is not None)
    if others is None:
        return None
    infinite = [word for word in others if word is not None and _INFINITE.fullmatch(word)]
    if infinite:
        row = raw.cells.index(infinite[0]) + 1
        raise Refusal(f"column {raw.name!r} is infinite in row {row}; leave such a cell empty, or write a word there")
    values = [text for text in counts if text not in others]
    if len(values) < 3:
        return None  # two values are a category
    if any(len(str(text)) > LONGEST for text in values):
        return None  # identifiers
    whole = not comma and all(_WHOLE.fullmatch(str(text)) for text in values)
    if whole:
        return _whole_number(raw, [int(str(text)) for text in values], others)
    x = np.array([_float(str(text), comma) for text in raw.cells if text not in others])
    if not bool(np.isfinite(x).all()):
        raise Refusal(f"column {raw.name!r} holds a number beyond 1e308; leave such a cell empty")
    number = Number(raw.name, table_codes.fit(x), _decimals(values, comma), comma=comma, others=others)
    return Found(number, "a comma read as the decimal point" if tails == {3} and comma else None)


def _whole_number(raw: RawColumn, values: list[int], others: tuple[Cell, ...]) -> Found | None:
    low, high = min(values), max(values)
    if high - low >= 2**53 or max(-low, high) >= 2**63:
        return None  # identifiers: float64 could not tell them apart
    base = low if max(-low, high) >= 2**53 else 0
    x = np.array([float(int(str(text)) - base) for text in raw.cells if text not in others])
    return Found(Number(raw.name, table_codes.fit(x), 0, base, others=others))


def _decimals(values: Sequence[Cell], comma: bool) -> int | None:
    """The most digits after the point; None for exponents and for more than 9 of them."""
    point = "," if comma else "."
    if any("e" in str(text).lower() for text in values):
        return None
    most = max(len(str(text).partition(point)[2]) for text in values)
    return most if 0 < most <= 9 else 1 if most == 0 else None


def _dated(raw: RawColumn, counts: Counter[Cell]) -> Found | None:
    others = _words(counts, lambda text: table_dates.read([text]) is not None)
    if others is None:
        return None
    cells = [str(text) for text in raw.cells if text not in others]
    found = table_dates.read(cells) if len(set(cells)) > 2 else None
    if found is None:
        return None
    ticks, style, note = found
    base = min(ticks)
    unit = table_dates.unit_of([t - base for t in ticks])
    x = np.array([(t - base) / unit for t in ticks])
    return Found(Date(raw.name, table_codes.fit(x), style, base, unit, others), note)


def _text(raw: RawColumn, counts: Counter[Cell]) -> Found:
    n, different = len(raw.cells), len(counts)
    if n >= SHORT and (different > MOST_VALUES or different > n / 2):
        why = f"{different:,} different texts in {n:,} rows: left out (names and identifiers cannot be learned)"
        return Found(None, why)
    return Found(Category(raw.name, ordered(set(counts))))
