"""What training reads: rows, any of them as a batch on the training device.

The contract: ``batch(index)`` is a function of the index alone, so a resumed run reads what the interrupted one would
have read.  Rows that take time to read say ``ready = k``: :func:`ahead` then keeps ``k`` batches ready, read in order
by one thread of their own.  Rows that are quickest to read in an order of their own (shards) give it: ``order(seed)``,
with ``batch(step, size)`` for the indices of every batch; all others are shuffled over the whole epoch.

What all kinds of data sets have alike is here, too, for each of them to take as its own: :func:`index_of`,
:data:`tested`, :func:`by_name`, :func:`described`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from sfumato.errors import Refusal, nearest


@runtime_checkable
class Rows(Protocol):
    """``n`` rows, any of them as a batch on the training device."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at ``index``: ``"x"`` (as stored), or ``"x0"`` (model units) with its ``"end"``; ``"label"``."""
        ...


@runtime_checkable
class Source(Protocol):
    """A data set of any kind, as training sees it.  ``kind`` says what its samples are: images, text, ..."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def prepared(self, settings: Any) -> Source:
        """The data in the units that a recipe's settings ask for (standardised, cut into tokens)."""
        ...

    def rows(self, device: torch.device) -> Rows:
        """The training split."""
        ...

    @property
    def held_out(self) -> Any:
        """The split that validation reads: ``len`` and ``tensors()``."""
        ...

    def spec(self) -> dict[str, Any]:
        """What a checkpoint stores of it (JSON)."""
        ...


@runtime_checkable
class Described(Source, Protocol):
    """A data set that a checkpoint can say all of."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def transform(self) -> Any: ...
    @property
    def source(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def options(self) -> Any: ...


def index_of(self: Described, name: str) -> int:
    """The label of the class called ``name``.  Raises :class:`Refusal` with the nearest names."""
    if name not in self.classes:
        raise Refusal(f"{self.name} has no class {name!r}; {nearest(name, self.classes)}")
    return self.classes.index(name)


def _test(self: Any) -> Any:
    """The split that validation reads."""
    return self.test


#: ``held_out`` of data whose splits are ``train`` and ``test``.
tested = property(_test)


def by_name(self: Any) -> dict[str, Tensor]:
    """The ``x`` of a split, and its ``label`` where there is one, by name."""
    return {"x": self.x} if self.label is None else {"x": self.x, "label": self.label}


def described(self: Described) -> dict[str, Any]:
    """What a checkpoint stores of a data set (JSON)."""
    return {
        "name": self.name,
        "kind": self.kind,
        "shape": list(self.shape),
        "classes": list(self.classes),
        "transform": self.transform.to_json(),
        "train": len(self.rows(torch.device("cpu"))),
        "test": len(self.held_out),
        "source": self.source,
        "licence": self.licence,
        "sha256": self.sha256,
        "options": self.options.to_json(),
    }


@final
class Dataset:
    """A data set in memory: ``x [n, ...]`` as stored (uint8) and, where there are classes, int64 ``label [n]``."""

    def __init__(self, x: Tensor, label: Tensor | None, device: torch.device) -> None:
        self.x, self.label, self.device = x, label, device

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at ``index``, on the training device."""
        rows = {"x": self.x[index].to(self.device)}
        return rows if self.label is None else rows | {"label": self.label[index].to(self.device)}


def ahead(rows: Rows, indices: Iterator[Tensor]) -> Iterator[dict[str, Tensor]]:
    """The batches at ``indices``, in order, while the next ``rows.ready`` of them (none unless it says so) are read.

    What reading raises is raised where its batch is due.  One thread reads, so ``batch`` is never called twice at once.
    """
    count = int(getattr(rows, "ready", 0))
    if count < 1:
        yield from map(rows.batch, indices)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
    waiting: deque[Future[dict[str, Tensor]]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(rows.batch, index))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
