"""Images in WebDataset shards (.tar), for data that is larger than memory: read as it is trained on.

The contract: in memory are the places of the images (32 bytes each), a few batches, the held-out images and a sample of
the training images, whatever the shards hold; ``batch(index)`` is a function of the index alone, so training is
resumed exactly.  The order is that of :mod:`sfumato.data.stream_order`; images are decoded by background threads.

* **Names**: ``'shards/{000000..000099}.tar'``, ``a.tar``, or a folder of .tar files.  A shard may be listed twice.
* **Samples, classes**: see :mod:`sfumato.data.tar_index`.
* **Pictures**: as those of a folder (:mod:`sfumato.data.images`): one size and number of channels for all, found from
  the headers of :data:`PROBED` images spread over all shards unless ``--resolution`` says it.
* **Held out**: of every shard the last few, :data:`HELD_OUT` in all (one in ten where there are few).
* **Images that cannot be read** are refused when they are met; ``corrupt=skip`` leaves them out where they are held out
  and trains on a neighbour in their place.
* **sha256**: of the names and sizes of the files and the places and classes of all images; contents are not read.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sfumato.data.images import Header, Layout, Unreadable, careful, lay, layout, opened, survey
from sfumato.data.options import Options
from sfumato.data.report import Reading, Report
from sfumato.data.rows import described, index_of, tested
from sfumato.data.sets import Split, repeats
from sfumato.data.stream_order import StreamOrder, window_of
from sfumato.data.tar_index import NO_CLASS, Shard, indexed, listed
from sfumato.data.transforms import Transform, Uint8Image
from sfumato.errors import Refusal

#: Images that are held out, images that stand for the training images where some are needed at once, and the bytes
#: that each of the two may take.
HELD_OUT = 2000
SAMPLED = 2000
MOST_BYTES = 128 * 2**20
#: Images whose headers say what all are like.
PROBED = 256
#: Training images in a row that may be damaged where they are replaced by the one before them (``corrupt=skip``).
MOST_SKIPPED = 16
#: Batches that are read ahead, and threads that decode.
READY = 3
THREADS = min(8, os.cpu_count() or 1)


@final
@dataclass(frozen=True, eq=False)
class Place:
    """Where all images lie: sample ``k`` of the data is sample ``k - first[s]`` of ``shards[s]``, the last such s; the
    first ``trained[s]`` of that shard train, the others are held out."""

    shards: tuple[Shard, ...]
    first: Int64[np.ndarray, " s"]
    trained: tuple[int, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard], trained: Sequence[int] | None = None) -> Place:
        """The images of ``shards``, one after another; all of them train unless it is said how many do."""
        counts = np.array([len(shard) for shard in shards], np.int64)
        own = tuple(counts.tolist()) if trained is None else tuple(trained)
        return cls(tuple(shards), np.cumsum(counts) - counts, own)

    def find(self, number: int) -> tuple[int, int]:
        """The shard of one image, and which of its images it is."""
        shard = int(np.searchsorted(self.first, number, side="right")) - 1
        return shard, number - int(self.first[shard])

    def blob(self, number: int) -> bytes:
        """The file of one image."""
        shard, k = self.find(number)
        found = self.shards[shard]
        try:
            with open(found.path, "rb") as file:
                file.seek(int(found.offset[k]))
                content = file.read(int(found.size[k]))
        except OSError as error:
            raise Refusal(f"cannot read {found.path} ({error.strerror}); restore it and go on with --resume") from None
        if len(content) != found.size[k]:
            raise Refusal(f"{found.path} has become shorter than it was; restore it")
        return content

    def code(self, number: int) -> int:
        """The class of one image."""
        shard, k = self.find(number)
        return int(self.shards[shard].code[k])

    def words(self, number: int) -> str:
        """What an image is called in a refusal."""
        shard, k = self.find(number)
        return f"image {k + 1} of {self.shards[shard].path}"

    def beside(self, number: int, step: int) -> int:
        """The ``step``-th image to take in the place of another: those before it in its shard, then those behind; a
        training image for a training image, a held-out one for a held-out one."""
        shard, k = self.find(number)
        border = self.trained[shard]
        low, high = (0, border) if k < border else (border, len(self.shards[shard]))
        return number - k + min(k - step if step <= k - low else low + step, high - 1)


@final
@dataclass(frozen=True, eq=False)
class Decoder:
    """Images by number, decoded on background threads; ``damaged``: those that could not be read so far."""

    place: Place
    layout: Layout
    skip: bool
    damaged: set[int] = field(default_factory=set)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS, thread_name_prefix="decode")

    def split(self, numbers: Int64[Tensor, " b"], labelled: bool) -> Split:
        """The images in the order asked for, and their classes; each shard is read from its beginning to its end."""
        x = np.empty((len(numbers), self.layout.channels, *self.layout.size), np.uint8)
        label = np.empty(len(numbers), np.int64)
        order = np.argsort(numbers.numpy(), kind="stable")

        def fill(rows: np.ndarray) -> None:
            for row in rows:
                x[row], found = self._image(int(numbers[row]))
                label[row] = self.place.code(found)

        for done in [self._pool.submit(fill, rows) for rows in np.array_split(order, 4 * THREADS)]:
            done.result()
        return Split(torch.from_numpy(x), torch.from_numpy(label) if labelled else None)

    def _image(self, number: int) -> tuple[UInt8[np.ndarray, "c h w"], int]:
        """One image, or the nearest before it that can be read; and its number."""
        why = ""
        for step in range(MOST_SKIPPED if self.skip else 1):
            taken = self.place.beside(number, step)
            try:
                return self._laid(taken), taken
            except Unreadable as error:
                why = why or str(error)
        mend = "nor its neighbours: write the shard again" if self.skip else "leave such out with --corrupt skip"
        raise Refusal(f"{self.place.words(number)} cannot be read ({why}); {mend}")

    def _laid(self, number: int) -> UInt8[np.ndarray, "c h w"]:
        """One image; :attr:`damaged` keeps its number where that cannot be read."""
        try:
            with opened(self.place.blob(number)) as image:
                return lay(image, self.layout)
        except Unreadable:
            self.damaged.add(number)
            raise

    def sound(self, numbers: Sequence[int]) -> list[int]:
        """Those of some images that can be read, where others are to be skipped; else all."""

        def whole(number: int) -> bool:
            try:
                self._laid(number)
            except Unreadable:
                return False
            return True

        good: Iterable[bool] = self._pool.map(whole, numbers) if self.skip else [True] * len(numbers)
        return [number for number, kept in zip(numbers, good, strict=True) if kept]


@final
@dataclass(frozen=True, eq=False)
class ShardRows:
    """The training images, read as they are asked for."""

    decoder: Decoder
    counts: tuple[int, ...]
    window: int
    labelled: bool
    device: torch.device
    ready: ClassVar[int] = READY

    def __len__(self) -> int:
        return sum(self.counts)

    def order(self, seed: int) -> StreamOrder:
        """The order in which they are read quickly."""
        return StreamOrder(seed, self.counts, self.window)

    def batch(self, index: Int64[Tensor, " b"]) -> dict[str, Tensor]:
        """The images at ``index`` (of all training images, shard after shard) and their classes."""
        found = self.decoder.split(self.numbers(index), self.labelled)
        return {name: rows.to(self.device) for name, rows in found.tensors().items()}

    def numbers(self, index: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Training images as images of the shards, whose last few are held out."""
        ends = torch.tensor(self.counts).cumsum(0)
        shard = torch.searchsorted(ends, index, right=True)
        starts = ends - torch.tensor(self.counts)
        return index - starts[shard] + torch.from_numpy(self.decoder.place.first)[shard]


