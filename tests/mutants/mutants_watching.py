"""Faults of trackers, reports, hyper-parameter files and bake-offs."""

from __future__ import annotations

from mutants import Mutant

TRACKERS = "tests/test_trackers.py"
REPORT = "tests/test_report.py"
CONFIG = "tests/test_config_files.py"
BAKEOFF = "tests/test_bakeoff.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "trackers are told nothing",
        "training/monitor.py",
        "        self.trackers.line(line)\n",
        "",
        (f"{TRACKERS}::test_tensorboard_holds_what_the_log_holds",),
    ),
    Mutant(
        "a resumed run's later points stay",
        "watching/kinds.py",
        'again = {"purge_step": opening.step + 1} if opening.step else {}',
        "again: dict[str, int] = {}",
        (f"{TRACKERS}::test_tensorboard_holds_what_the_log_holds",),
    ),
    Mutant(
        "a resumed run begins another one elsewhere",
        "watching/trackers.py",
        "Opening(run, config, step, known.get(name))",
        "Opening(run, config, step, None)",
        (f"{TRACKERS}::test_wandb",),
    ),
    Mutant(
        "trackers stay open after a fault",
        "watching/trackers.py",
        "    finally:\n        trackers.close()\n",
        "    finally:\n        pass\n",
        (f"{TRACKERS}::test_trackers_are_finished_whatever_happens",),
    ),
    Mutant(
        "a tracker that failed is asked again",
        "watching/trackers.py",
        "                self.opened.remove(each)\n",
        "",
        (f"{TRACKERS}::test_a_tracker_that_fails_is_left_out_and_training_goes_on",),
    ),
    Mutant(
        "infinite losses are told",
        "watching/trackers.py",
        "if math.isfinite(value)}",
        "if value is not None}",
        (f"{TRACKERS}::test_what_is_no_finite_number_is_left_out",),
    ),
    Mutant(
        "pages are not escaped",
        "reports/page.py",
        "autoescape=True",
        "autoescape=False",
        (f"{REPORT}::test_every_word_is_escaped",),
    ),
    Mutant(
        "the title of a curve is not escaped",
        "reports/charts.py",
        "{escape(chart.title)}</title>",
        "{chart.title}</title>",
        (f"{REPORT}::test_every_word_is_escaped",),
    ),
    Mutant(
        "logarithmic axes are even",
        "reports/charts.py",
        "(math.log(u) if self.log else u for u in",
        "(u for u in",
        (f"{REPORT}::test_a_curve_can_be_read_back",),
    ),
    Mutant(
        "a long curve loses its end",
        "reports/charts.py",
        "kept = kept[::-1][::every][::-1]",
        "kept = kept[::every]",
        (f"{REPORT}::test_long_curves_keep_their_end",),
    ),
    Mutant(
        "the first grids stand for all",
        "reports/run.py",
        "[found[round(k * (n - 1) / (GRIDS - 1))] for k in range(GRIDS)]",
        "found[:GRIDS]",
        (f"{REPORT}::test_many_grids_are_thinned_to_first_and_last",),
    ),
    Mutant(
        "a report is written over another file",
        "reports/run.py",
        "if path.exists() and path.resolve()",
        "if False and path.resolve()",
        (f"{REPORT}::test_the_verb",),
    ),
    Mutant(
        "the file wins over the command line",
        "cli/config.py",
        "return Asked(options, how, first | second,",
        "return Asked(options, how, second | first,",
        (f"{CONFIG}::test_the_command_line_wins_and_it_is_said",),
    ),
    Mutant(
        "the horizon of a file stays beside another",
        "cli/config.py",
        "            options.pop(other)\n",
        "",
        (f"{CONFIG}::test_minutes_take_the_place_of_steps",),
    ),
    Mutant(
        "a run is repeated on data that changed",
        "cli/config.py",
        'return self.get("data") if self.data_spec is None else',
        'return self.get("data") if True else',
        (f"{CONFIG}::test_data_that_have_changed_are_not_the_run_s",),
    ),
    Mutant(
        "a setting given twice in a file: the last wins",
        "cli/config.py",
        "            if twice is not None:",
        "            if False:",
        (f"{CONFIG}::test_refusals",),
    ),
    Mutant(
        "a setting given in two ways: the last wins",
        "cli/config.py",
        "        if plain in found:",
        "        if False:",
        (f"{CONFIG}::test_refusals",),
    ),
    Mutant(
        "settings of one recipe go to all",
        "bakeoff/plan.py",
        "            own[head][name] = value",
        "            found[recipes[0]][name] = value",
        (f"{BAKEOFF}::test_teachers_come_first_and_settings_are_shared_out",),
    ),
    Mutant(
        "pupils before their teachers",
        "bakeoff/plan.py",
        "key=lambda entry: bool(entry.teacher)",
        "key=lambda entry: not entry.teacher",
        (f"{BAKEOFF}::test_teachers_come_first_and_settings_are_shared_out",),
    ),
    Mutant(
        "quality over time is of the final weights",
        "bakeoff/run.py",
        "records = self.measure(self._drawn(then, self.few))",
        "records = self.measure(self._drawn(model, self.few))",
        (f"{BAKEOFF}::test_quality_over_time_is_of_the_averages_as_they_were",),
    ),
    Mutant(
        "all recipes are sampled from seed 0",
        "bakeoff/run.py",
        "steps=steps, seed=self.terms.seed)",
        "steps=steps, seed=0)",
        (f"{BAKEOFF}::test_the_final_records_are_those_of_evaluate",),
    ),
    Mutant(
        "the time of a step is that of the line before it",
        "bakeoff/run.py",
        "return before[1] + (after[1] - before[1]) * (step - before[0]) / (after[0] - before[0])",
        "return before[1]",
        (f"{BAKEOFF}::test_seconds_of_a_step_lie_between_those_of_the_log",),
    ),
    Mutant(
        "other terms continue the same folder",
        "bakeoff/run.py",
        "            if before != after:\n",
        "            if False:\n",
        (f"{BAKEOFF}::test_another_bakeoff_needs_another_folder",),
    ),
    Mutant(
        "the worst comes first",
        "bakeoff/report.py",
        'sign = -1.0 if better == "higher" else 1.0',
        'sign = 1.0 if better == "higher" else -1.0',
        (f"{BAKEOFF}::test_the_best_comes_first",),
    ),
)
