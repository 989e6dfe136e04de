"""What docs/solver-accuracy.md says of the solvers is what its committed record holds, by names that users can give."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.oracles.problems import unequal

ROOT = Path(__file__).parents[1]
RECORD: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "solver_accuracy.json").read_text())
CELLS: list[dict[str, Any]] = RECORD["cells"]
MIXTURES = ("3 modes, 2-D", "4 modes, 64-D", "5 modes, 3-D", "3 modes, 32-D")
#: Errors up to this ratio are even: the same update on the same levels, some tables of which are float32.
EVEN = 1.0005


def test_every_cell_is_there() -> None:
    found = {(cell["mixture"], cell["schedule"], cell["nfe"]) for cell in CELLS}
    wanted = {(m, s, n) for m in MIXTURES for s in ("linear", "karras", "flow") for n in (6, 8, 10, 15, 20)}
    assert found == wanted
    assert len(CELLS) == len(wanted)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell['mixture']}, {cell['schedule']}, {cell['nfe']}")
def test_our_best_is_no_worse_than_any_peer(cell: dict[str, Any]) -> None:
    """Peers on their own grids, on common ones and on ours; our part is made of a registered sampler and grid."""
    ours, theirs = cell["best"]["ours"], cell["best"]["theirs"]
    assert {"azula", "diffusers", "k-diffusion"} <= set(cell["best"])
    assert ours["error"] <= EVEN * theirs["error"]
    assert sf.samplers.build(ours["solver"]).takes
    assert callable(sf.grids.build(ours["grid"]))


def test_a_stored_error_is_what_the_solver_does() -> None:
    """One cell again: 64 dimensions, six evaluations, where the peers come nearest."""
    cell = next(c for c in CELLS if (c["mixture"], c["schedule"], c["nfe"]) == ("4 modes, 64-D", "karras", 6))
    process, oracle = sf.processes.Gaussian(sf.schedules.get("karras")), unequal()
    x1 = process.prior(torch.zeros(RECORD["batch"], 64, dtype=torch.float64)).draw(sf.Stream(RECORD["seed"]))
    truth, ours = oracle.flow(process, x1, 1.0, 0.0), cell["best"]["ours"]
    grid = sf.grids.build(ours["grid"])(process.schedule, 6)
    x = sf.sample(oracle.denoiser(process), process, sf.samplers.build(ours["solver"]), grid, x1)
    error = float((x - truth).norm(dim=1).mean() / truth.norm(dim=1).square().mean().sqrt())
    assert math.isclose(error, ours["error"], rel_tol=1e-3)
