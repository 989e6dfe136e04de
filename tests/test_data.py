"""Data sets: what is embedded is what was published, files are checked, and the transform has an exact inverse."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import data
from sfumato.data import cards
from sfumato.data.grid import image_grid, show
from sfumato.data.packed import pack, unpack
from sfumato.data.sets import Data
from sfumato.data.transforms import Uint8Image, from_json
from sfumato.errors import Refusal


@pytest.fixture(scope="module")
def mnist() -> Data:
    return data.load("mnist")


@pytest.fixture(scope="module")
def digits() -> Data:
    return data.load("digits")


def one_line(refused: pytest.ExceptionInfo[Refusal]) -> str:
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_mnist_is_the_published_set(mnist: Data) -> None:
    card = json.loads((cards.FILES / "mnist.json").read_text())
    assert card["package_sha256"].startswith("8f87f2d0d9133e6c")
    found = {
        "train.x": mnist.train.x.numpy().tobytes(),
        "test.x": mnist.test.x.numpy().tobytes(),
        "train.label": mnist.train.label.to(torch.uint8).numpy().tobytes(),
        "test.label": mnist.test.label.to(torch.uint8).numpy().tobytes(),
    }
    assert {k: hashlib.sha256(v).hexdigest() for k, v in found.items()} == card["content_sha256"]
    assert mnist.train.x.shape == (60000, 1, 28, 28)
    assert mnist.test.x.shape == (10000, 1, 28, 28)
    # the label counts of the published files
    assert mnist.train.counts(10) == (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    assert mnist.test.counts(10) == (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    assert mnist.train.label[:5].tolist() == [5, 0, 4, 1, 9]
    assert (cards.FILES / "mnist.npz").stat().st_size <= 12_000_000


def test_splits_do_not_share_images(mnist: Data) -> None:
    train = {x.tobytes() for x in mnist.train.x.numpy()}
    assert sum(x.tobytes() in train for x in mnist.test.x.numpy()) == 0


def test_digits_keep_all_17_levels_and_images(digits: Data) -> None:
    x = torch.cat([digits.train.x, digits.test.x])
    assert x.shape == (1797, 1, 8, 8)
    levels = (x.double() * 16 / 255).round()
    assert sorted(levels.unique().tolist()) == list(range(17))
    assert torch.equal((levels * 255 / 16).round().to(torch.uint8), x)
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert min(digits.train.counts(10)) > 100


@pytest.mark.parametrize("name", data.image_names())
def test_spec_and_report_agree_with_the_pixels(name: str) -> None:
    loaded = data.load(name)
    spec = json.loads(json.dumps(loaded.spec()))
    assert spec["shape"] == list(loaded.shape)
    assert tuple(spec["classes"]) == loaded.classes
    assert from_json(spec["transform"]) == loaded.transform
    report = loaded.report()
    assert (report.train, report.test) == (len(loaded.train), len(loaded.test))
    assert (report.minimum, report.maximum) == (0, 255)
    assert sum(report.train_counts) == report.train
    text = str(report)
    assert f"{report.train:,} train" in text
    assert "CC BY" in text
    assert loaded.sha256 in text
    assert report.mean == pytest.approx(float(torch.cat([loaded.train.x, loaded.test.x]).double().mean()))


@pytest.mark.parametrize("name", ["digits", "moons", "torsions", "shakespeare", "{folder}/waves.npy"])
def test_all_kinds_of_data_describe_themselves_alike(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "waves.npy", np.arange(60.0).reshape(10, 6) ** 2)
    loaded = data.load(name.format(folder=tmp_path))
    spec = json.loads(json.dumps(loaded.spec()))
    for what in ("name", "kind", "source", "licence", "sha256"):
        assert spec[what] == getattr(loaded, what)
    assert (spec["shape"], spec["classes"], spec["options"]) == (list(loaded.shape), list(loaded.classes), {})
    assert (spec["train"], spec["test"]) == (len(loaded.train), len(loaded.test))
    assert len(loaded.held_out) > 0
    assert data.reload(spec).sha256 == loaded.sha256


def test_report_prints_with_rich(digits: Data, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=100).print(digits.report())
    printed = capsys.readouterr().out
    assert "1,437 train + 360 test" in printed
    assert "class" in printed


def test_class_index(digits: Data) -> None:
    assert digits.class_index("7") == 7
    with pytest.raises(Refusal, match="no class 'seven'"):
        digits.class_index("seven")


# ------------------------------------------------------------------------------------------------------- transform


def test_transform_comes_back_exactly() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    z = Uint8Image().encode(x)
    assert z.dtype == torch.float32
    assert (float(z.min()), float(z.max())) == (-1.0, 1.0)
    assert torch.equal(Uint8Image().decode(z), x[:, 0])
    colour = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Uint8Image().decode(Uint8Image().encode(colour)), colour.permute(0, 2, 3, 1))


def test_decode_clips_and_rounds_to_the_nearest_level() -> None:
    z = torch.tensor([-3.0, -1.0 + 0.4 / 127.5, -1.0 + 0.6 / 127.5, 3.0]).reshape(1, 1, 2, 2)
    assert Uint8Image().decode(z).flatten().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_decode_refuses_non_finite(bad: float) -> None:
    z = torch.zeros(3, 1, 2, 2)
    z[1, 0, 0, 0] = bad
    with pytest.raises(Refusal, match="1 of 3 images") as refused:
        Uint8Image().decode(z)
    one_line(refused)


def test_standardised_pixels_have_the_asked_moments(digits: Data) -> None:
    own = digits.standardised()
    z = own.transform.encode(digits.train.x)
    assert float(z.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(z.double().std(correction=0)) == pytest.approx(0.5, rel=1e-6)
    assert torch.equal(own.transform.decode(z), digits.train.x[:, 0])
    assert own.transform.limits == pytest.approx((float(z.min()), float(z.max())))
    assert from_json(json.loads(json.dumps(own.transform.to_json()))) == own.transform
    with pytest.raises(Refusal, match="all pixels"):
        Uint8Image.standardised(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))


def test_unknown_transform() -> None:
    with pytest.raises(Refusal, match="uint8-image"):
        from_json({"name": "uint8-imagee"})
    with pytest.raises(Refusal, match="center"):
        from_json({"name": "uint8-image", "center": 3.0})
    with pytest.raises(Refusal, match="spread=0"):
        from_json({"name": "uint8-image", "spread": 0.0})


# ------------------------------------------------------------------------------------------------- names and files


@pytest.mark.parametrize(
    ("name", "hint"), [("mnits", "mnist"), ("digit", "digits"), ("zzz", "known: .*digits.* mnist")]
)
def test_unknown_name_gives_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(Refusal, match=hint) as refused:
        data.load(name)
    assert name in one_line(refused)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ("flip", "digits.npz is damaged"),
        ("cut", "digits.npz is damaged"),
        ("card", "json is damaged"),
        ("no card", "json"),
    ],
)
def test_damaged_embedded_file(damage: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".npz", ".json"):
        shutil.copy(cards.FILES / f"digits{suffix}", tmp_path)
    monkeypatch.setattr(cards, "FILES", tmp_path)
    assert data.load("digits").shape == (1, 8, 8)
    blob, card = (tmp_path / "digits.npz").read_bytes(), tmp_path / "digits.json"
    if damage == "flip":
        (tmp_path / "digits.npz").write_bytes(blob[:999] + bytes([blob[999] ^ 1]) + blob[1000:])
    elif damage == "cut":
        (tmp_path / "digits.npz").write_bytes(blob[:-1])
    elif damage == "card":
        card.write_text("{")
    else:
        card.unlink()
    with pytest.raises(Refusal, match=match) as refused:
        data.load("digits")
    one_line(refused)


def test_packing_is_lossless_and_repeatable() -> None:
    g = np.random.default_rng(0)
    arrays = {
        "a": (g.integers(0, 256, (5, 7, 3)) * (g.random((5, 7, 3)) < 0.3)).astype(np.uint8),
        "zeros": np.zeros((2, 9), np.uint8),
        "full": np.full(11, 255, np.uint8),
    }
    back = unpack(pack(arrays))
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[k], arrays[k]) for k in arrays)
    assert pack(arrays) == pack(arrays)
    with pytest.raises(Refusal, match="packed file"):
        unpack(pack(arrays)[:-30])


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_own_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
    label = np.arange(40) % 4
    path = save(tmp_path / "mine.npz", x=x, label=label)
    loaded = data.load(path)
    assert loaded.shape == (3, 6, 5)
    assert (len(loaded.train), len(loaded.test)) == (36, 4)
    assert loaded.classes == ("0", "1", "2", "3")
    # train and test together are the file, each image with its own label
    stored = {x[k].tobytes(): int(label[k]) for k in range(40)}
    for split in (loaded.train, loaded.test):
        for image, k in zip(split.x, split.label, strict=True):
            assert stored.pop(image.permute(1, 2, 0).contiguous().numpy().tobytes()) == int(k)
    assert stored == {}
    again = data.load(loaded.name)
    assert torch.equal(again.train.x, loaded.train.x)
    assert again.sha256 == loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_own_file_with_class_names_or_without_labels(tmp_path: Path) -> None:
    x = np.zeros((20, 4, 4), np.uint8)
    named = data.load(save(tmp_path / "named.npz", x=x, label=np.array(["owl", "ant"] * 10)))
    assert named.classes == ("ant", "owl")
    assert named.shape == (1, 4, 4)
    bare = data.load(save(tmp_path / "bare.npz", x=x))
    assert bare.train.label is None
    assert bare.classes == ()
    assert "unlabelled" in str(bare.report())


X = np.zeros((20, 4, 4), np.uint8)
BAD = {
    "float": ({"x": X[..., None] + np.float32(2)}, r"x is float32 from 2 to 2; give floats in \[0, 1\]"),
    "nan": ({"x": X[..., None] + np.float32("nan")}, "x is float32 from nan to nan"),
    "wide": ({"x": X.astype(np.int32) + 256}, "x is int32 from 256 to 256; give levels 0..255"),
    "complex": ({"x": X * 1j}, "x is complex128"),
    "rank": ({"x": X[0, 0]}, r"x has shape \[4\]"),
    "channels": ({"x": np.zeros((20, 5, 4, 7), np.uint8)}, "c from 1 to 4"),
    "no x": ({"images": X}, "holds images; it must hold x"),
    "other key": ({"x": X, "y": X}, "holds x, y"),
    "one image": ({"x": X[:1]}, "at least 2 images"),
    "empty": ({"x": X[:, :0]}, "at least 2 images"),
    "label count": ({"x": X, "label": np.zeros(19, int)}, r"label has shape \[19\]"),
    "label type": ({"x": X, "label": np.zeros(20)}, "label is float64"),
    "label below": ({"x": X, "label": np.arange(20) - 1}, "from -1 to 18"),
    "label above": ({"x": X, "label": np.arange(20) * 100}, "from 0 to 1900"),
}


@pytest.mark.parametrize("case", BAD)
def test_own_file_refused(case: str, tmp_path: Path) -> None:
    arrays, match = BAD[case]
    with pytest.raises(Refusal, match=match) as refused:
        data.load(save(tmp_path / "mine.npz", **arrays))
    assert "mine.npz" in one_line(refused)


def test_own_file_of_another_make(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot read .*nothere\.npz"):
        data.load(tmp_path / "nothere.npz")
    with pytest.raises(Refusal, match="Python objects"):
        data.load(save(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object)))
    with (tmp_path / "bare.npz").open("wb") as file:
        np.save(file, X)
    assert data.load(tmp_path / "bare.npz").shape == (1, 4, 4)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(Refusal, match=r"cannot read .*text.npz"):
        data.load(tmp_path / "text.npz")


def test_own_file_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    """Whatever byte is wrong, the answer is data or a refusal, never another error."""
    good = bytearray(save(tmp_path / "good.npz", x=X, label=np.arange(20) % 2).read_bytes())
    path, g, refusals = tmp_path / "bad.npz", np.random.default_rng(0), []
    for _ in range(300):
        blob = bytearray(good)
        blob[g.integers(len(blob))] ^= 1 << g.integers(8)
        path.write_bytes(blob if g.random() < 0.7 else blob[: g.integers(len(blob))])
        try:
            data.load(path)
        except Refusal as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert not any("\n" in text for text in refusals)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_image_grid_places_every_image() -> None:
    x = torch.arange(1, 6, dtype=torch.uint8)[:, None, None].expand(5, 2, 3) * 10
    picture = np.asarray(image_grid(x, 2, gap=1, scale=2, background=7))
    assert picture.shape == (3 * 5 + 1, 2 * 7 + 1)
    for k in range(5):
        top, left = 1 + k // 2 * 5, 1 + k % 2 * 7
        assert (picture[top : top + 4, left : left + 6] == 10 * (k + 1)).all()
    assert (picture == 7).sum() == picture.size - 5 * 24
    assert image_grid(np.zeros((3, 4, 4, 3), np.uint8), 3).mode == "RGB"
    assert show(x).size[0] > 100


def test_image_grid_refuses() -> None:
    with pytest.raises(Refusal, match="no images"):
        image_grid(torch.zeros(0, 4, 4, dtype=torch.uint8), 3)
    with pytest.raises(Refusal, match="columns = 0"):
        image_grid(torch.zeros(1, 4, 4, dtype=torch.uint8), 0)


def test_contact_sheet_has_a_row_for_every_class(digits: Data, tmp_path: Path) -> None:
    path = data.contact_sheet(digits.train, tmp_path / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (10 * 10 + 2, 3 * 10 + 2)
    for k in range(10):
        first = digits.train.x[digits.train.label == k][:3, 0].numpy()
        for j in range(3):
            top, left = 2 + 10 * k, 2 + 10 * j
            assert np.array_equal(sheet[top : top + 8, left : left + 8], first[j])
    with pytest.raises(Refusal, match="cannot write"):
        data.contact_sheet(digits.train, tmp_path / "no" / "sheet.png")


def test_contact_sheet_without_labels(digits: Data, tmp_path: Path) -> None:
    bare = data.Split(digits.test.x, None)
    sheet = np.asarray(Image.open(data.contact_sheet(bare, tmp_path / "sheet.png", columns=2)))
    assert np.array_equal(sheet[2:10, 12:20], digits.test.x[1, 0].numpy())
