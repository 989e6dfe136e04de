"""The trunk of the text networks: a pre-norm transformer with rotary positions, RMSNorm, SwiGLU and adaLN conditioning.

The contract: ``trunk(h, c, bias, places)`` maps ``[b, k, s, w]`` (``k`` spans of ``s`` tokens, read in order) to the
same shape; ``c`` ``[b, k, conditioning]`` is what every span is conditioned on, or None.  At initialisation every block
is the identity.  Parameters are float32, the arithmetic is in the dtype of ``h``.  Sources: Vaswani et al. 2017; Su et
al. 2021 (rotary); Zhang and Sennrich 2019 (RMSNorm); Shazeer 2020 (SwiGLU); Peebles and Xie 2023 (adaLN-zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import Refusal, nearest
from sfumato.nets.layers import Linear, time_features
from sfumato.nets.masks import attend
from sfumato.nets.precision import computing
from sfumato.nets.rotary import rotate, rotations

#: The ways a network can know the time.
TIMES = ("adaln", "none")
#: Features of the time before they are learned from.
FEATURES = 64


@final
class Cache:
    """Keys and values ``[depth, b * heads, length, d]`` of the first ``used`` tokens of texts that are read piece by
    piece, without gradients.

    ``used`` moves on with every token read; :meth:`rewind` moves it back, and what lay behind is overwritten.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.used = keys, values, 0

    def rewind(self, used: int) -> None:
        """Forget all but the first ``used`` tokens.  Raises :class:`Refusal` where there are not so many."""
        if not 0 <= used <= self.used:
            raise Refusal(f"rewind to {used} tokens of {self.used} read; give 0..{self.used}")
        self.used = used

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values ``[b * heads, n, d]`` of one layer; gives all of them up to now."""
        end = self.used + k.shape[1]
        self.keys[layer, :, self.used : end], self.values[layer, :, self.used : end] = k, v
        return self.keys[layer, :, :end], self.values[layer, :, :end]


@final
class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2)) * weight``, then ``* (1 + scale) + shift`` where a span has them."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(
        self, x: Float[Tensor, "b k s w"], film: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "b k s w"]:
        """``film``: scale and shift, ``[b, k, 1, w]`` each."""
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x * (x.square().mean(-1, keepdim=True).to(wide) + self.eps).rsqrt().to(x.dtype)
        if film is None:
            return y * self.weight.to(x.dtype)
        scale, shift = film
        return torch.addcmul(shift.to(x.dtype), y, (self.weight * (1 + scale)).to(x.dtype))


@final
class Block(nn.Module):
    """Attention, then SwiGLU, each on the normalised input, each added through a gate where there is a condition.

    ``matrices``: the layers between hidden states, which an optimiser of matrices (Muon) may train.
    """

    matrices: ClassVar[tuple[str, ...]] = ("qkv", "out", "up", "down")

    def __init__(self, width: int, heads: int, conditioning: int | None, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        hidden = -(-8 * width // 3 // 32) * 32
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.up, self.down = Linear(width, 2 * hidden), Linear(hidden, width)
        self.film = None if conditioning is None else Linear(conditioning, 6 * width)
        closed = [self.out, self.down] if self.film is None else [self.film]
        for layer in closed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _add(self, x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
        y = F.dropout(y, self.dropout, self.training) if self.dropout else y
        return x + y if gate is None else torch.addcmul(x, gate.to(x.dtype), y)

    def _attention(
        self, x: Tensor, bias: Tensor | None, turn: tuple[Tensor, Tensor], cache: Cache | None, layer: int
    ) -> Tensor:
        b, k, s, w = x.shape
        n, d = k * s, w // self.heads
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d).permute(2, 0, 3, 1, 4).reshape(3, b * self.heads, n, d)
        query, key, value = qkv.unbind(0)
        cos, sin = turn
        query, key = rotate(query, cos * d**-0.5, sin * d**-0.5), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.write(layer, key, value)
        mixed = attend(query, key, value, bias).reshape(b, self.heads, n, d)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(b, k, s, w))
        return y

    def forward(
        self,
        x: Tensor,
        c: Tensor | None,
        bias: Tensor | None,
        turn: tuple[Tensor, Tensor],
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        """``x`` [b, k, s, w]; ``c`` [b, k, conditioning]; ``turn``: cosines and sines of every token's place."""
        first: tuple[Tensor, Tensor] | None = None
        second: tuple[Tensor, Tensor] | None = None
        gates: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.film is not None:
            assert c is not None
            scale1, shift1, gate1, scale2, shift2, gate2 = self.film(c)[:, :, None].chunk(6, -1)
            first, second, gates = (scale1, shift1), (scale2, shift2), (gate1, gate2)
        x = self._add(x, self._attention(self.norm1(x, first), bias, turn, cache, layer), gates[0])
        value, gate = self.up(self.norm2(x, second)).chunk(2, -1)
        return self._add(x, self.down(value * F.silu(gate)), gates[1])


