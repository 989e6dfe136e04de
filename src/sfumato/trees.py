"""States, conditions and laws are trees of tensors with a leading sample axis: the few operations on them.

A tree is a tensor, a dict of trees, or a frozen dataclass that names its tensor fields in ``leaves`` (every law does).
0-dimensional tensors and plain numbers belong to all samples and pass through batching operations unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

#: The kinds of device without float64: what needs it leaves them first.
WITHOUT_FLOAT64 = frozenset({"mps"})


def precise_device(x: Tensor) -> torch.device:
    """Where float64 stands in for ``x``: its own device, or the CPU where that has no float64 (Apple's MPS)."""
    return torch.device("cpu") if x.device.type in WITHOUT_FLOAT64 else x.device


def precise(x: Tensor) -> Tensor:
    """``x`` in float64 on its :func:`precise_device`; gradients flow through."""
    return x.to(precise_device(x)).double()


def cast(value: Tensor, x: Tensor) -> Tensor:
    """``value`` in the dtype and on the device of ``x``, in this order, and its gradient in the other: so neither is
    float64 where there is none.
    """
    return value.to(x.dtype).to(x.device)


def tree_map(f: Callable[..., Any], *trees: Any) -> Any:
    """Apply ``f`` to matching tensors of the given trees; anything else is taken from the first tree."""
    first = trees[0]
    if torch.is_tensor(first):
        return f(*trees)
    if isinstance(first, dict):
        return {key: tree_map(f, *(tree[key] for tree in trees)) for key in first}
    leaves = getattr(first, "leaves", ())
    return replace(first, **{k: tree_map(f, *(getattr(t, k) for t in trees)) for k in leaves}) if leaves else first


def concatenate(trees: Sequence[Any]) -> Any:
    """Stack batches of samples along the sample axis."""
    return tree_map(lambda *parts: torch.cat(parts) if parts[0].ndim else parts[0], *trees)


def rows(tree: Any, index: slice | Tensor) -> Any:
    """The samples picked out by ``index``."""
    return tree_map(lambda v: v[index] if v.ndim else v, tree)


def batch_size(tree: Any) -> int:
    """The length of the sample axis."""
    if isinstance(tree, dict):
        return batch_size(next(iter(tree.values())))
    return len(tree)


def flat_sum(x: Tensor) -> Tensor:
    """Sum over everything but the sample axis: ``[b, ...] -> [b]``."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def counted(x: Tensor, sites: Tensor | float) -> Tensor:
    """``x`` summed over the sites that count, ``[b]``; at those that do not it may be infinite."""
    return flat_sum(torch.where(sites == 0, 0.0, x) * sites if torch.is_tensor(sites) else x * sites)


def site_uniforms(space: Any, shape: tuple[int, ...], rng: Any) -> Tensor:
    """One uniform number for every site of states of this ``shape``: drawn by the space itself where sites are tied to
    one another (both copies of an undirected edge get one number)."""
    own = getattr(space, "uniforms", None)
    numbers: Tensor = rng.uniform(shape) if own is None else own(shape, rng)
    return numbers


def against(t: Any, x: Tensor) -> Any:
    """Shape a per-sample tensor ``[b]`` to broadcast against ``x`` ``[b, ...]``; numbers and 0-d tensors pass
    through."""
    if torch.is_tensor(t) and 0 < t.ndim < x.ndim:
        return t.to(x.dtype).reshape(t.shape + (1,) * (x.ndim - t.ndim))
    return t
