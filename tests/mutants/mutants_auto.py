"""Faults of the rule behind ``auto``, of its solver and grid, and of the adapters."""

from __future__ import annotations

from mutants import Mutant

AUTO, ADAPTERS = "tests/test_auto.py", "tests/test_adapters.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "the corrector is never applied",
        "samplers/adams.py",
        "if self.corrector and past.clocks:",
        "if self.corrector and not past.clocks:",
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
        "* (alpha_s + sigma_s), Moved",
        "* (alpha_t + sigma_t), Moved",
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
)
