"""The laws of the library as a public kit: check your own schedule, process, denoiser or sampler with one call.

The contract: every ``check_*`` returns nothing of note when the law holds and raises ``AssertionError`` with one line
naming the law, the numbers and the tolerance when it does not.  The library's own tests call exactly these functions.

=====================  ===============================================================================================
``check_schedule``     exact ends, falling log-SNR, derivatives, inverse;  ``check_grid``: exactly n falling steps
``check_law``          densities, KL, tilt, pool against draws
``check_process``      bridge, forward, Markov joint, membership, closed forms, rate, ends;  ``check_elbo``: the entropy
``check_space``        membership, projection, dimension of noise;  ``check_manifold``: geodesics;  ``check_spread``,
                       ``check_isometry``: densities and symmetries of a manifold
``check_denoiser``     the protocol;  ``check_predictions``: one belief, six predictions
``check_training``     a small network reaches the oracle's loss: a ``Lesson`` says of what;  ``gaussian_lesson``
``check_sampler``      recovery, ends, streams, driver;  ``check_order``: measured order is declared order
``OwnTimes``           a scheduler of diffusers as a sampler, at its own times or, ``GivenTimes``, at ours;
                       ``diffusers_schedule``: its table as a schedule;  ``visits``: where its states really go
=====================  ===============================================================================================
"""

from sfumato.testing.adapters import GivenTimes, OwnTimes, diffusers_schedule, visits
from sfumato.testing.denoisers import check_belief_at_data, check_denoiser, check_predictions
from sfumato.testing.laws import check_law, check_pool, check_same_law
from sfumato.testing.models import MLP, Independent, OracleNet, Parts
from sfumato.testing.processes import (
    check_belief_bridge,
    check_bridge,
    check_coupling,
    check_elbo,
    check_ends_of_process,
    check_equivariance,
    check_markov,
    check_process,
    check_rate,
)
from sfumato.testing.samplers import (
    check_driver,
    check_ends,
    check_order,
    check_order_at_ends,
    check_recovery,
    check_same_path,
    check_sampler,
    check_streams,
    check_threads,
    log_snr_grid,
    measure_order,
    mode_weights,
)
from sfumato.testing.schedules import check_grid, check_schedule
from sfumato.testing.sigma_points import SigmaPoints
from sfumato.testing.spaces import check_isometry, check_manifold, check_space, check_spread
from sfumato.testing.statistics import columns, sliced_w2, slope, z_gap, z_mean
from sfumato.testing.training import Lesson, check_training, gaussian_lesson

__all__ = [
    "GivenTimes",
    "MLP",
    "Independent",
    "Lesson",
    "OracleNet",
    "OwnTimes",
    "Parts",
    "SigmaPoints",
    "check_belief_at_data",
    "check_belief_bridge",
    "check_bridge",
    "check_coupling",
    "check_denoiser",
    "check_driver",
    "check_elbo",
    "check_ends",
    "check_ends_of_process",
    "check_equivariance",
    "check_grid",
    "check_isometry",
    "check_law",
    "check_manifold",
    "check_markov",
    "check_order",
    "check_order_at_ends",
    "check_pool",
    "check_predictions",
    "check_process",
    "check_rate",
    "check_recovery",
    "check_same_law",
    "check_same_path",
    "check_sampler",
    "check_schedule",
    "check_space",
    "check_spread",
    "check_streams",
    "check_threads",
    "check_training",
    "columns",
    "diffusers_schedule",
    "gaussian_lesson",
    "log_snr_grid",
    "measure_order",
    "mode_weights",
    "sliced_w2",
    "slope",
    "visits",
    "z_gap",
    "z_mean",
]
