"""The evidence bound of any process, from its bridge alone.

The contract: ``-log p(x0) <= KL(q(x_1|x0) || prior) + sum over the grid of KL(q(x_s|x_t,x0) || p(x_s|x_t))``, and the
last term (``s = 0``) is the reconstruction ``-log p(x0|x_t)``.  With the exact belief the expected sum is the entropy
of the data plus the KL of the prior, for every grid (Ho et al. 2020, eq. 5; Sohl-Dickstein et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch

from sfumato.core import RNG, Cond, Denoiser, Law, Process, Time
from sfumato.errors import Refusal
from sfumato.grids import validate
from sfumato.laws import Dirac
from sfumato.processes.fitted import Mixture
from sfumato.randomness import as_rng


def step_kl(process: Process[Any], q: Law[Any], x0: Any, x_t: Any, t: Time, s: Time) -> Any:
    """``KL(q(x_s|x_t,x0) || p(x_s|x_t))`` in nats, ``[b]``: the ELBO term of DDPM, improved DDPM, D3PM and products.

    At ``s = 0`` it is the reconstruction term ``-log p(x0|x_t)``; that needs a belief with a variance.
    """
    return process.bridge(x_t, Dirac(x0), t, s).kl(process.bridge(x_t, q, t, s))


def add_parts(terms: Any) -> Any:
    """The sum over parts of a per-part dict; a plain tensor as it is."""
    return sum(add_parts(term) for term in terms.values()) if isinstance(terms, dict) else terms


@final
@dataclass(frozen=True)
class Bound:
    """The evidence bound of every sample in nats: its terms (``diffusion`` has one row per step above 0) and total."""

    prior: torch.Tensor
    diffusion: torch.Tensor
    reconstruction: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """``prior + sum of diffusion + reconstruction``, shape ``[b]``."""
        return self.prior + self.diffusion.sum(0) + self.reconstruction


def _prior_term(end: Law[Any], prior: Law[Any], cond: Cond | None, rng: RNG) -> Any:
    """``KL(end || prior)`` in nats, ``[b]``; of a fitted mixture, where it has no closed form, ``log end - log prior``
    at a draw of ``end``, which is that on average: the prior of the condition's class."""
    if not isinstance(prior, Mixture):
        return end.kl(prior)
    own, drawn = prior.given(cond), end.draw(rng)
    nats: torch.Tensor = own.nll(drawn)
    return nats if isinstance(end, Dirac) else nats - end.nll(drawn)


def elbo(
    denoiser: Denoiser[Any], process: Process[Any], x0: Any, grid: Any, rng: Any, cond: Cond | None = None
) -> Bound:
    """One Monte Carlo estimate of the negative ELBO of ``x0`` on ``grid`` (any decreasing times that end in 0), in
    nats.

    Every term draws its own ``x_t`` from the marginal, and so does that of a fitted prior, whose KL has no closed form.
    Raises :class:`~sfumato.errors.Refusal` for a bad grid and for beliefs without a closed-form KL.
    """
    times, rng = validate(grid), as_rng(rng)
    if times[-1] != 0:
        raise Refusal(f"the grid ends at t={times[-1]:g}: a bound on the data needs a grid that ends in 0")
    prior = add_parts(_prior_term(process.marginal(x0, times[0]), process.prior(x0), cond, rng))
    terms = []
    for t, s in pairwise(times):
        x_t = process.marginal(x0, t).draw(rng)
        terms.append(add_parts(step_kl(process, denoiser(x_t, t, cond), x0, x_t, t, s)))
    diffusion = torch.stack(terms[:-1]) if len(terms) > 1 else torch.zeros((0, *terms[0].shape)).to(terms[0])
    return Bound(prior, diffusion, terms[-1])
