"""Accuracy per evaluation: every deterministic solver here, in diffusers, azula and k-diffusion on exact mixtures.

    python benchmarks/solver_accuracy.py [--page-only]        (pip install 'sfumato[bench]' azula k-diffusion)

What is compared.  The model is exact: the posterior mean of a Gaussian mixture, in float64.  Every contestant starts
from the same noise and walks the same path (DDPM's linear table, the variance-exploding path to sigma 80, the straight
path of flows) with at most the given number of evaluations (NFE); its error is the mean distance to the exact end of
the probability-flow ODE from that noise, divided by the root mean square norm of those ends.  All of them run in one
process and take turns, number by number.

* **auto**: what ``sampler="auto"`` picks from (NFE, schedule, guidance) alone: one rule, nothing chosen afterwards
* **ours, best**: the best of our registered solvers x grids, chosen after the fact, cell by cell
* **theirs, best**: the best of all peers' solvers x grids, chosen in the same way; see ``solver_peers.py``

Every mixture x schedule is stored in ``results/solver_accuracy.json`` when it is done: the same command continues where
it stopped, and starts anew when a contestant or a version has changed.  At the end, and with ``--page-only``, it writes
the table of ``docs/solver-accuracy.md`` from what is stored.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solver_contestants import BATCH, Contestant, Problem, ours, pose
from solver_peers import from_azula, from_diffusers, from_k_diffusion

import sfumato as sf
from sfumato import spec
from sfumato.errors import Refusal
from sfumato.oracles import GaussianMixture
from sfumato.oracles.problems import held_out, three_modes, unequal
from sfumato.samplers.auto import choose

#: The two that solvers are measured on by name, and two that no rule was ever scored on before.
NAMED: dict[str, Callable[[], GaussianMixture]] = {"3 modes, 2-D": three_modes, "4 modes, 64-D": unequal}
MIXTURES: dict[str, GaussianMixture] = {name: make() for name, make in NAMED.items()} | held_out()
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "solver_accuracy.json"
PAGE = ROOT / "docs" / "solver-accuracy.md"
EVALUATIONS = (6, 8, 10, 15, 20)
SCHEDULES = ("linear", "karras", "flow")
#: Ratios up to this are even: the same update on the same levels, some tables of which are float32.
EVEN = 1.0005
PACKAGES = ("torch", "diffusers", "azula", "k-diffusion")

# ---------------------------------------------------------------------------------------------------------- measuring


def measure(problem: Problem, nfe: int, contestants: list[Contestant]) -> dict[str, Any]:
    """One cell: the best of each kind, the twelve best of all, and the peers that raised an error of their own."""
    rows, failed = [], []
    for rival in contestants:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, about settings they change
            try:
                x = rival.run(problem, nfe)
            except (ArithmeticError, IndexError, RuntimeError, ValueError) as failure:
                if rival.library == "sfumato":
                    raise
                x = failed.append(f"{rival.name}: {failure}")
        error = math.nan if x is None else problem.error(x)
        if math.isfinite(error):
            row = {"library": rival.library, "solver": rival.solver, "grid": rival.grid, "error": error}
            rows.append(row | {"offered": rival.offered})
    rows.sort(key=lambda row: row["error"])
    choice = choose(problem.process.schedule, nfe)
    rule = f"{spec.text(choice.sampler, choice.settings)} [{spec.text(choice.grid, choice.grid_settings)}]"
    cell = {"mixture": problem.mixture, "schedule": problem.schedule, "nfe": nfe, "contestants": len(rows)}
    cell |= {"rule": rule, "failed": failed}
    return cell | {"best": summary(rows), "first": rows[:12]}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of each kind among ``rows``, sorted by error."""
    fixed = [row for row in rows if row["solver"] != "auto"]
    theirs = [row for row in fixed if row["library"] != "sfumato"]
    best = {
        "auto": next(row for row in rows if row["solver"] == "auto"),
        "ours": next(row for row in fixed if row["library"] == "sfumato"),
        "theirs": theirs[0],
        "theirs, offered": next(row for row in theirs if row["offered"]),
    }
    for library in sorted({row["library"] for row in theirs}):
        best[library] = next(row for row in theirs if row["library"] == library)
    return best


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def blank(contestants: list[Contestant]) -> dict[str, Any]:
    """The record before any cell; ``study`` changes with every contestant, version and setting."""
    versions = {"sfumato": sf.__version__} | {name: version(name) for name in PACKAGES}
    what = [sorted(rival.name for rival in contestants), versions, BATCH, EVALUATIONS]
    return {
        "study": hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16],
        "batch": BATCH,
        "seed": 0,
        "measure": "mean distance to the exact ODE end over the root mean square norm of the ends",
        "versions": versions,
        "seconds": 0.0,
        "cells": [],
    }


