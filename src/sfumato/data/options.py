"""How a user's data are read, where that is not left to the reader: one frozen value, checked when it is made.

The contract: every option's default asks for nothing, so ``Options()`` leaves everything to be inferred; an option
that was changed is stored in ``config.json`` with the data, so that resuming, sampling and evaluating need no
repetition; and an option that a reader has no use for is refused, never ignored (:func:`refuse_unused`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

from sfumato.errors import Refusal, nearest

#: Height and width of a picture, in pixels.
Size = tuple[int, int]
#: How a picture of another shape comes to the size asked for.
CROPS = ("center", "none")
#: What becomes of files that cannot be read.
CORRUPT = ("refuse", "skip")
#: What a file of rows and columns holds.
KINDS = ("auto", "table", "series")
#: Where the classes come from.
LABELS = ("auto", "none")


@final
@dataclass(frozen=True)
class Options:
    """How data are read.

    ``resolution``: (height, width) of all pictures.  ``crop``: ``center`` scales a picture until it covers that size
    and cuts its middle out, ``none`` keeps all of it and stretches its sides.  ``background``: the colour that
    transparent pictures are laid on, a name (``white``) or ``#rrggbb``.  ``label_column``: the column that holds the
    class, by name.  ``labels``: ``none`` reads no classes even where there are some.  ``corrupt``: ``skip`` leaves out
    the files that cannot be read, ``refuse`` refuses the data set.  ``kind``: what a file of rows or of floats holds,
    where it could be both: ``table`` or ``series``.  Raises :class:`Refusal` for any other value.
    """

    resolution: Size | None = None
    crop: str = "center"
    background: str = "white"
    label_column: str | None = None
    labels: str = "auto"
    corrupt: str = "refuse"
    kind: str = "auto"

    def __post_init__(self) -> None:
        if self.resolution is not None and not (len(self.resolution) == 2 and min(self.resolution) >= 1):
            raise Refusal(f"resolution={self.resolution}: needs a height and a width of at least 1, as in 64x48")
        for name, value, known in (
            ("crop", self.crop, CROPS),
            ("corrupt", self.corrupt, CORRUPT),
            ("labels", self.labels, LABELS),
            ("kind", self.kind, KINDS),
        ):
            if value not in known:
                raise Refusal(f"unknown {name} {value!r}; {nearest(value, known)}")
        if self.background != "white":
            colour(self.background)
        if self.label_column == "":
            raise Refusal("label_column='': give the name of a column")
        if self.label_column is not None and self.labels == "none":
            raise Refusal(f"label_column={self.label_column} does nothing with labels=none; leave one of them out")

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint stores: the options that are not at their default."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.changed().items()}

    def __str__(self) -> str:
        return ", ".join(f"{name}={text(value)}" for name, value in self.changed().items()) or "none"


#: Everything is inferred.
INFER = Options()


def from_json(record: Mapping[str, Any]) -> Options:
    """The options that ``to_json`` stored.  Raises :class:`Refusal` for an unknown one."""
    known = {field.name for field in fields(Options)}
    for name in record:
        if name not in known:
            raise Refusal(f"unknown data option {name!r}; {nearest(name, known)}")
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
    return Options(**given)


def text(value: Any) -> str:
    """An option's value as it is written on the command line."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def size(words: str) -> Size:
    """``"64x48"`` (height x width) or ``"64"`` (a square) as (height, width); raises :class:`Refusal` for another form.

    >>> size("64x48"), size("32")
    ((64, 48), (32, 32))
    """
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", words.strip().lower())
    if found is None:
        raise Refusal(f"resolution={words}: write height x width in pixels, as in 64x48, or one number for a square")
    return int(found[1]), int(found[2] or found[1])


def colour(name: str) -> tuple[int, int, int]:
    """A colour's name or ``#rrggbb`` as (red, green, blue); raises :class:`Refusal` for another."""
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise Refusal(f"background={name}: needs the name of a colour, as in white, or #rrggbb") from None
    return red, green, blue


def refuse_unused(options: Options, uses: tuple[str, ...], what: str) -> None:
    """Raises :class:`Refusal` for an option that was changed and that ``what`` has no use for."""
    for name, value in options.changed().items():
        if name not in uses:
            raise Refusal(f"{name}={text(value)} does nothing with {what}; leave it out")
