"""The command line from end to end on the 8x8 digits."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.__main__ import run
from sfumato.training.monitor import Log

SET = [
    "--set", "channels=8", "--set", "attention=no", "--set", "patch=2", "--set", "batch=32", "--set", "reports=2",
    "--set", "validation_images=16", "--set", "grid_columns=2", "--set", "grid_steps=2", "--set", "precision=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on the command line with settings from a file and from --set."""
    home = tmp_path_factory.mktemp("cli")
    (home / "settings.toml").write_text("blocks = 1\nlr = 0.002\nsampling_steps = 5\n")
    out = home / "run"
    arguments = ["train", "edm", "--data", "digits", "--out", str(out), "--steps", "30", "--seed", "3"]
    assert run([*arguments, "--config", str(home / "settings.toml"), *SET]) == 0
    return out


def opened(path: Path) -> np.ndarray:
    """A picture's grey levels."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    with np.load(path) as file:
        return dict(file)


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(arguments) == 0
    return capsys.readouterr().out


def test_help_and_version_need_no_torch() -> None:
    code = (
        "import sys, sfumato; from sfumato.__main__ import run; code = run(['--help']);"
        "heavy = {'torch', 'numpy', 'matplotlib', 'rich', 'accelerate', 'scipy', 'PIL'} & set(sys.modules);"
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for verb in ("list", "inspect", "train", "sample", "eval", "demo"):
        assert verb in result.stdout


def test_the_module_runs_and_exits_with_its_code() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sfumato", "list", "sampler"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "sfumato: unknown part 'sampler'; did you mean samplers or metrics?\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    everything = said(["list"], capsys)
    for name in ("ddpm", "flow", "edm", "mnist", "digits", "dpmpp-2m", "scaled-linear", "trailing", "unet"):
        assert name in everything
    from sfumato import samplers

    text = said(["list", "samplers"], capsys)
    assert [line.split()[0] for line in text.splitlines() if line[:1].strip()][:-1] == [*samplers.names(), "auto"]
    ddim = text.split("\nddim ")[1].splitlines()
    assert "order 1" in ddim[0]
    assert "1 a step" in ddim[0]
    assert ddim[1].split() == ["eta=0.0"]
    assert "sigma_min=0.002 sigma_max=None rho=7.0" in said(["list", "grids"], capsys)
    assert "beta_start=0.0001" in said(["list", "schedules"], capsys)
    assert "arXiv" in said(["list", "recipes"], capsys)


def test_the_run_folder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config["recipe"], config["seed"], config["horizon"]) == ("edm", 3, {"steps": 30})
    assert (config["settings"]["lr"], config["settings"]["blocks"], config["settings"]["channels"]) == (0.002, 1, [8])
    assert config["data"]["name"] == "digits"
    assert config["data"]["transform"]["name"] == "uint8-image"
    assert config["versions"]["sfumato"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in log} == {"train", "validation"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-15", "step-30"}
    assert {path.name for path in (folder / "grids").iterdir()} == {"step-000015.png", "step-000030.png"}
    for picture in ("loss.png", "grids/step-000030.png"):
        assert opened(folder / picture).shape[0] > 20


def test_training_ends_with_the_command_to_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    text = said(
        ["train", "flow", "--data", "digits", "--out", str(out), "--steps", "2", "--set", "blocks=1", *SET], capsys
    )
    command = text.strip().splitlines()[-1].split("sfumato ", 1)[1]
    said(command.split(), capsys)
    assert (out / "samples" / "grid.png").is_file()


def test_sample_writes_three_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["sample", str(folder), "--n", "30", "--seed", "7", "--out", str(tmp_path / "s")], capsys)
    assert "30 samples" in text
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"samples.npz", "grid.png", "samples.json"}
    stored = arrays(tmp_path / "s" / "samples.npz")
    assert (stored["x"].dtype, stored["x"].shape) == (np.uint8, (30, 8, 8))
    assert stored["label"].tolist() == [*range(10)] * 3
    record = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert record["seeds"] == list(range(7, 37))
    assert (record["run"], record["steps"], record["recipe"]) == (str(folder), 5, "edm")
    assert record["nfe"] > 0
    assert record["seconds"] > 0
    assert record["version"]
    # the grid has a row for each class: its first row is class 0, samples 0, 10, 20
    grid = opened(tmp_path / "s" / "grid.png")
    scale, gap = 2, 2
    first = stored["x"][10].repeat(scale, 0).repeat(scale, 1)
    left = gap + 8 * scale + gap
    assert np.array_equal(grid[gap : gap + 8 * scale, left : left + 8 * scale], first)


def test_sample_options(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--label",
        "3",
        "--label",
        "8",
        "--guidance",
        "1.5",
        "--sampler",
        "ddpm",
        "--grid",
        "uniform",
        "--steps",
        "4",
    ]
    said(
        [
            "sample",
            str(folder),
            "--n",
            "4",
            *options,
            "--interval",
            "0.1",
            "0.9",
            "--raw",
            "--out",
            str(tmp_path / "s"),
        ],
        capsys,
    )
    record = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert record["label"] == ["3", "8", "3", "8"]
    assert (record["sampler"], record["grid"], record["steps"], record["guidance"]) == ("ddpm", "uniform", 4, 1.5)
    assert (record["interval"], record["weights"], record["nfe"]) == ([0.1, 0.9], "raw", 4)


def test_inspect_a_run_and_data(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = said(["inspect", str(folder)], capsys)
    for part in ("edm", "digits", "30 steps", "lr=0.002", "step-30", "parameters"):
        assert part in report
    monkeypatch.chdir(tmp_path)
    report = said(["inspect", "digits"], capsys)
    assert "digits" in report
    assert "1,437 train" in report
    assert opened(tmp_path / "digits-sheet.png").shape[0] > 80


def test_eval_appends_records(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato import data, metrics

    n = metrics.limits(data.load("digits"))[0]
    text = said(["eval", str(folder), "--n", str(n), "--out", str(tmp_path / "s"), "--seed", "5"], capsys)
    assert "frechet" in text
    lines = [metrics.Record.from_json(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line.name for line in lines} >= {"frechet", "kernel", "precision", "recall", "label-accuracy", "copy-rate"}
    assert all((line.n, line.seed, line.sampler) == (n, 5, "heun") for line in lines)
    assert len(arrays(tmp_path / "s" / "samples.npz")["x"]) == n
    assert "frechet" in said(["inspect", str(folder)], capsys)


def test_the_verbs_that_sample_share_their_options() -> None:
    from typer.main import get_command

    from sfumato.cli import app

    verbs = get_command(app).commands  # type: ignore[attr-defined]
    options = {name: {p.name: p for p in verbs[name].params} for name in ("sample", "eval", "compare")}
    shared = {"label", "guidance", "interval", "threshold", "seed", "batch", "device", "raw", "ema", "autoguide"}
    for name in shared:
        texts = {(found[name].help, tuple(found[name].opts), str(found[name].default)) for found in options.values()}
        assert len(texts) == 1, name
    for name in ("sampler", "steps", "grid"):
        assert options["sample"][name].help == options["eval"][name].help
    assert {"likelihood", "transport"} <= set(options["eval"]) - set(options["sample"])


def test_a_threshold_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", str(folder), "--n", "2", "--steps", "2", "--label", "7"]
    said([*command, "--out", str(tmp_path / "a"), "--threshold", "dynamic:quantile=0.9"], capsys)
    record = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert (record["threshold"], record["clip"]) == ("dynamic:quantile=0.9", True)
    assert run([*command, "--threshold", "dynamo"]) == 2
    assert "unknown threshold 'dynamo'" in capsys.readouterr().err
    assert run(["eval", str(folder), "--likelihood", "--threshold", "static"]) == 2
    assert "--threshold goes with samples, and --likelihood draws none" in capsys.readouterr().err


def test_transport_is_of_flows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(folder), "--transport", "--n", "4"]) == 2
    assert "recipe 'edm' is no flow" in capsys.readouterr().err
    assert run(["eval", str(folder), "--transport", "--likelihood"]) == 2
    assert "--transport goes with samples, and --likelihood draws none" in capsys.readouterr().err


def test_resume_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(["train", "edm", "--data", "digits", "--out", str(folder), "--resume"], capsys)
    assert json.loads((folder / "config.json").read_text())["horizon"] == {"steps": 30}


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(log: Log, step: object) -> None:
        signal.raise_signal(signal.SIGINT)

    out = tmp_path / "a run"
    arguments = ["train", "flow", "--data", "digits", "--out", str(out), "--steps", "9", "--set", "blocks=1", *SET]
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", step)
        assert run(arguments) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sfumato: stopped at step 1 and saved; continue with: sfumato train flow")
    said(shlex.split(line.split("continue with: sfumato ")[1]), capsys)
    assert (out / "checkpoints" / "step-9").is_dir()


def test_config_of_another_run_gives_its_settings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    said(
        [
            "train",
            "edm",
            "--data",
            "digits",
            "--out",
            str(out),
            "--steps",
            "1",
            "--config",
            str(folder / "config.json"),
        ],
        capsys,
    )
    stored = [json.loads((place / "config.json").read_text())["settings"] for place in (out, folder)]
    assert stored[0] == stored[1]


def test_the_demo_moves_an_older_run_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato import data, metrics
    from sfumato.cli.demo import Demo, demo_run

    settings = dict(pair.split("=", 1) for pair in SET[1::2]) | {"blocks": 1, "sampling_steps": 3}
    n = -(-metrics.limits(data.load("digits"))[0] // 10) * 10
    out = tmp_path / "demo"
    out.mkdir()
    (out / "precious").write_text("kept")
    demo_run(out, Demo(recipe="flow", data="digits", minutes=0.01, settings=settings, n=n))
    text = capsys.readouterr().out
    assert (tmp_path / "demo.1" / "precious").read_text() == "kept"
    for name in (
        "digits.png",
        "trajectory.png",
        "loss.png",
        "samples/samples.npz",
        "samples/grid.png",
        "metrics.jsonl",
    ):
        assert (out / name).is_file(), name
    stored = arrays(out / "samples" / "samples.npz")
    assert stored["x"].shape == (n, 8, 8)
    assert np.bincount(stored["label"]).tolist() == [n // 10] * 10
    assert f"sfumato sample {out}" in text
