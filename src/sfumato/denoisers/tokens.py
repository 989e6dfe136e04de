"""From a network's raw logits ``[b, ..., K]`` to a belief over tokens: the seam between networks and jump processes.

The contract: a head turns logits into a normalised :class:`~sfumato.laws.Categorical` over the kernel's ``K`` tokens;
nothing downstream knows how it was parametrised.  A mask token is never data: no head of an absorbing process gives it
any mass.

==============  ==========================================================================  =========================
head            belief                                                                      source
==============  ==========================================================================  =========================
``Softmax``     ``softmax(raw)``                                                            any network of ``x0``
``Posterior``   ``softmax(raw + log P_t[x0, x_t])``: ``raw`` is read as a prior             D3PM, eq. 4
``Subs``        ``softmax(raw)`` without the mask; a shown token is its own ``x0``          MDLM, Sahoo et al. 2024
``Logistic``    ``raw`` is a location and a log-scale: a logistic curve binned on ordered   D3PM, appendix A.8
                tokens
``Score``       ``exp(raw) / ((K-1)(e^sigma-1))`` is the concrete score of masked sites     SEDD, Lou et al. 2024
==============  ==========================================================================  =========================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from sfumato.core import Cond, Law, Time
from sfumato.errors import Refusal
from sfumato.laws import Categorical
from sfumato.processes.kernels import Kernel, RankOne, beside, masks, one_hot_log, widest
from sfumato.schedules import ZERO_ALPHA


@runtime_checkable
class TokenProcess(Protocol):
    """What a head reads of its process: a :class:`~sfumato.processes.jump.Jump`, or blocks of one."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def space(self) -> Any: ...

    def signal(self, t: Time, x: Tensor | None = None) -> Any:
        """``alpha(t)``, the chance that a token is left."""
        ...


