"""What reads a user's own data: one line for each kind of file.

The contract: :data:`READERS` is asked in order, the first reader that ``takes`` a name reads it; ``takes`` looks at the
name and at what kind of file it is, never inside.  A reader opens files for reading only, and the source it returns has
the absolute path (or the given name) as its ``name`` and ``options.to_json()`` as ``spec()["options"]``, so that
``load(name, options)`` gives it again.  Everything is imported when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sfumato.data.options import Options
from sfumato.errors import Refusal

#: The options that say how pictures are laid out.
PICTURES = ("resolution", "crop", "background")
#: The options of many pictures in files of their own.
FILES = (*PICTURES, "label_column", "labels", "corrupt")


@final
@dataclass(frozen=True)
class Reader:
    """Reads one kind of data.

    ``name``: what it reads, in words, as refusals and docs call it; ``takes(name)``: whether it reads what the user
    called ``name``; ``read(name, options)``: the :class:`~sfumato.data.rows.Source`; ``uses``: the options that it has
    a use for (any other that is changed is refused before it is called).
    """

    name: str
    takes: Callable[[str], bool]
    read: Callable[[str, Options], Any]
    uses: tuple[str, ...] = ()


def ending(*suffixes: str) -> Callable[[str], bool]:
    """Takes names that end in one of ``suffixes``, in any case."""
    return lambda name: name.lower().endswith(suffixes)


def _folder(name: str, options: Options) -> Any:
    from sfumato.data import folder

    return folder.read(Path(name), options)


def _arrays(name: str, options: Options) -> Any:
    from sfumato.data import arrays, series

    path = Path(name)
    return series.read_arrays(path, options) if series.holds_series(path, options) else arrays.read(path, options)


def _table(name: str, options: Options) -> Any:
    from sfumato.data import series, table

    path = Path(name)
    if path.suffix.lower() == ".tsv" and path.is_file() and options.kind != "table" and series.is_ucr(path):
        return series.read_ucr(path, options)
    if options.kind == "series":
        return series.read_table(path, options)
    return table.read(path, options)


def _ucr(name: str, options: Options) -> Any:
    from sfumato.data import series

    if options.kind == "table":
        raise Refusal(f"kind=table: {name} holds time series, and a table is a .csv or .parquet file; leave it out")
    return series.read_ucr(Path(name), options)


def _text(name: str, options: Options) -> Any:
    from sfumato.data import text

    return text.load(name)


def _is_shards(name: str) -> bool:
    from sfumato.data.tar_index import is_shards

    return is_shards(name)


def _shards(name: str, options: Options) -> Any:
    from sfumato.data import shards

    return shards.read(name, options)


def _hub(name: str, options: Options) -> Any:
    from sfumato.data import hub

    return hub.read(name, options)


READERS: tuple[Reader, ...] = (
    Reader("a text file (.txt)", ending(".txt"), _text),
    Reader("a file of arrays (.npz, .npy)", ending(".npz", ".npy"), _arrays, (*PICTURES, "kind")),
    Reader(
        "a table (.csv, .tsv, .parquet)",
        ending(".csv", ".tsv", ".parquet", ".pq"),
        _table,
        ("label_column", "kind"),
    ),
    Reader("time series (.ts)", ending(".ts"), _ucr, ("kind",)),
    Reader(
        "shards (.tar, also as 'shards/{000..099}.tar' or a folder of them)",
        _is_shards,
        _shards,
        (*PICTURES, "label_column", "labels", "corrupt"),
    ),
    Reader("a folder of images", lambda name: Path(name).is_dir(), _folder, FILES),
    Reader("images of a Hugging Face data set (hf:NAME)", lambda name: name.startswith("hf:"), _hub, FILES),
)
