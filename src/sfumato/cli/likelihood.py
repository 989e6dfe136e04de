"""``sfumato eval RUN --likelihood``: bits per dimension of a run on test images."""

from __future__ import annotations

from pathlib import Path

from sfumato.cli.evaluate import Look, earlier, judge
from sfumato.cli.verbs import Job, append_records

#: How many test images are measured unless told otherwise.
IMAGES = 128
#: Traces keep the network's activations: at most so many images at a time, whatever ``--batch`` says.
MOST_AT_ONCE = 64


def likelihood_run(run: Path, job: Job, out: Path | None, transport: bool, look: Look) -> None:
    """Measure, print the table, append the records to ``RUN/metrics.jsonl``."""
    from sfumato import data, likelihood
    from sfumato.errors import Refusal
    from sfumato.training.diffusion import read_config

    job.refuse_sampling("--likelihood", out, ("transport", transport))
    before = earlier(look)
    loaded = data.reload(read_config(run)["data"])
    if loaded.kind != "images":
        raise Refusal(f"--likelihood measures images, and {run} makes {loaded.kind}; eval without it says what it can")
    model = job.model(run)
    count = min(IMAGES, len(loaded.test)) if job.n is None else job.n
    if job.batch < 1:
        raise Refusal(f"batch={job.batch}: needs at least 1")
    records = likelihood.evaluate(model, loaded, count, seed=job.seed, batch=min(job.batch, MOST_AT_ONCE))
    print(likelihood.table(records))
    append_records(run, records)
    judge(before, records, look)
