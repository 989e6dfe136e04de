"""The coefficients of Dormand and Prince's 5(4) pair, for every integrator that sizes its own steps.

The contract: stage ``k`` lies at ``NODES[k]`` of the step and starts from ``y + h sum_j STAGES[k][j] f_j``; the last
stage is the fifth-order result itself, so it is the first one of the next step; ``h sum_j ERROR[j] f_j`` is its
difference from the fourth-order result (Dormand and Prince 1980, table 2; Hairer, Norsett and Wanner 1993, II.5).
"""

from __future__ import annotations

NODES: tuple[float, ...] = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR: tuple[float, ...] = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
