"""Reflow as a whole: a teacher's pairs, training on them, distillation, the next round, and runs that stop midway."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.__main__ import run as run_sfumato
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


def test_the_command_measures_transport(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(teacher, tmp_path / "run"))
    assert run_sfumato(["eval", str(run), "--transport", "--n", "16", "--seed", "3", "--batch", "9"]) == 0
    text = capsys.readouterr().out
    records = [
        sf.metrics.Record.from_json(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    found = {record.name: record for record in records}
    assert set(found) == {"transport-cost", "straightness", "one-step-distance", "npe"}
    assert all(name in text and (r.n, r.seed, r.sampler) == (16, 3, "ralston") for name, r in found.items())
    again = {r.name: r.value for r in transport.measure(sf.load(run), n=16, seed=3)}
    assert {name: pytest.approx(r.value, rel=1e-4) for name, r in found.items()} == again  # in any batch
    assert 0 < found["straightness"].value < found["one-step-distance"].value


def test_one_step_of_a_normal_law_ends_at_its_mean() -> None:
    """The law's own flow ends at ``s x1``; Euler's first slope knows the mean alone."""
    process = sf.processes.Gaussian(sf.schedules.get("flow"))
    oracle, x1 = sf.oracles.Gaussian([0.0, 0.0], [[0.25, 0.0], [0.0, 0.25]]), torch.randn(5, 2, dtype=torch.float64)
    jumped = transport.one_step(oracle.denoiser(process), process, x1)
    assert float(jumped.abs().max()) < 1e-12
    end = transport.walk(oracle.denoiser(process), process, x1, steps=200).x0
    torch.testing.assert_close(end, 0.5 * x1, atol=1e-3, rtol=0)


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
    assert len(list((tmp_path / "pairs").glob("*.safetensors"))) == 2
    assert making.stored(tmp_path, 50) is None
    state = tmp_path / "pairs" / "source.json"
    assert json.loads(state.read_text())["seconds"] > 0
    state.write_bytes(making.to_json(json.loads(state.read_text()) | {"seconds": 1000.0}))
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
    assert json.loads((tmp_path / "pairs.json").read_text())["seconds"] > 1000  # with what came before the stop


def changed(model: sf.Diffusion) -> sf.Diffusion:
    """The same model with other weights."""
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.mul_(1.01)
    return model


def test_part_made_pairs_remember_their_teacher(
    digits: sf.data.Data, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "PART", 16)
    model = sf.load(teacher, device="cpu")
    assert making.collect(making.source(model, digits, 50, 3), tmp_path, str, Stopping(1)) is None
    for other in (
        making.source(model, digits, 50, 4),
        making.source(model, digits, 50, 3, guidance=2.0),
        making.source(changed(sf.load(teacher, device="cpu")), digits, 50, 3),
    ):
        with pytest.raises(Refusal, match=r"were made by another teacher .* remove them") as refusal:
            making.collect(other, tmp_path, str, Stopping(100))
        assert "\n" not in str(refusal.value)
    assert len(list((tmp_path / "pairs").glob("*.safetensors"))) == 1
    (tmp_path / "pairs" / "source.json").unlink()
    with pytest.raises(Refusal, match="does not say which teacher made its pairs"):
        making.collect(making.source(model, digits, 50, 3), tmp_path, str, Stopping(100))


def test_a_run_does_not_resume_with_other_weights_of_its_teacher(
    digits: sf.data.Data, teacher: Path, tmp_path: Path
) -> None:
    own, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher, own)
    sf.train("reflow", digits, steps=1, out=run, quiet=True, teacher=str(own), pairs=40, **OWN)
    changed(sf.load(own, device="cpu")).save_weights(own)
    sf.train("reflow", digits, out=run, resume=True, quiet=True)  # all pairs and a checkpoint: no teacher is needed
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(Refusal, match=r"were made by another teacher \(other weights\)"):
        sf.train("reflow", digits, out=run, resume=True, quiet=True)


def test_a_teacher_that_samples_by_auto(digits: sf.data.Data, teacher: Path, tmp_path: Path) -> None:
    """Its pairs are those of the solver and grid that the rule stands for, at the guidance of the pairs."""
    own, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher, own)
    config = json.loads((own / "config.json").read_text())
    config["settings"] |= {"sampler": "auto", "sampling_steps": 5}
    (own / "config.json").write_text(json.dumps(config))
    sf.train("reflow", digits, steps=1, out=run, quiet=True, teacher=str(own), pairs=8, pair_guidance=2.0, **OWN)
    record = json.loads((run / "pairs.json").read_text())
    model = sf.load(own, device="cpu")
    choice = sf.samplers.auto.choose(model.process.schedule, 5, 2.0)
    assert (record["sampler"], record["solver"], record["steps"]) == ("auto", "adams:predictor=1:corrector=2", 5)
    pairs = unpack_tensors(run / "pairs.safetensors")
    denoiser = sf.guidance.cfg(model.denoiser, lambda c: {"label": torch.full_like(c["label"], 10)}, 2.0)
    again = sf.sample(
        denoiser, model.process, choice.build(), choice.times(), pairs["end"], cond={"label": pairs["label"]}
    )
    assert float((again - pairs["x0"]).abs().max()) < 1e-4
    with pytest.raises(Refusal, match="'ddpm', which draws noise"):
        making.require_teacher(with_sampler(model, "ddpm"), own)


def with_sampler(model: sf.Diffusion, sampler: str) -> sf.Diffusion:
    """The same model with another sampler of its own."""
    sampling = replace(model.settings.sampling, sampler=sampler)
    return replace(model, settings=replace(model.settings, sampling=sampling))  # type: ignore[type-var]


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
    from sfumato.training.engine import Course

    class Killed(Exception):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    known = {"steps": 1, "out": tmp_path / "run", "quiet": True, "teacher": str(teacher), "pairs": 40, "lr": 1e-9} | OWN
    with monkeypatch.context() as patch:
        patch.setattr(Course, "go", killed)
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
