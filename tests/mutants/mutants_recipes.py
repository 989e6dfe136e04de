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
        "Uniform(FIRST), BitsPerDim())",
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
    Mutant(
        "a run stopped before its first step forgets its teacher",
        "training/run.py",
        "if chosen.begin is not None and not checkpoints.steps_of(run):",
        "if False:",
        ("tests/test_reflow.py::test_a_run_stopped_before_its_first_step_begins_again_from_its_teacher",),
    ),
    Mutant(
        "guidance of a model that knows no null label",
        "training/sampling.py",
        "own = model.settings.sampling.guidance if knows_null else 1.0",
        "own = model.settings.sampling.guidance",
        ("tests/test_sampling_choices.py::test_without_label_dropout_labels_are_plain",),
    ),
    Mutant(
        "the optimised grid depends on the batch",
        "training/sampling.py",
        "tuple(model.classes[k % len(model.classes)] for k in range(MEASURED))",
        "tuple(job.label[k % job.n] for k in range(MEASURED))",
        ("tests/test_sampling_choices.py::test_the_optimised_grid_does_not_depend_on_the_batch",),
    ),
    Mutant(
        "rk45 goes on with a state that is not finite",
        "dormand_prince.py",
        "if not bool(torch.isfinite(error).all()):",
        "if False:",
        (f"{SOLVERS}::test_rk45_stops_at_a_state_that_is_not_finite",),
    ),
    Mutant(
        "adams from the data without its first step",
        "samplers/adams.py",
        "if tau == 0:",
        "if False:",
        (f"{SOLVERS}::test_every_solver_inverts_from_the_data",),
    ),
    Mutant(
        "a stage of Dormand and Prince misread",
        "dormand_prince.py",
        "(44 / 45, -56 / 15, 32 / 9)",
        "(44 / 45, -56 / 15, 31 / 9)",
        ("tests/test_checks_likelihood.py", "tests/test_checks_solvers.py"),
    ),
)
