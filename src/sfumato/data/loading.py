"""Data by name or by path.  The contract: one name, one data set, checked against its checksum every time it is read.

Embedded sets live in ``files/NAME.npz`` (see :mod:`sfumato.data.packed`) beside ``files/NAME.json``, a card with their
source, licence, classes and checksum; ``tools/make_NAME.py`` makes both.  A user's own images are an ``.npz`` with
``x`` and, optionally, ``label``.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped

from sfumato.data.corpora import is_text
from sfumato.data.packed import DAMAGE, unpack
from sfumato.data.sets import Data, Split
from sfumato.data.transforms import Uint8Image
from sfumato.errors import Refusal, nearest

#: Where the embedded sets are.
FILES = Path(__file__).parent / "files"
#: A user's file keeps one image in this many for the test split.
HELD_OUT = 10


def image_names() -> tuple[str, ...]:
    """The embedded images."""
    return tuple(sorted(path.stem for path in FILES.glob("*.npz")))


def names() -> dict[str, tuple[str, ...]]:
    """The sets that need no file, by kind: images, text, points."""
    from sfumato.data import corpora, manifolds

    return {"images": image_names(), "text": corpora.names(), "points": tuple(manifolds.names())}


def load(name: str | Path) -> Any:
    """The set called ``name``, or a user's file: the images of an ``.npz`` or the text of a ``.txt``.

    Its ``kind`` says what it is: :class:`~sfumato.data.sets.Data` (images), :class:`~sfumato.data.text.TextData` or
    :class:`~sfumato.data.points.PointData`. An ``.npz`` holds ``x``, uint8 ``[n, h, w]`` or ``[n, h, w, c]`` with 1
    or 3 channels, and, where there are classes, ``label`` of shape ``[n]``: integers ``0..K-1``, or names. One
    image in ten is held out as the test split, chosen by a fixed seed. Raises :class:`Refusal` for an unknown name,
    a file that is damaged or of another make.
    """
    text, known = str(name), names()
    if text in known["images"]:
        return _embedded(text)
    if is_text(name):
        from sfumato.data import text as texts

        return texts.load(name)
    if text in known["points"]:
        from sfumato.data import points

        return points.load(text)
    if text.endswith(".npz"):
        return _from_file(Path(name))
    every = [each for kind in known.values() for each in kind]
    raise Refusal(f"unknown data {text!r}; {nearest(text, every)} (or the path of an .npz of images or a .txt)")


def _read(path: Path) -> bytes:
    """The bytes of a file, or a one-line refusal."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal(f"cannot read {path} ({error.strerror}); check the path") from None


def _split(x: Shaped[np.ndarray, "n ..."], label: Shaped[np.ndarray, " n"] | None) -> Split:
    """A split from arrays ``[n, h, w]`` or ``[n, h, w, c]``."""
    images = torch.from_numpy(np.ascontiguousarray(x))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Split(images, None if label is None else torch.from_numpy(label.astype(np.int64)))


def _embedded(name: str) -> Data:
    """An embedded set, after its checksum agreed with its card."""
    path = FILES / f"{name}.npz"
    blob = _read(path)
    try:
        card: dict[str, Any] = json.loads(_read(path.with_suffix(".json")))
        expected = str(card["sha256"])
        found = hashlib.sha256(blob).hexdigest()
        if found != expected:
            raise Refusal(f"{path} is damaged (sha256 {found[:16]}, expected {expected[:16]}); install sfumato again")
        arrays = unpack(blob)
        return Data(
            name=name,
            train=_split(arrays["train.x"], arrays["train.label"]),
            test=_split(arrays["test.x"], arrays["test.label"]),
            classes=tuple(str(c) for c in card["classes"]),
            transform=Uint8Image(),
            source=str(card["source"]),
            licence=str(card["licence"]),
            sha256=found,
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise Refusal(f"{path.with_suffix('.json')} is damaged; install sfumato again") from None


def _labels(path: Path, label: np.ndarray, n: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels ``0..K-1`` and the K class names from a file's ``label`` array."""
    if label.shape != (n,):
        raise Refusal(f"{path}: label has shape {list(label.shape)}; give one label for each of the {n} images")
    if label.dtype.kind == "U":
        classes, index = np.unique(label, return_inverse=True)
        return index, tuple(str(c) for c in classes)
    if label.dtype.kind not in "iu":
        raise Refusal(f"{path}: label is {label.dtype}; give integers 0..K-1 or names")
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= n:
        raise Refusal(f"{path}: labels run from {low} to {high}; number the classes 0..K-1")
    return label, tuple(str(k) for k in range(high + 1))


def _arrays(path: Path, blob: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """``x`` and ``label`` of a user's file, checked."""
    try:
        archive = np.load(io.BytesIO(blob), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise Refusal(f"{path} is a bare array; save it with numpy.savez(path, x=images, label=labels)")
        with archive:
            keys = list(archive.keys())
            unknown = sorted(set(keys) - {"x", "label"})
            if "x" not in keys or unknown:
                held = ", ".join(sorted(keys)) or "nothing"
                raise Refusal(f"{path} holds {held}; it must hold x and, optionally, label")
            x, label = archive["x"], archive["label"] if "label" in keys else None
    except Refusal:
        raise
    except DAMAGE as error:
        why = "it holds Python objects" if "pickle" in str(error) else "it is damaged or not an .npz file"
        raise Refusal(f"cannot read {path}: {why}; save it with numpy.savez(path, x=images, label=labels)") from None
    if x.dtype != np.uint8:
        raise Refusal(f"{path}: x is {x.dtype}; give uint8 grey levels 0..255")
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise Refusal(f"{path}: x has shape {list(x.shape)}; give [n, h, w] or [n, h, w, c] with 1 or 3 channels")
    if len(x) < 2 or 0 in x.shape:
        raise Refusal(f"{path}: x has shape {list(x.shape)}; give at least 2 images, one of them is held out")
    return x, label


def _from_file(path: Path) -> Data:
    """A user's images, one in ten held out."""
    blob = _read(path)
    x, label = _arrays(path, blob)
    n = len(x)
    index, classes = (None, ()) if label is None else _labels(path, label, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).numpy()
    held = max(1, n // HELD_OUT)
    test, train = np.sort(order[:held]), np.sort(order[held:])
    return Data(
        name=str(path.resolve()),
        train=_split(x[train], None if index is None else index[train]),
        test=_split(x[test], None if index is None else index[test]),
        classes=classes,
        transform=Uint8Image(),
        source=f"the file {path.name}",
        licence="not stated",
        sha256=hashlib.sha256(blob).hexdigest(),
    )
