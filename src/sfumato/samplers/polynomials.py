"""The mean of a polynomial over a step: the one formula behind every multistep solver.

The contract: on a step from ``r = 0`` to ``r = 1`` a function is known at some ``nodes``, and its mean is wanted under
a density of ``r``.  The polynomial through the nodes has the mean ``sum_j w_j f_j``; the weights depend on the density
through its moments ``m_k = E[r^k]`` alone, and sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def exponential_moments(z: float, count: int) -> list[float]:
    """``m_0 .. m_(count-1)`` of the density proportional to ``e^(z r)`` on [0, 1]; exact for every ``z``, 0 is flat.

    These are the phi functions of exponential integrators, normalised: ``m_1(z) = (phi_1(z) - phi_2(z)) / phi_1(z)``.
    """
    if abs(z) < 1:
        powers = [1.0]
        for j in range(1, 22):
            powers.append(powers[-1] * z / j)
        integrals = [math.fsum(p / (j + k + 1) for j, p in enumerate(powers)) for k in range(count)]
        return [value / integrals[0] for value in integrals]
    edge = -1 / math.expm1(-z) if z > -700 else 0.0  # e^z / integral of e^(z r), over z
    moments = [1.0]
    for k in range(1, count):  # by parts
        moments.append(edge - k * moments[-1] / z)
    return moments


def mean_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weight of the value at every node (all distinct) in the mean of the polynomial through them.

    ``moments``: ``m_0 ..`` of the density, as many as there are nodes.
    """
    weights = []
    for own in nodes:
        coefficients = [1.0]  # of the Lagrange polynomial of this node, lowest power first
        for other in nodes:
            if other != own:
                pairs = zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)
                coefficients = [(raised - other * kept) / (own - other) for raised, kept in pairs]
        weights.append(math.fsum(c * m for c, m in zip(coefficients, moments, strict=True)))
    return weights


def combine(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """``sum_j w_j v_j`` for weights that sum to 1: the last value and weighted differences to it."""
    last = total = values[-1]
    for weight, value in zip(weights[:-1], values[:-1], strict=True):
        total = total + weight * (value - last)
    return total
