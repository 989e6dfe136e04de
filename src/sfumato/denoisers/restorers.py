"""From a raw network output to a restored image: the seam of processes that blur, mask or fade.

The contract: the network is called as ``net(view, t [b], cond)`` and its output is what the degraded image lacks,
``x0hat = x_t + F``; the belief is that point, in the form that the process's bridge asks for.  Its view of a degraded
image is the image itself; of a blurred one also Wiener's deconvolution, where every mode that noise does not hide has
the scale of the data: what is left of fine detail is a thousandth of the whole, and a network that has to find it there
learns slowly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sfumato.core import Cond, Law, Time
from sfumato.degradations import Blur, sharpen
from sfumato.laws import Dirac
from sfumato.processes.cold import Cold
from sfumato.processes.heat import Heat, Restoration
from sfumato.randomness import as_rng

#: What a network is shown of ``x_t`` at ``t``: ``[b, k c, h, w]`` from ``[b, c, h, w]``.
View = Callable[[Tensor, Time], Tensor]
#: Detail that noise does not hide is sharpened this far at most.
LEAST_NOISE = 1e-3


def plain(x_t: Tensor, t: Time) -> Tensor:
    """The degraded image as it is."""
    return x_t


@final
@dataclass(frozen=True)
class Sharpened:
    """The blurred image beside Wiener's deconvolution; ``time``: of the heat at ``t``; ``noise``: on the image."""

    time: Callable[[Tensor], Tensor]
    noise: float

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """``[b, 2 c, h, w]``."""
        times = t if torch.is_tensor(t) else torch.tensor(float(t), dtype=torch.float64)
        return torch.cat([x_t, sharpen(x_t, self.time(times), max(self.noise, LEAST_NOISE))], 1)


@final
@dataclass(frozen=True)
class ResidualHead:
    """``believe(x_t + raw)``: the belief of a network that predicts what ``x_t`` lacks.  ``process``: Cold or Heat."""

    process: Any
    believe: Callable[[Tensor], Law[Tensor]] = Dirac

    def __call__(self, raw: Tensor, x_t: Tensor, t: Time) -> Law[Tensor]:
        """The belief that the raw output states."""
        return self.believe(x_t + raw)


@final
@dataclass(frozen=True)
class Restorer:
    """A network, its head and its view: a :class:`~sfumato.core.Denoiser`."""

    net: Any
    head: ResidualHead
    view: View = plain

    def raw(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The network's own output at ``x_t``."""
        times = torch.as_tensor(t, dtype=torch.float32).to(x_t.device).expand(len(x_t))
        output: Tensor = self.net(self.view(x_t, t), times, cond)
        return output

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The belief over ``x0`` given ``x_t`` ``[b, ...]`` at ``t``."""
        return self.head(self.raw(x_t, t, cond), x_t, t)


def channels_seen(degrade: Any) -> int:
    """How many channels for one of the image a network of :func:`cold_restorer` takes."""
    return 2 if isinstance(degrade, Blur) else 1


def cold_restorer(net: Any, process: Cold, noise: float = 0.0) -> Restorer:
    """A network that restores what ``process`` degraded, taken at its word; ``noise``: on what it sees."""
    view = Sharpened(process.degrade.time, noise) if isinstance(process.degrade, Blur) else plain
    return Restorer(net, ResidualHead(process), view)


def heat_restorer(net: Any, process: Heat) -> Restorer:
    """A network that restores what cooled down; its steps have the process's noise ``delta``."""
    head = ResidualHead(process, functools.partial(Restoration, delta=process.delta))
    return Restorer(net, head, Sharpened(process.time, process.sigma))


@final
@dataclass(frozen=True)
class RestorationLoss:
    """The process's own loss at ``x_t`` from its marginal, averaged over coordinates.

    ``noise``: added to every state on top of what the process has, as a fitted prior adds it to the first.
    """

    noise: float = 0.0

    def __call__(
        self,
        denoiser: Restorer,
        x0: Tensor,
        t: Tensor,
        cond: Cond | None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Tensor:
        """``[b]``; ``eps``: given standard noise in place of a draw from ``rng`` (validation)."""
        process = denoiser.head.process
        law = process.marginal(x0, t, end)
        z = process.space.noise(x0, as_rng(rng)) if eps is None else eps
        x_t = law.point() + (getattr(law, "var", 0.0) + self.noise**2) ** 0.5 * z
        loss: Tensor = process.loss(denoiser(x_t, t, cond), x0, x_t, t)
        return loss / x0[0].numel()
