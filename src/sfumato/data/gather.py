"""Many picture files as one data set: what a folder and a data set by name have in common.

The contract: every file is read twice, once to see what it is and once to decode it, on all cores; the result depends
on the files and the options alone, and everything that was done to them is in the notes.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, final

import numpy as np
from jaxtyping import Int64, UInt8

from sfumato.data.arrays import assembled
from sfumato.data.images import Header, Layout, Unreadable, careful, lay, layout, opened, survey
from sfumato.data.options import Options
from sfumato.data.report import Reading
from sfumato.data.sets import Data
from sfumato.errors import Refusal

T = TypeVar("T")
U = TypeVar("U")
#: What gives the bytes of a file, for every name; it may raise ``OSError``.
Blobs = Mapping[str, Callable[[], bytes]]
#: So many files take a while.
MANY = 1000
#: So many names are shown where there are more.
SHOWN = 3


def named(names: Iterable[str]) -> str:
    """Some names in a row, and how many more there are."""
    every = sorted(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(map(readable, every[:SHOWN])) + more


def readable(name: str) -> str:
    """A file's name as text in one form (NFC); what is no UTF-8 becomes a question mark."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))


@final
@dataclass(frozen=True)
class Gathered:
    """The images that could be read: uint8 ``pixels [n, c, h, w]``; ``kept`` says which files they are; ``digest``: of
    the sorted names and contents of all files.
    """

    pixels: UInt8[np.ndarray, "n c h w"]
    kept: tuple[bool, ...]
    digest: Any
    reading: Reading

    def data(
        self,
        labels: Sequence[str | None],
        splits: Sequence[int],
        *,
        name: str,
        source: str,
        options: Options,
        warnings: Sequence[str] = (),
        classes: Sequence[str] | None = None,
    ) -> Data:
        """The data set; ``labels``: of every file; ``splits``: how many files each split has, one after the other (one
        split: one image in ten is held out); ``classes``: their order, by default numbers by size, names by alphabet.

        Raises :class:`Refusal` where a split is empty.
        """
        given = [label for label, good in zip(labels, self.kept, strict=True) if good]
        index, found = _index(given, classes)
        notes, said = list(self.reading.notes), [*warnings]
        if len(set(given) - {None}) == 1:
            notes.append(("one class", f"{given[0]}: the images are taken as unlabelled"))
        if len(found) > len(given) / 2:
            said.append(f"{len(found)} classes for {len(given)} images: is this a label?")
        return assembled(
            self.pixels,
            index,
            found,
            name=name,
            source=source,
            sha256=self.digest.hexdigest(),
            options=options,
            reading=Reading(self.reading.sizes, self.reading.modes, tuple(notes), tuple(said)),
            rows=self._rows(name, splits),
        )

    def _rows(
        self, name: str, splits: Sequence[int]
    ) -> tuple[Int64[np.ndarray, " n_train"], Int64[np.ndarray, " n_test"]] | None:
        """The rows of two splits among the images that could be read; None where there is one."""
        if len(splits) == 1:
            return None
        train, every = sum(self.kept[: splits[0]]), sum(self.kept)
        if train in (0, every):
            raise Refusal(f"{name}: no image of one of its two splits can be read; mend the files, or put all into one")
        return np.arange(train, dtype=np.int64), np.arange(train, every, dtype=np.int64)


def gather(blobs: Blobs, options: Options, what: str, notes: Sequence[tuple[str, str]] = ()) -> Gathered:
    """Read all pictures in one layout; ``what``: what they are called in refusals.

    Raises :class:`Refusal` for fewer than two, for any that cannot be read (unless ``options`` skip them), and where
    they would not fit into memory.
    """
    if len(blobs) < 2:
        raise Refusal(f"{what} holds {len(blobs)} image; give at least 2, one of them is held out")
    names, reasons, digest = list(blobs), dict[str, str](), hashlib.sha256()
    with careful():
        seen = dict(zip(names, _each(_look, list(blobs.values()), "looking at files"), strict=True))
        for name in sorted(seen):
            digest.update(os.fsencode(name.replace(os.sep, "/")) + b"\0" + seen[name].content)
        headers = {name: look.header for name, look in seen.items() if look.header is not None}
        reasons |= {name: look.why for name, look in seen.items() if look.header is None}
        if not headers:
            _refuse_unreadable(what, reasons, len(names), "mend them")
        made = layout(list(headers.values()), options, what)
        pixels = np.empty((len(headers), made.channels, *made.size), np.uint8)
        decoded = [(pixels[row], blobs[name]) for row, name in enumerate(headers)]
        whys = _each(lambda one: _decode(one[0], one[1], made), decoded, "decoding images")
    reasons |= {name: why for name, why in zip(headers, whys, strict=True) if why}
    if reasons and options.corrupt == "refuse":
        _refuse_unreadable(what, reasons, len(names), "mend or remove them, or leave them out with --corrupt skip")
    if len(names) - len(reasons) < 2:
        _refuse_unreadable(what, reasons, len(names), "at least 2 are needed, one of them is held out")
    good = [not why for why in whys]
    skipped = [("skipped", f"{len(reasons)} that cannot be read: {named(reasons)}")] if reasons else []
    read_well = [header for name, header in headers.items() if name not in reasons]
    return Gathered(
        pixels if all(good) else pixels[good],
        tuple(name not in reasons for name in names),
        digest,
        _reading(read_well, made, [*notes, *skipped]),
    )


