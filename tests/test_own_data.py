"""A user's own data: whatever is in the folder, it trains and samples in its own units or is refused in one line."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import data
from sfumato.__main__ import run
from sfumato.data import folder, images
from sfumato.data.options import Options, from_json, size
from sfumato.data.views import ImageFiles

TINY = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 4, "reports": 1, "precision": "float32",
    "validation_images": 8, "grid_columns": 0,
}  # fmt: skip
SET = [word for name, value in TINY.items() for word in ("--set", f"{name}={str(value).strip('(),')}")]


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def picture(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of any mode with noise in it."""
    if mode == "I;16":
        return Image.fromarray(levels(height, width, seed=seed).astype(np.uint16) * 16)
    if mode == "1":
        return Image.fromarray(levels(height, width, seed=seed) > 127)
    if mode == "P":
        return picture("RGB", height, width, seed).quantize(16)
    bands = len(Image.new(mode, (1, 1)).getbands())
    x = levels(height, width, bands, seed=seed)
    return Image.frombytes(mode, (width, height), x.tobytes())


def fill(root: Path, n: int = 6, mode: str = "RGB", height: int = 8, width: int = 8, ending: str = "png") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        picture(mode, height, width, seed=k).save(root / f"{k:03d}.{ending}")
    return root


# ------------------------------------------------------------------------------------- twelve awkward data sets


def mixed_modes(root: Path) -> Path:
    root.mkdir()
    for k, mode in enumerate(["L", "RGB", "RGBA", "P", "I;16", "1", "LA", "RGB"]):
        picture(mode, 16, 16, seed=k).save(root / f"{k}.png")
    picture("CMYK", 16, 16).save(root / "8.jpg")
    return root


def oblong(root: Path) -> Path:
    return fill(root, height=48, width=64)


