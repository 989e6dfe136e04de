"""Faults of ``sfumato compare`` and of parts read from text."""

from __future__ import annotations

from mutants import Mutant

COMPARE = "tests/test_compare.py"
SPEC = "tests/test_spec.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "settings of a sampler read and dropped",
        "samplers/__init__.py",
        "    return get(name, **settings)\n\n\ndef names",
        "    return get(name)\n\n\ndef names",
        (f"{SPEC}::test_samplers_from_text",),
    ),
    Mutant(
        "settings of a grid read and dropped",
        "grids.py",
        "return partial(get(name), **settings)",
        "return get(name)",
        (f"{SPEC}::test_grids_from_text",),
    ),
    Mutant(
        "a setting given twice: the last wins",
        "spec.py",
        "if key in settings:",
        "if key in ():",
        (f"{SPEC}::test_refusals",),
    ),
    Mutant(
        "the reference always begins at t = 1",
        "comparison/ode.py",
        "float(job.times[0]), steps)",
        "1.0, steps)",
        (f"{COMPARE}::test_the_reference_begins_where_the_grid_begins",),
    ),
    Mutant(
        "all classes in turn whatever the held-out images are",
        "comparison/run.py",
        "asked = _labels(model, label, units.labels(loaded, model.classes, count))",
        "asked = _labels(model, label, list(model.classes) or None)",
        (f"{COMPARE}::test_labels_are_those_of_held_out_images_where_these_are_not_balanced",),
    ),
    Mutant(
        "the coarse solution is the reference",
        "comparison/ode.py",
        "return Reference(ends[1], rms(*ends)",
        "return Reference(ends[0], rms(*ends)",
        (f"{COMPARE}::test_the_reference_is_the_exact_solution_and_knows_its_error",),
    ),
    Mutant(
        "the reference's error is zero",
        "comparison/ode.py",
        "rms(*ends), nfe",
        "0.0 * rms(*ends), nfe",
        (f"{COMPARE}::test_the_reference_is_the_exact_solution_and_knows_its_error",),
    ),
    Mutant(
        "model units for grey levels",
        "comparison/ode.py",
        "grey = 255 / (high - low)",
        "grey = 1.0",
        (f"{COMPARE}::test_the_distance_is_the_distance_to_the_closed_form",),
    ),
    Mutant(
        "stochastic samplers get a distance to the ODE",
        "comparison/ode.py",
        "for job in jobs if job.sampler.order is None",
        "for job in jobs if job.sampler.order == -1",
        (f"{COMPARE}::test_ode_refusals",),
    ),
    Mutant(
        "cells of other weights continued",
        "comparison/run.py",
        '"weights_sha256": _weights(model),',
        '"weights_sha256": "",',
        (f"{COMPARE}::test_other_weights_go_into_another_folder",),
    ),
    Mutant(
        "finished cells drawn again",
        "comparison/run.py",
        "waiting = [job for job in jobs if _key(job) not in cells]",
        "waiting = list(jobs)",
        (f"{COMPARE}::test_finished_cells_are_not_drawn_again",),
    ),
    Mutant(
        "what is done is lost on Ctrl-C",
        "comparison/run.py",
        "        so_far().save(folder)\n        kept",
        "        empty.save(folder)\n        kept",
        (f"{COMPARE}::test_ctrl_c_keeps_what_is_done_and_the_same_command_continues",),
    ),
    Mutant(
        "the front ignores the direction of a metric",
        "comparison/result.py",
        'sign = -1.0 if next(r for r in self.records if r.name == metric).better == "higher" else 1.0',
        "sign = 1.0",
        (f"{COMPARE}::test_the_best_cells_are_the_pareto_front",),
    ),
    Mutant(
        "every cell from other noise",
        "comparison/run.py",
        "grid=grid, seed=self.seed, autoguide",
        "grid=grid, seed=self.seed + len(found), autoguide",
        (
            f"{COMPARE}::test_a_cell_is_what_sampling_and_evaluating_give",
            f"{COMPARE}::test_all_samplers_start_from_the_same_noise",
        ),
    ),
)
