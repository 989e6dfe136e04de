"""Whether this process was launched with others, by its environment: what must be known before anything is imported.

The contract: ``torchrun`` and ``accelerate launch`` say how many processes there are and which one this is; without
them there is one.  Process 0 is the one that speaks and writes.
"""

from __future__ import annotations

import os

_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_PLACES = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
#: The verbs that share their work among processes; of any other verb the first process does all.
SHARED = ("train", "sample", "eval")


def _number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def count() -> int:
    """How many processes were launched together."""
    return max(1, _number(_COUNTS, 1))


def alone() -> None:
    """From now on this process is the only one: those that were launched with it have nothing to do."""
    for name in (*_COUNTS, *_RANKS, *_PLACES):
        os.environ.pop(name, None)


def rank() -> int:
    """Which of them this one is, from 0."""
    return _number(_RANKS, 0) if count() > 1 else 0
