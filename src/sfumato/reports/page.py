"""A page: titled sections of tables, curves, pictures, texts and commands, in one HTML file.

The contract: the file loads nothing (pictures are inside, there is no script, and a policy in its head forbids both);
every word from outside is escaped by the template; every picture has a text that stands for it; the page follows the
reader's choice of a light or a dark screen.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

from markupsafe import Markup

from sfumato.reports.charts import Chart, Line, svg

#: The papers that a page is read on.
LIGHT, DARK = "#ffffff", "#15171a"
#: A text shows at most this many characters.
LONGEST = 4000
#: The media type of a picture, by the ending of its name.
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@final
@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str
    warning: bool = False
    kind: ClassVar[str] = "note"


@final
@dataclass(frozen=True)
class Table:
    """``rows`` of text, the first cell of each a heading; ``numbers``: the columns that are aligned as numbers."""

    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()
    caption: str = ""
    numbers: tuple[int, ...] = ()
    kind: ClassVar[str] = "table"

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return column in self.numbers


class Drawn(NamedTuple):
    """A chart as the template takes it."""

    title: str
    svg: Markup
    keys: tuple[Line, ...]


@final
@dataclass(frozen=True)
class Figure:
    """Charts beside one another; ``name`` tells their parts apart from those of the page's other figures."""

    name: str
    charts: tuple[Chart, ...]
    kind: ClassVar[str] = "figure"

    def drawn(self) -> list[Drawn]:
        """The charts, with the names of their curves where there are several."""
        found = []
        for k, chart in enumerate(self.charts):
            lines = chart.shown()
            found.append(Drawn(chart.title, svg(chart, f"{self.name}-{k}"), lines if len(chart.lines) > 1 else ()))
        return found


@final
@dataclass(frozen=True)
class Picture:
    """A picture as its bytes, what stands for it, and what is said under it."""

    content: bytes
    suffix: str
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """The bytes as a ``data:`` address."""
        return f"data:{MEDIA[self.suffix]};base64,{base64.b64encode(self.content).decode()}"

    @staticmethod
    def read(path: Path, alt: str, caption: str) -> Picture:
        """The picture in a file."""
        return Picture(path.read_bytes(), path.suffix.lower(), alt, caption)


@final
@dataclass(frozen=True)
class Pictures:
    """Pictures beside one another."""

    items: tuple[Picture, ...]
    small: bool = False
    kind: ClassVar[str] = "pictures"


@final
@dataclass(frozen=True)
class Texts:
    """Texts as they are, each under a line that says what it is."""

    items: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "texts"


@final
@dataclass(frozen=True)
class Commands:
    """Command lines, each under what it does."""

    items: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "commands"


#: What a section is made of.
Block = Note | Table | Figure | Pictures | Texts | Commands


@final
@dataclass(frozen=True)
class Section:
    """A titled part of a page."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Its address in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(source)


def render(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The page as text; sections without blocks are left out."""
    page: str = _template().render(
        title=title, subtitle=subtitle, sections=[s for s in sections if s.blocks], footer=footer, light=LIGHT,
        dark=DARK,
    )  # fmt: skip
    return page


def samples_of(path: Path, alt: str, caption: str) -> Picture | tuple[str, str]:
    """What a file of samples shows: a picture, or the beginning of its text."""
    if path.suffix.lower() in MEDIA:
        return Picture.read(path, alt, caption)
    text = path.read_bytes().decode("utf-8", errors="replace")
    return caption, text[:LONGEST] + ("\n..." if len(text) > LONGEST else "")


def shown(found: Sequence[Picture | tuple[str, str]], small: bool = False) -> tuple[Block, ...]:
    """Blocks for samples of either kind."""
    pictures = tuple(item for item in found if isinstance(item, Picture))
    texts = tuple(item for item in found if not isinstance(item, Picture))
    blocks: tuple[Block, ...] = (Pictures(pictures, small),) if pictures else ()
    return (*blocks, Texts(texts)) if texts else blocks
