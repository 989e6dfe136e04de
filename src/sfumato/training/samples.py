"""What sampling gives: samples in the user's units and the record of how they were made.

The contract: ``samples.npz`` (``x``, and ``label`` where there is one), a file to look at (``grid.png`` for images,
``samples.txt`` for text) and ``samples.json`` are written together or not at all, and never over an existing set.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sfumato.data.views import Extra, Images, View
from sfumato.errors import Refusal
from sfumato.training.files import new_folder, to_json


@final
@dataclass(frozen=True, eq=False)
class Samples:
    """``x``: uint8 ``[n, h, w]`` or ``[n, h, w, c]`` for images, a list of strings for text; ``label``: class names or
    None; ``record``: seeds, sampler, NFE, ...; ``view``: how they are stored and shown.

    Converts to an array with ``numpy.asarray(samples)`` and indexes like one.
    """

    x: Any
    label: tuple[str, ...] | None
    classes: tuple[str, ...]
    record: Mapping[str, Any]
    view: View = Images()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Any:
        return self.x[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.x)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.view.array(self.x)
        return array if dtype is None else array.astype(dtype)

    def index(self) -> Int64[Tensor, " n"] | None:
        """Class indices ``[n]``, None where there are no labels."""
        if self.label is None:
            return None
        number = {name: k for k, name in enumerate(self.classes)}
        return torch.tensor([number[name] for name in self.label], dtype=torch.int64)

    def noting(self, facts: Mapping[str, Any]) -> Samples:
        """The same samples with ``facts`` added to the record."""
        return replace(self, record={**self.record, **facts})

    def columns(self) -> int:
        """Columns of the picture: one row per class where the labels go round, else about a square."""
        n = len(self.x)
        if self.label is not None and n >= len(self.classes) and len(set(self.label)) == len(self.classes):
            return -(-n // len(self.classes))
        return max(1, round(math.sqrt(n)))

    def ordered(self) -> Tensor:
        """The images as the picture shows them: sorted by class where there are labels, else as sampled."""
        index = self.index()
        found: Tensor = self.x if index is None else self.x[index.argsort(stable=True)]
        return found

    def picture(self, *, most: int = 256, scale: int = 2) -> Any:
        """The grid as a ``PIL.Image``, row = class where every class is there equally often; at most ``most``
        images.
        """
        from sfumato.data.grid import image_grid

        images, columns = self.ordered(), self.columns()
        if len(images) > most and columns > 1 and self.label is not None:
            shown = max(1, most // len(self.classes))
            keep = [k for k in range(len(images)) if k % columns < shown]
            images, columns = images[keep], min(columns, shown)
        return image_grid(images[:most], columns, scale=scale)

    def save(self, folder: str | Path) -> Path:
        """Write ``samples.npz``, the file to look at and ``samples.json`` into a new ``folder``.

        Raises :class:`Refusal` where it exists already or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Refusal(f"{folder} exists already and is kept; give another --out")
        arrays: dict[str, Any] = {"x": self.view.array(self.x)}
        index = self.index()
        if index is not None:
            arrays["label"] = index.numpy()
        packed = io.BytesIO()
        with warnings.catch_warnings():  # a column named in letters beyond Latin-1: NumPy reads it since 1.17
            warnings.filterwarnings("ignore", "Stored array in format 3.0", UserWarning)
            np.savez_compressed(packed, **arrays)
        shown = self.view.show(self)
        more = self.view.extra(self) if isinstance(self.view, Extra) else {}
        record = dict(self.record) | {"shape": list(arrays["x"].shape), "classes": list(self.classes)}
        with new_folder(folder) as temporary:
            (temporary / "samples.npz").write_bytes(packed.getvalue())
            (temporary / self.view.file).write_bytes(shown)
            for name, blob in more.items():
                (temporary / name).write_bytes(blob)
            (temporary / "samples.json").write_bytes(to_json(record))
        return folder
