"""Digits out of blurs and coarse pixels: cold diffusion and inverse heat dissipation, trained, measured and shown.

    python benchmarks/restored.py [--minutes 10] [--only cold-blur,heat] [--runs DIR] [--n 1000]

Each run is stored when it is done, as ``results/restored/NAME.json`` and pictures under ``docs/pictures``; the same
command continues where it stopped.  Nothing is chosen: labels in turn, seeds from 0, drawn once.  Pictures: how one
sample of every class comes out of a draw of the fitted prior; the first ten samples of every class; ten held-out
digits, what is left of them at ``t = 1``, and what the model restores from that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from sfumato import metrics, presets
from sfumato.bakeoff.parts import machine
from sfumato.data.grid import image_grid
from sfumato.training.checkpoint import newest
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.pictures import save_png
from sfumato.training.sampling import plan
from sfumato.training.settings import flatten

ROOT = Path(__file__).resolve().parents[1]
#: Recipes and what they are given beside the preset ``small``.
RUNS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "cold-blur": ("cold", {"degradation": "blur:width=6"}),
    "cold-pixelate": ("cold", {"degradation": "pixelate:coarsest=4", "directions": 16}),
    "heat": ("heat", {}),
}


def walked(model: Any, columns: int = 10) -> Any:
    """How one sample of every class comes about: a row each, from the prior to the image."""
    frames: list[torch.Tensor] = []

    def watch(step: int, steps: int, x: torch.Tensor) -> None:
        if step in {round(k * steps / (columns - 1)) for k in range(columns)}:
            frames.append(model.decode(x.clone()))

    model.sample(len(model.classes), label=list(model.classes), seed=0, watch=watch)
    return image_grid(torch.stack(frames, 1).flatten(0, 1), len(frames), scale=2)


def restored(model: Any, data: Any) -> Any:
    """A held-out image of every class, what is left of it at ``t = 1``, and what comes back: three rows."""
    label = torch.arange(len(data.classes))
    first = [int((data.test.label == k).nonzero()[0]) for k in label]
    x0, rng = model.transform.encode(data.test.x[first]), sf.Streams(range(len(first)))
    left = model.process.marginal(x0, 1.0).draw(rng)
    job = plan(model, len(first), list(model.classes))
    with torch.no_grad():
        back = sf.sample(model.denoiser, model.process, job.sampler, job.times, left, cond={"label": label}, rng=rng)
    return image_grid(torch.cat([model.decode(x) for x in (x0, left, back)]), len(first), scale=2)


def carry_out(name: str, options: argparse.Namespace) -> None:
    """Train, sample, measure, draw, store."""
    recipe, given = RUNS[name]
    print(f"\n== {name}: {options.minutes:g} minutes", flush=True)
    data, run = sf.data.load(options.data), make_folder(options.runs) / name
    there = (run / "config.json").exists()
    settings = presets.get("small") | dict(given)
    model = sf.train(recipe, data, minutes=options.minutes, out=run, resume=there, seed=0, **settings)
    samples = model.sample(options.n, label=list(model.classes), seed=0)
    records = metrics.evaluate(samples.x, samples.index(), data, generated=metrics.made(samples.record))
    print(metrics.table(records), flush=True)
    found, _ = newest(run)
    result = {
        "name": name, "recipe": recipe, "minutes": options.minutes, "data": options.data, "n": options.n,
        "settings": flatten(model.settings), "parameters": sum(p.numel() for p in model.net.parameters()),
        "trained": None if found is None else {"steps": found.step, "seconds": found.seconds},
        "sampling": {k: samples.record[k] for k in ("sampler", "grid", "steps", "nfe", "guidance", "seconds")},
        "records": [record.to_json() for record in records], "machine": machine(), "version": sf.__version__,
    }  # fmt: skip
    pictures = {
        "walk": walked(model),
        "samples": image_grid(samples.ordered()[_first(samples, 10)], 10, scale=2),
        "restored": restored(model, data),
    }
    for what, picture in pictures.items():
        save_png(picture, make_folder(options.pictures) / f"{name}-{what}.png")
    write_bytes(make_folder(options.results) / f"{name}.json", to_json(result))


def _first(samples: Any, count: int) -> list[int]:
    """The places of the first samples of every class, class by class."""
    per_class = samples.columns()
    return [row * per_class + k for row in range(len(samples.classes)) for k in range(min(count, per_class))]


def table(results: Path) -> str:
    """What is stored, as markdown."""
    columns = ("frechet", "label-accuracy", "precision", "recall", "copy-rate")
    lines = [f"| run | {' | '.join(columns)} | sampler | NFE | steps |", "|---" * (len(columns) + 4) + "|"]
    for name in RUNS:
        path = results / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        values = {record["name"]: record["value"] for record in result["records"]}
        cells = [f"{values[c]:.3g}" if c in values else "-" for c in columns]
        s = result["sampling"]
        lines.append(f"| {name} | {' | '.join(cells)} | {s['sampler']} | {s['nfe']:g} | {result['trained']['steps']} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", default="", help="runs separated by commas")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--n", type=int, default=1000, help="samples of each")
    parser.add_argument("--runs", type=Path, default=Path("runs/restored"), help="where runs go")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "restored")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(RUNS)
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        print(f"unknown run {unknown[0]!r}; known: {', '.join(RUNS)}", file=sys.stderr)
        return 2
    for name in names:
        if not (options.results / f"{name}.json").exists():
            carry_out(name, options)
    print(table(options.results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
