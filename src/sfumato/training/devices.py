"""Where tensors live: ``auto | cpu | cuda | mps``.  The contract: a device that is not there is refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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
    return torch.device(here[0] if name == "auto" else name)


def place_for_training(net: nn.Module, optimisers: list[torch.optim.Optimizer], name: str) -> torch.device:
    """Put a network and its optimisers where they train, by Accelerate; returns the device.

    Raises :class:`Refusal` where the device is not available, where this process already trained elsewhere (Accelerate
    allows one place per process), or under a launcher of several processes.
    """
    from accelerate import Accelerator

    device = resolve_device(name)
    try:
        accelerator: Any = Accelerator(cpu=device.type == "cpu")
    except ValueError:
        raise Refusal(f"this process trained on another device before; start a new one for device={name}") from None
    if accelerator.num_processes > 1:
        raise Refusal(
            f"training runs in one process, {accelerator.num_processes} were launched; start sfumato directly"
        )
    accelerator.prepare(net, *optimisers)
    placed: torch.device = accelerator.device
    return placed