@runtime_checkable
class TokenHead(Protocol):
    """Reads raw logits as a belief."""

    @property
    def process(self) -> TokenProcess:
        """The process whose tokens it speaks of."""
        ...

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for every site."""
        ...

    def __call__(self, raw: Tensor, x_t: Tensor, t: Time) -> Categorical:
        """The belief that the raw output ``[b, ..., outputs]`` states."""
        ...


def _require(raw: Tensor, outputs: int, x_t: Tensor) -> Tensor:
    if raw.shape != (*x_t.shape, outputs):
        raise Refusal(
            f"a network output of shape {tuple(raw.shape)} for tokens of shape {tuple(x_t.shape)}; "
            f"it must be {(*x_t.shape, outputs)}: one logit for every token of the vocabulary"
        )
    return raw


def at_least_float32(raw: Tensor) -> Tensor:
    """``raw`` itself, or in float32 where its format is shorter: weights and exponents of a loss leave float16."""
    return raw.to(torch.promote_types(raw.dtype, torch.float32))


def _mask_of(process: TokenProcess, head: str) -> int:
    mask = process.kernel.mask
    if mask is None or not masks(process.kernel):
        why = "the kernel has no mask" if mask is None else "this kernel may reach its mask by way of others"
        raise Refusal(f"the head {head} reads masked tokens, but {why}; use Softmax or absorbing(size)")
    return mask


def _without(raw: Tensor, token: int) -> Tensor:
    forbidden = torch.arange(raw.shape[-1], device=raw.device) == token
    return raw.masked_fill(forbidden, -math.inf).log_softmax(-1)


def _cost(raw: Tensor, x0: Tensor) -> Tensor:
    """``-log softmax(raw)[x0]`` at every site, in the format of ``raw``."""
    found: Tensor = cross_entropy(raw.flatten(0, -2), x0.flatten(), reduction="none").reshape(x0.shape)
    return found


@final
@dataclass(frozen=True, eq=False)
class Softmax:
    """``softmax(raw)``; with an absorbing kernel the mask token gets no mass."""

    process: TokenProcess

    @property
    def outputs(self) -> int:
        """One logit a token."""
        return self.process.kernel.size

    def __call__(self, raw: Float[Tensor, "b ... k"], x_t: Int[Tensor, "b ..."], t: Time) -> Categorical:
        """The belief; raises :class:`Refusal` for a raw output of another shape than ``[b, ..., K]``."""
        raw, mask = _require(raw, self.outputs, x_t), self.process.kernel.mask
        return Categorical(raw.log_softmax(-1) if mask is None else _without(raw, mask), self.process.space)


@final
@dataclass(frozen=True, eq=False)
class Posterior:
    """``softmax(raw + log P_t[x0, x_t])``: what the raw output says without looking at a token's own place, times the
    chance that the kernel made it what it is (Austin et al. 2021, eq. 4, whose joint ``q(x_s, x_t | x0)`` this is).

    Near the data the belief is the token shown, whatever the network says, so that the rate of the evidence bound stays
    integrable at ``t = 0``; a plain softmax of a kernel that redraws makes it infinite.
    """

    process: TokenProcess

    @property
    def outputs(self) -> int:
        """One logit a token."""
        return self.process.kernel.size

    def __call__(self, raw: Float[Tensor, "b ... k"], x_t: Int[Tensor, "b ..."], t: Time) -> Categorical:
        """The belief; raises :class:`Refusal` for a raw output of another shape than ``[b, ..., K]``."""
        raw, mask = _require(raw, self.outputs, x_t), self.process.kernel.mask
        raw = raw if mask is None else _without(raw, mask)
        reach = self.process.kernel.columns(x_t, self.process.signal(t, x_t), widest(x_t))
        return Categorical((raw.to(reach) + reach).log_softmax(-1), self.process.space)

    def cost(
        self, raw: Float[Tensor, "b ... k"], x0: Int[Tensor, "b ..."], x_t: Int[Tensor, "b ..."], t: Time
    ) -> Float[Tensor, "b ..."] | None:
        """``-log p(x0 | x_t)`` of the belief at every site in the format of ``raw``; None for a kernel that does not
        redraw from one law, or has a mask.

        ``P_t[x0, x_t]`` is one number but at ``x0 = x_t``, so only that logit is raised.
        """
        kernel = self.process.kernel
        if not isinstance(kernel, RankOne) or kernel.mask is not None:
            return None
        left = beside(self.process.signal(t, x_t), x_t)
        gone = ((1 - left) * beside(kernel.pi, x_t)[x_t]).clamp(min=torch.finfo(left.dtype).tiny)
        raised = (left / gone).log1p().to(raw.dtype).expand(x_t.shape)[..., None]
        return _cost(_require(raw, self.outputs, x_t).scatter_add(-1, x_t[..., None], raised), x0)


@final
@dataclass(frozen=True, eq=False)
class Subs:
    """MDLM's substitution (section 3.2.3): the mask's logit is ``-inf`` and a token that is shown is carried over.

    Raises :class:`Refusal` for other than absorbing kernels: what they show may have been another token.
    """

    process: TokenProcess

    def __post_init__(self) -> None:
        _mask_of(self.process, "Subs")

    @property
    def outputs(self) -> int:
        """One logit a token, the mask's (which is not read) among them."""
        return self.process.kernel.size

    def __call__(self, raw: Float[Tensor, "b ... k"], x_t: Int[Tensor, "b ..."], t: Time) -> Categorical:
        """The belief; raises :class:`Refusal` for a raw output of another shape than ``[b, ..., K]``."""
        mask = _mask_of(self.process, "Subs")
        logp = _without(_require(raw, self.outputs, x_t), mask)
        shown = one_hot_log(x_t, self.process.kernel.size, logp.dtype)
        return Categorical(torch.where((x_t == mask)[..., None], logp, shown), self.process.space)

    def cost(
        self, raw: Float[Tensor, "b ... k"], x0: Int[Tensor, "b ..."], x_t: Int[Tensor, "b ..."], t: Time
    ) -> Float[Tensor, "b ..."]:
        """``-log p(x0 | x_t)`` of the belief at every site in the format of ``raw``: 0 where a token is shown."""
        mask = _mask_of(self.process, "Subs")
        forbidden = torch.arange(self.outputs, device=raw.device) == mask
        hidden = _cost(_require(raw, self.outputs, x_t).masked_fill(forbidden, -math.inf), x0)
        return torch.where(x_t == mask, hidden, 0.0)


@final
@dataclass(frozen=True, eq=False)
class Logistic:
    """Ordered tokens: ``raw [b, ..., 2]`` is the location (around the token shown) and log-scale of a logistic law.

    Token ``k`` stands at ``2k / (K - 1) - 1``; its mass is that of the bin around it, the end bins taking the tails
    (D3PM, appendix A.8; Salimans et al. 2017).  The location is ``tanh(shown + raw_0)``.
    """

    process: TokenProcess
    outputs: int = 2

    def __post_init__(self) -> None:
        if self.outputs != 2:
            raise Refusal(f"outputs={self.outputs}: a logistic law has a location and a log-scale, 2 numbers a site")

    def __call__(self, raw: Float[Tensor, "b ... 2"], x_t: Int[Tensor, "b ..."], t: Time) -> Categorical:
        """The belief; raises :class:`Refusal` for a raw output of another shape than ``[b, ..., 2]``."""
        raw, size = _require(raw, 2, x_t), self.process.kernel.size
        shown = 2 * x_t.to(raw) / (size - 1) - 1
        location = torch.tanh(shown + raw[..., 0])[..., None]
        edges = (2 * torch.arange(1, size, device=raw.device).to(raw) - 1) / (size - 1) - 1
        z = (edges - location) * torch.exp(-raw[..., 1:] + 2.0)
        below, above = logsigmoid(z), logsigmoid(-z)
        # log(F(b) - F(a)) = log F(b) + log(1 - F(a)) + log(1 - e^(a - b)): stable in both tails
        inner = below[..., 1:] + above[..., :-1] + torch.log(-torch.expm1(z[..., :-1] - z[..., 1:]))
        return Categorical(torch.cat([below[..., :1], inner, above[..., -1:]], -1).log_softmax(-1), self.process.space)


