"""``sfumato eval RUN --transport``: how straight a flow's paths are, how far they carry, and what one step misses."""

from __future__ import annotations

from pathlib import Path

from sfumato.cli.evaluate import Look, earlier, judge
from sfumato.cli.verbs import Job, append_records

#: How many paths are measured unless told otherwise.
PATHS = 256


def transport_run(run: Path, job: Job, out: Path | None, look: Look) -> None:
    """Measure, print the table, append the records to ``RUN/metrics.jsonl``."""
    from sfumato.metrics import table, transport

    job.refuse_sampling("--transport", out)
    before = earlier(look)
    count = PATHS if job.n is None else job.n
    records = transport.measure(job.model(run), n=count, seed=job.seed, batch=job.batch)
    print(table(records))
    append_records(run, records)
    judge(before, records, look)
