"""Faults of likelihoods, bounds, weightings, score matching and learned variance."""

from __future__ import annotations

from mutants import Mutant

LIKELIHOOD = "tests/test_checks_likelihood.py"
OBJECTIVES = "tests/test_objectives.py"
EXACT = (f"{LIKELIHOOD}::test_the_exact_prior_gives_the_exact_likelihood",)
WEIGHTS = (f"{OBJECTIVES}::test_a_weighting_means_the_same_for_every_prediction",)
RANGE = (f"{OBJECTIVES}::test_the_variance_is_interpolated_between_beta_tilde_and_beta",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "flow: divergence without its linear part",
        "likelihood/ode.py",
        "rate = found - dof[rows] * torch.tanh(levels)",
        "rate = found",
        EXACT,
    ),
    Mutant(
        "flow: the prior's change of units forgotten",
        "likelihood/ode.py",
        "dof * (math.log(radius) + math.log(math.tanh(start)))",
        "dof * math.log(math.tanh(start))",
        (f"{LIKELIHOOD}::test_the_exact_prior_gives_the_exact_likelihood[karras]",),
    ),
    Mutant(
        "flow: the data's change of units forgotten",
        "likelihood/ode.py",
        "dof * (math.log(radius) + math.log(math.tanh(start)))",
        "dof * math.log(radius)",
        (f"{LIKELIHOOD}::test_noise_is_convolved_with_the_data",),
    ),
    Mutant(
        "Runge-Kutta: a wrong stage weight",
        "dormand_prince.py",
        "(9017 / 3168, -355 / 33,",
        "(9017 / 3168, -355 / 32,",
        EXACT,
    ),
    Mutant(
        "Runge-Kutta: one step size for the batch",
        "dormand_prince.py",
        "size[rows] = h *",
        "size[rows] = h.abs().min() * h.sign() *",
        (f"{LIKELIHOOD}::test_a_sample_does_not_depend_on_its_batch",),
    ),
    Mutant(
        "Hutchinson: probes summed, not averaged",
        "likelihood/trace.py",
        "for probe in v.unbind(1)]), 1 / self.count",
        "for probe in v.unbind(1)]), 1.0",
        (f"{LIKELIHOOD}::test_probes_lower_the_variance",),
    ),
    Mutant(
        "Hutchinson: signs of the wrong size",
        "likelihood/trace.py",
        "v = 1 - 2 * (as_rng(rng)",
        "v = 1 - 1.9 * (as_rng(rng)",
        (f"{LIKELIHOOD}::test_signs_are_exact_for_a_diagonal_jacobian",),
    ),
    Mutant(
        "bits: bins of the range over 256",
        "processes/decoder.py",
        "return (self.high - self.low) / (self.count - 1)",
        "return (self.high - self.low) / self.count",
        (f"{LIKELIHOOD}::test_bits_of_256_levels_on_minus_1_to_1_are_offset_by_7",),
    ),
    Mutant(
        "bits: the bin's width the wrong way round",
        "likelihood/bits.py",
        "- math.log2(levels.width)",
        "+ math.log2(levels.width)",
        (f"{LIKELIHOOD}::test_bits_of_256_levels_on_minus_1_to_1_are_offset_by_7",),
    ),
    Mutant(
        "decoder: closed lowest bin",
        "processes/decoder.py",
        "torch.where(index == 0, -math.inf,",
        "torch.where(index < 0, -math.inf,",
        (f"{LIKELIHOOD}::test_the_decoder_sums_to_one",),
    ),
    Mutant(
        "decoder: whole width to either side",
        "processes/decoder.py",
        "(centre + self.levels.width / 2) / std",
        "(centre + self.levels.width) / std",
        (f"{LIKELIHOOD}::test_the_decoder_sums_to_one",),
    ),
    Mutant(
        "bound: the continuous weight in the wrong variable",
        "likelihood/vlb.py",
        "(torch.sinh(where) * torch.cosh(where))",
        "torch.sinh(where) ** 2",
        (f"{LIKELIHOOD}::test_the_continuous_bound_is_the_integral_of_the_rate",),
    ),
    Mutant(
        "bound: some steps not scaled to all",
        "likelihood/vlb.py",
        "total * (inner / max(len(chosen), 1))",
        "total",
        (f"{LIKELIHOOD}::test_some_steps_estimate_all_of_them",),
    ),
    Mutant(
        "bound: L_0 dropped",
        "likelihood/vlb.py",
        "return self.prior + self.diffusion + self.reconstruction",
        "return self.prior + self.diffusion",
        (f"{LIKELIHOOD}::test_the_bound_of_256_level_data_is_its_entropy_or_more",),
    ),
    Mutant(
        "weighting applied to the network's own loss",
        "training/weightings.py",
        "t.double(), 1 / denoiser.head.weight(t.double()))",
        "t.double(), torch.ones_like(t.double()))",
        WEIGHTS,
    ),
    Mutant(
        "truncated SNR truncates above",
        "training/weightings.py",
        "ratio.clamp(min=1.0)",
        "ratio.clamp(max=1.0)",
        WEIGHTS,
    ),
    Mutant(
        "sigmoid of the log-SNR mirrored",
        "training/weightings.py",
        "torch.sigmoid(level - bias)",
        "torch.sigmoid(bias - level)",
        WEIGHTS,
    ),
    Mutant(
        "EDM weight by sigma_data",
        "training/weightings.py",
        "ratio + sigma_data**-2",
        "ratio + sigma_data**2",
        WEIGHTS,
    ),
    Mutant(
        "denoising score of the wrong sign",
        "training/score_matching.py",
        "t) + eps / sigma) ** 2",
        "t) - eps / sigma) ** 2",
        (f"{OBJECTIVES}::test_all_score_matching_has_one_gradient",),
    ),
    Mutant(
        "sliced score without its trace",
        "training/score_matching.py",
        "loss: Tensor = sum(curvature for _, curvature in slices) / len(slices) + flat_sum(s**2) / 2",
        "loss: Tensor = flat_sum(s**2) / 2",
        (f"{OBJECTIVES}::test_all_score_matching_has_one_gradient",),
    ),
    Mutant(
        "learned variance: linear in the variance",
        "training/hybrid.py",
        "share = torch.expm1(u * span) / torch.expm1(span)",
        "share = u + 0 * span",
        RANGE,
    ),
    Mutant(
        "learned variance: v in [0, 1]",
        "training/hybrid.py",
        "u = (v + 1) / 2\n        span",
        "u = v\n        span",
        RANGE,
    ),
    Mutant(
        "learned variance: beta-tilde of step 1 not clipped to step 2's",
        "training/hybrid.py",
        "clipped = (sigma_2**2 - (alpha_2 / alpha_1 * sigma_1) ** 2) * (sigma_1 / sigma_2) ** 2",
        "clipped = sigma_1**2 / 2",
        RANGE,
    ),
    Mutant(
        "hybrid: the bound moves the mean",
        "training/hybrid.py",
        "(output.detach(), log_var), x0",
        "(output, log_var), x0",
        (f"{OBJECTIVES}::test_the_bound_does_not_move_the_mean",),
    ),
    Mutant(
        "loss-aware steps without their weights",
        "training/hybrid.py",
        "return k + 1, 1 / (len(p) * p[k])",
        "return k + 1, torch.ones_like(p[k])",
        (f"{OBJECTIVES}::test_steps_are_drawn_by_the_root_mean_square_of_their_last_losses",),
    ),
    Mutant(
        "loss-aware steps by the mean square",
        "training/hybrid.py",
        ".square().mean(1).sqrt()",
        ".square().mean(1)",
        (f"{OBJECTIVES}::test_steps_are_drawn_by_the_root_mean_square_of_their_last_losses",),
    ),
)
