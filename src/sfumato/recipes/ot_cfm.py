"""OT-CFM: flow matching between data and noise joined by minibatch optimal transport.

Tong et al. 2023, "Improving and generalizing flow-based generative models with minibatch optimal transport",
https://arxiv.org/abs/2302.00482.

* coupling (section 3): the optimal transport plan of the batch for ``|x0 - x1|^2``; here within each label, so that
  every class meets the whole prior;
* path: ``x_t = (1 - t) x0 + t x1``, their ``sigma = 0``, so that both ends are exact;
* loss: ``E |v_theta(x_t, t) - (x1 - x0)|^2``, ``t`` uniform;
* sampling: an ODE solver from ``t = 1`` to 0; paths cross less, so few steps go further.

``coupling=independent`` is their I-CFM.  Larger batches couple better: ``--set batch=512``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.interpolant import Interpolant
from sfumato.recipes.recipe import Recipe
from sfumato.training import couplings
from sfumato.training.composition import Composition
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose
from sfumato.training.times import Uniform
from sfumato.training.velocity import velocity_loss


@final
@dataclass(frozen=True)
class Settings:
    """``coupling``: exact or independent."""

    coupling: str = "exact"
    network: Network = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="heun", grid="uniform", sampling_steps=10, guidance=2.0, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        choose("coupling", self.coupling, ("exact", "independent"))


def compose(settings: Settings, net: Any) -> Composition:
    """The straight path between coupled ends, and a network that predicts its velocity."""
    head = GaussianHead(Interpolant(schedules.get("flow")), "flow")
    return Composition(Preconditioned(net, head), Uniform(), velocity_loss, couplings.get(settings.coupling))


RECIPE = Recipe(
    name="ot-cfm",
    title="OT-CFM: the straight path between ends joined by minibatch optimal transport",
    paper="Tong et al. 2023, arXiv 2302.00482",
    defaults=Settings(),
    compose=compose,
)
