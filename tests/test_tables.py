"""Tables: what columns are read as, the way there and back, masks beside noise, training, metrics, the command line."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import ks_2samp

import sfumato as sf
from sfumato.__main__ import run as run_sfumato
from sfumato.data import table, table_codes, table_columns, table_dates
from sfumato.data.options import Options
from sfumato.data.table_read import RawColumn
from sfumato.data.transforms import from_json
from sfumato.metrics.columns import correlations, kolmogorov_smirnov, total_variation
from sfumato.metrics.rows import evaluate_table

UNKNOWN = {"sampler": None, "nfe": None, "seed": None}
SMALL: dict[str, Any] = {"width": 48, "depth": 2, "batch": 128, "validation_images": 16, "reports": 1}


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def data_of(columns: dict[str, list[Any]], **options: Any) -> Any:
    return table.of_columns(columns, **options)


def back(data: Any) -> dict[str, list[str]]:
    """All rows through the model's units and back, as cells in the order of the file."""
    x = torch.cat([data.train.x, data.test.x])
    order = x[:, 0].argsort()  # the first column of these tables counts the rows
    frame = data.transform.decode(data.transform.encode(x[order]))
    return {name: list(cells) for name, cells in frame.cells.items()}


# -------------------------------------------------------------------------------------------------------------- reading

AWKWARD: dict[str, list[str]] = {
    "price": [f"{1.5 * k - 7:.2f}" for k in range(40)],
    "spike": ["0" if k % 3 else f"{k}.25" for k in range(40)],
    "holes": ["" if k % 4 == 0 else str(k % 7 - 3) for k in range(40)],
    "words": ["unknown" if k % 9 == 0 else "" if k % 11 == 0 else f"{k}.5" for k in range(40)],
    "big": [str(2**60 + 3 * k) for k in range(40)],
    "code": [f"{k % 5:03d}" for k in range(40)],
    "flag": ["True" if k % 3 else "False" for k in range(40)],
    "city": [["Zürich", "São Paulo", "東京", "a, b", 'say "x"', ""][k % 6] for k in range(40)],
    "bit": [str(k % 2) for k in range(40)],
    "same": ["7"] * 40,
    "none": [""] * 40,
    "day": [f"2024-{1 + k % 12:02d}-{1 + k % 28:02d}" for k in range(40)],
    "dmy": [f"{1 + k % 28:02d}.{1 + k % 12:02d}.1999" for k in range(40)],
    "when": [f"2024-03-05T{k % 24:02d}:30:{k:02d}+02:00" for k in range(40)],
    "fine": [f"1969-12-31 23:59:59.{k:03d}" for k in range(40)],
    "gaps": ["" if k % 5 == 0 else f"2001-01-{1 + k % 28:02d} 10:00" for k in range(40)],
    "small": [f"{1e-9 * (k + 1):.6e}" for k in range(40)],
}


def awkward(path: Path, separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["row", *AWKWARD])
        writer.writerows([str(k), *(column[k] for column in AWKWARD.values())] for k in range(40))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_every_cell_comes_back(tmp_path: Path, separator: str) -> None:
    path = awkward(tmp_path / "awkward.csv", separator)
    before = path.read_bytes()
    data = sf.data.load(path)
    cells = back(data)
    assert list(cells) == ["row", *AWKWARD]
    for name, column in AWKWARD.items():
        if name == "small":
            assert [float(text) for text in cells[name]] == pytest.approx([float(t) for t in column], rel=1e-6)
        elif name == "spike":  # one column, one number of digits
            assert [float(text) for text in cells[name]] == [float(text) for text in column]
        else:
            assert cells[name] == column, name
    assert path.read_bytes() == before
    kinds = {column.name: column.describe()[0] for column in data.transform.columns}
    assert kinds == {
        "row": "integer", "price": "number", "spike": "number", "holes": "integer", "words": "number",
        "big": "integer", "code": "category", "flag": "category", "city": "category", "bit": "category",
        "same": "constant", "none": "constant", "day": "date", "dmy": "date", "when": "date", "fine": "date",
        "gaps": "date", "small": "number",
    }  # fmt: skip
    # numbers in model units, tokens as they are; nothing infinite, and one tensor for training
    assert data.train.x0.dtype == torch.float32
    assert bool(torch.isfinite(data.train.x0).all())
    report = str(data.report())
    assert "constant: empty in every row" in report
    assert "'unknown'" in report
    assert len(data.test) == 4


