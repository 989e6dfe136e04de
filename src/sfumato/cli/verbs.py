"""What the verbs do.  The contract: everything is checked before anything is written, and nothing is written over."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from sfumato.errors import Refusal


@final
@dataclass(frozen=True)
class Job:
    """The options that ``sample``, ``eval`` and ``compare`` share."""

    n: int | None = None
    label: list[str] | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    sampler: str | None = None
    steps: int | None = None
    grid: str | None = None
    seed: int = 0
    batch: int = 256
    device: str = "auto"
    raw: bool = False
    ema: float | None = None
    autoguide: Path | None = None
    threshold: str | None = None
    prompt: str | None = None
    infill: str | None = None
    temperature: float | None = None
    top_p: float | None = None

    def model(self, run: Path) -> Any:
        """The run's model with the weights asked for."""
        from sfumato.training.diffusion import load

        return load(run, weights="raw" if self.raw else "ema", ema=self.ema, device=self.device)

    def weak(self) -> Any:
        """The model to guide away from, or None."""
        from sfumato.training.diffusion import load

        return None if self.autoguide is None else load(self.autoguide, device=self.device)

    def refuse_sampling(self, option: str, out: Path | None, *more: tuple[str, bool]) -> None:
        """Raises :class:`Refusal` for what goes with samples only; ``option`` draws none.  ``more``: flags."""
        names = (
            "label",
            "guidance",
            "interval",
            "sampler",
            "steps",
            "grid",
            "autoguide",
            "threshold",
            "prompt",
            "infill",
            "temperature",
            "top_p",
        )
        given = ["out"] if out is not None else []
        given += [name for name in names if getattr(self, name) is not None]
        given += [name for name, value in more if value]
        if given:
            raise Refusal(f"--{given[0]} goes with samples, and {option} draws none; leave one of them out")

    def samples(self, run: Path) -> Any:
        """Load the run and sample: all classes in turn unless labels are given."""
        from sfumato.cli.text import live

        model = self.model(run)
        label = self.label or list(model.classes) or None
        n = self.n if self.n is not None else 8 * len(model.classes) or 64
        with live(model) as watch:
            return self._sampled(model, n, label, watch)

    def _sampled(self, model: Any, n: int, label: Any, watch: Any) -> Any:
        return model.sample(
            n,
            label=label,
            guidance=self.guidance,
            interval=self.interval,
            sampler=self.sampler,
            steps=self.steps,
            grid=self.grid,
            seed=self.seed,
            batch=self.batch,
            autoguide=self.weak(),
            threshold=self.threshold,
            prompt=self.prompt,
            infill=self.infill,
            temperature=self.temperature,
            top_p=self.top_p,
            watch=watch,
        )


# ---------------------------------------------------------------------------------------------------------- inspect


def inspect_target(target: str, sheet: Path | None) -> None:
    """The report of a run folder, a schedule or a data set."""
    if Path(target).is_dir():
        if sheet is not None:
            raise Refusal(f"--sheet goes with data and schedules, {target} is a folder; leave it out")
        inspect_run(Path(target))
        return
    from sfumato import schedules

    if target in schedules.registry:
        inspect_schedule(target, sheet)
        return
    from rich.console import Console

    from sfumato import data

    loaded = data.load(target)
    if loaded.kind != "images":
        if sheet is not None:
            raise Refusal(f"--sheet shows images, and {loaded.name} holds {loaded.kind}; leave it out")
        Console(highlight=False).print(loaded.report())
        return
    path = sheet or Path(f"{Path(target).stem}-sheet.png")
    if path.exists():
        raise Refusal(f"{path} exists already and is kept; give another --sheet FILE")
    data.contact_sheet(loaded.train, path)
    Console(highlight=False).print(loaded.report())
    print(f"\ncontact sheet: {path}")


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


# ------------------------------------------------------------------------------------------------------------ train


def read_settings(path: Path | None, pairs: list[str]) -> dict[str, Any]:
    """Settings from a file, then from ``KEY=VALUE`` pairs; a run's own ``config.json`` gives its settings."""
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text()
            settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (ValueError, UnicodeDecodeError) as error:
            raise Refusal(f"{path} is no {'TOML' if path.suffix == '.toml' else 'JSON'} file: {error}") from None
        if not isinstance(settings, dict):
            raise Refusal(f"{path} holds no settings; write KEY = VALUE lines in a .toml file")
        if isinstance(settings.get("settings"), dict):
            settings = settings["settings"]
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise Refusal(f"--set {pair}: write KEY=VALUE, e.g. --set lr=0.001")
        settings[key.strip()] = value.strip()
    return settings


