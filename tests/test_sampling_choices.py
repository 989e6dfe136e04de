"""What a model chooses for itself: the sampler ``auto`` and the grid ``optimised``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato import spec
from sfumato.guidance import thresholds
from sfumato.training.sampling import plan


@pytest.fixture(scope="module")
def model() -> Any:
    tiny = {"channels": (8,), "blocks": 1, "attention": (False,), "patch": 2, "reports": 1}
    return sf.train("flow", sf.data.load("digits"), steps=20, quiet=True, **tiny)


@pytest.mark.parametrize(("steps", "guidance"), [(4, 1.0), (10, 1.0), (10, 3.0), (20, 1.0)])
def test_auto_is_its_rule(model: Any, steps: int, guidance: float) -> None:
    choice = sf.samplers.auto.choose(model.process.schedule, steps, guidance)
    record = model.sample(4, label="7", sampler="auto", steps=steps, guidance=guidance).record
    assert (record["sampler"], record["nfe"], record["steps"]) == ("auto", steps, choice.steps)
    assert record["solver"] == spec.text(choice.sampler, choice.settings)
    assert record["grid"] == spec.text(choice.grid, choice.grid_settings)
    named = model.sample(
        4, label="7", sampler=record["solver"], grid=record["grid"], steps=choice.steps, guidance=guidance
    )
    assert torch.equal(named.x, model.sample(4, label="7", sampler="auto", steps=steps, guidance=guidance).x)


def test_auto_refuses_a_grid(model: Any) -> None:
    with pytest.raises(sf.Refusal, match="'auto' chooses its own grid"):
        plan(model, 4, sampler="auto", grid="uniform")


def test_the_optimised_grid_is_measured_on_the_job(model: Any) -> None:
    free, guided = (plan(model, 4, "7", grid="optimised", sampler="dpmpp-2m", steps=8, guidance=w) for w in (1.0, 4.0))
    for job in (free, guided):
        assert job.steps == 8
        assert float(job.times[0]) == 1.0
        assert float(job.times[-1]) == 0.0
        assert bool((job.times.diff() < 0).all())
    assert not torch.equal(free.times, guided.times)
    again = plan(model, 4, "7", grid="optimised", sampler="dpmpp-2m", steps=8, guidance=1.0)
    assert torch.equal(free.times, again.times)
    first = plan(model, 4, "7", grid="optimised", sampler="ddim", steps=8, guidance=1.0)
    assert not torch.equal(free.times, first.times)
    assert model.sample(2, grid="optimised", sampler="dpmpp-2m", steps=3).record["grid"] == "optimised"


def test_the_optimised_grid_belongs_to_a_model() -> None:
    with pytest.raises(sf.Refusal, match="unknown grid 'optimised'"):
        sf.grids.get("optimised")


def test_the_optimised_grid_does_not_depend_on_the_batch(model: Any) -> None:
    few, many = (plan(model, n, label, grid="optimised", steps=6) for n, label in ((1, "7"), (5, ["1", "2"])))
    assert torch.equal(few.times, many.times)
    assert model.sample(1, label="7", grid="optimised", steps=6).record["times"] == few.times.tolist()


def test_without_label_dropout_labels_are_plain(tmp_path: Path) -> None:
    tiny = {"channels": (8, 16), "blocks": 1, "attention": (False, False), "label_dropout": 0.0, "reports": 1}
    plain = sf.train("flow", sf.data.load("digits"), steps=3, out=tmp_path / "run", quiet=True, grid_columns=1, **tiny)
    assert plain.sample(2, label="7").record["guidance"] == 1.0
    with pytest.raises(sf.Refusal, match="guidance=2 needs a model trained with label dropout"):
        plain.sample(2, label="7", guidance=2.0)


def test_rk45_refuses_an_interval(model: Any) -> None:
    with pytest.raises(sf.Refusal, match="rk45 takes its samples to different times"):
        plan(model, 2, "7", sampler="rk45", guidance=2.0, interval=(0.2, 0.8))


# ---------------------------------------------------------------------------------------------------------- thresholds

TINY = {"channels": (8,), "blocks": 1, "attention": (False,), "patch": 2, "grid_columns": 0, "validation_images": 8}


def test_a_threshold_is_built_for_the_range_of_the_data() -> None:
    x = torch.tensor([[0.5, 1.0], [3.0, 1.5]])
    held = {text: thresholds.build(text, 0.0, 2.0)(sf.laws.Dirac(x)).point() for text in ("none", "static", "dynamic")}
    assert torch.equal(held["none"], x)
    assert held["static"].tolist() == [[0.5, 1.0], [2.0, 1.5]]
    whole = thresholds.build("dynamic:quantile=1.0", 0.0, 2.0)(sf.laws.Dirac(x)).point()
    assert whole.tolist() == [[0.5, 1.0], [2.0, 1.25]]  # about the middle of the range, 1: 3 is twice as far as it may
    assert thresholds.parse("dynamic") == "dynamic:quantile=0.995"
    for wrong, message in (
        ("dynamo", "unknown threshold 'dynamo'.*dynamic"),
        ("static:low=0", "takes no settings"),
        ("dynamic:quantile=2", "needs 0 < quantile <= 1"),
    ):
        with pytest.raises(sf.Refusal, match=message):
            thresholds.parse(wrong)


def test_a_run_is_sampled_with_its_threshold_or_another(model: Any) -> None:
    assert plan(model, 2).threshold == "none"  # flow does not clip
    plain, static, moving = (
        model.sample(8, label="7", guidance=6.0, steps=4, threshold=text)
        for text in (None, "static", "dynamic:quantile=0.9")
    )
    assert [s.record["threshold"] for s in (plain, static, moving)] == ["none", "static", "dynamic:quantile=0.9"]
    assert [s.record["clip"] for s in (plain, static, moving)] == [False, True, True]
    assert not torch.equal(plain.x, static.x)
    assert not torch.equal(static.x, moving.x)


def test_a_threshold_is_a_setting_of_training(tmp_path: Path) -> None:
    digits, own = sf.data.load("digits"), "dynamic:quantile=0.9"
    made = sf.train("ddpm", digits, steps=2, out=tmp_path / "run", quiet=True, threshold=own, **TINY)
    assert plan(made, 2).threshold == own
    assert plan(sf.load(tmp_path / "run"), 2).threshold == own
    assert plan(made, 2, threshold="none").threshold == "none"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for clip, expected in ((True, "static"), (False, "none")):  # as runs were stored that knew clip alone
        config["settings"]["clip"] = clip
        config["settings"].pop("threshold", None)
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        assert plan(sf.load(tmp_path / "run"), 2).threshold == expected
    for settings, message in (
        ({"threshold": "dynamic", "clip": False}, "threshold=dynamic does nothing with clip=False"),
        ({"threshold": "none"}, "threshold=none: needs static or dynamic; clip=false for none"),
        ({"threshold": "hard"}, "unknown threshold 'hard'"),
    ):
        with pytest.raises(sf.Refusal, match=message):
            sf.train("ddpm", digits, steps=1, quiet=True, **settings, **TINY)