def test_typed_arrays(tmp_path: Path) -> None:
    data = sf.data.load(awkward(tmp_path / "awkward.csv"))
    frame = data.transform.rows(torch.cat([data.train.x, data.test.x]))
    kinds = {name: array.dtype.kind for name, array in frame.arrays.items()}
    assert kinds["row"] == kinds["big"] == "i"
    assert kinds["price"] == kinds["holes"] == "f"
    assert kinds["city"] == kinds["flag"] == "U"
    assert kinds["day"] == kinds["gaps"] == "M"
    assert int(frame["big"].max()) == 2**60 + 3 * 39  # which float64 does not hold
    assert int(np.isnan(frame["holes"]).sum()) == 10
    assert int(np.isnat(frame["gaps"]).sum()) == 8
    # with an offset from UTC the array is UTC
    first = int(frame["row"].argmin())
    assert frame["when"][first] == np.datetime64("2024-03-04T22:30:00")
    assert frame.structured().dtype.names == ("row", *AWKWARD)
    assert frame[0]["row"] == frame["row"][0]
    assert len(frame[:3]) == 3
    assert list(frame[:1].csv().splitlines()[0].split(","))[:3] == ["row", "price", "spike"]
    with pytest.raises(sf.Refusal, match=r"no column 'pric'.*price"):
        frame["pric"]


@pytest.mark.parametrize(
    ("cells", "kind", "note"),
    [
        ([f"{k},25" for k in range(30)], "number: 2 decimals, quantiles, decimal comma", None),
        ([f"{k},250" for k in range(30)], "number: 3 decimals, quantiles, decimal comma", "comma read as the decimal"),
        ([str(k * 10**17) for k in range(1, 30)], None, "left out"),
        ([f"person {k}" for k in range(30)], None, "left out"),
        ([f"person {k % 15}" for k in range(30)], "category: 15 values: person 0, person 1, person 10", None),
        ([f"0{1 + k % 9}/{10 + k % 3}/2020" for k in range(30)], "date: as 01/10/2020, quantiles", "month/day/year"),
        ([f"{13 + k % 9}/05/2020" for k in range(30)], "date: as 13/05/2020, quantiles", None),
        (["2024-03-31T00:00:00+01:00"] * 20 + [f"2024-04-0{k}T00:00:00+02:00" for k in range(1, 6)],
         "date: as 2024-03-30T23:00:00Z", "2 offsets from UTC"),
        (["2024-02-30"] * 20 + ["2024-02-01", "2024-02-02"], "category", None),
    ],
)  # fmt: skip
def test_what_a_column_is(cells: list[str], kind: str | None, note: str | None) -> None:
    found = table_columns.infer(RawColumn("x", tuple(cells)))
    described = None if found.column is None else ": ".join(found.column.describe())
    if kind is None:
        assert found.column is None
    else:
        assert described is not None
        assert described.replace("+00:00", "Z").startswith(kind)
    assert (found.note is None) if note is None else (note in str(found.note))
    if found.column is not None and found.column.numbers:
        x, tokens = found.column.read(cells)
        again = found.column.write([found.column.decode(found.column.encode(x[0]))], tokens, len(cells))[1]
        if note != "2 offsets from UTC":
            assert again == cells


def test_declared_text_stays_text() -> None:
    found = table_columns.infer(RawColumn("x", tuple(str(k % 9) for k in range(40)), text=True))
    assert found.column.describe()[0] == "category"