def corrupt(root: Path) -> Path:
    fill(root)
    whole = (root / "002.png").read_bytes()
    (root / "002.png").write_bytes(whole[: len(whole) // 2])
    (root / "004.png").write_bytes(b"")
    return root


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


def png_header(height: int, width: int) -> bytes:
    """A PNG that promises more than it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


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


def test_embedded_images_take_a_resolution() -> None:
    digits = data.load("digits", Options(resolution=(16, 12), crop="none"))
    assert digits.shape == (1, 16, 12)
    assert digits.spec()["options"] == {"resolution": [16, 12], "crop": "none"}


# ---------------------------------------------------------------------------------------------------- modes and levels


def load_one(root: Path, image: Image.Image, ending: str = "png", **options: Any) -> torch.Tensor:
    """What an image in a folder of two equal ones becomes, ``[c, h, w]``."""
    root.mkdir()
    image.save(root / f"a.{ending}")
    image.save(root / f"b.{ending}")
    return data.load(root, Options(**options)).train.x[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "1", "P"])
def test_each_mode_is_read_as_it_looks(mode: str, tmp_path: Path) -> None:
    image = picture(mode, 6, 5)
    found = load_one(tmp_path / "x", image, "tif")
    expected = np.asarray(image.convert("L" if mode in ("L", "1") else "RGB"))
    assert np.array_equal(found.permute(1, 2, 0).squeeze(-1).numpy(), expected)


@pytest.mark.parametrize(("top", "white"), [(200, 255), (1000, 1023), (4000, 4095), (40_000, 65_535)])
def test_16_bit_levels_are_divided_by_the_bits_in_use(top: int, white: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 30).round().astype(np.uint16).reshape(5, 6)
    found = load_one(tmp_path / "x", Image.fromarray(values))
    assert np.array_equal(found[0].numpy(), np.rint(values * 255.0 / white).astype(np.uint8))


def test_transparency_is_laid_on_the_background(tmp_path: Path) -> None:
    x = np.zeros((4, 4, 4), np.uint8)
    x[..., 0], x[:2, :, 3], x[2, :, 3] = 200, 255, 128  # red: opaque, half, clear
    image = Image.fromarray(x)
    white = load_one(tmp_path / "white", image)
    assert white[:, 0, 0].tolist() == [200, 0, 0]
    assert white[:, 3, 0].tolist() == [255, 255, 255]
    assert white[:, 2, 0].tolist() == [227, 127, 127]
    assert load_one(tmp_path / "green", image, background="#00ff00")[:, 3, 0].tolist() == [0, 255, 0]
    assert "transparent" in str(data.load(tmp_path / "green").report())


def test_a_clear_palette_and_grey_with_alpha(tmp_path: Path) -> None:
    palette = picture("P", 4, 4)
    palette.info["transparency"] = int(np.asarray(palette)[0, 0])
    root = tmp_path / "p"
    root.mkdir()
    for name in "ab":
        palette.save(root / f"{name}.png", transparency=palette.info["transparency"])
    assert data.load(root).train.x[0, :, 0, 0].tolist() == [255, 255, 255]
    grey = Image.frombytes("LA", (1, 1), bytes([10, 0])).resize((4, 4))
    assert load_one(tmp_path / "la", grey)[:, 0, 0].tolist() == [255]


def test_orientation_and_animation(tmp_path: Path) -> None:
    image, exif = picture("RGB", 4, 8), Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    root = tmp_path / "turned"
    root.mkdir()
    for name in "ab":
        image.save(root / f"{name}.png", exif=exif)
    turned = data.load(root)
    assert turned.shape == (3, 8, 4)
    assert np.array_equal(turned.train.x[0].permute(1, 2, 0).numpy(), np.rot90(np.asarray(image), -1))
    frames = [picture("L", 4, 4, seed=k) for k in range(3)]
    (tmp_path / "gif").mkdir()
    for name in "ab":
        frames[0].save(tmp_path / "gif" / f"{name}.gif", save_all=True, append_images=frames[1:])
    moving = data.load(tmp_path / "gif")
    assert np.array_equal(moving.train.x[0, 0].numpy(), np.asarray(frames[0]))
    assert "animations" in str(moving.report())


def test_a_large_photo_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    across, down = np.meshgrid(np.linspace(0, 255, 800), np.linspace(0, 255, 600))
    image = Image.fromarray(np.stack([across, down, 255 - across], 2).round().astype(np.uint8))
    found = load_one(tmp_path / "x", image, "jpg", resolution=(24, 32))
    whole = images.fitted(image, (24, 32), "center")
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(whole).astype(int)).max() <= 3


# --------------------------------------------------------------------------------------------------------------- sizes


def test_mixed_sizes_follow_the_stated_rule(tmp_path: Path) -> None:
    assert images.common_size([(45, 45)] * 3) == (45, 45)  # one size: kept, whatever it is
    assert images.common_size([(100, 200), (50, 100), (400, 800)]) == (32, 64)
    assert images.common_size([(30, 20), (31, 20), (29, 20)]) == (32, 24)
    assert images.common_size([(5, 3000), (4, 3000), (3, 2000)]) == (8, 64)
    root = fill(tmp_path / "x", n=3, height=20, width=40)
    fill(root, n=1, height=10, width=10)
    loaded = data.load(root)
    assert loaded.shape == (3, 24, 40)
    report = str(loaded.report())
    assert "20 x 40: 2, 10 x 10: 1" in report
    assert "3 to 24 x 40 (their middle), 3 of them enlarged" in report


def test_crop_keeps_the_middle_and_none_keeps_all(tmp_path: Path) -> None:
    x = np.zeros((8, 16), np.uint8)
    x[:, :4], x[:, 12:] = 255, 255
    root = tmp_path / "x"
    assert load_one(root, Image.fromarray(x), resolution=(8, 8)).unique().tolist() == [0]
    whole = data.load(root, Options(resolution=(8, 8), crop="none")).train.x[0, 0]
    assert whole.shape == (8, 8)
    assert (int(whole[0, 0]), int(whole[0, 4]), int(whole[0, 7])) == (255, 0, 255)
    assert whole.double().mean() == pytest.approx(127.5, abs=3)


def test_a_size_that_fits_no_network_is_refused_with_the_divisor_and_the_way_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", height=9, width=12)
    settings = TINY | {"channels": (8, 8), "attention": (False, False), "patch": 2}
    with pytest.raises(sf.Refusal, match=r"multiples of 4; nearest: 8x12 or 12x12; --resolution"):
        sf.train("flow", root, steps=1, quiet=True, **settings)
    model = sf.train("flow", root, options=Options(resolution=(8, 12)), steps=1, quiet=True, **settings)
    assert model.sample(2, steps=1).x.shape == (2, 8, 12, 3)


def test_pictures_that_do_not_fit_into_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "x")
    monkeypatch.setattr(images, "MOST_BYTES", 6 * 8 * 8 * 3 - 1)
    with pytest.raises(sf.Refusal, match=r"6 pictures of 8x8 take .* shards \(.tar\)"):
        data.load(root)
    assert data.load(root, Options(resolution=(8, 7))).shape == (3, 8, 7)


# ---------------------------------------------------------------------------------------------------- classes, splits


def test_classes_are_numbers_in_order_or_names_by_the_alphabet(tmp_path: Path) -> None:
    for name in ("10", "9", "0"):
        fill(tmp_path / "numbers" / name, n=3)
    assert data.load(tmp_path / "numbers").classes == ("0", "9", "10")
    for name in ("b", "a", "10"):
        fill(tmp_path / "names" / name / "deep", n=3)
    loaded = data.load(tmp_path / "names")
    assert loaded.classes == ("10", "a", "b")
    assert sum(loaded.train.counts(3)) + len(loaded.test) == 9
    assert data.load(tmp_path / "names", Options(labels="none")).classes == ()
    assert data.load(tmp_path / "names" / "a").classes == ()  # one folder is no class


def test_no_class_is_held_out_whole(tmp_path: Path) -> None:
    x, label = levels(40, 4, 4), np.minimum(np.arange(40), 30)  # 30 classes of one image, one of ten
    np.savez(tmp_path / "x.npz", x=x, label=label)
    loaded = data.load(tmp_path / "x.npz")
    assert loaded.test.label is not None
    assert loaded.test.label.tolist() == [30] * 4
    assert min(loaded.train.counts(31)) == 1
    np.savez(tmp_path / "single.npz", x=x, label=np.arange(40))
    assert len(data.load(tmp_path / "single.npz").test) == 1


def test_images_beside_class_folders_are_refused_unless_unlabelled(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", n=2)
    fill(root / "cat", n=2)
    with pytest.raises(sf.Refusal, match=r"2 images \(the first is 000.png\) lie beside the class folders cat"):
        data.load(root)
    loaded = data.load(root, Options(labels="none"))
    assert (len(loaded.train) + len(loaded.test), loaded.classes) == (4, ())


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    for split, n in (("train", 5), ("test", 3), ("val", 2)):
        for name in ("ant", "bee"):
            fill(tmp_path / "x" / split / name, n=n)
    loaded = data.load(tmp_path / "x")
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (10, 6, ("ant", "bee"))
    assert "a third split is not read: val" in str(loaded.report())
    assert loaded.report().leaked == 6


def test_one_table_may_speak_of_both_splits(tmp_path: Path) -> None:
    fill(tmp_path / "x" / "train", n=4)
    fill(tmp_path / "x" / "val", n=2)
    names = ["train/000.png", "train/001.png", "train/003.png", "val/001.png"]
    rows = [f"{name},{'owl' if k % 2 else 'ant'}" for k, name in enumerate(names)]
    (tmp_path / "x" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    loaded = data.load(tmp_path / "x")
    assert (len(loaded.train), len(loaded.test)) == (3, 1)
    assert loaded.train.label is not None
    assert loaded.test.label is not None
    assert (loaded.train.label.tolist(), loaded.test.label.tolist()) == ([0, 1, 0], [1])


def test_labels_from_a_table_by_name(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", n=4)
    rows = ["file_name,age,breed", "000.png,3,owl", "001.png,4,ant", "002.png,3,owl"]
    (root / "metadata.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    bare = data.load(root)
    assert bare.classes == ()
    assert "others: age, breed; choose one with --label-column" in str(bare.report())
    assert "1 images that metadata.csv does not list are left out: 003.png" in str(bare.report())
    loaded = data.load(root, Options(label_column="breed"))
    assert loaded.classes == ("ant", "owl")
    assert loaded.spec()["options"] == {"label_column": "breed"}
    assert data.load(root, Options(label_column="age")).classes == ("3", "4")
    assert data.reload(loaded.spec()).classes == ("ant", "owl")
    (root / "metadata.csv").write_text((root / "metadata.csv").read_text(encoding="utf-8").replace("ant", "eel"))
    with pytest.raises(sf.Refusal, match="has changed since"):
        data.reload(loaded.spec())


def test_labels_from_lines_of_json(tmp_path: Path) -> None:
    root = fill(tmp_path / "x" / "pictures", n=3).parent
    lines = [{"file_name": f"pictures/{k:03d}.png", "label": ["a", "b", "b"][k]} for k in range(3)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    loaded = data.load(root)
    assert loaded.classes == ("a", "b")
    assert loaded.train.counts(2) == (1, 1)


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        ("file,label\na,b\n", None, "has no column file_name"),
        ("file_name,label\n000.png,b\n", "lable", "did you mean label"),
        ("file_name,label\n000.png,b\n000.png,c\n", None, "line 3 names 000.png a second time"),
        ("file_name,label\n000.png,b\n001.png,\n", None, "line 3 has no label"),
        ("file_name,label\n000.png,b\nnone.png,c\n", None, "lists 1 files that are not there, the first is none.png"),
        ("file_name,label\n000.png,b,c\n", None, "line 2 has 3 fields"),
        ("file_name,label\n../000.png,b\n", None, "is not below the folder"),
        ("file_name,label\n,b\n", None, "line 2 has no file_name"),
        ("", None, "has no column file_name"),
    ],
)
def test_a_table_that_is_wrong_is_refused(table: str, column: str | None, message: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "x", n=2)
    (root / "metadata.csv").write_text(table)
    with pytest.raises(sf.Refusal, match=message) as refused:
        data.load(root, Options(label_column=column))
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------- files as they come


def test_corrupt_files_are_left_out_only_when_asked(tmp_path: Path) -> None:
    root = corrupt(tmp_path / "x")
    loaded = data.load(root, Options(corrupt="skip"))
    assert len(loaded.train) + len(loaded.test) == 4
    assert "2 that cannot be read: 002.png, 004.png" in str(loaded.report())
    assert loaded.spec()["notes"] == {"skipped": "2 that cannot be read: 002.png, 004.png"}
    (root / "005.png").unlink()
    (root / "005.png").symlink_to(root / "gone.png")
    (root / "notes.md").write_text("hello")
    with pytest.raises(sf.Refusal, match=r"3 of 6 .*002.png: it is damaged .*--corrupt skip"):
        data.load(root)
    for name in ("000", "001"):
        (root / f"{name}.png").write_text("no picture")
    with pytest.raises(sf.Refusal, match="at least 2 are needed"):
        data.load(root, Options(corrupt="skip"))


def test_labels_stay_with_their_images_where_files_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "x" / "a", n=3)
    fill(tmp_path / "x" / "b", n=3)
    (tmp_path / "x" / "a" / "001.png").write_bytes(b"")
    loaded = data.load(tmp_path / "x", Options(corrupt="skip"))
    assert loaded.train.label is not None
    assert loaded.test.label is not None
    assert sorted([*loaded.train.label.tolist(), *loaded.test.label.tolist()]) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("side", [10_000, 14_000, 1_000_000])
def test_a_picture_too_large_to_be_safe_is_not_decoded(side: int, tmp_path: Path) -> None:
    root = fill(tmp_path / "x", n=2)
    (root / "wall.png").write_bytes(png_header(side, side))
    with pytest.raises(sf.Refusal, match=r"the first is wall.png: it has more than 89,478,485 pixels"):
        data.load(root)
    assert data.load(root, Options(corrupt="skip")).shape == (3, 8, 8)


def test_a_file_damaged_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever byte is wrong, the answer is data or a one-line refusal."""
    root, g, refusals = fill(tmp_path / "x", n=2), np.random.default_rng(0), []
    for ending in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        picture("RGB", 8, 8).save(root / f"bad.{ending}")
        good = (root / f"bad.{ending}").read_bytes()
        for _ in range(30):
            blob = bytearray(good)
            blob[g.integers(len(blob))] ^= 1 << g.integers(8)
            (root / f"bad.{ending}").write_bytes(blob if g.random() < 0.7 else blob[: g.integers(len(blob))])
            try:
                data.load(root, Options(resolution=(8, 8)))
            except sf.Refusal as refusal:
                refusals.append(str(refusal))
        (root / f"bad.{ending}").unlink()
    assert len(refusals) > 30
    assert not any("\n" in text for text in refusals)


def test_links_are_followed_once_and_litter_is_passed_over(tmp_path: Path) -> None:
    root = fill(tmp_path / "x" / "a", n=2).parent
    fill(tmp_path / "outside", n=2)
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "c").symlink_to(root / "a")
    (root / "b" / "loop").symlink_to(tmp_path)
    (root / ".hidden").mkdir()
    (root / "notes.md").write_text("hello")
    fill(root / "__MACOSX", n=1)
    listing = folder.walk(root)
    assert listing.images == ("a/000.png", "a/001.png", "b/000.png", "b/001.png")
    assert set(listing.links) == {"c", "b/loop/outside", "b/loop/x"}
    assert listing.others == ("notes.md",)
    assert data.load(root).classes == ("a", "b")
    assert "1 files that are no images (1 .md)" in str(data.load(root).report())


def test_the_checksum_is_that_of_names_and_contents(tmp_path: Path) -> None:
    first = data.load(fill(tmp_path / "one"))
    assert data.load(shutil.copytree(tmp_path / "one", tmp_path / "two")).sha256 == first.sha256
    (tmp_path / "two" / "000.png").rename(tmp_path / "two" / "zzz.png")
    assert data.load(tmp_path / "two").sha256 != first.sha256
    picture("RGB", 8, 8, seed=9).save(tmp_path / "one" / "000.png")
    changed = data.load(tmp_path / "one")
    assert changed.sha256 != first.sha256
    digest = hashlib.sha256()
    for path in sorted((tmp_path / "one").iterdir()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    assert changed.sha256 == digest.hexdigest()


# -------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("x", "expected", "said"),
    [
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255], "float32: 0..1 became 0..255"),
        (np.array([-1.0, 0.0, 1.0]), [0, 128, 255], "float64: -1..1 became 0..255"),
        (np.array([0, 2048, 4095], np.uint16), [0, 128, 255], "0..4095 became 0..255"),
        (np.array([0, 9, 255], np.int64), [0, 9, 255], "int64"),
        (np.array([False, True, True]), [0, 255, 255], "true is 255"),
    ],
)
def test_levels_of_arrays(x: np.ndarray, expected: list[int], said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.broadcast_to(x[None, None, :, None], (4, 2, 3, 1)))
    loaded = data.load(tmp_path / "x.npy")
    assert loaded.train.x[0, 0, 0].tolist() == expected
    assert said in str(loaded.report())


