"""Samplers: how to walk a grid from the prior to the data with a belief at every step.

``get(name, **settings)`` builds one of :func:`names`: ``ddpm``, ``ddim`` (``eta``), ``heun``, ``walk`` and so on;
``build("ddim:eta=0.5")`` reads one from text.
"""

from __future__ import annotations

from typing import Any

from sfumato import spec
from sfumato.core import Sampler
from sfumato.registry import Registry
from sfumato.samplers import auto
from sfumato.samplers.adams import Adams
from sfumato.samplers.adaptive import RK45
from sfumato.samplers.ancestral import DDIM, Ancestral, AncestralLarge
from sfumato.samplers.beside import Beside
from sfumato.samplers.churn import Churned, heun
from sfumato.samplers.driver import sample, trajectory
from sfumato.samplers.exponential import DPMSolver, DPMSolverPP2M, DPMSolverPP3M
from sfumato.samplers.inversion import inversion, invert
from sfumato.samplers.jump import DiscreteEuler, TauLeaping
from sfumato.samplers.jump_masked import CachedAncestral, ConfidenceOrdered, FirstHitting
from sfumato.samplers.langevin import Langevin, PredictorCorrector, pc
from sfumato.samplers.manifold import GeodesicWalk
from sfumato.samplers.multistep import DEIS, LMS, PNDM
from sfumato.samplers.ode import Euler, Heun
from sfumato.samplers.parts import PerPart
from sfumato.samplers.restart import Restart, restart
from sfumato.samplers.sde import DPMSolverPPSDE, EulerAncestral, EulerMaruyama
from sfumato.samplers.unipc import UniPC

registry: Registry[Sampler] = Registry("sampler")
registry.add("ddpm", Ancestral)
registry.add("ddpm-large", AncestralLarge)
registry.add("ddim", DDIM)
registry.add("euler", Euler)
registry.add("heun", heun)
registry.add("dpm-solver", DPMSolver)
registry.add("dpmpp-2m", DPMSolverPP2M)
registry.add("dpmpp-3m", DPMSolverPP3M)
registry.add("unipc", UniPC)
registry.add("deis", DEIS)
registry.add("adams", Adams)
registry.add("lms", LMS)
registry.add("pndm", PNDM)
registry.add("rk45", RK45)
registry.add("dpmpp-sde", DPMSolverPPSDE)
registry.add("euler-ancestral", EulerAncestral)
registry.add("euler-maruyama", EulerMaruyama)
registry.add("pc", pc)
registry.add("langevin", Langevin)
registry.add("restart", restart)
registry.add("tau-leaping", TauLeaping)
registry.add("discrete-euler", DiscreteEuler)
registry.add("confidence", ConfidenceOrdered)
registry.add("first-hitting", FirstHitting)
registry.add("ddpm-cache", CachedAncestral)
registry.add("walk", GeodesicWalk)

#: The samplers of tokens alone: they take a Jump process.
TOKENS = ("tau-leaping", "discrete-euler", "confidence", "first-hitting", "ddpm-cache")
#: The samplers of random walks on manifolds alone: they take a Brownian process.
WALKS = ("walk",)


def get(name: str, **settings: Any) -> Sampler:
    """The sampler called ``name``; raises :class:`~sfumato.errors.Refusal` for an unknown name or setting."""
    return registry.get(name, **settings)


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``"ddim:eta=0.5"`` as ``("ddim", {"eta": 0.5})``: the settings are the sampler's fields, read by their types.

    Raises :class:`~sfumato.errors.Refusal` for an unknown name or setting and for a value of the wrong type.
    """
    return spec.parse("sampler", text, registry.builder)


def build(text: str) -> Sampler:
    """The sampler that a text such as ``"ddim:eta=0.5"`` describes; errors as for :func:`parse` and :func:`get`."""
    name, settings = parse(text)
    return get(name, **settings)


def names() -> list[str]:
    """The names of all registered samplers."""
    return list(registry)


__all__ = [
    "Adams",
    "Ancestral",
    "AncestralLarge",
    "Beside",
    "CachedAncestral",
    "Churned",
    "ConfidenceOrdered",
    "DDIM",
    "DEIS",
    "LMS",
    "DPMSolver",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "DPMSolverPPSDE",
    "DiscreteEuler",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "FirstHitting",
    "GeodesicWalk",
    "Heun",
    "Langevin",
    "PNDM",
    "PerPart",
    "RK45",
    "UniPC",
    "PredictorCorrector",
    "Restart",
    "TOKENS",
    "TauLeaping",
    "WALKS",
    "auto",
    "build",
    "get",
    "inversion",
    "invert",
    "names",
    "parse",
    "registry",
    "sample",
    "trajectory",
]