@final
@dataclass(frozen=True)
class _Look:
    """The checksum of a file's contents, and what kind of picture it is, or why it is none."""

    content: bytes
    header: Header | None
    why: str


def _look(blob: Callable[[], bytes]) -> _Look:
    """A look at one file."""
    try:
        found = blob()
    except OSError as error:
        return _Look(b"", None, f"it cannot be opened ({error.strerror})")
    content = hashlib.sha256(found).digest()
    try:
        with opened(found) as image:
            return _Look(content, survey(image), "")
    except Unreadable as why:
        return _Look(content, None, str(why))


def _decode(place: UInt8[np.ndarray, "c h w"], blob: Callable[[], bytes], made: Layout) -> str:
    """Decode one file into its place; why that cannot be done, or nothing."""
    try:
        with opened(blob()) as image:
            place[:] = lay(image, made)
    except Unreadable as why:
        return str(why)
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    return ""


def _each(work: Callable[[T], U], items: Sequence[T], doing: str) -> list[U]:
    """``work`` on every item, on all cores; a terminal shows how far it got where there are :data:`MANY`."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = len(items) < MANY or not console.is_terminal
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        done = pool.map(work, items)
        return list(track(done, doing, len(items), console=console, transient=True, disable=hidden))


def _refuse_unreadable(what: str, reasons: Mapping[str, str], n: int, mend: str) -> NoReturn:
    """Raises :class:`Refusal` naming the first image that cannot be read."""
    first = min(reasons)
    raise Refusal(
        f"{what}: {len(reasons)} of {n} images cannot be read, the first is {readable(first)}: {reasons[first]}; {mend}"
    )


def _index(
    labels: Sequence[str | None], classes: Sequence[str] | None
) -> tuple[Int64[np.ndarray, " n"] | None, tuple[str, ...]]:
    """The class of every image as a number, and the names of the classes; one class alone is none."""
    names = [name for name in labels if name is not None]
    every = set(names)
    if len(every) < 2:
        return None, ()
    if classes is None:
        classes = sorted(every, key=int) if all(name.isascii() and name.isdigit() for name in every) else sorted(every)
    number = {name: k for k, name in enumerate(classes)}
    return np.array([number[name] for name in names], np.int64), tuple(classes)


def _reading(headers: Sequence[Header], made: Layout, notes: list[tuple[str, str]]) -> Reading:
    """What the report says of the files and of what became of them."""
    height, width = made.size
    resized = sum(header.size != made.size for header in headers)
    small = sum(header.size[0] < height or header.size[1] < width for header in headers)
    grey, clear = sum(header.grey for header in headers), sum(header.alpha for header in headers)
    moving, deep = sum(header.frames > 1 for header in headers), [header.top for header in headers if header.top]
    if resized:
        rule = "their middle" if made.crop == "center" else "stretched"
        notes.append(("resized", f"{resized:,} to {height} x {width} ({rule}), {small:,} of them enlarged"))
    if clear:
        notes.append(("transparent", f"{clear:,} laid on {made.background}"))
    if deep:
        notes.append(("16-bit", f"{len(deep):,}, levels up to {max(deep)}: 0..{2**made.bits - 1} became 0..255"))
    if moving:
        notes.append(("animations", f"{moving:,}, the first frame of each is read"))
    if 0 < grey < len(headers):
        notes.append(("grey", f"{grey:,} among colours, read as colours"))
    return Reading(
        sizes=tuple(sorted(Counter(header.size for header in headers).items())),
        modes=tuple(sorted(Counter(header.mode for header in headers).items())),
        notes=tuple(notes),
    )
