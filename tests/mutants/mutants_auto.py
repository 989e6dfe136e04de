"""Faults of the rule behind ``auto``, of its solver and grid, and of the adapters."""

from __future__ import annotations

from mutants import Mutant

AUTO, ADAPTERS = "tests/test_auto.py", "tests/test_adapters.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "the corrector is never applied",
        "samplers/adams.py",
        "        if self.corrector and past.z is not None:",
        "        if False and past.z is not None:",
        (f"{AUTO}::test_adams_has_its_order", f"{AUTO}::test_adams_depends_on_the_path_not_on_the_schedule"),
    ),
    Mutant(
        "the corrector integrates from this step, not from the last",
        "samplers/adams.py",
        "clocks[-self.corrector :], clocks[-2], tau)",
        "clocks[-self.corrector :], clocks[0], tau)",
        (f"{AUTO}::test_adams_has_its_order",),
    ),
    Mutant(
        "the state is not rescaled at the end of a step",
        "samplers/adams.py",
        "tau, end) * (alpha_s + sigma_s)",
        "tau, end) * (alpha_t + sigma_t)",
        (f"{AUTO}::test_adams_of_one_velocity_is_ddim",),
    ),
    Mutant(
        "guidance is ignored by the rule",
        "samplers/auto.py",
        "g = max(1.0, guidance)",
        "g = 1.0",
        (f"{AUTO}::test_the_stairs_are_those_of_the_page",),
    ),
    Mutant(
        "the shift of a grid is ignored",
        "grids.py",
        "(shift * r / (1 - r)).log()",
        "(r / (1 - r)).log()",
        (f"{AUTO}::test_shifted_grid",),
    ),
    Mutant(
        "a scheduler is asked for a step too many",
        "testing/adapters.py",
        "        fresh = copy.deepcopy(self.scheduler)\n"
        "        fresh.set_timesteps(len(grid) - 1)\n        if self.begin",
        "        fresh = copy.deepcopy(self.scheduler)\n        fresh.set_timesteps(len(grid))\n        if self.begin",
        (f"{ADAPTERS}::test_a_pipeline_of_ddim_shrinks_a_gaussian_as_computed",),
    ),
    Mutant(
        "v is handed over with the wrong sign",
        "testing/adapters.py",
        "lambda: alpha * eps - sigma * x0",
        "lambda: sigma * x0 - alpha * eps",
        (f"{ADAPTERS}::test_every_prediction_type_is_one_belief",),
    ),
    Mutant(
        "the last steps extrapolate like the others",
        "samplers/adams.py",
        "used = 1 if ending else self.predictor",
        "used = self.predictor",
        (f"{AUTO}::test_adams_of_last_steps_alone_is_ddim_up_and_down",),
    ),
    Mutant(
        "all steps of a rising grid are its last",
        "samplers/adams.py",
        "ending = s < t <= past.ending or past.ending <= t < s",
        "ending = t <= past.ending",
        (f"{AUTO}::test_adams_of_last_steps_alone_is_ddim_up_and_down",),
    ),
    Mutant(
        "one last step too few",
        "samplers/adams.py",
        "grid[-1 - min(self.last, len(grid) - 1)]",
        "grid[-min(self.last, len(grid) - 1)]",
        (f"{AUTO}::test_a_last_step_of_first_order_leaves_two",),
    ),
)
