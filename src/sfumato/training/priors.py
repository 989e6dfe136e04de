"""Priors fitted to the training images: what a recipe does with a fresh model whose process has no prior of its own.

The contract: the images, and so the fit, are a function of the data and the model's seed alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.processes.fitted import MOST
from sfumato.training.seeds import mix


def training_images(model: Any, data: Any) -> tuple[Tensor, Tensor | None, int]:
    """Some of the training images ``[n, c, h, w]`` in model units, their labels where the model knows classes, and the
    seed of the fit.
    """
    seed = mix(int(model.origin["seed"]), "prior")
    order = torch.randperm(len(data.train.x), generator=torch.Generator().manual_seed(seed))[:MOST]
    label = data.train.label
    return model.transform.encode(data.train.x[order]), label[order] if model.classes else None, seed


def state_shape(net: Any) -> tuple[int, int, int]:
    """The shape of the images that a network of images makes."""
    settings = net.settings
    height, width = settings["size"]
    return int(settings["out_channels"]), int(height), int(width)
