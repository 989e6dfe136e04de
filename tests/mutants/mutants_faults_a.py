"""Faults of settings, of watching and of pairs: a setting that does nothing, a number that is not what it says."""

from __future__ import annotations

from mutants import Mutant

SETTINGS = "tests/test_recipe_settings.py"
WATCHING = "tests/test_watching.py"
REFLOW = "tests/test_reflow.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "ncsn samples on other levels than it trains on",
        "recipes/ncsn.py",
        "sampling=replace(defaults.sampling, sampling_steps=ladder.levels)",
        "sampling=defaults.sampling",
        (f"{SETTINGS}::test_a_ladder_of_ones_own_is_walked_level_by_level",),
    ),
    Mutant(
        "ncsnv2 with the step size of the default ladder",
        "recipes/ncsnv2.py",
        "langevin_size(ladder.sigma_max, ladder.sigma_min, ladder.levels, steps)",
        "0.111",
        (f"{SETTINGS}::test_a_ladder_of_ones_own_is_walked_level_by_level",),
    ),
    Mutant(
        "ncsnv2 with five steps a level on any ladder",
        "recipes/ncsnv2.py",
        "blind_steps(ladder.sigma_max, ladder.sigma_min, ladder.levels)",
        "5",
        (f"{SETTINGS}::test_a_ladder_of_ones_own_is_walked_level_by_level",),
    ),
    Mutant(
        "idle settings pass",
        "training/run.py",
        "    refuse_idle(defaults, resolved, out=run,",
        "    dict(defaults=defaults, resolved=resolved, out=run,",
        (f"{SETTINGS}::test_a_setting_that_does_nothing_is_refused",),
    ),
    Mutant(
        "idle settings are refused at their defaults",
        "training/settings.py",
        "if now[field.name] != before[field.name] and other in now",
        "if other in now",
        (f"{SETTINGS}::test_defaults_are_never_refused",),
    ),
    Mutant(
        "a shift of training times that sampling does not follow",
        "recipes/flow.py",
        "    if settings.shift == 1:",
        "    if settings.shift:",
        (f"{SETTINGS}::test_a_shifted_flow_trains_and_samples_on_shifted_times",),
    ),
    Mutant(
        "times shifted the other way",
        "training/times.py",
        "self.shift * t / (1 + (self.shift - 1) * t)",
        "t / (self.shift + (1 - self.shift) * t)",
        (f"{SETTINGS}::test_a_shifted_flow_trains_and_samples_on_shifted_times",),
    ),
    Mutant(
        "a schedule without its settings",
        "recipes/ddpm.py",
        "schedules.get(name, **own)",
        "schedules.get(name)",
        (f"{SETTINGS}::test_ddpm_takes_the_schedules_of_its_followers",),
    ),
    Mutant(
        "one stream for a batch of validation",
        "training/validation.py",
        "Streams(self.seeds[part])",
        "Stream(0)",
        (f"{WATCHING}::test_the_held_out_loss_does_not_depend_on_the_batch",),
    ),
    Mutant(
        "one stream for every image of validation",
        "training/validation.py",
        '"validation stream", k)',
        '"validation stream")',
        (f"{WATCHING}::test_two_images_do_not_share_a_stream",),
    ),
    Mutant(
        "the level that arrived named for the one that was drawn",
        "training/hybrid.py",
        "return t if drawn is None else drawn.double() / self.steps",
        "return t",
        (f"{WATCHING}::test_the_level_named_is_the_one_that_the_loss_history_drew",),
    ),
    Mutant(
        "a loss plot that ends at 0",
        "training/pictures.py",
        "min(0.0, 1.1 * min((*train, *held_out)))",
        "0.0",
        (f"{WATCHING}::test_the_loss_plot_shows_negative_losses",),
    ),
    Mutant(
        "a wrapper that keeps the format to itself",
        "nets/delegated.py",
        "setattr(getattr(instance, self.part), self.name, value)",
        "vars(instance)[self.name] = value",
        (f"{WATCHING}::test_wrappers_hand_on_the_format_of_their_network",),
    ),
    Mutant(
        "pairs of any teacher",
        "training/pairs.py",
        "        made.require(read_json(path), folder)\n",
        "        pass\n",
        (f"{REFLOW}::test_part_made_pairs_remember_their_teacher",),
    ),
    Mutant(
        "a fresh start from another teacher than that of the pairs",
        "recipes/reflow.py",
        'made.require(read_json(run / "pairs.json"), run)',
        "pass",
        (f"{REFLOW}::test_a_run_does_not_resume_with_other_weights_of_its_teacher",),
    ),
    Mutant(
        "auto's rule without the guidance of the pairs",
        "training/pairs.py",
        "plan(teacher, 1, teacher.classes[0], guidance=guidance)",
        "plan(teacher, 1, teacher.classes[0], guidance=1.0)",
        (f"{REFLOW}::test_a_teacher_that_samples_by_auto",),
    ),
)
