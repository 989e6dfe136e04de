"""Reflow as a whole: a teacher's pairs, training on them, distillation, the next round, and runs that stop midway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.errors import Refusal
from sfumato.metrics import transport
from sfumato.training import pairs as making
from sfumato.training.files import unpack_tensors

TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 64, "warmup": 2, "precision": "float32",
    "reports": 1, "validation_images": 8, "grid_columns": 1, "grid_steps": 2,
}  # fmt: skip
#: What a reflow run takes from its teacher is left out.
OWN = {key: TINY[key] for key in ("batch", "warmup", "precision", "reports", "validation_images", "grid_columns")}


@pytest.fixture(scope="module")
def digits() -> sf.data.Data:
    return sf.data.load("digits")


@pytest.fixture(scope="module")
def teacher(digits: sf.data.Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "flow"
    sf.train("flow", digits, steps=150, out=run, quiet=True, sampling_steps=5, **TINY)
    return run


@pytest.fixture(scope="module")
def straight(digits: sf.data.Data, teacher: Path) -> Path:
    run = teacher.parent / "reflow"
    sf.train("reflow", digits, steps=60, out=run, quiet=True, teacher=str(teacher), pairs=300, **OWN)
    return run


def test_pairs_are_the_teachers_own(teacher: Path, straight: Path) -> None:
    pairs, record = unpack_tensors(straight / "pairs.safetensors"), json.loads((straight / "pairs.json").read_text())
    assert {name: len(rows) for name, rows in pairs.items()} == {"x0": 308, "end": 308, "label": 308}
    assert not (straight / "pairs").exists()
    assert (record["sampler"], record["steps"], record["n"], record["guidance"]) == ("heun", 5, 308, 1.0)
    model = sf.load(teacher, device="cpu")
    grid = sf.grids.uniform(model.process.schedule, 5)
    ends, cond = pairs["end"][:20], {"label": pairs["label"][:20]}
    again = sf.sample(model.denoiser, model.process, sf.samplers.get("heun"), grid, ends, cond=cond)
    assert float((again - pairs["x0"][:20]).abs().max()) < 1e-4
    assert abs(float(pairs["end"].mean())) < 0.02
    assert float(pairs["end"].std()) == pytest.approx(1.0, abs=0.02)


def test_reflow_straightens(teacher: Path, straight: Path) -> None:
    values = []
    for run in (teacher, straight):
        records = transport.measure(sf.load(run, device="cpu"), n=32, steps=6)
        values.append({record.name: record.value for record in records})
        assert all(record.nfe == 18 and record.n == 32 for record in records)
    assert values[1]["straightness"] < values[0]["straightness"]
    assert values[1]["transport-cost"] < 1.02 * values[0]["transport-cost"]


def test_a_reflow_run_starts_from_its_teacher_and_teaches_the_next(digits: sf.data.Data, straight: Path) -> None:
    run = straight.parent / "next"
    one = sf.train("reflow", digits, steps=1, out=run, quiet=True, teacher=str(straight), pairs=40, lr=1e-9, **OWN)
    known = sf.load(straight, device="cpu").net.state_dict()
    assert all(torch.allclose(value, known[name], atol=1e-6) for name, value in one.net.state_dict().items())
    first = unpack_tensors(straight / "pairs.safetensors")["end"]
    second = unpack_tensors(run / "pairs.safetensors")["end"]
    assert not bool((first[: len(second)] == second).all(1).any())  # fresh noise for every round


def test_distillation_is_trained_for_one_step(digits: sf.data.Data, straight: Path) -> None:
    run = straight.parent / "distilled"
    model = sf.train(
        "reflow", digits, steps=20, out=run, quiet=True, teacher=str(straight), stage="distill", pairs=64, **OWN
    )
    assert bool((model.draw_times(16, sf.Stream(0)) == 1).all())
    samples = model.sample(4, label="3")
    assert (samples.record["sampler"], samples.record["steps"], samples.record["nfe"]) == ("euler", 1, 1)


class Stopping:
    """Asks to stop after some calls."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_pairs_survive_a_stop(digits: sf.data.Data, teacher: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(making, "PART", 16)
    source = making.source(sf.load(teacher, device="cpu"), digits, 50, 3)
    said: list[str] = []
    assert making.collect(source, tmp_path, said.append, Stopping(2)) is None
    assert len(list((tmp_path / "pairs").iterdir())) == 2
    assert making.stored(tmp_path, 50) is None
    counted = Stopping(100)
    whole = making.collect(source, tmp_path, said.append, counted)
    assert counted.left == 98  # two parts were there, two were made
    fresh = making.collect(source, None, said.append, Stopping(100))
    assert whole is not None
    assert fresh is not None
    stored = making.stored(tmp_path, 50)
    assert stored is not None
    for name in whole:
        assert torch.equal(whole[name], fresh[name])
        assert torch.equal(whole[name], stored[name])
    with pytest.raises(Refusal, match="does not hold the 60 pairs"):
        making.stored(tmp_path, 60)
    assert said[0].startswith("pairs: 16 of 50")


def test_refusals(digits: sf.data.Data, teacher: Path, straight: Path, tmp_path: Path) -> None:
    def start(**settings: Any) -> None:
        sf.train("reflow", digits, steps=1, out=tmp_path / "run", quiet=True, **OWN | settings)

    with pytest.raises(Refusal, match="needs a teacher"):
        start()
    with pytest.raises(Refusal, match="is not a folder"):
        start(teacher="nowhere")
    other = tmp_path / "ddpm"
    sf.train("ddpm", digits, steps=1, out=other, quiet=True, **TINY)
    with pytest.raises(Refusal, match="no flow on the straight path"):
        start(teacher=str(other))
    with pytest.raises(Refusal, match="sampling_steps=1"):
        start(teacher=str(teacher), stage="distill", sampling_steps=4)
    with pytest.raises(Refusal, match="label dropout"):
        start(teacher=str(straight), pair_guidance=2.0)
    with pytest.raises(Refusal, match="does not fit"):
        start(teacher=str(teacher), channels=(16,))
    assert not (tmp_path / "run").exists()  # all of it before anything is written


def test_a_run_stopped_before_its_first_step_begins_again_from_its_teacher(
    digits: sf.data.Data, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.training import run as running

    class Killed(Exception):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    known = {"steps": 1, "out": tmp_path / "run", "quiet": True, "teacher": str(teacher), "pairs": 40, "lr": 1e-9} | OWN
    with monkeypatch.context() as patch:
        patch.setattr(running._Run, "go", killed)
        with pytest.raises(Killed):
            sf.train("reflow", digits, **known)
    resumed = sf.train("reflow", digits, resume=True, **known)
    weights = sf.load(teacher, device="cpu").net.state_dict()
    assert all(torch.allclose(value, weights[name], atol=1e-6) for name, value in resumed.net.state_dict().items())


def test_a_distilled_flow_is_used_for_its_one_step(digits: sf.data.Data, straight: Path, tmp_path: Path) -> None:
    one = sf.train(
        "reflow", digits, steps=1, out=tmp_path / "one", quiet=True, teacher=str(straight), stage="distill", pairs=40,
        **OWN,
    )  # fmt: skip
    assert one.sample(2, label="7").record["nfe"] == 1
    for asked in ({"steps": 4}, {"sampler": "heun", "steps": 1}, {"sampler": "auto", "steps": 1}):
        with pytest.raises(Refusal, match="distilled to one step"):
            one.sample(2, label="7", **asked)
    with pytest.raises(Refusal, match="has no density; measure its teacher"):
        sf.likelihood.evaluate(one, digits, 4)