def store(record: dict[str, Any], out: Path) -> None:
    """Whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(out)


def run(mixtures: list[str], schedules: list[str], evaluations: list[int], out: Path) -> dict[str, Any]:
    """Every mixture x schedule that ``out`` does not hold yet; stored after each."""
    contestants = [*ours(), *from_diffusers(), *from_k_diffusion(), *from_azula()]
    record = blank(contestants)
    if out.exists():
        found = json.loads(out.read_text())
        record = found if found.get("study") == record["study"] else record
    done = {(cell["mixture"], cell["schedule"], cell["nfe"]) for cell in record["cells"]}
    wanted = [(m, s) for m in mixtures for s in schedules]
    left = sum((m, s, n) not in done for m, s in wanted for n in evaluations)
    print(f"{len(contestants)} contestants, {left} of {len(wanted) * len(evaluations)} cells to do", flush=True)
    for mixture, schedule in wanted:
        asked = [n for n in evaluations if (mixture, schedule, n) not in done]
        if not asked:
            continue
        problem = pose(mixture, MIXTURES[mixture], schedule)
        for nfe in asked:
            began = time.perf_counter()
            cell = measure(problem, nfe, contestants)
            record["cells"].append(cell)
            record["seconds"] += (spent := time.perf_counter() - began)
            left -= 1
            best = cell["best"]
            line = ", ".join(f"{kind} {best[kind]['error']:.2e}" for kind in ("auto", "ours", "theirs"))
            print(f"{mixture}, {schedule}, NFE {nfe}: {line} ({spent:.0f} s; {left} cells left)", flush=True)
        order = [(m, s, n) for m in MIXTURES for s in SCHEDULES for n in EVALUATIONS]
        record["cells"].sort(key=lambda cell: order.index((cell["mixture"], cell["schedule"], cell["nfe"])))
        store(record, out)
    return record


# --------------------------------------------------------------------------------------------------------------- page

#: What the script writes on the page stands under this line; what stands above it is written by hand.
HEADING = "## What was measured\n"
PREFACE = """
This section is written by `python benchmarks/solver_accuracy.py`.  The model is the exact posterior mean of a Gaussian
mixture, in float64.  The error is the mean distance, over {batch} starts, to the exact end of the probability-flow ODE
from the same noise, divided by the root mean square norm of those ends, with at most NFE evaluations.

*Auto* is the rule above.  *Ours, best* and *theirs, best* are each the best of all solvers and grids, chosen after the
fact in every cell, among some {contestants} contestants ({versions}).
Ours are what `--sampler` and `--grid` take, as they stand in the table.
A ratio below 1 means that our error is the smaller one.  In 64 dimensions a single start that ends in another mode
moves the mean by 5e-3.  The first table counts the cells in which our error is no larger than theirs.

Peers are as strong as we could make them: no evaluation goes into a step of no length, and beside its own grids every
solver that takes levels gets common ones and our `shifted` (shift, rho); *given* means levels written over a
scheduler's own table.  A grid ends in 0, or where it says so in a last level that is above 0.  Some peers are ours by
another name: azula's vAB k is `adams:predictor=k:corrector=0`, its zAB k `lms:p=k`, its zEAB k
`dpm-solver:p=k:method=multistep` but for the start of the third order.

