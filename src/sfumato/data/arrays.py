"""Images in a NumPy file: an ``.npz`` with ``x`` and, optionally, ``label``; or an ``.npy`` with the images alone.

The contract: what the numbers mean is read from the array alone, by the rules below, and shown in the report; levels
that fit no rule are refused.

* **Layouts**: ``[n, h, w]``, ``[n, h, w, c]`` or ``[n, c, h, w]`` with 1 to 4 channels (2 and 4: the last is
  transparency); where both could be, the last axis holds the channels.
* **Levels**: uint8 as it is; booleans are black and white; uint16 as in :mod:`sfumato.data.images`; other integers must
  lie in 0..255; floats in [0, 1], or, where one of them is negative, in [-1, 1].
* **Labels**: integers ``0..K-1``, or names.

One image in :data:`HELD_OUT` is held out, chosen by a fixed seed, never the last one of a class.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8

from sfumato.data.cards import read_bytes
from sfumato.data.images import BITS, relaid
from sfumato.data.options import Options
from sfumato.data.packed import DAMAGE
from sfumato.data.report import Reading
from sfumato.data.sets import Data, Split
from sfumato.data.transforms import Uint8Image
from sfumato.errors import Refusal

#: One image in this many is held out.
HELD_OUT = 10
#: How a file is made that this module reads.
MEND = "save it with numpy.savez(path, x=images, label=labels)"


def read(path: Path, options: Options) -> Data:
    """The images of a file, one in ten held out.  Raises :class:`Refusal` for what cannot be read as images."""
    blob = read_bytes(path)
    own, label = stored(path, blob)
    x, notes = _levels(path, _channels_last(path, own))
    index, classes = (None, ()) if label is None else _labels(path, label, len(x))
    pixels = relaid(x, options, str(path))
    if x.shape[3] in (2, 4):
        notes += [("transparent", f"laid on {options.background}")]
    if pixels.shape[2:] != x.shape[1:3]:
        notes += [("resized", f"all, from {x.shape[1]}x{x.shape[2]}, crop={options.crop}")]
    return assembled(
        pixels,
        index,
        classes,
        name=str(path.resolve()),
        source=f"the file {path.name}",
        sha256=hashlib.sha256(blob).hexdigest(),
        options=options,
        reading=Reading(
            sizes=((x.shape[1:3], len(x)),),
            modes=((f"{own.dtype} {list(own.shape)}", len(x)),),
            notes=tuple(notes),
        ),
    )


def assembled(
    pixels: UInt8[np.ndarray, "n c h w"],
    index: Int64[np.ndarray, " n"] | None,
    classes: tuple[str, ...],
    *,
    name: str,
    source: str,
    sha256: str,
    options: Options,
    reading: Reading,
    rows: tuple[Int64[np.ndarray, " n_train"], Int64[np.ndarray, " n_test"]] | None = None,
) -> Data:
    """A user's images as a data set; ``rows``: which of them train and which are held out, by default one in ten."""
    train, test = held_out(len(pixels), index) if rows is None else rows

    def split(chosen: Int64[np.ndarray, " m"]) -> Split:
        label = None if index is None else torch.from_numpy(index[chosen])
        return Split(torch.from_numpy(pixels[chosen]), label)

    return Data(
        name=name,
        train=split(train),
        test=split(test),
        classes=classes,
        transform=Uint8Image(),
        source=source,
        licence="not stated",
        sha256=sha256,
        options=options,
        reading=reading,
    )


