"""A user's own data: whatever is in the folder, it trains and samples in its own units or is refused in one line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sfumato as sf
from pictures import corrupt, fill, levels, picture, png_header
from sfumato import data
from sfumato.__main__ import run
from sfumato.data.options import Options, from_json, size
from sfumato.data.views import ImageFiles

TINY = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 4, "reports": 1, "precision": "float32",
    "validation_images": 8, "grid_columns": 0,
}  # fmt: skip
SET = [word for name, value in TINY.items() for word in ("--set", f"{name}={str(value).strip('(),')}")]


# ------------------------------------------------------------------------------------- twelve awkward data sets


def mixed_modes(root: Path) -> Path:
    root.mkdir()
    for k, mode in enumerate(["L", "RGB", "RGBA", "P", "I;16", "1", "LA", "RGB"]):
        picture(mode, 16, 16, seed=k).save(root / f"{k}.png")
    picture("CMYK", 16, 16).save(root / "8.jpg")
    return root


def oblong(root: Path) -> Path:
    return fill(root, height=48, width=64)


def empty_class(root: Path) -> Path:
    fill(root / "cat")
    fill(root / "dog")
    (root / "emu").mkdir()
    return root


def one_image(root: Path) -> Path:
    return fill(root, n=1)


def table(root: Path) -> Path:
    path = root.with_suffix(".csv")
    path.write_text("price,kind,sold\n" + "1.5,house,2020-01-02\n,flat,\n3,house,2021-03-04\n" * 20)
    return path


def sixteen_bits(root: Path) -> Path:
    return fill(root, mode="I;16")


def huge(root: Path) -> Path:
    fill(root)
    (root / "wall.png").write_bytes(png_header(100_000, 100_000))
    return root


def duplicate_names(root: Path) -> Path:
    fill(root / "cat")
    fill(root / "dog")
    shutil.copy(root / "cat" / "000.png", root / "cat" / "000.PNG")
    return root


def non_ascii(root: Path) -> Path:
    # one of the two is written with a combining accent, as some file systems do
    fill(root / "K\u00e4se")
    fill(root / "cafe\u0301 \u732b")
    return root


def wrong_keys(root: Path) -> Path:
    path = root.with_suffix(".npz")
    np.savez(path, images=levels(20, 8, 8), targets=np.arange(20))
    return path


def symlink_loop(root: Path) -> Path:
    fill(root / "cat")
    fill(root / "dog")
    (root / "cat" / "again").symlink_to(root, target_is_directory=True)
    return root


#: name: (what makes it, the shape of one sample and the classes, or what the refusal says)
AWKWARD: dict[str, tuple[Callable[[Path], Path], Any]] = {
    "mixed modes": (mixed_modes, ((16, 16, 3), [])),
    "48x64": (oblong, ((48, 64, 3), [])),
    "corrupt file": (corrupt, "2 of 6 images cannot be read, the first is 002.png"),
    "empty class": (empty_class, ((8, 8, 3), ["cat", "dog"])),
    "one image": (one_image, "holds 1 image; give at least 2"),
    "16-bit": (sixteen_bits, ((8, 8), [])),
    "huge image": (huge, "the first is wall.png: it has more than"),
    "duplicate names": (duplicate_names, ((8, 8, 3), ["cat", "dog"])),
    "non-ASCII": (non_ascii, ((8, 8, 3), ["K\u00e4se", "caf\u00e9 \u732b"])),
    "NPZ with wrong keys": (wrong_keys, "holds images, targets; it must hold x"),
    "symlink loop": (symlink_loop, ((8, 8, 3), ["cat", "dog"])),
}


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything about a folder that could have been changed."""
    found = {}
    for path in sorted([root, *root.rglob("*")] if root.is_dir() else [root]):
        now = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (now.st_mode, now.st_mtime_ns, now.st_ino, now.st_size, content)
    return found


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_data_train_and_sample_or_are_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, expected = AWKWARD[name]
    source, out = make(tmp_path / "data"), tmp_path / "run"
    before = tree(source)
    code = run(["train", "flow", "--data", str(source), "--out", str(out), "--steps", "2", *SET])
    said = capsys.readouterr().err
    if isinstance(expected, str):
        assert code == 2
        assert said.count("\n") == 1
        assert expected in said
        assert not out.exists()
    else:
        shape, classes = expected
        assert code == 0, said
        assert run(["sample", str(out), "--n", "4", "--steps", "2", "--out", str(tmp_path / "samples")]) == 0
        with np.load(tmp_path / "samples" / "samples.npz") as stored:
            assert stored["x"].shape == (4, *shape)
            assert stored["x"].dtype == np.uint8
            assert ("label" in stored) == bool(classes)
        assert json.loads((out / "config.json").read_text())["data"]["classes"] == classes
    assert tree(source) == before


