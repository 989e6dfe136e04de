"""Ways to destroy an image without noise: ``degrade(x0, t)`` for images ``[b, ..., h, w]``.

The contract: a degradation is a deterministic function of one image and one time, continuous in ``t``, with
``degrade(x0, 0) == x0`` exactly; ``t`` is a number or a tensor ``[b]``.  It draws nothing and looks at no other image
of the batch: where it has something random (the places of a scattered mask), that is fixed by the degradation itself.
Any function of that form serves as well: :class:`sfumato.processes.Cold` takes it as it is.

Blur is the heat equation ``dx/dt = Laplace x`` with reflecting borders, solved exactly: in the orthonormal cosine basis
(DCT-II, frequencies ``pi k / n``) mode ``k`` decays by ``exp(-(pi k / n)^2 time)``, and a time ``sigma^2 / 2`` is a
Gaussian blur of ``sigma`` pixels (Rissanen et al. 2022).

``build("blur:width=6")`` reads one from text: ``blur``, ``pixelate``, ``mask``, ``scatter``, ``fade``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sfumato import spec
from sfumato.core import Time
from sfumato.errors import Refusal
from sfumato.registry import Registry
from sfumato.trees import cast, precise


@runtime_checkable
class Degradation(Protocol):
    """``(x0 [b, ..., h, w], t) -> x_t`` of the shape of ``x0``, which it equals at ``t = 0``."""

    def __call__(self, x0: Tensor, t: Time) -> Tensor:
        """The state at ``t``."""
        ...


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise Refusal(f"{name}={value}: needs a positive number")


def _wide(t: Time) -> Tensor:
    """A time as a float64 tensor, 0-dimensional or ``[b]``."""
    return precise(t) if torch.is_tensor(t) else torch.tensor(float(t), dtype=torch.float64)


def _beside(value: Tensor, x: Tensor, axes: int) -> Tensor:
    """``value`` ``[b?, *last]``, whose last ``axes`` axes are the image's own, cast and shaped to meet ``x``."""
    lead = value.shape[: value.ndim - axes]
    shaped = value.reshape(lead + (1,) * (x.ndim - axes - len(lead)) + value.shape[value.ndim - axes :])
    return cast(shaped, x)


def _checked(x0: Tensor) -> tuple[int, int]:
    """Height and width; raises :class:`Refusal` where the state is no batch of images."""
    if x0.ndim < 3:
        raise Refusal(f"a state of shape {tuple(x0.shape)} is no batch of images [b, ..., h, w]; give one")
    return x0.shape[-2], x0.shape[-1]


# ------------------------------------------------------------------------------------------------------------- heat


def _cosine(a: Int64[Tensor, "..."], n: int) -> Float64[Tensor, "..."]:
    """``cos(pi a / n)`` for whole ``a``, folded into an eighth of a turn: a large angle costs no digit."""
    a = a % (2 * n)
    a = torch.minimum(a, 2 * n - a)
    past = 2 * a > n
    a = torch.where(past, n - a, a)
    angle = math.pi / (2 * n)
    found = torch.where(4 * a > n, torch.sin(angle * (n - 2 * a).double()), torch.cos(angle * (2 * a).double()))
    return torch.where(past, -found, found)


@functools.lru_cache(64)
def cosines(n: int) -> Float64[Tensor, "n n"]:
    """The orthonormal DCT-II: row ``k`` is ``sqrt(2 / n) cos(pi k (i + 1/2) / n)``, row 0 the constant ``n^-1/2``."""
    basis = _cosine(torch.arange(n)[:, None] * (2 * torch.arange(n) + 1), 2 * n) * math.sqrt(2 / n)
    basis[0] = n**-0.5
    return basis


@functools.lru_cache(64)
def _waves(n: int) -> Float64[Tensor, "n twice_n"]:
    """``cos(pi k m / n) / n``, half of it for ``k = 0``: ``m`` is the distance of two pixels or their mirror images."""
    waves = _cosine(torch.arange(n)[:, None] * torch.arange(2 * n), n) / n
    waves[0] /= 2
    return waves


def decay(n: int, time: Tensor) -> Tensor:
    """``exp(-(pi k / n)^2 time)``, ``[..., n]``: what is left of every mode after a ``time`` ``[...]``, float64."""
    frequency = math.pi / n * torch.arange(n, dtype=torch.float64, device=time.device)
    return torch.exp(-(frequency**2) * time[..., None])


def heat_kernel(n: int, time: Tensor) -> Tensor:
    """The matrix ``[..., n, n]`` that solves the heat equation on a line of ``n`` pixels for a ``time`` ``[...]``.

    By mirror images, which is the cosine basis and one sum less: what pixel ``j`` gets from ``i`` is ``g(i - j) + g(i +
    j + 1)`` for ``g(m) = sum_k cos(pi k m / n) decay_k / n``, the term of ``k = 0`` halved.  The sum for one time is to
    the last digit; the product of matrices that makes those of many is off by some of them.
    """
    left, waves, i = decay(n, time), _waves(n).to(time.device), torch.arange(n, device=time.device)
    reach = left @ waves if time.ndim else (left[:, None] * waves).sum(0)
    return reach[..., (i[:, None] - i).abs()] + reach[..., i[:, None] + i + 1]


