"""The data report: what a data set holds, in words, before anything is trained on it.

The contract: every number is counted from the pixels and labels themselves, never read from a card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class Report:
    """What a data set holds; the shape is ``(c, h, w)``.  ``str(report)`` is plain text, rich prints a table."""

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
    source: str
    licence: str
    sha256: str

    def rows(self) -> list[tuple[str, str]]:
        """The facts about the whole set, as (what, value)."""
        c, h, w = self.shape
        return [
            ("data", self.name),
            ("images", f"{self.train:,} train + {self.test:,} test"),
            ("shape", f"{h} x {w}, {c} channel{'s' if c > 1 else ''}, {self.dtype}"),
            ("range", f"{self.minimum}..{self.maximum}, mean {self.mean:.2f}"),
            ("classes", f"{len(self.classes)}" if self.classes else "none (unlabelled)"),
            ("source", self.source),
            ("licence", self.licence),
            ("sha256", self.sha256),
        ]

    def class_rows(self) -> list[tuple[str, int, int]]:
        """(class, train count, test count) for every class."""
        return list(zip(self.classes, self.train_counts, self.test_counts, strict=True))

    def __str__(self) -> str:
        lines = [f"{what:<8} {value}" for what, value in self.rows()]
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
