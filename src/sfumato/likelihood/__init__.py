"""Likelihoods in nats and bits: the exact one of the probability-flow ODE, and evidence bounds."""

from sfumato.likelihood.bits import bits_per_dim, equal_noise, uniform_bits, uniform_dequantise
from sfumato.likelihood.evaluate import Likelihood, evaluate, measure, table
from sfumato.likelihood.ode import FlowLikelihood, log_prob
from sfumato.likelihood.trace import Exact, Hutchinson
from sfumato.likelihood.vlb import DataBound, continuous_bound, grid_bound, latent_log_prob, reconstruction
from sfumato.processes.decoder import Discretised, Levels

__all__ = [
    "DataBound", "Discretised", "Exact", "FlowLikelihood", "Hutchinson", "Levels", "Likelihood", "bits_per_dim",
    "continuous_bound", "equal_noise", "evaluate", "grid_bound", "latent_log_prob", "log_prob", "measure",
    "reconstruction", "table", "uniform_bits", "uniform_dequantise",
]  # fmt: skip
