"""Emoji with their names: 1,557 colour pictures in eight categories, at 64 x 64 and 32 x 32 pixels.

The contract: ``files/emoji.webp`` is one lossless sheet, :data:`COLUMNS` pictures wide, whose checksum is on its card
``files/emoji.json`` beside every picture's code points, name and class; a picture of 32 x 32 is the mean of every 2 x 2
pixels of the larger one, rounded half up; every tenth picture of a class, in the sheet's order, is held out.  So the
two sizes have the same pictures in the same splits, and :func:`captions` names them in that order.

There is one picture per emoji: variants in other skin tones, which repeat one drawing up to 25 times, are left out (see
``tools/make_emoji.py``, which says what else is).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from sfumato.data.cards import checked, read_card
from sfumato.data.images import relaid
from sfumato.data.options import INFER, Options
from sfumato.data.sets import Data, Split, embedded
from sfumato.errors import Refusal

#: Pictures in a row of the sheet, and pixels along the side of one.
COLUMNS, SIDE = 40, 64
#: One picture of a class in this many is held out.
HELD_OUT = 10
#: What the sets are called, and the side of their pictures.
SIDES = {"emoji-32": 32, "emoji-64": 64}


def names() -> tuple[str, ...]:
    """The two sizes."""
    return tuple(SIDES)


def tiles(sheet: bytes, count: int) -> UInt8[np.ndarray, "n 64 64 3"]:
    """The first ``count`` pictures of a sheet."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))
    rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    cut = pixels.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 1, 3, 4)
    found: np.ndarray = np.ascontiguousarray(cut.reshape(-1, SIDE, SIDE, 3)[:count])
    return found


def halved(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h2 w2 c"]:
    """The mean of every 2 x 2 pixels, rounded half up."""
    n, height, width, c = x.shape
    total = x.reshape(n, height // 2, 2, width // 2, 2, c).sum((2, 4), dtype=np.uint16)
    mean: np.ndarray = ((total + 2) // 4).astype(np.uint8)
    return mean


def held_out(label: np.ndarray) -> np.ndarray:
    """Which pictures are held out: every tenth of a class, in order."""
    place = np.zeros(len(label), np.int64)
    for k in np.unique(label):
        place[label == k] = np.arange((label == k).sum())
    last: np.ndarray = place % HELD_OUT == HELD_OUT - 1
    return last


def _listed() -> tuple[dict[str, Any], list[str], np.ndarray]:
    """The card, and every picture's name and class in the sheet's order."""
    card = read_card("emoji")
    rows = card["images"]
    return card, [str(row[1]) for row in rows], np.array([row[2] for row in rows], np.int64)


def captions() -> dict[str, tuple[str, ...]]:
    """The names of the pictures of the ``train`` and the ``test`` split, in order; the same for both sizes."""
    _, every, label = _listed()
    test = held_out(label)
    parts = {"train": ~test, "test": test}
    return {part: tuple(every[k] for k in np.flatnonzero(chosen)) for part, chosen in parts.items()}


def load(name: str, options: Options = INFER) -> Data:
    """``emoji-32`` or ``emoji-64``, brought to another resolution where ``options`` say so.

    Raises :class:`Refusal` for another name, and where the files are damaged.
    """
    if name not in SIDES:
        raise Refusal(f"unknown emoji {name!r}; there are {' and '.join(SIDES)}")
    card, every, label = _listed()
    x = tiles(checked("emoji.webp", str(card["sha256"])), len(every))
    x = x if SIDES[name] == SIDE else halved(x)
    test = held_out(label)

    def split(chosen: np.ndarray) -> Split:
        return Split(torch.from_numpy(relaid(x[chosen], options, name)), torch.from_numpy(label[chosen]))

    return embedded(name, card, split(~test), split(test), options)
