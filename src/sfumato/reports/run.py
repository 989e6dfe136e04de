"""The report of a run: ``RUN/report.html``, made from what is in the run's folder and nothing else.

The contract: nothing is trained, sampled or measured for it; it can be made at any time, also of a run that goes on,
and replaces the older report whole.  What the folder does not hold is left out.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import Refusal
from sfumato.reports.charts import Chart, Line, between
from sfumato.reports.page import (
    MEDIA,
    Block,
    Commands,
    Figure,
    Note,
    Picture,
    Section,
    Table,
    render,
    samples_of,
    shown,
)

#: Grids over time: at most this many, evenly spread.
GRIDS = 12
#: Of a list or a group (a vocabulary) at most this many items are shown, of a text this many characters.
ITEMS, LETTERS = 40, 400
#: What a reader looks at first.
HEADLINES = ("frechet", "label-accuracy", "copy-rate", "bits-per-dim", "bits-per-character", "sliced-w2", "char-js-3")
#: Of config.json: what has a section of its own.
TOLD = ("format", "settings", "data", "versions", "horizon", "recipe", "seed", "parameters", "compute", "conditional")


def write(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of ``run`` into ``out`` (``RUN/report.html`` unless given), and return its path.

    Raises :class:`Refusal` where ``run`` is no run, or ``out`` exists and is not the run's own report.
    """
    from sfumato.training.files import write_bytes

    run = Path(run)
    path = run / "report.html" if out is None else Path(out)
    content = page(run)
    if path.exists() and path.resolve() != (run / "report.html").resolve():
        raise Refusal(f"{path} exists already and is kept; give another --out")
    write_bytes(path, content.encode())
    return path


def page(run: Path) -> str:
    """The report as text."""
    from sfumato import __version__
    from sfumato.training.diffusion import read_config
    from sfumato.training.monitor import read_log

    config = read_config(run)
    log, metrics = read_log(run / "log.jsonl"), read_log(run / "metrics.jsonl")
    sections = [
        Section("Summary", _summary(run, config, log, metrics)),
        Section("Curves", _curves(log)),
        Section("Loss by noise level", _levels(log)),
        Section("Samples while training", _grids(run)),
        Section("Samples", _samples(run)),
        Section("Measures", (*_measured(log), *_records(metrics))),
        Section("Nearest neighbours", _neighbours(run)),
        Section("Samplers compared", _compared(run)),
        Section("Data", (Table(tuple(_flat(config["data"]))),)),
        Section("Settings", _settings(config)),
        Section("Environment", (Table(tuple(_environment(config))),)),
        Section("Commands", (_commands(run, config),)),
    ]
    title = f"{config['recipe']} on {Path(str(config['data']['name'])).name}"
    footer = f"Made by sfumato {__version__} from the files in {run}. This page loads nothing and opens offline."
    return render(title, f"run {run.name}, seed {config['seed']}, {_horizon(config)}", sections, footer)


def _horizon(config: Mapping[str, Any]) -> str:
    from sfumato.training.horizon import from_json

    return str(from_json(config["horizon"]))


def text(value: Any) -> str:
    """A value as a reader wants it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value[:ITEMS])) + (f", ... ({len(value):,} in all)" if len(value) > ITEMS else "")
    words = str(value)
    return words if len(words) <= LETTERS else f"{words[:LETTERS]} ... ({len(words):,} characters)"


def _flat(values: Mapping[str, Any], head: str = "") -> list[tuple[str, str]]:
    """Nested values as rows with dotted names."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items() if len(values) <= ITEMS or not head else ():
        rows += _flat(value, f"{head}{name}.") if isinstance(value, Mapping) else [(f"{head}{name}", text(value))]
    return rows or [(head.rstrip("."), f"{len(values):,} entries")]


# ---------------------------------------------------------------------------------------------------------- summary


