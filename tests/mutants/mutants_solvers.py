"""One-line faults of the deterministic solvers; see :mod:`mutants`."""

from __future__ import annotations

from mutants import Mutant

CHECKS = "tests/test_checks_solvers.py"
PARITY = "tests/parity/test_deterministic.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a mean under the wrong exponential",
        "samplers/history.py",
        "NOISE = Axis(True, lambda t, here: here.lam, _log_snr_moments(-1.0))",
        "NOISE = Axis(True, lambda t, here: here.lam, _log_snr_moments(1.0))",
        (f"{CHECKS}::test_order_on_the_three_modes",),
    ),
    Mutant(
        "phi functions by a series one term short",
        "samplers/polynomials.py",
        "powers.append(powers[-1] * z / j)",
        "powers.append(powers[-1] * z / (j + 1))",
        (f"{CHECKS}::test_moments_and_weights_are_exact",),
    ),
    Mutant(
        "DPM-Solver-2 read at the mean",
        "samplers/exponential.py",
        "moment = 0.5 if self.p == 2",
        "moment = 0.5 if self.p == 0",
        (f"{CHECKS}::test_edm_solver_std",),
    ),
    Mutant(
        "DPM-Solver-3 with its second evaluation in the wrong place",
        "samplers/exponential.py",
        "3: (1 / 3, 2 / 3)",
        "3: (1 / 3, 1 / 2)",
        (f"{CHECKS}::test_order_on_the_three_modes",),
    ),
    Mutant(
        "3M whose first step stays of first order",
        "samplers/exponential.py",
        "return advance(DATA, 3, process, x, q.point(), t, s, carry, corrected=2)",
        "return advance(DATA, 3, process, x, q.point(), t, s, carry, corrected=0)",
        (f"{CHECKS}::test_two_names_of_one_solver",),
    ),
    Mutant(
        "3M without the factor 2, as published",
        "samplers/exponential.py",
        "return advance(DATA, 3, process, x, q.point(), t, s, carry, corrected=2)",
        "return advance(DATA, 3, process, x, q.point(), t, s, carry, corrected=2, rule=_published_parabola)",
        (f"{CHECKS}::test_order_on_the_three_modes",),
    ),
    Mutant(
        "UniC that corrects with the state it should replace",
        "samplers/history.py",
        "better = axis.step(process, past.x, clean, known,",
        "better = axis.step(process, x, clean, known,",
        (f"{CHECKS}::test_order_on_the_three_modes",),
    ),
    Mutant(
        "bh1 with the sign of h",
        "samplers/unipc.py",
        "-h / math.expm1(-h) / 2",
        "h / math.expm1(h) / 2",
        (f"{PARITY}::test_multistep",),
    ),
    Mutant(
        "LMS that gives up its order at the data",
        "samplers/history.py",
        "_flat_moments, to_data=True)",
        "_flat_moments, to_data=False)",
        (f"{CHECKS}::test_lms_std",),
    ),
    Mutant(
        "PLMS with a wrong coefficient",
        "samplers/multistep.py",
        "(55 / 24, -59 / 24, 37 / 24, -9 / 24)",
        "(55 / 24, -59 / 24, 36 / 24, -8 / 24)",
        (f"{CHECKS}::test_pndm_factor",),
    ),
    Mutant(
        "Runge-Kutta whose error is measured with another embedded method",
        "dormand_prince.py",
        "22 / 525, -1 / 40)",
        "22 / 525, 1 / 40)",
        (f"{CHECKS}::test_rk45_reaches_its_tolerance",),
    ),
    Mutant(
        "Runge-Kutta that shares its steps across the batch",
        "dormand_prince.py",
        "kept = error <= 1",
        "kept = (error <= 1).all().expand(len(error))",
        (f"{CHECKS}::test_rk45_is_the_same_on_any_grid_and_in_any_batch",),
    ),
    Mutant(
        "inversion down the grid",
        "samplers/inversion.py",
        "times = validate(grid)[::-1]",
        "times = validate(grid)",
        (f"{CHECKS}::test_ddim_inversion",),
    ),
)
