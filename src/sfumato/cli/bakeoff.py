"""``sfumato bakeoff`` and ``sfumato report``: several recipes under one budget, and pages about what was done.

The contract: everything asked for is checked before the first training; what is done is kept, and the same command
continues.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sfumato.cli.config import read, read_pairs
from sfumato.errors import Refusal


def numbers(text: str) -> tuple[int, ...]:
    """``"5,10,20"`` as numbers; raises :class:`Refusal` where one is none."""
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise Refusal(f"--nfe {text}: write whole numbers separated by commas, e.g. --nfe 5,10,20") from None


def bakeoff_run(
    data: str, recipes: str, out: Path, terms: dict[str, Any], nfe: str, config: Path | None, pairs: list[str],
    options: Any, device: str,
) -> None:  # fmt: skip
    """Compare, and say where everything is; ends with code 1 where a recipe failed."""
    import typer

    from sfumato.bakeoff import Terms, bakeoff
    from sfumato.bakeoff.report import rows

    found = bakeoff(
        data, recipes, out, terms=Terms(**terms, nfe=numbers(nfe)), settings=of_all(config) | read_pairs(pairs),
        options=options, device=device, tell=_tell,
    )  # fmt: skip
    if found:
        print("\n" + _text(*rows(found)))
    print(f"\n{out}: report.html, bakeoff.md, bakeoff.json, results/, runs/")
    done = {result.recipe for result in found}
    if any(name.strip() and name.strip() not in done for name in recipes.split(",")):
        raise typer.Exit(1)


def of_all(config: Path | None) -> dict[str, Any]:
    """The settings in a file; raises :class:`Refusal` where it holds more than settings."""
    if config is None:
        return {}
    found = read(config)
    if more := [*found.options, *found.reading]:
        raise Refusal(f"{found.path} holds {more[0]}; a bake-off reads settings alone from a file, so take it out")
    return dict(found.settings)


def _text(head: tuple[str, ...], body: tuple[tuple[str, ...], ...]) -> str:
    """A table as plain text."""
    widths = [max(len(row[k]) for row in (head, *body)) for k in range(len(head))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *body))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def report_run(folder: Path, out: Path | None) -> None:
    """Write the report of a run, or of a bake-off."""
    from sfumato.bakeoff.report import write as write_bakeoff
    from sfumato.reports.run import write

    if (folder / "bakeoff.json").exists():
        if out is not None:
            raise Refusal(f"{folder} is a bake-off, whose report stays in it; leave --out out")
        print(f"written: {write_bakeoff(folder)}")
        return
    print(f"written: {write(folder, out)}")
