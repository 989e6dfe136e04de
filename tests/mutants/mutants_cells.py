"""Faults of cells as files really hold them: names, dates by style, thousands, long numbers, moments, long files."""

from __future__ import annotations

from mutants import Mutant

C = "tests/test_table_cells.py"
S = "tests/test_series.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "columns without a name",
        "data/table_read.py",
        'name.strip() or f"column {k + 1}"',
        "name.strip()",
        (f"{C}::test_columns_without_a_name",),
    ),
    Mutant(
        "a warning where a column is named in other letters",
        "training/samples.py",
        'warnings.filterwarnings("ignore", "Stored array in format 3.0", UserWarning)',
        'warnings.filterwarnings("default", "Stored array in format 2.0", UserWarning)',
        (f"{C}::test_columns_without_a_name",),
    ),
    Mutant(
        "dates read in an order of their own",
        "data/table_columns.py",
        "table_dates.read(dated, (self.style.order,))",
        "table_dates.read(dated)",
        (f"{C}::test_dates_are_read_as_their_column_is_written",),
    ),
    Mutant(
        "dates of cells that are all empty",
        "data/table_columns.py",
        "        if gone.all():",
        "        if not gone.any():",
        (f"{C}::test_dates_are_read_as_their_column_is_written",),
    ),
    Mutant(
        "thousands read as decimals",
        "data/table_columns.py",
        "    if settled or len(grouped)",
        "    if True or settled or len(grouped)",
        (f"{C}::test_commas_that_may_group_thousands",),
    ),
    Mutant(
        "decimals refused as thousands",
        "data/table_columns.py",
        "    if settled or len(grouped)",
        "    if len(grouped)",
        (f"{C}::test_commas_that_are_settled",),
    ),
    Mutant(
        "long identifiers read as decimals",
        "data/table_columns.py",
        r'_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)")',
        r'_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d{0,18})")',
        (f"{C}::test_long_identifiers_are_no_numbers",),
    ),
    Mutant(
        "numbers of any length",
        "data/table_columns.py",
        "LONGEST = 400",
        "LONGEST = 40000",
        (f"{C}::test_long_identifiers_are_no_numbers",),
    ),
    Mutant(
        "a sign before nothing",
        "data/table_columns.py",
        '    return text.removeprefix("-") if float(text) == 0 else text',
        "    return text",
        (f"{C}::test_numbers_about_zero_have_no_sign",),
    ),
    Mutant(
        "moments whose fractions come and go",
        "data/table_read.py",
        '    digits = "microseconds" if fine else "seconds"',
        '    digits = "auto"',
        (f"{C}::test_moments_with_fractions_have_the_same_digits",),
    ),
    Mutant(
        "words of a Parquet file taken for nothing",
        "data/table_read.py",
        "return tuple(None if v is None else v.strip() or None for v in column.to_pylist())",
        "return tuple(None if v is None else cell(v) for v in column.to_pylist())",
        (f"{C}::test_moments_with_fractions_have_the_same_digits",),
    ),
    Mutant(
        "pairs that a table does not see",
        "training/tables.py",
        "        if end is not None:",
        "        if False:",
        (f"{C}::test_a_table_takes_no_pairs",),
    ),
    Mutant(
        "long files of different lengths read as wide ones",
        "data/series.py",
        "    if rising and len(lengths) > 1 and min(lengths) > 1:",
        "    if rising and len(lengths) > 1 and min(lengths) > 9:",
        (f"{S}::test_long_files_that_are_refused",),
    ),
    Mutant(
        "wide files taken for long ones",
        "data/series.py",
        "    if rising and len(lengths) > 1 and min(lengths) > 1:",
        "    if len(lengths) > 1 and min(lengths) > 1:",
        (f"{S}::test_long_files_that_are_refused",),
    ),
    Mutant(
        "a class called None",
        "data/series.py",
        "    if classes is not None and None in classes.cells:",
        "    if False and None in classes.cells:",
        (f"{S}::test_long_files_that_are_refused",),
    ),
    Mutant(
        "series rounded before they are centred",
        "data/series.py",
        "np.ascontiguousarray(x[:, None] if flat else x).astype(np.float64))",
        "np.ascontiguousarray(x[:, None] if flat else x).astype(np.float32))",
        (f"{S}::test_series_far_from_zero_keep_their_steps",),
    ),
    Mutant(
        "series far from zero come back in float32",
        "data/series_transform.py",
        ".to(FORMATS[self.layout.numbers])",
        ".to(torch.float32)",
        (f"{S}::test_series_far_from_zero_keep_their_steps",),
    ),
    Mutant(
        "series far from zero are written with seven digits",
        "data/series_transform.py",
        'min(7 + more, 9 if self.layout.numbers == "float32" else 17)',
        "7",
        (f"{S}::test_series_come_back_in_their_own_format",),
    ),
    Mutant(
        "series far from zero are measured in float32",
        "metrics/units.py",
        "found = torch.as_tensor(np.asarray(x))\n",
        "found = torch.as_tensor(np.asarray(x)).float()\n",
        (f"{S}::test_metrics_of_series_do_not_depend_on_where_they_lie",),
    ),
    Mutant(
        "labels that the digest does not cover",
        "data/hub.py",
        "    gathered.digest.update(repr(labels).encode())",
        '    gathered.digest.update(b"")',
        ("tests/test_own_arrays.py::test_images_by_name",),
    ),
)
