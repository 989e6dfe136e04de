"""Faults of schedules, measured grids and variational diffusion."""

from __future__ import annotations

from mutants import Mutant

SCHEDULES = "tests/laws/test_schedule_laws.py"
CHECKS = "tests/test_checks_schedules.py"
VDM = "tests/test_checks_vdm.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a square-root table from its .99 on",
        "schedules/tables.py",
        "alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - (time",
        "alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64) - 0.01, (1 - (time",
        ("tests/test_checks_schedules.py::test_the_square_root_table_is_its_formula_at_every_knot",),
    ),
    Mutant(
        "half the integral of beta",
        "schedules/continuous.py",
        "(beta_max - beta_min) * t**2 / 2",
        "(beta_max - beta_min) * t**2",
        (f"{CHECKS}::test_the_transition_is_that_of_the_sde",),
    ),
    Mutant(
        "sub-VP with VP's sigma",
        "schedules/continuous.py",
        "return torch.exp(-integral / 2), -torch.expm1(-integral)",
        "return torch.exp(-integral / 2), torch.sqrt(1 - torch.exp(-integral))",
        (f"{CHECKS}::test_the_transition_is_that_of_the_sde",),
    ),
    Mutant(
        "VE with the variance of the data end left in",
        "schedules/continuous.py",
        "torch.sqrt(torch.expm1(rate * t))",
        "torch.exp(rate * t / 2)",
        (f"{SCHEDULES}::test_schedule",),
    ),
    Mutant(
        "the flow's shift the wrong way",
        "schedules/continuous.py",
        "return (1 - t) / scale, self.shift * t / scale",
        "return self.shift * (1 - t) / scale, t / scale",
        (f"{CHECKS}::test_a_shift_of_the_flow_moves_the_log_snr",),
    ),
    Mutant(
        "rescale that keeps the last step",
        "schedules/tables.py",
        "(alpha - self._last) * (self._first",
        "(alpha - 0 * self._last) * (self._first",
        (f"{CHECKS}::test_zero_terminal_snr_keeps_the_first_step_and_loses_the_last",),
    ),
    Mutant(
        "levels one step late",
        "schedules/tables.py",
        "lower, upper = levels[(index - 1).clamp(min=0)], levels[index]",
        "lower, upper = levels[(index - 2).clamp(min=0)], levels[(index - 1).clamp(min=0)]",
        (f"{CHECKS}::test_levels_are_read_at_their_steps",),
    ),
    Mutant(
        "a measured density without its root",
        "grids.py",
        "** (1 / (2 * (order + 1)))",
        "** 1.0",
        (f"{CHECKS}::test_the_measured_grid_beats_fixed_ones",),
    ),
    Mutant(
        "a schedule whose shape descends the bound",
        "training/variational.py",
        "lambda gradient: gradient * factor",
        "lambda gradient: gradient * 1.0",
        (f"{VDM}::test_the_shape_descends_the_squared_loss_and_the_ends_the_bound",),
    ),
    Mutant(
        "a simple loss in place of the bound",
        "training/variational.py",
        "cast((high - low) * slope, error) * error / 2",
        "cast((high - low) * slope.detach() / slope.detach(), error) * error / 2",
        (f"{VDM}::test_the_bound_of_normal_data_is_its_entropy",),
    ),
    Mutant(
        "a network told the time",
        "training/variational.py",
        "self.predict(x, schedule.shape(schedule.inner(t.cpu().double())), cond)",
        "self.predict(x, schedule.inner(t.cpu().double()), cond)",
        (f"{VDM}::test_the_network_is_told_the_noise_level_and_not_the_time",),
    ),
    Mutant(
        "a decoder over the wrong spread",
        "training/variational.py",
        "spread = (levels.width / ratio) ** 2 / 2",
        "spread = (levels.width / ratio) ** 2",
        (f"{VDM}::test_the_decoder_is_a_law_over_the_grey_levels",),
    ),
    Mutant(
        "a prior term without its half",
        "training/variational.py",
        "torch.exp(-high).to(square.device) / 2",
        "torch.exp(-high).to(square.device)",
        (f"{VDM}::test_an_estimate_of_the_bound_is_its_three_terms",),
    ),
)