def test_a_table_with_gaps_and_text_trains_and_samples_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, samples = table(tmp_path / "data"), tmp_path / "run", tmp_path / "samples"
    before = tree(source)
    tiny = ["--set", "width=16", "--set", "depth=1", "--set", "batch=8", "--set", "validation_images=8"]
    arguments = ["train", "flow", "--data", str(source), "--out", str(out), "--steps", "2", *tiny]
    assert run([*arguments, "--set", "grid_columns=0"]) == 0, capsys.readouterr().err
    assert run(["sample", str(out), "--n", "5", "--steps", "2", "--out", str(samples)]) == 0
    with (samples / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["price", "kind", "sold"]
    assert len(rows) == 5
    assert {row["kind"] for row in rows} <= {"house", "flat"}
    assert tree(source) == before


# ------------------------------------------------------------------------------------------------------------- options


def test_options_are_checked_stored_and_read_back() -> None:
    options = Options(resolution=(64, 48), crop="none", label_column="breed")
    assert from_json(json.loads(json.dumps(options.to_json()))) == options
    assert options.to_json() == {"resolution": [64, 48], "crop": "none", "label_column": "breed"}
    assert str(options) == "resolution=64x48, crop=none, label_column=breed"
    assert Options().to_json() == {}
    assert (size("64x48"), size("32"), size("8X9")) == ((64, 48), (32, 32), (8, 9))
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: size("64*48"), "as in 64x48"),
        (lambda: Options(resolution=(0, 4)), "at least 1"),
        (lambda: Options(crop="centre"), "did you mean center"),
        (lambda: Options(corrupt="ignore"), "unknown corrupt"),
        (lambda: Options(background="whit"), "background=whit"),
        (lambda: Options(label_column="a", labels="none"), "does nothing with labels=none"),
        (lambda: from_json({"resolutoin": 3}), "did you mean resolution"),
    ]
    for make, message in bad:
        with pytest.raises(sf.Refusal, match=message):
            make()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shakespeare", Options(resolution=(8, 8)), "resolution=8x8 does nothing with the text called shakespeare"),
        ("digits", Options(label_column="a"), "label_column=a does nothing with the images called digits"),
        ("{folder}", Options(label_column="a"), "has no metadata.csv"),
        ("{folder}/none", Options(), "no such file or folder"),
    ],
)
def test_options_that_do_nothing_are_refused(name: str, options: Options, message: str, tmp_path: Path) -> None:
    with pytest.raises(sf.Refusal, match=message):
        data.load(name.format(folder=fill(tmp_path / "x")), options)


