"""Faults of metrics, extractors, drift, copies and the choice of the best checkpoint."""

from __future__ import annotations

from mutants import Mutant

PARITY = "tests/test_metrics_parity.py"
LOOK = "tests/test_metrics_extractors.py"
EVAL = "tests/test_metrics_eval.py"

MUTANTS = (
    Mutant(
        "a Fréchet error that forgets the shift of means",
        "metrics/distances.py",
        "influence = 2 * (y @ (own.mean - reference.mean)) + ",
        "influence = ",
        (f"{PARITY}::test_stated_errors_are_those_of_repeated_draws[frechet]",),
    ),
    Mutant(
        "pairs of a vector with itself",
        "metrics/kernels.py",
        "block[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = 0",
        "pass",
        (f"{PARITY}::test_kernel_distances_are_those_of_torchmetrics[400]",),
    ),
    Mutant(
        "the diagonal of the first block alone",
        "metrics/kernels.py",
        "torch.arange(first, first + len(rows))] = 0",
        "torch.arange(len(rows))] = 0",
        (f"{PARITY}::test_radial_distance_is_that_of_scikit_learns_kernels",),
    ),
    Mutant(
        "a radial kernel of twice the width",
        "metrics/kernels.py",
        "(square / (-2 * width**2)).exp_()",
        "(square / (-4 * width**2)).exp_()",
        (f"{PARITY}::test_kernels_are_those_of_scikit_learn",),
    ),
    Mutant(
        "a jackknife that leaves half of a vector's pairs in",
        "metrics/kernels.py",
        "(own.sum() - 2 * own)",
        "(own.sum() - own)",
        (f"{PARITY}::test_the_error_of_a_kernel_distance_is_that_of_leaving_each_vector_out",),
    ),
    Mutant(
        "blocks with one spread for all",
        "metrics/kernels.py",
        "float(values.std() / blocks**0.5)",
        "float(values.std())",
        (f"{PARITY}::test_kernel_distances_are_those_of_torchmetrics[100]",),
    ),
    Mutant(
        "coverage by generated balls",
        "metrics/manifolds.py",
        "torch.cdist(rows, generated) <= part[:, None]",
        "torch.cdist(rows, generated) <= radii(generated, k)",
        (f"{PARITY}::test_neighbourhoods_are_those_of_scikit_learn",),
    ),
    Mutant(
        "density that is not divided by k",
        "metrics/manifolds.py",
        "torch.cat(inside).double() / k",
        "torch.cat(inside).double()",
        (f"{PARITY}::test_neighbourhoods_are_those_of_scikit_learn",),
    ),
    Mutant(
        "a jackknife without its factor",
        "metrics/manifolds.py",
        "((g - 1) / g * (without",
        "(1 / g * (without",
        (f"{PARITY}::test_stated_errors_are_those_of_repeated_draws[sliced]",),
    ),
    Mutant(
        "directions that are not unit vectors",
        "metrics/sliced.py",
        "return torch.nn.functional.normalize(drawn, dim=1)",
        "return drawn",
        (f"{PARITY}::test_sliced_distance_of_a_shift",),
    ),
    Mutant(
        "inverse distribution functions that jump one value late",
        "metrics/sliced.py",
        "return width, (ends - 1) // m, (ends - 1) // n",
        "return width, (ends - m).clamp(min=0) // m, (ends - 1) // n",
        (f"{PARITY}::test_sliced_distance_is_that_of_pot[350]",),
    ),
    Mutant(
        "an inception score of all samples' mean prediction",
        "metrics/scores.py",
        "p.mean(0).log()",
        "log_p.exp().mean(0).log()",
        (f"{PARITY}::test_inception_score_is_that_of_torchmetrics",),
    ),
    Mutant(
        "a MobileNet without its bound of 6",
        "metrics/mobilenet.py",
        "inner.clamp_(0, 6) if c.bounded",
        "inner.relu_() if c.bounded",
        (f"{LOOK}::test_a_mobilenet_block_is_its_unfolded_definition",),
    ),
    Mutant(
        "blocks that forget their input",
        "metrics/mobilenet.py",
        "        stride == 1 and into == out,",
        "        False,",
        (f"{LOOK}::test_mobilenet_has_the_shapes_of_its_paper",),
    ),
    Mutant(
        "average pools that count their padding",
        "metrics/inception.py",
        "count_include_pad=False",
        "count_include_pad=True",
        (f"{LOOK}::test_inception_is_torch_fidelitys",),
    ),
    Mutant(
        "a last block that pools by means",
        "metrics/inception.py",
        '"Mixed_7c", True)',
        '"Mixed_7c", False)',
        (f"{LOOK}::test_inception_is_torch_fidelitys",),
    ),
    Mutant(
        "kept features that forget the size of the images",
        "metrics/evaluate.py",
        "extractor.sha256, extractor.preparation(x), str",
        "extractor.sha256, str",
        (f"{LOOK}::test_features_of_heavy_extractors_are_kept",),
    ),
    Mutant(
        "grams without signs",
        "metrics/sequences.py",
        "sign = 1.0 - 2.0 *",
        "sign = 1.0 - 0.0 *",
        (f"{LOOK}::test_texts_are_measured_by_their_grams",),
    ),
    Mutant(
        "convolutions that see the units",
        "metrics/sequences.py",
        "found, z = [], centred(x)",
        "found, z = [], x",
        (f"{LOOK}::test_convolutions_tell_series_apart_and_do_not_see_their_units",),
    ),
    Mutant(
        "a change with the error of one side",
        "metrics/drift.py",
        "[_error(record) for record in (self.before, self.after)]",
        "[_error(record) for record in (self.before, self.before)]",
        (f"{EVAL}::test_a_change_has_the_error_of_both",),
    ),
    Mutant(
        "drift of records that were not measured alike",
        "metrics/drift.py",
        "Drift(then[name], now[name], _why(then[name], now[name]))",
        "Drift(then[name], now[name], None)",
        (f"{EVAL}::test_records_that_cannot_be_compared_say_why",),
    ),
    Mutant(
        "higher is always worse",
        "metrics/drift.py",
        'self.change if self.after.better == "lower" else -self.change',
        "self.change",
        (f"{EVAL}::test_a_change_has_the_error_of_both",),
    ),
    Mutant(
        "the panel shows the most original samples",
        "metrics/neighbours.py",
        ".argsort(stable=True)[:shown]",
        ".argsort(stable=True, descending=True)[:shown]",
        (f"{EVAL}::test_the_panel_shows_what_is_most_like_a_copy",),
    ),
    Mutant(
        "no warning of copies",
        "metrics/neighbours.py",
        "if rate > held_out + 3 * spread:",
        "if rate > held_out + 300 * spread:",
        (f"{EVAL}::test_warnings_of_copies_and_of_small_data",),
    ),
    Mutant(
        "the last checkpoint is the best",
        "metrics/watch.py",
        'better = self.best is None or (gain < 0 if record.better == "lower" else gain > 0)',
        "better = True",
        (f"{EVAL}::test_only_a_better_one_replaces_the_best",),
    ),
)
