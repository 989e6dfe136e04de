"""The report of a bake-off: one HTML file with curves and pictures, a table for a web page, and everything as JSON.

The contract: made from the stored results alone, so it can be made again at any time; recipes are ordered by the first
metric, and every number stands beside the floor that real samples reach.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.bakeoff.parts import stacked
from sfumato.bakeoff.plan import RUNS, WATCHED
from sfumato.bakeoff.run import Result, stored
from sfumato.reports.charts import DASHES, Chart, Line
from sfumato.reports.page import Block, Commands, Figure, Note, Section, Table, render, samples_of, shown
from sfumato.reports.run import record_rows, text

#: Metrics with curves: the first ones, at most so many.
CURVES = 3


def ordered(results: Sequence[Result]) -> list[Result]:
    """The results by their first metric, the best first; those without it last."""
    metric, better = _metrics(results)[0] if _metrics(results) else ("", "lower")
    sign = -1.0 if better == "higher" else 1.0

    def key(result: Result) -> tuple[bool, float]:
        value = result.value(metric)
        return math.isnan(value), sign * value if not math.isnan(value) else 0.0

    return sorted(results, key=key)


def _metrics(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The metrics and their better directions, in the order of records."""
    return list(dict.fromkeys((r["name"], r["better"]) for result in results for r in result.records))


def _floors(results: Sequence[Result]) -> dict[str, float]:
    return {r["name"]: r["floor"] for result in results for r in result.records if r["floor"] is not None}


# ------------------------------------------------------------------------------------------------------------ tables


