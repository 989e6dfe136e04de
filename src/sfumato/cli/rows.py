"""The command line for tables and time series: evaluating them.

The contract: classes are asked for as the held-out rows have them (:func:`sfumato.metrics.units.labels`), so that
columns and moments compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato import launch

#: How many rows or series are evaluated unless told otherwise.
EVALUATED = 1000


def evaluate_rows_run(run: Path, job: Any, out: Path | None, data: Any, measure: Callable[..., list[Any]]) -> list[Any]:
    """Sample, save where asked, ``measure`` against the held-out split; the records, appended to
    ``RUN/metrics.jsonl``."""
    from sfumato import metrics
    from sfumato.cli.verbs import append_records, save

    n = EVALUATED if job.n is None else job.n
    samples = replace(job, n=n).samples(run, data).noting({"run": str(run)})
    if launch.rank() > 0:
        return []
    save(samples, out)
    found = measure(samples.x, data, generated=metrics.made(samples.record))
    print(metrics.table(found))
    append_records(run, found)
    return found
