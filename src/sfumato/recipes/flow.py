"""Rectified flow, the same as flow matching with the straight (conditional optimal transport) path.

Liu, Gong, Liu 2022, "Flow Straight and Fast", https://arxiv.org/abs/2209.03003;
Lipman et al. 2022, "Flow Matching for Generative Modeling", https://arxiv.org/abs/2210.02747.

* path: ``x_t = (1 - t) x0 + t eps`` (time runs from data to noise here);
* loss (Liu et al., eq. 1): ``E |v_theta(x_t, t) - (eps - x0)|^2``, ``t`` uniform on (0, 1]; ``time_law=logit-normal``
  is the choice of Esser et al. 2024 (Stable Diffusion 3, section 3.1), https://arxiv.org/abs/2403.03206;
* ``shift``: their eq. 23 for large images, ``t`` replaced by ``shift t / (1 + (shift - 1) t)`` in training, and in the
  grid that is sampled on unless another is given; the path stays the same;
* sampling: an ODE solver from ``t = 1`` to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from sfumato import schedules
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.networks import AnyNetwork
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose, idle, require, resolve
from sfumato.training.times import LogitNormal, Shifted, TimeLaw, Uniform
from sfumato.training.weightings import OWN, weighted


@final
@dataclass(frozen=True)
class Settings:
    """``time_law``: uniform or logit-normal, the latter with ``time_mean`` and ``time_std``; ``shift``: of the times,
    towards the noise above 1; ``weighting``: of the loss over noise levels (:mod:`sfumato.training.weightings`), the
    network's own unless given."""

    time_law: str = "uniform"
    time_mean: float = idle(0.0, time_law="uniform")
    time_std: float = idle(1.0, time_law="uniform")
    shift: float = 1.0
    weighting: str = OWN
    network: AnyNetwork = Network()
    optimisation: Optimisation = Optimisation()
    sampling: Sampling = Sampling(sampler="heun", grid="uniform", sampling_steps=10, guidance=2.0, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        weighted(self.weighting)  # refuses what is unknown
        choose("time_law", self.time_law, ("uniform", "logit-normal"))
        require(self.time_std > 0, "time_std", self.time_std, "a positive number")
        require(self.shift > 0, "shift", self.shift, "a positive number; 1 is no shift")


def settle(given: Mapping[str, Any]) -> Settings:
    """The defaults: samples are drawn on a grid shifted as the training times are."""
    settings = resolve(Settings(), {"shift": given["shift"]} if "shift" in given else {})
    if settings.shift == 1:
        return settings
    return replace(settings, sampling=replace(settings.sampling, grid=f"shifted:shift={settings.shift}:rho=1"))


def compose(settings: Settings, net: Any) -> Composition:
    """The straight path, a network that predicts its velocity, and the chosen times, shifted."""
    laws: dict[str, TimeLaw] = {
        "uniform": Uniform(),
        "logit-normal": LogitNormal(settings.time_mean, settings.time_std),
    }
    process = Gaussian(schedules.get("flow"))
    denoiser = Preconditioned(net, GaussianHead(process, "flow"))
    return Composition(denoiser, Shifted(laws[settings.time_law], settings.shift), weighted(settings.weighting))


RECIPE = Recipe(
    name="flow",
    title="rectified flow: the straight path, velocity prediction",
    paper="Liu et al. 2022, arXiv 2209.03003",
    defaults=Settings(),
    compose=compose,
    also=("table", "series"),
    settle=settle,
)
