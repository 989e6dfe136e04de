"""A folder of images as a data set: any mix of modes and sizes, with the classes that its sub-folders or its table say.

The contract: the folder is read and never written to; the same files give the same data set, whatever order the file
system lists them in; nothing is left out without being named in the report.

* **Files**: every file with an ending of :data:`ENDINGS`, in all folders below.  Names that begin with a dot are passed
  over.  A link to a folder that was read already (a loop) is not followed again.
* **Splits**: where the folder holds ``train`` and one of :data:`HELD` (and no images beside them), that one is the
  held-out split.  Otherwise one image in ten is held out, chosen by a fixed seed, never the last one of its class.
* **Classes**: those of ``metadata.csv`` or ``metadata.jsonl`` where there is one (a column ``file_name`` and one of
  labels), else one for each sub-folder where there are two or more with images, else none.
* **Files that cannot be read** are counted, and the set is refused naming the first; ``corrupt=skip`` leaves them out.
* **sha256**: over the sorted names and contents of all images, and the table.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from sfumato.data import metadata
from sfumato.data.gather import gather, named, readable
from sfumato.data.options import Options
from sfumato.data.sets import Data
from sfumato.errors import Refusal

#: What the name of an image ends in.
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".avif", ".jp2", ".tga", ".ico",
)  # fmt: skip
#: What the held-out split is called, the first that is there; beside a folder called ``train``.
HELD = ("test", "testing", "validation", "valid", "val")
#: Names that file systems and archives leave behind.
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")


@final
@dataclass(frozen=True)
class Listing:
    """What is in a folder: the ``images``, by their sorted relative names; ``folders``, all of them; ``others``, files
    that are no images; ``links`` that lead to folders that are read already.
    """

    images: tuple[str, ...]
    folders: tuple[str, ...]
    others: tuple[str, ...]
    links: tuple[str, ...]


@final
@dataclass(frozen=True)
class Labelled:
    """The images of one split, each with its label (None: there are none); ``notes`` on what was left out."""

    images: tuple[str, ...]
    labels: tuple[str | None, ...]
    notes: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def read(root: Path, options: Options) -> Data:
    """The images of a folder.  Raises :class:`Refusal` where they cannot be made one data set (see the module)."""
    listing = walk(root)
    if not listing.images:
        found = f" (it holds {named(listing.others)})" if listing.others else ""
        raise Refusal(f"{root} holds no images{found}; give a folder with image files, or the path of a data file")
    parts, notes, warnings = _parts(root, listing, options)
    names = [name for part in parts for name in part.images]
    labels = [label for part in parts for label in part.labels]
    notes += [note for part in parts for note in part.notes]
    warnings += [warning for part in parts for warning in part.warnings]
    if len({label is None for label in labels}) > 1:
        raise Refusal(f"{root}: one split has classes, the other has none; label both, or read none with --labels none")
    blobs = {name: functools.partial(Path.read_bytes, root / name) for name in names}
    gathered = gather(blobs, options, str(root), notes)
    for split in ("", *_splits(listing)):
        for table in metadata.tables(root / split):
            gathered.digest.update(os.fsencode(os.path.join(split, table.name)) + b"\0" + table.read_bytes())
    return gathered.data(
        labels,
        [len(part.images) for part in parts],
        name=str(root.resolve()),
        source=f"the folder {readable(root.resolve().name)}",
        options=options,
        warnings=warnings,
    )


def require_outside(file: Path, name: str, option: str) -> None:
    """Raises :class:`Refusal` where ``file`` would be made inside the folder that the data called ``name`` are read
    from, and so become data itself; ``option``: what says another place.
    """
    if os.path.isabs(name) and os.path.isdir(name) and file.resolve().is_relative_to(Path(name).resolve()):
        raise Refusal(f"{file} would lie inside the data ({name}); give another place with {option}")


# ------------------------------------------------------------------------------------------------------------ listing


def walk(root: Path) -> Listing:
    """All that is in a folder and below, sorted; nothing is opened.  Raises :class:`Refusal` where it may not be."""
    images: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    links: list[str] = []
    seen, left = {os.path.realpath(root)}, [""]
    while left:
        folder = left.pop()
        try:
            names = sorted(os.listdir(root / folder))
        except OSError as error:
            raise Refusal(f"cannot read the folder {root / folder} ({error.strerror}); check its permissions") from None
        deeper: list[str] = []
        for base in names:
            if base.startswith(".") or base in LITTER:
                continue
            name, path = os.path.join(folder, base), os.path.join(root, folder, base)
            if os.path.isdir(path):
                real = os.path.realpath(path)
                (links if real in seen else deeper).append(name)
                seen.add(real)
            elif base.lower().endswith(ENDINGS) and (os.path.isfile(path) or os.path.islink(path)):
                images.append(name)
            else:
                others.append(name)
        folders += deeper
        left += reversed(deeper)
    return Listing(tuple(sorted(images)), tuple(sorted(folders)), tuple(sorted(others)), tuple(sorted(links)))


def above(name: str) -> Iterator[str]:
    """The folders that a file is in, the nearest first.

    >>> list(above("a/b/c.png"))
    ['a/b', 'a']
    """
    while name := os.path.dirname(name):
        yield name


# ------------------------------------------------------------------------------------------------- splits and classes


def _splits(listing: Listing) -> tuple[str, ...]:
    """``train`` and the held-out folder, where there are both and no image lies beside them."""
    top = {name.partition(os.sep)[0].lower(): name.partition(os.sep)[0] for name in listing.images if os.sep in name}
    beside = any(os.sep not in name for name in listing.images)
    held = next((top[name] for name in HELD if name in top), None)
    known = {"train", *HELD}
    return () if beside or held is None or "train" not in top or set(top) - known else (top["train"], held)


def _parts(root: Path, listing: Listing, options: Options) -> tuple[list[Labelled], list[tuple[str, str]], list[str]]:
    """The splits (or all of it as one), and notes and warnings on what was found beside them."""
    notes: list[tuple[str, str]] = []
    warnings: list[str] = []
    if listing.others:
        tables = {"metadata.csv", "metadata.jsonl"}
        others = [name for name in listing.others if os.path.basename(name) not in tables]
        endings = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in others)
        said = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
        notes += [("not read", f"{len(others)} files that are no images ({said})")] if others else []
    if listing.links:
        notes.append(("links", f"to folders that are read already, not followed: {named(listing.links)}"))
    empty = set(listing.folders) - {folder for name in listing.images for folder in above(name)}
    if empty:
        warnings.append(f"folders without images are no classes: {named(empty)}")
    splits = _splits(listing)
    if not splits:
        return [_labelled(root, "", listing.images, options)], notes, warnings
    left = {name.partition(os.sep)[0] for name in listing.images} - set(splits)
    notes.append(("splits", f"{splits[0]} is trained on, {splits[1]} is held out"))
    if left:
        warnings.append(f"a third split is not read: {named(left)}")
    inside = {split: tuple(name for name in listing.images if name.startswith(split + os.sep)) for split in splits}
    if not metadata.tables(root):
        return [_labelled(root, split, inside[split], options) for split in splits], notes, warnings
    whole = _labelled(root, "", tuple(name for split in splits for name in inside[split]), options)
    labels = dict(zip(whole.images, whole.labels, strict=True))
    notes, warnings = [*notes, *whole.notes], [*warnings, *whole.warnings]
    listed = [tuple(name for name in inside[split] if name in labels) for split in splits]
    return [Labelled(part, tuple(labels[name] for name in part)) for part in listed], notes, warnings


def _labelled(root: Path, split: str, images: tuple[str, ...], options: Options) -> Labelled:
    """The images of one split with their classes."""
    unlabelled = Labelled(images, (None,) * len(images))
    if options.labels == "none":
        return unlabelled
    folder = root / split
    if metadata.tables(folder):
        start = len(split) + 1 if split else 0
        return _from_table(folder, split, [name[start:] for name in images], options)
    if options.label_column is not None:
        raise Refusal(
            f"label_column={options.label_column}: {folder} has no metadata.csv or metadata.jsonl; add one with the "
            "columns file_name and the label, or leave it out"
        )
    own = [os.path.relpath(name, split) if split else name for name in images]
    folders = [name.partition(os.sep)[0] if os.sep in name else None for name in own]
    beside = [name for name, top in zip(own, folders, strict=True) if top is None]
    classes = {readable(top) for top in folders if top is not None}
    if beside and classes:
        raise Refusal(
            f"{folder}: {len(beside)} images (the first is {readable(beside[0])}) lie beside the class folders "
            f"{named(classes)}; put every image into one, or read no classes with --labels none"
        )
    return Labelled(images, tuple(None if top is None else readable(top) for top in folders))


def _from_table(folder: Path, split: str, images: Sequence[str], options: Options) -> Labelled:
    """The images that the table of a folder lists, with the classes it gives them."""
    table = metadata.read(folder, options.label_column)
    by_name = {readable(name): name for name in images}
    missing = [name for name in table.labels if name not in by_name]
    if missing:
        raise Refusal(
            f"{table.path} lists {len(missing)} files that are not there, the first is {missing[0]}; correct file_name"
        )
    listed = sorted(by_name[name] for name in table.labels)
    left = [name for name in images if readable(name) not in table.labels]
    notes = [("labels", table.said)]
    warnings = (f"{len(left)} images that {table.path.name} does not list are left out: {named(left)}",) if left else ()
    return Labelled(
        tuple(os.path.join(split, name) for name in listed),
        tuple(table.labels[readable(name)] for name in listed),
        tuple(notes),
        warnings,
    )
