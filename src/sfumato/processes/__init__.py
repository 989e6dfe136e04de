"""How data is destroyed: each process is four laws (prior, marginal, forward, bridge) and two losses."""

from sfumato.processes.blocks import Blocks
from sfumato.processes.bound import Bound, elbo, step_kl
from sfumato.processes.brownian import Brownian, Circles, Rotations
from sfumato.processes.cold import Cold
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.geodesic import Geodesic
from sfumato.processes.heat import Heat
from sfumato.processes.interpolant import Interpolant
from sfumato.processes.jump import Jump, survival
from sfumato.processes.kernels import (
    RankOne,
    RateMatrix,
    absorbing,
    discretised_gaussian,
    gaussian_matrix,
    marginal,
    uniform,
)
from sfumato.processes.mixed import Mixed
from sfumato.processes.product import Product

__all__ = [
    "Blocks", "Bound", "Brownian", "Circles", "Cold", "Gaussian", "Geodesic", "Heat", "Interpolant", "Jump", "Mixed",
    "Product", "RankOne", "RateMatrix", "Rotations", "absorbing", "discretised_gaussian", "elbo", "gaussian_matrix",
    "marginal", "step_kl", "survival", "uniform",
]  # fmt: skip
