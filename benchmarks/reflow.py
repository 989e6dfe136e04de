"""Reflow: straightness, one-step quality and transport cost, round by round.

    python benchmarks/reflow.py [--iterations 4000] [--rounds 3] [--quick] [--out FILE] [--figure FILE]
    python benchmarks/reflow.py --runs runs/flow runs/reflow-1 runs/reflow-2 ...

Two-dimensional sets: a flow is trained from independent pairs, then again and again on the pairs of the last (Liu et
al. 2022), each round from the weights before it.  ``straightness`` is ``E int |(x1 - x0) - v|^2 dt``, ``cost``
``E |x1 - x0|^2``, ``w2_one_step`` the distance of one Euler step's samples from the data, beside ``w2`` of the whole
ODE and ``w2_floor`` of fresh data.  The figure shows the paths.

With ``--runs`` the same is measured of trained runs of images (straightness, cost, NPE; Fréchet distance and label
accuracy by one Euler step and by ten of Heun), one line a run, in the order given; these runs come from ``sfumato train
reflow``.  A second figure shows what one step makes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from flow_2d import fit, flow
from torch import Tensor

import sfumato as sf
from sfumato import metrics
from sfumato.data import toys
from sfumato.metrics import transport
from sfumato.processes.interpolant import Interpolant
from sfumato.training.couplings import Independent
from sfumato.training.seeds import mix
from sfumato.training.velocity import AtOne

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reflow.json"
FIGURE = HERE.parent / "docs" / "pictures" / "reflow.png"
FLOW = sf.schedules.get("flow")
SETS = ("8gaussians", "moons", "scurve")
#: Pairs of a round, points that are measured, steps of their ODE.
PAIRS, CARRIED, STEPS = 20_000, 2_000, 40


def one_step(model: Any, process: Interpolant, x1: Tensor) -> Tensor:
    """One Euler step."""
    x: Tensor = sf.sample(model, process, sf.samplers.get("euler"), sf.grids.uniform(FLOW, 1), x1)
    return x


def study(name: str, rounds: int, iterations: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """The measures of every round, and some of its paths ``[steps + 1, n, 2]``."""
    process = Interpolant(FLOW)
    model = flow(process, seed, width=128)
    start, fresh, other = (
        toys.sample(what, CARRIED, mix(seed, "test", k)).float() for k, what in enumerate(("gaussian", name, name))
    )
    floor = transport.wasserstein2_squared(other, fresh) ** 0.5
    x0, x1, rows, paths = toys.sample(name, PAIRS, mix(seed, "data")).float(), None, [], []
    for k in range(1, rounds + 1):
        fit(model, x0, x1, Independent() if x1 is None else None, iterations, mix(seed, "round", k))
        moved = transport.walk(model, process, start, steps=STEPS)
        rows.append(
            {
                "set": name,
                "round": k,
                "straightness": float(moved.straightness.mean()),
                "cost": float(moved.cost.mean()),
                "w2_one_step": transport.wasserstein2_squared(one_step(model, process, start), fresh) ** 0.5,
                "w2": transport.wasserstein2_squared(moved.x0, fresh) ** 0.5,
                "w2_floor": floor,
            }
        )
        with torch.no_grad():
            grid = sf.grids.uniform(FLOW, STEPS)
            walk = sf.trajectory(model, process, sf.samplers.get("heun"), grid, start[:120])
            paths.append(torch.stack(list(walk)))
        x1 = toys.sample("gaussian", PAIRS, mix(seed, "noise", k)).float()  # fresh noise for every round
        x0 = transport.walk(model, process, x1, steps=STEPS).x0
    return rows, paths


def draw(results: dict[str, tuple[list[dict[str, Any]], list[Tensor]]], target: Path) -> None:
    """Paths of every set and round, with their measures."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rounds = max(len(paths) for _, paths in results.values())
    figure, axes = plt.subplots(len(results), rounds, figsize=(3.2 * rounds, 3.2 * len(results)), squeeze=False)
    for line, (name, (rows, paths)) in zip(axes, results.items(), strict=True):
        for axis, row, path in zip(line, rows, paths, strict=True):
            axis.plot(path[:, :, 0].numpy(), path[:, :, 1].numpy(), color="#3b6ea5", lw=0.5, alpha=0.5)
            axis.scatter(*path[0].T.numpy(), s=3, color="#888888")
            axis.scatter(*path[-1].T.numpy(), s=3, color="#c0392b")
            axis.set_title(
                f"{name}, flow {row['round']}\nstraightness {row['straightness']:.3f}, "
                f"one step W2 {row['w2_one_step']:.2f}",
                fontsize=8,
            )
            axis.set_aspect("equal")
            axis.axis("off")
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def many(model: Any) -> bool:
    """Whether a model may be sampled by many steps (one that was distilled may not)."""
    return not isinstance(model.times, AtOne)