def held_out(
    n: int, index: Int64[np.ndarray, " n"] | None
) -> tuple[Int64[np.ndarray, " n_train"], Int64[np.ndarray, " n_test"]]:
    """The rows that train and the rows that are held out: one in ten, at least one, never the last of its class."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
    label = np.zeros(n, np.int64) if index is None else index
    left, wanted, test = np.bincount(label), max(1, n // HELD_OUT), np.zeros(n, bool)
    for row in order:
        if wanted and left[label[row]] > 1:
            test[row], wanted = True, wanted - 1
            left[label[row]] -= 1
    if not test.any():  # a class for every image
        test[order[0]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def stored(
    path: Path, blob: bytes, mend: str = MEND
) -> tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."] | None]:
    """``x`` and ``label`` of a file as they are.  Raises :class:`Refusal`, which says ``mend``, for anything else."""
    try:
        archive = np.load(io.BytesIO(blob), allow_pickle=False)
        if isinstance(archive, np.ndarray):
            return archive, None
        with archive:
            keys = list(archive.keys())
            if "x" not in keys or set(keys) - {"x", "label"}:
                held = ", ".join(sorted(keys)) or "nothing"
                raise Refusal(f"{path} holds {held}; it must hold x and, optionally, label; {mend}")
            return archive["x"], archive["label"] if "label" in keys else None
    except Refusal:
        raise
    except DAMAGE as error:
        why = "it holds Python objects" if "pickle" in str(error) else "it is damaged or no NumPy file"
        raise Refusal(f"cannot read {path}: {why}; {mend}") from None


def _channels_last(path: Path, x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "n h w c"]:
    """The images as ``[n, h, w, c]``."""
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim == 4 and x.shape[3] not in (1, 2, 3, 4) and x.shape[1] in (1, 2, 3, 4):
        x = np.moveaxis(x, 1, 3)
    if x.ndim != 4 or x.shape[3] not in (1, 2, 3, 4):
        raise Refusal(
            f"{path}: x has shape {list(x.shape)}; give [n, h, w], [n, h, w, c] or [n, c, h, w], c from 1 to 4"
        )
    if len(x) < 2 or 0 in x.shape:
        raise Refusal(f"{path}: x has shape {list(x.shape)}; give at least 2 images, one of them is held out")
    return x


def _levels(path: Path, x: Shaped[np.ndarray, "n h w c"]) -> tuple[UInt8[np.ndarray, "n h w c"], list[tuple[str, str]]]:
    """The images as grey levels 0..255, and what was done to them."""
    if x.dtype == np.uint8:
        return x, []
    if x.dtype == np.bool_:
        return x.astype(np.uint8) * np.uint8(255), [("levels", "false is 0, true is 255")]
    if x.dtype.kind not in "iuf":
        raise Refusal(f"{path}: x is {x.dtype}; give grey levels: uint8, uint16, or floats in [0, 1]")
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind == "f":
        if not (low >= -1 and high <= 1):
            raise Refusal(
                f"{path}: x is {x.dtype} from {low:g} to {high:g}; give floats in [0, 1] or [-1, 1], or uint8"
            )
        start = -1.0 if low < 0 else 0.0
        return _scaled(x, start, 1.0), [("levels", f"{x.dtype}: {start:g}..1 became 0..255")]
    if x.dtype == np.uint16:
        white = next(2**bits - 1 for bits in BITS if high < 2**bits)
        return _scaled(x, 0.0, float(white)), [("levels", f"uint16 up to {high:g}: 0..{white} became 0..255")]
    if not (low >= 0 and high <= 255):
        raise Refusal(f"{path}: x is {x.dtype} from {low:g} to {high:g}; give levels 0..255, or uint16")
    return x.astype(np.uint8), []


def _scaled(x: Shaped[np.ndarray, "n h w c"], black: float, white: float) -> UInt8[np.ndarray, "n h w c"]:
    """Levels from ``black`` to ``white`` as 0..255, an image at a time (float64 of all would not fit)."""
    levels = np.empty(x.shape, np.uint8)
    for k, image in enumerate(x):
        levels[k] = np.rint((image.astype(np.float64) - black) * (255 / (white - black)))
    return levels


def _labels(path: Path, label: Shaped[np.ndarray, "..."], n: int) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Labels ``0..K-1`` and the K class names from a file's ``label`` array."""
    if label.shape != (n,):
        raise Refusal(f"{path}: label has shape {list(label.shape)}; give one label for each of the {n} images")
    if label.dtype.kind == "U":
        classes, index = np.unique(label, return_inverse=True)
        return index.astype(np.int64), tuple(str(c) for c in classes)
    if label.dtype.kind not in "iu":
        raise Refusal(f"{path}: label is {label.dtype}; give integers 0..K-1 or names")
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= n:
        raise Refusal(f"{path}: labels run from {low} to {high}; number the classes 0..K-1")
    return label.astype(np.int64), tuple(str(k) for k in range(high + 1))
