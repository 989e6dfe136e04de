"""Transformers over text: one network for masked, uniform and continuous diffusion, and for autoregression.

The contract: ``net(x, t, cond)`` maps tokens ``[b, n]`` (or embeddings ``[b, n, inputs]``) with ``n <= length`` to
float32 ``[b, n, outputs]``; row k of the result depends on row k of the arguments alone, and place i of it on the
places that the ``mask`` lets it see.  Whether a model is autoregressive, block-wise or neither is the one setting
``mask``; whether it knows the time is the setting ``time``.  The networks know nothing of diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sfumato.errors import Refusal, nearest
from sfumato.nets.delegated import Delegated
from sfumato.nets.layers import Linear
from sfumato.nets.masks import bias, paired_bias, parse
from sfumato.nets.transformer import Cache, Conditioning, Trunk

#: Where the weights of the output layer are from.
HEADS = ("tied", "linear")


@final
class TextTransformer(nn.Module):
    """Logits for every place of a text.

    Args:
        vocabulary: tokens that can be read (a mask or a start token counts).
        length: the most tokens of a text.
        width, depth, heads: of the trunk; ``width / heads`` is even.
        outputs: tokens that can be written, the first of the vocabulary; by default all of it.
        mask: who sees whom: ``full``, ``causal`` or ``block:size=16`` (:mod:`sfumato.nets.masks`).
        time: ``adaln``: every block is modulated by the time; ``none``: ``t`` is not read.
        classes: number of classes K; labels are 0..K-1, and K is the null label (classifier-free guidance).
        head: ``tied``: the output layer is the embedding; ``linear``: one of its own, which starts at zero.
        conditioning: the width of the vector of time and class.
        dropout: probability of dropping an entry of what a block adds, in training mode.

    Raises:
        Refusal: settings that do not fit each other.
    """

    compute_dtype = Delegated("trunk")

    def __init__(
        self,
        vocabulary: int,
        length: int = 256,
        width: int = 192,
        depth: int = 4,
        heads: int = 6,
        outputs: int | None = None,
        mask: str = "full",
        time: str = "adaln",
        classes: int | None = None,
        head: str = "tied",
        conditioning: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        written = vocabulary if outputs is None else outputs
        if head not in HEADS:
            raise Refusal(f"head {head!r} is not known; {nearest(head, HEADS)}")
        if min(written, vocabulary) < 1 or (head == "tied" and written > vocabulary):
            raise Refusal(f"outputs {written} for a vocabulary of {vocabulary}; give 1..{vocabulary}, or head=linear")
        #: What rebuilds this network: ``TextTransformer(**net.settings)``; survives JSON.
        self.settings: dict[str, Any] = {
            "vocabulary": vocabulary,
            "length": length,
            "width": width,
            "depth": depth,
            "heads": heads,
            "outputs": written,
            "mask": mask,
            "time": time,
            "classes": classes,
            "head": head,
            "conditioning": conditioning,
            "dropout": dropout,
        }
        self.mask, self.vocabulary, self.outputs = parse(mask), vocabulary, written
        self.condition = Conditioning(conditioning, time, classes)
        self.trunk = Trunk(length, width, depth, heads, conditioning if self.condition.present else None, dropout)
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head = Linear(width, written) if head == "linear" else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def _embed(self, x: Tensor) -> Tensor:
        try:
            y: Tensor = self.embedding(x)
        except IndexError:
            low, high = int(x.min()), int(x.max())
            raise Refusal(
                f"tokens {low}..{high} for a network with a vocabulary of {self.vocabulary}; give the tokens that "
                "it was built for"
            ) from None
        return y

    def _logits(self, h: Tensor) -> Tensor:
        """At least float32: a logit of 10 in bfloat16 is known to 0.06."""
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        return F.linear(h, self.embedding.weight[: self.outputs]) if self.head is None else self.head(h)

    def forward(
        self,
        x: Int64[Tensor, "b n"],
        t: Float[Tensor, "b"] | Float[Tensor, "b k"] | None = None,
        cond: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "b n outputs"]:
        """The logits at tokens ``x``.

        ``t`` in [0, 1]: one time a sample, or ``k`` of them, each for ``n / k`` neighbouring tokens.
        ``cond["label"]`` [b] holds class indices, K meaning "no label"; without it all samples have none.
        """
        b, n = x.shape
        self.trunk.require(n)
        c = self.condition(b, self.condition.spans(t, n), t, cond)
        seen = bias(self.mask, 0, n, self.compute_dtype, x.device)
        return self._logits(self.trunk(self._embed(x), c, seen, slice(0, n)))

    def blocks(
        self,
        noisy: Int64[Tensor, "b n"],
        clean: Int64[Tensor, "b n"],
        t: Float[Tensor, "b"] | Float[Tensor, "b k"] | None = None,
        cond: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "b n outputs"]:
        """The logits of every noisy block given itself and the clean blocks before it, all blocks in one call.

        ``t``: the time of the noisy tokens (one a sample, or one a block); the clean ones are at time 0.  Equals, block
        by block, ``net(cat([clean blocks before, noisy block]))``.  Source: Arriola et al. 2025, eq. 6.  Raises
        :class:`Refusal` for the mask ``full``.
        """
        b, n = noisy.shape
        self.trunk.require(n)
        seen = paired_bias(self.mask, n, self.compute_dtype, noisy.device)
        spans = self.condition.spans(t, n)
        if t is not None:
            t = t[:, None] if t.ndim == 1 else t
            t = torch.cat([t, torch.zeros_like(t)], 1)
        c = self.condition(b, 2 * spans, t, cond)
        places = torch.arange(n, device=noisy.device).repeat(2)
        return self._logits(self.trunk(self._embed(torch.cat([noisy, clean], 1)), c, seen, places)[:, :n])

    def cache(self, b: int) -> Cache:
        """An empty memory for ``b`` texts that are read piece by piece."""
        return self.trunk.cache(b)

    def _extend(self, x: Tensor, cache: Cache, t: Tensor | None, cond: Mapping[str, Tensor] | None) -> Tensor:
        b, n = x.shape
        block, start = self.mask.block, cache.used
        if block is None:
            raise Refusal("a network with the mask 'full' cannot read piece by piece; build it with mask=causal")
        if start % block:
            raise Refusal(f"{start} tokens are read, which ends within a block of {block}; rewind to its beginning")
        self.trunk.require(start + n)
        self.trunk.require_cache(cache, b)
        c = self.condition(b, self.condition.spans(t, n), t, cond)
        seen = bias(self.mask, start, n, self.compute_dtype, x.device)
        h: Tensor = self.trunk(self._embed(x), c, seen, slice(start, start + n), cache)
        cache.used = start + n
        return h

    def extend(
        self,
        x: Int64[Tensor, "b n"],
        cache: Cache,
        t: Float[Tensor, "b"] | Float[Tensor, "b k"] | None = None,
        cond: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "b n outputs"]:
        """The logits of the next ``n`` tokens of texts whose beginning is in ``cache``, which then holds them, too.

        The same as :meth:`forward` over the whole, at the cost of the new tokens.  Raises :class:`Refusal` for the mask
        ``full``, a cache that ends within a block, and more tokens than the network has places for.
        """
        return self._logits(self._extend(x, cache, t, cond))

    def next_logits(
        self,
        x: Int64[Tensor, "b n"],
        cache: Cache,
        t: Float[Tensor, "b"] | None = None,
        cond: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "b outputs"]:
        """The logits at the last of the next ``n`` tokens alone: a prompt first, then one token a call."""
        return self._logits(self._extend(x, cache, t, cond)[:, -1])


@final
class EmbeddingTransformer(nn.Module):
    """The same trunk between two affine maps, for states that are vectors: ``[b, n, inputs]`` to ``[b, n, outputs]``.

    The settings are those of :class:`TextTransformer`; the output layer starts at zero.
    """

    compute_dtype = Delegated("trunk")

    def __init__(
        self,
        inputs: int,
        outputs: int,
        length: int = 256,
        width: int = 192,
        depth: int = 4,
        heads: int = 6,
        mask: str = "full",
        time: str = "adaln",
        classes: int | None = None,
        conditioning: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(inputs, outputs) < 1:
            raise Refusal(f"inputs {inputs}, outputs {outputs}; give at least 1 of each")
        #: What rebuilds this network: ``EmbeddingTransformer(**net.settings)``; survives JSON.
        self.settings: dict[str, Any] = {
            "inputs": inputs,
            "outputs": outputs,
            "length": length,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mask": mask,
            "time": time,
            "classes": classes,
            "conditioning": conditioning,
            "dropout": dropout,
        }
        self.mask = parse(mask)
        self.condition = Conditioning(conditioning, time, classes)
        self.trunk = Trunk(length, width, depth, heads, conditioning if self.condition.present else None, dropout)
        self.stem, self.head = Linear(inputs, width), Linear(width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        x: Float[Tensor, "b n inputs"],
        t: Float[Tensor, "b"] | Float[Tensor, "b k"] | None = None,
        cond: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "b n outputs"]:
        """The output at vectors ``x``; ``t`` and ``cond`` as for :class:`TextTransformer`."""
        b, n, _ = x.shape
        self.trunk.require(n)
        c = self.condition(b, self.condition.spans(t, n), t, cond)
        seen = bias(self.mask, 0, n, self.compute_dtype, x.device)
        h = self.trunk(self.stem(x), c, seen, slice(0, n))
        y: Tensor = self.head(h.to(torch.promote_types(h.dtype, torch.float32)))
        return y
