"""A bake-off: train, measure, store; interrupted anywhere, the same command continues.

The contract: only training is timed; whatever is measured is measured after it, of the averaged weights, in one way for
all (:func:`sfumato.metrics.measure` against one reference for each number of samples).  Nothing is chosen: samples are
drawn once, labels as :func:`sfumato.metrics.units.labels` has them.  A recipe that is done is stored at once in
``DIR/results/NAME.json`` and never done again; one that fails is told, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from sfumato.bakeoff.parts import machine
from sfumato.bakeoff.plan import RUNS, Entry, Terms, check, entries
from sfumato.errors import Refusal
from sfumato.words import duration

FORMAT = 1
RESULTS, SHOWN = "results", "samples"
#: Samples that are shown of each recipe: so many of each class, or so many in all.
PER_CLASS, IN_ALL = 1, 16
#: The width of the averages that quality over time is measured of.
WIDTH = 0.10

Tell = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """A bake-off was interrupted; the message says what is kept and how to go on."""


@final
@dataclass(frozen=True)
class Result:
    """What became of an entry: what ``results/NAME.json`` holds."""

    stored: Mapping[str, Any]

    @property
    def recipe(self) -> str:
        """Its recipe."""
        return str(self.stored["recipe"])

    @property
    def records(self) -> list[dict[str, Any]]:
        """The metric records of the final samples."""
        return list(self.stored["records"])

    def value(self, metric: str) -> float:
        """The final value of a metric; not a number where it was not measured."""
        found = (r["value"] for r in self.records if r["name"] == metric and r["value"] is not None)
        return next(map(float, found), float("nan"))

    def curve(self, part: str, x: str, metric: str) -> tuple[tuple[float, float], ...]:
        """``(x, value)`` of the points of ``part`` (``"moments"`` or ``"nfe"``) where the metric was measured."""
        return tuple(
            (float(point[x]), float(record["value"]))
            for point in self.stored[part]
            for record in point["records"]
            if record["name"] == metric and record["value"] is not None
        )


@final
@dataclass(eq=False)
class Yardstick:
    """The one way to measure: a reference for each number of samples, made when it is first needed."""

    data: Any
    extractor: str | None
    names: tuple[str, ...] = ()
    references: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from sfumato import metrics

        found, _ = metrics.fitting(self.data, self.extractor)
        self.names = tuple(found)
        if not self.names:
            raise Refusal(f"{self.data.name} has too few samples for any metric; give more data")

    def count(self, wanted: int) -> int:
        """As many samples as are wanted, or as the data allow."""
        from sfumato import metrics

        least, most = metrics.limits(self.data, self.extractor, self.names)
        return min(max(wanted, least), most)

    def __call__(self, samples: Any) -> list[dict[str, Any]]:
        """The records of samples."""
        from sfumato import metrics

        n = len(samples)
        if n not in self.references:
            self.references[n] = metrics.Reference.of(self.data, n, extractor=self.extractor, names=self.names)
        generated = metrics.made(samples.record)
        records = metrics.measure(samples.x, samples.index(), self.references[n], generated=generated)
        return [record.to_json() for record in records]


# ----------------------------------------------------------------------------------------------------------- the way


def bakeoff(
    data: Any,
    recipes: str | Sequence[str],
    out: str | Path,
    *,
    terms: Terms | None = None,
    settings: Mapping[str, Any] | None = None,
    options: Any = None,
    device: str = "auto",
    quiet: bool = False,
    tell: Tell | None = None,
) -> list[Result]:
    """Train every recipe on ``data`` (loaded, or by name) under one budget, measure all in one way, write the report.

    ``out``: the folder, which continues where it holds the same bake-off.  ``settings``: for all recipes, or for one
    (``{"flow.lr": 0.001}``).  ``options``: how data of that name are read.  ``tell`` is called with lines of progress.
    Returns the results in the order of ``recipes``.

    Raises :class:`Refusal`, before anything is trained, for an unknown recipe or one that does not fit the data, for
    settings, and for a folder that holds something else; :class:`Interrupted` on Ctrl-C, when what is done is kept.
    """
    from sfumato import data as sets

    by_name = isinstance(data, str | Path)
    loaded = sets.load(data, *([] if options is None else [options])) if by_name else data
    say = tell or _silent
    job = _Bakeoff(loaded, Path(out), terms or Terms(), entries(recipes, loaded, settings or {}), device, quiet, say)
    return job.go()


def _silent(line: str) -> None:
    """Says nothing."""


def stored(out: Path) -> list[Result]:
    """The results in the folder of a bake-off, in its order; raises :class:`Refusal` where it is none."""
    from sfumato.training.files import read_json

    plan = read_json(out / "bakeoff.json")
    if plan.get("format") != FORMAT:
        raise Refusal(f"{out}/bakeoff.json has format {plan.get('format')!r}, this version reads {FORMAT}")
    paths = [out / RESULTS / f"{name}.json" for name in plan["recipes"]]
    return [Result(read_json(path)) for path in paths if path.exists()]


@final
@dataclass
class _Bakeoff:
    data: Any
    out: Path
    terms: Terms
    entries: list[Entry]
    device: str
    quiet: bool
    tell: Tell
    beside: float = 0.0

    def go(self) -> list[Result]:
        """Whatever is not done yet, then the report."""
        from sfumato.bakeoff.report import write
        from sfumato.training.files import make_folder

        sizes = {entry.recipe: check(entry, self.data, self.terms, self.out) for entry in self.entries}
        self._refuse_other()
        self.measure = Yardstick(self._reference(), self.terms.extractor)
        self.n, self.few = self.measure.count(self.terms.n), self.measure.count(self.terms.few)
        make_folder(self.out)
        self._store_plan()
        waiting = [entry for entry in self.entries if not self._path(entry).exists()]
        kept = len(self.entries) - len(waiting)
        known = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)
        self.tell(
            f"{len(self.entries)} recipes on {self.data.name}, {self.terms.budget} each; {kept} done already; "
            f"parameters: {known or 'those of their teachers'}"
        )
        failed = {}
        try:
            for k, entry in enumerate(waiting):
                where = f"[{kept + k + 1}/{len(self.entries)}] {entry.recipe}"
                try:
                    self._carry_out(entry, where, len(waiting) - k)
                except Refusal as refusal:
                    failed[entry.recipe] = str(refusal)
                    self.tell(f"{where}: failed: {refusal}")
                write(self.out, failed)
        except KeyboardInterrupt:
            done = [entry.recipe for entry in self.entries if self._path(entry).exists()]
            raise Interrupted(
                f"stopped with {len(done)} of {len(self.entries)} recipes done and kept in {self.out}; "
                "the same command continues"
            ) from None
        path = write(self.out, failed)
        self.tell(f"written: {path}")
        return stored(self.out)

    # --------------------------------------------------------------------------------------------------- the folder

    def _path(self, entry: Entry) -> Path:
        return self.out / RESULTS / f"{entry.recipe}.json"

    def _plan(self) -> dict[str, Any]:
        names = [entry.recipe for entry in self.entries]
        given = {entry.recipe: entry.plain(self.data.kind, self.terms.moments) for entry in self.entries}
        return {
            "format": FORMAT,
            "recipes": names,
            "terms": self.terms.to_json(),
            "data": {"name": self.data.name, "sha256": self.data.sha256, "kind": self.data.kind}
            | {"options": self.data.spec().get("options") or None},
            "settings": given,
        }

    def _refuse_other(self) -> None:
        """Raises :class:`Refusal` unless the folder is free or holds this bake-off."""
        from sfumato.training.files import read_json

        path = self.out / "bakeoff.json"
        if not path.exists():
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise Refusal(f"{self.out} exists already and is no bake-off; give another --out")
            return
        then, now = read_json(path), self._plan()
        both = [name for name in now["recipes"] if name in then["settings"]]
        pairs = [(name, then["terms"].get(name), value) for name, value in now["terms"].items()]
        pairs += [(f"data {name}", then["data"].get(name), value) for name, value in now["data"].items()]
        pairs += [
            (f"{name}.{key}", then["settings"][name].get(key), now["settings"][name].get(key))
            for name in both
            for key in dict.fromkeys([*then["settings"][name], *now["settings"][name]])
        ]
        for name, before, after in pairs:
            if before != after:
                raise Refusal(
                    f"{self.out} holds a bake-off with {name}={before}, now {name}={after}; give another --out"
                )

    def _store_plan(self) -> None:
        """What is compared, with what was there before."""
        from sfumato.training.files import read_json, to_json, write_bytes

        path, plan = self.out / "bakeoff.json", self._plan()
        if path.exists():
            then = read_json(path)
            plan["recipes"] = list(dict.fromkeys([*then["recipes"], *plan["recipes"]]))
            plan["settings"] = then["settings"] | plan["settings"]
        write_bytes(path, to_json(plan))

    def _reference(self) -> Any:
        """The data as the metrics read them: texts cut into windows by the first recipe's own reader."""
        from sfumato import recipes
        from sfumato.training.settings import resolve

        if self.data.kind != "text":
            return self.data
        first = self.entries[0]
        return self.data.prepared(resolve(recipes.get(first.recipe).defaults, first.given(self.out, 0)))

    # --------------------------------------------------------------------------------------------------- one recipe

    def _carry_out(self, entry: Entry, where: str, left: int) -> None:
        """Train, measure at the end, over time and over evaluations, store."""
        import sfumato
        from sfumato.training.files import make_folder, to_json, write_bytes
        from sfumato.training.run import train
        from sfumato.training.settings import flatten

        run = self.out / RUNS / entry.recipe
        there = (run / "config.json").exists()
        self.tell(f"{where}: {'continuing' if there else 'training'} for {self.terms.budget}{self._remaining(left)}")
        model = train(
            entry.recipe, self.data, minutes=self.terms.minutes, steps=self.terms.steps, out=run, seed=self.terms.seed,
            resume=there, device=self.device, quiet=self.quiet, **entry.given(self.out, self.terms.moments),
        )  # fmt: skip
        began = time.perf_counter()
        self.tell(f"{where}: drawing and measuring {self.n:,} samples")
        samples = self._drawn(model, self.n)
        records = self.measure(samples)
        self.tell(f"{where}: {_values(records)}")
        r = samples.record
        picture = self._picture(model, entry)
        result = {
            "format": FORMAT,
            "recipe": entry.recipe,
            "settings": flatten(model.settings),
            "given": entry.plain(self.data.kind, self.terms.moments),
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "trained": _trained(run),
            "sampling": {key: r[key] for key in ("sampler", "grid", "steps", "nfe", "guidance", "seconds")}
            | {"milliseconds_per_sample": 1000 * r["seconds"] / len(samples)},
            "records": records,
            "moments": self._moments(run, model, where),
            "nfe": self._evaluations(model, where),
            "picture": picture.relative_to(self.out).as_posix(),
            "machine": machine(model.device),
            "version": sfumato.__version__,
        }
        make_folder(self.out / RESULTS)
        write_bytes(self._path(entry), to_json(_finite(result)))
        self.beside = time.perf_counter() - began

    def _remaining(self, left: int) -> str:
        """About how long the rest will take, as far as it is known."""
        if self.terms.seconds is None:
            return ""
        more = "" if self.beside else ", and what measuring takes"
        return f"; about {duration(left * (self.terms.seconds + self.beside))} left{more}"

    def _drawn(self, model: Any, n: int, steps: int | None = None) -> Any:
        from sfumato.metrics import units

        return model.sample(n, label=units.labels(self.data, model.classes, n), steps=steps, seed=self.terms.seed)

    def _picture(self, model: Any, entry: Entry) -> Path:
        """The file to look at: the first samples."""
        from sfumato.training.files import make_folder, write_bytes

        n = PER_CLASS * len(model.classes) or IN_ALL
        samples = model.sample(n, label=list(model.classes) or None, seed=self.terms.seed)
        path = make_folder(self.out / SHOWN) / f"{entry.recipe}{Path(samples.view.file).suffix}"
        write_bytes(path, samples.view.show(samples))
        return path

    def _moments(self, run: Path, model: Any, where: str) -> list[dict[str, Any]]:
        """Quality at the stored moments of the training, by the averages as they were then."""
        from sfumato.training.diffusion import load
        from sfumato.training.monitor import read_log
        from sfumato.training.phema import stored as snapshots

        log, found = read_log(run / "log.jsonl"), []
        steps = sorted({profile.step for profile in snapshots(run) if profile.width == WIDTH})
        for step in steps:
            then = load(run / "snapshots" / f"step-{step}-{WIDTH:.3f}.safetensors", device=str(model.device))
            records = self.measure(self._drawn(then, self.few))
            seconds = seconds_at(log, step)
            found.append({"step": step, "seconds": seconds, "records": records})
            self.tell(f"{where}: after {seconds:.0f} s of training (step {step:,}): {_values(records)}")
        return found

    def _evaluations(self, model: Any, where: str) -> list[dict[str, Any]]:
        """Quality over numbers of sampling steps; a number at which it cannot sample is left out, and told."""
        from sfumato.training.composition import allowed_steps

        found = []
        for steps in sorted({allowed_steps(model.parts, count) for count in self.terms.nfe}):
            try:
                samples = self._drawn(model, self.few, steps)
                records = self.measure(samples)
            except Refusal as refusal:
                self.tell(f"{where}: {steps} steps left out: {refusal}")
                continue
            r = samples.record
            found.append({"steps": steps, "nfe": r["nfe"], "seconds": r["seconds"], "records": records})
            self.tell(f"{where}: {r['nfe']:g} evaluations: {_values(records)}")
        return found


def _values(records: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{r['name']} {r['value']:.4g}" for r in records[:2])


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _trained(run: Path) -> dict[str, Any]:
    from sfumato.training.checkpoint import newest
    from sfumato.training.files import read_json

    found, _ = newest(run)
    pairs = run / "pairs.json"  # which a pupil has its teacher make before its own minutes begin
    before = {"pairs_seconds": float(read_json(pairs)["seconds"])} if pairs.exists() else {}
    return before if found is None else {"steps": found.step, "seconds": found.seconds} | before


def seconds_at(log: Sequence[Mapping[str, Any]], step: int) -> float:
    """Training seconds after ``step``, between the lines of the log next to it (a log has one every few steps)."""
    lines = [(0, 0.0), *((int(line["step"]), float(line["seconds"])) for line in log if line.get("kind") == "train")]
    before = max((line for line in lines if line[0] <= step), key=lambda line: line[0])
    after = min((line for line in lines if line[0] >= step), key=lambda line: line[0], default=before)
    if after[0] == before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (step - before[0]) / (after[0] - before[0])
