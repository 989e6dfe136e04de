"""Edges of undirected graphs: ``[b, n, n]``, or ``[b, n, n, c]`` with channels; symmetric, no loops.

The contract: ``x[i, j] = x[j, i]``, the diagonal is 0, edges at padded nodes are 0, and one triangle counts: ``n (n -
1) / 2`` sites for ``n`` nodes.  States are real numbers, with normal noise, or int64 tokens of a vocabulary of ``size``
(token 0 is what the diagonal and padding hold: "no edge"), with uniform noise.  Every edge is drawn once, from the
lower triangle row by row, so the noise of a graph depends on its own nodes alone, whatever the padding (Vignac et al.
2023, DiGress, section 4: symmetric noise).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sfumato.core import RNG
from sfumato.errors import Refusal
from sfumato.spaces.manifold import dimensions, tolerance
from sfumato.spaces.zero_com import require_leading


@final
@dataclass(frozen=True, eq=False)
class SymmetricEdges:
    """Symmetric edge states; ``mask`` ``[b, n]`` (or ``[1, n]`` for all) says which nodes are real, None that all are.

    ``size``: how many kinds of edges there are, "no edge" and a mask token among them; None for real numbers.  A real
    state is symmetrised by averaging, so that projecting commutes with renaming nodes; a state of tokens keeps its
    upper triangle.  Raises :class:`Refusal` for a mask with real nodes behind padding and an empty vocabulary.
    """

    mask: Tensor | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            require_leading(self.mask, "SymmetricEdges")
        if self.size is not None and self.size < 1:
            raise Refusal(f"size={self.size}: edges have at least one kind, which is none")

    @property
    def padded(self) -> bool:
        """Whether some sites hold token 0 for good: the diagonal does."""
        return True

    def _require(self, shape: tuple[int, ...]) -> None:
        """Raises :class:`Refusal` for what is no shape of edges, or not of as many graphs and nodes as the mask."""
        if len(shape) not in (3, 4) or shape[1] != shape[2]:
            raise Refusal(f"a state of shape {shape}; edges are [b, n, n] or [b, n, n, c]")
        if self.mask is not None and (self.mask.shape[1] != shape[1] or len(self.mask) not in (1, shape[0])):
            raise Refusal(f"a state of shape {shape} for a mask of shape {tuple(self.mask.shape)}")

    def _real(self, x: Tensor) -> Tensor:
        """Which edges exist: ``[b or 1, n, n]`` booleans, without the diagonal."""
        self._require(tuple(x.shape))
        off = ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)[None]
        if self.mask is None:
            return off
        node = self.mask.bool().to(x.device)
        return off & node[:, :, None] & node[:, None, :]

    def _against(self, edges: Tensor, x: Tensor) -> Tensor:
        return edges[..., None] if x.ndim == 4 else edges

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        """One number an edge (and channel) for states of ``shape``; a padded graph draws those of its own nodes."""
        self._require(shape)
        rows = None
        if self.mask is not None:
            nodes = self.mask.bool().sum(1).expand(shape[0])
            rows = nodes * (nodes - 1) // 2
        return draw((shape[0], shape[1] * (shape[1] - 1) // 2, *shape[3:]), rows)

    def _both(self, edges: Tensor, n: int) -> Tensor:
        """One value an edge, ``[b, n (n - 1) / 2, ...]``, in both triangles: ``[b, n, n, ...]``."""
        # edges by their later node: the first m (m - 1) / 2 of them are those among the first m nodes
        later, earlier = torch.tril_indices(n, n, -1)
        out = edges.new_zeros((len(edges), n, n, *edges.shape[2:]))
        out[:, later, earlier] = edges
        out[:, earlier, later] = edges
        return out

    def uniforms(self, shape: tuple[int, ...], rng: RNG) -> Tensor:
        """One uniform number an edge (and channel) for states of ``shape``, the same in both triangles: what a
        categorical law of edges is drawn from.  ``rng`` gives ``[b, n (n - 1) / 2, ...]`` of them."""
        return self._both(self._draw(rng.uniform, shape), shape[1])

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """One standard normal number an edge (and channel), of tokens a uniform one, the same in both triangles.

        Raises :class:`Refusal` for tokens without a vocabulary.
        """
        if self.size is not None:
            return self.project((self.uniforms(tuple(like.shape), rng) * self.size).long().to(like.device))
        if not like.is_floating_point():
            raise Refusal(f"noise for edges of {like.dtype} but no vocabulary; give SymmetricEdges(mask, size)")
        return self._both(self._draw(rng.normal, tuple(like.shape)).to(like), like.shape[1])

    def project(self, x: Tensor) -> Tensor:
        """Symmetrised (reals by averaging, tokens by the upper triangle), without loops and padding; where there is a
        vocabulary rounded and held in it."""
        if self.size is not None:
            x = (x.round() if x.is_floating_point() else x).long().clamp(0, self.size - 1)
        real = self._against(self._real(x), x)
        if x.is_floating_point():
            even = (x + x.transpose(1, 2)) / 2
        else:
            upper = self._against(torch.ones(x.shape[1:3], dtype=torch.bool, device=x.device).triu(1), x)
            even = torch.where(upper, x, x.transpose(1, 2))
        return even.masked_fill(~real, 0)

    def contains(self, x: Tensor) -> bool:
        """Whether every state is symmetric, without loops and 0 at padded nodes; with a vocabulary int64 within it."""
        if self.size is not None and not (x.dtype == torch.int64 and bool(((x >= 0) & (x < self.size)).all())):
            return False
        stray = x.masked_select((~self._against(self._real(x), x)).expand_as(x))
        gap = (x - x.transpose(1, 2)).abs()
        room = tolerance(x) * (1 + x.abs()) if x.is_floating_point() else 0
        return not bool(stray.any()) and bool((gap <= room).all())

    def sites(self, x: Tensor) -> Tensor:
        """1 on the upper triangle, 0 elsewhere, broadcast against ``x``."""
        dtype = x.dtype if x.is_floating_point() else torch.float32
        return self._against(self._real(x).triu(1), x).to(dtype)

    def dof(self, x: Tensor) -> Tensor:
        """The number of edges times channels, ``[b]``."""
        edges = self._real(x).triu(1).flatten(1).sum(1).expand(len(x))
        return dimensions(x, 1) * edges * (x.shape[3] if x.ndim == 4 else 1)
