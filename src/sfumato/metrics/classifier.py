"""The feature extractor: a small digit classifier, and what is done to an image before it sees it.

The contract: an image always gets the same features, whatever batch it is in, up to float32 rounding; the weights are
those of the recorded checksum.  A picture of another size is resized (bilinear, antialiased, ``align_corners=False``):
to 28 x 28, or, where it is smaller than 20 x 20 and so has no margin to spare, to 20 x 20 in the middle of a black
28 x 28, which is how MNIST itself was framed.  Colour is made grey by the Rec. 601 luma.  Every record says which.
``tools/train_digit_net.py`` trains it; ``files/digit_net.json`` records its accuracy.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from torch import Tensor

from sfumato.data.cards import AGAIN, read_bytes
from sfumato.errors import Refusal

#: (channels in, channels out, stride) of the 3x3 convolutions.
LAYERS = ((1, 16, 1), (16, 48, 2), (48, 64, 2), (64, 64, 1), (64, 96, 1))
#: The number of features: the channels of the last convolution, averaged over the image.
DIMENSION = LAYERS[-1][1]
#: Height and width of the images that it was trained on.
SIZE = 28
#: Height and width of the box that MNIST fits its digits into; smaller images are enlarged to it.
BOX = 20
FILES = Path(__file__).parent / "files"
#: Grey images ``[n, h, w]`` or colour images ``[n, h, w, 3]``.
Images = UInt8[Tensor, "n h w"] | UInt8[Tensor, "n h w 3"]


def prepare(x: Images) -> Float[Tensor, "n 1 28 28"]:
    """Grey levels in [0, 1] at 28 x 28."""
    grey = x.to(torch.float32) / 255
    if grey.ndim == 4:
        grey = grey @ torch.tensor([0.299, 0.587, 0.114])
    grey = grey[:, None]
    size = _resized(*grey.shape[2:])
    if grey.shape[2:] != (size, size):
        grey = F.interpolate(grey, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return F.pad(grey, [(SIZE - size) // 2] * 4)


def _resized(height: int, width: int) -> int:
    """The side that an image is resized to, before the margin."""
    return BOX if max(height, width) < BOX else SIZE


def preparation(height: int, width: int, colour: bool) -> str:
    """What :func:`prepare` does to such images, in the words that a record keeps."""
    size = _resized(height, width)
    steps = ["rec601-grey"] if colour else []
    steps += [f"bilinear-antialias {height}x{width}->{size}x{size}"] if (height, width) != (size, size) else []
    steps += [f"pad->{SIZE}x{SIZE}"] if size != SIZE else []
    return ", ".join(steps) or "none"


@final
@dataclass(frozen=True, eq=False)
class DigitNet:
    """The classifier: ``features`` (96 per image) and ``predict`` (0..9)."""

    weights: dict[str, Float[Tensor, "..."]]
    sha256: str

    @staticmethod
    def read(blob: bytes) -> DigitNet:
        """The network stored in the bytes of a safetensors file (float16).  Raises :class:`Refusal` for other bytes."""
        try:
            weights = {name: w.to(torch.float32) for name, w in read_safetensors(blob).items()}
        except SafetensorError as error:
            raise Refusal(f"the digit classifier cannot be read ({error}); install sfumato again") from None
        return DigitNet(weights, hashlib.sha256(blob).hexdigest())

    def _batch(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n d"]:
        h = x.contiguous(memory_format=torch.channels_last)
        for k, (_, _, stride) in enumerate(LAYERS):
            h = F.conv2d(h, self.weights[f"conv{k}.weight"], self.weights[f"conv{k}.bias"], stride, 1).relu_()
        return h.mean((2, 3))

    @torch.no_grad()
    def features(self, x: Images, batch: int = 250) -> Float[Tensor, "n 96"]:
        """The averaged activations of the last convolution: float32 ``[n, 96]``, none negative."""
        return torch.cat([self._batch(prepare(part)) for part in torch.split(x, batch)])

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n 96"]) -> Float[Tensor, "n 10"]:
        """What the classifier says of the ten digits."""
        return F.linear(features, self.weights["linear.weight"], self.weights["linear.bias"])

    def classify(self, features: Float[Tensor, "n 96"]) -> Int64[Tensor, " n"]:
        """The class of every feature vector, 0..9."""
        return self.logits(features).argmax(1)

    def predict(self, x: Images) -> Int64[Tensor, " n"]:
        """The class of every image, 0..9."""
        return self.classify(self.features(x))


@cache
def digit_net() -> DigitNet:
    """The embedded classifier, after its checksum agreed with its record."""
    path = FILES / "digit_net.safetensors"
    net, expected = DigitNet.read(read_bytes(path, AGAIN)), str(record()["sha256"])
    if net.sha256 != expected:
        raise Refusal(f"{path} is damaged (sha256 {net.sha256[:16]}, expected {expected[:16]}); install sfumato again")
    return net


def record() -> dict[str, Any]:
    """How the embedded classifier was made: script, seed, training set, test accuracy, checksum."""
    path = FILES / "digit_net.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        found["sha256"]
        return found
    except (OSError, ValueError, KeyError, TypeError):
        raise Refusal(f"{path} is missing or damaged; install sfumato again") from None
