"""How samples are stored and shown: the user's side of a data transform.

The contract: ``array`` is what ``samples.npz`` holds as ``x``; ``show`` gives the name and the bytes of one file that a
person looks at.
"""

from __future__ import annotations

import io
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import numpy as np


@runtime_checkable
class View(Protocol):
    """``noun``: what one calls several samples; ``file``: the name of the file that :meth:`show` makes."""

    @property
    def noun(self) -> str: ...
    @property
    def file(self) -> str: ...

    def array(self, x: Any) -> np.ndarray:
        """Samples in the user's units as an array, sample axis first."""
        ...

    def show(self, samples: Any) -> bytes:
        """The contents of ``file`` for :class:`~sfumato.training.samples.Samples`."""
        ...


@final
class Images:
    """uint8 ``[n, h, w]`` or ``[n, h, w, c]``, shown as a grid."""

    noun: ClassVar[str] = "images"
    file: ClassVar[str] = "grid.png"

    def array(self, x: Any) -> np.ndarray:
        """The pixels."""
        return np.asarray(x)

    def show(self, samples: Any) -> bytes:
        """The grid as PNG."""
        image = io.BytesIO()
        samples.picture().save(image, format="PNG")
        return image.getvalue()