@final
class Conditioning(nn.Module):
    """Time and class as one vector for every span; None where a network knows neither."""

    def __init__(self, width: int, time: str, classes: int | None) -> None:
        super().__init__()
        if time not in TIMES:
            raise Refusal(f"time {time!r} is not known; {nearest(time, TIMES)}")
        self.time = nn.Sequential(Linear(FEATURES, width), nn.SiLU(), Linear(width, width)) if time == "adaln" else None
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

    @property
    def present(self) -> bool:
        """Whether there is anything to condition on."""
        return self.time is not None or self.label is not None

    def spans(self, t: Tensor | None, n: int) -> int:
        """How many spans of one time each ``t`` [b] or [b, k] divides ``n`` tokens into: 1 where no time is read.

        Raises :class:`Refusal` where it does not divide them.
        """
        if self.time is None or t is None or t.ndim == 1:
            return 1
        if t.ndim > 2 or t.shape[1] < 1 or n % t.shape[1]:
            raise Refusal(f"t of shape {list(t.shape)} for {n} tokens; give [b], or [b, k] with k dividing {n}")
        return t.shape[1]

    def forward(
        self, b: int, spans: int, t: Tensor | None, cond: Mapping[str, Tensor] | None
    ) -> Float[Tensor, "b spans w"] | None:
        """The vectors of ``b`` samples of ``spans`` spans; ``t`` [b] or [b, spans] in [0, 1], not read by a network
        without time.  Raises :class:`Refusal` for a time or a label that is missing or that nobody reads.
        """
        label = None if cond is None else cond.get("label")
        if self.label is None and label is not None:
            raise Refusal("this network was built without classes, and was given a label; build it with classes=K")
        c: Tensor | None = None
        if self.time is not None:
            if t is None:
                raise Refusal("this network knows the time and was given none; give t, or build it with time=none")
            t = t[:, None] if t.ndim == 1 else t
            features = time_features(t.flatten(), FEATURES).to(next(self.time.parameters()).dtype)
            c = self.time(features).view(*t.shape, -1).expand(b, spans, -1)
        if self.label is not None:
            index = torch.full((b,), self.label.num_embeddings - 1, device=self.label.weight.device)
            vector = self.label(index if label is None else label)[:, None].expand(b, spans, -1)
            c = vector if c is None else c + vector
        return None if c is None else F.silu(c)


@final
class Trunk(nn.Module):
    """``depth`` blocks and a last norm, over sequences of at most ``length`` tokens.

    Raises :class:`Refusal` for settings that do not fit each other.
    """

    compute_dtype = computing("norm")

    def __init__(
        self, length: int, width: int, depth: int, heads: int, conditioning: int | None, dropout: float
    ) -> None:
        super().__init__()
        if min(length, width, depth, heads) < 1 or not 0 <= dropout < 1:
            found = f"length {length}, width {width}, depth {depth}, heads {heads}, dropout {dropout}"
            raise Refusal(f"{found} do not fit; all must be at least 1, and 0 <= dropout < 1")
        if width % heads or width // heads % 2:
            raise Refusal(
                f"{heads} heads do not divide width {width} into even parts; give width = heads x an even number"
            )
        self.length, self.width, self.heads = length, width, heads
        self.blocks = nn.ModuleList(Block(width, heads, conditioning, dropout) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.film = None if conditioning is None else Linear(conditioning, 2 * width)
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        for name, table in zip(("cos", "sin"), rotations(length, width // heads), strict=True):
            self.register_buffer(name, table, persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def require(self, n: int) -> None:
        """Raises :class:`Refusal` for more tokens than the trunk has places for, or none."""
        if not 1 <= n <= self.length:
            raise Refusal(f"{n} tokens for a network of length {self.length}; give 1..{self.length}")

    def require_cache(self, cache: Cache, b: int) -> None:
        """Raises :class:`Refusal` for a cache that was made for another number of texts."""
        if cache.keys.shape[1] != b * self.heads:
            raise Refusal(f"{b} texts for a cache of {cache.keys.shape[1] // self.heads}; make it with net.cache({b})")

    def cache(self, b: int) -> Cache:
        """An empty cache for ``b`` sequences, in the compute dtype."""
        shape = (len(self.blocks), b * self.heads, self.length, self.width // self.heads)
        device = self.norm.weight.device
        keys, values = (torch.zeros(shape, dtype=self.compute_dtype, device=device) for _ in range(2))
        return Cache(keys, values)

    def forward(
        self,
        h: Float[Tensor, "b n w"],
        c: Float[Tensor, "b k cw"] | None,
        bias: Tensor | None,
        places: Tensor | slice,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b n w"]:
        """The normalised last state of tokens ``h`` at ``places``; with a ``cache``, behind those it holds."""
        b, n, w = h.shape
        spans = 1 if c is None else c.shape[1]
        x = h.to(self.compute_dtype).reshape(b, spans, n // spans, w)
        turn = (self.cos[places].to(x.dtype), self.sin[places].to(x.dtype))
        for layer, block in enumerate(self.blocks):
            x = block(x, c, bias, turn, cache, layer)
        film: Any = None if self.film is None else self.film(c)[:, :, None].chunk(2, -1)
        y: Tensor = self.norm(x, None if film is None else tuple(film))
        return y.reshape(b, n, w)
