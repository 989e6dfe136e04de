"""The picture to look at before believing a metric: samples beside the training images that are nearest to them.

The contract: a row is a sample, then its nearest training images, nearest first, each over its distance (the root mean
square difference of pixels, in grey levels of 255).  Which samples are shown is chosen by the copy score, lowest first,
so that what looks most like a copy cannot be missed (Carlini et al. 2023, arXiv 2301.13188, section 4.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.metrics.copies import copy_scores, nearest_training

#: Samples shown, and training images beside each.
SHOWN, BESIDE = 12, 3
#: Pixels that an image is at least enlarged to, and those that a caption takes.
SIDE, CAPTION = 64, 14
#: Below this many training images a network can know all of them by heart (Kadkhodaie et al. 2024, arXiv 2310.02557,
#: figure 1, finds networks that reproduce 1,000 training images and no longer do so at 100,000).
SMALL = 10_000


def nearest_panel(
    x: UInt8[Tensor, "n *image"], train: UInt8[Tensor, "m ..."], *, shown: int = SHOWN, beside: int = BESIDE
) -> Any:
    """The picture (``PIL.Image``): of the samples with the lowest copy scores, the ``beside`` nearest training images.

    ``x`` and ``train``: ``[n, h, w]`` or ``[n, h, w, 3]``.  Raises :class:`Refusal` for no sample, and where ``x`` and
    ``train`` differ in layout.
    """
    if shown < 1 or len(x) < 1:
        raise Refusal(f"{min(shown, len(x))} samples to show; give at least 1")
    beside = min(beside, len(train))
    rows = copy_scores(x, train).argsort(stable=True)[:shown]
    distance, index = nearest_training(x[rows], train, beside)
    levels = distance * 255 / x[0].numel() ** 0.5
    columns = [x[rows], *(train[index[:, k]] for k in range(beside))]
    captions = [[f"sample {int(k)}" for k in rows], *([f"{float(v):.1f}" for v in levels[:, k]] for k in range(beside))]
    return _sheet([column.numpy() for column in columns], captions)


def _sheet(columns: list[np.ndarray], captions: list[list[str]], gap: int = 4) -> Any:
    """Columns of images, a caption under each."""
    from PIL import Image, ImageDraw

    height, width = columns[0].shape[1:3]
    scale = max(1, SIDE // max(height, width))
    h, w = height * scale + CAPTION, max(width * scale, SIDE)
    sheet = Image.new("RGB", (len(columns) * (w + gap) + gap, len(columns[0]) * (h + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for c, (images, words) in enumerate(zip(columns, captions, strict=True)):
        for r, (image, word) in enumerate(zip(images, words, strict=True)):
            left, top = gap + c * (w + gap), gap + r * (h + gap)
            picture = Image.fromarray(image).convert("RGB")
            sheet.paste(picture.resize((width * scale, height * scale), Image.Resampling.NEAREST), (left, top))
            draw.text((left, top + height * scale + 1), word, fill="black")
    return sheet


def warnings(train: int, rate: float | None, held_out: float | None, n: int) -> list[str]:
    """What should be said of copies: few training images, and a copy rate beyond that of held-out images.

    ``rate`` of n samples and its floor ``held_out``: None where they were not measured.
    """
    said = []
    if train < SMALL:
        said.append(
            f"{train:,} training images are few: a network can learn them by heart; look at neighbours.png, and give "
            "more data or train less where samples are copies"
        )
    if rate is not None and held_out is not None:
        spread = (max(held_out * (1 - held_out), 1e-12) / n) ** 0.5
        if rate > held_out + 3 * spread:
            said.append(
                f"copy rate {rate:.1%}, where held-out images have {held_out:.1%}: the model repeats training images"
            )
    return said


def of_records(records: Any, train: int) -> list[str]:
    """:func:`warnings` from the records of one evaluation."""
    found = {record.name: record for record in records}
    copies = found.get("copy-rate")
    if copies is None:
        return warnings(train, None, None, 1)
    return warnings(train, copies.value, copies.floor, copies.n)


def panel_of(samples: Tensor, data: Any) -> Any:
    """:func:`nearest_panel` of samples in the data's units; raises :class:`Refusal` for data that are no images."""
    from sfumato.metrics import units

    if data.kind != "images":
        raise Refusal(f"neighbours are shown of images, {data.name} holds {data.kind}")
    return nearest_panel(torch.as_tensor(np.asarray(samples)), units.form(data.kind).real(data, "train"))
