"""``sfumato compare``: a table and a picture of samplers on one run.

The contract: the network is loaded once, everything asked for is checked before the first sample, and what is done is
kept: the same command continues.
"""

from __future__ import annotations

from pathlib import Path

from sfumato.cli.verbs import Job
from sfumato.errors import Refusal


def numbers(text: str) -> list[int]:
    """``"5,10,20"`` as numbers; raises :class:`Refusal` where one is none."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise Refusal(f"--steps {text}: write whole numbers separated by commas, e.g. --steps 5,10,20") from None


def compare_run(run: Path, job: Job, steps: str, against_ode: bool, out: Path | None) -> None:
    """Compare, print the table, and say where everything is."""
    from sfumato import data
    from sfumato.comparison import compare, compare_with_ode
    from sfumato.comparison.run import SOLVED

    counts = numbers(steps)
    model, weak = job.model(run), job.weak()
    folder = out or run / ("compare-ode" if against_ode else "compare")
    if against_ode:
        result = compare_with_ode(
            model, samplers=job.sampler or "", steps=counts, grids=job.grid, n=SOLVED if job.n is None else job.n,
            label=job.label, guidance=job.guidance, interval=job.interval, seed=job.seed, batch=job.batch, out=folder,
            autoguide=weak, threshold=job.threshold, tell=_tell,
        )  # fmt: skip
    else:
        result = compare(
            model, data.reload(model.data), samplers=job.sampler or "", steps=counts, grids=job.grid, n=job.n,
            label=job.label, guidance=job.guidance, interval=job.interval, seed=job.seed, batch=job.batch, out=folder,
            autoguide=weak, threshold=job.threshold, tell=_tell,
        )  # fmt: skip
    print(f"\n{result.table()}\n\n{folder}: compare.png, compare.md, compare.csv, compare.json")


def _tell(line: str) -> None:
    print(line, flush=True)
