"""From a raw network output to a belief: the only seam between networks and laws, one module for each kind of state.

* :mod:`~sfumato.denoisers.gaussian`: eps, x0, v, score, flow and EDM predictions, one table (exported here);
* :mod:`~sfumato.denoisers.tokens`: logits, scores and posteriors of tokens;
* :mod:`~sfumato.denoisers.manifold`: tangent vectors on manifolds;
* :mod:`~sfumato.denoisers.restorers`: clean images from degraded ones.
"""

from __future__ import annotations

from sfumato.denoisers import manifold, restorers, tokens
from sfumato.denoisers.gaussian import PREDICTIONS, Coefficients, GaussianHead, Preconditioned, express

__all__ = [
    "PREDICTIONS", "Coefficients", "GaussianHead", "Preconditioned", "express", "manifold", "restorers", "tokens",
]  # fmt: skip
