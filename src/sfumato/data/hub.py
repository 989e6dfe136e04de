"""Images of a Hugging Face data set, by name: ``hf:NAME`` or ``hf:NAME:CONFIGURATION`` (the ``hf`` extra).

The contract: the encoded files of the first column of images are read as those of a folder are
(:mod:`sfumato.data.images`); ``train`` is trained on and the first of :data:`HELD` that is there is held out; the
classes are those of ``label_column``, or of the first column of class labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.data.gather import gather
from sfumato.data.options import Options
from sfumato.data.sets import Data
from sfumato.errors import Refusal, missing_extra, nearest

#: What a name begins with.
PREFIX = "hf:"
#: What the held-out split is called, the first that is there.
HELD = ("test", "validation", "valid", "val")


def read(name: str, options: Options) -> Data:
    """The images of the data set called ``hf:NAME``.

    Raises :class:`Refusal` where the extra is not installed, the set cannot be loaded, or it holds no images.
    """
    splits = _load(name)
    train, held = _split_names(name, splits)
    chosen = {split: splits[split] for split in (train, held) if split is not None}
    features = splits[train].features
    image, label = _columns(name, features, options)
    blobs: dict[str, Callable[[], bytes]] = {}
    labels: list[str | None] = []
    for split, rows in chosen.items():
        encoded = rows.cast_column(image, type(features[image])(decode=False))
        for k in range(len(rows)):
            blobs[f"{split}[{k:08d}]"] = functools.partial(_bytes, encoded, k, image)
        labels += [None] * len(rows) if label is None else _labels(name, label, features[label], rows[label])
    notes = [("split", f"{' is trained on, '.join(chosen)} is {'held out' if held else 'all there is'}")]
    notes += [] if label is None else [("labels", f"column {label}")]
    gathered = gather(blobs, options, name, notes)
    gathered.digest.update(repr(labels).encode())
    return gathered.data(
        labels,
        [len(rows) for rows in chosen.values()],
        name=name,
        source=f"the Hugging Face data set {name.removeprefix(PREFIX)}",
        options=options,
        classes=None if label is None else getattr(features[label], "names", None),
    )


def _load(name: str) -> Mapping[str, Any]:
    """The splits of the data set."""
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "hf") from None
    hub, _, configuration = name.removeprefix(PREFIX).partition(":")
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(hub, configuration or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise Refusal(f"cannot load {name} ({' '.join(str(error).split())[:200]}); check name and network") from None
    return splits


def _split_names(name: str, splits: Mapping[str, Any]) -> tuple[str, str | None]:
    """The split that trains, and the one that is held out (None: there is one split only)."""
    if len(splits) == 1:
        return next(iter(splits)), None
    held = next((split for split in HELD if split in splits), None)
    if "train" not in splits or held is None:
        raise Refusal(f"{name} has the splits {', '.join(splits)}; train and one of {', '.join(HELD)} are needed")
    return "train", held


def _columns(name: str, features: Mapping[str, Any], options: Options) -> tuple[str, str | None]:
    """The column of images and the one of labels (None: no labels)."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    if not images:
        raise Refusal(f"{name} holds no images (its columns: {', '.join(features)}); only images are read by name")
    if options.labels == "none":
        return images[0], None
    if options.label_column is not None and options.label_column not in features:
        raise Refusal(f"{name} has no column {options.label_column!r}; {nearest(options.label_column, features)}")
    found = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    return images[0], options.label_column or (found[0] if found else None)


def _labels(name: str, column: str, feature: Any, values: Sequence[Any]) -> list[str | None]:
    """The labels of a split as names."""
    names = getattr(feature, "names", None)
    found: list[str | None] = []
    for k, value in enumerate(values):
        if not isinstance(value, str | int) or (names is not None and not 0 <= int(value) < len(names)):
            raise Refusal(f"{name}: row {k} has {column}={value}, which is no class; give --labels none")
        found.append(str(value) if names is None else str(names[int(value)]))
    return found


def _bytes(rows: Any, k: int, column: str) -> bytes:
    """The encoded file of one row."""
    cell = rows[k][column] or {}
    blob, path = cell.get("bytes"), cell.get("path")
    if blob is not None:
        return bytes(blob)
    return b"" if path is None else Path(path).read_bytes()
