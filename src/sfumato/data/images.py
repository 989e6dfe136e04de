"""Pictures of any kind and size as one array of uint8 levels.

The contract: :func:`survey` says what a picture is without changing it, :func:`layout` chooses one size and one number
of channels for all of them, and :func:`lay` is a function of one picture and that layout alone, so a set is read the
same way every time.

* **Channels**: one where every picture is grey (also 1-bit, 16-bit, float, or a palette of greys), else three.
* **Size**: that of the pictures where all have one.  Else the shape is the median of height / width, the longer side
  the median of the longer sides but at most :data:`LONGER`, and both sides become multiples of :data:`STEP`.
* **Levels**: 16-bit greys are divided so that the highest of 8, 10, 12, 14 or 16 bits that any of them uses becomes 255
  (one divisor for the whole set); floats must lie in [0, 1].  Pillow itself reads 16-bit colours by their upper byte.
* **Transparency**: laid on the background colour, at full size, before anything is scaled.
* **Orientation**: as the camera noted it (EXIF).  Of an animation the first frame is read.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float, UInt8

from sfumato.data.options import Options, Size, colour
from sfumato.errors import Refusal

#: Where sizes differ, the longer side is at most this.
LONGER = 64
#: Where sizes differ, both sides are multiples of this, so that most networks fit.
STEP = 8
#: How many bits 16-bit files may really use.
BITS = (8, 10, 12, 14, 16)
#: Decoded pictures are kept in memory; they may take this many bytes.
MOST_BYTES = 2 * 2**30
#: Modes of Pillow that hold no colour.
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
#: What a file that is no picture, or a damaged one, raises while Pillow reads it.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
    RuntimeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    struct.error,
    zlib.error,
)
#: The EXIF tag of the orientation, and its values that exchange height and width.
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)


class Unreadable(Exception):
    """A picture that cannot be read; the message says why, in a few words."""


@final
@dataclass(frozen=True)
class Header:
    """What a picture is: its ``size`` (height, width) as it is shown, its ``mode`` in Pillow's words, whether it is
    ``grey``, has transparent pixels (``alpha``), how many ``frames`` it has, and the highest level ``top`` of more than
    8 bits (0: it has 8).
    """

    size: Size
    mode: str
    grey: bool
    alpha: bool
    frames: int
    top: int


@final
@dataclass(frozen=True)
class Layout:
    """What every picture becomes: uint8 ``[channels, *size]``; ``bits`` that 16-bit files use."""

    size: Size
    channels: int
    bits: int
    crop: str
    background: str

    def memory(self, n: int) -> int:
        """What ``n`` pictures take in memory."""
        return n * self.channels * self.size[0] * self.size[1]


@contextmanager
def careful() -> Iterator[None]:
    """Pillow's warning of pictures that are larger than is safe as an error, its other warnings (odd tags) unsaid."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def opened(blob: bytes) -> Iterator[Any]:
    """The picture in a file's bytes; whatever is wrong with it becomes :class:`Unreadable`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(blob)) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError  # on any thread, whatever is done with Pillow's warning
            yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = int(Image.MAX_IMAGE_PIXELS or 0)
        raise Unreadable(f"it has more than {most:,} pixels, which may be an attack; scale it down") from None
    except UnidentifiedImageError:
        raise Unreadable("it is empty" if not blob else "it is no picture that can be read") from None
    except DAMAGE as error:
        raise Unreadable(
            f"it is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from None


def survey(image: Any) -> Header:
    """What a picture is; only the pixels of those with more than 8 bits are read.

    Raises :class:`Unreadable` for levels that have no meaning here.
    """
    width, height = image.size
    turned = image.getexif().get(ORIENTATION) in TURNED
    return Header(
        size=(width, height) if turned else (height, width),
        mode=image.mode,
        grey=image.mode in GREY or _grey_palette(image),
        alpha=bool(image.has_transparency_data),
        frames=int(getattr(image, "n_frames", 1)),
        top=_top(image) if image.mode[0] in "IF" else 0,
    )


def _grey_palette(image: Any) -> bool:
    """Whether a picture has a palette, and nothing but greys in it."""
    if image.mode != "P":
        return False
    palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _top(image: Any) -> int:
    """The highest level of a picture of more than 8 bits; 0 for floats, which say where white is."""
    high = _levels(image, 1 if image.mode == "F" else 65535).max()
    return 0 if image.mode == "F" else int(high)


def _levels(image: Any, white: int) -> Float[np.ndarray, "h w"]:
    """The levels of a picture of more than 8 bits; raises :class:`Unreadable` where they leave ``[0, white]``."""
    levels = np.asarray(image).astype(np.float64)
    low, high = float(levels.min()), float(levels.max())
    if not (low >= 0 and high <= white):
        raise Unreadable(f"its levels run from {low:g} to {high:g}, and {image.mode} is read from 0 to {white}")
    return levels


def median(values: Sequence[Any]) -> Any:
    """The lower median."""
    return sorted(values)[(len(values) - 1) // 2]


def common_size(sizes: Sequence[Size]) -> Size:
    """The one size of all pictures, or the one that mixed sizes are brought to (see the module's rule).

    >>> common_size([(28, 28), (28, 28)]), common_size([(300, 400), (600, 800), (90, 60)])
    ((28, 28), (48, 64))
    """
    if len(set(sizes)) == 1:
        return sizes[0]
    longer = min(LONGER, median([max(size) for size in sizes]))
    ratio = median([height / width for height, width in sizes])
    sides = (longer, longer / ratio) if ratio >= 1 else (longer * ratio, longer)
    height, width = (max(STEP, int(side / STEP + 0.5) * STEP) for side in sides)
    return height, width


def layout(headers: Sequence[Header], options: Options, what: str) -> Layout:
    """One layout for all pictures of ``what``.  Raises :class:`Refusal` where they would not fit into memory."""
    size = options.resolution or common_size([header.size for header in headers])
    top = max(header.top for header in headers)
    found = Layout(
        size=size,
        channels=1 if all(header.grey for header in headers) else 3,
        bits=next(bits for bits in BITS if top < 2**bits),
        crop=options.crop,
        background=options.background,
    )
    refuse_large(found, len(headers), what)
    return found


def refuse_large(found: Layout, n: int, what: str) -> None:
    """Raises :class:`Refusal` where ``n`` pictures would take more memory than :data:`MOST_BYTES`."""
    if found.memory(n) > MOST_BYTES:
        height, width = found.size
        raise Refusal(
            f"{what}: {n:,} pictures of {height}x{width} take {found.memory(n) / 2**30:.1f} GiB of memory, more than "
            f"{MOST_BYTES / 2**30:g}; give a smaller --resolution, or shards (.tar), which are read as they are needed"
        )


def lay(image: Any, found: Layout) -> UInt8[np.ndarray, "c h w"]:
    """One picture in the layout, uint8 ``[c, h, w]``.  Raises :class:`Unreadable` for levels beyond its white."""
    from PIL import Image, ImageOps

    if image.format == "JPEG":  # decode no more pixels than are needed
        image.draft(None, tuple(2 * max(found.size) for _ in image.size))
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        white = 1 if image.mode == "F" else 2**found.bits - 1  # of files that nobody looked at, too
        image = Image.fromarray(np.rint(_levels(image, white) * (255 / white)).astype(np.uint8))
    if image.has_transparency_data:
        under = Image.new("RGBA", image.size, (*colour(found.background), 255))
        image = Image.alpha_composite(under, image.convert("RGBA"))
    pixels = np.asarray(fitted(image.convert("L" if found.channels == 1 else "RGB"), found.size, found.crop))
    return pixels[None] if found.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def fitted(image: Any, size: Size, crop: str) -> Any:
    """A picture brought to ``size``: the middle that has its shape, or all of it stretched; unchanged where it fits."""
    from PIL import Image

    height, width = size
    if image.size == (width, height):
        return image
    own_width, own_height = image.size
    if crop == "none":
        box = (0.0, 0.0, float(own_width), float(own_height))
    else:
        scale = min(own_width / width, own_height / height)
        left, top = (own_width - scale * width) / 2, (own_height - scale * height) / 2
        box = (left, top, own_width - left, own_height - top)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def relaid(x: UInt8[np.ndarray, "n h w c"], options: Options, what: str) -> UInt8[np.ndarray, "n bands height width"]:
    """Pictures ``[n, h, w, c]`` in an array, laid on the background (``c`` 2 or 4) and brought to the resolution."""
    from PIL import Image

    n, height, width, c = x.shape
    found = Layout(options.resolution or (height, width), 1 if c <= 2 else 3, 8, options.crop, options.background)
    refuse_large(found, n, what)
    if c in (1, 3) and found.size == (height, width):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[c]
    return np.stack([lay(Image.frombytes(mode, (width, height), image.tobytes()), found) for image in x])
