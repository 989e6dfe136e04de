"""One-line faults of the samplers of tokens, of temperature and of prompts; see :mod:`mutants`."""

from __future__ import annotations

from mutants import Mutant

SAMPLERS = "tests/test_jump_samplers.py"
DECODING = "tests/test_token_decoding.py"
PROMPTS = "tests/test_prompts.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "tau-leaping that takes the first of several jumps",
        "samplers/jump.py",
        "        return _law(means * (-means.sum(-1, keepdim=True)).exp(), x, process)\n\n    def step",
        "        return _law(means * (-torch.expm1(-means.sum(-1, keepdim=True)) / means.sum(-1, keepdim=True)), x, "
        "process)\n\n    def step",
        (f"{SAMPLERS}::test_the_chance_of_one_jump_and_no_other",),
    ),
    Mutant(
        "corrections without the reversal",
        "samplers/jump.py",
        "process.kernel.outflow(x) + process.kernel.inflow(x) * process.ratio(q, x, t)",
        "2 * process.kernel.outflow(x)",
        (f"{SAMPLERS}::test_corrections_leave_the_marginal_alone",),
    ),
    Mutant(
        "corrections at the time before the leap",
        "samplers/jump.py",
        "stationary_rates(model(x, s), jump, x, s), x, jump, source)",
        "stationary_rates(model(x, t), jump, x, t), x, jump, source)",
        (f"{SAMPLERS}::test_corrections_are_taken",),
    ),
    Mutant(
        "sums of jumps without their distance",
        "samplers/jump.py",
        "distance = torch.arange(means.shape[-1], device=x.device) - x[..., None]",
        "distance = (torch.arange(means.shape[-1], device=x.device) - x[..., None]).sign()",
        (f"{SAMPLERS}::test_jumps_of_ordered_tokens_add_up",),
    ),
    Mutant(
        "remasking that is not scaled with the step",
        "samplers/jump.py",
        "means = p * pace + (t - s) * self.noise",
        "means = p * pace + 0.1 * self.noise",
        (f"{SAMPLERS}::test_a_short_step_has_the_rates",),
    ),
    Mutant(
        "remasking in the last step",
        "samplers/jump.py",
        "        if s == 0 or self.noise == 0 or",
        "        if self.noise == 0 or",
        (f"{SAMPLERS}::test_ends_and_membership",),
    ),
    Mutant(
        "temperature that changes the unmasking rate",
        "samplers/jump_masked.py",
        "leaves = chance * (1 - alpha_t) < alpha_s - alpha_t",
        "leaves = chance * (1 - alpha_t) < (alpha_s - alpha_t) * max(self.temperature, 0.1)",
        (f"{DECODING}::test_temperature_and_top_p_never_change_the_number_of_masks",),
    ),
    Mutant(
        "expected counts that forget the sites shown before",
        "samplers/jump_masked.py",
        "whole = left / (1 - alpha_t) if carry is None else carry",
        "whole = left if carry is None else carry",
        (f"{DECODING}::test_expected_counts_are_the_schedule_s",),
    ),
    Mutant(
        "the least sure sites first",
        "samplers/jump_masked.py",
        "argsort(dim=1, descending=True, stable=True)",
        "argsort(dim=1, descending=False, stable=True)",
        (f"{DECODING}::test_greedy_decoding_shows_the_surest_token_first",),
    ),
    Mutant(
        "entropy with the wrong sign",
        "samplers/jump_masked.py",
        "return (p * torch.where(p > 0, q.logp, 0.0)).sum(-1)",
        "return -(p * torch.where(p > 0, q.logp, 0.0)).sum(-1)",
        (f"{DECODING}::test_greedy_decoding_shows_the_surest_token_first",),
    ),
    Mutant(
        "hitting times of one token, not of the first of many",
        "samplers/jump_masked.py",
        "level * u[:, 0].double() ** (1 / left.clamp(min=1))",
        "level * u[:, 0].double()",
        (f"{SAMPLERS}::test_first_hitting_shows_tokens_when_the_process_does",),
    ),
    Mutant(
        "first hits from left to right",
        "samplers/jump_masked.py",
        "rank = torch.minimum((u[:, :1] * count).floor(), count - 1)",
        "rank = torch.minimum(0 * u[:, :1], count - 1)",
        (f"{SAMPLERS}::test_first_hitting_shows_tokens_when_the_process_does",),
    ),
    Mutant(
        "hits that draw for samples whose interval is over",
        "samplers/jump_masked.py",
        "source.uniform((len(x), 3), 3 * walking)",
        "source.uniform((len(x), 3))",
        (f"{SAMPLERS}::test_streams",),
    ),
    Mutant(
        "a cache that keeps the belief of another state",
        "samplers/jump_masked.py",
        "if seen is None or not torch.equal(seen.x, x):",
        "if seen is None or not torch.equal(seen.x == mask_of(process, self), x == x):",
        (f"{SAMPLERS}::test_the_cache_changes_no_sample",),
    ),
    Mutant(
        "a nucleus that leaves out the token that reaches its mass",
        "guidance/tempered.py",
        "outside = p.cumsum(-1) - p >= top_p",
        "outside = p.cumsum(-1) >= top_p",
        (f"{DECODING}::test_tempered_beliefs",),
    ),
    Mutant(
        "temperature after the nucleus",
        "guidance/tempered.py",
        "logp = ((logp - logp.amax(-1, keepdim=True)) / self.temperature).log_softmax(-1)",
        "logp = (nucleus(logp, self.top_p) / self.temperature).log_softmax(-1)",
        (f"{DECODING}::test_tempered_beliefs",),
    ),
    Mutant(
        "a prompt that the network does not see",
        "guidance/prompts.py",
        "return self.given.belief(self.denoiser(self.given.state(x_t), t, cond))",
        "return self.given.belief(self.denoiser(x_t, t, cond))",
        (f"{PROMPTS}::test_the_rest_follows_the_conditional_law",),
    ),
    Mutant(
        "a prompt that is shown only in the end",
        "guidance/prompts.py",
        "        return self.given.state(moved), carry",
        "        return moved, carry",
        (f"{PROMPTS}::test_given_tokens_come_back",),
    ),
    Mutant(
        "a prompt at the places that are not given",
        "guidance/prompts.py",
        "return torch.where(self.known.to(x.device), self.tokens.to(x), x)",
        "return torch.where(self.known.to(x.device), x, self.tokens.to(x))",
        (f"{PROMPTS}::test_given_tokens_come_back",),
    ),
)
