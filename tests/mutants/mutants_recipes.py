"""Faults of recipes: each loses what makes it that method."""

from __future__ import annotations

from mutants import Mutant

COMPOSED = "tests/test_recipe_compositions.py"
ROWS = f"{COMPOSED}::test_schedule_times_and_loss"
SOLVERS = "tests/test_sampler_compositions.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "ddpm on the cosine table", "recipes/ddpm.py", 'schedule: str = "linear"', 'schedule: str = "cosine"', (ROWS,)
    ),
    Mutant("ddpm predicts v", "recipes/ddpm.py", 'prediction: str = "eps"', 'prediction: str = "v"', (ROWS,)),
    Mutant("ddpm at uniform times", "recipes/ddpm.py", 'time_law: str = "steps"', 'time_law: str = "uniform"', (ROWS,)),
    Mutant("edm without preconditioning", "recipes/edm.py", '"edm", settings.sigma_data', '"eps", 1.0', (ROWS,)),
    Mutant(
        "flow predicts the noise",
        "recipes/flow.py",
        'GaussianHead(process, "flow")',
        'GaussianHead(process, "eps")',
        (ROWS,),
    ),
    Mutant("vp-sde on the sub-VP path", "recipes/vp_sde.py", 'schedules.get("vp"', 'schedules.get("sub-vp"', (ROWS,)),
    Mutant("subvp-sde on the VP path", "recipes/subvp_sde.py", 'schedules.get("sub-vp"', 'schedules.get("vp"', (ROWS,)),
    Mutant(
        "ve-sde predicts x0",
        "recipes/ve_sde.py",
        'GaussianHead(process, "eps")',
        'GaussianHead(process, "x0")',
        (ROWS,),
    ),
    Mutant(
        "vdm without its bound",
        "recipes/vdm.py",
        "Uniform(FIRST), BitsPerDim(Levels(-1.0, 1.0)))",
        "Uniform(FIRST))",
        (f"{COMPOSED}::test_vdm_is_the_bound_in_bits",),
    ),
    Mutant(
        "a predictor's history outlives the correction",
        "samplers/langevin.py",
        "carry, source)[0], carry",
        "carry, source)",
        (f"{SOLVERS}::test_the_predictor_goes_on_from_the_corrected_state",),
    ),
    Mutant(
        "restarts keep the interval's history",
        "samplers/restart.py",
        "        inner = leg.rest  # histories end at the interval's end\n",
        "",
        (f"{SOLVERS}::test_restarts_fit_every_solver",),
    ),
)