@final
@dataclass(frozen=True, eq=False)
class ShardData:
    """A set of shards.  ``load(data.name, data.options)`` gives it again.

    ``train`` is a sample of the training images (what statistics and nearest neighbours are taken from); :meth:`rows`
    gives all of them.
    """

    name: str
    rows_of: ShardRows
    test: Split
    classes: tuple[str, ...]
    sha256: str
    options: Options
    reading: Reading
    transform: Transform = Uint8Image()
    kind: ClassVar[str] = "images"
    licence: ClassVar[str] = "not stated"
    class_index = index_of
    held_out = tested
    spec = described

    @cached_property
    def train(self) -> Split:
        """At most :data:`SAMPLED` training images, spread evenly over all shards."""
        index = _spread(len(self.rows_of), _most(self.rows_of.decoder.layout, SAMPLED))
        return self.rows_of.decoder.split(self.rows_of.numbers(index), self.rows_of.labelled)

    @property
    def source(self) -> str:
        """What it was read from."""
        return f"shards named {Path(self.name).name}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        found = self.rows_of.decoder.layout
        return found.channels, *found.size

    def standardised(self) -> ShardData:
        """The same data, whose model units have mean 0 and standard deviation 0.5 over :attr:`train`."""
        return replace(self, transform=Uint8Image.standardised(self.train.x))

    def prepared(self, settings: Any) -> ShardData:
        """The data in the units that a recipe's settings ask for."""
        return self.standardised() if settings.optimisation.standardise else self

    def rows(self, device: torch.device) -> ShardRows:
        """All training images, as training reads them."""
        return replace(self.rows_of, device=device)

    def pictures(self) -> list[tuple[str, bytes]]:
        """PNG files for a page, each with its title: training images, held-out images."""
        from sfumato.data.sets import Data

        shown = Data(
            self.name, self.train, self.test, self.classes, self.transform, self.source, self.licence, self.sha256
        )
        return shown.pictures()

    def report(self) -> Report:
        """What is in the shards; levels and copies are those of :attr:`train` and the held-out images."""
        splits = (self.train, self.test)
        pixels = sum(split.x.numel() for split in splits)
        copies, leaked = repeats(self.train.x, self.test.x)
        return Report(
            name=self.name,
            train=len(self.rows_of),
            test=len(self.test),
            shape=self.shape,
            dtype="uint8",
            minimum=min(int(split.x.min()) for split in splits),
            maximum=max(int(split.x.max()) for split in splits),
            mean=sum(int(split.x.sum(dtype=torch.int64)) for split in splits) / pixels,
            classes=self.classes,
            train_counts=self._counts(),
            test_counts=self.test.counts(len(self.classes)),
            copies=copies,
            leaked=leaked,
            source=self.source,
            licence=self.licence,
            sha256=self.sha256,
            options=str(self.options),
            reading=replace(self.reading, notes=(*self.reading.notes, *self._replaced())),
        )

    def _replaced(self) -> list[tuple[str, str]]:
        """How many images could not be read so far, in words; nothing where all could."""
        count = len(self.rows_of.decoder.damaged)
        said = f"{count:,} of those decoded so far cannot be read: a neighbour stands for one in training"
        return [("skipped", said)] if count else []

    def _counts(self) -> tuple[int, ...]:
        """How many training images of every class there are."""
        shards = self.rows_of.decoder.place.shards
        every = [shard.code[:count] for shard, count in zip(shards, self.rows_of.counts, strict=True)]
        return tuple(np.bincount(np.concatenate(every), minlength=len(self.classes)).tolist()) if self.classes else ()


