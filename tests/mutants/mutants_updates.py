"""Faults of updates that fit every process: parts without noise, what a refusal advises, clamping, blocks, watching."""

from __future__ import annotations

from mutants import Mutant

PRODUCT, ADVICE, GEODESIC = "tests/test_product_sampling.py", "tests/test_advice.py", "tests/test_geodesic.py"
TEXT, BLOCKS, TRAINING = "tests/test_text_recipes.py", "tests/test_blocks.py", "tests/laws/test_training_laws.py"
HEAT = "tests/test_heat.py"
FOLLOWED = f"{ADVICE}::test_a_refusal_of_a_sampler_advises_one_that_works"
REACHES = f"{TRAINING}::test_training_reaches_the_exact_model"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "noise is asked of every part of a product",
        "processes/product.py",
        'if eta > 0 and not getattr(part, "markov", True):',
        "if False:",
        (f"{PRODUCT}::test_coordinates_and_types_cost_one_network_call_a_step",),
    ),
    Mutant(
        "no part draws noise where one has none",
        "processes/product.py",
        "return part.bridge(x_t, q, t, s, eta)",
        "return part.bridge(x_t, q, t, s, 0.0 if eta > 0 else eta)",
        (f"{PRODUCT}::test_a_part_without_noise_moves_as_it_would_alone",),
    ),
    Mutant(
        "a part without noise moves half of its way",
        "processes/product.py",
        "return part.bridge(x_t, Dirac(q.point()), t, s, 0.0)",
        "return part.bridge(x_t, Dirac(q.point()), t, (t + s) / 2, 0.0)",
        (
            f"{PRODUCT}::test_coordinates_and_types_cost_one_network_call_a_step",
            f"{PRODUCT}::test_a_part_without_noise_moves_as_it_would_alone",
        ),
    ),
    Mutant(
        "a coupled path passes for a Markov chain",
        "processes/interpolant.py",
        "markov: ClassVar[bool] = False",
        "markov: ClassVar[bool] = True",
        (FOLLOWED,),
    ),
    Mutant(
        "ddim is advised for tokens",
        "samplers/ancestral.py",
        '"ddim": has_bridge(process) and not has_tokens(process),',
        '"ddim": has_bridge(process),',
        (FOLLOWED,),
    ),
    Mutant(
        "ddpm is advised where there is nothing to draw",
        "samplers/ancestral.py",
        '"ddpm": has_bridge(process) and has_noise(process),',
        '"ddpm": has_bridge(process),',
        (FOLLOWED,),
    ),
    Mutant(
        "walks of rotations are told to use what refuses them",
        "samplers/ancestral.py",
        '"walk": isinstance(process, Brownian),',
        '"walk": not isinstance(process, Brownian),',
        (FOLLOWED,),
    ),
    Mutant(
        "tokens beside numbers go unseen",
        "samplers/ancestral.py",
        "whole = process.product if isinstance(process, Mixed) else process",
        "whole = process.gaussian if isinstance(process, Mixed) else process",
        (f"{ADVICE}::test_tokens_beside_numbers_have_no_points_to_follow",),
    ),
    Mutant(
        "predictions are not moved to the nearest embedding",
        "training/embedded.py",
        "return Dirac(self.net.embed(self.decode(q.point())))",
        "return Dirac(q.point())",
        (
            f"{TEXT}::test_clamping_moves_a_belief_to_the_likeliest_embedding",
            f"{TEXT}::test_clamped_and_free_walks_differ",
        ),
    ),
    Mutant(
        "every prediction is clamped",
        "recipes/diffusion_lm.py",
        "clean=codec.clamp if settings.clamp else None,",
        "clean=codec.clamp,",
        (f"{TEXT}::test_the_setting_clamp_says_whether_states_end_on_embeddings",),
    ),
    Mutant(
        "the bound of blocks without its rate",
        "training/text.py",
        "return flat_sum(cast(process.inner.unmasking(local, x0), cost) * cost)",
        "return flat_sum(cast(process.inner.unmasking(local, x0), cost) ** 0 * cost)",
        (f"{BLOCKS}::test_the_estimate_of_blocks_is_the_enumerated_bound",),
    ),
    Mutant(
        "blocks are read at one time and noised at another",
        "training/text.py",
        "x_t = process.inner.noised(x0, local, rng)",
        "x_t = process.inner.noised(x0, local / 2, rng)",
        (f"{BLOCKS}::test_the_estimate_of_blocks_is_the_enumerated_bound", f"{REACHES}[block diffusion]"),
    ),
    Mutant(
        "the estimate of blocks at half the times",
        "training/text.py",
        "bound.at(denoiser, x0, (offset + k / self.draws) % 1.0, source)",
        "bound.at(denoiser, x0, (offset + k / self.draws) % 0.5, source)",
        (f"{BLOCKS}::test_the_estimate_of_blocks_is_the_enumerated_bound",),
    ),
    Mutant(
        "next tokens are learned in another order",
        "training/text.py",
        "return Exact()(denoiser, x0) / x0.shape[1]",
        "return Exact()(denoiser, x0.roll(1, 1)) / x0.shape[1]",
        (f"{REACHES}[autoregressive]",),
    ),
    Mutant(
        "embeddings are predicted from another time than the network is told",
        "training/embedded.py",
        "found = denoiser(x_t, t, cond).point()",
        "found = denoiser(x_t, 1 - t, cond).point()",
        (f"{REACHES}[embeddings]",),
    ),
    Mutant(
        "latents are noised at another time than the network is told",
        "training/embedded.py",
        "output = denoiser.raw(alpha * fixed + sigma * noise, t, cond)",
        "output = denoiser.raw(alpha * fixed + sigma * noise, t * 0 + 0.5, cond)",
        (f"{REACHES}[latents]",),
    ),
    Mutant(
        "text appears unseen",
        "cli/text.py",
        "if not sys.stdout.isatty() or",
        "if sys.stdout.isatty() or",
        (f"{TEXT}::test_a_terminal_shows_the_text_as_it_appears",),
    ),
    Mutant(
        "masked places look empty",
        "cli/text.py",
        "HIDDEN if int(k) >= size else",
        '"" if int(k) >= size else',
        (f"{TEXT}::test_a_terminal_shows_the_text_as_it_appears",),
    ),
    Mutant(
        "heat that is not reflected",
        "degradations.py",
        "reach[..., (i[:, None] - i).abs()] + reach[..., i[:, None] + i + 1]",
        "2 * reach[..., (i[:, None] - i).abs()]",
        (f"{HEAT}::test_semigroup_and_mean", f"{HEAT}::test_mode_factor"),
    ),
)