@functools.lru_cache(256)
def _float_kernel(n: int, time: float) -> Tensor:
    return heat_kernel(n, torch.tensor(time, dtype=torch.float64))


def _kernel(n: int, time: Tensor) -> Tensor:
    return heat_kernel(n, time) if time.ndim else _float_kernel(n, time.item())


def diffuse(x: Float[Tensor, "b ..."], time: Time) -> Float[Tensor, "b ..."]:
    """Heat that spreads for ``time`` (a number or ``[b]``) from the images ``x``; exactly ``x`` at 0.

    A time of ``sigma^2 / 2`` is a Gaussian blur of ``sigma`` pixels with reflecting borders.
    """
    height, width = _checked(x)
    time = _wide(time)
    if not time.ndim and time.item() == 0:
        return x
    down, across = (_beside(_kernel(n, time), x, 2) for n in (height, width))
    spread = down @ x @ across  # kernels are symmetric
    return torch.where(_beside(time == 0, x, 0).bool(), x, spread) if time.ndim else spread


def sharpen(x: Float[Tensor, "b ..."], time: Time, noise: float) -> Float[Tensor, "b ..."]:
    """Wiener's deconvolution of images that heat has spread in for ``time`` (a number or ``[b]``).

    Mode ``k``, of which a share ``a`` is left, is multiplied by ``a / (a^2 + noise^2)``: the best linear guess of
    images of unit variance in every mode from their blur with ``noise`` on it.
    """
    height, width = _checked(x)
    time = _wide(time)
    left = decay(height, time)[..., :, None] * decay(width, time)[..., None, :]
    down, across = cast(cosines(height), x), cast(cosines(width), x)
    modes = (down @ x @ across.T) * _beside(left / (left**2 + noise**2), x, 2)
    return down.T @ modes @ across


@final
@dataclass(frozen=True)
class Blur:
    """Gaussian blur that ends at ``width`` pixels, reflecting borders.

    A kernel applied again and again adds up in variance: ``sigma^2 = width^2 (e^(2 g t) - 1) / (e^(2 g) - 1)``, where
    the kernel's own width grows by ``e^g`` on the way.  ``growth`` g: 0 is the same kernel every time (``sigma = width
    sqrt(t)``), 3 the exponential routine of Bansal et al. 2022 (``exp(.01 k)`` over 300 steps).
    """

    width: float = 8.0
    growth: float = 3.0

    def __post_init__(self) -> None:
        _positive("width", self.width)
        if not 0 <= self.growth < 100:
            raise Refusal(f"growth={self.growth}: needs a number from 0 (the same kernel every time) to 100")

    def time(self, t: Time) -> Tensor:
        """``sigma^2 / 2`` at ``t``, float64."""
        t = _wide(t)
        share = t if self.growth == 0 else torch.expm1(2 * self.growth * t) / math.expm1(2 * self.growth)
        return share * (self.width**2 / 2)

    def __call__(self, x0: Float[Tensor, "b ..."], t: Time) -> Float[Tensor, "b ..."]:
        """The images blurred for ``t``."""
        return diffuse(x0, self.time(t))


# --------------------------------------------------------------------------------------------------------- pixelate


def _cells(n: int, m: int) -> Tensor:
    """The ``[n, n]`` projection onto lines that are constant in each of ``m`` cells: the mean of the cell."""
    owner = torch.arange(n) * m // n
    same = (owner[:, None] == owner).double()
    return same / same.sum(1, keepdim=True)


