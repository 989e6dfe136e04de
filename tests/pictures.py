"""Pictures, and folders of them, for the tests of a user's own data."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    """Noise in 0..255, uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def picture(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of any mode with noise in it."""
    if mode == "I;16":
        return Image.fromarray(levels(height, width, seed=seed).astype(np.uint16) * 16)
    if mode == "1":
        return Image.fromarray(levels(height, width, seed=seed) > 127)
    if mode == "P":
        return picture("RGB", height, width, seed).quantize(16)
    bands = len(Image.new(mode, (1, 1)).getbands())
    x = levels(height, width, bands, seed=seed)
    return Image.frombytes(mode, (width, height), x.tobytes())


def fill(root: Path, n: int = 6, mode: str = "RGB", height: int = 8, width: int = 8, ending: str = "png") -> Path:
    """A folder with ``n`` pictures of noise, ``000.png``, ``001.png``, ..."""
    root.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        picture(mode, height, width, seed=k).save(root / f"{k:03d}.{ending}")
    return root


def corrupt(root: Path) -> Path:
    """A folder of six pictures, one of which ends early, and one of which is empty."""
    fill(root)
    whole = (root / "002.png").read_bytes()
    (root / "002.png").write_bytes(whole[: len(whole) // 2])
    (root / "004.png").write_bytes(b"")
    return root


def png_header(height: int, width: int) -> bytes:
    """A PNG that promises more than it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
