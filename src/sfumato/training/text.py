"""What the recipes for text share: their settings, their network, how they decode, and the losses of blocks.

The contract: every recipe builds the same transformer from the same settings, so that two methods differ by their
process, head and objective alone.  Likelihoods are in nats per sequence, exact where the method is a factorisation from
left to right and a bound (a negative evidence bound, NELBO) elsewhere; each says which it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.core import Cond
from sfumato.data.transforms import from_json
from sfumato.denoisers.tokens import Subs
from sfumato.errors import Refusal
from sfumato.nets.delegated import Delegated
from sfumato.processes.blocks import Blocks
from sfumato.processes.bound import step_kl
from sfumato.randomness import as_rng
from sfumato.training.settings import Optimisation, Sampling, require
from sfumato.training.token_objectives import nelbo
from sfumato.trees import cast, flat_sum, precise, precise_device

# --------------------------------------------------------------------------------------------------------- settings


@final
@dataclass(frozen=True)
class TextNetwork:
    """The transformer: ``width`` of a token, ``depth`` layers, ``heads`` of attention."""

    width: int = 192
    depth: int = 4
    heads: int = 6
    dropout: float = 0.0
    #: Text has no classes here.
    conditional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.heads >= 1, "heads", self.heads, "at least 1")
        require(self.width >= 1 and self.width % self.heads == 0, "width", self.width, "a multiple of heads")
        require(self.width // self.heads % 2 == 0, "heads", self.heads, "heads of an even width (rotary positions)")
        require(self.depth >= 1, "depth", self.depth, "at least 1 layer")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a probability below 1")


@final
@dataclass(frozen=True)
class Reading:
    """How text becomes tokens: ``tokenizer`` (characters, text8, bytes or bpe:size=1024) and windows of ``length``."""

    tokenizer: str = "characters"
    length: int = 256

    def __post_init__(self) -> None:
        require(self.length >= 2, "length", self.length, "at least 2 tokens")


@final
@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen: ``temperature`` (0 is greedy) and nucleus ``top_p``; neither changes when they appear."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a mass in (0, 1]")


#: The optimiser of every text recipe.
OPTIMISATION = Optimisation(batch=32, lr=2e-3, beta2=0.98, weight_decay=0.02, warmup=100, standardise=False)


def ancestral(steps: int = 64) -> Sampling:
    """Ancestral sampling in ``steps``."""
    return Sampling(sampler="ddpm", grid="uniform", sampling_steps=steps, clip=False)


# ---------------------------------------------------------------------------------------------------------- network


def vocabulary(spec: Mapping[str, Any]) -> int:
    """How many tokens a description of text data has."""
    transform: Any = from_json(spec["transform"])
    return int(transform.tokenizer.size)


def text_net(recipe: Any, settings: Any, spec: Mapping[str, Any], classes: tuple[str, ...]) -> Any:
    """The transformer for ``spec``'s vocabulary and the tokens that the settings add to it (a mask)."""
    from sfumato import nets

    chosen = settings.network
    return nets.get(
        "text-transformer",
        vocabulary=vocabulary(spec) + settings.added_tokens,
        length=settings.reading.length,
        width=chosen.width,
        depth=chosen.depth,
        heads=chosen.heads,
        mask=settings.attention,
        time=settings.time,
        dropout=chosen.dropout,
    )


def embedding_net(settings: Any, inputs: int, outputs: int, length: int, time: str, depth: int | None = None) -> Any:
    """The same transformer on vectors ``[b, length, inputs]`` in place of tokens."""
    from sfumato import nets

    chosen = settings.network
    return nets.get(
        "embedding-transformer",
        inputs=inputs,
        outputs=outputs,
        length=length,
        width=chosen.width,
        depth=chosen.depth if depth is None else depth,
        heads=chosen.heads,
        time=time,
        dropout=chosen.dropout,
    )


# ------------------------------------------------------------------------------------------------------- likelihood


@runtime_checkable
class Likelihood(Protocol):
    """Nats per sequence on held-out data.  ``name``: ``"exact"`` or ``"NELBO"``."""

    @property
    def name(self) -> str: ...

    def __call__(self, denoiser: Any, x0: Tensor, rng: Any) -> Float[Tensor, " b"]:
        """``-log p(x0)`` or an estimate of its bound, ``[b]``."""
        ...


@final
@dataclass(frozen=True)
class Nelbo:
    """The continuous-time bound of a jump process, the mean of ``draws`` stratified times a sequence."""

    draws: int = 8
    name: ClassVar[str] = "NELBO"

    def __call__(self, denoiser: Any, x0: Int[Tensor, "b sites"], rng: Any) -> Float[Tensor, " b"]:
        total: Tensor = nelbo(denoiser, denoiser.head.process, x0, rng, draws=self.draws).total
        return total


