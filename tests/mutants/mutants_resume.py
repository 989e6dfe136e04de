"""One-line faults that resumed recipes notice; see :mod:`mutants`."""

from __future__ import annotations

from mutants import Mutant

RESUME = "tests/test_resume_recipes.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a resumed run forgets which steps' losses it has seen",
        "training/hybrid.py",
        'self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))',
        'self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64), persistent=False)',
        (f"{RESUME}::test_a_stopped_run_ends_as_the_whole_one",),
    ),
)
