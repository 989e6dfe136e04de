"""Defects in what the recipes for text and points share, and the tests that must see each."""

from __future__ import annotations

from mutants import Mutant

BLOCKS = "tests/test_blocks.py"
TEXT = "tests/test_text_recipes.py"
POINTS = "tests/test_point_recipes.py"
HEAT = "tests/test_heat.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "heat begins at sharp images",
        "recipes/heat.py",
        "fit_kernels(model.process.blurred(x0, 1.0)",
        "fit_kernels(x0",
        (f"{HEAT}::test_the_recipe_begins_at_blurred_training_images_with_its_own_noise",),
    ),
    Mutant(
        "heat begins without noise",
        "recipes/heat.py",
        "settings.points, settings.delta)",
        "settings.points, 0.0)",
        (f"{HEAT}::test_the_recipe_begins_at_blurred_training_images_with_its_own_noise",),
    ),
    Mutant(
        "geodesic learns ends for velocities",
        "recipes/geodesic.py",
        "OnManifold(net, VelocityHead(process))",
        "OnManifold(net, EndpointHead(process))",
        (f"{POINTS}::test_the_loss_is_that_of_the_velocity_at_times_of_the_whole_path",),
    ),
    Mutant(
        "geodesic learns half of the path",
        "recipes/geodesic.py",
        "Uniform(1e-3), loss)",
        "Uniform(0.5), loss)",
        (f"{POINTS}::test_the_loss_is_that_of_the_velocity_at_times_of_the_whole_path",),
    ),
    Mutant(
        "a chain's bound without its prior",
        "training/text.py",
        "total = precise(process.marginal(x0, 1.0).kl(process.prior(x0)))",
        "total = 0 * precise(process.marginal(x0, 1.0).kl(process.prior(x0)))",
        (f"{TEXT}::test_a_chains_bound_counts_its_prior",),
    ),
    Mutant(
        "a chain's bound without its last step",
        "training/text.py",
        ".floor().clamp(max=self.steps - 1) + 1",
        ".floor().clamp(min=1, max=self.steps - 1) + 1",
        (f"{TEXT}::test_the_chain_bound_is_the_oracles",),
    ),
    Mutant(
        "embeddings' bound without rounding",
        "training/embedded.py",
        'total = cross_entropy(logits.transpose(1, 2), x0, reduction="none").sum(1).double()',
        'total = 0 * cross_entropy(logits.transpose(1, 2), x0, reduction="none").sum(1).double()',
        (f"{TEXT}::test_embeddings_that_lie_together_cost_the_reading",),
    ),
    Mutant(
        "embeddings' bound without its rate",
        "training/embedded.py",
        "total = total + rate * (1 - self.first) / self.draws",
        "total = total + 0 * rate * (1 - self.first) / self.draws",
        (f"{TEXT}::test_the_bound_of_embeddings_is_tight_at_the_exact_belief",),
    ),
    Mutant(
        "a plain softmax for tokens that are redrawn",
        "recipes/d3pm.py",
        '"uniform": (uniform, "cosine-continuous", Posterior)',
        '"uniform": (uniform, "cosine-continuous", Subs)',
        (f"{TEXT}::test_redrawn_tokens_are_certain_near_the_data",),
    ),
    Mutant(
        "steps across the border of blocks",
        "training/sampling.py",
        "if count % model.parts.multiple:",
        "if False:",
        (f"{TEXT}::test_text_is_refused_where_it_cannot_be",),
    ),
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
        "return torch.cat([torch.full_like(x[:, :1], self.mask), x[:, :-1]], 1)",
        "return x",
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
