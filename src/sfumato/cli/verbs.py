"""What the verbs do.  The contract: everything is checked before anything is written, and nothing is written over."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from sfumato import launch
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

    def samples(self, run: Path, data: Any = None) -> Any:
        """Load the run and sample: all classes in turn unless labels are given, or ``data``, whose held-out classes
        the samples are to have.
        """
        from sfumato.cli.text import live
        from sfumato.metrics import units

        processes = self.processes()
        model = processes.together(lambda: self.model(run))
        weak = processes.together(self.weak)
        n = self.n if self.n is not None else 8 * len(model.classes) or 64
        usual = list(model.classes) if data is None else units.labels(data, model.classes, n)
        label = self.label or usual or None
        with live(model) as watch:
            return model.sample(
                n, label=label, guidance=self.guidance, interval=self.interval, sampler=self.sampler, steps=self.steps,
                grid=self.grid, seed=self.seed, batch=self.batch, autoguide=weak, threshold=self.threshold,
                prompt=self.prompt, infill=self.infill, temperature=self.temperature, top_p=self.top_p, watch=watch,
                processes=processes,
            )  # fmt: skip

    def processes(self) -> Any:
        """The processes that were launched with this one, to share samples out among."""
        from sfumato.training.parallel import ALONE, join

        return ALONE if launch.count() == 1 else join(self.device)

    @contextmanager
    def shared(self) -> Iterator[Any]:
        """The work of the :meth:`processes`: where one of them stops, the others do, each with a line of its own."""
        from sfumato.training.parallel import leaving

        processes = self.processes()
        with leaving(processes):
            yield processes


# ------------------------------------------------------------------------------------------------------------ train


def train_run(given: Mapping[str, Any], resume: bool, config: Path | None, pairs: list[str], reading: Any) -> None:
    """Train what ``given`` options, a file and ``KEY=VALUE`` pairs ask for, and say how to sample.

    ``reading``: how data are read, None where the command line says nothing of it.
    """
    import typer

    from sfumato.cli import config as files
    from sfumato.training.run import Stopped, train

    filed = None if config is None else files.read(config)
    if resume and filed is None and given["out"] is not None and None in (given["recipe"], given["data"]):
        given = _resumed(given["out"]) | {name: value for name, value in given.items() if value is not None}
    changed = {} if reading is None else {k: files.text(v) for k, v in reading.changed().items()}
    asked = files.together(filed, given, changed, files.read_pairs(pairs))
    recipe, out = asked.get("recipe"), Path(asked.get("out"))
    for note in asked.notes if launch.rank() == 0 else ():
        print(f"sfumato: {note}", file=sys.stderr)
    try:
        train(
            recipe, asked.data(), options=asked.how(), minutes=asked.get("minutes"), steps=asked.get("steps"), out=out,
            resume=resume, seed=asked.get("seed"), device=asked.get("device") or "auto",
            shard=asked.get("shard") or False, auto_batch=asked.get("auto_batch"), trackers=asked.get("tracker"),
            **asked.settings,
        )  # fmt: skip
    except Stopped as stopped:
        if launch.rank() == 0:
            print(f"sfumato: {stopped}", file=sys.stderr)
        raise typer.Exit(130) from None
    if launch.rank() > 0:
        return
    print(f"trained: {out}")
    print(f"sample:  {sample_command(out)}")


def _resumed(run: Path) -> dict[str, Any]:
    """The recipe and the data of a run that is continued."""
    from sfumato.training.diffusion import read_config

    config = read_config(run)
    return {"recipe": str(config["recipe"]), "data": str(config["data"]["name"])}


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


def sample_run(run: Path, job: Job, out: Path | None, png: bool = False) -> None:
    """Sample and save; ``png``: every image in a file of its own, too."""
    from sfumato.data.views import ImageFiles
    from sfumato.training.diffusion import read_config

    target = out or new_folder_for(run)

    def check() -> None:
        check_free(target)
        if png and (kind := read_config(run)["data"].get("kind", "images")) != "images":
            raise Refusal(f"--png writes images, and {run} makes {kind}; leave it out")

    with job.shared() as processes:
        processes.together(check)
        samples = job.samples(run).noting({"run": str(run)})
    samples = replace(samples, view=ImageFiles()) if png else samples
    if launch.rank() > 0:
        return
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


def save(samples: Any, out: Path | None) -> None:
    """Save samples where it is asked for, and say so."""
    if out is not None:
        samples.save(out)
        print(f"{out}: {samples.view.file}, samples.npz, samples.json")


def append_records(run: Path, records: Sequence[Any]) -> None:
    """Append metric records to ``RUN/metrics.jsonl``, and say so."""
    path = run / "metrics.jsonl"
    with path.open("a") as file:
        file.writelines(json.dumps(record.to_json()) + "\n" for record in records)
    print(f"appended to {path}")