def read(name: str, options: Options) -> ShardData:
    """The shards that ``name`` names.

    Raises :class:`Refusal` where one is missing or damaged, holds no images, or has classes for some images only.
    """
    paths = listed(name)
    with_names = indexed(paths, options.label_column)
    empty = next((path for path, shard in with_names.items() if not len(shard)), None)
    if empty is not None:
        raise Refusal(f"{empty} holds no images; name shards whose samples are pictures (KEY.png, KEY.jpg, ...)")
    unique, classes = _classified(list(with_names.values()), options, name)
    by_path = {shard.path: shard for shard in unique}
    if sum(len(shard) for shard in unique) < 2:
        raise Refusal(f"{name} holds 1 image; give at least 2, one of them is held out")
    headers = _probed(Place.of(unique), options)
    found = layout(headers, options, name)
    kept_out = _held_out(unique, _most(found, HELD_OUT))
    counts = tuple(len(by_path[path]) - kept_out[path] for path in paths)
    place = Place.of([by_path[path] for path in paths], counts)
    decoder = Decoder(place, found, options.corrupt == "skip")
    total = sum(int(shard.size.sum()) for shard in place.shards)
    rows = ShardRows(decoder, counts, window_of(sum(counts), total), bool(classes), torch.device("cpu"))
    return ShardData(
        name=os.path.abspath(name),
        rows_of=rows,
        test=_last(decoder, place, paths, kept_out, bool(classes)),
        classes=classes,
        sha256=_checksum([by_path[path] for path in paths]),
        options=options,
        reading=_reading(place, unique, headers, total),
    )


