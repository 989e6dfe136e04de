"""Trackers: TensorBoard read back from its file, the others by the calls that they document; none changes training."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import watching
from sfumato.__main__ import run as run_sfumato
from sfumato.training.monitor import read_log
from sfumato.watching import scalars, watched

TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "patch": 2, "blocks": 1, "batch": 32, "reports": 2, "grid_columns": 1,
    "grid_steps": 2, "validation_images": 16, "precision": "float32",
}  # fmt: skip
CONFIG = {
    "recipe": "edm", "seed": 3, "parameters": 7, "horizon": {"steps": 20}, "data": {"name": "digits", "sha256": "ab"},
    "settings": {"lr": 0.001, "channels": [8, 16], "clip": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Any:
    return sf.data.load("digits")


@pytest.fixture(scope="module")
def board(data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 25 steps, watched by TensorBoard, killed at its last report (saved at step 13) and continued."""
    out = tmp_path_factory.mktemp("board") / "run"
    reporter = sf.training.monitor.Reporter
    report = reporter.report

    def failing(self: Any, model: Any, step: Any, *rest: Any) -> Any:
        if step.step > 20:
            raise KeyboardInterrupt
        return report(self, model, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporter, "report", failing)
        with pytest.raises(KeyboardInterrupt):
            sf.train("edm", data, steps=25, out=out, trackers="tensorboard", quiet=True, **TINY)
    sf.train("edm", data, steps=25, out=out, resume=True, quiet=True)
    return out


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_holds_what_the_log_holds(board: Path) -> None:
    found, lines = events(board), read_log(board / "log.jsonl")
    assert {line["step"] for line in lines} == {1, 10, 13, 20, 25}
    wanted: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in scalars(line).items():
            wanted.setdefault(name, []).append((line["step"], value))
    assert set(found.Tags()["scalars"]) == set(wanted)
    for name, points in wanted.items():
        read = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in read] == [step for step, _ in points], name
        assert [v for _, v in read] == pytest.approx([v for _, v in points], rel=1e-6, abs=1e-12)
    assert len([name for name in wanted if name.startswith("validation_by_level/t_")]) == 8


def test_tensorboard_shows_the_grids_and_the_settings(board: Path) -> None:
    found = events(board)
    shown = {image.step: image.encoded_image_string for image in found.Images("samples")}
    assert set(shown) == {13, 25}
    for step, content in shown.items():
        grid = np.asarray(Image.open(board / "grids" / f"step-{step:06d}.png").convert("RGB"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), grid)
    text = found.Tensors("config/text_summary")
    assert len(text) == 1  # a resumed run says it once
    assert "| channels | [8] |" in text[0].tensor_proto.string_val[0].decode()


def test_watching_changes_nothing_that_is_trained(board: Path, data: Any) -> None:
    plain = sf.train("edm", data, steps=25, quiet=True, **TINY)
    for name, value in sf.load(board).net.state_dict().items():
        assert torch.equal(value, plain.net.state_dict()[name]), name
    assert json.loads((board / "trackers.json").read_text()) == {"tensorboard": "tensorboard"}


# ------------------------------------------------------------------------------------------------------------ refusing


def test_names() -> None:
    assert watching.names("tensorboard, tensorboard") == ("tensorboard",)
    assert watching.names("") == ()
    with pytest.raises(sf.Refusal, match="unknown tracker 'tensorbord'; did you mean tensorboard"):
        watching.names("tensorbord")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_told_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    out = tmp_path / "run"
    words = ["train", "edm", "--data", "digits", "--steps", "1", "--out", str(out), "--tracker", name]
    assert run_sfumato(words) == 2
    line = f"sfumato: {name} is not installed; install it with: pip install 'sfumato[{name}]'\n"
    assert capsys.readouterr().err == line
    assert not out.exists()


def test_every_tracker_has_its_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for name, kind in watching.KINDS.items():
        assert any(need.startswith(kind.package) for need in project["optional-dependencies"][name])


def test_trackers_need_a_run_folder(data: Any) -> None:
    with pytest.raises(sf.Refusal, match="they need out"):
        sf.train("edm", data, steps=1, trackers="tensorboard", quiet=True, **TINY)


