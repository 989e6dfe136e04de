"""Cells as files and frames really hold them: columns without names, grouped thousands, long numbers, moments."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.data import table, table_columns, table_dates, table_read
from sfumato.data.options import Options
from sfumato.data.table_read import RawColumn

SMALL: dict[str, Any] = {"width": 16, "depth": 1, "batch": 8, "validation_images": 8, "reports": 1, "grid_steps": 2}


def infer(cells: list[str | None]) -> Any:
    return table_columns.infer(RawColumn("x", tuple(cells)))


def written_back(column: Any, cells: list[str | None]) -> list[str]:
    x, tokens = column.read(cells)
    again: list[str] = column.write(x, tokens, len(cells))[1]
    return again


def test_columns_without_a_name(tmp_path: Path) -> None:
    lines = [",a,,価格", *(f"{(7 * k) % 20},{k}.5,{k % 3},{k * k}" for k in range(20))]  # the index is shuffled
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    data = sf.data.load(path)
    assert [column.name for column in data.transform.columns] == ["column 1", "a", "column 3", "価格"]
    assert "column 3: has no name in the file" in str(data.report())
    samples = sf.train("flow", data, steps=1, quiet=True, **SMALL).sample(3, steps=1)
    with np.load(samples.save(tmp_path / "s") / "samples.npz") as archive:
        assert archive["x"].dtype.names == ("column 1", "a", "column 3", "価格")
    path.write_text("\n".join(["column 2,,b", *(f"{k},{k % 3},{k}" for k in range(20))]))
    with pytest.raises(sf.Refusal, match="two columns called 'column 2'"):
        sf.data.load(path)
    # places are those of the file, also where the first column is left out
    path.write_text("\n".join([",b, ", *(f"{k},{k % 3},{k % 5}.5" for k in range(20))]))
    assert [column.name for column in sf.data.load(path).transform.columns] == ["b", "column 3"]


def test_dates_are_read_as_their_column_is_written() -> None:
    cells: list[str | None] = [f"{1 + k % 28:02d}/{1 + k % 12:02d}/2020" for k in range(60)]
    column = infer(cells).column
    assert column.describe()[1].startswith("as 01/01/2020")
    few: list[str | None] = [
        "03/04/2020",
        "01/02/2020",
    ]  # alone they are March and January
    assert [written_back(column, few), table_dates.read(["03/04/2020"])[1].order] == [few, "m/d/y"]  # type: ignore[index]
    ticks = column.base + column.unit * int(column.read(["03/04/2020"])[0][0][0])
    assert dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=ticks) == dt.datetime(2020, 4, 3)
    with pytest.raises(sf.Refusal, match="dates of another style"):
        column.read(["2020-04-03"])
    holes = infer([None, *cells]).column
    assert written_back(holes, [None, None]) == ["", ""]


@pytest.mark.parametrize(
    "cells",
    [
        ["950", "1,050", "870", "12,000"],
        ["1,050.5", "1,050", "870.25", "12,000"],
        ["1,050,000", "2,000,000", "3,500,000", "1,250"],
        [None, "-1,050", "0", "7", "8"],
    ],
)
def test_commas_that_may_group_thousands(cells: list[str | None]) -> None:
    if "1,050.5" in cells:  # a word among numbers, beside commas that are not settled
        cells = [*cells, *(f"{k}.5" for k in range(30))]
    with pytest.raises(sf.Refusal, match=r"column 'x': is -?1,050\S* a thousand or a decimal\?") as caught:
        infer(cells)
    assert "\n" not in str(caught.value)


def test_commas_that_are_settled() -> None:
    settled: list[str | None] = ["950", "1,050", "0,125", "870"]
    assert infer(settled).column.describe()[1].endswith("decimal comma")
    assert infer(["1,050", "2,125", "7,875"]).column.describe()[1].endswith("decimal comma")
    assert infer(["1,050", "12", "a street", "b", "c", "d"]).column.describe()[0] == "category"  # text


@pytest.mark.parametrize("digits", [20, 400, 401, 5000])
def test_long_identifiers_are_no_numbers(digits: int) -> None:
    found = infer([f"1{k:0{digits - 1}d}" for k in range(40)])
    assert found.column is None
    assert "left out" in found.note
    again = infer([f"1{k % 4:0{digits - 1}d}" for k in range(40)])
    assert again.column.describe()[0] == "category"


def test_numbers_about_zero_have_no_sign() -> None:
    column = infer([f"{k / 100:.2f}" for k in range(-9, 30)]).column
    array, text = column.write([np.array([-0.001, -0.0, -0.006, 0.001])], [], 4)
    assert text == ["0.00", "0.00", "-0.01", "0.00"]
    assert not np.signbit(array[[0, 1]]).any()


def test_moments_with_fractions_have_the_same_digits(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    when = [dt.datetime(2024, 1, 1, 0, 0, k, 500_000 * (k % 2)) for k in range(40)]
    data = table.of_columns({"k": list(range(40)), "when": when})
    assert data.transform.columns[1].describe()[0] == "date"
    assert table_read.cells(when[:2]) == ("2024-01-01 00:00:00.000000", "2024-01-01 00:00:01.500000")
    assert table_read.cells([when[0], None]) == ("2024-01-01 00:00:00", None)
    words = ["NA", "None", " ", None, "Namibia"] * 8
    columns = {"when": when, "country": words, "k": list(range(40)), "": [0.5, 2.5] * 20}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    stored = sf.data.load(tmp_path / "t.parquet")
    kinds = {column.name: column.describe() for column in stored.transform.columns}
    assert kinds["when"][0] == "date"
    assert kinds["country"][1] == "3 values: NA, Namibia, None, or empty"
    assert list(kinds)[3] == "column 4"


class Odd:
    """What pandas' NA does: it equals nothing, and is neither true nor false."""

    def __repr__(self) -> str:
        return "<NA>"

    def __ne__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def test_values_that_say_nothing() -> None:
    assert table_read.cells([Odd(), None, float("nan"), np.datetime64("NaT"), 0, " b "]) == (*4 * (None,), "0", "b")


def test_a_table_takes_no_pairs() -> None:
    model = sf.train("flow", table.of_columns({"a": [k * 0.5 for k in range(30)]}), steps=1, quiet=True, **SMALL)
    batch = {"x0": torch.zeros(2, 1), "end": torch.zeros(2, 1)}
    with pytest.raises(sf.Refusal, match="takes no end"):
        model.losses(batch, sf.Stream(0))


def test_series_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {f"m{k}": [float(10 * k + j) for j in range(12)] for k in range(4)}
    pq.write_table(pa.table({"kind": ["a", "b"] * 6, **columns}), tmp_path / "t.parquet")
    data = sf.data.load(tmp_path / "t.parquet", Options(kind="series", label_column="kind"))
    assert (data.kind, data.shape, data.classes) == ("series", (1, 4), ("a", "b"))