def _most(found: Layout, count: int) -> int:
    """At most ``count`` images, and at most :data:`MOST_BYTES` of them."""
    return max(1, min(count, MOST_BYTES // found.memory(1)))


def _spread(n: int, most: int) -> Int64[Tensor, " m"]:
    """At most ``most`` of the numbers below ``n``, evenly spread."""
    count = min(n, most)
    return (torch.arange(count) * n) // count


def _held_out(shards: Sequence[Shard], most: int) -> dict[Path, int]:
    """How many of the last images of every shard are held out: evenly, one in ten at most, at least one in all."""
    n = sum(len(shard) for shard in shards)
    share = min(most / n, 0.1)
    ends = np.cumsum([len(shard) for shard in shards])
    kept = np.diff(np.floor(ends * share).astype(np.int64), prepend=0)
    if not kept.sum():
        kept[int(np.argmax([len(shard) for shard in shards]))] = 1
    return {shard.path: int(k) for shard, k in zip(shards, kept, strict=True)}


def _last(decoder: Decoder, place: Place, paths: Sequence[Path], kept_out: dict[Path, int], labelled: bool) -> Split:
    """The held-out images, each shard's once; none takes the place of one that cannot be read."""
    numbers = []
    for path in dict.fromkeys(paths):
        shard = list(paths).index(path)
        end = int(place.first[shard]) + len(place.shards[shard])
        numbers += list(range(end - kept_out[path], end))
    with careful():
        sound = decoder.sound(numbers)
        if not sound:
            raise Refusal(f"{paths[0]}: none of {len(numbers)} held-out images can be read; write the shards again")
        return decoder.split(torch.tensor(sound, dtype=torch.int64), labelled)


def _classified(shards: list[Shard], options: Options, name: str) -> tuple[list[Shard], tuple[str, ...]]:
    """The shards with one list of classes: numbers in order, else by the alphabet; one class alone is none."""
    if options.labels == "none":
        return shards, ()
    bare = sum(int((shard.code == NO_CLASS).sum()) for shard in shards)
    every = {word for shard in shards for word in shard.names}
    if options.label_column is not None and not every:
        raise Refusal(f"label_column={options.label_column}: no .json in {name} has such an entry; leave it out")
    if every and bare:
        n = sum(len(shard) for shard in shards)
        raise Refusal(f"{name}: {bare:,} of {n:,} images have no class; label all, or read none with --labels none")
    if len(every) < 2:
        return shards, ()
    numbers = all(word.isascii() and word.isdigit() for word in every)
    classes = sorted(every, key=int) if numbers else sorted(every)
    place = {word: k for k, word in enumerate(classes)}
    return [
        replace(shard, code=np.array([place[word] for word in shard.names], np.int64)[shard.code]) for shard in shards
    ], tuple(classes)


def _probed(place: Place, options: Options) -> list[Header]:
    """What images spread over all shards are like."""
    n = sum(len(shard) for shard in place.shards)
    headers, why = [], ""
    with careful():
        for number in _spread(n, PROBED).tolist():
            try:
                with opened(place.blob(number)) as image:
                    headers.append(survey(image))
            except Unreadable as error:
                why = f"{place.words(number)} cannot be read ({error})"
                if options.corrupt == "refuse":
                    raise Refusal(f"{why}; leave such out with --corrupt skip") from None
    if not headers:
        raise Refusal(f"{why}, and no other one either; write the shards again")
    return headers


def _checksum(shards: Sequence[Shard]) -> str:
    """Of what the headers of the files say."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.path.name} {len(shard)} {' '.join(shard.names)}\n".encode())
        for part in (shard.offset, shard.size, shard.code):
            digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return digest.hexdigest()


def _reading(place: Place, unique: Sequence[Shard], headers: Sequence[Header], total: int) -> Reading:
    """What the report says of the files."""
    again = len(place.shards) - len(unique)
    twice = f", {again:,} of them listed again" if again else ""
    return Reading(
        sizes=tuple(sorted(Counter(header.size for header in headers).items())),
        modes=tuple(sorted(Counter(header.mode for header in headers).items())),
        notes=(
            ("shards", f"{len(place.shards):,}{twice}, {total / 1e9:.2f} GB of images, read while training"),
            ("looked at", f"{len(headers):,} images; sizes and modes are theirs"),
        ),
    )
