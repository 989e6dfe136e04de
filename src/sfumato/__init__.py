"""Sfumato: diffusion and flow models as short compositions of the same few parts.

Everything is imported on first use, so that ``import sfumato`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sfumato import (
        bakeoff,
        comparison,
        data,
        degradations,
        denoisers,
        energies,
        grids,
        guidance,
        laws,
        likelihood,
        metrics,
        nets,
        oracles,
        presets,
        processes,
        recipes,
        reports,
        samplers,
        schedules,
        spaces,
        testing,
        training,
        watching,
    )
    from sfumato.comparison import compare, compare_with_ode
    from sfumato.data.grid import show
    from sfumato.errors import Refusal
    from sfumato.processes import elbo, step_kl
    from sfumato.randomness import Stream, Streams
    from sfumato.samplers import sample, trajectory
    from sfumato.training.diffusion import Diffusion, load
    from sfumato.training.run import train

_MODULES = {
    "bakeoff", "comparison", "data", "degradations", "denoisers", "energies", "grids", "guidance", "laws", "likelihood",
    "metrics", "nets", "oracles", "presets", "processes", "recipes", "reports", "samplers", "schedules", "spaces",
    "testing", "training", "watching",
}  # fmt: skip
_NAMES = {
    "sample": "sfumato.samplers",
    "trajectory": "sfumato.samplers",
    "step_kl": "sfumato.processes",
    "elbo": "sfumato.processes",
    "Stream": "sfumato.randomness",
    "Streams": "sfumato.randomness",
    "Refusal": "sfumato.errors",
    "Diffusion": "sfumato.training.diffusion",
    "load": "sfumato.training.diffusion",
    "train": "sfumato.training.run",
    "show": "sfumato.data.grid",
    "compare": "sfumato.comparison",
    "compare_with_ode": "sfumato.comparison",
}

__all__ = [
    "Diffusion", "Refusal", "Stream", "Streams", "bakeoff", "compare", "compare_with_ode", "comparison", "data",
    "degradations", "denoisers", "elbo", "energies", "grids", "guidance", "laws", "likelihood", "load", "metrics",
    "nets", "oracles", "presets", "processes", "recipes", "reports", "sample", "samplers", "schedules", "show",
    "spaces", "step_kl", "testing", "train", "training", "trajectory", "watching",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"sfumato.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