@final
@dataclass(frozen=True)
class ChainBound:
    """The bound of a chain of ``steps``: its prior term and the mean over ``draws`` of its steps."""

    steps: int
    draws: int = 8
    name: ClassVar[str] = "NELBO"

    def __call__(self, denoiser: Any, x0: Int[Tensor, "b sites"], rng: Any) -> Float[Tensor, " b"]:
        process, source = denoiser.head.process, as_rng(rng)
        offset = source.uniform((len(x0),)).double()
        total = precise(process.marginal(x0, 1.0).kl(process.prior(x0)))
        for k in range(self.draws):
            step = (((offset + k) / self.draws) * self.steps).floor().clamp(max=self.steps - 1) + 1
            t, s = step / self.steps, (step - 1) / self.steps
            x_t = process.noised(x0, t, source)
            term = step_kl(process, denoiser(x_t, t), x0, x_t, t, s)
            total = total + precise(term) * self.steps / self.draws
        found: Tensor = total
        return found


# ------------------------------------------------------------------------------------- from left to right, by blocks


def _leading(same: Bool[Tensor, "b sites"]) -> int:
    """How many places from the left on are true in every text."""
    return int(same.all(0).to(torch.int8).cumprod(0).sum())


@final
class Reader:
    """A network that reads texts piece by piece, and what it has read: keys and values of every place.

    Each place is kept with the token and the time that it was read at; a call reads on from the first that differs, so
    a result depends on its arguments alone and a memory is never out of date.  Without gradients, for one thread.
    """

    def __init__(self, net: Any) -> None:
        self.net, self.block = net, net.mask.block
        self.cache: Any = None
        self.read: tuple[Tensor, Tensor] | None = None

    def logits(self, x: Int[Tensor, "b n"], times: Float[Tensor, "b n"], new: int) -> Float[Tensor, "b m k"]:
        """The logits of the last places of ``x``, at least ``new`` of them, given all before."""
        used = 0
        if self.read is not None and len(self.read[0]) == len(x):
            tokens, moments = self.read
            n = min(tokens.shape[1], x.shape[1])
            used = _leading((tokens[:, :n] == x[:, :n]) & (moments[:, :n] == times[:, :n]))
        else:
            self.cache = self.net.cache(len(x))
        used = min(used, x.shape[1] - new) // self.block * self.block
        self.cache.rewind(used)
        found: Tensor = self.net.extend(x[:, used:], self.cache, times[:, used:])
        self.read = (x.clone(), times)  # the caller's own state may change in place
        return found


