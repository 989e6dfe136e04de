"""Bad input on the command line: one line on standard error, exit code 2, nothing written over."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import sfumato as sf
from sfumato.__main__ import run

TINY = [
    "--set", "channels=8", "--set", "attention=no", "--set", "blocks=1", "--set", "patch=2", "--set", "batch=16",
    "--set", "reports=2", "--set", "validation_images=8", "--set", "grid_columns=0", "--set", "precision=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with classes and label dropout."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(["train", "flow", "--data", "digits", "--steps", "4", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.fixture(scope="module")
def undropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained without label dropout."""
    folder = tmp_path_factory.mktemp("undropped") / "run"
    arguments = ["train", "flow", "--data", "digits", "--steps", "2", "--out", str(folder), *TINY]
    assert run([*arguments, "--set", "label_dropout=0"]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, and check that it was refused in one line."""
    capsys.readouterr()
    code = run(arguments)
    output = capsys.readouterr()
    assert code == 2, f"exit code {code}: {output.err}"
    assert output.err.count("\n") == 1, f"more than one line: {output.err}"
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "train"),
        (["list", "sampler"], "did you mean samplers"),
        (["inspect", "minst"], "did you mean mnist"),
        (["inspect", "{tmp}"], "holds no images"),
        (["train", "dpm", "--data", "digits", "--out", "{tmp}/x"], "unknown recipe 'dpm'; did you mean"),
        (["train", "ddpm", "--data", "digit", "--out", "{tmp}/x"], "unknown data 'digit'; did you mean digits"),
        (["train", "ddpm", "--data", "{tmp}/none.npz", "--out", "{tmp}/x"], "cannot read"),
        (["train", "ddpm", "--data", "digits"], "--out"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--steps", "0"], "steps=0"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--minutes", "-1"], "minutes=-1"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--steps", "1", "--minutes", "1"], "give one"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--set", "lrr=1"], "did you mean lr"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--set", "lr"], "KEY=VALUE"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--set", "seed=1"], "--seed"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--set", "schedule=cosin"], "did you mean cosine"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--set", "schedule=cosine-continuous"], "use 'v'"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--seed", "-1"], "seed=-1"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--device", "gpu"], "unknown device 'gpu'"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--config", "{tmp}/no.toml"], "No such file"),
        (["train", "ddpm", "--data", "digits", "--out", "{tmp}/x", "--resume"], "not a folder"),
        (["train", "ddpm", "--data", "{tmp}/odd.npz", "--out", "{tmp}/x"], "nearest: 8x12 or 12x12"),
        (["train", "flow", "--data", "digits", "--out", "/proc/none/x", "--steps", "1", *TINY], "cannot write"),
        (["train", "flow", "--data", "digits", "--out", "{tmp}/odd.npz/x", "--steps", "1", *TINY], "cannot write"),
        (["train", "flow", "--data", "digits", "--out", "{tmp}", "--steps", "1", *TINY], "is not empty"),
        (["sample", "{tmp}/none"], "is not a folder"),
        (["sample", "{run}", "--n", "0"], "n=0"),
        (["sample", "{run}", "--steps", "0"], "steps=0"),
        (["sample", "{run}", "--n", "many"], "--n"),
        (["sample", "{run}", "--label", "eleven"], "unknown label 'eleven'"),
        (["sample", "{run}", "--sampler", "dpmpp"], "or dpmpp-2m"),
        (["sample", "{run}", "--grid", "karas"], "did you mean karras"),
        (["sample", "{run}", "--out", "{tmp}"], "exists already"),
        (["sample", "{run}", "--out", "{tmp}/odd.npz/x"], "cannot write"),
        (["sample", "{undropped}", "--guidance", "2"], "label dropout"),
        (["eval", "{run}", "--n", "4"], "n=4"),
        (["train", "edm", "--data", "digits", "--out", "{run}", "--resume"], "recipe flow, not edm"),
        (["train", "flow", "--data", "digits", "--out", "{run}", "--resume", "--set", "lr=1"], "lr 0.001, not 1.0"),
        (["train", "flow", "--data", "digits", "--out", "{run}", "--resume", "--steps", "9"], "horizon steps=4"),
        (["train", "flow", "--data", "{tmp}/odd.npz", "--out", "{run}", "--resume"], "data name digits"),
        (["train", "flow", "--data", "digits", "--out", "{run}", "--steps", "9"], "continue it with --resume"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    arguments: list[str],
    message: str,
    trained: Path,
    undropped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "odd.npz", x=np.arange(20 * 9 * 12, dtype=np.uint8).reshape(20, 9, 12))
    before = contents(trained), contents(undropped), contents(tmp_path)
    words = {"{tmp}": str(tmp_path), "{run}": str(trained), "{undropped}": str(undropped)}
    for word, value in words.items():
        arguments = [argument.replace(word, value) for argument in arguments]
    assert message in refused(arguments, capsys)
    assert (contents(trained), contents(undropped), contents(tmp_path)) == before


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty"])
def test_a_damaged_run_is_refused(
    file: str, damage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / file
    content = path.read_bytes()
    flipped = (
        content.replace(b'"recipe"', b'"recife"') if file == "config.json" else content[:-5] + b"\x00\xff\x01\x02\x03"
    )
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": content[: len(content) // 2], "flipped": flipped, "empty": b""}[damage])
    line = refused(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "s")], capsys)
    assert file in line
    assert "missing" in line if damage == "gone" else "damaged" in line
    assert not (tmp_path / "s").exists()


def test_weights_of_another_network_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"patch": 2', '"patch": 1'))
    assert "does not fit its config.json" in refused(["sample", str(tmp_path / "run")], capsys)


def test_a_newer_format_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"format": 1', '"format": 2'))
    assert "update sfumato" in refused(["sample", str(tmp_path / "run")], capsys)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full: no file may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with files_of_at_most(8000):
        assert run(["train", "flow", "--data", "digits", "--out", str(out), "--steps", "4", *TINY]) == 2
    *progress, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("sfumato: cannot write")
    assert all("held-out loss" in before or before.startswith("expected: ") for before in progress)
    assert not list((out / "checkpoints").iterdir()), "a part of a checkpoint was left"


def test_a_full_disk_while_sampling(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_of_at_most(500):
        line = refused(["sample", str(trained), "--n", "20", "--out", str(tmp_path / "s")], capsys)
    assert "cannot write" in line
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_with_its_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["train", "flow", "--data", "digits", "--out", str(out), "--steps", "40", *TINY]
    wild = ["--set", "lr=1e25", "--set", "warmup=0", "--set", "reports=40"]
    capsys.readouterr()
    assert run([*arguments, *wild]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "log-SNR" in last
    assert "the last checkpoint is kept" in last


def test_python_refuses_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(sf.Refusal, match="did you mean"):
        sf.train("dpm", "digits")
    with pytest.raises(sf.Refusal, match="resume needs out"):
        sf.train("ddpm", "digits", resume=True)
    with pytest.raises(sf.Refusal, match="is not a folder"):
        sf.load(tmp_path / "none")
    with pytest.raises(sf.Refusal, match="unknown weights"):
        sf.load(tmp_path, weights="averaged")