def test_what_is_no_finite_number_is_left_out() -> None:
    levels = [{"t": 0.0625, "log_snr": 1.0, "loss": 2.0}, {"t": 0.5, "log_snr": None, "loss": None}]
    line = {"kind": "validation", "step": 4, "loss": float("inf"), "seconds": 2, "note": "x", "levels": levels}
    assert scalars(line) == {"validation/seconds": 2.0, "validation_by_level/t_0.0625": 2.0}


# ------------------------------------------------------------------------------------- the others, by documented calls


class Fake:
    """Records the calls of a package that is not installed here."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []

    def call(self, name: str, result: Any = None) -> Any:
        def recorded(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            return result

        return recorded

    def named(self, name: str) -> list[tuple[Any, Any]]:
        return [(arguments, named) for called, arguments, named in self.calls if called == name]


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in members.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """``wandb``, ``mlflow`` and ``trackio`` with the calls that their manuals document."""
    found = Fake()

    class WandbError(Exception):
        pass

    run = SimpleNamespace(log=found.call("wandb.log"), finish=found.call("wandb.finish"))
    wandb = module(
        "wandb", init=found.call("wandb.init", run), Image=lambda image: ("image", image.size), Error=WandbError
    )
    board = SimpleNamespace(log=found.call("trackio.log"), finish=found.call("trackio.finish"))
    trackio = module("trackio", init=found.call("trackio.init", board), Image=lambda path: ("image", path))
    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
    active = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    mlflow = module(
        "mlflow",
        search_experiments=lambda filter_string: [],
        create_experiment=found.call("mlflow.create_experiment", "1"),
        start_run=found.call("mlflow.start_run", active),
        log_params=found.call("mlflow.log_params"),
        log_metrics=found.call("mlflow.log_metrics"),
        log_artifact=found.call("mlflow.log_artifact"),
        end_run=found.call("mlflow.end_run"),
        utils=SimpleNamespace(validation=limits),
    )
    exceptions = module("mlflow.exceptions", MlflowException=type("MlflowException", (Exception,), {}))
    for each in (wandb, trackio, mlflow, exceptions):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return found


def tell(run: Path, name: str, step: int = 0) -> None:
    """A short life of one tracker."""
    grid = run / "grids" / "step-000010.png"
    grid.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 6)).save(grid)
    with watched((name,), run, CONFIG, step, print) as trackers:
        trackers.line({"kind": "train", "step": 10, "loss": 0.5})
        trackers.picture(grid, grid.read_bytes(), 10)
        trackers.picture(run / "grids" / "step-000010.txt", b"text", 10)


def test_wandb(fake: Fake, tmp_path: Path) -> None:
    tell(tmp_path / "mine", "wandb")
    [(_, first)] = fake.named("wandb.init")
    assert first["project"] == "sfumato"
    assert (first["name"], first["resume"], first["dir"]) == ("mine", "allow", str(tmp_path / "mine"))
    assert first["config"]["lr"] == 0.001
    assert first["config"]["channels"] == "[8, 16]"
    assert first["config"]["horizon_steps"] == 20
    logged = fake.named("wandb.log")
    assert logged[0] == (({"train/loss": 0.5},), {"step": 10})
    assert logged[1] == (({"samples": [("image", (4, 6))]},), {"step": 10})
    assert len(logged) == 2
    assert len(fake.named("wandb.finish")) == 1
    tell(tmp_path / "mine", "wandb", step=10)
    assert fake.named("wandb.init")[1][1]["id"] == first["id"]  # the same run goes on


def test_trackio(fake: Fake, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    tell(run, "trackio")
    [(_, first)] = fake.named("trackio.init")
    assert (first["project"], first["resume"]) == ("sfumato", "allow")
    assert first["name"].startswith("mine-")
    assert fake.named("trackio.log") == [
        (({"train/loss": 0.5},), {"step": 10}),
        (({"samples": ("image", str(run / "grids" / "step-000010.png"))},), {"step": 10}),
    ]
    assert len(fake.named("trackio.finish")) == 1
    tell(run, "trackio", step=10)
    assert fake.named("trackio.init")[1][1]["name"] == first["name"]


def test_mlflow(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_TAGS", "MLFLOW_NESTED_RUN"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "mine"
    tell(run, "mlflow")
    [(_, first)] = fake.named("mlflow.start_run")
    assert (first["run_name"], first["run_id"], first["experiment_id"]) == ("mine", None, "1")
    [((parameters,), _)] = fake.named("mlflow.log_params")
    assert parameters["data"] == "digits"
    assert fake.named("mlflow.log_metrics") == [(({"train/loss": 0.5},), {"step": 10})]
    [(_, where)] = fake.named("mlflow.log_artifact")
    assert where == {"local_path": str(run / "grids" / "step-000010.png"), "artifact_path": "samples"}
    assert len(fake.named("mlflow.end_run")) == 1
    tell(run, "mlflow", step=10)
    assert fake.named("mlflow.start_run")[1][1]["run_id"] == "abc"
    assert len(fake.named("mlflow.log_params")) == 1  # parameters of a run cannot change


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    fake: Fake, tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = sys.modules["wandb"]
    logged: list[int] = []

    def log(values: Any, step: int) -> None:
        logged.append(step)
        if step > 1:
            raise wandb.Error("the server went away\nand more")

    run = SimpleNamespace(log=log, finish=fake.call("wandb.finish"))
    monkeypatch.setattr(wandb, "init", fake.call("wandb.init", run))
    out = tmp_path / "run"
    sf.train("edm", data, steps=12, out=out, trackers="wandb,tensorboard", **TINY)
    err = capsys.readouterr().err
    assert err.count("wandb failed and is left out from here on (the server went away); training goes on") == 1
    assert logged == [1, 6]
    assert [event.step for event in events(out).Scalars("validation/loss")] == [6, 12]


def test_a_tracker_that_does_not_begin_is_one_line(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = sys.modules["wandb"]

    def init(**named: Any) -> None:
        raise wandb.Error("no key\n  and a long story")

    monkeypatch.setattr(wandb, "init", init)
    line = "wandb does not start: no key; mend it, or go on without it: "
    with pytest.raises(sf.Refusal) as refusal:
        tell(tmp_path, "wandb")
    assert str(refusal.value) == line + "add --resume, leave --tracker out"
    (tmp_path / "trackers.json").write_text('{"wandb": "abc"}')  # which a resumed run continues, unless told otherwise
    with pytest.raises(sf.Refusal) as refusal:
        tell(tmp_path, "wandb")
    assert str(refusal.value) == line + f"take it out of {tmp_path / 'trackers.json'}"


def test_a_run_goes_on_without_a_tracker_that_does_not_begin(
    fake: Fake, tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the refusal says: the folder is there already, so the run is resumed; those that began are continued."""
    wandb, out = sys.modules["wandb"], tmp_path / "run"

    def init(**named: Any) -> None:
        raise wandb.Error("no key")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(sf.Refusal, match="add --resume, leave --tracker out"):
        sf.train("edm", data, steps=1, out=out, trackers="tensorboard,wandb", quiet=True, **TINY)
    sf.train("edm", data, out=out, resume=True, quiet=True)
    assert [event.step for event in events(out).Scalars("validation/loss")] == [1]


