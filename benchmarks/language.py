"""One text, one network, equally many tokens seen: autoregressive and diffusion language models beside one another.

    python benchmarks/language.py [--steps 1500] [--only mdlm,sedd] [--runs DIR]

Every method is trained with the same transformer (but for its attention mask and what it is told of the time), the same
optimiser, the same batches for the same number of steps, then measured: bits per character of held-out text (exact for
the autoregressive model, a bound for the others), text statistics of samples at several numbers of steps, and seconds
per sampled character.  Each is stored when it is done, as ``results/language/NAME.json``; the same command continues
where it stopped and writes the page from what is stored.  Nothing is chosen: seeds from 0, drawn once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes import machine

import sfumato as sf
from sfumato import metrics
from sfumato.likelihood.text import bits_per_character
from sfumato.metrics.text import evaluate_text
from sfumato.training.checkpoint import newest
from sfumato.training.composition import allowed_steps
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.monitor import read_log
from sfumato.training.settings import flatten

ROOT = Path(__file__).resolve().parents[1]
#: Numbers of sampling steps that are shown.
STEPS = (8, 32, 128)


@dataclass(frozen=True)
class Entry:
    """A method: its recipe and its own settings; ``bound``: whether its training loss is in nats of the text."""

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    bound: bool = True


#: In the order of the table: the published order of their likelihoods, best first.
ENTRIES: dict[str, Entry] = {
    "autoregressive": Entry("autoregressive"),
    "block-diffusion": Entry("block-diffusion", {"block": 16}),
    "mdlm": Entry("mdlm"),
    "sedd": Entry("sedd", {"kernel": "absorb"}),
    "d3pm-absorb": Entry("d3pm", {"kernel": "absorb"}, bound=False),
    "discrete-flow": Entry("discrete-flow", {"source": "mask"}, bound=False),
    "d3pm-uniform": Entry("d3pm", {"kernel": "uniform"}),
    "discrete-flow-uniform": Entry("discrete-flow", {"source": "uniform"}, bound=False),
    "diffusion-lm": Entry("diffusion-lm", bound=False),
    "latent-text": Entry("latent-text", bound=False),
}
#: What was published on text8 in bits per character, the best first: groups of equals (Austin et al. 2021; Lou et al.
#: 2024; Sahoo et al. 2024).
PUBLISHED = (("autoregressive",), ("sedd", "mdlm"), ("d3pm-absorb",), ("d3pm-uniform",))
#: Who keeps the keys and values of what is read; every step of the others computes all of the text.
REMEMBERING = ("autoregressive", "block-diffusion")
#: What all are given.
SHARED: dict[str, Any] = {"reports": 4, "grid_columns": 0, "validation_images": 64}


@dataclass(frozen=True)
class Study:
    """How all are trained and measured."""

    steps: int
    data: str
    seed: int
    n: int
    windows: int
    extra: Mapping[str, Any]

    def asked(self, name: str) -> dict[str, Any]:
        """All that decides a result."""
        entry = ENTRIES[name]
        given = SHARED | dict(entry.settings) | dict(self.extra)
        asked = {
            "recipe": entry.recipe, "steps": self.steps, "data": self.data, "seed": self.seed, "n": self.n,
            "windows": self.windows, "settings": given,
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(asked))
        return plain


def carry_out(study: Study, name: str, runs: Path, results: Path) -> None:
    """Train, measure, store."""
    asked, run = study.asked(name), runs / name
    print(f"\n== {name}: {study.steps} steps", flush=True)
    model = sf.train(
        asked["recipe"], study.data, steps=study.steps, out=run, seed=study.seed,
        resume=(run / "config.json").exists(), **asked["settings"],
    )  # fmt: skip
    data = sf.data.load(study.data).prepared(model.settings)
    windows = min(study.windows, len(data.held_out))
    bits = None if model.parts.likelihood is None else bits_per_character(model, data, windows)
    sampled = []
    for steps in dict.fromkeys(allowed_steps(model.parts, steps) for steps in STEPS):
        began = time.perf_counter()
        samples = model.sample(study.n, steps=steps, seed=0, batch=16)
        seconds = time.perf_counter() - began
        records = evaluate_text(list(samples), data, generated=metrics.made(samples.record))
        characters = sum(len(text) for text in samples)
        sampled.append({
            "steps": steps, "nfe": samples.record["nfe"], "seconds": seconds,
            "microseconds_per_character": 1e6 * seconds / characters,
            "records": [record.to_json() for record in records], "first": samples[0],
        })  # fmt: skip
        print(f"   {steps} steps, {1e6 * seconds / characters:.0f} us a character: {samples[0][:70]!r}", flush=True)
    found, _ = newest(run)
    curve = [[line["step"], line["loss"]] for line in read_log(run / "log.jsonl") if line["kind"] == "validation"]
    settings = model.settings
    result = {
        "name": name,
        "asked": asked,
        "settings": flatten(settings),
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "tokens": study.steps * settings.optimisation.batch * settings.reading.length,
        "trained": None if found is None else {"steps": found.step, "seconds": found.seconds},
        "bits": None if bits is None else bits.to_json(),
        "curve": curve,
        "sampled": sampled,
        "machine": machine(),
        "version": sf.__version__,
    }
    write_bytes(results / f"{name}.json", to_json(result))


# ------------------------------------------------------------------------------------------------------------- page

COLUMNS = (
    "method", "bits/character ↓", "which", "parameters", "training s", "steps", "NFE", "µs/character ↓",
    "known words ↑", "distinct words", "copied 8-grams ↓",
)  # fmt: skip


def stored(results: Path) -> list[dict[str, Any]]:
    """Every stored result, in the table's order."""
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    return [found[name] for name in ENTRIES if name in found]


