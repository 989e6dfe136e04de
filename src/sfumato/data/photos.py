"""Crops of four photographs that nobody owns: natural images for patches, restoration and super-resolution.

The contract: ``photos-64`` are crops of 64 x 64 pixels at fixed places (a function of :data:`SEED` alone),
``photos-32`` the same crops at half the size (the mean of every 2 x 2 pixels, rounded half up); held-out crops lie in
the right quarter of each photograph and training crops to the left of it, so that they share no pixel.  The class is
the photograph.

``files/photos.zip`` holds the photographs, lossless; its card says where each is from.  They are public domain or CC0,
each by its own statement.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sfumato.data.cards import checked, read_card
from sfumato.data.emoji import halved
from sfumato.data.images import relaid
from sfumato.data.options import INFER, Options
from sfumato.data.sets import Data, Split, embedded
from sfumato.errors import Refusal
from sfumato.randomness import Stream

#: What the sets are called, and the side of their crops.
SIDES = {"photos-32": 32, "photos-64": 64}
#: The side of a crop in the photograph.
SIDE = 64
#: Crops of every photograph, and what their places are drawn with.
COUNTS = {"train": 1000, "test": 100}
SEED = {"train": 60, "test": 61}


def names() -> tuple[str, ...]:
    """The two sizes."""
    return tuple(SIDES)


def photographs(blob: bytes) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The photographs of the archive, in the order of their names."""
    from PIL import Image

    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return [
            np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in sorted(archive.namelist())
        ]


def places(height: int, width: int, part: str, photo: int) -> Int64[Tensor, "n 2"]:
    """The top left corners of the crops of one photograph: row and column."""
    border = width - width // 4
    first, last = (0, border - SIDE) if part == "train" else (border, width - SIDE)
    u = Stream(SEED[part] * 1000 + photo).uniform((COUNTS[part], 2)).double()
    low, high = torch.tensor([0, first]), torch.tensor([height - SIDE, last])
    return (low + u * (high - low + 1)).floor().long()


def _split(photos: list[np.ndarray], part: str, name: str, options: Options) -> Split:
    crops, label = [], []
    for k, photo in enumerate(photos):
        for row, column in places(photo.shape[0], photo.shape[1], part, k).tolist():
            crops.append(photo[row : row + SIDE, column : column + SIDE])
            label.append(k)
    x = np.stack(crops)
    x = x if SIDES[name] == SIDE else halved(x)
    return Split(torch.from_numpy(relaid(x, options, name)), torch.tensor(label))


def load(name: str, options: Options = INFER) -> Data:
    """``photos-32`` or ``photos-64``, brought to another resolution where ``options`` say so.

    Raises :class:`Refusal` for another name, and where the files are damaged.
    """
    if name not in SIDES:
        raise Refusal(f"unknown photos {name!r}; there are {' and '.join(SIDES)}")
    card: dict[str, Any] = read_card("photos")
    photos = photographs(checked("photos.zip", str(card["sha256"])))
    return embedded(name, card, _split(photos, "train", name, options), _split(photos, "test", name, options), options)
