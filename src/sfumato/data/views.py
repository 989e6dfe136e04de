"""How samples are stored and shown: the user's side of a data transform.

The contract: ``array`` is what ``samples.npz`` holds as ``x``; ``show`` gives the name and the bytes of one file that a
person looks at.
"""

from __future__ import annotations

import io
import re
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import numpy as np

#: What names of files cannot hold everywhere.
FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


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


@runtime_checkable
class Extra(Protocol):
    """A view with more files than the one that is looked at."""

    def extra(self, samples: Any) -> dict[str, bytes]:
        """Their contents by name."""
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


@final
class ImageFiles:
    """As :class:`Images`, and every image also as a PNG file of its own: ``0000.png``, or ``0000-CLASS.png``."""

    noun: ClassVar[str] = "images"
    file: ClassVar[str] = "grid.png"

    def array(self, x: Any) -> np.ndarray:
        """The pixels."""
        return np.asarray(x)

    def show(self, samples: Any) -> bytes:
        """The grid as PNG."""
        return Images().show(samples)

    def extra(self, samples: Any) -> dict[str, bytes]:
        """The PNG files; what a file's name cannot hold becomes an underscore in it."""
        from PIL import Image

        files = {}
        for k, pixels in enumerate(np.asarray(samples.x)):
            image, label = io.BytesIO(), "" if samples.label is None else f"-{samples.label[k]}"
            Image.fromarray(pixels).save(image, format="PNG")
            files[f"{k:04d}{FORBIDDEN.sub('_', label)[:80]}.png"] = image.getvalue()
        return files