def rows(results: Sequence[Result]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The head and the rows of the table of results; the last row is that of real samples."""
    from sfumato.metrics.records import ARROWS

    metrics, floors = _metrics(results), _floors(results)
    head = ("recipe", *(f"{name} {ARROWS[better]}" for name, better in metrics))
    head = (*head, "sampler", "NFE", "ms a sample", "steps trained", "parameters")
    found = []
    for result in ordered(results):
        s = result.stored["sampling"]
        values = [f"{result.value(name):.4g}" for name, _ in metrics]
        found.append(
            (
                result.recipe,
                *values,
                f"{s['sampler']}, {s['steps']} steps, guidance {s['guidance']:g}",
                f"{s['nfe']:g}",
                f"{s['milliseconds_per_sample']:.3g}",
                f"{result.stored['trained']['steps']:,}",
                f"{result.stored['parameters']:,}",
            )
        )
    real = [f"{floors[name]:.4g}" if name in floors else "" for name, _ in metrics]
    return head, (*found, ("real samples", *real, "", "", "", "", ""))


def markdown(out: Path, results: Sequence[Result]) -> str:
    """The table for a web page."""
    from sfumato.training.files import read_json

    plan = read_json(out / "bakeoff.json")
    head, body = rows(results)
    rule = ["---", *["---:"] * (len(head) - 6), "---", *["---:"] * 4]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
    return "\n".join([" ".join([_caption(plan, results), *_unlike(results)]), "", *lines, ""])


def _caption(plan: Mapping[str, Any], results: Sequence[Result]) -> str:
    terms, where = plan["terms"], results[0].stored["machine"]
    device = where.get("device", "cpu")
    place = f"{where['threads']} threads of {where['cores']} cores ({where['cpu']}){'' if device == 'cpu' else ' and '}"
    place += "" if device == "cpu" else device
    budget = f"{terms['minutes']:g} minutes" if terms["minutes"] is not None else f"{terms['steps']:,} steps"
    n = next((r["n"] for result in results for r in result.records), terms["n"])
    return (
        f"{plan['data']['name']}: {budget} of training each, seed {terms['seed']}, {n:,} samples drawn once, the "
        f"same labels for all; {'not all measured alike' if _unlike(results) else place}."
    )


def _machines(results: Sequence[Result]) -> dict[str, dict[str, list[str]]]:
    """What is known of the machines, by its value the recipes that were measured there."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for name, value in result.stored["machine"].items():
            found.setdefault(name, {}).setdefault(text(value), []).append(result.recipe)
    return found


def _unlike(results: Sequence[Result]) -> list[str]:
    """One line where machine, device or software differ: equal minutes bought different amounts of training."""
    differ = {name: values for name, values in _machines(results).items() if len(values) > 1}
    words = []
    for name, values in differ.items():
        sides = [f"{value} for {', '.join(recipes)}" for value, recipes in values.items()]
        words.append(f"{name} {' | '.join(sides)}")
    line = f"Not measured alike ({'; '.join(words)}): neither their minutes nor ms a sample can be set side by side."
    return [line] if differ else []


# ------------------------------------------------------------------------------------------------------------ curves


def curves(results: Sequence[Result], part: str, x: str, across: str) -> tuple[Chart, ...]:
    """A chart for each of the first metrics: its values over ``x``, a curve for each recipe."""
    from sfumato.metrics.records import ARROWS

    floors, charts = _floors(results), []
    for metric, better in _metrics(results)[:CURVES]:
        lines = tuple(
            Line(result.recipe, result.curve(part, x, metric), k, dash=k // 10 % len(DASHES))
            for k, result in enumerate(results)
        )
        log = better == "lower" and all(y > 0 for line in lines for _, y in line.points)
        floor = floors.get(metric)
        level = None if floor is None or (log and floor <= 0) else (floor, "real samples")
        charts.append(
            Chart(
                f"{metric} {ARROWS[better]} over {across}",
                across,
                metric,
                lines,
                log_x=part == "nfe",
                log_y=log,
                level=level,
            )
        )
    return tuple(charts)


# -------------------------------------------------------------------------------------------------------------- page


def page(out: Path, results: Sequence[Result], failed: Mapping[str, str]) -> str:
    """The report as text."""
    from sfumato import __version__
    from sfumato.training.files import read_json

    plan = read_json(out / "bakeoff.json")
    head, body = rows(results)
    few = next((r["n"] for result in results for p in result.stored["moments"] for r in p["records"]), None)
    on_few = "" if few is None else f" on {few:,} samples, so not to be set beside the table's"
    notes = tuple(Note(line, warning=True) for line in _unlike(results))
    notes = (*notes, *(Note(f"{name} failed: {why}", warning=True) for name, why in failed.items()))
    waiting = [name for name in plan["recipes"] if name not in {r.recipe for r in results} and name not in failed]
    if waiting:
        notes = (*notes, Note(f"Not done yet: {', '.join(waiting)}. The same command continues.", warning=True))
    sections = [
        Section(
            "Results",
            (
                Table(
                    body,
                    head,
                    _caption(plan, results),
                    tuple(range(1, len(head) - 5)) + tuple(range(len(head) - 4, len(head))),
                ),
                *notes,
            ),
        ),
        Section(
            "Quality over time",
            (
                Note(f"By the averaged weights at moments of the training, measured outside the budget{on_few}."),
                Figure("time", curves(results, "moments", "seconds", "seconds of training")),
            ),
        ),
        Section(
            "Quality over evaluations",
            (
                Note(f"The recipe's own sampler on fewer and more steps{on_few}. NFE: evaluations of the network."),
                Figure("nfe", curves(results, "nfe", "nfe", "NFE")),
            ),
        ),
        Section("Samples", _samples(out, results)),
        Section("What each was given", (_given(results, plan),)),
        Section("Every measure", tuple(_every(result) for result in results)),
        Section("Terms", (Table(tuple(_facts(plan, results))),)),
        Section("Commands", (_commands(out, plan, results),)),
    ]
    title = f"Bake-off: {len(plan['recipes'])} recipes on {Path(plan['data']['name']).name}"
    footer = f"Made by sfumato {__version__} from the files in {out}. This page loads nothing and opens offline."
    return render(title, _caption(plan, results), sections, footer)


def _samples(out: Path, results: Sequence[Result]) -> tuple[Block, ...]:
    files = [(result.recipe, out / str(result.stored["picture"])) for result in ordered(results)]
    found = [
        samples_of(path, f"Samples of {name}", f"{name}: first seeds, none chosen")
        for name, path in files
        if path.exists()
    ]
    return shown(found)


def _given(results: Sequence[Result], plan: Mapping[str, Any]) -> Table:
    from sfumato import recipes

    found = []
    for result in results:
        recipe, seconds = recipes.get(result.recipe), result.stored["trained"].get("pairs_seconds")
        given = _chosen(result.stored["given"])
        words = ", ".join(f"{name}={text(value)}" for name, value in given.items()) or "its own settings"
        words += "" if seconds is None else f"; pairs made in {seconds:.0f} s before its clock began"
        found.append((result.recipe, f"{recipe.title} ({recipe.paper})", words))
    return Table(tuple(found), ("recipe", "method", "settings beside its own"))


def _chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was set for a recipe, without what every bake-off sets."""
    return {k: v for k, v in given.items() if k != "snapshots" and (k not in WATCHED or WATCHED[k] != v)}


def _every(result: Result) -> Table:
    table = record_rows([r for r in result.records if r["value"] is not None and r["floor"] is not None])
    return Table(table.rows, table.head, result.recipe, table.numbers)


def _facts(plan: Mapping[str, Any], results: Sequence[Result]) -> list[tuple[str, str]]:
    facts = {f"data {name}": value for name, value in plan["data"].items()} | dict(plan["terms"])
    facts |= {"version": " | ".join(dict.fromkeys(str(result.stored["version"]) for result in results))}
    facts |= {name: " | ".join(values) for name, values in _machines(results).items()}
    return [(name, text(value)) for name, value in facts.items() if value is not None]


def _commands(out: Path, plan: Mapping[str, Any], results: Sequence[Result]) -> Commands:
    again = _again(plan)
    best = ordered(results)[0].recipe
    run = str(out / "runs" / best)
    lines = [
        ("The same bake-off, or more recipes beside these", [*again, "--out", str(out)]),
        (f"Sample from {best}", ["sample", run]),
        ("Repeat one of the runs", ["train", "--config", f"{run}/config.json", "--out", f"{run}-again"]),
        ("Its own report", ["report", run]),
    ]
    return Commands(tuple((what, shlex.join(["sfumato", *words])) for what, words in lines))


def _again(plan: Mapping[str, Any]) -> list[str]:
    """The command of a bake-off, all of it but its folder."""
    from sfumato.data import options as choices

    terms, data = plan["terms"], plan["data"]
    words = ["bakeoff", "--data", data["name"], "--recipes", ",".join(plan["recipes"])]
    for name, value in choices.from_json(data.get("options") or {}).changed().items():
        words += [f"--{name.replace('_', '-')}", choices.text(value)]
    for name in ("minutes", "steps", "seed", "n", "few", "moments", "nfe", "extractor"):
        words += [] if terms[name] is None else [f"--{name}", _word(terms[name])]
    own = {name: _chosen(given) for name, given in plan["settings"].items()}
    among = {f"{RUNS}/{name}" for name in own}
    for given in own.values():
        if given.get("teacher") in among:
            given.pop("teacher")  # found again
    first, *others = own.values()
    common = {k: v for k, v in first.items() if others and all(k in o and o[k] == v for o in others)}
    pairs = list(common.items())
    pairs += [(f"{name}.{key}", value) for name, o in own.items() for key, value in o.items() if key not in common]
    return words + [word for key, value in pairs for word in ("--set", f"{key}={_word(value)}")]


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(_word, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def write(out: str | Path, failed: Mapping[str, str] | None = None) -> Path:
    """Write ``report.html``, ``bakeoff.md`` and, for pictures, ``bakeoff.png`` into the folder of a bake-off.

    Before the first result there is nothing to write.
    """
    from sfumato.training.files import write_bytes
    from sfumato.training.pictures import save_png

    out = Path(out)
    results = stored(out)
    path = out / "report.html"
    if not results:
        return path
    write_bytes(path, page(out, results, failed or {}).encode())
    write_bytes(out / "bakeoff.md", markdown(out, results).encode())
    strips = [(result.recipe, out / str(result.stored["picture"])) for result in ordered(results)]
    strips = [(name, file) for name, file in strips if file.suffix == ".png" and file.exists()]
    if strips:
        save_png(stacked(strips), out / "bakeoff.png")
    return path
