"""The contact sheet: a data set in one picture, one row per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.data.sets import Split
from sfumato.errors import Refusal

#: At most so many classes are shown.
ROWS = 100


def contact_sheet(split: Split, path: str | Path, columns: int = 10) -> Path:
    """Write :func:`sheet` as PNG; returns the path.  Raises :class:`Refusal` where the file cannot be written."""
    path = Path(path)
    picture = sheet(split, columns)
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise Refusal(f"cannot write {path} ({error.strerror or error}); choose a folder that can be written") from None
    return path


def sheet(split: Split, columns: int = 10, rows: int = ROWS) -> Any:
    """The first images of a split as a ``PIL.Image``: one row per class, or in order where there are no labels."""
    from sfumato.data.grid import image_grid

    if columns < 1:
        raise Refusal(f"columns = {columns}; ask for at least 1")
    c, h, w = split.x.shape[1:]
    if split.label is None:
        x = split.x[: columns * columns]
    else:
        classes = min(rows, int(split.label.max()) + 1)
        x = torch.zeros(classes, columns, c, h, w, dtype=torch.uint8)
        for k in range(classes):
            first = (split.label == k).nonzero()[:columns, 0]
            x[k, : len(first)] = split.x[first]
        x = x.flatten(0, 1)
    return image_grid(x[:, 0] if c == 1 else x.permute(0, 2, 3, 1), columns)