@functools.lru_cache(64)
def _ladder(n: int, coarsest: int, rungs: int) -> Tensor:
    """The projections ``[rungs + 1, n, n]`` onto ``n, n/2, n/4, ...``, at the end ``coarsest`` cells."""
    return torch.stack([_cells(n, max(coarsest, -(-n // 2**rung))) for rung in range(rungs + 1)])


@final
@dataclass(frozen=True)
class Pixelate:
    """Ever larger pixels: means over cells of 2, 4, 8, ... until ``coarsest`` cells a side are left.

    The super-resolution of Bansal et al. 2022 (section 4.3) made continuous: between two rungs of that ladder the two
    images are mixed linearly.  A larger pixel is the mean of those it covers, so the mean of the image is kept.
    """

    coarsest: int = 4

    def __post_init__(self) -> None:
        if self.coarsest < 1:
            raise Refusal(f"coarsest={self.coarsest}: at least 1 pixel a side has to be left")

    def __call__(self, x0: Float[Tensor, "b ..."], t: Time) -> Float[Tensor, "b ..."]:
        """The images in larger pixels; raises :class:`Refusal` for images that are no larger than the coarsest."""
        height, width = _checked(x0)
        if max(height, width) <= self.coarsest:
            raise Refusal(f"coarsest={self.coarsest}: the images are {height}x{width} already; use a smaller number")
        rungs = math.ceil(math.log2(max(height, width) / self.coarsest))
        place = _wide(t) * rungs
        below = place.floor().clamp(max=rungs - 1)
        index, share = below.long().cpu(), _beside(place - below, x0, 0)

        def seen(rung: Tensor) -> Tensor:
            down, across = (_ladder(n, self.coarsest, rungs)[rung] for n in (height, width))
            image: Tensor = _beside(down, x0, 2) @ x0 @ _beside(across, x0, 2)
            return image

        return (1 - share) * seen(index) + share * seen(index + 1)


# ------------------------------------------------------------------------------------------------------------ masks


@final
@dataclass(frozen=True)
class Mask:
    """A hole with a Gaussian edge that grows from a point until nothing is left (Bansal et al. 2022, section 4.2).

    ``1 - exp(-d^2 / 2 edge^2)`` of a pixel is kept, ``d`` pixels beyond the hole; the rest is ``fill``.  ``row``,
    ``column``: the place of the centre in shares of the image (0.5: the middle).
    """

    row: float = 0.5
    column: float = 0.5
    edge: float = 3.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        _positive("edge", self.edge)
        for name, value in (("row", self.row), ("column", self.column)):
            if not 0 <= value <= 1:
                raise Refusal(f"{name}={value}: the centre lies in the image, from 0 to 1")

    def kept(self, height: int, width: int, t: Time) -> Tensor:
        """What is kept of every pixel, float64 ``[..., h, w]``: all at ``t = 0``, nothing at 1."""
        t = _wide(t)
        y = torch.arange(height, dtype=torch.float64, device=t.device) - self.row * (height - 1)
        x = torch.arange(width, dtype=torch.float64, device=t.device) - self.column * (width - 1)
        distance = torch.hypot(y[:, None], x)
        reach = 6 * self.edge  # where the edge has no effect left (1e-8)
        hole = t[..., None, None] * (float(distance.max()) + reach) - reach
        kept = -torch.expm1(-(((distance - hole).clamp(min=0) / self.edge) ** 2) / 2)
        return torch.where(t[..., None, None] == 0, 1.0, kept)

    def __call__(self, x0: Float[Tensor, "b ..."], t: Time) -> Float[Tensor, "b ..."]:
        """The images around the hole."""
        kept = _beside(self.kept(*_checked(x0), t), x0, 2)
        return kept * x0 + (1 - kept) * self.fill


@functools.lru_cache(64)
def _order(seed: int, height: int, width: int) -> Tensor:
    """When every pixel goes, uniform in [0, 1]: fixed by the seed."""
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@final
@dataclass(frozen=True)
class Scatter:
    """Pixels that go one by one, in an order fixed by ``seed``; each fades to ``fill`` over a share ``soft`` of it."""

    seed: int = 0
    soft: float = 0.1
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.soft <= 1:
            raise Refusal(f"soft={self.soft}: a pixel fades over a share of the time in (0, 1]")

    def __call__(self, x0: Float[Tensor, "b ..."], t: Time) -> Float[Tensor, "b ..."]:
        """The images with the pixels that are left."""
        t = _wide(t)
        leaves = _order(self.seed, *_checked(x0)).to(t.device) * (1 - self.soft)
        kept = _beside(((leaves + self.soft - t[..., None, None]) / self.soft).clamp(0, 1), x0, 2)
        return kept * x0 + (1 - kept) * self.fill


@final
@dataclass(frozen=True)
class Fade:
    """``(1 - t) x0 + t colour``: to one grey level, in the model's units (0 is the mean of standardised data)."""

    colour: float = 0.0

    def __call__(self, x0: Float[Tensor, "b ..."], t: Time) -> Float[Tensor, "b ..."]:
        """The images on their way to the colour."""
        share = _beside(_wide(t), x0, 0)
        return (1 - share) * x0 + share * self.colour


# ------------------------------------------------------------------------------------------------------------ names

registry: Registry[Degradation] = Registry("degradation")
registry.add("blur", Blur)
registry.add("pixelate", Pixelate)
registry.add("mask", Mask)
registry.add("scatter", Scatter)
registry.add("fade", Fade)


def names() -> list[str]:
    """The names of all registered degradations."""
    return list(registry)


def get(name: str, **settings: Any) -> Degradation:
    """The degradation called ``name``; raises :class:`Refusal` for an unknown name or setting."""
    return registry.get(name, **settings)


def build(text: str) -> Degradation:
    """The degradation that a text such as ``"blur:width=6"`` describes; errors as for :func:`get`."""
    find: Callable[[str], Callable[..., Any]] = registry.builder
    name, settings = spec.parse("degradation", text, find)
    return get(name, **settings)
