"""Recipes for images on tables: the same process, times and loss for the numbers, masking beside it for the tokens.

The contract: :func:`tabled` turns a recipe's composition into one for rows.  The numbers are trained by the recipe's
own objective.  A token is masked at ``t`` with chance ``F(t)``, the share of training times below ``t``
(:mod:`sfumato.schedules.share`), and a masked one costs its cross-entropy divided by ``F(t)`` (at least
:data:`LEAST`): above that share the continuous-time NELBO of Sahoo et al. 2024, in nats per token, whatever the
recipe's times.  The loss of a row is the mean over its columns,

    ``(n * numbers + sum over tokens of cross-entropy / max(F, LEAST)) / (n + m)``,

so that every number and every token counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import Cond
from sfumato.denoisers.mixed import MixedDenoiser, MixedHead, spread
from sfumato.errors import Refusal
from sfumato.processes.mixed import TOKENS, Mixed
from sfumato.randomness import as_rng
from sfumato.samplers.beside import Beside
from sfumato.schedules.share import Share
from sfumato.training.composition import Composition

#: A masked token's cost is divided by the share that is masked, or by this where less is.
LEAST = 0.05


def table_net(recipe: Any, settings: Any, spec: Mapping[str, Any], classes: tuple[str, ...]) -> Any:
    """The network for the columns that ``spec`` describes."""
    from sfumato import nets
    from sfumato.data.transforms import from_json

    transform: Any = from_json(spec["transform"])
    chosen = settings.network
    return nets.get(
        "table-net",
        numbers=transform.numbers,
        sizes=transform.sizes,
        width=chosen.width,
        depth=chosen.depth,
        classes=len(classes) or None,
        dropout=chosen.dropout,
    )


@final
@dataclass(frozen=True)
class RowLoss:
    """The loss above, ``[b]``; ``numbers``: the recipe's own objective."""

    numbers: Any
    shares: Share

    def __call__(
        self,
        denoiser: MixedDenoiser,
        x0: Float[Tensor, "b d"],
        t: Float[Tensor, " b"],
        cond: Cond | None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:
        """``eps [b, d]``: given standard noise of the numbers; masks are drawn from ``rng``, which is needed.

        Raises :class:`Refusal` without ``rng``, and for an ``end``: tokens have none.
        """
        if rng is None:
            raise Refusal("a loss masks tokens but rng is None; pass a Stream, a torch.Generator or an int seed")
        if end is not None:
            raise Refusal("a table's loss takes no end: its tokens have none; train rows without pairs")
        process, source = denoiser.head.process, as_rng(rng)
        n = process.numbers
        clean = process.split(x0)[TOKENS]
        gone = self.shares.gone(t.cpu()).to(x0.device, torch.float32)[:, None]
        hidden = source.uniform(tuple(clean.shape)).to(x0.device) < gone
        own, net = denoiser.seeing(torch.where(hidden, process.values, clean))
        given = None if eps is None else eps[:, :n]
        if n:
            loss = n * self.numbers(own, x0[:, :n], t, cond, source, eps=given)
        else:
            own.raw(x0[:, :0], t, cond)
            loss = torch.zeros(len(x0), device=x0.device)
        costs = cross_entropy(net, clean, denoiser.head.sizes) * hidden / gone.clamp(min=LEAST)
        found: Tensor = (loss + costs.sum(1)) / x0.shape[1]
        return found


def cross_entropy(net: Any, clean: Int[Tensor, "b m"], sizes: tuple[int, ...]) -> Float[Tensor, "b m"]:
    """``-log p(token)`` of every token in nats, from the logits of the network's last call."""
    if not sizes:
        return torch.zeros(clean.shape, device=clean.device)
    wide = spread(net.logits, sizes, max(sizes))[..., :-1]
    return -wide.log_softmax(-1).gather(-1, clean[..., None])[..., 0]


def tabled(compose: Callable[[Any, Any], Composition]) -> Callable[[Any, Any], Composition]:
    """A recipe's ``compose`` for rows of a table in the place of images."""

    def composed(settings: Any, net: Any) -> Composition:
        parts = compose(settings, net)
        numbers, sizes = int(net.settings["numbers"]), tuple(net.settings["sizes"])
        shares = Share(parts.times)
        process = Mixed(parts.denoiser.head.process, numbers, max(sizes, default=1), shares)
        denoiser = MixedDenoiser(parts.denoiser, net, MixedHead(process, sizes))
        return Composition(denoiser, parts.times, RowLoss(parts.objective, shares), around=Beside)

    return composed
