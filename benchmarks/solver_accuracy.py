"""Accuracy per evaluation: every deterministic solver here, in diffusers, azula and k-diffusion on exact mixtures.

    python benchmarks/solver_accuracy.py [--quick]        (pip install 'sfumato[bench]')

What is compared.  The model is exact: the posterior mean of a Gaussian mixture, in float64.  Every contestant starts
from the same noise and walks the same path (DDPM's linear table, the variance-exploding path to sigma 80, the straight
path of flows) with at most the given number of evaluations (NFE); its error is the mean distance to the exact end of
the probability-flow ODE from that noise, divided by the root mean square norm of those ends.  All run in one process
and take turns, problem by problem.

* **ours, auto**: what ``sampler="auto"`` picks from (NFE, schedule, guidance) alone; one number per cell
* **ours, best**: the best of all our solvers x orders x grids, chosen after the fact
* **theirs, best**: the best of each library's deterministic solvers x orders x every spacing it offers, chosen after
  the fact, cell by cell.  Where a solver takes any levels (k-diffusion, azula), several common grids are tried too.

Their models are asked at the exact noise level the solver stands at, never at a rounded timestep.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

from solver_contestants import (
    BATCH,
    Contestant,
    Problem,
    from_azula,
    from_diffusers,
    from_k_diffusion,
    ours,
    pose,
)

import sfumato as sf
from sfumato.errors import Refusal
from sfumato.oracles.problems import held_out, three_modes, unequal

MIXTURES = {"3 modes, 2-D": three_modes(), "4 modes, 64-D": unequal(), **held_out()}
RESULTS = Path(__file__).parent / "results" / "solver_accuracy.json"
EVALUATIONS = (6, 8, 10, 15, 20)
SCHEDULES = ("linear", "karras", "flow")


def measure(problem: Problem, nfe: int, rivals: list[Contestant]) -> list[dict[str, Any]]:
    rows = []
    for rival in rivals:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, about settings they change
            x = rival.run(problem, nfe)
        error = math.nan if x is None else problem.error(x)
        if math.isfinite(error):
            row = {"library": rival.library, "solver": rival.solver, "grid": rival.grid, "error": error}
            rows.append(row | {"offered": rival.offered})
    return sorted(rows, key=lambda row: row["error"])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of every library on the grids it offers, and on any; ours as auto and at its best."""
    best: dict[str, Any] = {"auto": next(row for row in rows if row["solver"] == "auto")}
    for library in dict.fromkeys(row["library"] for row in rows):
        own = [row for row in rows if row["library"] == library]
        best[library] = own[0]
        best[f"{library}, offered"] = next((row for row in own if row["offered"]), None)
    theirs = [row for row in rows if row["library"] != "sfumato"]
    best["theirs"], best["theirs, offered"] = theirs[0], next(row for row in theirs if row["offered"])
    return best


def show(cells: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    named_columns = ("mixture", "schedule", "NFE", "auto", "ours, best", "theirs, best", "auto / theirs")
    lines = ["| " + " | ".join([*named_columns, "theirs, any grid", "auto / theirs"]) + " |"]
    lines.append("|---|---|---:|---:|---|---|---:|---|---:|")
    for cell in cells:
        best = cell["best"]
        auto, ours, own, anything = (best[k] for k in ("auto", "sfumato", "theirs, offered", "theirs"))

        def named(row: dict[str, Any]) -> str:
            return f"{row['error']:.2e} {row['library']} {row['solver']} [{row['grid']}]"

        lines.append(
            f"| {cell['mixture']} | {cell['schedule']} | {cell['nfe']} | {auto['error']:.2e} "
            f"| {ours['error']:.2e} {ours['solver']} [{ours['grid']}] "
            f"| {named(own)} | {auto['error'] / own['error']:.2f} "
            f"| {named(anything)} | {auto['error'] / anything['error']:.2f} |"
        )
    return "\n".join(lines)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 2-D mixture on one schedule (a minute)")
    parser.add_argument("--mixtures", nargs="*", default=list(MIXTURES), choices=list(MIXTURES), help="these only")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    quick = bool(arguments.quick)
    rivals = [*ours(), *from_diffusers(), *from_k_diffusion(), *from_azula()]
    cells = []
    began = time.perf_counter()
    for mixture in arguments.mixtures[: 1 if quick else None]:
        for schedule in SCHEDULES[: 1 if quick else None]:
            problem = pose(mixture, MIXTURES[mixture], schedule)
            for nfe in EVALUATIONS:
                rows = measure(problem, nfe, rivals)
                first = [*[row for row in rows if row["offered"]][:12], rows[0]]
                cell = {"mixture": mixture, "schedule": schedule, "nfe": nfe, "contestants": len(rows)}
                cells.append(cell | {"best": summary(rows), "first": first})
                print(show(cells[-1:]).splitlines()[-1], flush=True)
    out = arguments.out or (None if quick else RESULTS)
    if out is not None and out.exists():  # mixtures not run again keep their cells
        kept = [cell for cell in json.loads(out.read_text())["cells"] if cell["mixture"] not in arguments.mixtures]
        cells = [cell for name in MIXTURES for cell in (*kept, *cells) if cell["mixture"] == name]
    print("\n" + show(cells))
    record = {
        "batch": BATCH,
        "seed": 0,
        "measure": "mean distance to the exact ODE end over the root mean square norm of the ends",
        "seconds": time.perf_counter() - began,
        "versions": {"sfumato": sf.__version__}
        | {name: version(name) for name in ("torch", "diffusers", "azula", "k-diffusion")},
        "cells": cells,
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwritten to {out}")


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        raise SystemExit(f"error: {refusal}") from None
