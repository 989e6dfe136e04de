"""Riemannian flow matching as a user meets it: trains on each manifold, stays on it, stores, plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sfumato as sf
from sfumato.data import manifolds

SMALL: dict[str, Any] = {"width": 64, "depth": 2, "batch": 256, "reports": 2, "validation_images": 512, "lr": 3e-3}


@pytest.mark.parametrize("name", manifolds.names())
def test_a_run_learns_stores_and_stays_on_its_manifold(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = sf.train("geodesic", name, steps=150, out=run, quiet=True, **SMALL, grid_columns=4)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_out = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert held_out[1] < held_out[0]
    samples = model.sample(64, steps=10, seed=3)
    assert manifolds.space(name).contains(samples.x)
    assert torch.equal(samples.x, sf.load(run).sample(64, steps=10, seed=3).x)
    alone = model.sample(1, steps=10, seed=5).x
    assert torch.allclose(alone[0], samples.x[2], atol=1e-4)
    samples.save(tmp_path / "samples")
    assert (tmp_path / "samples" / "points.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "loss.png").exists()


def test_the_loss_is_that_of_the_velocity_at_times_of_the_whole_path() -> None:
    """A network that says nothing misses the whole velocity, whose length is the distance between the ends."""
    from sfumato import recipes

    data = sf.data.load("quakes")
    recipe = recipes.get("geodesic")
    model = recipe.build(recipe.defaults, data.spec(), {"seed": 0, "horizon": {}})
    x0, space = data.train.x[:64], manifolds.space("quakes")
    end = model.process.prior(x0).draw(sf.Stream(1))
    t = torch.linspace(0.05, 1, 64, dtype=torch.float64)
    loss = model.parts.objective(model.denoiser, x0, t, None, end=end)
    assert torch.allclose(loss, space.distance(x0, end) ** 2 / 2, rtol=2e-2, atol=1e-4)
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert torch.allclose(model.times(u), torch.tensor([0.001, 0.5005, 1.0]).double(), atol=1e-6)


def test_samples_come_nearer_to_the_data_than_the_prior() -> None:
    """On the sphere: the mean distance to the nearest data point, against that of uniform draws."""
    data, space = sf.data.load("quakes"), manifolds.space("quakes")
    model = sf.train("geodesic", data, steps=400, quiet=True, **SMALL)

    def off(x: torch.Tensor) -> float:
        return float(torch.arccos((x @ data.test.x.T).amax(1).clamp(-1, 1)).mean())

    start = model.process.prior(model.like(500)).draw(sf.Stream(0))
    assert off(model.sample(500, steps=25).x) < 0.4 * off(start)
    assert space.contains(start)


def test_what_does_not_fit_is_refused() -> None:
    model = sf.train("geodesic", "torsions", steps=2, quiet=True, **SMALL)
    for asked, message in (
        ({"sampler": "ddpm"}, "Markov"),
        ({"sampler": "heun"}, "schedule|Gaussian"),
        ({"prompt": "To be"}, "for text"),
        ({"label": "a"}, "without classes"),
    ):
        with pytest.raises(sf.Refusal, match=message):
            model.sample(2, **{"steps": 3} | asked)
    with pytest.raises(sf.Refusal, match="makes points"):
        sf.train("geodesic", "digits", steps=1, quiet=True)
    with pytest.raises(sf.Refusal, match="float32"):
        sf.train("geodesic", "torsions", steps=1, quiet=True, **SMALL, precision="bfloat16")


def test_the_command_line_reports_and_samples(tmp_path: Path) -> None:
    from sfumato.cli import app

    runner, run = CliRunner(), tmp_path / "run"
    told = runner.invoke(app, ["inspect", "rotations"])
    assert told.exit_code == 0, told.output
    assert "SO3" in told.output
    pairs = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    given = ["--data", "rotations", "--out", str(run), "--steps", "3", *pairs]
    trained = runner.invoke(app, ["train", "geodesic", *given])
    assert trained.exit_code == 0, trained.output
    sampled = runner.invoke(app, ["sample", str(run), "--n", "5", "--steps", "3"])
    assert sampled.exit_code == 0, sampled.output
    assert (run / "samples" / "points.png").exists()
    measured = runner.invoke(app, ["eval", str(run), "--n", "50", "--steps", "2"])
    assert measured.exit_code == 0, measured.output
    assert (run / "metrics.jsonl").exists()