def test_layouts_of_arrays(tmp_path: Path) -> None:
    x = levels(6, 5, 7, 3)
    np.save(tmp_path / "last.npy", x)
    np.save(tmp_path / "first.npy", x.transpose(0, 3, 1, 2))
    last, first = data.load(tmp_path / "last.npy"), data.load(tmp_path / "first.npy")
    assert last.shape == (3, 5, 7)
    assert torch.equal(last.train.x, first.train.x)
    np.save(tmp_path / "clear.npy", np.concatenate([x, np.zeros_like(x[..., :1])], 3))
    assert data.load(tmp_path / "clear.npy").train.x.unique().tolist() == [255]
    assert data.load(tmp_path / "last.npy", Options(resolution=(8, 8))).shape == (3, 8, 8)


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


# --------------------------------------------------------------------------------------------------------- by name (hf)


class ClassLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class Value:
    pass


class Picture:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


Picture.__name__ = "Image"


class Rows:
    """As much of a Hugging Face data set as is used."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self.columns, self.features = columns, features

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: c[key] for name, c in self.columns.items()}

    def cast_column(self, column: str, feature: Any) -> Rows:
        assert not feature.decode
        return Rows(self.columns, self.features | {column: feature})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Rows]]:
    """What ``datasets.load_dataset`` gives, by name."""
    import sys
    import types

    sets: dict[str, dict[str, Rows]] = {}

    def load_dataset(name: str, configuration: str | None) -> dict[str, Rows]:
        if name not in sets:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist\non the Hub")
        return sets[name]

    module: Any = types.ModuleType("datasets")
    module.load_dataset, module.exceptions = load_dataset, types.SimpleNamespace(DatasetsError=LookupError)
    monkeypatch.setitem(sys.modules, "datasets", module)
    fill(tmp_path / "files", n=8)
    cells = [{"bytes": path.read_bytes(), "path": None} for path in sorted((tmp_path / "files").iterdir())]
    cells[3] = {"bytes": None, "path": str(tmp_path / "files" / "003.png")}
    features = {"img": Picture(), "fine": ClassLabel(["dog", "cat"]), "tag": Value()}
    columns = {"img": cells, "fine": [0, 1] * 4, "tag": ["x", "y", "z", "z"] * 2}
    cut = [{name: column[part] for name, column in columns.items()} for part in (slice(0, 6), slice(6, 8))]
    sets["pets"] = {"train": Rows(cut[0], features), "validation": Rows(cut[1], features)}
    sets["one"] = {"all": Rows(columns, features)}
    sets["words"] = {"train": Rows({"text": ["a"]}, {"text": Value()})}
    sets["odd"] = {"a": Rows(columns, features), "b": Rows(columns, features)}
    return sets


def test_images_by_name(hub: dict[str, dict[str, Rows]], tmp_path: Path) -> None:
    loaded = data.load("hf:pets")
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (6, 2, ("dog", "cat"))
    files = data.load(tmp_path / "files")
    both = torch.cat([loaded.train.x, loaded.test.x])
    assert sorted(map(bytes, both.flatten(1).numpy())) == sorted(
        map(bytes, torch.cat([files.train.x, files.test.x]).flatten(1).numpy())
    )
    assert loaded.train.label is not None
    assert loaded.train.label.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.reload(loaded.spec()).sha256 == loaded.sha256
    assert data.load("hf:pets", Options(label_column="tag")).classes == ("x", "y", "z")
    assert data.load("hf:pets", Options(labels="none")).classes == ()
    assert len(data.load("hf:one").test) == 1
    for name, message in [
        ("hf:words", r"holds no images \(its columns: text\)"),
        ("hf:odd", "has the splits a, b"),
        ("hf:none", "cannot load hf:none .*doesn't exist on the Hub"),
    ]:
        with pytest.raises(sf.Refusal, match=message) as refused:
            data.load(name)
        assert "\n" not in str(refused.value)


def test_images_by_name_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(sf.Refusal, match=r"pip install 'sfumato\[hf\]'"):
        data.load("hf:pets")
