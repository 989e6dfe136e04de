"""SB-CFM: the Schroedinger bridge between data and noise, by flow matching on Brownian bridges.

Tong et al. 2023, "Improving and generalizing flow-based generative models with minibatch optimal transport",
https://arxiv.org/abs/2302.00482, section 3.

* coupling: pairs from the entropic plan of the batch with regularisation ``2 sigma^2``, within each label;
* path: ``x_t = (1 - t) x0 + t x1 + sigma sqrt(t (1 - t)) z``;
* loss: ``E |v_theta(x_t, t) - v|^2 / (1 + gamma'^2)`` with
  ``v = x1 - x0 + sigma (1 - 2 t) / (2 sqrt(t (1 - t))) z``, ``t`` uniform.  The weight (1 in the paper) keeps the mean
  over ``t`` finite and changes no minimiser: :mod:`sfumato.training.velocity`;
* sampling: an ODE solver from ``t = 1`` to 0.  Near the data ``sigma_t`` is like ``sqrt(t)``, hence the quadratic grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.interpolant import Bridge, Interpolant
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.couplings import Entropic
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, require
from sfumato.training.times import Uniform
from sfumato.training.velocity import Inside, velocity_loss


@final
@dataclass(frozen=True)
class Settings:
    """``sigma``: the noise of the reference Brownian motion; to 0 it is OT-CFM, to infinity the ends are
    independent; ``scalings``: of Sinkhorn's algorithm a batch (200 leave a plan about 1 % off, at a third of the time
    of a small network's step)."""

    sigma: float = 0.5
    scalings: int = 200
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="heun", grid="quadratic", sampling_steps=10, guidance=2.0, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        require(0 < self.sigma < float("inf"), "sigma", self.sigma, "a positive number; use ot-cfm for 0")
        require(self.scalings >= 1, "scalings", self.scalings, "at least 1")


def compose(settings: Settings, net: Any) -> Composition:
    """Brownian bridges between ends of the entropic plan, and a network that predicts their mean velocity."""
    head = GaussianHead(Interpolant(schedules.get("flow"), Bridge(settings.sigma)), "flow")
    coupling = Entropic(settings.sigma, settings.scalings)
    return Composition(Preconditioned(net, head), Inside(Uniform()), velocity_loss, coupling)


RECIPE = Recipe(
    name="sb-cfm",
    title="SB-CFM: Brownian bridges between ends of the entropic plan",
    paper="Tong et al. 2023, arXiv 2302.00482",
    defaults=Settings(),
    compose=compose,
)
