"""``sfumato inspect DATA --html FILE``: what is known of a data set, as a page.

The contract: the page holds what the terminal report says, whatever the kind of data; counts and pictures are added
where the data have some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sfumato.errors import Refusal
from sfumato.reports.page import Block, Note, Picture, Pictures, Section, Table, Texts, render

#: The longest bar of a count, in characters, and how many bars there are at most.
LONGEST, BARS = 40, 60


@runtime_checkable
class Listed(Protocol):
    """A report of facts."""

    def rows(self) -> list[tuple[str, str]]:
        """(what, value); ``warning`` is set apart."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A report with counts."""

    def charts(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """(title, [(name, count), ...])."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """Data that can be seen."""

    def pictures(self) -> list[tuple[str, bytes]]:
        """(title, the bytes of a PNG)."""
        ...


def write(data: Any, report: Any, path: Path) -> None:
    """Write the page of ``data`` and its ``report``.

    Raises :class:`Refusal` where the file exists or cannot be written.
    """
    content = page(data, report)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise Refusal(f"{path} exists already and is kept; give another --html FILE") from None
    except OSError as error:
        raise Refusal(f"cannot write {path} ({error.strerror}); choose a folder that can be written") from None


def page(data: Any, report: Any) -> str:
    """The page as text."""
    from sfumato import __version__

    rows = report.rows() if isinstance(report, Listed) else []
    facts = tuple((what, value) for what, value in rows if what != "warning")
    warnings = tuple(Note(value, warning=True) for what, value in rows if what == "warning")
    whole: tuple[Block, ...] = (Table(facts),) if facts else (Texts((("The report", str(report)),)),)
    counts = report.charts() if isinstance(report, Counted) else []
    seen = data.pictures() if isinstance(data, Pictured) else []
    sections = [
        Section("Warnings", warnings),
        Section("Facts", whole),
        *(Section(title, (bars(pairs),)) for title, pairs in counts),
        *(Section(title, (Pictures((Picture(png, ".png", title, ""),)),)) for title, png in seen),
    ]
    footer = f"Made by sfumato {__version__} from the data alone. This page loads nothing and opens offline."
    return render(Path(str(data.name)).name, str(data.name), sections, footer)


def bars(counts: Sequence[tuple[str, int]]) -> Table:
    """Counts as numbers and bars."""
    most = max(1, *(count for _, count in counts))
    rows = [(name, f"{count:,}", "\u2588" * -(-LONGEST * count // most)) for name, count in counts[:BARS]]
    more = f"and {len(counts) - BARS:,} more" if len(counts) > BARS else ""
    return Table(tuple(rows), caption=more, numbers=(1,))
