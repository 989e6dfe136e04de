"""How data is destroyed: each process is four laws (prior, marginal, forward, bridge) and two losses."""

from sfumato.processes.bound import Bound, elbo, step_kl
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.interpolant import Interpolant
from sfumato.processes.product import Product

__all__ = ["Bound", "Gaussian", "Interpolant", "Product", "elbo", "step_kl"]