def _value(records: list[dict[str, Any]], name: str) -> str:
    return next((f"{r['value']:.3f}" for r in records if r["name"] == name), "-")


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A row for every number of steps; what does not depend on them is in the first."""
    bits, trained = result["bits"], result["trained"]
    error = None if bits is None else bits["settings"]["standard_error"]
    head = [
        result["name"],
        "-" if bits is None else f"{bits['value']:.3f}" + ("" if error is None else f" ± {error:.3f}"),
        "none stated" if bits is None else bits["sampler"],
        f"{result['parameters']:,}",
        f"{trained['seconds']:.0f}",
    ]
    table = []
    for k, sampled in enumerate(result["sampled"]):
        records = sampled["records"]
        table.append([
            *(head if k == 0 else [""] * len(head)),
            str(sampled["steps"]), f"{sampled['nfe']:g}", f"{sampled['microseconds_per_character']:.0f}",
            _value(records, "known-words"), _value(records, "distinct-words"), _value(records, "copied-8-grams"),
        ])  # fmt: skip
    return table


def orders(found: list[dict[str, Any]]) -> str:
    """The published order beside the measured one, of those methods that have both."""
    told = " < ".join(" ~ ".join(group) for group in PUBLISHED)
    named = {name for group in PUBLISHED for name in group}
    measured = sorted((r["bits"]["value"], r["name"]) for r in found if r["bits"] is not None and r["name"] in named)
    ours = " < ".join(f"{name} ({value:.3f})" for value, name in measured)
    return f"In order of bits per character: published, on text8 by larger networks, {told}; here {ours}."


def page(found: list[dict[str, Any]], picture: str) -> str:
    """The page as markdown."""
    first = found[0]
    asked, settings, where = first["asked"], first["settings"], first["machine"]
    floors = {r["name"]: r["floor"] for r in first["sampled"][0]["records"]}
    real = [f"{floors[n]:.3f}" if n in floors else "" for n in ("known-words", "distinct-words", "copied-8-grams")]
    lines = [
        "# Language models, the same tokens",
        "",
        f"Every method on {asked['data']}, with one transformer (width {settings['width']}, {settings['depth']} "
        f"layers, {settings['length']} {settings['tokenizer']}), {asked['steps']:,} steps of {settings['batch']} "
        f"texts: {first['tokens']:,} tokens, on {where['cores']} cores ({where['cpu']}). "
        "Parameters differ by what a network is told of the time, and by embeddings, encoders and decoders. "
        "`python benchmarks/language.py` makes this page and continues where it stopped.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "|".join(["---", "---:", "---", *["---:"] * 8]) + "|",
        *(f"| {' | '.join(row)} |" for result in found for row in rows(result)),
        f"| {' | '.join(['held-out text', *[''] * 7, *real])} |",
        "",
        f"Bits per character: {asked['windows']} windows of held-out text, each without context; *exact* for the "
        "autoregressive model, *NELBO* is an upper bound. Samples: "
        f"{asked['n']} texts, temperature 1, seeds from 0, none rejected; seconds in batches of 16. "
        f"{' and '.join(REMEMBERING)} keep the keys and values of what is read; every step of the others computes all "
        "of the text. The picture shows the losses that are bounds.",
        "",
        orders(found),
        "",
        f"![Held-out loss over steps]({picture})",
        "",
        "## The first sample of each",
    ]
    for result in found:
        for sampled in result["sampled"]:
            lines += ["", f"`{result['name']}`, {sampled['steps']} steps:", "", "```text", sampled["first"], "```"]
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Held-out losses over steps."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for result in found:
        if ENTRIES[result["name"]].bound:
            axes.plot(*zip(*result["curve"], strict=True), "o-", ms=3, label=result["name"])
    axes.set(xlabel="step", ylabel="held-out loss, nats per token")
    axes.legend(frameon=False, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    make_folder(path.parent)
    write_bytes(path, image.getvalue())


# ------------------------------------------------------------------------------------------------------------- main


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--steps", type=int, default=1500)
    found.add_argument("--only", default="", help="methods separated by commas")
    found.add_argument("--runs", type=Path, default=Path("runs/language"), help="where runs go")
    found.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "language")
    found.add_argument("--page", type=Path, default=ROOT / "docs" / "language-table.md")
    found.add_argument("--page-only", action="store_true", help="write the page from what is stored")
    found.add_argument("--data", default="shakespeare")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--n", type=int, default=64, help="texts of each")
    found.add_argument("--windows", type=int, default=256, help="held-out windows for bits per character")
    found.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="for all methods")
    return found


def main(arguments: list[str]) -> int:
    """Run what is missing, then write the page."""
    from sfumato.cli.config import read_pairs

    options = parser().parse_args(arguments)
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(ENTRIES)
    unknown = [name for name in names if name not in ENTRIES]
    if unknown:
        print(f"unknown method {unknown[0]!r}; known: {', '.join(ENTRIES)}", file=sys.stderr)
        return 2
    results = make_folder(options.results)
    extra = read_pairs(options.pairs)
    study = Study(options.steps, options.data, options.seed, options.n, options.windows, extra)
    if not options.page_only:
        runs = make_folder(options.runs)
        for name in names:
            path = results / f"{name}.json"
            if path.exists() and json.loads(path.read_text())["asked"] == study.asked(name):
                continue
            try:
                carry_out(study, name, runs, results)
            except KeyboardInterrupt as stopped:
                print(f"\nstopped: {stopped or name}\nthe same command continues", file=sys.stderr)
                return 130
            except sf.Refusal as refusal:
                print(f"{name}: {refusal}", file=sys.stderr)
                return 1
    found = stored(results)
    if found:
        picture = options.page.parent / "pictures" / "language.png"
        draw(found, picture)
        write_bytes(options.page, page(found, "pictures/language.png").encode())
        print(f"\nwritten: {options.page}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
