"""EDM2: the magnitude-preserving network and its training rules.

Karras, Aittala, Lehtinen, Hellsten, Aila, Laine 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models", https://arxiv.org/abs/2312.02696, configuration G.

* process, preconditioning and loss of EDM; levels ``ln sigma ~ N(-0.4, 1)``; the network sees ``ln(sigma) / 4``;
* network: :class:`~sfumato.nets.mp_unet.MPUNet`, whose weights are directions;
* loss, eq. 21: ``lambda |D - x0|^2 / exp(u(sigma)) + u(sigma)`` with a learned ``u``: at its optimum ``exp(u)`` is the
  expected loss at that level, so every level pulls equally;
* Adam without weight decay and without clipping, rate constant after a warm-up, then ``1 / sqrt(step)``, eq. 67;
* averages of two widths are stored, those of any other are found afterwards: ``sfumato sample RUN --ema 0.15``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from sfumato import schedules
from sfumato.core import Cond
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.nets.bundle import Bundle
from sfumato.nets.energy import energy_of
from sfumato.nets.mp_layers import MPFourier, MPLinear
from sfumato.processes.gaussian import Gaussian
from sfumato.recipes.recipe import Recipe
from sfumato.training.composition import Composition
from sfumato.training.objectives import prediction_loss
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, require
from sfumato.training.times import LogNormalSigma


@final
@dataclass(frozen=True)
class Settings:
    """``p_mean``, ``p_std``: the law of ``ln sigma``; ``uncertainty``: Fourier features of ``u(sigma)``."""

    sigma_data: float = 0.5
    p_mean: float = -0.4
    p_std: float = 1.0
    sigma_max: float = 80.0
    uncertainty: int = 128
    network: Network = Network()
    optimisation: Optimisation = Optimisation(
        lr=5e-2, warmup=100, decay="inverse-sqrt", decay_step=500, clip_norm=1e6, snapshots=16
    )
    sampling: Sampling = Sampling(sampler="heun", grid="karras", sampling_steps=10, guidance=1.4, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        require(self.sigma_data > 0, "sigma_data", self.sigma_data, "a positive number")
        require(self.p_std > 0, "p_std", self.p_std, "a positive number")
        require(self.sigma_max > 0, "sigma_max", self.sigma_max, "a positive number")
        require(self.uncertainty >= 1, "uncertainty", self.uncertainty, "at least 1 feature")


@final
class Uncertainty(nn.Module):
    """``u``: a linear function of Fourier features of the noise number (section 2.2): the log of the expected loss."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fourier = MPFourier(features)
        self.linear = MPLinear(features, 1)

    def forward(self, noise: Tensor) -> Tensor:
        """``[b]`` from ``[b]``."""
        u: Tensor = self.linear(self.fourier(noise))[:, 0]
        return u


@final
@dataclass(frozen=True)
class Noise:
    """``ln(sigma / alpha) / 4``, finite at ``t = 0``: how the network and its uncertainty are told the level."""

    schedule: Any

    def __call__(self, t: Tensor) -> Tensor:
        """``[b]`` float32 from ``[b]``."""
        noise: Tensor = (schedules.log_snr(self.schedule, t) / -8).clamp(min=-10.0).float().to(t.device)
        return noise


@final
@dataclass(frozen=True)
class AtNoise:
    """A network that is given the time and asked with the noise number."""

    net: Any
    noise: Noise

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Any:
        """``net(x, ln(sigma) / 4, cond)``."""
        return self.net(x, self.noise(t), cond)

    def energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The network's energy, where it is the gradient of one."""
        return energy_of(self.net, x, self.noise(t), cond)


@final
@dataclass(frozen=True)
class UncertaintyLoss:
    """Equation 21 around the plain loss of the network's own target: ``loss / exp(u) + u``.

    In evaluation mode it is the plain loss, to be compared with that of other recipes.
    """

    uncertainty: Uncertainty
    noise: Noise

    def __call__(
        self,
        denoiser: Any,
        x0: Tensor,
        t: Tensor,
        cond: Cond | None,
        rng: Any = None,
        eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Tensor:
        """``[b]``."""
        loss = prediction_loss(denoiser, x0, t, cond, rng, eps, end)
        if not self.uncertainty.training:
            return loss
        u = self.uncertainty(self.noise(t).to(loss.device))
        weighted: Tensor = loss / u.exp() + u
        return weighted


def wrap(settings: Settings, net: Any) -> Bundle:
    """The network and its uncertainty."""
    return Bundle(net, uncertainty=Uncertainty(settings.uncertainty))


def compose(settings: Settings, net: Any) -> Composition:
    """EDM's denoiser around the network, log-normal noise levels, and the loss weighted by its uncertainty."""
    schedule = schedules.get("karras", sigma_max=settings.sigma_max)
    noise = Noise(schedule)
    head = GaussianHead(Gaussian(schedule), "edm", settings.sigma_data)
    times = LogNormalSigma(schedule, settings.p_mean, settings.p_std)
    return Composition(Preconditioned(AtNoise(net, noise), head), times, UncertaintyLoss(net.uncertainty, noise))


RECIPE = Recipe(
    name="edm2",
    title="EDM2: magnitude-preserving network, learned uncertainty, averages of any length",
    paper="Karras et al. 2024, arXiv 2312.02696",
    defaults=Settings(),
    compose=compose,
    net="mp-unet",
    wrap=wrap,
)
