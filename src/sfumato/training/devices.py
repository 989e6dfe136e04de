"""Where tensors live: ``auto | cpu | cuda | mps``.  The contract: a device that is not there is refused by name."""

from __future__ import annotations

import os

import torch

from sfumato.errors import Refusal
from sfumato.training.settings import choose

DEVICES = ("auto", "cpu", "cuda", "mps")


def available() -> list[str]:
    """The devices this machine has, best first."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, "cpu"]


def resolve_device(name: str) -> torch.device:
    """The device called ``name``, the best one for ``"auto"``; raises :class:`Refusal` where it is not available."""
    choose("device", name, DEVICES)
    here = available()
    if name != "auto" and name not in here:
        raise Refusal(f"device {name!r} is not available here; use {' or '.join(here)}")
    found = here[0] if name == "auto" else name
    place = os.environ.get("LOCAL_RANK", "")  # of several processes, each has a GPU of its own
    return torch.device(f"cuda:{place}" if found == "cuda" and place.isdigit() else found)