"""


def page(record: dict[str, Any]) -> str:
    """The section as Markdown."""
    cells = record["cells"]
    most = max((cell["contestants"] for cell in cells), default=0)
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    preface = PREFACE.format(batch=record["batch"], contestants=most, versions=versions)
    return preface + scores(cells) + "\n" + table(cells)


def write(record: dict[str, Any], place: Path) -> None:
    """The section into its page; raises :class:`Refusal` where the page has no place for it."""
    above, heading, _ = place.read_text().partition(HEADING)
    if not heading:
        raise Refusal(f"{place} has no line {HEADING.strip()!r}; put it where the table belongs")
    place.write_text(above + heading + page(record))


def ratio(cell: dict[str, Any], ours: str, theirs: str = "theirs") -> float:
    best = cell["best"]
    return float(best[ours]["error"] / best[theirs]["error"])


def scores(cells: list[dict[str, Any]]) -> str:
    """By mixture: the cells in which the error is no larger than the best peer's, the mean ratio and the largest; then
    the same against peers on the grids of their own library alone.
    """
    kinds = [(ours, theirs) for theirs in ("theirs", "theirs, offered") for ours in ("auto", "ours")]
    titles = ("auto", "ours, best", "auto, their own grids", "ours, best, their own grids")
    lines = ["| mixture | cells | " + " | ".join(f"{title} | mean | worst" for title in titles) + " |"]
    lines.append("|---|" + "---:|" * (1 + 3 * len(titles)))
    for name in [*MIXTURES, "all"]:
        own = [cell for cell in cells if name in (cell["mixture"], "all")]
        if not own:
            continue
        row = [name, str(len(own))]
        for kind in kinds:
            found = [ratio(cell, *kind) for cell in own]
            mean = math.exp(sum(map(math.log, found)) / len(found))
            row += [str(sum(r <= EVEN for r in found)), f"{mean:.2f}", f"{max(found):.2f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def table(cells: list[dict[str, Any]]) -> str:
    """One line a cell."""
    heads = ("mixture", "schedule", "NFE", "auto", "its rule", "ours, best", "which", "theirs, best", "which")
    lines = ["| " + " | ".join((*heads, "auto / theirs", "best / theirs")) + " |"]
    lines.append("|---|---|---:|---:|---|---:|---|---:|---|---:|---:|")
    for cell in cells:
        auto, own, peer = (cell["best"][kind] for kind in ("auto", "ours", "theirs"))
        row = [cell["mixture"], cell["schedule"], str(cell["nfe"]), f"{auto['error']:.2e}", cell["rule"]]
        row += [f"{own['error']:.2e}", f"{own['solver']} [{own['grid']}]"]
        row += [f"{peer['error']:.2e}", f"{peer['library']} {peer['solver']} [{peer['grid']}]"]
        row += [f"{ratio(cell, kind):.2f}" for kind in ("auto", "ours")]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", nargs="*", default=list(MIXTURES), choices=list(MIXTURES), help="these only")
    parser.add_argument("--schedules", nargs="*", default=list(SCHEDULES), choices=list(SCHEDULES), help="these only")
    parser.add_argument("--nfe", nargs="*", type=int, default=list(EVALUATIONS), choices=EVALUATIONS, help="these only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--page-only", action="store_true", help="write the page from what is stored")
    options = parser.parse_args()
    if options.page_only:
        record = json.loads(options.out.read_text())
    else:
        record = run(options.mixtures, options.schedules, options.nfe, options.out)
    print("\n" + scores(record["cells"]) + "\n" + table(record["cells"]))
    write(record, options.page)
    print(f"written: {options.page}")


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        raise SystemExit(f"error: {refusal}") from None
