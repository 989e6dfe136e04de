"""Every recipe on the same data, for the same minutes, with the same network: train, sample, measure, write the page.

    python benchmarks/recipes.py [--minutes 3] [--only ddpm,flow] [--runs DIR]

Each recipe is stored when it is done, as ``results/recipes/NAME.json`` and ``NAME.png``; the same command continues
where it stopped (a run that was interrupted resumes, too) and, whatever it did, writes the page and its picture from
what is stored.  Nothing is chosen: n samples, labels in turn, seeds from 0, drawn once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sfumato as sf
from sfumato import likelihood, metrics, recipes
from sfumato.bakeoff.parts import machine, stacked
from sfumato.cli.demo import DEMO
from sfumato.data.grid import image_grid
from sfumato.training.checkpoint import newest
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.pictures import save_png
from sfumato.training.settings import flatten

ROOT = Path(__file__).resolve().parents[1]

# ------------------------------------------------------------------------------------------------- what is compared

#: The demo's network and optimiser, without what belongs to its recipe or to sampling.
SHARED: dict[str, Any] = {
    key: value
    for key, value in DEMO.settings.items()
    if key not in {"p_mean", "sampler", "sampling_steps", "guidance", "clip"}
}
#: The guidance of every recipe that does not say otherwise below.
GUIDANCE = 1.4
#: Samples that are timed at once.
TIMED = 64
#: Share of samples that the classifier reads as the digit asked for, from which digits count as legible.
LEGIBLE = 0.9


@dataclass(frozen=True)
class Entry:
    """What a recipe gets beside :data:`SHARED`.

    ``settings``: of the training, over the shared ones; ``own``: shared settings that it does without, keeping its
    recipe's; ``sampling``: arguments of ``Diffusion.sample``; ``teacher``: the recipe whose run it learns from.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""


#: Every recipe, in the order of the table.
ENTRIES: dict[str, Entry] = {
    "ddpm": Entry(),
    "improved-ddpm": Entry(),
    "vdm": Entry(),
    # hundreds of Langevin steps forget most of what a weaker guidance says
    "ncsn": Entry(sampling={"guidance": 2.0}),
    "ncsnv2": Entry(sampling={"guidance": 2.0}),
    "vp-sde": Entry(),
    "ve-sde": Entry(),
    "subvp-sde": Entry(),
    "edm": Entry(settings={"p_mean": -0.4}),
    # magnitude-preserving layers have their own learning rate and need no weight decay
    "edm2": Entry(own=("optimiser", "lr", "hold", "decay", "weight_decay")),
    "flow": Entry(),
    "ot-cfm": Entry(),
    "sb-cfm": Entry(),
    # continues from its teacher's weights, so with small steps; pairs carry their guidance in them
    "reflow": Entry(own=("lr",), sampling={"guidance": 1.0}, teacher="flow"),
    "interpolant": Entry(),
}


@dataclass(frozen=True)
class Longer:
    """A budget at which a recipe makes legible digits where the shared one does not suffice, and why."""

    minutes: float
    why: str


LONGER: dict[str, Longer] = {
    "ncsn": Longer(8, "every level counts alike, so the few that decide the digit's shape are learned slowly."),
    "ncsnv2": Longer(
        12, "most of its ladder lies above the data, and the network has to find out its level by itself."
    ),
    "vdm": Longer(
        12,
        "its loss is the likelihood itself, most of which is detail that no eye sees, so shapes come late.",
    ),
}


