"""Has a model got worse?  Two sets of records side by side, only where they were measured alike.

The contract: a change is printed only of two records with one recipe (:func:`~sfumato.metrics.records.differences`);
any other pair is shown as not comparable, with the first part that differs.  The standard error of a change is that of
two independent sets of samples, ``(e_a^2 + e_b^2)^(1/2)``; the reference, the same for both, is held fixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from sfumato.errors import Refusal
from sfumato.metrics.records import Record, comparable, differences

#: How samples were made, as records say it: in fields of their own, and among their settings.
OWN = ("sampler", "steps", "guidance")
MADE = (
    "grid", "interval", "autoguide", "threshold", "weights", "solver", "prompt", "temperature", "top_p", "label",
)  # fmt: skip


@final
@dataclass(frozen=True)
class Drift:
    """One metric then and now; ``why``: why the two cannot be compared (None where they can)."""

    before: Record
    after: Record
    why: str | None

    @property
    def change(self) -> float:
        """``after - before``."""
        return self.after.value - self.before.value

    @property
    def error(self) -> float | None:
        """The standard error of the change, None where either is not known."""
        errors = [_error(record) for record in (self.before, self.after)]
        known = [error for error in errors if error is not None]
        return sum(error**2 for error in known) ** 0.5 if len(known) == 2 else None

    @property
    def worse(self) -> float | None:
        """By how many standard errors it got worse (negative: better), None where that is not known."""
        if self.why is not None or self.error is None:
            return None
        worse = self.change if self.after.better == "lower" else -self.change
        if worse == 0:
            return 0.0
        return worse / self.error if self.error > 0 else float("inf") * worse


def _error(record: Record) -> float | None:
    """The standard error of a record; those of likelihoods are among their settings."""
    stored = record.settings.get("standard_error")
    return float(stored) if record.error is None and stored is not None else record.error


def read(source: Path) -> list[Record]:
    """The records, the oldest first, in a run folder, or in a file of records (a line each, or a list of them).

    Raises :class:`Refusal` where there are none.
    """
    from sfumato.training.monitor import read_log

    path = source / "metrics.jsonl" if source.is_dir() else source
    if not path.is_file():
        raise Refusal(f"{source} holds no records; evaluate it first, or give a run folder or a file of records")
    lines = read_log(path) if path.suffix == ".jsonl" else _listed(path)
    found = [Record.from_json(line) for line in lines]
    if not found:
        raise Refusal(f"{path} holds no records; evaluate the run first")
    return found


def _listed(path: Path) -> list[dict[str, object]]:
    """The records of a JSON file: one, or a list of them."""
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise Refusal(f"{path} is no JSON file of records; give a run folder, a .jsonl or a .json of them") from None
    listed = stored if isinstance(stored, list) else [stored]
    if not all(isinstance(line, dict) for line in listed):
        raise Refusal(f"{path} is no JSON file of records; give a run folder, a .jsonl or a .json of them")
    return listed


def drifts(before: Sequence[Record], after: Sequence[Record]) -> list[Drift]:
    """The metrics that both have: each now beside the newest before that was measured alike, or the newest of all.

    Raises :class:`Refusal` where none of them can be compared, and says why.
    """
    then, now = ({record.name: record for record in records} for records in (before, after))
    then |= {record.name: record for record in before if record.name in now and comparable(record, now[record.name])}
    shared = [name for name in now if name in then]
    if not shared:
        raise Refusal(f"no metric in common: {', '.join(then)} before, {', '.join(now)} now; measure both alike")
    found = [Drift(then[name], now[name], _why(then[name], now[name])) for name in shared]
    if all(drift.why is not None for drift in found):
        raise Refusal(f"nothing can be compared: {found[0].after.name}: {found[0].why}; measure both alike")
    return found


def _why(before: Record, after: Record) -> str | None:
    parts = differences(before, after)
    if not parts:
        return None
    then, now = (_short(getattr(record, parts[0])) for record in (before, after))
    return f"{parts[0]} was {then}, is {now}"


def otherwise(before: Record, after: Record) -> str:
    """How the samples of two records were made otherwise, as in ``steps 50 -> 5``; what either does not say is left
    out.
    """
    then, now = (
        {name: getattr(record, name) for name in OWN} | {k: v for k, v in record.settings.items() if k in MADE}
        for record in (before, after)
    )
    return ", ".join(f"{k} {_cut(then[k])} -> {_cut(now[k])}" for k in then if k in now and then[k] != now[k])


def _cut(value: object) -> str:
    """At most 32 characters of a value."""
    text = _short(value)
    return text if len(text) <= 32 else f"{text[:29]}..."


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else repr(value) if isinstance(value, str) else text


def report(found: Sequence[Drift]) -> str:
    """A line for each metric: before, now, the change with its standard error, and how much that is."""
    width = max(len(drift.after.name) for drift in found)
    return "\n".join(f"{drift.after.name:<{width}}  {_line(drift)}" for drift in found)


def _line(drift: Drift) -> str:
    values = f"{drift.before.value:.4g} -> {drift.after.value:.4g}"
    if drift.why is not None:
        return f"{values}  not comparable: {drift.why}"
    other = otherwise(drift.before, drift.after)
    made = f"; samples made otherwise: {other}" if other else ""
    if drift.worse is None or drift.error is None:
        return f"{values}  change {drift.change:+.3g} (standard error not known){made}"
    side = "worse" if drift.worse > 0 else "better"
    change = f"{drift.change:+.3g} \u00b1 {drift.error:.1g}: {side} by {abs(drift.worse):.1f} errors"
    return f"{values}  change {change}{made}"


def with_errors(records: Sequence[Record]) -> list[str]:
    """The metrics whose standard error is known."""
    return [record.name for record in records if _error(record) is not None]


def unjudged(found: Sequence[Drift]) -> list[str]:
    """The metrics that :func:`failed` cannot judge, each with why."""
    left = [drift for drift in found if drift.worse is None]
    return [f"{drift.after.name} ({drift.why or 'standard error not known'})" for drift in left]


def failed(found: Sequence[Drift], above: float) -> list[str]:
    """The metrics that got worse by more than ``above`` standard errors.

    Raises :class:`Refusal` where no standard error is known, so that nothing can be judged, and for a negative bound.
    """
    if not above >= 0:
        raise Refusal(f"--fail-above {above}: give a number of standard errors, 0 or more")
    judged = [(drift.after.name, drift.worse) for drift in found if drift.worse is not None]
    if not judged:
        raise Refusal("no standard error is known, so no change can be judged; evaluate the other run again")
    return [name for name, worse in judged if worse > above]
