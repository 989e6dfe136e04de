"""Faults in the short ways of tokens: closed-form draws and costs, memories while sampling, equality of kernels."""

from __future__ import annotations

from mutants import Mutant

FAST = "tests/test_tokens_fast.py"
NARROW = "tests/test_precision.py"
COST = f"{FAST}::test_a_loss_from_raw_outputs_is_the_loss_of_the_belief"
READ = f"{FAST}::test_what_was_read_is_not_read_again_and_samples_stay_as_they_are"
DATED = f"{FAST}::test_a_memory_is_never_out_of_date"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a redraw below its own place",
        "processes/kernels.py",
        "below = gone * (edges - pi)[x]",
        "below = gone * edges[x]",
        (f"{FAST}::test_a_redraw_is_the_inverse_cdf_of_its_row",),
    ),
    Mutant(
        "a redraw from numbers that were used up",
        "processes/kernels.py",
        "other = torch.where(u < below, u, u - r) /",
        "other = torch.where(u < below, u, u) /",
        (f"{FAST}::test_a_redraw_is_the_inverse_cdf_of_its_row",),
    ),
    Mutant(
        "a matrix that redraws by its columns",
        "processes/kernels.py",
        "p = _take(self.matrix(r), x)\n",
        "p = _take(self.matrix(r).mT * torch.arange(1, self.size + 1), x)\n",
        (f"{FAST}::test_a_redraw_is_the_inverse_cdf_of_its_row",),
    ),
    Mutant(
        "every kernel with a mask is direct",
        "processes/kernels.py",
        "return isinstance(kernel, RankOne) and kernel.mask is not None",
        "return kernel.mask is not None",
        (f"{FAST}::test_a_token_on_its_way_to_the_mask_is_not_certain",),
    ),
    Mutant(
        "kernels of one size are equal",
        "processes/kernels.py",
        "isinstance(other, RankOne) and torch.equal(self.pi, other.pi)",
        "isinstance(other, RankOne) and self.size == other.size",
        (f"{FAST}::test_kernels_spaces_and_processes_of_one_value_are_equal",),
    ),
    Mutant(
        "float64 on every device",
        "processes/kernels.py",
        "return torch.float64 if precise_device(x) == x.device else torch.float32",
        "return torch.float64",
        (f"{NARROW}::test_training_on_tokens",),
    ),
    Mutant(
        "block times where there is no float64",
        "processes/blocks.py",
        "where = precise_device(x)",
        "where = x.device",
        (f"{NARROW}::test_training_on_tokens_in_blocks",),
    ),
    Mutant(
        "a belief in nothing stays one",
        "processes/jump.py",
        "torch.where(lost, 0.0, logq), shown)",
        "logq, shown)",
        (f"{FAST}::test_the_bridge_of_masks_is_that_of_their_rates",),
    ),
    Mutant(
        "what is shown is as uncertain as what is masked",
        "processes/jump.py",
        "torch.where((x_t == mask)[..., None], torch",
        "torch.where((x_t >= 0)[..., None], torch",
        ("tests/test_jump.py::test_a_belief_that_contradicts_what_is_shown_is_set_right",),
    ),
    Mutant(
        "the mask has a share of the cost",
        "denoisers/tokens.py",
        "raw, self.outputs, x_t).masked_fill(forbidden, -math.inf), x0)",
        "raw, self.outputs, x_t).masked_fill(forbidden & False, -math.inf), x0)",
        (COST,),
    ),
    Mutant(
        "a shown token is raised by its odds less one",
        "denoisers/tokens.py",
        "raised = (left / gone).log1p()",
        "raised = (left / gone).log()",
        (COST,),
    ),
    Mutant(
        "a score entropy that is not 0 at its minimum",
        "denoisers/tokens.py",
        "entropy = total - 1 - log_s",
        "entropy = total - log_s",
        (f"{FAST}::test_the_entropy_of_masked_sites_is_the_score_entropy",),
    ),
    Mutant(
        "a step that shows a share of what is masked after it",
        "training/token_objectives.py",
        "(earlier - later) / (1 - later)",
        "(earlier - later) / (1 - earlier)",
        (COST,),
    ),
    Mutant(
        "padding has a share of the cost",
        "training/token_objectives.py",
        "    return counted(terms, process.space.sites(terms))\n\n\ndef _cost(",
        "    return counted(terms, 1.0)\n\n\ndef _cost(",
        (COST,),
    ),
    Mutant(
        "a mask that other tokens lead to, weighed as if none did",
        "training/token_objectives.py",
        "isinstance(process, Jump) and masks(process.kernel)",
        "isinstance(process, Jump) and process.kernel.mask is not None",
        (f"{FAST}::test_a_token_on_its_way_to_the_mask_is_not_certain",),
    ),
    Mutant(
        "a head carries over what may have been another token",
        "denoisers/tokens.py",
        "if mask is None or not masks(process.kernel):",
        "if mask is None:",
        (f"{FAST}::test_a_token_on_its_way_to_the_mask_is_not_certain",),
    ),
    Mutant(
        "blocks trained at the rate of all sites",
        "training/token_objectives.py",
        "return isinstance(process, Jump) and masks",
        "return masks",
        (f"{FAST}::test_blocks_are_trained_on_their_own_rates",),
    ),
    Mutant(
        "a loss in float16",
        "denoisers/tokens.py",
        "return raw.to(torch.promote_types(raw.dtype, torch.float32))",
        "return raw",
        (f"{FAST}::test_the_loss_of_a_short_format_is_that_of_its_numbers",),
    ),
    Mutant(
        "a memory of the caller's own state",
        "training/text.py",
        "self.read = (x.clone(), times)",
        "self.read = (x, times)",
        (DATED,),
    ),
    Mutant(
        "a memory that asks one text of the batch",
        "training/text.py",
        "return int(same.all(0).to(",
        "return int(same.any(0).to(",
        (DATED,),
    ),
    Mutant(
        "a memory that is never rewound",
        "training/text.py",
        "self.cache.rewind(used)",
        "self.cache.rewind(self.cache.used)",
        (DATED,),
    ),
    Mutant(
        "a memory that holds the block being shown",
        "training/text.py",
        "used = min(used, x.shape[1] - new) // self.block * self.block",
        "used = min(used, x.shape[1] - 1)",
        (DATED,),
    ),
    Mutant(
        "blocks before that are not whole, taken as whole",
        "training/text.py",
        "!= self.process.kernel.mask).all())\n            if cond",
        "!= self.process.kernel.mask).any())\n            if cond",
        (DATED,),
    ),
    Mutant(
        "sampling without a memory",
        "training/sampling.py",
        "own.remembering() if isinstance(own, Remembers) else own",
        "own",
        (READ,),
    ),
    Mutant(
        "one block refuses what follows a gap",
        "training/decoding.py",
        "model.process.count(model.transform.length) > 1",
        "model.process.count(model.transform.length) > 0",
        (f"{FAST}::test_one_block_infills_and_several_say_why_not",),
    ),
    Mutant(
        "a number of steps that nobody reads passes",
        "training/settings.py",
        'idle(20, recipe="autoregressive")',
        'idle(20, recipe="none")',
        (f"{FAST}::test_a_number_of_steps_that_nobody_reads_is_refused",),
    ),
    Mutant(
        "scores kept where no gradient flows",
        "nets/layers.py",
        "few = back and q.shape",
        "few = q.shape",
        ("tests/test_unet.py::test_scores_are_kept_for_a_way_back_alone",),
    ),
    Mutant(
        "scores kept before their softmax",
        "nets/layers.py",
        "                kept[i] = p\n",
        "                kept[i] = q[i] @ k[i].mT\n",
        ("tests/test_unet.py::test_attention_in_blocks_is_attention_and_its_derivatives_are_exact",),
    ),
    Mutant(
        "masked scores kept before their softmax",
        "nets/masks.py",
        "                kept[i] = p\n",
        "                kept[i] = q[i] @ k[i].mT\n",
        ("tests/test_text_transformer.py::test_masked_attention_has_exact_first_and_second_derivatives",),
    ),
)