def train_run(
    recipe: str,
    data: str,
    out: Path,
    minutes: float | None,
    steps: int | None,
    resume: bool,
    seed: int | None,
    device: str,
    config: Path | None,
    pairs: list[str],
) -> None:
    """Train and say how to sample."""
    import typer

    from sfumato.training.run import Stopped, train

    settings = read_settings(config, pairs)
    clash = set(settings) & {"minutes", "out", "seed", "resume", "device", "quiet", "recipe", "data", "steps"}
    if clash:
        raise Refusal(f"setting {min(clash)!r} is an option; give it as --{min(clash)}")
    try:
        train(recipe, data, minutes=minutes, steps=steps, out=out, resume=resume, seed=seed, device=device, **settings)
    except Stopped as stopped:
        print(f"sfumato: {stopped}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"trained: {out}")
    print(f"sample:  {sample_command(out)}")


def sample_command(run: Path) -> str:
    """The exact command that samples from ``run``."""
    return shlex.join(["sfumato", "sample", str(run), "--out", str(new_folder_for(run))])


def new_folder_for(run: Path) -> Path:
    """``RUN/samples``, or the first of ``RUN/samples-2``, ``-3``, ... that is free."""
    folder, k = run / "samples", 2
    while folder.exists():
        folder, k = run / f"samples-{k}", k + 1
    return folder


# ------------------------------------------------------------------------------------------------- sample, evaluate


def check_free(out: Path) -> None:
    """Refuse an output folder that holds something, before any work."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refusal(f"{out} exists already and is kept; give another --out")


def sample_run(run: Path, job: Job, out: Path | None) -> None:
    """Sample and save."""
    target = out or new_folder_for(run)
    check_free(target)
    samples = job.samples(run).noting({"run": str(run)})
    samples.save(target)
    record = samples.record
    print(
        f"{len(samples)} samples in {record['seconds']:.1f} s: {record['sampler']}, {record['steps']} steps, "
        f"{record['nfe']} evaluations each, guidance {record['guidance']:g}"
    )
    if samples.view.noun == "texts":
        from sfumato.cli.text import show

        show(samples)
    print(f"{target}: {samples.view.file}, samples.npz, samples.json")


def evaluate_run(run: Path, job: Job, out: Path | None) -> None:
    """Sample, save where asked, measure, print the table, append the records to ``RUN/metrics.jsonl``."""
    from sfumato import data, metrics
    from sfumato.training.diffusion import read_config

    if out is not None:
        check_free(out)
    loaded = data.load(read_config(run)["data"]["name"])
    if loaded.kind != "images":
        from sfumato.cli.text import evaluate_text_run

        if loaded.kind != "text":
            raise Refusal(f"{run} makes {loaded.kind}, which have no metrics here; sample it and look at the plot")
        evaluate_text_run(run, job, out)
        return
    least, most = metrics.limits(loaded)
    job = replace(job, n=min(EVALUATED, most) if job.n is None else job.n)
    if not least <= (job.n or 0) <= most:
        raise Refusal(f"n={job.n}: {loaded.name} can be evaluated with {least} to {most} samples")
    samples = job.samples(run).noting({"run": str(run)})
    if out is not None:
        samples.save(out)
        print(f"{out}: grid.png, samples.npz, samples.json")
    measure(run, samples, loaded)


#: How many samples are evaluated unless told otherwise (or as many as there are training images).
EVALUATED = 2000


def measure(run: Path, samples: Any, data: Any) -> None:
    """Evaluate samples against ``data``; prints the table and appends the records to ``RUN/metrics.jsonl``."""
    from sfumato import metrics

    records = metrics.evaluate(samples.x, samples.index(), data, generated=metrics.made(samples.record))
    print(metrics.table(records))
    append_records(run, records)


def append_records(run: Path, records: Sequence[Any]) -> None:
    """Append metric records to ``RUN/metrics.jsonl``, and say so."""
    path = run / "metrics.jsonl"
    with path.open("a") as file:
        file.writelines(json.dumps(record.to_json()) + "\n" for record in records)
    print(f"appended to {path}")