class NextToken(nn.Module):
    """A causal network moved by one place: what it says at place ``i`` is of token ``i``, from those before it.

    Outside training the places after the first masked one are not computed: nothing may depend on what is not there.
    """

    compute_dtype = Delegated("net")

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.mask = net, net.settings["vocabulary"] - 1

    def _before(self, x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x[:, :1], self.mask), x[:, :-1]], 1)

    def forward(self, x: Int[Tensor, "b sites"], t: Tensor | None, cond: Cond | None = None) -> Tensor:
        """Logits ``[b, L, K]``; the mask token, which no data hold, stands before the first."""
        needed = x.shape[1] if self.training else min(x.shape[1], int((x != self.mask).all(0).sum()) + 1)
        logits: Tensor = self.net(self._before(x)[:, :needed], t, cond)
        return nn.functional.pad(logits, (0, 0, 0, x.shape[1] - needed))

    def remembering(self) -> Callable[[Tensor, Tensor, Cond | None], Tensor]:
        """The same at the first masked place, which is the next one to be shown; of those before it, nothing new."""
        reader = Reader(self.net)

        def read(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            shown = _leading(x != self.mask)
            if cond is not None or shown < int((x != self.mask).all(0).sum()):
                found: Tensor = self(x, t, cond)
                return found
            before = self._before(x)[:, : shown + 1]
            logits = reader.logits(before, torch.zeros(before.shape, device=x.device), 1)
            first = before.shape[1] - logits.shape[1]
            return nn.functional.pad(logits, (0, 0, first, x.shape[1] - before.shape[1]))

        return read


class BlockNet(nn.Module):
    """A network with a block mask, as a denoiser's: masked tokens see their block and the whole blocks before it."""

    compute_dtype = Delegated("net")

    def __init__(self, net: Any, process: Blocks) -> None:
        super().__init__()
        self.net, self.process = net, process

    def forward(self, x: Int[Tensor, "b sites"], t: Tensor, cond: Cond | None = None) -> Tensor:
        """Logits ``[b, L, K]`` of the blocks that appear at ``t`` and of those before them; of later ones, which no
        step within a block shows, nothing (zeros)."""
        size, length = self.process.size, x.shape[1]
        needed = size * (1 + self.process.active(length, float(t.min())))
        local = self.process.times(x, t)[:, :needed].to(torch.float32).to(x.device)
        logits: Tensor = self.net.blocks(x[:, :needed], x[:, :needed], local, cond)
        return nn.functional.pad(logits, (0, 0, 0, length - needed))

    def remembering(self) -> Callable[[Tensor, Tensor, Cond | None], Tensor]:
        """The same for the block that appears at ``t``; the blocks before it, which are whole, are read once."""
        reader = Reader(self.net)

        def read(x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            size, length = self.process.size, x.shape[1]
            needed = size * (1 + self.process.active(length, float(t.min())))
            whole = bool((x[:, : needed - size] != self.process.kernel.mask).all())
            if cond is not None or not whole or float(t.min()) != float(t.max()):
                found: Tensor = self(x, t, cond)
                return found
            local = self.process.times(x, t)[:, :needed].to(torch.float32).to(x.device)
            local[:, : needed - size] = 0.0  # at a boundary the block before is as whole as it will be
            logits = reader.logits(x[:, :needed], local, size)
            return nn.functional.pad(logits, (0, 0, needed - logits.shape[1], length - needed))

        return read


@final
@dataclass(frozen=True)
class Exact:
    """``-log p(x0)`` of a factorisation from left to right, in nats per sequence."""

    name: ClassVar[str] = "exact"

    def __call__(self, denoiser: Any, x0: Int[Tensor, "b sites"], rng: Any = None) -> Float[Tensor, " b"]:
        hidden = torch.full_like(x0, denoiser.head.process.kernel.mask)
        return flat_sum(denoiser.head.cost(denoiser.net(x0, None), x0, hidden, 1.0))


@final
@dataclass(frozen=True)
class NextTokenLoss:
    """``-log p(x_i | x_<i)`` in nats per token ``[b]``: exact, at all places at once; times are not used."""

    def __call__(
        self, denoiser: Any, x0: Tensor, t: Tensor, cond: Cond | None, rng: Any = None, eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:  # fmt: skip
        return Exact()(denoiser, x0) / x0.shape[1]


@final
@dataclass(frozen=True)
class BlockBound:
    """The bound of block diffusion in nats per token ``[b]`` (Arriola et al. 2025, eq. 8): every block at a time of its
    own, all in one pass over the noisy blocks beside the clean ones.

    Times of blocks are spread evenly: block ``j`` of a sample is at ``(t + j / n) mod 1``.
    """

    def __call__(
        self, denoiser: Any, x0: Tensor, t: Tensor, cond: Cond | None, rng: Any = None, eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:  # fmt: skip
        return self.at(denoiser, x0, t, as_rng(rng)) / x0.shape[1]

    def at(self, denoiser: Any, x0: Int[Tensor, "b sites"], t: Float[Tensor, " b"], rng: Any) -> Float[Tensor, " b"]:
        """One estimate in nats per sequence at base times ``t [b]``."""
        process: Blocks = denoiser.head.process
        block, n = process.block_of(x0.shape[1]), process.count(x0.shape[1])
        local = ((t.double().cpu()[:, None] + block / n) % 1.0).clamp(1e-4, 1.0).to(precise_device(x0))
        x_t = process.inner.noised(x0, local, rng)
        logits = denoiser.net.net.blocks(x_t, x0, local.to(torch.float32).to(x0.device), None)
        cost = Subs(process.inner).cost(logits, x0, x_t, 1.0)
        return flat_sum(cast(process.inner.unmasking(local, x0), cost) * cost)


@final
@dataclass(frozen=True)
class BlockNelbo:
    """The mean of ``draws`` of :class:`BlockBound`'s estimates in nats per sequence, at times spread evenly."""

    draws: int = 8
    name: ClassVar[str] = "NELBO"

    def __call__(self, denoiser: Any, x0: Int[Tensor, "b sites"], rng: Any) -> Float[Tensor, " b"]:
        source, bound = as_rng(rng), BlockBound()
        offset = source.uniform((len(x0),)).double()
        parts = [bound.at(denoiser, x0, (offset + k / self.draws) % 1.0, source) for k in range(self.draws)]
        return torch.stack(parts).mean(0)


def require_block(length: int, block: int) -> None:
    """Raises :class:`Refusal` unless ``length`` is a whole number of blocks."""
    if block < 1 or length % block:
        raise Refusal(f"block={block}: windows of {length} tokens are no whole number of blocks; give a divisor of it")
