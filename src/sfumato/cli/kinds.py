"""What the command line does with each kind of data: a line for every kind that needs more than others.

The contract: :func:`of` knows every kind; one that is not in :data:`KINDS` is measured by features of its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sfumato import launch


def _itself(run: Path, job: Any, data: Any) -> Any:
    return data


def _nothing(*_: Any) -> None:
    """Nothing more."""


def _features(run: Path, job: Any) -> None:
    """Those of the catalogue."""


@final
@dataclass(frozen=True)
class Kind:
    """A kind of data on the command line.

    ``usual(run, job, out, data)``: samples, measures and prints where neither an extractor nor metrics are chosen;
    None: as where they are.  ``judged(run, job)``: the metrics of that which have standard errors, None for those of
    the catalogue.  ``read(run, job, data)``: the data as metrics of features read them.  ``note(look, data)``: printed
    before such metrics.  ``beside(run, samples, data, records)``: what is drawn and said after them.
    ``sheet(data, path)``: draws the data, None where there is nothing to see.
    """

    usual: Callable[[Path, Any, Path | None, Any], list[Any]] | None = None
    judged: Callable[[Path, Any], Sequence[str] | None] = _features
    read: Callable[[Path, Any, Any], Any] = _itself
    note: Callable[[Any, Any], None] = _nothing
    beside: Callable[[Path, Any, Any, Sequence[Any]], None] = _nothing
    sheet: Callable[[Any, Path], Any] | None = None


# --------------------------------------------------------------------------------------------------------------- images

#: The picture of samples beside their nearest training images.
NEIGHBOURS = "neighbours.png"


def _digits_alone(look: Any, data: Any) -> None:
    """That the default extractor knows digits, where the data are none."""
    from sfumato.metrics.evaluate import DIGITS

    if look.extractor is None and data.classes != DIGITS and launch.rank() == 0:
        print("note: digit-net learned on digits; --extractor mobilenet looks at images of anything")


def _neighbours(run: Path, samples: Any, data: Any, records: Sequence[Any]) -> None:
    """The samples that are nearest to training images, and a warning where some are copies."""
    from sfumato.metrics import neighbours
    from sfumato.training.pictures import save_png

    save_png(neighbours.panel_of(samples.x, data), run / NEIGHBOURS)
    print(f"{run / NEIGHBOURS}: the samples that are nearest to training images, each beside its three nearest")
    for line in neighbours.of_records(records, int(data.spec()["train"])):
        print(f"warning: {line}")


def _sheet(data: Any, path: Path) -> None:
    from sfumato.data import contact_sheet

    contact_sheet(data.train, path)


# ----------------------------------------------------------------------------------------------------------------- text


def _text(run: Path, job: Any, out: Path | None, data: Any) -> list[Any]:
    from sfumato.cli.text import evaluate_text_run

    return evaluate_text_run(run, job, out)


def _bits(run: Path, job: Any) -> Sequence[str]:
    """Bits per character, where the model has a likelihood."""
    return ("bits-per-character",) if job.model(run).parts.likelihood is not None else ()


def _cut(run: Path, job: Any, data: Any) -> Any:
    """The text cut by the run's own tokenizer."""
    from sfumato.cli.text import own_text

    return own_text(run, job.model(run).transform)


# ------------------------------------------------------------------------------------------------------ rows and series


def _table(run: Path, job: Any, out: Path | None, data: Any) -> list[Any]:
    from sfumato.cli.rows import evaluate_rows_run
    from sfumato.metrics.rows import evaluate_table

    return evaluate_rows_run(run, job, out, data, evaluate_table)


def _series(run: Path, job: Any, out: Path | None, data: Any) -> list[Any]:
    from sfumato.cli.rows import evaluate_rows_run
    from sfumato.metrics.series import evaluate_series

    return evaluate_rows_run(run, job, out, data, evaluate_series)


def _none(run: Path, job: Any) -> Sequence[str]:
    """Columns and moments have no standard errors."""
    return ()


KINDS: dict[str, Kind] = {
    "images": Kind(note=_digits_alone, beside=_neighbours, sheet=_sheet),
    "text": Kind(usual=_text, judged=_bits, read=_cut),
    "table": Kind(usual=_table, judged=_none),
    "series": Kind(usual=_series, judged=_none),
}


def of(kind: str) -> Kind:
    """What is done with data of a ``kind``."""
    return KINDS.get(kind, Kind())
