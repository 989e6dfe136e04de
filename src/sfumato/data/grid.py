"""Many images as one picture: image ``k`` stands at row ``k // columns``, column ``k % columns``, pixel for pixel.

This module imports Pillow, so ``sfumato.data`` loads it only when a picture is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from sfumato.errors import Refusal

#: Grey images ``[n, h, w]`` or colour images ``[n, h, w, 3]``, as a tensor or an array.
Images = UInt8[Tensor, "n h w"] | UInt8[Tensor, "n h w 3"] | UInt8[np.ndarray, "n h w"] | UInt8[np.ndarray, "n h w 3"]


def image_grid(x: Images, columns: int, *, gap: int = 2, scale: int = 1, background: int = 32) -> Image.Image:
    """A picture of ``x`` in rows of ``columns`` images.

    ``gap`` pixels of grey level ``background`` stand between and around the images; ``scale`` enlarges every pixel to
    ``scale x scale``.  A last row that is not full stays background.  Raises :class:`Refusal` for no images, or an
    array that is not uint8 ``[n, h, w]`` or ``[n, h, w, 3]``.
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise Refusal(f"a picture shows images, and this is a {type(x).__name__}; print it, or save() the samples")
    array: np.ndarray = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise Refusal(f"images are {array.dtype} {list(array.shape)}; give uint8 [n, h, w] or [n, h, w, 3]")
    if array.size == 0:
        raise Refusal(f"no images to draw (shape {list(array.shape)}); give at least one")
    if columns < 1 or gap < 0 or scale < 1:
        raise Refusal(f"columns = {columns}, gap = {gap}, scale = {scale}; columns and scale start at 1, gap at 0")
    n, h, w = array.shape[:3]
    columns = min(columns, n)
    rows = -(-n // columns)
    array = array.repeat(scale, 1).repeat(scale, 2)
    h, w = h * scale, w * scale
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, *array.shape[3:]), background, np.uint8)
    for k, image in enumerate(array):
        top, left = gap + k // columns * (h + gap), gap + k % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return Image.fromarray(sheet)


def show(x: Any) -> Image.Image:
    """The images (or what ``Diffusion.sample`` gives) as one roughly square picture; a notebook displays it."""
    x = getattr(x, "x", x)  # samples hold their images as .x
    columns = max(1, round(len(x) ** 0.5))
    return image_grid(x, columns, scale=max(1, 56 // max(1, getattr(x, "shape", (0, 56))[1])))