# ------------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """One recipe for one budget, and how it is measured."""

    recipe: str
    minutes: float
    longer: bool
    data: str
    seed: int
    n: int
    images: int
    extra: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its run and its results."""
        return f"{self.recipe}-{self.minutes:g}min" if self.longer else self.recipe

    def settings(self, runs: Path) -> dict[str, Any]:
        """What it is trained with."""
        entry = ENTRIES[self.recipe]
        shared = {key: value for key, value in SHARED.items() if key not in entry.own}
        teacher = {"teacher": str(runs / entry.teacher)} if entry.teacher else {}
        return shared | dict(entry.settings) | dict(self.extra) | teacher

    def sampling(self) -> dict[str, Any]:
        """What it is sampled with."""
        return {"guidance": GUIDANCE} | dict(ENTRIES[self.recipe].sampling)

    def asked(self, runs: Path) -> dict[str, Any]:
        """All that decides its result."""
        asked = {
            "minutes": self.minutes, "data": self.data, "seed": self.seed, "n": self.n, "images": self.images,
            "settings": self.settings(runs), "sampling": self.sampling(),
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(asked))
        return plain


class Bench:
    """Runs jobs; the reference of the metrics is made once."""

    def __init__(self, data: Any, runs: Path, results: Path) -> None:
        self.data, self.runs, self.results = data, make_folder(runs), make_folder(results)
        self._reference: metrics.Reference | None = None

    def reference(self, n: int) -> metrics.Reference:
        """What n samples are measured against."""
        if self._reference is None:
            self._reference = metrics.Reference.of(self.data, n)
        return self._reference

    def done(self, job: Job) -> bool:
        """Whether its result is stored."""
        path = self.results / f"{job.name}.json"
        return path.exists() and json.loads(path.read_text())["asked"] == job.asked(self.runs)

    def train(self, job: Job) -> Any:
        """The trained model: resumed where a run is there already."""
        run = self.runs / job.name
        there = (run / "config.json").exists()
        return sf.train(
            job.recipe, self.data, minutes=job.minutes, out=run, seed=job.seed, resume=there, **job.settings(self.runs)
        )

    def milliseconds(self, job: Job, model: Any) -> float:
        """What one sample takes, in milliseconds: the median of three batches, after what came before."""
        taken = []
        for seed in range(3):
            made = model.sample(TIMED, label=list(model.classes) or None, seed=seed, batch=TIMED, **job.sampling())
            taken.append(1000 * made.record["seconds"] / TIMED)
        return statistics.median(taken)

    def bits(self, job: Job, model: Any) -> dict[str, Any]:
        """Its bits per dimension, or why it has none."""
        records, began, why = [], time.perf_counter(), ""
        try:
            records = likelihood.evaluate(model, self.data, job.images)
        except sf.Refusal as refusal:
            why = str(refusal)
        return {
            "likelihood": [record.to_json() for record in records],
            "likelihood_seconds": time.perf_counter() - began,
            "likelihood_refused": why,
        }

    def bits_again(self, job: Job) -> None:
        """Measure the bits per dimension of a stored result again."""
        path = self.results / f"{job.name}.json"
        result = json.loads(path.read_text()) | self.bits(job, sf.load(self.runs / job.name))
        write_bytes(path, to_json(result))
        found = ", ".join(f"{record['name']} {record['value']:.3f}" for record in result["likelihood"])
        print(f"{job.name}: {found or result['likelihood_refused']}", flush=True)

    def retime(self, job: Job) -> None:
        """Time the sampling of a stored result again, on this machine as it is now."""
        path = self.results / f"{job.name}.json"
        result = json.loads(path.read_text())
        model = sf.load(self.runs / job.name)
        result["sampling"]["milliseconds_per_sample"] = self.milliseconds(job, model)
        result["machine"] = machine()
        write_bytes(path, to_json(result))
        print(f"{job.name}: {result['sampling']['milliseconds_per_sample']:.1f} ms a sample", flush=True)

    def carry_out(self, job: Job) -> None:
        """Train, sample, measure, store."""
        print(f"\n== {job.name}: {job.minutes:g} minutes", flush=True)
        model = self.train(job)
        samples = model.sample(job.n, label=list(model.classes) or None, seed=0, **job.sampling())
        r = samples.record
        reference = self.reference(job.n)
        records = metrics.measure(samples.x, samples.index(), reference, generated=metrics.made(r))
        print(metrics.table(records), flush=True)
        found, _ = newest(self.runs / job.name)
        recipe = recipes.get(job.recipe)
        result = {
            "recipe": job.recipe,
            "title": recipe.title,
            "paper": recipe.paper,
            "asked": job.asked(self.runs),
            "settings": flatten(model.settings),
            "longer": job.longer,
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "trained": None if found is None else {"steps": found.step, "seconds": found.seconds},
            "sampling": {k: r[k] for k in ("sampler", "grid", "steps", "nfe", "guidance", "clip", "seconds", "batch")}
            | {"milliseconds_per_sample": self.milliseconds(job, model)},
            "records": [record.to_json() for record in records],
            **self.bits(job, model),
            "machine": machine(),
            "version": sf.__version__,
        }
        save_png(image_grid(samples.x[:10], 10, scale=2), self.results / f"{job.name}.png")
        write_bytes(self.results / f"{job.name}.json", to_json(result))


# ------------------------------------------------------------------------------------------------------------- page

COLUMNS = (
    "recipe", "minutes", "Fréchet ↓", "label accuracy ↑", "precision ↑", "recall ↑", "copies ↓", "bits/dim ↓", "VLB ↓",
    "sampler", "NFE", "ms a sample", "training steps",
)  # fmt: skip
SHOWN = ("frechet", "label-accuracy", "precision", "recall", "copy-rate")


def stored(results: Path) -> list[dict[str, Any]]:
    """Every stored result in the table's order, longer budgets after the shared one."""
    found = [json.loads(path.read_text()) | {"name": path.stem} for path in sorted(results.glob("*.json"))]
    order = list(ENTRIES)
    known = [result for result in found if result["recipe"] in order]
    return sorted(known, key=lambda r: (order.index(r["recipe"]), r["asked"]["minutes"]))


