"""The command line for text: watching it appear, reading it, evaluating it.

The contract: nothing here changes what is sampled; where standard output is no terminal nothing moves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfumato import launch
from sfumato.errors import Refusal

#: What a place that is not filled yet looks like.
HIDDEN = "\u2591"
#: Texts that are watched, and texts that are printed at the end.
WATCHED, PRINTED = 1, 3
#: How many texts are evaluated, and held-out windows measured, unless told otherwise.
EVALUATED, WINDOWS = 64, 128


def as_text(model: Any, tokens: Any) -> str:
    """A state on its way, masked places shown as blocks."""
    size = model.transform.tokenizer.size
    pieces = (HIDDEN if int(k) >= size else model.transform.tokenizer.decode(k.reshape(1)) for k in tokens.cpu())
    return "".join(pieces)


@contextmanager
def live(model: Any) -> Iterator[Callable[[int, int, Any], None] | None]:
    """What ``Diffusion.sample(watch=...)`` calls to show the first text as it appears; None off a terminal."""
    if not sys.stdout.isatty() or model.transform.view.noun != "texts" or model.parts.codec is not None:
        yield None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False, transient=True) as display:

        def watch(step: int, steps: int, x: Any) -> None:
            display.update(Text(f"step {step} of {steps}\n\n{as_text(model, x[0])}"), refresh=True)

        yield watch


def show(samples: Any) -> None:
    """Print the first texts."""
    for text in list(samples)[:PRINTED]:
        print(f"{'-' * 40}\n{text}")
    print("-" * 40)


def own_text(run: Path, transform: Any) -> Any:
    """The text that a run was trained on, cut by the run's own tokenizer: one that is learned need not come out the
    same.  Raises :class:`Refusal` where the text has changed.
    """
    from sfumato.data import corpora, text
    from sfumato.training.diffusion import read_config

    config = read_config(run)
    data = text.TextData.of(corpora.read(config["data"]["name"]), transform.tokenizer, transform.length)
    if data.sha256 != config["data"]["sha256"]:
        raise Refusal(f"{data.name} is not the text that {run} was trained on (its checksum differs); restore it")
    return data


def evaluate_text_run(run: Path, job: Any, out: Path | None) -> list[Any]:
    """Bits per character of held-out text, and what samples are like beside it; appended to ``RUN/metrics.jsonl``."""
    from dataclasses import replace

    from sfumato import metrics
    from sfumato.cli.verbs import append_records, save
    from sfumato.likelihood.text import bits_per_character
    from sfumato.metrics.text import evaluate_text

    model = job.model(run)
    data = own_text(run, model.transform)
    windows = min(WINDOWS, len(data.held_out))
    records = [] if model.parts.likelihood is None else [bits_per_character(model, data, windows, seed=job.seed)]
    job = replace(job, n=EVALUATED if job.n is None else job.n)
    samples = job.samples(run).noting({"run": str(run)})
    if launch.rank() > 0:
        return []
    save(samples, out)
    records += evaluate_text(list(samples), data, generated=metrics.made(samples.record))
    print(metrics.table(records))
    append_records(run, records)
    return records
