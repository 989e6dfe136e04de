"""Trained flows in two dimensions against CHECKS: path energy, W2 and likelihood (minutes; `make checks`).

The committed results of ``benchmarks/flow_2d.py`` and ``benchmarks/reflow.py`` keep the same bounds as a fresh, shorter
run of the same code.
"""

from __future__ import annotations

import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
#: W2 of fresh points to the target (n = 2000), and how far above it a flow may be.
ROOM = 0.35

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("flow_2d"), importlib.import_module("reflow")
    sys.path.remove(str(BENCHMARKS))


def require_bounds(row: dict[str, Any]) -> None:
    where = f"{row['source']} to {row['target']}, {row['method']}, seed {row['seed']}"
    assert row["w2"] <= row["w2_floor"] + ROOM, where
    if row["method"] == "ot-cfm":
        assert row["npe"] <= 0.12, where
    if row["method"] == "i-cfm":
        assert row["npe"] >= (0.9 if row["source"] == "moons" else 0.2), where


def test_committed_rows() -> None:
    results = json.loads((BENCHMARKS / "results" / "flow_2d.json").read_text())
    assert results["protocol"] == {
        "iterations": 6000, "batch": 256, "training": 10_000, "carried": 2000, "noise": 0.1,
        "hold": 0.8,
    }  # fmt: skip
    assert len(results["rows"]) == 2 * (3 * 3 + 2)
    for row in results["rows"]:
        require_bounds(row)
    board = results["checkerboard"]
    assert board["minutes"] <= 3
    assert board["entropy"] - 4 * board["nll_standard_error"] < board["nll"] < 3.78


@pytest.mark.parametrize(
    ("source", "method"), [("gaussian", "ot-cfm"), ("gaussian", "i-cfm"), ("moons", "ot-cfm"), ("moons", "i-cfm")]
)
def test_path_energy_and_distance(scripts: Any, source: str, method: str) -> None:
    require_bounds(scripts[0].row(source, "8gaussians", method, 6000, 7))


def test_checkerboard_likelihood(scripts: Any) -> None:
    board = scripts[0].checkerboard(3.0, seed=7)
    assert board["entropy"] - 4 * board["nll_standard_error"] < board["nll"] < 3.78


def require_straightening(rows: list[dict[str, Any]], room: float = 0.0) -> None:
    """``room``: how much worse than the round before a fresh, shorter run may be where nothing is left to gain."""
    for before, after in pairwise(rows):
        assert after["straightness"] < before["straightness"]
        assert after["w2_one_step"] < before["w2_one_step"] + room
        assert after["cost"] < (1 + room) * before["cost"]
    assert rows[1]["w2_one_step"] < 0.7 * rows[0]["w2_one_step"]


def test_committed_rounds() -> None:
    rows = json.loads((BENCHMARKS / "results" / "reflow.json").read_text())["sets"]
    names = {row["set"] for row in rows}
    assert names == {"8gaussians", "moons", "scurve"}
    for name in names:
        require_straightening([row for row in rows if row["set"] == name])


def test_committed_rounds_on_mnist() -> None:
    """Paths straighten and one step comes nearer to their end at every round; digits of one step are an order nearer to
    the data than the unstraightened flow's, and the distilled ones nearest."""
    runs = json.loads((BENCHMARKS / "results" / "reflow.json").read_text())["runs"]
    assert [run["run"] for run in runs] == ["flow", "reflow", "reflow-2", "one-step"]
    for before, after in pairwise(runs[:3]):
        assert after["straightness"] < before["straightness"]
        assert after["one-step-distance"] < before["one-step-distance"]
    first, *others = (run["frechet_one_step"] for run in runs)
    assert max(others) < first / 9
    assert min(others) == others[-1]


def test_reflow_rounds(scripts: Any) -> None:
    require_straightening(scripts[1].study("moons", 2, 2000, seed=7)[0], room=0.02)
