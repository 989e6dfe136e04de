"""What the recipes for text share: their settings, their network, how they decode, and the losses of blocks.

The contract: every recipe builds the same transformer from the same settings, so that two methods differ by their
process, head and objective alone.  Likelihoods are in nats per sequence, exact where the method is a factorisation from
left to right and a bound (a negative evidence bound, NELBO) elsewhere; each says which it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
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
        total = process.marginal(x0, 1.0).kl(process.prior(x0)).double()
        for k in range(self.draws):
            step = (((offset + k) / self.draws) * self.steps).floor().clamp(max=self.steps - 1) + 1
            t, s = step / self.steps, (step - 1) / self.steps
            x_t = process.marginal(x0, t).draw(source)
            term = step_kl(process, denoiser(x_t, t), x0, x_t, t, s)
            total = total + term.double() * self.steps / self.draws
        found: Tensor = total
        return found


# ------------------------------------------------------------------------------------- from left to right, by blocks


class NextToken(nn.Module):
    """A causal network moved by one place: what it says at place ``i`` is of token ``i``, from those before it.

    Outside training the places after the first masked one are not computed: nothing may depend on what is not there.
    """

    compute_dtype = Delegated("net")

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Int[Tensor, "b sites"], t: Tensor | None, cond: Cond | None = None) -> Tensor:
        """Logits ``[b, L, K]``; the mask token, which no data hold, stands before the first."""
        mask = self.net.settings["vocabulary"] - 1
        before = torch.cat([torch.full_like(x[:, :1], mask), x[:, :-1]], 1)
        needed = x.shape[1] if self.training else min(x.shape[1], int((x != mask).all(0).sum()) + 1)
        logits: Tensor = self.net(before[:, :needed], t, cond)
        return nn.functional.pad(logits, (0, 0, 0, x.shape[1] - needed))


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
        local = self.process.times(x, t)[:, :needed].to(torch.float32)
        logits: Tensor = self.net.blocks(x[:, :needed], x[:, :needed], local, cond)
        return nn.functional.pad(logits, (0, 0, 0, length - needed))


@final
@dataclass(frozen=True)
class Exact:
    """``-log p(x0)`` of a factorisation from left to right, in nats per sequence."""

    name: ClassVar[str] = "exact"

    def __call__(self, denoiser: Any, x0: Int[Tensor, "b sites"], rng: Any = None) -> Float[Tensor, " b"]:
        logits = denoiser.net(x0, None)
        hidden = torch.full_like(x0, denoiser.head.process.kernel.mask)
        nll: Tensor = denoiser.head(logits, hidden, 1.0).nll(x0)
        return nll


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
        local = ((t.double().cpu()[:, None] + block / n) % 1.0).clamp(1e-4, 1.0).to(x0.device)
        x_t = process.inner.marginal(x0, local).draw(rng)
        logits = denoiser.net.net.blocks(x_t, x0, local.to(torch.float32), None)
        rate: Tensor = process.inner.rate(Subs(process.inner)(logits, x_t, 1.0), x0, x_t, local)
        return rate


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