@final
@dataclass(frozen=True, eq=False)
class Score:
    """SEDD's parametrisation for an absorbing kernel: a network states the concrete score of a masked site.

    There ``p_t(y) / p_t(mask) = p(x0 = y) alpha / (1 - alpha) = p(x0 = y) / (e^sigma - 1)`` with ``alpha = e^-sigma``;
    the network states ``exp(raw) / ((K - 1) (e^sigma - 1))``, so that ``raw = 0`` is no knowledge.  The belief is that
    score times ``e^sigma - 1`` exactly where it is the score of some law, and its normalisation else; shown tokens are
    carried over.  Other kernels' free ratios are no belief (they imply negative
    probabilities): train a belief by :meth:`~sfumato.processes.jump.Jump.rate` there.  Raises :class:`Refusal` for
    other than absorbing kernels.
    """

    process: TokenProcess

    def __post_init__(self) -> None:
        _mask_of(self.process, "Score")

    @property
    def outputs(self) -> int:
        """One log-ratio a token."""
        return self.process.kernel.size

    def __call__(self, raw: Float[Tensor, "b ... k"], x_t: Int[Tensor, "b ..."], t: Time) -> Categorical:
        """The belief; raises :class:`Refusal` for a raw output of another shape than ``[b, ..., K]``."""
        return Subs(self.process)(raw, x_t, t)  # the factor e^sigma - 1 is common to all tokens

    def ratios(self, raw: Float[Tensor, "b ... k"], x_t: Int[Tensor, "b ..."], t: Time) -> Float[Tensor, "b ... k"]:
        """The stated score itself, 1 at the token shown: what ``Jump.score_entropy`` reads."""
        raw, size = _require(raw, self.outputs, x_t), self.outputs
        alpha = torch.as_tensor(self.process.signal(t, x_t)).clamp(ZERO_ALPHA, 1 - ZERO_ALPHA)
        odds = beside(alpha / (1 - alpha) / (size - 1), x_t)
        score = beside(raw, x_t).exp() * (odds[..., None] if odds.ndim else odds)
        return torch.where(one_hot_log(x_t, size, score.dtype) == 0, 1.0, score)

    def cost(
        self, raw: Float[Tensor, "b ... k"], x0: Int[Tensor, "b ..."], x_t: Int[Tensor, "b ..."], t: Time
    ) -> Float[Tensor, "b ..."]:
        """``-log p(x0 | x_t)`` of the belief at every site, as :meth:`Subs.cost`."""
        return Subs(self.process).cost(raw, x0, x_t, t)

    def entropy(
        self, raw: Float[Tensor, "b ... k"], x0: Int[Tensor, "b ..."], x_t: Int[Tensor, "b ..."]
    ) -> Float[Tensor, "b ..."]:
        """The score entropy of every site over the rate of unmasking, in float32 or more; what SEDD trains.

        With ``s = exp(raw) / (K - 1)``, the score over that of ``x0``, it is ``sum of s - 1 - log s[x0]`` at a masked
        site, and 0 where a token is shown: no other token can have become it.
        """
        mask = _mask_of(self.process, "Score")
        log_s = at_least_float32(_require(raw, self.outputs, x_t)) - math.log(self.outputs - 1)
        forbidden = torch.arange(self.outputs, device=raw.device) == mask
        total = log_s.masked_fill(forbidden, -math.inf).exp().sum(-1)
        entropy = total - 1 - log_s.gather(-1, x0[..., None])[..., 0]
        return torch.where(x_t == mask, entropy, 0.0)


#: The heads by name.
HEADS: dict[str, Any] = {"softmax": Softmax, "posterior": Posterior, "subs": Subs, "logistic": Logistic, "score": Score}


@runtime_checkable
class Remembers(Protocol):
    """A part of a sampler's model that is faster where it may keep what it has read."""

    def remembering(self) -> Any:
        """The same function with a memory of its own: for one walk, in one thread."""
        ...


@final
@dataclass(frozen=True)
class TokenDenoiser:
    """A network and the head that reads it: a :class:`~sfumato.core.Denoiser` of tokens.

    ``net(x_t [b, ...] int64, t [b] float32, cond) -> [b, ..., head.outputs]``.
    """

    net: Any
    head: TokenHead

    def raw(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        """The network's own output at ``x_t``."""
        times = torch.as_tensor(t, dtype=torch.float32).to(x_t.device).expand(len(x_t))
        output: Tensor = self.net(x_t, times, cond)
        return output

    def __call__(self, x_t: Tensor, t: Time, cond: Cond | None = None) -> Law[Tensor]:
        """The belief over ``x0`` given ``x_t`` ``[b, ...]`` at ``t``."""
        return self.head(self.raw(x_t, t, cond), x_t, t)

    def remembering(self) -> TokenDenoiser:
        """The same beliefs, from a network that keeps what it has read where it reads from left to right."""
        return replace(self, net=self.net.remembering()) if isinstance(self.net, Remembers) else self