def _value(result: Mapping[str, Any], name: str, group: str = "records") -> float:
    return next((r["value"] for r in result[group] if r["name"] == name), float("nan"))


def _number(value: float) -> str:
    return f"{value:.3g}" if value == value else "-"


def legible(result: Mapping[str, Any]) -> bool:
    """Whether the classifier reads what was asked for often enough."""
    return _value(result, "label-accuracy") >= LEGIBLE


def row(result: Mapping[str, Any]) -> list[str]:
    """The cells of one result."""
    s, trained = result["sampling"], result["trained"]
    values = [_value(result, name) for name in SHOWN]
    numbers = [f"{v:.4f}" if name == "label-accuracy" else _number(v) for name, v in zip(SHOWN, values, strict=True)]
    bits = [_number(_value(result, name, "likelihood")) for name in ("bits-per-dim", "bits-per-dim-vlb")]
    return [
        result["recipe"] + ("" if legible(result) else " †"),
        f"{result['asked']['minutes']:g}",
        *numbers,
        *bits,
        f"{s['sampler']}, {s['steps']} steps, guidance {s['guidance']:g}",
        f"{s['nfe']:g}",
        _number(s.get("milliseconds_per_sample", float("nan"))),
        f"{trained['steps']:,}" if trained else "-",
    ]


def page(found: list[dict[str, Any]], picture: str) -> str:
    """The page as markdown."""
    first = found[0]
    asked, where, net = first["asked"], first["machine"], first["settings"]
    floors = {r["name"]: r["floor"] for r in first["records"]}
    floor = [f"{floors[n]:.4f}" if n == "label-accuracy" else _number(floors[n]) for n in SHOWN if n in floors]
    budgets = sorted({r["asked"]["minutes"] for r in found if not r["longer"]})
    lines = [
        "# All recipes, the same minutes",
        "",
        f"Every recipe of the library, trained on {asked['data']} for {' or '.join(f'{b:g}' for b in budgets)} minutes "
        f"with one network (channels {net['channels']}, {net['blocks']} block a stage, {net['patch']}x{net['patch']} "
        f"patches) and, but where it is said below, one optimiser ({SHARED['optimiser']}), on {where['cores']} cores "
        f"({where['cpu']}); then sampled once: {asked['n']} images, labels in turn, seeds from 0, none chosen. "
        "`python benchmarks/recipes.py` makes this page and continues where it stopped.",
        "",
        "Settings come from a demonstration, not from a search for each recipe: three minutes on a small machine rank "
        "how fast a method gets somewhere, not how far it goes. Rows were trained one after another, alone on the "
        "machine; its own speed varies by a quarter from day to day, so the last column says how many steps it made of "
        "the minutes.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "|".join(["---", *["---:"] * 8, "---", *["---:"] * 3]) + "|",
        *(f"| {' | '.join(row(result))} |" for result in found),
        f"| {' | '.join(['real images', '', *floor, *[''] * (len(COLUMNS) - 2 - len(floor))])} |",
        "",
        "Fréchet distance, precision and recall are those of a small digit classifier's features; label accuracy is "
        "the share of samples that it reads as the digit asked for; copies are samples nearer to a training image than "
        f"a held-out image ever is but for 1 %. Bits per dimension are of {asked['images']} test images by the "
        "probability-flow ODE, and the variational bound (a coupled path has none). The bound is that of the reverse "
        "chain, so where the network's score is wrong it may be the smaller of the two "
        "([likelihood](likelihood.md)). NFE: evaluations of the (guided) "
        f"denoiser a sample; ms a sample: the median of three batches of {TIMED}, timed apart.",
    ]
    unread = [r for r in found if not legible(r)]
    if unread:
        lines += ["", f"† label accuracy below {LEGIBLE:g}: not yet legible at this budget."]
    if any(r["longer"] for r in found):
        lines += ["", "## Longer budgets", ""]
        lines += [f"* `{r['recipe']}`, {r['asked']['minutes']:g} minutes: {LONGER[r['recipe']].why}" for r in found
                  if r["longer"] and r["recipe"] in LONGER]  # fmt: skip
    names = ", ".join(f"`{r['name']}`" for r in found)
    lines += ["", "## The first ten samples of each", "", f"![{len(found)} rows of ten digits]({picture})", ""]
    lines += [f"From the top: {names}.", "", "## What each was given", ""]
    for r in found:
        if r["longer"]:
            continue
        own = {k: v for k, v in r["asked"]["settings"].items() if k not in SHARED and k != "teacher"}
        kept = [name for name in ENTRIES[r["recipe"]].own if name in r["settings"]]
        given = [f"{k}={v}" for k, v in own.items()] + [f"{k}={r['settings'][k]} (its own)" for k in kept]
        text = f"; {', '.join(given)}" if given else ""
        refused = f"; no bits per dimension: {r['likelihood_refused']}" if r["likelihood_refused"] else ""
        lines.append(f"* `{r['recipe']}`: {r['title']} ({r['paper']}){text}{refused}")
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], results: Path, path: Path) -> None:
    """The strips of all results under one another, with their names."""
    sheet = stacked([(result["name"], results / f"{result['name']}.png") for result in found], mode="L")
    make_folder(path.parent)
    save_png(sheet, path)