def test_dates_at_the_ends_of_the_calendar() -> None:
    found = table_dates.read(["0001-01-01", "9999-12-31", "1970-01-01"])
    assert found is not None
    assert [found[1].write(t) for t in found[0]] == ["0001-01-01", "9999-12-31", "1970-01-01"]
    assert found[0][2] == 0
    assert table_dates.unit_of([0, 3_600_000_000]) == 3_600_000_000
    assert table_dates.read(["2024-01-01", "2024-01-01 10:00"]) is None


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime as dt

    import pyarrow as pa
    import pyarrow.parquet as pq

    zone = dt.timezone(dt.timedelta(hours=1))
    columns = {
        "k": list(range(30)),
        "x": [None if k % 5 == 0 else k / 8 for k in range(30)],
        "digits": [str(k % 3) for k in range(30)],
        "flag": [k % 2 == 0 for k in range(30)],
        "day": [dt.date(2020, 1, 1 + k % 28) for k in range(30)],
        "when": [dt.datetime(2020, 1, 1, k % 24, tzinfo=zone) for k in range(30)],
        "kind": pa.array([["b", "a"][k % 2] for k in range(30)]).dictionary_encode(),
        "list": [[k] for k in range(30)],
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    data = sf.data.load(path)
    cells = back(data)
    assert cells["x"] == ["" if k % 5 == 0 else f"{k / 8:.3f}" for k in range(30)]
    assert cells["digits"] == [str(k % 3) for k in range(30)]
    kinds = {column.name: column.describe()[0] for column in data.transform.columns}
    assert kinds["digits"] == kinds["kind"] == kinds["flag"] == "category"
    assert kinds["day"] == kinds["when"] == "date"
    assert "list: holds list" in str(data.report())
    written(tmp_path / "bad.parquet", "no parquet")
    with pytest.raises(sf.Refusal, match="is it a Parquet file"):
        sf.data.load(tmp_path / "bad.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(sf.Refusal, match=r"pip install 'sfumato\[tables\]'"):
        sf.data.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "holds 1 row; give at least 2"),
        ("", "holds nothing"),
        ("a,b\n", "holds one line only"),
        ("a,b\n1,2\n1,2,3\n", "line 3 has 3 cells where the first line names 2"),
        ("a,a\n1,2\n3,4\n", "two columns called 'a'"),
        ("a\n1\n2\ninf\n4\n5\n6\n7\n8\n9\n", "column 'a' is infinite in row 3"),
        ("a\n1\n2\n3\n1e999\n", "beyond 1e308"),
        ("a,b\n1,x\n1,x\n", "nothing in the table can be learned"),
        ("a\0b\n1\n", "is no text file"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "t.csv", text)
    with pytest.raises(sf.Refusal, match=message) as caught:
        sf.data.load(path)
    assert "\n" not in str(caught.value)


def test_encodings_and_a_counted_first_column(tmp_path: Path) -> None:
    text = ",naïve,y\n" + "".join(f"{k},é{k % 2},{k % 3}\n" for k in range(20))
    for encoding, note in (("utf-8-sig", False), ("utf-16", False), ("cp1252", True)):
        data = sf.data.load(written(tmp_path / f"{encoding}.csv", text, encoding))
        assert [column.name for column in data.transform.columns] == ["naïve", "y"]
        assert ("Windows-1252" in str(data.report())) == note
        assert "numbers the rows: left out" in str(data.report())


def test_the_label_column(tmp_path: Path) -> None:
    path = awkward(tmp_path / "awkward.csv")
    with pytest.raises(sf.Refusal, match="row 6 has no 'city'"):
        sf.data.load(path, Options(label_column="city"))
    with pytest.raises(sf.Refusal, match=r"no such column.*code"):
        sf.data.load(path, Options(label_column="codes"))
    with pytest.raises(sf.Refusal, match="classes are 2 to"):
        sf.data.load(path, Options(label_column="same"))
    with pytest.raises(sf.Refusal, match="resolution=8x8 does nothing"):
        sf.data.load(path, Options(resolution=(8, 8)))
    data = sf.data.load(path, Options(label_column="code"))
    assert data.classes == ("000", "001", "002", "003", "004")
    assert "code" not in {column.name for column in data.transform.columns}
    assert data.class_index("003") == 3
    assert set(data.rows(torch.device("cpu")).batch(torch.tensor([0]))) == {"x0", "label"}
    shown = data.transform.view.show(_Shown(data.frame(data.train)[:2], ("003", "000"))).decode().splitlines()
    assert shown[0].split(",")[:7] == ["row", *list(AWKWARD)[:6]]
    assert [line.split(",")[6] for line in shown[1:]] == ["003", "000"]
    again = sf.data.reload(data.spec())
    assert again.transform == data.transform
    assert from_json(json.loads(json.dumps(data.spec()["transform"]))) == data.transform


@dataclasses.dataclass
class _Shown:
    x: Any
    label: Any


# ---------------------------------------------------------------------------------------------------------------- codes


def test_quantiles_are_normal_scores() -> None:
    x = np.random.default_rng(0).gamma(0.3, size=100)
    code = table_codes.fit(x)
    assert isinstance(code, table_codes.Quantiles)
    ranks = (np.argsort(np.argsort(x)) + 0.5) / 100
    assert np.allclose(code.encode(x), 0.5 * ndtri(ranks), atol=1e-12)
    assert np.allclose(code.decode(code.encode(x).astype(np.float32).astype(np.float64)), x, rtol=1e-6)


def test_quantiles_of_many_numbers() -> None:
    rng = np.random.default_rng(1)
    x = np.where(rng.random(5000) < 0.4, 0.0, rng.gamma(2.0, size=5000))
    code = table_codes.fit(x)
    assert isinstance(code, table_codes.Quantiles)
    assert len(code.values) <= table_codes.KNOTS
    z = code.encode(x)
    assert np.allclose(code.decode(z), x, rtol=1e-9, atol=1e-12)
    # the spike at 0 keeps its share, and a draw of the normal law has it, too
    drawn = code.decode(0.5 * ndtri((np.arange(20_000) + 0.5) / 20_000))
    assert float((drawn == 0).mean()) == pytest.approx(float((x == 0).mean()), abs=1e-4)
    assert kolmogorov_smirnov(drawn, x) < 0.01
    extreme = code.decode(np.array([-50.0, 50.0]))
    assert extreme.tolist() == [0.0, x.max()]
    assert bool((np.diff(code.decode(np.linspace(-3, 3, 4001))) >= 0).all())


def test_numbers_of_light_tails_are_standardised() -> None:
    x = np.random.default_rng(0).normal(170, 10, 3000)
    code = table_codes.fit(x)
    assert isinstance(code, table_codes.Standard)
    assert float(code.encode(x).std()) == pytest.approx(0.5)
    assert np.allclose(code.decode(code.encode(x)), x, rtol=1e-12)
    assert code.decode(np.array([100.0]))[0] == x.max()
    rng = np.random.default_rng(0)
    two = np.where(rng.random(3000) < 0.3, rng.normal(-3, 0.5, 3000), rng.normal(5, 1, 3000))
    kinds = [table_codes.fit(made).name for made in (two, rng.random(3000), rng.exponential(size=3000), x.round(-1))]
    assert kinds == ["standardised", "standardised", "quantiles", "quantiles"]
    spiked = np.where(rng.random(3000) < 0.06, 170.0, x)
    assert table_codes.fit(spiked).name == "quantiles"
    for made in (code, table_codes.fit(np.exp(x / 20))):
        assert table_codes.from_json(json.loads(json.dumps(made.to_json()))) == made
    with pytest.raises(sf.Refusal, match="unknown code"):
        table_codes.from_json({"code": "quantile"})


# ------------------------------------------------------------------------------------------------------------- training


def joint(path: Path, n: int = 1200) -> Path:
    """Two kinds, a number about each, and a cell that is empty for one of them only."""
    rng = np.random.default_rng(0)
    rows = ["size,kind,note"]
    for _ in range(n):
        one = rng.random() < 0.7
        size = rng.normal(5 if one else -3, 1 if one else 0.5)
        rows.append(f"{size:.2f},{'big' if one else 'small'},{'' if not one else rng.integers(3, 9)}")
    return written(path, "\n".join(rows) + "\n")


def test_a_table_is_learned(tmp_path: Path) -> None:
    data = sf.data.load(joint(tmp_path / "joint.csv"))
    model = sf.train("flow", data, steps=500, quiet=True, lr=3e-3, warmup=20, **SMALL)
    frame = model.sample(1500, steps=30).x
    one = frame["kind"] == "big"
    assert float(one.mean()) == pytest.approx(0.7, abs=0.06)
    assert float(np.mean(frame["size"][one])) == pytest.approx(5, abs=0.4)
    assert float(np.mean(frame["size"][~one])) == pytest.approx(-3, abs=0.4)
    empty = np.isnan(frame["note"])
    assert float((empty == ~one).mean()) > 0.93  # two tokens that go together
    records = {r.name: r for r in evaluate_table(frame, data, generated=UNKNOWN)}
    assert records["columns"].value < 0.12
    assert records["correlations"].value < 0.1
    assert set(records) == {"columns", "correlations", "copies", "column size", "column kind", "column note"}


@pytest.mark.parametrize("recipe", ["ddpm", "edm", "vp-sde", "ve-sde", "subvp-sde", "flow"])
def test_recipes_for_images_take_tables(tmp_path: Path, recipe: str) -> None:
    data = data_of({"a": [k % 7 + 0.5 for k in range(40)], "b": ["xyz"[k % 3] for k in range(40)]}, label_column="b")
    run = tmp_path / "run"
    model = sf.train(recipe, data, steps=2, out=run, quiet=True, **SMALL | {"batch": 8, "grid_steps": 2})
    assert model.classes == ("x", "y", "z")
    samples = sf.load(run).sample(6, label=["z", "x"], steps=3, seed=4)
    assert samples.x.names == ("a",)
    assert samples.view.show(samples).decode().splitlines()[0] == "a,b"
    alone = sf.load(run).sample(2, label=["x", "z"], steps=3, seed=5, batch=1)
    assert alone.x["a"].tolist() == samples.x["a"][1:3].tolist()
    assert (run / "grids").exists()


@pytest.mark.parametrize(
    "columns",
    [{"a": [k * 0.5 for k in range(30)]}, {"a": ["xy"[k % 2] for k in range(30)]}, {"a": [None, 1.5, 2.5] * 10}],
)
def test_numbers_alone_and_categories_alone(columns: dict[str, list[Any]]) -> None:
    model = sf.train("flow", data_of(columns), steps=3, quiet=True, **SMALL)
    frame = model.sample(5, steps=2).x
    assert set(frame.cells["a"]) <= {"" if v is None else str(v) for v in columns["a"]}


def test_resuming_and_what_does_not_fit(tmp_path: Path) -> None:
    path, run = joint(tmp_path / "joint.csv", 60), tmp_path / "run"
    options = SMALL | {"batch": 8, "width": 16}
    whole = sf.train("flow", str(path), steps=6, quiet=True, **options)
    with pytest.raises(sf.Refusal, match="makes images"):
        sf.train("heat", str(path), steps=1, quiet=True)
    with pytest.raises(sf.Refusal, match=r"standardise=False does nothing with kind=table"):
        sf.train("flow", str(path), steps=1, quiet=True, standardise=False)
    with pytest.raises(sf.Refusal, match="no range"):
        whole.sample(1, threshold="static")
    with pytest.raises(sf.Refusal, match="unknown setting 'channels'"):
        sf.train("flow", str(path), steps=1, quiet=True, channels=(8,))
    sf.train("flow", str(path), steps=6, out=run, quiet=True, **options)
    again = sf.train("flow", str(path), steps=6, out=run, quiet=True, resume=True)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name
    assert sf.recipes.get("flow").on("table").kind == "table"
    assert sf.recipes.get("mdlm").on("table").kind == "text"
    assert {"flow", "ddpm", "edm"} <= set(sf.recipes.names("table"))


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = joint(tmp_path / "prices.csv", 80), tmp_path / "run"
    assert run_sfumato(["inspect", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert "column kind" in (tmp_path / "page.html").read_text()
    assert "column kind" in capsys.readouterr().out
    few = ["--set", "width=16", "--set", "depth=1", "--set", "batch=16", "--set", "grid_steps=2", "--set", "reports=1"]
    assert run_sfumato(["train", "flow", "--data", str(path), "--steps", "2", "--out", str(run), *few]) == 0
    assert run_sfumato(["sample", str(run), "--n", "7", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    lines = (tmp_path / "s" / "samples.csv").read_text().splitlines()
    assert lines[0] == "size,kind,note"
    assert len(lines) == 8
    with np.load(tmp_path / "s" / "samples.npz") as archive:
        assert archive["x"].dtype.names == ("size", "kind", "note")
        assert [f"{v:.2f}" for v in archive["x"]["size"]] == [line.split(",")[0] for line in lines[1:]]
    assert run_sfumato(["eval", str(run), "--n", "30", "--steps", "2"]) == 0
    assert "column kind" in capsys.readouterr().out
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["name"] == "columns"
    labelled = ["--label-column", "kind", "--steps", "2", "--out", str(tmp_path / "run2"), *few]
    assert run_sfumato(["train", "edm", "--data", str(path), *labelled]) == 0
    assert run_sfumato(["sample", str(tmp_path / "run2"), "--label", "big", "--n", "3", "--steps", "2"]) == 0
    made = (tmp_path / "run2" / "samples" / "samples.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in made] == ["kind", "big", "big", "big"]
    assert run_sfumato(["eval", str(tmp_path / "run2"), "--n", "10", "--steps", "2"]) == 0


# -------------------------------------------------------------------------------------------------------------- metrics


def test_distances_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for a, b in ((rng.normal(size=37), rng.normal(0.3, 2, size=80)), (rng.integers(0, 4, 50) * 1.0, np.arange(9.0))):
        assert kolmogorov_smirnov(a, b) == pytest.approx(ks_2samp(a, b).statistic, abs=1e-12)
    assert kolmogorov_smirnov(np.array([1.0, np.nan]), np.array([1.0])) == 0
    assert kolmogorov_smirnov(np.array([np.nan]), np.array([1.0])) == 1
    assert total_variation(np.array(["a", "b"]), np.array(["b", "c"])) == 0.5
    assert total_variation(np.array([1, 1, 2]), np.array([1, 2, 1])) == 0
    x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3))
    assert np.allclose(correlations(x), np.corrcoef(x.T))
    assert correlations(np.ones((4, 2))).tolist() == [[0, 0], [0, 0]]


def test_metrics_of_real_rows(tmp_path: Path) -> None:
    data = sf.data.load(joint(tmp_path / "joint.csv", 400))
    test, train = data.frame(data.test), data.frame(data.train)
    same = {r.name: r for r in evaluate_table(test, data, generated=UNKNOWN)}
    assert [same[name].value for name in ("columns", "correlations", "column size")] == pytest.approx([0, 0, 0])
    copies = {r.name: r for r in evaluate_table(train, data, generated=UNKNOWN)}["copies"]
    assert copies.value == 1
    assert copies.floor < 0.5
    moved = dict(train.cells)
    moved["kind"] = ["big"] * len(train)
    wrong = {r.name: r for r in evaluate_table(dataclasses.replace(train, cells=moved), data, generated=UNKNOWN)}
    assert wrong["column kind"].value == pytest.approx(float(np.mean(test["kind"] == "small")))
    assert wrong["correlations"].value > 3 * wrong["correlations"].floor
    with pytest.raises(sf.Refusal, match="generated lacks sampler"):
        evaluate_table(train, data, generated={})
    with pytest.raises(sf.Refusal, match="sample at least 2"):
        evaluate_table(train[:1], data, generated=UNKNOWN)
