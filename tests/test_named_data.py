"""Sets with a name: what is embedded is what its card says, what is fetched is checked, and all say their licence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import data
from sfumato.__main__ import run
from sfumato.data import cards, corpora, emoji, fetched, named, photos, toys
from sfumato.data.fetched import Recipe, digest
from sfumato.data.sets import Data
from sfumato.data.table import TableData
from sfumato.errors import Refusal
from sfumato.fetch import Package, Pip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def large() -> Data:
    return data.load("emoji-64")


# ---------------------------------------------------------------------------------------------------------------- emoji


def test_emoji_are_the_pictures_of_their_card(large: Data) -> None:
    card = json.loads((cards.FILES / "emoji.json").read_text())
    x = emoji.tiles((cards.FILES / "emoji.webp").read_bytes(), len(card["images"]))
    assert hashlib.sha256(x.tobytes()).hexdigest() == card["content_sha256"]
    assert len(x) == 1557
    assert "MIT" in card["licence"]
    assert (cards.FILES / "emoji.webp").stat().st_size < 8_000_000
    assert large.shape == (3, 64, 64)
    assert large.classes == ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols")
    assert large.train.counts(8) == (150, 289, 142, 116, 197, 76, 234, 201)
    assert large.test.counts(8) == (16, 32, 15, 12, 21, 8, 26, 22)
    codes = [row[0] for row in card["images"]]
    assert len(set(codes)) == len(codes)
    # no flags of countries, no skin tones, and none that Microsoft withheld
    assert not [code for code in codes if "1f1e6" <= code[:5] <= "1f1ff" or any(f"1f3f{k}" in code for k in "bcdef")]
    assert not {"1f4ce", "1f3ae", "1f9d1-200d-1f4bb"} & set(codes)


def test_small_emoji_are_the_large_ones_halved_in_the_same_splits(large: Data) -> None:
    small = data.load("emoji-32")
    for part in ("train", "test"):
        fine, coarse = getattr(large, part), getattr(small, part)
        mean = torch.nn.functional.avg_pool2d(fine.x.double(), 2)
        assert torch.equal((mean + 0.5).floor().to(torch.uint8), coarse.x)
        assert torch.equal(fine.label, coarse.label)


def test_every_picture_has_its_name(large: Data) -> None:
    captions = emoji.captions()
    assert [len(captions[part]) for part in ("train", "test")] == [len(large.train), len(large.test)]
    names = dict(zip(captions["train"], large.train.label.tolist(), strict=True))
    assert names["grinning face"] == 0
    assert names["pineapple"] == large.class_index("food")
    # a picture that anyone can tell: the red apple is red, the blue heart is blue
    for name, channel in (("red apple", 0), ("blue heart", 2)):
        part = next(part for part, every in captions.items() if name in every)
        middle = getattr(large, part).x[captions[part].index(name)][:, 24:40, 24:40].double().mean((1, 2))
        assert int(middle.argmax()) == channel


def test_a_damaged_sheet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in cards.FILES.glob("emoji.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(cards, "FILES", tmp_path)
    blob = bytearray((tmp_path / "emoji.webp").read_bytes())
    blob[1000] ^= 1
    (tmp_path / "emoji.webp").write_bytes(blob)
    with pytest.raises(Refusal, match=r"emoji\.webp is damaged .*install sfumato again"):
        emoji.load("emoji-32")
    (tmp_path / "emoji.json").write_text("{}")
    with pytest.raises(Refusal, match=r"emoji\.json is damaged"):
        emoji.load("emoji-32")
    with pytest.raises(Refusal, match="emoji-32 and emoji-64"):
        emoji.load("emoji")


# --------------------------------------------------------------------------------------------------------------- photos


def test_crops_are_of_the_photographs_and_share_no_pixel() -> None:
    found, small = data.load("photos-64"), data.load("photos-32")
    assert found.shape == (3, 64, 64)
    assert small.shape == (3, 32, 32)
    assert found.train.counts(4) == (1000,) * 4
    card = json.loads((cards.FILES / "photos.json").read_text())
    pictures = photos.photographs((cards.FILES / "photos.zip").read_bytes())
    for k, (name, picture) in enumerate(zip(found.classes, pictures, strict=True)):
        assert hashlib.sha256(picture.tobytes()).hexdigest() == card["content_sha256"][name]
        height, width, _ = picture.shape
        train, test = (photos.places(height, width, part, k) for part in ("train", "test"))
        assert int(train[:, 1].max()) + 64 <= int(test[:, 1].min())
        assert int(test[:, 1].max()) + 64 <= width
        assert int(train[:, 0].min()) >= 0
        assert int(train[:, 0].max()) + 64 <= height
        row, column = train[0].tolist()
        crop = picture[row : row + 64, column : column + 64]
        assert np.array_equal(found.train.x[1000 * k].permute(1, 2, 0).numpy(), crop)
        assert np.array_equal(small.train.x[1000 * k].permute(1, 2, 0).numpy(), emoji.halved(crop[None])[0])
    assert "public domain" in found.licence
    assert "CC0" in found.licence


# -------------------------------------------------------------------------------------------------------------- fetched


def keep(name: str, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put arrays into the cache as if they had been fetched."""
    from dataclasses import replace

    chosen = replace(fetched.SETS[name], sha256=digest(arrays))
    monkeypatch.setitem(fetched.SETS, name, chosen)
    fetched.keep(chosen.file, arrays)


