"""Data by name or by path.  The contract: one name, one data set, checked against its checksum every time it is read.

A name is first looked for among the sets that need no file of the user's (:data:`FAMILIES`), then every reader of
:data:`~sfumato.data.readers.READERS` is asked in turn.  Embedded images live in ``files/NAME.npz`` (see
:mod:`sfumato.data.packed`) beside ``files/NAME.json``, a card with their source, licence, classes and checksum;
``tools/make_NAME.py`` makes both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.data import named
from sfumato.data import options as choices
from sfumato.data.cards import FILES, KEYS, checked, read_card
from sfumato.data.images import relaid
from sfumato.data.named import Family
from sfumato.data.options import INFER, Options, refuse_unused
from sfumato.data.packed import unpack
from sfumato.data.readers import READERS
from sfumato.data.sets import Data, Split, embedded
from sfumato.errors import Refusal, nearest


def image_names() -> tuple[str, ...]:
    """The embedded images."""
    return tuple(sorted(path.stem for path in FILES.glob("*.npz")))


def _text_names() -> tuple[str, ...]:
    from sfumato.data import corpora

    return corpora.names()


def _text(name: str, options: Options) -> Any:
    from sfumato.data import text

    return text.load(name)


def _point_names() -> tuple[str, ...]:
    from sfumato.data import manifolds

    return tuple(manifolds.names())


def _points(name: str, options: Options) -> Any:
    from sfumato.data import points

    return points.load(name)


#: Every set that has a name, by what it holds.
FAMILIES: tuple[Family, ...] = (
    Family("images", image_names, lambda name, options: _embedded(name, options), named.RELAID),
    Family("text", _text_names, _text),
    Family("points", _point_names, _points),
    *named.FAMILIES,
)


def names() -> dict[str, tuple[str, ...]]:
    """The sets that need no file, by kind: images, text, points."""
    found: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        found[family.kind] = found.get(family.kind, ()) + family.names()
    return found


def load(name: str | Path, options: Options = INFER) -> Any:
    """The set called ``name``, or a user's own data: a folder of images, an ``.npz`` or ``.npy`` of images, a ``.txt``.

    Its ``kind`` says what it is: :class:`~sfumato.data.sets.Data` (images), :class:`~sfumato.data.text.TextData`,
    :class:`~sfumato.data.points.PointData`, ...  ``options`` says how it is read where that is not to be inferred.  Of
    a user's images one in ten is held out as the test split, chosen by a fixed seed.  Raises :class:`Refusal` for an
    unknown name, for data that cannot be read, and for an option that does nothing with them.
    """
    text = str(name)
    for family in FAMILIES:
        if text in family.names():
            refuse_unused(options, family.uses, f"the {family.kind} called {text}")
            return family.load(text, options)
    for reader in READERS:
        if reader.takes(text):
            refuse_unused(options, reader.uses, f"{text}, {reader.name}")
            return reader.read(text, options)
    if os.sep in text:
        raise Refusal(f"cannot read {text} (there is no such file or folder); check the path")
    every = [each for kind in names().values() for each in kind]
    own = ", ".join(reader.name for reader in READERS)
    raise Refusal(f"unknown data {text!r}; {nearest(text, every)} (or the path of your own: {own})")


def reload(spec: Mapping[str, Any]) -> Any:
    """The data that a checkpoint stores the ``spec`` of, read in the way it was read then.

    Raises :class:`Refusal` where it is not there any more, or has changed since.
    """
    loaded = load(str(spec["name"]), choices.from_json(spec.get("options", {})))
    if loaded.sha256 != spec["sha256"]:
        raise Refusal(f"{loaded.name} has changed since the run was trained on it (its checksum differs); restore it")
    return loaded


def _embedded(name: str, options: Options) -> Data:
    """An embedded set, after its checksum agreed with its card."""
    card = read_card(name, (*KEYS, "classes"))
    arrays = unpack(checked(f"{name}.npz", str(card["sha256"])))

    def split(part: str) -> Split:
        x = arrays[f"{part}.x"]
        pixels = relaid(x[..., None] if x.ndim == 3 else x, options, name)
        return Split(torch.from_numpy(pixels), torch.from_numpy(arrays[f"{part}.label"].astype(np.int64)))

    return embedded(name, card, split("train"), split("test"), options)
