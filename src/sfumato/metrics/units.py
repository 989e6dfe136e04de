"""Real samples and generated ones in the form that extractors read, for every kind of data.

The contract: a split of real samples and samples made of them come out of :func:`real` and :func:`made` in one form:
uint8 pictures ``[n, h, w]`` or ``[n, h, w, 3]``, float ``[n, ...]`` for points, tables and series, strings for text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato.data import options
from sfumato.errors import Refusal, nearest


@final
@dataclass(frozen=True)
class Form:
    """How one kind of data is handed to extractors: ``real(data, split)`` and ``made(data, x)``."""

    real: Callable[[Any, str], Any]
    made: Callable[[Any, Any], Any]


def _pictures(data: Any, split: str) -> Tensor:
    x: Tensor = getattr(data, split).x
    return x[:, 0] if x.shape[1] == 1 else x.permute(0, 2, 3, 1)


def _as_they_are(data: Any, x: Any) -> Any:
    return x


def _floats(data: Any, x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x)).float()


def _centred(data: Any, x: Tensor) -> Tensor:
    """Series less what the data's channels are about: float32 keeps the digits of those that lie far from 0."""
    return (x.double() - torch.tensor(data.transform.centre, dtype=torch.float64)[:, None]).float()


def _series(data: Any, x: Any) -> Tensor:
    """``[n, channels, length]``, also where the user's own have no axis of channels; others as they are."""
    found = torch.as_tensor(np.asarray(x))
    fits = found[0].numel() == data.train.x[0].numel()
    return _centred(data, found.reshape(len(found), *data.shape)) if fits else found.float()


def _one_hot(rows: Tensor, transform: Any) -> Tensor:
    """Numbers in model units beside categories, each as one number per value, 1/2 apart as a deviation is."""
    parts = [rows[:, : transform.numbers].float()]
    for k, size in enumerate(transform.sizes):
        token = rows[:, transform.numbers + k].long()
        parts.append(torch.nn.functional.one_hot(token, size).float() / 2)
    return torch.cat(parts, 1)


def _table_made(data: Any, x: Any) -> Tensor:
    from sfumato.data.table_read import cell

    cells = {name: [cell(text) for text in column] for name, column in x.cells.items()}
    return _one_hot(data.transform.encode(data.transform.read(cells)), data.transform)


@lru_cache(maxsize=2)
def _windows(data: Any, split: str) -> list[str]:
    """The text of a split cut into windows as long as a row of tokens is on average, end to end."""
    from sfumato.metrics.text import spread_windows

    tokens = getattr(data, split)
    text = data.tokenizer.decode(tokens)
    length = max(1, round(len(text) * data.length / len(tokens)))
    return spread_windows(text, len(text) // length, length)


#: Classes are asked for in turn where they are as often in the held-out split up to this total variation.
BALANCED = 0.10


def labels(data: Any, classes: Sequence[str], n: int) -> list[str] | None:
    """The classes to ask a model of ``classes`` for, so that n samples compare with the held-out split of ``data``.

    All in turn where the held-out classes are balanced (at most a tenth of the samples would have to change class for
    equal shares) or others than the model's, else those of held-out samples in a fixed random order; None where the
    model has no classes.
    """
    held = data.test.label if classes and list(data.classes) == list(classes) else None
    if held is None:
        return list(classes) or None
    shares = torch.bincount(held, minlength=len(classes)).double() / len(held)
    if float((shares - 1 / len(classes)).abs().sum() / 2) <= BALANCED:
        return list(classes)
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0)).tolist()
    return [classes[int(held[order[k % len(order)]])] for k in range(n)]


#: How each kind of data is handed over.
FORMS = {
    "images": Form(_pictures, _as_they_are),
    "points": Form(lambda data, split: getattr(data, split).x, _floats),
    "series": Form(lambda data, split: _centred(data, getattr(data, split).x), _series),
    "table": Form(lambda data, split: _one_hot(getattr(data, split).x0, data.transform), _table_made),
    "text": Form(_windows, lambda data, x: list(x)),
}


def reference(data: Any, split: str) -> str:
    """The name of a split with how the data were read where that was chosen: ``mnist/test``, ``a/test (crop=none)``."""
    how = options.from_json(data.spec().get("options") or {})
    return f"{data.name}/{split} ({how})" if how.changed() else f"{data.name}/{split}"


def windowed(data: Any) -> str:
    """How long the windows of a text are, in the words that a record keeps; ``none`` for other data."""
    return f"windows of {data.length} tokens" if data.kind == "text" else "none"


def form(kind: str) -> Form:
    """How a kind of data is handed over; raises :class:`Refusal` for one that has no metrics."""
    if kind not in FORMS:
        raise Refusal(f"{kind} have no metrics here; {nearest(kind, FORMS)}")
    return FORMS[kind]


def take(x: Any, rows: Tensor) -> Any:
    """Some samples of many."""
    return x[rows] if isinstance(x, Tensor) else [x[int(k)] for k in rows]


def like(x: Sequence[Any] | Tensor) -> str:
    """The type and the shape of one sample, for messages."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}" if isinstance(x, Tensor) else "text"
