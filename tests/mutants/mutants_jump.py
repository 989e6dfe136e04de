"""Faults in tokens: kernels, the jump process, heads, objectives, enumerable oracles."""

from __future__ import annotations

from mutants import Mutant

JUMP = "tests/test_jump.py"
OBJECTIVES = "tests/test_token_objectives.py"
DISCRETE = "tests/test_checks_discrete.py"
PROCESSES = "tests/laws/test_process_laws.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "the chance of a redraw onto itself left out",
        "processes/kernels.py",
        "kept = safe_log(r + (1 - r) * pi[x][..., None]).to(dtype)",
        "kept = safe_log(r + 0 * pi[x][..., None]).to(dtype)",
        (f"{JUMP}::test_the_bridge_lands_on_the_marginal_for_every_eta",),
    ),
    Mutant(
        "columns of the transposed kernel",
        "processes/kernels.py",
        "return safe_log(_take(self.matrix(r).mT, x)).to(dtype)",
        "return safe_log(_take(self.matrix(r), x)).to(dtype)",
        (f"{JUMP}::test_forward_and_bridge_are_one_joint_law",),
    ),
    Mutant(
        "a time that runs the rates twice",
        "processes/kernels.py",
        "for _ in range(halvings + 1):",
        "for _ in range(halvings + 2):",
        (f"{JUMP}::test_matrices_are_exponentials_and_keep_small_entries",),
    ),
    Mutant(
        "the bridge without noise stays too often",
        "processes/kernels.py",
        "torch.where(gone == 0, 0.0, (1 - earlier) /",
        "torch.where(gone == 0, 0.0, (1 - earlier * later) /",
        (f"{JUMP}::test_the_bridge_lands_on_the_marginal_for_every_eta",),
    ),
    Mutant(
        "rows that do not sum to zero pass",
        "processes/kernels.py",
        "sums.abs() - 1e-6 * rates",
        "sums.abs() - 1e6 * rates",
        (f"{JUMP}::test_refusals_are_one_line",),
    ),
    Mutant(
        "a gaussian over K distances, not all 2K - 1",
        "processes/kernels.py",
        "reach = torch.arange(1 - size, size, dtype=torch.float64)",
        "reach = torch.arange(0, size, dtype=torch.float64) + 0.5",
        (f"{DISCRETE}::test_d3pm_discretised_gaussian_is_the_paper",),
    ),
    Mutant(
        "a table's alpha squared taken for the signal",
        "processes/jump.py",
        "return Table.from_betas(1 - left**2, ",
        "return Table.from_betas(1 - left, ",
        (f"{DISCRETE}::test_d3pm_uniform_bound_of_one_token",),
    ),
    Mutant(
        "a bridge that forgets how x_t was reached",
        "processes/jump.py",
        "laws.append(origin + self._columns(x_t, _ratio(later, earlier), origin.dtype))",
        "laws.append(origin + 0 * self._columns(x_t, 0.5, origin.dtype).clamp(min=-9))",
        (f"{JUMP}::test_forward_and_bridge_are_one_joint_law",),
    ),
    Mutant(
        "a belief that is not conditioned on what is shown",
        "processes/jump.py",
        "return torch.where(ruled_out, -math.inf, torch.where(lost, 0.0, logq)), reach",
        "return torch.where(lost, 0.0, logq), reach",
        ("tests/test_tokens_fast.py::test_the_bridge_of_masks_is_that_of_their_rates",),
    ),
    Mutant(
        "a score entropy that misses its linear part",
        "processes/jump.py",
        "(torch.expm1(gap) - gap)",
        "(0 * torch.expm1(gap) - gap)",
        (f"{DISCRETE}::test_sedd_score_entropy_is_the_entropy_at_the_exact_score",),
    ),
    Mutant(
        "rates out of x_t in place of rates into it",
        "processes/jump.py",
        "speed = self.kernel.inflow(x_t) * _last(slope / alpha)",
        "speed = self.kernel.outflow(x_t) * _last(slope / alpha)",
        (f"{JUMP}::test_rate_is_the_limit_of_a_step_at_a_wrong_belief",),
    ),
    Mutant(
        "remasking without its way back",
        "processes/jump.py",
        "found: Tensor = flow + (eta * pace + noise) * reversal + noise * self.kernel.outflow(x_t)",
        "found: Tensor = flow + eta * pace * reversal + noise * self.kernel.outflow(x_t)",
        (f"{JUMP}::test_noise_on_top_leaves_every_marginal_as_it_is",),
    ),
    Mutant(
        "a padded site that counts",
        "spaces/tokens.py",
        "return 1.0 if self.real is None else",
        "return 1.0 if True else",
        (f"{JUMP}::test_padding_costs_nothing",),
    ),
    Mutant(
        "padding that may hold anything",
        "spaces/tokens.py",
        "return inside and (self.real is None or not",
        "return inside and (True or not",
        (f"{JUMP}::test_tokens_are_a_space",),
    ),
    Mutant(
        "the mask predicted",
        "denoisers/tokens.py",
        "return raw.masked_fill(forbidden, -math.inf).log_softmax(-1)",
        "return raw.masked_fill(forbidden & False, -math.inf).log_softmax(-1)",
        (f"{OBJECTIVES}::test_subs_never_predicts_the_mask_and_carries_shown_tokens_over",),
    ),
    Mutant(
        "shown tokens predicted anew",
        "denoisers/tokens.py",
        "return Categorical(torch.where((x_t == mask)[..., None], logp, shown), self.process.space)",
        "return Categorical(torch.where((x_t >= 0)[..., None], logp, shown), self.process.space)",
        (f"{OBJECTIVES}::test_subs_never_predicts_the_mask_and_carries_shown_tokens_over",),
    ),
    Mutant(
        "a score at the odds of the mask",
        "denoisers/tokens.py",
        "odds = beside(alpha / (1 - alpha) / (size - 1), x_t)",
        "odds = beside((1 - alpha) / alpha / (size - 1), x_t)",
        (f"{OBJECTIVES}::test_the_score_of_a_masked_site_is_its_belief_over_e_to_the_sigma_less_one",),
    ),
    Mutant(
        "one step of the bound, not T of them",
        "training/token_objectives.py",
        "return _per_token(process, self.steps * total, x0)",
        "return _per_token(process, total, x0)",
        (f"{OBJECTIVES}::test_objectives_agree_where_they_are_one",),
    ),
    Mutant(
        "masked tokens weighed by alpha' alone",
        "training/token_objectives.py",
        "weight = process.unmasking(t)",
        "weight = process.unmasking(t) * (1 - process.signal(t))",
        (f"{OBJECTIVES}::test_objectives_agree_where_they_are_one",),
    ),
    Mutant(
        "losses summed over sites, not per token",
        "training/token_objectives.py",
        "found: Tensor = loss / process.space.dof(x0).to(loss).clamp(min=1)",
        "found: Tensor = loss / process.space.dof(x0).to(loss).clamp(max=1)",
        (f"{OBJECTIVES}::test_objectives_agree_where_they_are_one",),
    ),
    Mutant(
        "a bound that averages its draws twice",
        "training/token_objectives.py",
        "rows.append((1 - start) / draws * process.rate(",
        "rows.append((1 - start) / draws**2 * process.rate(",
        (f"{OBJECTIVES}::test_the_bound_of_a_sample_is_unbiased",),
    ),
    Mutant(
        "a posterior of the prior alone",
        "oracles/chains.py",
        "weight = weight + reach[site].index_select(1, sequences[:, site])",
        "weight = weight + 0 * reach[site].index_select(1, sequences[:, site]).clamp(min=-9)",
        (f"{DISCRETE}::test_d3pm_absorbing_bounds_with_exact_marginals",),
    ),
)