@pytest.mark.parametrize("name", ["digits", "emoji-32", "photos-32"])
def test_embedded_images_take_a_resolution(name: str) -> None:
    found, own = data.load(name, Options(resolution=(16, 12), crop="none")), data.load(name)
    assert found.shape == (own.shape[0], 16, 12)
    assert found.spec()["options"] == {"resolution": [16, 12], "crop": "none"}
    assert np.array_equal(found.train.label, own.train.label)
    image = np.asarray(own.test.x[1].permute(1, 2, 0).squeeze(-1))
    small = Image.fromarray(image).resize((12, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(found.test.x[1].permute(1, 2, 0).squeeze(-1), np.asarray(small))


def test_a_size_that_fits_no_network_is_refused_with_the_divisor_and_the_way_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", height=9, width=12)
    settings = TINY | {"channels": (8, 8), "attention": (False, False), "patch": 2}
    with pytest.raises(sf.Refusal, match=r"multiples of 4; nearest: 8x12 or 12x12; --resolution"):
        sf.train("flow", root, steps=1, quiet=True, **settings)
    model = sf.train("flow", root, options=Options(resolution=(8, 12)), steps=1, quiet=True, **settings)
    assert model.sample(2, steps=1).x.shape == (2, 8, 12, 3)


# -------------------------------------------------------------------------------------------------- report, page, verbs


def test_copies_are_counted(tmp_path: Path) -> None:
    x = levels(10, 4, 4)
    x[7:] = x[0]
    np.savez(tmp_path / "x.npz", x=x)
    report = data.load(tmp_path / "x.npz").report()
    assert report.copies == 3
    held = data.load(tmp_path / "x.npz").test.x[0, 0].numpy()
    assert report.leaked == int(np.array_equal(held, x[0]))
    assert any("only 9 training images" in warning for warning in report.warnings())


def test_the_page_opens_offline_and_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("<b>ant</b>", "bee"):
        fill(tmp_path / "x" / name.replace("/", "\u2215"), n=3)
    before = tree(tmp_path / "x")
    assert run(["inspect", str(tmp_path / "x"), "--html", "page.html", "--resolution", "4x6"]) == 0
    said = capsys.readouterr().out
    assert "page: page.html" in said
    assert "4 x 6, 3 channels" in said
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<b>ant" not in page
    assert "&lt;b&gt;ant" in page
    assert "://" not in page
    assert "Longer side of the files" in page
    assert page.count("data:image/png;base64,") == 2
    assert "learns them by heart" in page
    assert Path("x-sheet.png").is_file()
    assert tree(tmp_path / "x") == before
    assert run(["inspect", str(tmp_path / "x"), "--html", "page.html", "--sheet", "other.png"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not Path("other.png").exists()
    assert run(["inspect", "shakespeare", "--html", "text.html"]) == 0
    assert "alphabet" in Path("text.html").read_text(encoding="utf-8")


def test_samples_as_files_of_their_own(tmp_path: Path) -> None:
    for name in ("K\u00e4se", "a:b"):
        fill(tmp_path / "x" / name, n=3)
    model = sf.train("flow", tmp_path / "x", steps=1, quiet=True, **TINY)
    samples = replace(model.sample(2, label=["K\u00e4se", "a:b"], steps=1), view=ImageFiles())
    samples.save(tmp_path / "out")
    files = ["0000-K\u00e4se.png", "0001-a_b.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == files
    for file, pixels in zip(files, samples.x, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / file)), pixels.numpy())


def test_a_run_remembers_how_its_data_were_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = fill(tmp_path / "x", height=9, width=12), tmp_path / "run"
    arguments = ["train", "flow", "--data", str(root), "--out", str(out), *SET]
    assert run([*arguments, "--steps", "2", "--resolution", "8", "--crop", "none"]) == 0
    stored = json.loads((out / "config.json").read_text())["data"]
    assert (stored["options"], stored["shape"]) == ({"resolution": [8, 8], "crop": "none"}, [3, 8, 8])
    assert run([*arguments, "--resume"]) == 0
    assert data.reload(stored).shape == (3, 8, 8)
    capsys.readouterr()
    assert run([*arguments, "--resume", "--resolution", "16"]) == 2
    assert "data options resolution=8x8, crop=none, not resolution=16x16" in capsys.readouterr().err
    with pytest.raises(sf.Refusal, match="is loaded already"):
        sf.train("flow", data.load(root), options=Options(), steps=1)
