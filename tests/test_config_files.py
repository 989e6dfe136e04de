"""Hyper-parameter files: what they may say, what the command line changes, and a run that repeats another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato as sf
from sfumato.__main__ import run as run_sfumato
from sfumato.cli import config as files

TINY = {
    "channels": [8], "attention": [False], "patch": 2, "blocks": 1, "batch": 32, "reports": 1, "grid_columns": 0,
    "validation_images": 16, "precision": "float32",
}  # fmt: skip
YAML = """
recipe: flow
data: digits
steps: 3
seed: 4
optimisation: {lr: 1e-3, batch: 16}
network:
  channels: [8]
  attention: [false]
  patch: 2
  blocks: 1
reporting.reports: 1
grid_columns: 0
validation_images: 16
precision: float32
"""
TOML = """
recipe = "flow"
data = "digits"
steps = 3
seed = 4
grid_columns = 0
validation_images = 16
[optimisation]
lr = 0.001
batch = 16
precision = "float32"
[network]
channels = [8]
attention = [false]
patch = 2
blocks = 1
[reporting]
reports = 1
"""


def trained(*words: str) -> int:
    return run_sfumato(["train", *words])


def config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "config.json").read_text())
    return found


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command says."""
    capsys.readouterr()
    assert run_sfumato(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err.removeprefix("sfumato: ").rstrip("\n")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from a YAML file alone."""
    home = tmp_path_factory.mktemp("files")
    (home / "run.yaml").write_text(YAML)
    assert trained("--config", str(home / "run.yaml"), "--out", str(home / "first")) == 0
    return home / "first"


# --------------------------------------------------------------------------------------------------------- what is read


def test_a_file_can_say_everything(first: Path) -> None:
    found = config(first)
    assert (found["recipe"], found["seed"], found["horizon"]) == ("flow", 4, {"steps": 3})
    settings = found["settings"]
    assert (settings["lr"], settings["batch"], settings["channels"]) == (0.001, 16, [8])
    assert (settings["attention"], settings["reports"], settings["blocks"]) == ([False], 1, 1)


def test_all_kinds_of_files_say_the_same(first: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(YAML)
    (tmp_path / "b.toml").write_text(TOML)
    plain = json.dumps(
        {"recipe": "flow", "data": "digits", "steps": 3, "seed": 4, "settings": config(first)["settings"]}
    )
    (tmp_path / "c.json").write_text(plain)
    read = [files.together(files.read(tmp_path / name), {}, {}, {}) for name in ("a.yml", "b.toml", "c.json")]
    for asked in read:
        assert dict(asked.options) == {"recipe": "flow", "data": "digits", "steps": 3, "seed": 4}
        recipe = sf.recipes.get("flow")
        from sfumato.training.settings import flatten, resolve

        assert flatten(resolve(recipe.defaults, asked.settings)) == config(first)["settings"]
        assert asked.notes == ()


def test_out_and_trackers_can_be_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"{YAML}out: {tmp_path / 'run'}\ntracker: tensorboard\nminutes: 1\n")
    assert trained("--config", str(tmp_path / "run.yaml"), "--steps", "1") == 0
    assert (tmp_path / "run" / "tensorboard").is_dir()
    assert config(tmp_path / "run")["horizon"] == {"steps": 1}


def test_how_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("recipe: flow\ndata: photos\nresolution: 16\nlabels: none\n")
    filed = files.read(tmp_path / "run.yaml")
    asked = files.together(filed, {}, {"resolution": "8x12"}, {})
    assert asked.how() == sf.data.Options(resolution=(8, 12), labels="none")
    assert asked.notes == (f"resolution=8x12 (the command line) in place of resolution: 16 ({tmp_path / 'run.yaml'})",)
    for said, meant in (("label_column: null", "None"), ("labels: no", "False"), ("crop: 0.5", "0.5")):
        (tmp_path / "run.yaml").write_text(f"recipe: flow\ndata: photos\n{said}\n")
        with pytest.raises(sf.Refusal, match=f"{said.partition(':')[0]} is {meant}; write a whole number, or a text"):
            files.read(tmp_path / "run.yaml")


# ------------------------------------------------------------------------------------------------------ repeating a run


def test_a_runs_config_repeats_it(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    assert trained("--config", str(first / "config.json"), "--out", str(again)) == 0
    assert "in place of" not in capsys.readouterr().err
    assert config(again) == config(first)
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_the_command_line_wins_and_it_is_said(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = first / "config.json", tmp_path / "again"
    words = ["flow", "--seed", "5", "--steps", "2", "--set", "lr=0.002", "--set", "optimisation.batch=16"]
    assert trained(*words, "--config", str(path), "--out", str(out)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "in place of" in line]
    assert said == [
        f"sfumato: --steps 2 (the command line) in place of steps: 3 ({path})",
        f"sfumato: --seed 5 (the command line) in place of seed: 4 ({path})",
        f"sfumato: --set lr=0.002 (the command line) in place of lr: 0.001 ({path})",
    ]
    found = config(out)
    assert (found["seed"], found["horizon"], found["settings"]["lr"]) == (5, {"steps": 2}, 0.002)


def test_minutes_take_the_place_of_steps(first: Path) -> None:
    asked = files.together(files.read(first / "config.json"), {"minutes": 0.5}, {}, {})
    assert (asked.get("minutes"), asked.get("steps")) == (0.5, None)
    assert asked.notes == (f"--minutes 0.5 (the command line) in place of steps: 3 ({first / 'config.json'})",)


def test_another_recipe_with_a_runs_settings(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    line = failed(["train", "edm", "--config", str(first / "config.json"), "--out", out], capsys)
    assert "config.json: unknown setting" in line
    assert "of edm" in line


def test_data_that_have_changed_are_not_the_run_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "mine.npz", tmp_path / "run"
    x = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez(source, x=x)
    settings = [word for name, value in TINY.items() for word in ("--set", f"{name}={text(value)}")]
    assert trained("flow", "--data", str(source), "--steps", "1", "--out", str(out), *settings) == 0
    np.savez(source, x=255 - x)
    words = ["train", "--config", str(out / "config.json"), "--out", str(tmp_path / "again")]
    assert "has changed since the run was trained on it" in failed(words, capsys)
    assert not (tmp_path / "again").exists()
    assert run_sfumato([*words, "--data", "digits"]) == 0  # other data, because they were asked for
    assert "--data digits (the command line) in place of data:" in capsys.readouterr().err


def text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def test_resuming_needs_no_repetition(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (first / "model.safetensors").read_bytes()
    assert trained("--out", str(first), "--resume") == 0
    assert (first / "model.safetensors").read_bytes() == before
    assert failed(["train", "--out", str(first / "no"), "--resume"], capsys).startswith(
        f"{first / 'no'} is not a folder"
    )
    assert "was trained with seed 4, not 9" in failed(["train", "--out", str(first), "--resume", "--seed", "9"], capsys)


def test_the_file_of_the_documentation(tmp_path: Path) -> None:
    from sfumato.training.settings import resolve

    page = (Path(__file__).parents[1] / "docs" / "watching.md").read_text()
    [block] = re.findall(r"^```yaml\n(.*?)^```", page, re.S | re.M)
    (tmp_path / "run.yaml").write_text(block)
    asked = files.together(files.read(tmp_path / "run.yaml"), {}, {}, {})
    settings = resolve(sf.recipes.get(asked.get("recipe")).defaults, asked.settings)
    assert (settings.optimisation.lr, settings.sampling.sampling_steps, settings.network.blocks) == (0.002, 20, 1)
    assert asked.get("minutes") == 3.0


# ------------------------------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.yaml", "recipe: flow\nlrr: 1\n", "unknown setting 'lrr' of flow; did you mean lr"),
        (
            "a.yaml",
            "recipe: flow\noptimization: {lr: 1}\n",
            "unknown setting 'optimization.lr' of flow; did you mean opt",
        ),
        ("a.yaml", "recipe: flow\nnetwork: {lr: 1}\n", "unknown setting 'network.lr' of flow"),
        ("a.yaml", "recipe: flow\nsteeps: 3\n", "unknown setting 'steeps' of flow; did you mean steps"),
        ("a.yaml", "recipe: flow\nlr: 1\noptimisation: {lr: 2}\n", "lr is given twice, once as optimisation.lr"),
        ("a.yaml", "recipe: flow\nlr: 1\nlr: 2\n", "is no YAML file: 'lr' is given twice"),
        ("a.yaml", "recipe: flow\nlr:\n", "lr has no value; give it one, or leave the line out"),
        ("a.yaml", "recipe: [flow\n", "is no YAML file: "),
        ("a.yaml", "- flow\n", "holds no settings; write KEY: VALUE lines"),
        ("a.yaml", "recipe: flow\nsteps: three\n", "steps=three: needs a whole number"),
        ("a.yaml", "recipe: flow\ndata: {name: digits}\n", "data={'name': 'digits'}: needs a name"),
        ("a.yaml", "recipe: flow\nresume: true\n", "'resume' is an option; give it as --resume"),
        ("a.yaml", "recipe: flaw\nlr: 1\n", "unknown recipe 'flaw'; did you mean flow"),
        ("a.yaml", "data: digits\n", "no recipe: give sfumato train RECIPE, or --config FILE with recipe in it"),
        ("a.toml", "recipe = flow\n", "is no TOML file: "),
        ("a.json", "{recipe: flow}", "is no JSON file: "),
        ("a.ini", "recipe = flow", "hyper-parameters are read from .toml, .yaml, .yml, .json"),
    ],
)
def test_refusals(name: str, content: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / name, tmp_path / "run"
    path.write_text(content)
    found = failed(["train", "--config", str(path), "--out", str(out)], capsys)
    assert line in found
    assert not out.exists()


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert failed(["train", "flow", "--out", out], capsys).startswith("no data: give --data")
    assert failed(["train", "flow", "--data", "digits"], capsys).startswith("no out: give --out")
    assert failed(["train", "--data", "digits", "--out", out], capsys).startswith(
        "no recipe: give sfumato train RECIPE"
    )
    line = failed(["train", "flow", "--data", "digits", "--out", out, "--config", str(tmp_path / "no.yaml")], capsys)
    assert line == f"cannot read {tmp_path / 'no.yaml'} (No such file or directory); check the path"


def test_set_knows_groups(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert files.plain_names({"optimisation.lr": "1", "network.blocks": "2"}, "flow", "--set") == {
        "lr": "1", "blocks": "2",
    }  # fmt: skip
    words = ["train", "flow", "--data", "digits", "--out", str(tmp_path / "run")]
    assert "--set: unknown setting 'optimisation.lrr'" in failed([*words, "--set", "optimisation.lrr=1"], capsys)
    assert failed([*words, "--set", "minutes=1"], capsys) == "--set: 'minutes' is an option; give it as --minutes"
    assert failed([*words, "--set", "lr"], capsys) == "--set lr: write KEY=VALUE, e.g. --set lr=0.001"


def test_a_damaged_config_is_one_line(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = config(first)
    del stored["data"]["name"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    line = failed(["train", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")], capsys)
    assert line.startswith(f"{tmp_path / 'config.json'} is damaged ('name')")
