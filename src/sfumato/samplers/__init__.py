"""Samplers: how to walk a grid from the prior to the data with a belief at every step.

``get(name, **settings)`` builds one: ``ddpm``, ``ddpm-large``, ``ddim`` (``eta``), ``euler``, ``heun``, ``dpmpp-2m``.
"""

from __future__ import annotations

from typing import Any

from sfumato.core import Sampler
from sfumato.registry import Registry
from sfumato.samplers.ancestral import DDIM, Ancestral, AncestralLarge
from sfumato.samplers.driver import sample, trajectory
from sfumato.samplers.ode import DPMSolverPP2M, Euler, Heun
from sfumato.samplers.parts import PerPart

registry: Registry[Sampler] = Registry("sampler")
registry.add("ddpm", Ancestral)
registry.add("ddpm-large", AncestralLarge)
registry.add("ddim", DDIM)
registry.add("euler", Euler)
registry.add("heun", Heun)
registry.add("dpmpp-2m", DPMSolverPP2M)


def get(name: str, **settings: Any) -> Sampler:
    """The sampler called ``name``; raises :class:`~sfumato.errors.Refusal` for an unknown name or setting."""
    return registry.get(name, **settings)


def names() -> list[str]:
    """The names of all registered samplers."""
    return list(registry)


__all__ = [
    "DDIM",
    "Ancestral",
    "AncestralLarge",
    "DPMSolverPP2M",
    "Euler",
    "Heun",
    "PerPart",
    "get",
    "names",
    "registry",
    "sample",
    "trajectory",
]
