"""Faults in the flow family: interpolants, couplings, velocity regression, transport, reflow."""

from __future__ import annotations

from mutants import Mutant

FLOW = "tests/test_checks_flow.py"
REFLOW = "tests/test_reflow.py"
TOYS = "tests/test_toys.py"
PROCESSES = "tests/laws/test_process_laws.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "bridge noise without its square root",
        "processes/interpolant.py",
        "return self.sigma * torch.sqrt(t * (1 - t))",
        "return self.sigma * t * (1 - t)",
        (f"{FLOW}::test_regression_finds_the_exact_velocity",),
    ),
    Mutant(
        "bridge variance of sigma, not sigma squared",
        "processes/interpolant.py",
        "return self.sigma**2 * t * (1 - t)",
        "return self.sigma * t * (1 - t)",
        (f"{FLOW}::test_sb_cfm_trains_on_entropic_pairs_and_bridges",),
    ),
    Mutant(
        "fresh noise left out of the schedule",
        "processes/interpolant.py",
        "torch.sqrt(beta**2 + self.gamma.variance(t))",
        "torch.sqrt(beta**2 + 0 * self.gamma.variance(t))",
        (f"{PROCESSES}::test_interpolant",),
    ),
    Mutant(
        "a coupled path given an ancestral bridge",
        "processes/interpolant.py",
        "        if eta > 0:\n            self._refuse",
        "        if eta > 1:\n            self._refuse",
        (f"{FLOW}::test_a_coupled_path_is_no_markov_chain",),
    ),
    Mutant(
        "gamma' z left out of the target",
        "training/velocity.py",
        "target = target + narrow(path.dgamma, x0) * z",
        "target = target + 0 * narrow(path.dgamma, x0) * z",
        (f"{FLOW}::test_regression_finds_the_exact_velocity",),
    ),
    Mutant(
        "velocity with the ends exchanged",
        "training/velocity.py",
        "target = narrow(path.dalpha, x0) * x0 + narrow(path.dbeta, x0) * end",
        "target = narrow(path.dbeta, x0) * x0 + narrow(path.dalpha, x0) * end",
        (f"{FLOW}::test_gradient_of_conditional_flow_matching_is_that_of_flow_matching",),
    ),
    Mutant(
        "a given end is drawn anew",
        "training/velocity.py",
        "    if end is None:\n        end =",
        "    if rng is not None:\n        end =",
        (f"{FLOW}::test_ot_cfm_trains_on_optimal_pairs_of_every_class",),
    ),
    Mutant(
        "bridge loss unweighted",
        "training/velocity.py",
        "torch.sqrt(1 + path.dgamma**2)",
        "torch.sqrt(1 + 0 * path.dgamma**2)",
        (f"{FLOW}::test_the_bridge_loss_is_finite_and_bounded_at_both_ends",),
    ),
    Mutant(
        "pairs across labels",
        "training/couplings.py",
        "if label is None else label.cpu()",
        "if True else label.cpu()",
        (f"{FLOW}::test_pairs_are_made_within_labels_and_repeat",),
    ),
    Mutant(
        "Sinkhorn with sigma^2 for 2 sigma^2",
        "training/couplings.py",
        "entropic_plan(cost, 2 * self.sigma**2,",
        "entropic_plan(cost, self.sigma**2,",
        (f"{FLOW}::test_entropic_pairs_follow_the_plan",),
    ),
    Mutant(
        "plan short of its marginals",
        "training/couplings.py",
        "return plan + rows[:, None] * columns / missing if missing > 0 else plan",
        "return plan",
        (f"{FLOW}::test_entropic_plan",),
    ),
    Mutant(
        "distances for squared distances",
        "training/couplings.py",
        "- 2 * a @ b.mT).clamp(min=0)",
        "- 2 * a @ b.mT).clamp(min=0).sqrt()",
        (f"{TOYS}::test_toy_distances",),
    ),
    Mutant(
        "transposed permutation",
        "training/couplings.py",
        "return exact_plan(cost).argmax(1)",
        "return exact_plan(cost).argmax(0)",
        (f"{FLOW}::test_the_exact_plan_is_optimal_and_uses_every_draw_once",),
    ),
    Mutant(
        "OT-CFM without its coupling",
        "recipes/ot_cfm.py",
        "velocity_loss, couplings.get(settings.coupling))",
        "velocity_loss)",
        (f"{FLOW}::test_ot_cfm_trains_on_optimal_pairs_of_every_class",),
    ),
    Mutant(
        "SB-CFM without its coupling",
        "recipes/sb_cfm.py",
        "velocity_loss, coupling)",
        "velocity_loss)",
        (f"{FLOW}::test_sb_cfm_trains_on_entropic_pairs_and_bridges",),
    ),
    Mutant(
        "interpolant without fresh noise",
        "recipes/interpolant.py",
        'bump = None if settings.bump == "none" else',
        'bump = None if settings.bump != "none" else',
        (f"{FLOW}::test_recipes_are_what_they_name", f"{FLOW}::test_interpolant_trains_on_its_path"),
    ),
    Mutant(
        "energy of a trapezium, not of the solver",
        "metrics/transport.py",
        "energy = energy - h / 9 * (2 * squares[0] + 3 * squares[1] + 4 * squares[2])",
        "energy = energy - h * squares[0]",
        (f"{FLOW}::test_rectified_flow_of_gaussians",),
    ),
    Mutant(
        "path energy relative to itself",
        "metrics/transport.py",
        "return abs(energy - w2_squared) / w2_squared",
        "return abs(energy - w2_squared) / energy",
        (f"{FLOW}::test_normalised_path_energy_of_gaussians",),
    ),
    Mutant(
        "modes of standard deviation .316",
        "data/toys.py",
        "centres, math.sqrt(0.1))",
        "centres, 0.1)",
        (f"{TOYS}::test_toy_definitions",),
    ),
    Mutant(
        "distillation at all times",
        "recipes/reflow.py",
        '"distill": AtOne()',
        '"distill": Uniform()',
        (f"{REFLOW}::test_distillation_is_trained_for_one_step",),
    ),
    Mutant(
        "reflow from fresh weights",
        "recipes/reflow.py",
        "    begin=begin,\n",
        "",
        (f"{REFLOW}::test_a_reflow_run_starts_from_its_teacher_and_teaches_the_next",),
    ),
    Mutant(
        "every round on the same noise",
        "training/pairs.py",
        'mix(seed, "pairs", weights) >> 1',
        'mix(seed, "pairs") >> 1',
        (f"{REFLOW}::test_a_reflow_run_starts_from_its_teacher_and_teaches_the_next",),
    ),
)
