"""Data whose every posterior is known: Gaussians, Gaussian mixtures, finite data sets.

The contract: every oracle gives, for any Gaussian process and at every time, ``logp``, ``score``, ``mean`` (of the
posterior), ``covariance``, ``velocity``, the exact ``flow``, and two perfect models: ``denoiser(process)``, a point
prediction, and ``posterior(process)``, the whole law.  With a perfect model every error left is the algorithm's.
"""

from sfumato.oracles.chains import ChainPosterior, EnumerableChain, dirichlet, staircase, total_variation
from sfumato.oracles.common import LawDenoiser, Oracle, PointDenoiser
from sfumato.oracles.coupled import CoupledGaussian, bridge_covariance
from sfumato.oracles.empirical import Atoms, Empirical
from sfumato.oracles.gaussian import Gaussian
from sfumato.oracles.graphs import EnumerableGraph, invariant
from sfumato.oracles.manifolds import ManifoldAtoms, ManifoldData
from sfumato.oracles.mixture import GaussianMixture, MixturePosterior

__all__ = [
    "Atoms",
    "ChainPosterior",
    "CoupledGaussian",
    "Empirical",
    "EnumerableChain",
    "EnumerableGraph",
    "Gaussian",
    "GaussianMixture",
    "LawDenoiser",
    "ManifoldAtoms",
    "ManifoldData",
    "MixturePosterior",
    "Oracle",
    "PointDenoiser",
    "bridge_covariance",
    "dirichlet",
    "invariant",
    "staircase",
    "total_variation",
]
