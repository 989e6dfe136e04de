"""Faults of degradations, cold diffusion, heat dissipation and fitted priors."""

from __future__ import annotations

from mutants import Mutant

COLD, HEAT = "tests/test_cold.py", "tests/test_heat.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "cold: algorithm 1 in the place of algorithm 2",
        "processes/cold.py",
        "return x_t - at_t + at_s",
        "return at_s",
        (f"{COLD}::test_algorithm_2_is_exact_with_a_garbage_restorer_and_algorithm_1_is_not",),
    ),
    Mutant(
        "cold: the restored image is degraded to t twice",
        "processes/cold.py",
        "self.degrade(q.x, t), self.degrade(q.x, s)",
        "self.degrade(q.x, t), self.degrade(q.x, t)",
        (f"{COLD}::test_both_algorithms_are_exact_with_a_perfect_restorer",),
    ),
    Mutant(
        "cold: squared error for the L1 norm",
        "processes/cold.py",
        "flat_sum((q.point() - x0).abs())",
        "flat_sum((q.point() - x0) ** 2)",
        (f"{COLD}::test_what_a_cold_process_has_not",),
    ),
    Mutant(
        "blur: widths add up, not variances",
        "degradations.py",
        "share * (self.width**2 / 2)",
        "share**2 * (self.width**2 / 2)",
        (f"{COLD}::test_blur_adds_up_in_variance",),
    ),
    Mutant(
        "heat: frequencies 2 pi k / n",
        "degradations.py",
        "frequency = math.pi / n",
        "frequency = 2 * math.pi / n",
        (f"{HEAT}::test_mode_factor", f"{HEAT}::test_a_point_becomes_a_gaussian"),
    ),
    Mutant(
        "heat: cosines at the pixels' edges",
        "degradations.py",
        "(2 * torch.arange(n) + 1), 2 * n)",
        "(2 * torch.arange(n)), 2 * n)",
        (f"{HEAT}::test_the_cosines_are_those_of_scipy",),
    ),
    Mutant(
        "pixelate: a rung is passed over",
        "degradations.py",
        "(1 - share) * seen(index) + share * seen(index + 1)",
        "(1 - share) * seen(index + 1) + share * seen(index + 1)",
        (f"{COLD}::test_a_degradation_begins_at_the_image_itself",),
    ),
    Mutant(
        "mask: the hole shrinks",
        "degradations.py",
        "(float(distance.max()) + reach) - reach",
        "(float(distance.max()) - reach) + reach",
        (f"{COLD}::test_the_hole_grows_around_its_centre_and_the_order_is_the_seeds_own",),
    ),
    Mutant(
        "heat: a reverse step with the noise of the marginal",
        "processes/heat.py",
        "Normal(mean, (eta * q.delta) ** 2, self.space)",
        "Normal(mean, (eta * self.sigma) ** 2, self.space)",
        (f"{HEAT}::test_a_step_of_the_exact_model_costs_a_constant",),
    ),
    Mutant(
        "heat: the restored image is blurred to where it was",
        "processes/heat.py",
        "mean, kept = self.blurred(q.x, s), math.sqrt",
        "mean, kept = self.blurred(q.x, t), math.sqrt",
        (f"{HEAT}::test_a_restoration_steps_with_its_own_noise",),
    ),
    Mutant(
        "heat: sharp images are regressed",
        "processes/heat.py",
        "return flat_sum(self.blurred(q.point() - x0, s) ** 2)",
        "return flat_sum((q.point() - x0) ** 2)",
        (f"{HEAT}::test_a_step_of_the_exact_model_costs_a_constant",),
    ),
    Mutant(
        "heat: widths evenly spaced, not their logs",
        "processes/heat.py",
        "self.least * (self.greatest / self.least) ** share)",
        "self.least + (self.greatest - self.least) * share)",
        (f"{HEAT}::test_widths_are_the_papers_levels",),
    ),
    Mutant(
        "heat: guidance forgets the noise of a step",
        "processes/heat.py",
        "Restoration(Dirac.pool(laws, weights).x, laws[-1].delta)",
        "Restoration(Dirac.pool(laws, weights).x, laws[0].delta)",
        (f"{HEAT}::test_a_restoration_steps_with_its_own_noise",),
    ),
    Mutant(
        "a fitted prior forgets the class",
        "processes/fitted.py",
        "return law.given(cond) if isinstance(law, Mixture) else law",
        "return law",
        (f"{COLD}::test_sampling_starts_at_the_prior_of_the_class",),
    ),
    Mutant(
        "a fitted prior scales its covariances twice",
        "processes/fitted.py",
        "values.clamp(min=0).sqrt()[..., None, :]",
        "values.clamp(min=0)[..., None, :]",
        (f"{COLD}::test_the_fit_finds_the_law_of_every_class",),
    ),
    Mutant(
        "sampling starts below t = 1 from a prior of t = 1",
        "processes/fitted.py",
        "    if t != 1:\n        raise",
        "    if t > 1:\n        raise",
        (f"{COLD}::test_sampling_starts_at_the_prior_of_the_class",),
    ),
    Mutant(
        "sharpening divides by what is left, noise or not",
        "degradations.py",
        "left / (left**2 + noise**2)",
        "left / (left**2 + 1e-6)",
        (f"{COLD}::test_sharpening_is_the_best_linear_guess",),
    ),
    Mutant(
        "a network's output is the image, not what it lacks",
        "denoisers/restorers.py",
        "return self.believe(x_t + raw)",
        "return self.believe(raw)",
        (f"{COLD}::test_the_recipe_is_algorithm_2_and_the_l1_norm_of_what_the_network_adds",),
    ),
)
