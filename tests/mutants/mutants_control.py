"""Faults of control by gradients, of products, of the testing kit for tokens and tangents, and of refusals."""

from __future__ import annotations

from mutants import Mutant

CONTROL, RESTORING = "tests/test_control.py", "tests/laws/test_restoring_laws.py"
SPACES, LAWS, HEAT = "tests/laws/test_space_laws.py", "tests/laws/test_law_laws.py", "tests/test_heat.py"
PRODUCT, BAD = "tests/test_product_sampling.py", "tests/test_bad_text.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "control: the gradient in units of eps",
        "guidance/control.py",
        "narrow(sigma**2 / alpha, x_t) * slope",
        "narrow(sigma / alpha, x_t) * slope",
        (f"{CONTROL}::test_a_steered_belief_is_the_posterior_mean",),
    ),
    Mutant(
        "control: no account of the signal",
        "guidance/control.py",
        "narrow(sigma**2 / alpha, x_t) * slope",
        "narrow(sigma**2, x_t) * slope",
        (f"{CONTROL}::test_a_steered_belief_is_the_posterior_mean",),
    ),
    Mutant(
        "control: away from what is wanted",
        "guidance/control.py",
        "q.point().detach() + shift)",
        "q.point().detach() - shift)",
        (f"{CONTROL}::test_steered_sampling_follows_bayes",),
    ),
    Mutant(
        "control: no signal, and the quotient all the same",
        "guidance/control.py",
        "return t.clamp(max=latest) if torch.is_tensor(t) else min(t, latest)",
        "return t",
        (f"{CONTROL}::test_without_signal_the_limit_is_taken",),
    ),
    Mutant(
        "control: the belief at the time of the gradient",
        "guidance/control.py",
        "if formed is None or moment is not t else formed",
        "if formed is None else formed",
        (f"{CONTROL}::test_no_weight_is_the_model_itself",),
    ),
    Mutant(
        "control: every prediction evaluated twice",
        "guidance/control.py",
        "if formed is None or moment is not t else formed",
        "if True else formed",
        (f"{CONTROL}::test_a_prediction_costs_one_evaluation_a_step_and_a_state_no_more",),
    ),
    Mutant(
        "control: a gradient that flows on",
        "guidance/control.py",
        "return slope, tree_map(lambda v: v.detach(), q)",
        "return slope, None",
        (f"{CONTROL}::test_a_prediction_costs_one_evaluation_a_step_and_a_state_no_more",),
    ),
    Mutant(
        "control: one log-probability for all",
        "guidance/control.py",
        "if not torch.is_tensor(logp) or logp.shape != (len(x),):",
        "if not torch.is_tensor(logp):",
        (f"{CONTROL}::test_a_control_that_does_not_fit_is_refused_in_one_line",),
    ),
    Mutant(
        "control: steered at every time",
        "guidance/control.py",
        "if not self.when(t):",
        "if False:",
        (f"{CONTROL}::test_a_weight_is_a_power_of_the_verdict_in_the_gradient",),
    ),
    Mutant(
        "control: a law of several places becomes a point",
        "guidance/control.py",
        "if centre(q) is None:",
        "if False:",
        (f"{CONTROL}::test_beliefs_of_several_places_are_refused_and_their_points_are_not",),
    ),
    Mutant(
        "control: edges counted once",
        "guidance/control.py",
        "or not isinstance(self.process.space, Euclidean):",
        "or False:",
        (f"{CONTROL}::test_processes_without_a_free_score_are_refused",),
    ),
    Mutant(
        "a product's parts at each other's times",
        "processes/product.py",
        "moved(part, x_t[key], beliefs[key], t, s, eta)",
        "moved(part, x_t[key], beliefs[key], t, s / 2, eta)",
        (f"{PRODUCT}::test_coordinates_and_types_cost_one_network_call_a_step",),
    ),
    Mutant(
        "heat: more than all noise fresh",
        "processes/heat.py",
        "        if not 0 <= eta <= 1:",
        "        if not 0 <= eta:",
        (f"{HEAT}::test_a_share_of_noise_beyond_the_whole_is_refused",),
    ),
    Mutant(
        "Brownian bridges of more than all noise",
        "processes/brownian.py",
        "        if not 0 <= eta <= 1:",
        "        if not 0 <= eta:",
        (f"{SPACES}::test_a_share_of_noise_beyond_the_whole_is_refused",),
    ),
    Mutant(
        "a sphere of two points",
        "spaces/sphere.py",
        "    if d < 2:",
        "    if d < 1:",
        (f"{SPACES}::test_a_sphere_of_two_points_is_refused",),
    ),
    Mutant(
        "tokens: noise of the mask alone",
        "spaces/tokens.py",
        "(rng.uniform(tuple(like.shape)) * self.size).long()",
        "(rng.uniform(tuple(like.shape)) * (self.size - 1)).long()",
        (f"{SPACES}::test_space",),
    ),
    Mutant(
        "tokens: padded sites are drawn",
        "spaces/tokens.py",
        "return nearest if self.real is None else nearest * self.real.to(x.device)",
        "return nearest",
        (f"{SPACES}::test_space",),
    ),
    Mutant(
        "tangents pooled at the reference's weight",
        "laws/manifold.py",
        "total = total + against(weight, law.v) * law.v",
        "total = total + against(weight, law.v) * first.v",
        (f"{LAWS}::test_points_along_tangents",),
    ),
    Mutant(
        "cold: the bridge goes the way back twice",
        "processes/cold.py",
        "self.degrade(q.x, t), self.degrade(q.x, s)",
        "self.degrade(q.x, s), self.degrade(q.x, t)",
        (f"{RESTORING}::test_the_exact_posterior_recovers_the_images",),
    ),
    Mutant(
        "rows of rates that leak a little",
        "processes/kernels.py",
        "sums.abs() - 1e-6 * rates",
        "sums.abs() - 1e-3 * rates",
        (f"{BAD}::test_a_rate_matrix_whose_rows_do_not_sum_to_zero_is_refused_in_one_line",),
    ),
)