def quality(model: Any, n: int) -> dict[str, float]:
    """Fréchet distance and label accuracy of ``n`` images by one Euler step and by ten of Heun, unguided, as pairs are;
    a model distilled to one step takes no more."""
    data, found = sf.data.load(model.data["name"]), {}
    label = list(model.classes) or None
    for name, sampler, steps in (("one_step", "euler", 1), ("ten_steps", "heun", 10)):
        if steps > 1 and not many(model):
            continue
        samples = model.sample(n, label=label, guidance=1.0, sampler=sampler, grid="uniform", steps=steps, seed=0)
        records = metrics.evaluate(samples.x, samples.index(), data, generated=metrics.made(samples.record))
        values = {record.name: record.value for record in records}
        found |= {f"{key}_{name}": values[key] for key in ("frechet", "label-accuracy") if key in values}
    return found


def draw_runs(runs: list[Path], target: Path) -> None:
    """The first ten digits of every run by one Euler step, one run a row, seeds from 0."""
    from sfumato.data.grid import image_grid
    from sfumato.training.pictures import save_png

    strips = []
    for run in runs:
        model = sf.load(run)
        label = list(model.classes) or None
        strips.append(model.sample(10, label=label, guidance=1.0, sampler="euler", grid="uniform", steps=1, seed=0).x)
    save_png(image_grid(torch.cat(strips), 10, scale=2), target)


def measure_runs(runs: list[Path], n: int, images: int) -> list[dict[str, Any]]:
    """Straightness, cost and NPE of trained runs, and their quality by one step and by ten."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        model = sf.load(run)
        straight = {record.name: record.value for record in transport.measure(model, n=n)} if many(model) else {}
        rows.append({"run": run.name} | straight | quality(model, images) | {"n": n, "images": images})
        print(
            "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in rows[-1].items()
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a smoke test: 100 iterations, one set")
    parser.add_argument("--runs", type=Path, nargs="+", help="measure these trained runs instead")
    parser.add_argument("--n", type=int, default=256, help="paths of each run")
    parser.add_argument("--images", type=int, default=2000, help="samples of each run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    stored: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.runs:
        stored["runs"] = measure_runs(arguments.runs, arguments.n, arguments.images)
        draw_runs(arguments.runs, arguments.figure.with_name("reflow-mnist.png"))
    else:
        iterations = 100 if arguments.quick else arguments.iterations
        results = {}
        for name in SETS[:1] if arguments.quick else SETS:
            results[name] = study(name, arguments.rounds, iterations)
            for row in results[name][0]:
                print(
                    "  ".join(
                        f"{key} {value:.3f}" if isinstance(value, float) else f"{value}" for key, value in row.items()
                    )
                )
        stored["sets"] = [row for rows, _ in results.values() for row in rows]
        stored["protocol"] = {"iterations": iterations, "pairs": PAIRS, "carried": CARRIED, "steps": STEPS}
        draw(results, arguments.figure)
        print(f"written to {arguments.figure}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