def _summary(
    run: Path, config: Mapping[str, Any], log: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> tuple[Block, ...]:
    from sfumato import recipes

    recipe = recipes.get(str(config["recipe"]))
    train, held_out = _of(log, "train"), [line for line in _of(log, "validation") if line["loss"] is not None]
    rows = [
        ("recipe", f"{recipe.name}: {recipe.title} ({recipe.paper})"),
        ("data", f"{config['data']['name']}: {config['data']['train']:,} train, {config['data']['test']:,} test"),
        ("network", f"{config['parameters']:,} parameters, computes in {config['compute']}"),
    ]
    if train:
        last = train[-1]
        rows.append(("trained", f"{last['step']:,} steps in {last['seconds']:,.0f} s of {_horizon(config)}"))
        rows.append(("speed", f"{_median([line['images_per_second'] for line in train]):,.0f} samples a second"))
    else:
        rows.append(("trained", "not yet"))
    if held_out:
        best = min(held_out, key=lambda line: float(line["loss"]))
        rows.append(
            ("held-out loss", f"{held_out[-1]['loss']:.4f} at the end, least {best['loss']:.4f} at {best['step']:,}")
        )
    latest = {record["name"]: record for record in metrics}
    for name in (name for name in HEADLINES if name in latest):
        r = latest[name]
        rows.append((name, f"{r['value']:.4g} (real samples: {r['floor']:.4g}), n {r['n']:,}"))
    return (Table(tuple(rows)),)


def _of(log: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [line for line in log if line.get("kind") == kind]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


# ----------------------------------------------------------------------------------------------------------- curves


def _points(lines: Sequence[Mapping[str, Any]], name: str, x: str = "step") -> tuple[tuple[float, float], ...]:
    return tuple((float(line[x]), float(line[name])) for line in lines if line.get(name) is not None)


def _curves(log: Sequence[Mapping[str, Any]]) -> tuple[Block, ...]:
    from sfumato.training.pictures import loss_limits

    train, held_out = _of(log, "train"), _of(log, "validation")
    if not train:
        return (Note("Nothing was logged yet.", warning=True),)
    losses, reports = _points(train, "loss"), _points(held_out, "loss")
    limits = loss_limits([y for _, y in losses], [y for _, y in reports])
    loss = Chart(
        "Loss", "step", "loss",
        (Line("training", losses, "#7d8896", dots=False), Line("held out, averaged weights", reports, 0)),
        most=None if limits is None else limits[1],
    )  # fmt: skip
    others = (("lr", "Learning rate"), ("grad_norm", "Gradient norm"), ("images_per_second", "Samples a second"))
    charts = [
        Chart(title, "step", title.lower(), (Line(title.lower(), _points(train, name), 1 + k, dots=False),))
        for k, (name, title) in enumerate(others)
    ]
    return (Figure("curves", (loss, *charts)),)


def _levels(log: Sequence[Mapping[str, Any]]) -> tuple[Block, ...]:
    """Held-out loss over noise levels, a curve for each report, and over steps, a curve for each level."""
    reports = [line for line in _of(log, "validation") if line.get("levels")]
    if not reports:
        return ()
    axis = "log_snr" if any(p["log_snr"] is not None for r in reports for p in r["levels"]) else "t"
    named = {"log_snr": "log-SNR (noise to the left)", "t": "time (the prior to the right)"}[axis]
    losses = [p["loss"] for r in reports for p in r["levels"] if p["loss"] is not None]
    log_y = bool(losses) and min(losses) > 0

    def share(k: int, n: int) -> str:
        return between(k / max(1, n - 1))

    over = [
        Line(
            f"step {report['step']:,}",
            tuple((p[axis], p["loss"]) for p in report["levels"] if None not in (p[axis], p["loss"])),
            share(k, len(reports)),
        )
        for k, report in enumerate(reports)
    ]
    levels = range(max(len(report["levels"]) for report in reports))
    along = [
        Line(
            f"{axis.replace('_snr', '-SNR')} {text(_level(reports, k, axis))}",
            tuple((float(r["step"]), r["levels"][k]["loss"]) for r in reports if _has(r, k)),
            share(k, len(levels)),
        )
        for k in levels
    ]
    return (
        Figure(
            "levels",
            (
                Chart("Held-out loss by noise level", named, "loss", tuple(over), log_y=log_y),
                Chart("Each noise level over time", "step", "loss", tuple(along), log_y=log_y),
            ),
        ),
    )


def _has(report: Mapping[str, Any], k: int) -> bool:
    return k < len(report["levels"]) and report["levels"][k]["loss"] is not None


def _level(reports: Sequence[Mapping[str, Any]], k: int, axis: str) -> Any:
    """The k-th noise level (a learned schedule moves it: the last one)."""
    found = [r["levels"][k][axis] for r in reports if k < len(r["levels"])]
    return round(found[-1], 3) if found[-1] is not None else f"level {k + 1}"


def _measured(log: Sequence[Mapping[str, Any]]) -> tuple[Block, ...]:
    """What else was measured while training: a chart for each number of lines of other kinds."""
    others = [line for line in log if line.get("kind") not in ("train", "validation") and "step" in line]
    names = dict.fromkeys(
        (str(line["kind"]), name)
        for line in others
        for name, value in line.items()
        if name not in ("kind", "step", "seconds") and not name.endswith(" error") and isinstance(value, int | float)
    )
    charts = tuple(
        Chart(name, "step", name, (Line(name, _points(_of(others, kind), name), k),))
        for k, (kind, name) in enumerate(names)
    )
    return (Figure("measured", charts),) if charts else ()


# ---------------------------------------------------------------------------------------------------------- samples


def _step(path: Path) -> int:
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def _grids(run: Path) -> tuple[Block, ...]:
    found = sorted((path for path in (run / "grids").glob("step-*") if _step(path) >= 0), key=_step)
    if not found:
        return ()
    n = len(found)
    kept = found if n <= GRIDS else [found[round(k * (n - 1) / (GRIDS - 1))] for k in range(GRIDS)]
    of_all = f"{len(kept)} of {n} grids" if len(kept) < n else f"{n} grid{'s' if n > 1 else ''}"
    pictures = [
        samples_of(p, f"Samples at step {_step(p)}, the same seeds as at other steps", f"step {_step(p):,}")
        for p in kept
    ]
    return (Note(f"{of_all}, drawn from the same seeds with the averaged weights."), *shown(pictures, small=True))


def _samples(run: Path) -> tuple[Block, ...]:
    """What was sampled last: the files to look at of ``RUN/samples*``."""
    folders = [p for p in run.glob("samples*") if (p / "samples.json").is_file()]
    if not folders:
        return ()
    from sfumato.training.files import read_json

    folder = max(folders, key=lambda p: (p / "samples.json").stat().st_mtime)
    files = sorted(p for p in folder.iterdir() if p.name not in ("samples.json", "samples.npz"))
    record = read_json(folder / "samples.json")
    made = ", ".join(f"{key} {text(record[key])}" for key in ("sampler", "steps", "nfe", "guidance") if key in record)
    return (Note(f"{folder.name}: {made}."), *shown([samples_of(p, f"Samples: {p.name}", p.name) for p in files]))


def _neighbours(run: Path) -> tuple[Block, ...]:
    files = sorted(p for p in (*run.glob("neighbours*"), *run.glob("*/neighbours*")) if p.suffix.lower() in MEDIA)
    if not files:
        return ()
    alt = "Samples, each beside the training images nearest to it and their distances"
    pictures: list[Picture | tuple[str, str]] = [Picture.read(path, alt, str(path.relative_to(run))) for path in files]
    return (
        Note("Each row: a sample, then the training images nearest to it; the most copy-like first."),
        *shown(pictures),
    )


def _compared(run: Path) -> tuple[Block, ...]:
    """The pictures of ``sfumato compare``."""
    files = sorted(run.glob("compare*/compare.png"))
    alt = "Quality of several samplers over evaluations and seconds"
    return shown([Picture.read(path, alt, str(path.relative_to(run))) for path in files])


# --------------------------------------------------------------------------------------------------------- measures


def reference_name(reference: str) -> str:
    """A reference by the last part of its path: ``data/cats/test (crop=none)`` is ``cats/test (crop=none)``."""
    found = re.fullmatch(r"(.*)/(train|test)( \(.*\))?", reference, re.DOTALL)
    return reference if found is None else f"{Path(found[1]).name or found[1]}/{found[2]}{found[3] or ''}"


def record_rows(records: Sequence[Mapping[str, Any]]) -> Table:
    """Metric records as a table: value, error, floor, n, reference, and how the samples were made."""
    from sfumato.metrics.records import ARROWS

    rows = []
    for r in records:
        error = r.get("error")
        made = [str(r["sampler"] or "")] + ([f"{r['steps']} steps"] if r["steps"] else [])
        made += [f"{r['nfe']:g} evaluations"] if r["nfe"] is not None else []
        made += [f"guidance {r['guidance']:g}"] if r["guidance"] is not None else []
        rows.append(
            (
                f"{r['name']} {ARROWS.get(r['better'], '')}",
                f"{r['value']:.4g}" + (f" ± {error:.2g}" if isinstance(error, float) and math.isfinite(error) else ""),
                f"{r['floor']:.4g}",
                f"{r['n']:,}",
                f"{reference_name(r['reference'])} ({r['n_ref']:,})",
                r["extractor"],
                ", ".join(part for part in made if part),
            )
        )
    head = ("measure", "value", "real samples", "n", "reference", "seen by", "samples")
    caption = "Every record, oldest first; ↓ lower is better; real samples: the same computation with real samples."
    return Table(tuple(rows), head, caption, numbers=(1, 2, 3))


def _records(records: Sequence[Mapping[str, Any]]) -> tuple[Block, ...]:
    known = [r for r in records if {"name", "value", "floor", "n", "reference"} <= r.keys()]
    if not known:
        return (Note("Not evaluated yet."),)
    return (record_rows(known),)


# ------------------------------------------------------------------------------------- settings, environment, commands


def _settings(config: Mapping[str, Any]) -> tuple[Block, ...]:
    from sfumato import recipes
    from sfumato.training.settings import flatten

    kind = str(config["data"].get("kind", "images"))
    defaults = flatten(recipes.get(str(config["recipe"])).on(kind).defaults)
    rows = []
    for name, value in config["settings"].items():
        own = name not in defaults or defaults[name] == value
        rows.append((name, text(value), "" if own else f"recipe: {text(defaults[name])}"))
    rows.sort(key=lambda row: row[2] == "")
    caption = "What differs from the recipe's own settings comes first."
    return (Table(tuple(rows), ("setting", "value", "differs from"), caption),)


def _environment(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    rest = {name: value for name, value in config.items() if name not in TOLD}
    own = {"computes in": config["compute"], "seed": config["seed"]}
    return [*_flat(config["versions"]), *_flat(own), *_flat(rest)]


def _commands(run: Path, config: Mapping[str, Any]) -> Commands:
    again = run.with_name(f"{run.name}-again")
    lines = [
        ("Sample", ["sample", str(run), "--out", str(run / "samples")]),
        ("Evaluate; appends to metrics.jsonl", ["eval", str(run)]),
        (
            "Continue where it stopped",
            ["train", str(config["recipe"]), "--data", str(config["data"]["name"]), "--out", str(run), "--resume"],
        ),
        (
            "Repeat the run: same recipe, data, settings and seed",
            ["train", "--config", str(run / "config.json"), "--out", str(again)],
        ),
        ("Make this page again", ["report", str(run)]),
    ]
    return Commands(tuple((what, shlex.join(["sfumato", *words])) for what, words in lines))
