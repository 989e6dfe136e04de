"""``sfumato inspect``: the report of data, a schedule's table, or all that a run knows of itself.

The contract: nothing that exists is written over, and nothing of the user's is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import Refusal


def inspect_target(target: str, sheet: Path | None, html: Path | None = None, options: Any = None) -> None:
    """The report of a run folder, a schedule or a data set."""
    from sfumato import data, schedules

    path = Path(target)
    run = path.is_dir() and (path / "config.json").exists()
    if run or target in schedules.registry:
        what = "a run" if run else "a schedule"
        for name, value in (("--html", html), ("options", options), ("--sheet", sheet if run else None)):
            if value is not None:
                raise Refusal(f"{name} goes with data, and {target} is {what}; leave it out")
        inspect_run(path) if run else inspect_schedule(target, sheet)
        return
    for file, option in ((sheet, "--sheet"), (html, "--html")):
        if file is not None and file.exists():
            raise Refusal(f"{file} exists already and is kept; give another {option} FILE")
    inspect_data(data.load(target, options or data.Options()), sheet, html)


def inspect_data(loaded: Any, sheet: Path | None, html: Path | None) -> None:
    """The report of a data set; images also as a contact sheet; a page where one is asked for."""
    from rich.console import Console

    from sfumato.cli import kinds
    from sfumato.data.folder import require_outside
    from sfumato.reports import data as page

    draw = kinds.of(loaded.kind).sheet
    if sheet is not None and draw is None:
        raise Refusal(f"--sheet shows images, and {loaded.name} holds {loaded.kind}; leave it out")
    path = sheet or Path(f"{Path(loaded.name).stem}-sheet.png")
    if draw is not None and path.exists():
        raise Refusal(f"{path} exists already and is kept; give another --sheet FILE")
    for file, option in ((None if draw is None else path, "--sheet FILE"), (html, "--html FILE")):
        if file is not None:
            require_outside(file, loaded.name, option)
    report = loaded.report()
    if draw is not None:
        draw(loaded, path)
    if html is not None:
        page.write(loaded, report, html)
    Console(highlight=False).print(report)
    if draw is not None:
        print(f"\ncontact sheet: {path}")
    if html is not None:
        print(f"page: {html}")


def inspect_schedule(name: str, sheet: Path | None) -> None:
    """A small table of a schedule, and its picture in ``sheet`` where given."""
    from sfumato import schedules
    from sfumato.schedules.plots import table

    if sheet is not None and sheet.exists():
        raise Refusal(f"{sheet} exists already and is kept; give another --sheet FILE")
    print("     t      alpha      sigma    log-SNR")
    for t, alpha, sigma, level in table(schedules.get(name)):
        print(f"{t:6.2f} {alpha:10.6f} {sigma:10.5g} {level:10.3f}")
    if sheet is not None:
        schedules.plot(name, sheet)
        print(f"\npicture: {sheet}")


def inspect_run(run: Path) -> None:
    """Configuration, progress, checkpoints and latest measures of a run."""
    from sfumato.training.checkpoint import newest, steps_of
    from sfumato.training.diffusion import from_config, read_config
    from sfumato.training.monitor import read_log
    from sfumato.training.phema import stored

    config = read_config(run)
    model = from_config(config, run)
    found, passed = newest(run)
    settings, data = config["settings"], config["data"]
    rows: list[tuple[str, object]] = [
        ("run", run),
        ("recipe", model.recipe),
        ("data", f"{data['name']}, {data['train']} + {data['test']} {model.transform.view.noun} {data['shape']}"),
        ("classes", ", ".join(model.classes) or "none"),
        ("network", f"{config['parameters']:,} parameters, computes in {config['compute']}"),
        ("horizon", _pairs(config["horizon"])),
        ("seed", config["seed"]),
        ("trained", f"{found.step} steps, {found.seconds:.0f} s" if found else "no checkpoint yet"),
        ("checkpoints", ", ".join(f"step-{step}" for step in steps_of(run)) or "none"),
        ("versions", _pairs(config["versions"])),
        ("settings", _pairs(settings)),
    ]
    profiles = stored(run)
    if profiles:
        widths = ", ".join(f"{width:g}" for width in sorted({p.width for p in profiles}))
        steps = sorted({p.step for p in profiles})
        rows += [("snapshots", f"{len(steps)} of widths {widths}, steps {steps[0]} to {steps[-1]}; sample with --ema")]
    validations = [line for line in read_log(run / "log.jsonl") if line.get("kind") == "validation"]
    validations = [line for line in validations if line.get("loss") is not None]
    if validations:
        levels = "  ".join(
            f"{p['log_snr']:.1f}: {p['loss']:.3f}" for p in validations[-1]["levels"] if None not in p.values()
        )
        rows += [("held out", f"loss {validations[-1]['loss']:.4f} at step {validations[-1]['step']}")]
        rows += [("by log-SNR", levels)]
    rows += [("metric", f"{m['name']} {m['value']:.4g} (n {m['n']})") for m in read_log(run / "metrics.jsonl")[-6:]]
    rows += [("damaged", line) for line in passed]
    for name, value in rows:
        print(f"{name:<12} {value}")


def _pairs(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items())
