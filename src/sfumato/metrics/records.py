"""A measured number with everything that it depends on.

The contract: two values may be set side by side only where :func:`differences` finds nothing between their recipes; a
record survives ``from_json(to_json(r)) == r``; and no table prints a value without its n, its reference and the floor
that real images reach at the same n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, final

from sfumato.errors import Refusal

#: What must agree before two values of one metric can be compared: how it was measured, not how samples were made.
RECIPE = ("name", "rule", "n", "n_ref", "reference", "data_sha256", "extractor", "extractor_sha256", "preparation")


@final
@dataclass(frozen=True)
class Record:
    """One metric of one set of samples.

    ``value`` follows ``rule`` with ``n`` samples against ``n_ref`` images of ``reference`` (``"mnist/test"``).
    ``floor`` is what real images give in the samples' place, at the same n: ``floor_rule`` says which.  ``better`` is
    the direction of improvement, ``"lower"`` or ``"higher"``.  The rest says what looked at the images
    (``extractor``, its checksum, the ``preparation`` of the pixels) and how the samples were made: ``sampler``,
    ``steps``, ``nfe`` (network evaluations per sample), ``seed``, ``guidance``, and any ``settings`` beside them.
    ``error`` is the standard error of the value over the draw of the samples, None where it is not known.
    """

    name: str
    value: float
    floor: float
    better: str
    n: int
    n_ref: int
    reference: str
    data_sha256: str
    rule: str
    floor_rule: str
    extractor: str
    extractor_sha256: str
    preparation: str
    sampler: str | None
    steps: int | None
    nfe: float | int | None
    seed: int | None
    guidance: float | int | None
    version: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: float | None = None

    @property
    def ratio(self) -> float:
        """Value over floor; not a number where the floor is 0 or less."""
        return self.value / self.floor if self.floor > 0 else float("nan")

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for ``json.dumps``."""
        return asdict(self)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Record:
        """The record that ``to_json`` wrote.  Raises :class:`Refusal` for missing or unknown entries."""
        known = {f.name for f in fields(Record)}
        wrong = sorted(known ^ {"error", *stored})  # records were first stored without errors
        if wrong:
            raise Refusal(f"not a metric record: {', '.join(wrong)} missing or unknown; evaluate again")
        return Record(**stored)


def differences(a: Record, b: Record) -> tuple[str, ...]:
    """The parts of the recipe in which two records differ; empty where their values can be compared."""
    return tuple(part for part in RECIPE if getattr(a, part) != getattr(b, part))


def comparable(a: Record, b: Record) -> bool:
    """Whether two records were measured alike."""
    return not differences(a, b)


def change(a: Record, b: Record) -> float:
    """``b.value - a.value``.  Raises :class:`Refusal` where they were not measured alike, naming what differs."""
    wrong = differences(a, b)
    if wrong:
        part = wrong[0]
        raise Refusal(
            f"{a.name} cannot be compared: {part} is {getattr(a, part)!r} and {getattr(b, part)!r}; measure both alike"
        )
    return b.value - a.value


COLUMNS = ("metric", "value", "floor", "x floor", "n", "reference")
ARROWS = {"lower": "\u2193", "higher": "\u2191"}


def _maker(r: Record) -> str:
    """How the samples of a record were made, in a phrase."""
    made = [r.sampler or "sampler unknown"]
    made += [f"{r.nfe:g} evaluations each"] if r.nfe is not None else []
    made += [f"guidance {r.guidance:g}"] if r.guidance is not None else []
    made += [f"seed {r.seed}"] if r.seed is not None else []
    return ", ".join(made)


def _groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records by how their samples were made and what looked at them, under a phrase that says so."""
    groups: dict[str, list[Record]] = {}
    for r in records:
        seen = f"{r.extractor} {r.extractor_sha256[:8]}".strip()
        resized = "" if r.preparation == "none" else f" ({r.preparation})"
        groups.setdefault(f"{_maker(r)}; seen by {seen}{resized}", []).append(r)
    return groups


def _row(r: Record) -> tuple[str, ...]:
    """The cells of one record."""
    ratio = f"{r.ratio:.2f}" if r.ratio == r.ratio else "-"
    name = f"{r.name} {ARROWS.get(r.better, '')}"
    error = "" if r.error is None else f" \u00b1{r.error:.1g}"
    return name, f"{r.value:.4g}{error}", f"{r.floor:.4g}", ratio, f"{r.n:,}", f"{r.reference} ({r.n_ref:,})"


def table(records: Iterable[Record]) -> str:
    """The records as plain text: a line each, under a line that says how samples were made and what looked at them."""
    groups = [(head, [_row(r) for r in group]) for head, group in _groups(records).items()]
    rows = [COLUMNS, *(row for _, group in groups for row in group)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            f"{cell:>{w}}" if 0 < k < 5 else f"{cell:<{w}}" for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    lines = [line(COLUMNS)]
    for head, group in groups:
        lines += [f"{head}:", *map(line, group)]
    return "\n".join(lines)