@pytest.mark.parametrize("name", ["sqlite3:OperationalError", "httpx:ConnectError"])
def test_what_trackio_raises_does_not_end_training(
    name: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, _, kind = name.partition(":")
    base = type("HTTPError", (Exception,), {})
    httpx = module("httpx", HTTPError=base, ConnectError=type("ConnectError", (base,), {}))
    monkeypatch.setitem(sys.modules, "httpx", httpx)
    found = getattr(importlib.import_module(where), kind)

    def log(values: Any, step: int) -> None:
        raise found("database is locked")

    board = SimpleNamespace(log=log, finish=fake.call("trackio.finish"))
    monkeypatch.setattr(sys.modules["trackio"], "init", fake.call("trackio.init", board))
    tell(tmp_path / "mine", "trackio")
    line = "trackio failed and is left out from here on (database is locked); training goes on"
    assert capsys.readouterr().out.splitlines() == [line]


def test_the_run_s_own_fault_is_the_one_that_is_told(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish() -> None:
        raise RuntimeError("the tracker's own")

    run = SimpleNamespace(log=fake.call("wandb.log"), finish=finish)
    monkeypatch.setattr(sys.modules["wandb"], "init", fake.call("wandb.init", run))
    with pytest.raises(ZeroDivisionError), watched(("wandb",), tmp_path, CONFIG, 0, print):
        1 / 0


def test_trackers_are_finished_whatever_happens(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), watched(("wandb",), tmp_path, CONFIG, 0, print):
        1 / 0
    assert len(fake.named("wandb.finish")) == 1