def test_fashion_is_read_without_empty_rows_and_split_by_checksum(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    rows = [g.integers(0, 256, 784).tolist() for _ in range(12)]
    (tmp_path / "0.json").write_text(json.dumps({"data": [[], *rows[:7], [0]]}))
    (tmp_path / "1.json").write_text(json.dumps({"data": rows[7:]}))
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    arrays = fetched.fashion(files, held_out=2)
    assert arrays["train.x"].shape == (8, 28, 28)
    assert arrays["train.label"].tolist() == [0] * 5 + [1] * 3
    assert arrays["test.label"].tolist() == [0, 0, 1, 1]
    both = np.concatenate([arrays["train.x"], arrays["test.x"]])
    assert sorted(x.tobytes() for x in both) == sorted(np.array(row, np.uint8).tobytes() for row in rows)
    # the choice depends on the image alone, not on its place in the file
    (tmp_path / "1.json").write_text(json.dumps({"data": rows[:6:-1]}))
    again = fetched.fashion(files, held_out=2)
    assert {x.tobytes() for x in again["test.x"]} == {x.tobytes() for x in arrays["test.x"]}


def test_fashion_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.arange(20, dtype=np.uint8) % 10
    x = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).astype(np.uint8)
    keep("fashion-mnist", {"train.x": x, "train.label": label, "test.x": x[:4], "test.label": label[:4]}, monkeypatch)
    found = data.load("fashion-mnist")
    assert found.shape == (1, 28, 28)
    assert np.array_equal(found.train.x[:, 0].numpy(), x)
    assert found.classes[9] == "ankle boot"
    assert "MIT" in found.licence
    assert data.reload(found.spec()).sha256 == found.sha256
    assert data.load("fashion-mnist", data.Options(resolution=(32, 32))).shape == (1, 32, 32)


def test_what_is_read_from_a_package_is_checked_and_kept(cache: Path) -> None:
    arrays = {"x": np.arange(6, dtype=np.int16).reshape(2, 3)}
    calls: list[int] = []

    class Given:
        def files(self, names: object) -> tuple[Path, ...]:
            calls.append(1)
            return ()

    def recipe(sha256: str) -> Recipe:
        made = Recipe("thing", Package(Pip(), "thing", "1", "0"), (), lambda files: arrays, sha256, "source", "licence")
        object.__setattr__(made, "package", Given())
        return made

    with pytest.raises(Refusal, match=r"thing was read as sha256 .*, expected 0000"):
        recipe("0" * 64).arrays()
    good = recipe(digest(arrays))
    assert not good.cached
    assert np.array_equal(good.arrays()["x"], arrays["x"])
    assert good.cached
    assert np.array_equal(good.arrays()["x"], arrays["x"])
    assert len(calls) == 2  # once for the wrong checksum
    # a damaged file of the cache is made again
    good.file.write_bytes(good.file.read_bytes()[:-20])
    assert np.array_equal(good.arrays()["x"], arrays["x"])
    assert len(calls) == 3
    # and so is a whole one with something else in it
    fetched.keep(good.file, {"x": arrays["x"] + np.int16(1)})
    assert np.array_equal(good.arrays()["x"], arrays["x"])
    assert len(calls) == 4


def test_a_digest_tells_names_types_shapes_and_values_apart() -> None:
    x = np.arange(6, dtype=np.int16)
    others = [{"y": x}, {"x": x.astype(np.int32)}, {"x": x.reshape(2, 3)}, {"x": x + 1}, {"x": x, "y": x}]
    found = {digest(each) for each in ({"x": x}, *others)}
    assert len(found) == 6
    assert digest({"x": x.astype(">i2")}) == digest({"x": x})