# ------------------------------------------------------------------------------------------------------------- main


def jobs_for(names: list[str], options: argparse.Namespace, extra: Mapping[str, Any]) -> list[Job]:
    """The jobs for some recipes, teachers before their pupils."""

    def job(recipe: str, minutes: float, longer: bool) -> Job:
        return Job(recipe, minutes, longer, options.data, options.seed, options.n, options.images, extra)

    wanted = list(dict.fromkeys(n for name in names for n in (ENTRIES[name].teacher, name) if n))
    jobs = [job(name, options.minutes, False) for name in wanted]
    if options.longer:
        jobs += [job(name, LONGER[name].minutes, True) for name in wanted if name in LONGER]
    return jobs


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--minutes", type=float, default=3.0)
    found.add_argument("--only", default="", help="recipes separated by commas")
    found.add_argument("--no-longer", dest="longer", action="store_false", help="leave out the longer budgets")
    found.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="where runs go")
    found.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "recipes")
    found.add_argument("--page", type=Path, default=ROOT / "docs" / "recipes-table.md")
    found.add_argument("--again", choices=("time", "bits"), help="measure this of stored results again, do no more")
    found.add_argument("--page-only", action="store_true", help="write the page from what is stored")
    found.add_argument("--data", default="mnist")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--n", type=int, default=2000, help="samples of each")
    found.add_argument("--images", type=int, default=128, help="test images for bits per dimension")
    found.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="for all recipes")
    return found


def main(arguments: list[str]) -> int:
    """Run what is missing, then write the page."""
    from sfumato.cli.config import read_pairs

    options = parser().parse_args(arguments)
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(ENTRIES)
    unknown = [name for name in names if name not in ENTRIES]
    if unknown:
        print(f"unknown recipe {unknown[0]!r}; known: {', '.join(ENTRIES)}", file=sys.stderr)
        return 2
    code = 0
    if not options.page_only:
        bench = Bench(sf.data.load(options.data), options.runs, options.results)
        jobs = jobs_for(names, options, read_pairs(options.pairs))
        if options.again is not None:
            again = {"time": bench.retime, "bits": bench.bits_again}[options.again]
            for job in jobs:
                if (bench.results / f"{job.name}.json").exists():
                    again(job)
            jobs = []
        waiting = [job for job in jobs if not bench.done(job)]
        print(
            f"{len(jobs) - len(waiting)} of {len(jobs)} are done; {sum(j.minutes for j in waiting):g} minutes to train"
        )
        for job in waiting:
            try:
                bench.carry_out(job)
            except KeyboardInterrupt as stopped:
                print(f"\nstopped: {stopped or job.name}\nthe same command continues", file=sys.stderr)
                return 130
            except sf.Refusal as refusal:
                print(f"{job.name}: {refusal}", file=sys.stderr)
                code = 1
    found = stored(options.results)
    if found:
        picture = options.page.parent / "pictures" / "recipes.png"
        draw(found, options.results, picture)
        write_bytes(options.page, page(found, "pictures/recipes.png").encode())
        print(f"\nwritten: {options.page}, {picture}")
        read = {r["recipe"] for r in found if legible(r)}
        for name in dict.fromkeys(r["recipe"] for r in found if r["recipe"] not in read):
            print(f"{name}: no budget yet at which label accuracy reaches {LEGIBLE:g}; add one to LONGER")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
