"""What tables of several methods share: where they were measured, and their samples under one another."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Where it was measured, and by which ``device``, where that is given."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), platform.processor())
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(),
    } | ({} if device is None else {"device": _name(device)})  # fmt: skip


def _name(device: torch.device) -> str:
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def stacked(strips: Sequence[tuple[str, Path]], mode: str = "RGB") -> Any:
    """Pictures under one another, the name of each on its left, as a ``PIL.Image``."""
    from PIL import Image, ImageDraw, ImageFont

    images = []
    for _, path in strips:
        with Image.open(path) as strip:
            images.append(strip.convert(mode))
    left, font = 150, ImageFont.load_default(14)
    dark, light = (32, 230) if mode == "L" else ((32,) * 3, (230,) * 3)
    sheet = Image.new(mode, (left + max(i.width for i in images), sum(i.height for i in images)), dark)
    pen, top = ImageDraw.Draw(sheet), 0
    for (name, _), image in zip(strips, images, strict=True):
        pen.text((8, top + image.height / 2), name, fill=light, font=font, anchor="lm")
        sheet.paste(image, (left, top))
        top += image.height
    return sheet
