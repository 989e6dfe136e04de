"""Images in NumPy files, and those of a data set by name."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato as sf
from pictures import fill, levels
from sfumato import data
from sfumato.data.options import Options

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
    tagged = data.load("hf:pets", Options(label_column="tag"))
    assert tagged.classes == ("x", "y", "z")
    assert tagged.sha256 != loaded.sha256  # other labels are other data
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
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(sf.Refusal, match=r"pip install 'sfumato\[hf\]'"):
        data.load("hf:pets")
