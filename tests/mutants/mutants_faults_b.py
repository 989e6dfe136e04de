"""Faults of what samples and measures: float64 on devices, thresholds, shared options, transport, energies, orders."""

from __future__ import annotations

from mutants import Mutant

PRECISION = "tests/test_precision.py"
CHOICES = "tests/test_sampling_choices.py"
CLI = "tests/test_cli.py"
REFLOW = "tests/test_reflow.py"
ENERGY = ("tests/test_energy.py::test_log_densities_are_those_of_the_score",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a device without float64 is asked for it",
        "trees.py",
        "return x.to(precise_device(x)).double()",
        "return x.double()",
        (PRECISION,),
    ),
    Mutant(
        "the decoder's mean turned to float64 where it is",
        "processes/decoder.py",
        "mean = precise(self.mean)",
        "mean = self.mean.double()",
        (f"{PRECISION}::test_the_decoder",),
    ),
    Mutant(
        "the bound summed in float64 on the device",
        "likelihood/vlb.py",
        "total = torch.zeros(b, dtype=torch.float64, device=precise_device(x0))\n    chosen",
        "total = torch.zeros(b, dtype=torch.float64, device=x0.device)\n    chosen",
        (f"{PRECISION}::test_bounds",),
    ),
    Mutant(
        "the reconstruction of a variational model in float64 on the device",
        "training/variational.py",
        "x0, eps = precise(x0), precise(eps)",
        "x0, eps = x0.double(), eps.double()",
        (f"{PRECISION}::test_variational_training",),
    ),
    Mutant(
        "a dynamic threshold about 0, whatever the range",
        "guidance/thresholds.py",
        "return dynamic(quantile, (high - low) / 2, (high + low) / 2)",
        "return dynamic(quantile, (high - low) / 2)",
        (f"{CHOICES}::test_a_threshold_is_built_for_the_range_of_the_data",),
    ),
    Mutant(
        "a run's own threshold forgotten",
        "training/sampling.py",
        'asked or (own.threshold if own.clip else "none")',
        'asked or ("static" if own.clip else "none")',
        (f"{CHOICES}::test_a_threshold_is_a_setting_of_training",),
    ),
    Mutant(
        "an asked-for threshold not applied",
        "training/sampling.py",
        'if job.threshold == "none":',
        "if not model.settings.sampling.clip:",
        (f"{CHOICES}::test_a_run_is_sampled_with_its_threshold_or_another",),
    ),
    Mutant(
        "compare leaves its weaker run out",
        "comparison/run.py",
        "autoguide=self.autoguide, threshold=self.threshold,",
        "threshold=self.threshold,",
        ("tests/test_compare.py::test_the_command_guides_by_another_run",),
    ),
    Mutant(
        "compare loads the run's usual average",
        "cli/verbs.py",
        'return load(run, weights="raw" if self.raw else "ema", ema=self.ema, device=self.device)',
        'return load(run, weights="raw" if self.raw else "ema", device=self.device)',
        ("tests/test_compare.py::test_the_command_guides_by_another_run",),
    ),
    Mutant(
        "one step with the slope the wrong way round",
        "metrics/transport.py",
        "return x1 - velocity(",
        "return x1 + velocity(",
        (f"{REFLOW}::test_one_step_of_a_normal_law_ends_at_its_mean",),
    ),
    Mutant(
        "straightness of any run",
        "metrics/transport.py",
        "    require_flow(model)\n",
        "",
        (f"{CLI}::test_transport_is_of_flows",),
    ),
    Mutant(
        "a noise-blind energy in the units of its input",
        "recipes/ncsnv2.py",
        "found: Tensor = -scale.flatten(1)[:, 0] * inner",
        "found: Tensor = -inner",
        ENERGY,
    ),
    Mutant(
        "an energy told the time for the noise number",
        "recipes/edm2.py",
        "return energy_of(self.net, x, self.noise(t), cond)",
        "return energy_of(self.net, x, t, cond)",
        ENERGY,
    ),
    Mutant(
        "UniPC declares what its interior steps would reach",
        "samplers/unipc.py",
        'return min(self.p + 1, 3) if self.corrector == "on" else min(self.p, 2)',
        'return self.p + 1 if self.corrector == "on" else self.p',
        ("tests/test_checks_solvers.py::test_unipc_converges_as_declared",),
    ),
    Mutant(
        "rk45 gives every sample the first one's time",
        "samplers/adaptive.py",
        "phi[seat])",
        "phi[:1].expand(len(x)))",
        ("tests/test_checks_solvers.py::test_rk45_is_the_same_on_any_grid_and_in_any_batch",),
    ),
)
