"""What a comparison holds, and how it is shown and stored.

The contract: every cell keeps whole metric records, so no number stands without its n, its floor and what measured it;
``from_json(to_json(c)) == c``; a table, a CSV file and a picture are made from the cells alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from sfumato.errors import Refusal
from sfumato.metrics.records import ARROWS, Record
from sfumato.training.files import make_folder, read_json, to_json, write_bytes

#: The version of ``compare.json``.
FORMAT = 1


@final
@dataclass(frozen=True)
class Cell:
    """One sampler on one grid with one number of steps.

    ``nfe``: evaluations of the denoiser a sample (a guided one is one evaluation); ``rows``: rows of the network a
    sample, which guidance doubles; ``seconds``: for all n samples; ``deterministic``: draws no noise on the way;
    ``note``: why there are no ``records``, empty where there are.
    """

    sampler: str
    grid: str
    steps: int
    deterministic: bool
    nfe: float
    rows: float
    seconds: float
    records: tuple[Record, ...]
    note: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells cells apart."""
        return self.sampler, self.grid, self.steps

    def value(self, metric: str) -> float:
        """The value of a metric; not a number where it was not measured."""
        return next((r.value for r in self.records if r.name == metric), float("nan"))

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Cell:
        """The cell that ``to_json`` wrote.  Raises :class:`Refusal` where entries are missing or unknown."""
        records = tuple(Record.from_json(record) for record in stored.get("records", ()))
        try:
            return Cell(**{**stored, "records": records})
        except TypeError:
            raise Refusal("not a cell of a comparison; compare again into another --out") from None


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """Finished cells in the order asked for.  ``settings``: what all of them share; ``left_out``: sampler -> why it has
    no cell.
    """

    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """The metric records of all cells."""
        return [record for cell in self.cells for record in cell.records]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics; the first is the one that cells are ranked by."""
        return list(dict.fromkeys(record.name for record in self.records))

    def best(self) -> list[Cell]:
        """The cells that none beats on the first metric with as few evaluations, by evaluations."""
        if not self.records:
            return []
        metric = self.metrics[0]
        sign = -1.0 if next(r for r in self.records if r.name == metric).better == "higher" else 1.0
        front: list[Cell] = []
        for cell in sorted((c for c in self.cells if c.records), key=lambda c: (c.nfe, sign * c.value(metric))):
            if not front or sign * cell.value(metric) < sign * front[-1].value(metric):
                front.append(cell)
        return front

    # ------------------------------------------------------------------------------------------------------- tables

    def _grids(self) -> bool:
        return len({cell.grid for cell in self.cells}) > 1

    def _lines(self) -> Iterator[tuple[str, ...]]:
        """The rows of the table, its head first; the last is the floor."""
        floors = {r.name: r for r in reversed(self.records)}
        metrics = self.metrics
        grids = self._grids()

        def row(sampler: str, grid: str, *rest: str) -> tuple[str, ...]:
            return (sampler, *((grid,) if grids else ()), *rest)

        heads = [f"{name} {ARROWS[floors[name].better]}" for name in metrics]
        yield row("sampler", "grid", "steps", "NFE", "seconds", *heads)
        front = {cell.key for cell in self.best()}
        for cell in self.cells:
            values = [f"{cell.value(name):.4g}" if cell.records else "-" for name in metrics]
            if metrics:
                values[0] += "*" if cell.key in front else " "
            yield row(cell.sampler, cell.grid, str(cell.steps), f"{cell.nfe:g}", f"{cell.seconds:.2f}", *values)
        if metrics:
            floor = [f"{floors[name].floor:.4g}" for name in metrics]
            floor[0] += " "
            yield row(str(self.settings["floor"]), "", "", "", "", *floor)

    def _notes(self) -> list[str]:
        metrics = self.metrics
        notes = [f"* nothing here has a better {metrics[0]} with as few evaluations"] if metrics else []
        notes += [f"{cell.sampler}, {cell.steps} steps: {cell.note}" for cell in self.cells if cell.note]
        return notes + [f"{name}: {why}" for name, why in self.left_out.items()]

    def heading(self) -> str:
        """What all cells share, in a line."""
        s = self.settings
        labels = s["label"]
        label = f"{len(labels)} labels in turn" if isinstance(labels, list) else f"labels {labels or 'none'}"
        grid = "" if self._grids() or not self.cells else f", grid {self.cells[0].grid}"
        return (
            f"{s['recipe']} on {s['data']}, n {s['n']}, {label}, guidance {s['guidance']:g}, seeds from {s['seed']}"
            f"{grid}; {s['device']}, {s['threads']} threads, {s['compute']}, {s['batch']} at a time"
        )

    def table(self) -> str:
        """The cells as plain text, the floor that real images (or the reference solution itself) reach as last row."""
        rows = list(self._lines())
        text = 2 if self._grids() else 1
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]

        def line(row: tuple[str, ...]) -> str:
            pairs = zip(row, widths, strict=True)
            return "  ".join(f"{c:<{w}}" if k < text else f"{c:>{w}}" for k, (c, w) in enumerate(pairs)).rstrip()

        return "\n".join([self.heading(), "", *map(line, rows), "", *self._notes()]).rstrip()

    def markdown(self) -> str:
        """The same table for a web page."""
        head, *rows = ([cell.strip() for cell in row] for row in self._lines())
        rule = ["---" if k < (2 if self._grids() else 1) else "---:" for k in range(len(head))]
        lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
        return (
            "\n".join([f"{self.heading()}.", "", *lines, "", *(f"{note}  " for note in self._notes())]).rstrip() + "\n"
        )

    def csv(self) -> str:
        """A line for every cell, values in full."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        fixed = ("sampler", "grid", "steps", "deterministic", "nfe", "rows", "seconds")
        writer.writerow([*fixed, "samples_per_second", *self.metrics, "note"])
        for cell in self.cells:
            rate = self.settings["n"] / cell.seconds if cell.seconds else ""
            values = [cell.value(name) if cell.records else "" for name in self.metrics]
            writer.writerow([*(getattr(cell, name) for name in fixed), rate, *values, cell.note])
        return out.getvalue()

    # ------------------------------------------------------------------------------------------------------ pictures

    def plot(self, path: str | Path) -> Path:
        """Draw quality against evaluations and against seconds, a line per sampler, into a PNG file.

        Samplers that draw noise are dashed; the dotted line is the floor.
        """
        from sfumato.comparison.picture import draw

        path = Path(path)
        write_bytes(path, draw(self))
        return path

    # ------------------------------------------------------------------------------------------------------- storing

    def to_json(self) -> dict[str, Any]:
        """What ``compare.json`` holds."""
        return {
            "format": FORMAT,
            "settings": dict(self.settings),
            "left_out": dict(self.left_out),
            "cells": [cell.to_json() for cell in self.cells],
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Comparison:
        """The comparison that ``to_json`` wrote."""
        if stored.get("format") != FORMAT:
            raise Refusal(f"a comparison of format {stored.get('format')!r}; this version reads {FORMAT}")
        return Comparison(stored["settings"], tuple(map(Cell.from_json, stored["cells"])), stored["left_out"])

    def save(self, folder: str | Path) -> Path:
        """Write ``compare.json``, ``compare.csv``, ``compare.md`` and ``compare.png`` into ``folder``."""
        folder = make_folder(Path(folder))
        write_bytes(folder / "compare.json", to_json(self.to_json()))
        write_bytes(folder / "compare.csv", self.csv().encode())
        write_bytes(folder / "compare.md", self.markdown().encode())
        if self.records:
            self.plot(folder / "compare.png")
        return folder


def read(folder: str | Path) -> Comparison:
    """The comparison stored in ``folder``.  Raises :class:`Refusal` where there is none or it is damaged."""
    path = Path(folder) / "compare.json"
    try:
        return Comparison.from_json(read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path} is damaged ({error}); restore it or compare into another folder") from None
