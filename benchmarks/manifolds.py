"""Flow matching on a torus, a sphere and SO(3): trained, measured, drawn beside the data.

    python benchmarks/manifolds.py [--minutes 2] [--runs DIR] [--n 1500]

``w2`` is the Wasserstein distance in geodesic length between ``n`` samples and ``n`` held-out points, ``floor`` that
between two draws of the data, ``prior`` that of the uniform law.  The same command continues where it stopped, and
writes ``results/manifolds.json`` and ``docs/pictures/manifolds.png``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from sfumato.bakeoff.parts import machine
from sfumato.data import manifolds
from sfumato.data.points import plane
from sfumato.training.checkpoint import newest
from sfumato.training.couplings import exact_plan
from sfumato.training.files import make_folder, to_json, write_bytes

ROOT = Path(__file__).resolve().parents[1]


def wasserstein(space: Any, a: Tensor, b: Tensor) -> float:
    """``W2`` in geodesic length, by optimal transport between the points themselves."""
    cost = torch.stack([space.distance(row.expand(b.shape), b) for row in a]).double() ** 2
    return float((exact_plan(cost) * cost).sum()) ** 0.5


def study(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[Tensor]]:
    """Train on one set; its measures, and what is drawn: data, samples."""
    run = make_folder(options.runs) / name
    there = (run / "config.json").exists()
    model = sf.train("geodesic", name, minutes=options.minutes, out=run, resume=there, seed=0)
    space, n = manifolds.space(name), options.n
    samples = model.sample(n, seed=0)
    fresh, other = (manifolds.sample(name, n, sf.Stream(seed)).double() for seed in (101, 102))
    prior = model.process.prior(torch.zeros_like(fresh)).draw(sf.Streams(range(n)))
    found, _ = newest(run)
    row = {
        "data": name, "space": type(space).__name__, "minutes": options.minutes, "n": n,
        "w2": wasserstein(space, samples.x.double(), fresh),
        "floor": wasserstein(space, other, fresh),
        "prior": wasserstein(space, prior, fresh),
        "nfe": samples.record["nfe"], "sampler": samples.record["sampler"],
        "trained": None if found is None else {"steps": found.step, "seconds": found.seconds},
    }  # fmt: skip
    print(f"{name}: W2 {row['w2']:.3f}, two draws of the data {row['floor']:.3f}, uniform {row['prior']:.3f}")
    return row, [fresh, samples.x.double()]


def draw(shown: dict[str, list[Tensor]], target: Path) -> None:
    """Data above, samples below."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(shown), figsize=(4 * len(shown), 6.4), squeeze=False, layout="constrained")
    for column, (name, both) in zip(axes.T, shown.items(), strict=True):
        for axis, x, what in zip(column, both, ("data", "samples"), strict=True):
            xy, names, limits = plane(x.numpy())
            axis.plot(xy[:, 0], xy[:, 1], ".", ms=2, alpha=0.5, color="#3b6ea5" if what == "data" else "#c0392b")
            axis.set(title=f"{name}: {what}", xlabel=names[0], ylabel=names[1])
            axis.set(xlim=(-limits[0], limits[0]), ylim=(-limits[1], limits[1]), aspect="equal")
    make_folder(target.parent)
    figure.savefig(target, dpi=90)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    """Train, measure, draw, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--n", type=int, default=1500, help="points that are compared")
    parser.add_argument("--runs", type=Path, default=Path("runs/manifolds"), help="where runs go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "manifolds.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "pictures" / "manifolds.png")
    options = parser.parse_args(arguments)
    found = {name: study(name, options) for name in manifolds.names()}
    draw({name: both for name, (_, both) in found.items()}, options.figure)
    rows = [row for row, _ in found.values()]
    write_bytes(options.out, to_json({"rows": rows, "machine": machine(), "version": sf.__version__}))
    print(f"written: {options.out}, {options.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
