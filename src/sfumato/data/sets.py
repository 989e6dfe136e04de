"""What a data set is: two fixed splits of uint8 images in memory, their labels, and the transform to the model's units.

The contract: ``len(split)`` images ``[n, c, h, w]`` and as many labels in ``0..K-1``, or none at all; train and test
have one shape; nothing here changes after it is made, so two loads of one name are equal.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar, final

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sfumato.data.options import Options
from sfumato.data.report import Reading, Report
from sfumato.data.rows import Dataset, by_name, described, index_of, tested
from sfumato.data.transforms import Transform, Uint8Image

#: A page shows this many classes.
PAGE_ROWS = 40


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Images ``x`` uint8 ``[n, c, h, w]`` and their classes ``label`` int64 ``[n]`` (``None``: unlabelled)."""

    x: UInt8[Tensor, "n c h w"]
    label: Int64[Tensor, " n"] | None
    tensors = by_name

    def __len__(self) -> int:
        return len(self.x)

    def counts(self, classes: int) -> tuple[int, ...]:
        """How many images of every class there are; empty without labels."""
        return () if self.label is None else tuple(torch.bincount(self.label, minlength=classes).tolist())


@final
@dataclass(frozen=True, eq=False)
class Data:
    """A named data set.  ``load(data.name, data.options)`` gives it again (a file's name is its absolute path).

    ``reading``: what was found in a user's files, and what was done to them.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    transform: Transform
    source: str
    licence: str
    sha256: str
    options: Options = Options()
    reading: Reading = Reading()
    kind: ClassVar[str] = "images"
    class_index = index_of
    held_out = tested

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        _, c, h, w = self.train.x.shape
        return c, h, w

    def standardised(self) -> Data:
        """The same data, whose model units have mean 0 and standard deviation 0.5 over the training images."""
        return replace(self, transform=Uint8Image.standardised(self.train.x))

    def prepared(self, settings: Any) -> Data:
        """The data in the units that a recipe's settings ask for."""
        return self.standardised() if settings.optimisation.standardise else self

    def rows(self, device: torch.device) -> Dataset:
        """The training split, as training reads it."""
        return Dataset(self.train.x, self.train.label, device)

    def spec(self) -> dict[str, Any]:
        """What a checkpoint stores of it (JSON), with what was done to a user's files."""
        return described(self) | {"notes": dict(self.reading.notes)}

    def pictures(self) -> list[tuple[str, bytes]]:
        """PNG files for a page, each with its title: training images, held-out images."""
        from sfumato.data.sheets import sheet

        found = []
        for title, split in (("Training images", self.train), ("Held-out images", self.test)):
            image = io.BytesIO()
            sheet(split, rows=PAGE_ROWS).save(image, format="PNG")
            rows = f", a row for each class (the first {PAGE_ROWS})" if len(self.classes) > PAGE_ROWS else ""
            found.append((title + (rows or (", a row for each class" if self.classes else "")), image.getvalue()))
        return found

    def report(self) -> Report:
        """Count, shape, range, copies, classes with their counts, source and licence, and how files were read."""
        splits = (self.train, self.test)
        copies, leaked = repeats(self.train.x, self.test.x)
        pixels = sum(split.x.numel() for split in splits)
        return Report(
            name=self.name,
            train=len(self.train),
            test=len(self.test),
            shape=self.shape,
            dtype=str(self.train.x.dtype).removeprefix("torch."),
            minimum=min(int(split.x.min()) for split in splits),
            maximum=max(int(split.x.max()) for split in splits),
            mean=sum(int(split.x.sum(dtype=torch.int64)) for split in splits) / pixels,
            classes=self.classes,
            train_counts=self.train.counts(len(self.classes)),
            test_counts=self.test.counts(len(self.classes)),
            copies=copies,
            leaked=leaked,
            source=self.source,
            licence=self.licence,
            sha256=self.sha256,
            options=str(self.options),
            reading=self.reading,
        )


def repeats(train: UInt8[Tensor, "n c h w"], test: UInt8[Tensor, "m c h w"]) -> tuple[int, int]:
    """How many of all images repeat an earlier one, pixel for pixel, and how many held-out ones are trained on, too."""
    shown = {blake2b(image, digest_size=16).digest() for image in train.contiguous().numpy()}
    held = [blake2b(image, digest_size=16).digest() for image in test.contiguous().numpy()]
    return len(train) + len(held) - len(shown.union(held)), sum(image in shown for image in held)


def embedded(name: str, card: Mapping[str, Any], train: Split, test: Split, options: Options) -> Data:
    """The data of two splits whose classes, source, licence and checksum are those of a ``card``."""
    return Data(
        name=name,
        train=train,
        test=test,
        classes=tuple(str(c) for c in card["classes"]),
        transform=Uint8Image(),
        source=str(card["source"]),
        licence=str(card["licence"]),
        sha256=str(card["sha256"]),
        options=options,
    )