def test_molecules_are_lines_of_a_text_in_their_published_parts(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    parts = {
        "train": "SMILES\nCCO\nc1ccccc1\n" + "CC(=O)N\n" * 50,
        "test": "SMILES,extra\nCCN,1\nCCO,2\n" + "C=C,3\n" * 60,
    }
    files = []
    for part, lines in parts.items():
        files.append(tmp_path / f"{part}.csv.gz")
        files[-1].write_bytes(gzip.compress(lines.encode()))
    keep("moses", dict(fetched.moses(files)), monkeypatch)
    corpus = corpora.read("moses")
    assert corpus.train.startswith("CCO\nc1ccccc1\nCC(=O)N\n")
    assert corpus.test.startswith("CCN\nCCO\nC=C\n")
    assert corpus.test.endswith("C=C\n")
    loaded = data.load("moses")
    assert loaded.kind == "text"
    assert loaded.tokenizer.size == len(set(corpus.train + corpus.test))


def test_series_are_read_from_ts_files(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, lines in {"TRAIN": "1,2.5,3:1\n4,5,6:2\n", "TEST": "7,8,-9e-1:2\n"}.items():
        (tmp_path / f"{part}.ts").write_text(f"#a comment\n@problemName x\n@data\n{lines}")
    arrays = dict(fetched.ucr([tmp_path / "TRAIN.ts", tmp_path / "TEST.ts"]))
    assert arrays["x"].tolist() == [[1, 2.5, 3], [4, 5, 6], [7, 8, np.float32(-0.9)]]
    assert arrays["label"].tolist() == [1, 2, 2]
    keep("gun-point", {name: np.repeat(array, 10, 0) for name, array in arrays.items()}, monkeypatch)
    found = data.load("gun-point")
    assert found.kind == "series"
    assert found.shape == (1, 3)
    assert found.classes == ("1", "2")
    assert "not stated" in found.licence


def test_the_electrocardiogram_is_windows_in_millivolt(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, samples, leads = fetched.WAVEFORM
    wave = np.arange(samples * leads, dtype="<i2").reshape(samples, leads)
    (tmp_path / "file.dcm").write_bytes(b"\1" * start + wave.tobytes() + b"\2" * 100)
    arrays = dict(fetched.ecg([tmp_path / "file.dcm"]))
    assert np.array_equal(arrays["x"], wave)
    keep("ecg", arrays, monkeypatch)
    found = data.load("ecg")
    assert found.shape == (12, 250)
    assert (len(found.train), len(found.test)) == (438, 26)
    expected = wave[4 * 4 : 4 * 254].reshape(250, 4, 12).mean(1).T * 1.25e-3
    assert np.allclose(found.train.x[1].numpy(), expected, atol=1e-5)
    late = wave[4 * 2010 : 4 * 2260].reshape(250, 4, 12).mean(1).T * 1.25e-3
    assert np.allclose(found.test.x[1].numpy(), late, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- toys


@pytest.mark.parametrize("name", ["moons", "8gaussians"])
def test_toy_densities_are_tables_of_x_and_y(name: str) -> None:
    found = data.load(name)
    assert isinstance(found, TableData)
    points = toys.sample(name, named.POINTS, named.SEED)
    rows = torch.cat([found.train.x, found.test.x])
    assert rows.shape == (11_000, 2)
    assert torch.allclose(rows.sort(0).values, points.sort(0).values, atol=1e-6)
    assert found.licence == "made by this library's own code"


# ----------------------------------------------------------------------------------------------------------------- list


def test_list_data_says_kind_size_place_and_licence(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {entry.name: entry for entry in named.entries()}
    assert set(every) == {name for kind in data.names().values() for name in kind}
    assert every["emoji-32"].where == every["mnist"].where == "embedded"
    assert every["moses"].where == every["fashion-mnist"].where == "fetched on first use"
    assert every["moons"].where == every["torsions"].where == "made by code"
    assert all(entry.licence for entry in every.values())
    x = np.zeros((4, 28, 28), np.uint8)
    label = np.zeros(4, np.uint8)
    keep("fashion-mnist", {"train.x": x, "train.label": label, "test.x": x, "test.label": label}, monkeypatch)
    assert run(["list", "data"]) == 0
    out = capsys.readouterr().out
    assert "fetched (in the cache)" in next(line for line in out.splitlines() if line.startswith("fashion-mnist"))
    assert "5.7 MB" in next(line for line in out.splitlines() if line.startswith("emoji-32"))


def test_every_embedded_file_is_named_in_the_notice_with_its_licence() -> None:
    notice = (Path(__file__).parents[1] / "NOTICE").read_text()
    for path in cards.FILES.iterdir():
        if path.suffix != ".json":
            assert f"src/sfumato/data/files/{path.name}" in notice
            assert path.stat().st_size < 10_000_000
