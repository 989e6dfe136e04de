"""Where states live: what noise is there, which states are members, which coordinates count.

Subspaces of R^n: ``Euclidean``, ``ZeroCoM(mask)``, ``SymmetricEdges(mask)``; tokens: ``Tokens(size)`` and, on the edges
of graphs, ``SymmetricEdges(mask, size)``; manifolds, with geodesics (:class:`~sfumato.spaces.manifold.Manifold`):
``Torus``, ``Sphere``, ``SO3``, ``Simplex``.  Heat kernels: :mod:`~sfumato.spaces.wrapped_normal` on the circle,
:mod:`~sfumato.spaces.igso3` on rotations.
"""

from sfumato.spaces.euclidean import Euclidean
from sfumato.spaces.manifold import Manifold
from sfumato.spaces.simplex import Simplex
from sfumato.spaces.so3 import SO3
from sfumato.spaces.sphere import Sphere
from sfumato.spaces.symmetric_edges import SymmetricEdges
from sfumato.spaces.tokens import Tokens
from sfumato.spaces.torus import Torus
from sfumato.spaces.zero_com import ZeroCoM

__all__ = ["SO3", "Euclidean", "Manifold", "Simplex", "Sphere", "SymmetricEdges", "Tokens", "Torus", "ZeroCoM"]
