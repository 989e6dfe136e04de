"""Defects in what the recipes for text and points share, and the tests that must see each."""

from __future__ import annotations

from mutants import Mutant

BLOCKS = "tests/test_blocks.py"
TEXT = "tests/test_text_recipes.py"
POINTS = "tests/test_point_recipes.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "blocks appear from right to left",
        "processes/blocks.py",
        "moment * n - (n - 1 - self.block_of",
        "moment * n - (self.block_of",
        (f"{BLOCKS}::test_blocks_appear_from_left_to_right",),
    ),
    Mutant(
        "the rate of a block is not that of all time",
        "processes/blocks.py",
        "return self.count(x_t.shape[1]) * count",
        "return count",
        (f"{BLOCKS}::test_blocks_keep_the_laws_of_a_process",),
    ),
    Mutant(
        "blocks that stand still have a rate",
        "processes/blocks.py",
        "moving = (local > 0) & (local < 1)",
        "moving = (local >= 0) & (local <= 1)",
        (
            f"{BLOCKS}::test_the_bound_of_exact_beliefs_is_the_entropy",
            f"{BLOCKS}::test_blocks_that_stand_still_have_no_rate",
        ),
    ),
    Mutant(
        "the next token is this one",
        "training/text.py",
        "before = torch.cat([torch.full_like(x[:, :1], mask), x[:, :-1]], 1)",
        "before = x",
        (f"{TEXT}::test_a_next_token_sees_those_before_it_alone",),
    ),
    Mutant(
        "block bounds at one time for all blocks",
        "training/text.py",
        "t.double().cpu()[:, None] + block / n",
        "t.double().cpu()[:, None] + 0 * block / n",
        (f"{TEXT}::test_blocks_learn_at_times_of_their_own",),
    ),
    Mutant(
        "bits are nats",
        "likelihood/text.py",
        "/ math.log(2) / characters",
        "/ characters",
        (f"{TEXT}::test_an_untrained_model_knows_nothing",),
    ),
    Mutant(
        "a prompt is forgotten",
        "training/sampling.py",
        "sampler=walked if given is None else Prompted(walked, given)",
        "sampler=walked",
        (f"{TEXT}::test_a_prompt_comes_back_unchanged",),
    ),
    Mutant(
        "latents train the denoiser and are trained by it",
        "training/embedded.py",
        "fixed = latent.detach()",
        "fixed = latent",
        (f"{TEXT}::test_the_denoiser_does_not_move_the_latents",),
    ),
    Mutant(
        "embeddings are nobody's",
        "training/embedded.py",
        "loss: Tensor = square + self.anchor * (nats[0] + nats[1])",
        "loss: Tensor = square",
        (f"{TEXT}::test_embeddings_are_kept_apart",),
    ),
)
