"""Edges of undirected graphs: ``[b, n, n]``, or ``[b, n, n, c]`` with channels; symmetric, no loops.

The contract: ``x[i, j] = x[j, i]``, the diagonal is 0, edges at padded nodes are 0, and one triangle counts: ``n (n -
1) / 2`` sites for ``n`` nodes.  Works for real states and for integer tokens (0 is "no edge").  The noise of a graph
depends on its own nodes alone, whatever the padding (Vignac et al. 2022, DiGress, section 4: symmetric noise).
"""

from __future__ import annotations

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

    A real state is symmetrised by averaging, so that projecting commutes with renaming nodes; a state of integers
    keeps its upper triangle.
    """

    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            require_leading(self.mask, "SymmetricEdges")

    def _real(self, x: Tensor) -> Tensor:
        """Which edges exist: ``[b or 1, n, n]`` booleans, without the diagonal."""
        if x.ndim not in (3, 4) or x.shape[1] != x.shape[2]:
            raise Refusal(f"a state of shape {tuple(x.shape)}; edges are [b, n, n] or [b, n, n, c]")
        n = x.shape[1]
        off = ~torch.eye(n, dtype=torch.bool, device=x.device)[None]
        if self.mask is None:
            return off
        if self.mask.shape[1] != n or len(self.mask) not in (1, len(x)):
            raise Refusal(f"a state of shape {tuple(x.shape)} for a mask of shape {tuple(self.mask.shape)}")
        node = self.mask.bool().to(x.device)
        return off & node[:, :, None] & node[:, None, :]

    def _against(self, edges: Tensor, x: Tensor) -> Tensor:
        return edges[..., None] if x.ndim == 4 else edges

    def noise(self, like: Tensor, rng: RNG) -> Tensor:
        """One standard normal number an edge (and channel), the same in both triangles."""
        n = like.shape[1]
        # edges by their later node: the first m (m - 1) / 2 of them are those among the first m nodes
        later, earlier = torch.tril_indices(n, n, -1)
        rows = None
        if self.mask is not None:
            nodes = self.mask.bool().sum(1).expand(len(like))
            rows = nodes * (nodes - 1) // 2
        drawn = rng.normal((len(like), len(later), *like.shape[3:]), rows).to(like)
        out = torch.zeros_like(like)
        out[:, later, earlier] = drawn
        out[:, earlier, later] = drawn
        return out

    def project(self, x: Tensor) -> Tensor:
        """Symmetrised (reals by averaging, integers by the upper triangle), without loops and padding."""
        real = self._against(self._real(x), x)
        if x.is_floating_point():
            even = (x + x.transpose(1, 2)) / 2
        else:
            upper = self._against(torch.ones(x.shape[1:3], dtype=torch.bool, device=x.device).triu(1), x)
            even = torch.where(upper, x, x.transpose(1, 2))
        return even.masked_fill(~real, 0)

    def contains(self, x: Tensor) -> bool:
        """Whether every state is symmetric, without loops, and 0 at padded nodes."""
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
