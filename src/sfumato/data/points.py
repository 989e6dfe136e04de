"""Points on manifolds as training data: angles, places on a globe, rotations.

The contract: a set is two fixed splits of float32 members of one space; the user's units are the space's own (radians,
unit vectors, rotation matrices), so the transform changes nothing but refuses what is no member.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data import manifolds
from sfumato.data.options import INFER, Options
from sfumato.data.report import Facts
from sfumato.data.rows import Dataset, described, tested
from sfumato.data.views import View
from sfumato.errors import Refusal


def plane(x: np.ndarray) -> tuple[np.ndarray, tuple[str, str], tuple[float, float]]:
    """Two coordinates of states to draw, their names and their limits."""
    if x.shape[1:] == (2,):
        return np.degrees(x), ("phi (degrees)", "psi (degrees)"), (180.0, 180.0)
    if x.shape[1:] == (3,):
        longitude, latitude = np.arctan2(x[:, 1], x[:, 0]), np.arcsin(np.clip(x[:, 2], -1, 1))
        return np.degrees(np.stack([longitude, latitude], 1)), ("longitude", "latitude"), (180.0, 90.0)
    # a rotation by where it takes the north pole
    return plane(x[:, :, 2])


@final
class Points:
    """States of a manifold, shown as a scatter plot (rotations by where they take the z axis)."""

    noun: ClassVar[str] = "points"
    file: ClassVar[str] = "points.png"

    def array(self, x: Any) -> np.ndarray:
        """The coordinates."""
        return np.asarray(x)

    def show(self, samples: Any) -> bytes:
        """The plot as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        xy, names, limits = plane(np.asarray(samples.x, dtype=np.float64))
        figure = Figure(figsize=(5, 5 * limits[1] / limits[0]), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(xy[:, 0], xy[:, 1], ".", ms=1.5, alpha=0.5)
        axes.set(xlabel=names[0], ylabel=names[1], xlim=(-limits[0], limits[0]), ylim=(-limits[1], limits[1]))
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        return image.getvalue()


@final
@dataclass(frozen=True)
class PointTransform:
    """The identity on members of the space of the set called ``data``."""

    data: str
    dtype: ClassVar[torch.dtype] = torch.float32
    view: ClassVar[View] = Points()

    def encode(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The same states, float32."""
        return x.to(torch.float32)

    def decode(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The same states, float32 on the CPU.  Raises :class:`Refusal` where one left the space."""
        if not manifolds.space(self.data).contains(x):
            raise Refusal(f"a sample left the space of {self.data}; sample with more steps")
        return x.detach().to("cpu", torch.float32)

    def to_json(self) -> dict[str, Any]:
        """Its name and its data."""
        return {"name": "points", "data": self.data}


@final
@dataclass(frozen=True, eq=False)
class PointSplit:
    """States ``x [n, ...]``."""

    x: Float[Tensor, "n ..."]

    def __len__(self) -> int:
        return len(self.x)

    def tensors(self) -> dict[str, Tensor]:
        """``x`` by name."""
        return {"x": self.x}


@final
@dataclass(frozen=True, eq=False)
class PointData:
    """A synthetic set on a manifold (:mod:`sfumato.data.manifolds`)."""

    name: str
    train: PointSplit
    test: PointSplit
    kind: ClassVar[str] = "points"
    classes: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = "synthetic"
    licence: ClassVar[str] = "made by this library's own code"
    options: ClassVar[Options] = INFER
    held_out = tested
    spec = described

    @property
    def transform(self) -> PointTransform:
        """The identity."""
        return PointTransform(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state."""
        return tuple(self.train.x.shape[1:])

    @property
    def sha256(self) -> str:
        """The checksum of both splits."""
        whole = torch.cat([self.train.x, self.test.x]).contiguous()
        return hashlib.sha256(whole.numpy().tobytes()).hexdigest()

    def prepared(self, settings: Any) -> PointData:
        """The data themselves: points are in their space's own units."""
        return self

    def rows(self, device: torch.device) -> Dataset:
        """The training split, as training reads it."""
        return Dataset(self.train.x, None, device)

    def report(self) -> Facts:
        """Space, count, dimension."""
        space, dof = manifolds.space(self.name), int(manifolds.space(self.name).dof(self.train.x[:1])[0])
        volume = math.exp(float(manifolds.space(self.name).log_volume(self.train.x[:1])[0]))
        facts = [
            ("data", self.name),
            ("space", f"{type(space).__name__}, {dof} dimensions, volume {volume:.4g}"),
            ("points", f"{len(self.train):,} train + {len(self.test):,} test, shape {list(self.shape)}"),
            ("source", "synthetic: made by code from fixed seeds, nothing in it was measured"),
            ("licence", self.licence),
            ("sha256", self.sha256),
        ]
        return Facts(tuple(facts))


def names() -> tuple[str, ...]:
    """The sets that there are."""
    return tuple(manifolds.names())


def load(name: str) -> PointData:
    """The set called ``name``; raises :class:`Refusal` with the nearest names."""
    found = manifolds.load(name)
    return PointData(name, PointSplit(found.train), PointSplit(found.test))
