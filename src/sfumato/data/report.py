"""The data report: what a data set holds, in words, before anything is trained on it.

The contract: every number is counted from the pixels and labels themselves, never read from a card.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

#: Fewer training images than this are soon learned by heart.
FEW = 1000
#: Pictures with a longer side than this train slowly.
LARGE = 256
#: So many sizes and modes are named, the most frequent first.
NAMED = 6


@final
@dataclass(frozen=True)
class Reading:
    """What was found in a user's files: how many have which size (height, width) and which mode; ``notes``: what was
    done to them, as (what, value); ``warnings``: what is probably not meant.
    """

    sizes: tuple[tuple[tuple[int, int], int], ...] = ()
    modes: tuple[tuple[str, int], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """All of it, as (what, value)."""
        sizes = [(f"{height} x {width}", count) for (height, width), count in self.sizes]
        rows = [("sizes", _frequent(sizes))] if sizes else []
        rows += [("modes", _frequent(list(self.modes)))] if self.modes else []
        return [*rows, *self.notes]


def _frequent(counted: list[tuple[str, int]]) -> str:
    """The most frequent things with their counts, in words."""
    shown = sorted(counted, key=lambda pair: -pair[1])[:NAMED]
    more = len(counted) - len(shown)
    return ", ".join(f"{name}: {count:,}" for name, count in shown) + (f", and {more:,} more" if more else "")


@final
@dataclass(frozen=True)
class Report:
    """What a data set holds; the shape is ``(c, h, w)``.  ``str(report)`` is plain text, rich prints a table.

    ``copies``: images that repeat an earlier one; ``leaked``: held-out images that are trained on, too.
    """

    name: str
    train: int
    test: int
    shape: tuple[int, int, int]
    dtype: str
    minimum: int
    maximum: int
    mean: float
    classes: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    copies: int
    leaked: int
    source: str
    licence: str
    sha256: str
    options: str = "none"
    reading: Reading = Reading()

    def rows(self) -> list[tuple[str, str]]:
        """The facts about the whole set, as (what, value)."""
        c, h, w = self.shape
        return [
            ("data", self.name),
            ("images", f"{self.train:,} train + {self.test:,} test"),
            ("shape", f"{h} x {w}, {c} channel{'s' if c > 1 else ''}, {self.dtype}"),
            ("range", f"{self.minimum}..{self.maximum}, mean {self.mean:.2f}"),
            ("classes", f"{len(self.classes)}" if self.classes else "none (unlabelled)"),
            ("copies", f"{self.copies:,} repeat an earlier image, {self.leaked:,} held-out ones are trained on, too"),
            *self.reading.rows(),
            ("options", self.options),
            ("source", self.source),
            ("licence", self.licence),
            ("sha256", self.sha256),
            *(("warning", warning) for warning in self.warnings()),
        ]

    def warnings(self) -> list[str]:
        """What is probably not meant, or should be known before training."""
        _, height, width = self.shape
        found = list(self.reading.warnings)
        if self.train < FEW:
            found.append(
                f"only {self.train:,} training images: long training learns them by heart (see copy-rate in eval)"
            )
        if self.leaked:
            found.append(f"{self.leaked:,} held-out images are among the training images: validation looks too good")
        if max(height, width) > LARGE:
            found.append(f"pictures of {height}x{width} train slowly; --resolution makes them smaller")
        if self.minimum == self.maximum:
            found.append("all pixels are equal: there is nothing to learn")
        missing = [name for name, count in zip(self.classes, self.train_counts, strict=True) if not count]
        if missing:
            found.append(f"classes without a training image: {', '.join(missing)}")
        return found

    def charts(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """What can be counted, each with a title: classes, sizes, shapes, modes."""
        charts = [("Training images of every class", [(name, train) for name, train, _ in self.class_rows()])]
        longer: Counter[int] = Counter()
        shapes: Counter[str] = Counter()
        for (height, width), count in self.reading.sizes:
            longer[max(height, width).bit_length()] += count
            shapes["upright" if height > width else "square" if height == width else "wide"] += count
        sides = [(f"{2 ** (bits - 1)} to {2**bits - 1}", longer[bits]) for bits in sorted(longer)]
        charts += [("Longer side of the files, in pixels", sides), ("Shape of the files", shapes.most_common())]
        charts.append(("Mode of the files", sorted(self.reading.modes, key=lambda pair: -pair[1])))
        return [(title, bars) for title, bars in charts if bars]

    def class_rows(self) -> list[tuple[str, int, int]]:
        """(class, train count, test count) for every class."""
        return list(zip(self.classes, self.train_counts, self.test_counts, strict=True))

    def __str__(self) -> str:
        rows = self.rows()
        column = max(len(what) for what, _ in rows)
        lines = [f"{what:<{column}} {value}" for what, value in rows]
        if self.classes:
            width = max(5, *(len(name) for name in self.classes))
            lines += ["", f"{'class':<{width}} {'train':>8} {'test':>8}"]
            lines += [f"{name:<{width}} {train:>8,} {test:>8,}" for name, train, test in self.class_rows()]
        return "\n".join(lines)

    def __rich__(self) -> Any:
        """Two tables for a terminal: the set, and its classes."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        facts = Table(box=None, show_header=False)
        facts.add_column(style="bold")
        facts.add_column(overflow="fold")
        for what, value in self.rows():
            facts.add_row(what, Text(value))
        if not self.classes:
            return Group(facts)
        table = Table("class", box=None)
        table.add_column("train", justify="right")
        table.add_column("test", justify="right")
        for name, train, test in self.class_rows():
            table.add_row(Text(name), f"{train:,}", f"{test:,}")
        return Group(facts, "", table)


@final
@dataclass(frozen=True)
class Facts:
    """A report of facts as (what, value); ``str(report)`` is plain text."""

    facts: tuple[tuple[str, str], ...]

    def rows(self) -> list[tuple[str, str]]:
        """All of them."""
        return list(self.facts)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.facts)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.facts)

    def __rich__(self) -> Any:
        """The same lines, for a console."""
        from rich.text import Text

        return Text(str(self))
