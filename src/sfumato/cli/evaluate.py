"""``sfumato eval``: sample from a run, measure, warn of copies, and set the records beside those of another run.

The contract: everything asked for is checked before the first sample; records are appended, never written over; the
picture of nearest training images is replaced whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from sfumato import launch
from sfumato.cli import kinds
from sfumato.cli.verbs import Job, append_records, check_free, save
from sfumato.errors import Refusal

#: How many samples are evaluated unless told otherwise (or as many as there are training samples).
EVALUATED = 2000


@final
@dataclass(frozen=True)
class Look:
    """What ``eval`` looks at samples with: an extractor, metrics, the records to compare with, and how much worse than
    they a run may be.
    """

    extractor: str | None = None
    metrics: str | None = None
    against: Path | None = None
    fail_above: float | None = None

    def __post_init__(self) -> None:
        if self.fail_above is not None and self.against is None:
            raise Refusal("--fail-above compares with another run; give --against RUN_OR_RECORD, too")
        if self.fail_above is not None and not self.fail_above >= 0:
            raise Refusal(f"--fail-above {self.fail_above}: give a number of standard errors, 0 or more")

    @property
    def default(self) -> bool:
        """Whether nothing was chosen but what is usual for the data."""
        return self.extractor is None and self.metrics is None

    def names(self) -> tuple[str, ...] | None:
        """The metrics asked for."""
        from sfumato.metrics import catalogue

        return None if self.metrics is None else catalogue.read(self.metrics)

    def refuse_elsewhere(self, option: str) -> None:
        """Raises :class:`Refusal` for what goes with samples only; ``option`` draws none."""
        given = [name for name in ("extractor", "metrics") if getattr(self, name) is not None]
        if given:
            raise Refusal(f"--{given[0]} goes with samples, and {option} draws none; leave one of them out")


def evaluate_run(run: Path, job: Job, out: Path | None, look: Look) -> None:
    """Sample, save where asked, measure, print the table, append the records to ``RUN/metrics.jsonl``."""
    from sfumato import data
    from sfumato.training.diffusion import read_config

    def check() -> tuple[list[Any], dict[str, Any]]:
        if out is not None:
            check_free(out)
        return earlier(look), read_config(run)

    with job.shared() as processes:
        before, config = processes.together(check)
        loaded = processes.in_turn(lambda: data.reload(config["data"]))  # the first may have to fetch it
        if look.fail_above is not None:
            _refuse_unjudged(run, job, look, loaded.kind, before)
        usual = kinds.of(loaded.kind).usual if look.default else None
        records = _evaluated(run, job, out, look, loaded) if usual is None else usual(run, job, out, loaded)
    if launch.rank() == 0:
        judge(before, records, look)


def _refuse_unjudged(run: Path, job: Job, look: Look, kind: str, before: Sequence[Any]) -> None:
    """Raises :class:`Refusal` where nothing that ``--fail-above`` asks about will have a standard error."""
    from sfumato.metrics import catalogue, drift

    names = kinds.of(kind).judged(run, job) if look.default else look.names()
    names = catalogue.DEFAULTS[kind] if names is None else names
    usual = ",".join(catalogue.DEFAULTS[kind])
    if not names:
        raise Refusal(
            f"--fail-above {look.fail_above:g}: the statistics of {kind} that are usual have no standard errors; "
            f"measure what has, as in --metrics {usual}"
        )
    if not set(names) & set(drift.with_errors(before)):
        raise Refusal(
            f"--fail-above {look.fail_above:g}: {look.against} has no {' or '.join(names)} with a standard error; "
            f"evaluate it with --metrics {usual} first"
        )


def _evaluated(run: Path, job: Job, out: Path | None, look: Look, loaded: Any) -> list[Any]:
    """The records of fresh samples of a run."""
    from sfumato import metrics

    kind = kinds.of(loaded.kind)
    loaded = kind.read(run, job, loaded)
    extractor, _ = metrics.evaluate_with(loaded, look.extractor, look.names())
    names: Sequence[str] | None = look.names()
    kind.note(look, loaded)
    if names is None:
        names, small = metrics.fitting(loaded, extractor)
        if small and launch.rank() == 0:
            print(f"left out: {', '.join(small)} ({loaded.name} is too small for that with {extractor.name})")
    least, most = metrics.limits(loaded, extractor, names)
    job = replace(job, n=min(EVALUATED, most) if job.n is None else job.n)
    if not least <= (job.n or 0) <= most:
        raise Refusal(f"n={job.n}: {loaded.name} can be evaluated with {least} to {most} samples")
    samples = job.samples(run, loaded).noting({"run": str(run)})
    if launch.rank() > 0:
        return []
    save(samples, out)
    return measured(run, samples, loaded, extractor, names)


def measured(
    run: Path, samples: Any, data: Any, extractor: Any = None, names: Sequence[str] | None = None
) -> list[Any]:
    """Measure samples against ``data``: the table, the records in ``RUN/metrics.jsonl``, of images
    ``RUN/neighbours.png``."""
    from sfumato import metrics

    records = metrics.evaluate(
        samples.x, samples.index(), data, generated=metrics.made(samples.record), extractor=extractor, names=names
    )
    print(metrics.table(records))
    append_records(run, records)
    kinds.of(data.kind).beside(run, samples, data, records)
    return records


def earlier(look: Look) -> list[Any]:
    """The records to compare with, read before anything is sampled."""
    from sfumato.metrics import drift

    return [] if look.against is None else drift.read(look.against)


def judge(before: Sequence[Any], after: Sequence[Any], look: Look) -> None:
    """Print what changed since ``before``; exit with 1 where a metric got worse than ``--fail-above`` allows."""
    if look.against is None:
        return
    import typer

    from sfumato.metrics import drift

    found = drift.drifts(before, after)
    print(f"\nagainst {look.against}:\n{drift.report(found)}")
    if look.fail_above is None:
        return
    for line in drift.unjudged(found):
        print(f"not judged: {line}")
    failed = drift.failed(found, look.fail_above)
    if failed:
        print(f"worse by more than {look.fail_above:g} standard errors: {', '.join(failed)}")
        raise typer.Exit(1)
