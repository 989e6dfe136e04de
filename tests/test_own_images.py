"""How a folder of images is read: modes, sizes, classes, splits, files that are wrong."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from pictures import corrupt, fill, levels, picture, png_header
from sfumato import data
from sfumato.__main__ import run as run_sfumato
from sfumato.data import folder, images
from sfumato.data.options import Options

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


@pytest.mark.parametrize("error", [RuntimeError, ZeroDivisionError, OverflowError, AttributeError, AssertionError])
def test_whatever_a_decoder_raises_is_damage(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Pillow's decoders of AVIF, JPEG 2000 and TIFF do for some damaged files."""
    from PIL import PngImagePlugin

    def load(image: Any) -> None:
        raise error("of the decoder")

    fill(tmp_path / "x", n=2)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(sf.Refusal, match=r"the first is 000.png: it is damaged \(of the decoder\)"):
        data.load(tmp_path / "x")


def test_nothing_is_made_inside_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "x")
    before = sorted(root.rglob("*"))
    monkeypatch.chdir(root)
    sheet = str(tmp_path / "sheet.png")
    for arguments, said in (
        (["inspect", "."], "x-sheet.png would lie inside the data .*with --sheet FILE"),
        (["inspect", ".", "--sheet", str(root / "a" / "b.png")], "with --sheet FILE"),
        (["inspect", ".", "--sheet", sheet, "--html", "page.html"], "with --html FILE"),
        (["train", "flow", "--data", ".", "--out", "runs/a", "--steps", "1"], "runs/a would lie inside .*with --out"),
    ):
        assert run_sfumato(arguments) == 2
        told = capsys.readouterr().err.strip()
        assert re.search(said, told), told
        assert "\n" not in told
    assert sorted(root.rglob("*")) == before
    assert run_sfumato(["inspect", ".", "--sheet", sheet]) == 0
    assert sorted(root.rglob("*")) == before


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
