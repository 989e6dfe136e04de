"""Stochastic interpolants: a path of one's choice between data and noise, with fresh noise in the middle.

Albergo, Boffi, Vanden-Eijnden 2023, "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions",
https://arxiv.org/abs/2303.08797; Albergo and Vanden-Eijnden 2022, "Building Normalizing Flows with Stochastic
Interpolants", https://arxiv.org/abs/2209.15571.

* path (2303.08797, section 2): ``x_t = alpha x0 + beta x1 + gamma z``; trigonometric ``(cos, sin)(pi t / 2)``
  (2209.15571) or linear ``(1 - t, t)``, with ``gamma`` of section 4: ``a sin^2(pi t)``, ``a t (1 - t)``, ``a
  sqrt(t (1 - t))`` or none;
* loss (2303.08797, section 2): ``E |b_theta(x_t, t) - (alpha' x0 + beta' x1 + gamma' z)|^2``, ``t`` uniform, divided
  by ``1 + gamma'^2`` where there is a bump;
* sampling: an ODE solver of ``dx/dt = b`` from ``t = 1`` to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.interpolant import Bridge, Bump, Interpolant, Parabola, SineSquared
from sfumato.recipes.recipe import Recipe
from sfumato.training import couplings
from sfumato.training.composition import Composition
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose, idle, require
from sfumato.training.times import Uniform
from sfumato.training.velocity import Inside, velocity_loss

PATHS = {"trigonometric": "cosine-continuous", "linear": "flow"}
BUMPS: dict[str, Callable[[float], Bump]] = {"sine-squared": SineSquared, "parabola": Parabola, "bridge": Bridge}


@final
@dataclass(frozen=True)
class Settings:
    """``path``: trigonometric or linear; ``bump``: none, sine-squared, parabola or bridge, of size ``bump_scale``;
    ``coupling``: independent or exact."""

    path: str = "trigonometric"
    bump: str = "sine-squared"
    bump_scale: float = idle(0.5, bump="none")
    coupling: str = "independent"
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="heun", grid="uniform", sampling_steps=10, guidance=2.0, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        choose("path", self.path, PATHS)
        choose("bump", self.bump, ("none", *BUMPS))
        choose("coupling", self.coupling, ("independent", "exact"))
        require(0 < self.bump_scale < float("inf"), "bump_scale", self.bump_scale, "a positive number; or bump=none")


def compose(settings: Settings, net: Any) -> Composition:
    """The interpolant, and a network that predicts its mean velocity."""
    bump = None if settings.bump == "none" else BUMPS[settings.bump](settings.bump_scale)
    head = GaussianHead(Interpolant(schedules.get(PATHS[settings.path]), bump), "flow")
    coupling = couplings.get(settings.coupling)
    return Composition(Preconditioned(net, head), Inside(Uniform()), velocity_loss, coupling)


RECIPE = Recipe(
    name="interpolant",
    title="stochastic interpolant: a chosen path with fresh noise between the ends",
    paper="Albergo et al. 2023, arXiv 2303.08797",
    defaults=Settings(),
    compose=compose,
)
