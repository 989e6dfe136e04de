"""The Inception network that published Fréchet inception distances are measured with, for a file of its weights.

The contract: the network of Szegedy et al. 2016, arXiv 1512.00567, as the TensorFlow file of 2015-12-05 has it (average
pools leave padding out, the last block pools by maxima), with weights in the PyTorch layout of
``pt_inception-2015-12-05-6726825d.pth``, which the user has; nothing is fetched.  2,048 features; the 1,008 logits are
those without the bias, as in the original inception score.  ``tools/check_inception.py`` compares every tensor name and
output with torch-fidelity's network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.metrics.mobilenet import folded, read_state

DIMENSION, CLASSES = 2048, 1008
#: The side that images are resized to.
SIZE = 299
EPSILON = 1e-3
#: Channels in, channels out, height and width of the kernel, stride, and padding as height and width.
Shape = tuple[int, int, tuple[int, int], int, tuple[int, int]]


def _shape(into: int, out: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, pad: bool = True) -> Shape:
    height, width = kernel
    return into, out, kernel, stride, (height // 2, width // 2) if pad else (0, 0)


def _a(into: int, pooled: int) -> dict[str, Shape]:
    return {
        "branch1x1": _shape(into, 64), "branch5x5_1": _shape(into, 48), "branch5x5_2": _shape(48, 64, (5, 5)),
        "branch3x3dbl_1": _shape(into, 64), "branch3x3dbl_2": _shape(64, 96, (3, 3)),
        "branch3x3dbl_3": _shape(96, 96, (3, 3)), "branch_pool": _shape(into, pooled),
    }  # fmt: skip


def _b(into: int) -> dict[str, Shape]:
    return {
        "branch3x3": _shape(into, 384, (3, 3), 2, False), "branch3x3dbl_1": _shape(into, 64),
        "branch3x3dbl_2": _shape(64, 96, (3, 3)), "branch3x3dbl_3": _shape(96, 96, (3, 3), 2, False),
    }  # fmt: skip


def _c(into: int, middle: int) -> dict[str, Shape]:
    m = middle
    return {
        "branch1x1": _shape(into, 192), "branch7x7_1": _shape(into, m), "branch7x7_2": _shape(m, m, (1, 7)),
        "branch7x7_3": _shape(m, 192, (7, 1)), "branch7x7dbl_1": _shape(into, m),
        "branch7x7dbl_2": _shape(m, m, (7, 1)), "branch7x7dbl_3": _shape(m, m, (1, 7)),
        "branch7x7dbl_4": _shape(m, m, (7, 1)), "branch7x7dbl_5": _shape(m, 192, (1, 7)),
        "branch_pool": _shape(into, 192),
    }  # fmt: skip


def _d(into: int) -> dict[str, Shape]:
    return {
        "branch3x3_1": _shape(into, 192), "branch3x3_2": _shape(192, 320, (3, 3), 2, False),
        "branch7x7x3_1": _shape(into, 192), "branch7x7x3_2": _shape(192, 192, (1, 7)),
        "branch7x7x3_3": _shape(192, 192, (7, 1)), "branch7x7x3_4": _shape(192, 192, (3, 3), 2, False),
    }  # fmt: skip


def _e(into: int) -> dict[str, Shape]:
    return {
        "branch1x1": _shape(into, 320), "branch3x3_1": _shape(into, 384), "branch3x3_2a": _shape(384, 384, (1, 3)),
        "branch3x3_2b": _shape(384, 384, (3, 1)), "branch3x3dbl_1": _shape(into, 448),
        "branch3x3dbl_2": _shape(448, 384, (3, 3)), "branch3x3dbl_3a": _shape(384, 384, (1, 3)),
        "branch3x3dbl_3b": _shape(384, 384, (3, 1)), "branch_pool": _shape(into, 192),
    }  # fmt: skip


#: The convolutions of every block.
BLOCKS: dict[str, dict[str, Shape]] = {
    "Mixed_5b": _a(192, 32), "Mixed_5c": _a(256, 64), "Mixed_5d": _a(288, 64), "Mixed_6a": _b(288),
    "Mixed_6b": _c(768, 128), "Mixed_6c": _c(768, 160), "Mixed_6d": _c(768, 160), "Mixed_6e": _c(768, 192),
    "Mixed_7a": _d(768), "Mixed_7b": _e(1280), "Mixed_7c": _e(2048),
}  # fmt: skip
#: All convolutions by their names in the state dict.
CONVOLUTIONS: dict[str, Shape] = {
    "Conv2d_1a_3x3": _shape(3, 32, (3, 3), 2, False), "Conv2d_2a_3x3": _shape(32, 32, (3, 3), 1, False),
    "Conv2d_2b_3x3": _shape(32, 64, (3, 3)), "Conv2d_3b_1x1": _shape(64, 80),
    "Conv2d_4a_3x3": _shape(80, 192, (3, 3), 1, False),
    **{f"{block}.{name}": shape for block, shapes in BLOCKS.items() for name, shape in shapes.items()},
}  # fmt: skip


def layout() -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors that the network needs, by their names in the state dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (into, out, kernel, _, _) in CONVOLUTIONS.items():
        shapes[f"{name}.conv.weight"] = (out, into, *kernel)
        shapes |= {f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {"fc.weight": (CLASSES, DIMENSION)}


@final
class Inception:
    """The network with ``weights`` of :func:`layout`; ``sha256``: of their file."""

    def __init__(self, weights: Mapping[str, Tensor], sha256: str, device: torch.device | str = "cpu") -> None:
        self.sha256, self.device = sha256, torch.device(device)
        self.kernels, self.biases = {}, {}
        for name in CONVOLUTIONS:
            kernel, bias = folded(weights, f"{name}.conv", f"{name}.bn", EPSILON)
            self.kernels[name], self.biases[name] = kernel.to(device), bias.to(device)
        self.classifier = weights["fc.weight"].to(device, torch.float32)

    def _through(self, x: Tensor, *names: str) -> Tensor:
        """Convolutions in a row, each with its ReLU."""
        for name in names:
            _, _, _, stride, padding = CONVOLUTIONS[name]
            x = F.conv2d(x, self.kernels[name], self.biases[name], stride, padding).relu_()
        return x

    def _branch(self, x: Tensor, block: str, stem: str, count: int) -> Tensor:
        return self._through(x, *(f"{block}.{stem}_{k}" for k in range(1, count + 1)))

    def _split(self, x: Tensor, name: str) -> list[Tensor]:
        """A row and a column kernel side by side."""
        return [self._through(x, f"{name}a"), self._through(x, f"{name}b")]

    def _pooled(self, x: Tensor, block: str, largest: bool = False) -> Tensor:
        around = F.max_pool2d(x, 3, 1, 1) if largest else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self._through(around, f"{block}.branch_pool")

    def _block_a(self, x: Tensor, block: str) -> Tensor:
        five, three = self._branch(x, block, "branch5x5", 2), self._branch(x, block, "branch3x3dbl", 3)
        return torch.cat([self._through(x, f"{block}.branch1x1"), five, three, self._pooled(x, block)], 1)

    def _block_c(self, x: Tensor, block: str) -> Tensor:
        seven, twice = self._branch(x, block, "branch7x7", 3), self._branch(x, block, "branch7x7dbl", 5)
        return torch.cat([self._through(x, f"{block}.branch1x1"), seven, twice, self._pooled(x, block)], 1)

    def _block_e(self, x: Tensor, block: str, largest: bool) -> Tensor:
        three = self._split(self._branch(x, block, "branch3x3", 1), f"{block}.branch3x3_2")
        twice = self._split(self._branch(x, block, "branch3x3dbl", 2), f"{block}.branch3x3dbl_3")
        one = self._through(x, f"{block}.branch1x1")
        return torch.cat([one, *three, *twice, self._pooled(x, block, largest)], 1)

    @torch.no_grad()
    def pooled(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """The features of images whose levels are in [-1, 1]: the last block's output, averaged over the image."""
        h = self._through(x.to(self.device), "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
        h = self._through(F.max_pool2d(h, 3, 2), "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        h = F.max_pool2d(h, 3, 2)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            h = self._block_a(h, block)
        twice = self._branch(h, "Mixed_6a", "branch3x3dbl", 3)
        h = torch.cat([self._through(h, "Mixed_6a.branch3x3"), twice, F.max_pool2d(h, 3, 2)], 1)
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            h = self._block_c(h, block)
        three, seven = self._branch(h, "Mixed_7a", "branch3x3", 2), self._branch(h, "Mixed_7a", "branch7x7x3", 4)
        h = torch.cat([three, seven, F.max_pool2d(h, 3, 2)], 1)
        h = self._block_e(self._block_e(h, "Mixed_7b", False), "Mixed_7c", True)
        return h.mean((2, 3)).cpu()

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n 2048"]) -> Float[Tensor, "n 1008"]:
        """What the classifier says of features, without its bias."""
        return F.linear(features.to(self.device), self.classifier).cpu()


@cache
def inception(path: Path, device: str = "cpu") -> Inception:
    """The network with the weights in ``path``.  Raises :class:`Refusal` where they are not its own."""
    weights = read_state(path, layout(), "the FID Inception network")
    return Inception(weights, hashlib.sha256(path.read_bytes()).hexdigest(), device)
