"""Faults of texts: corpora, tokenizers, windows, masks, positions, caches, statistics."""

from __future__ import annotations

from mutants import Mutant

DATA = "tests/test_text_data.py"
NET = "tests/test_text_transformer.py"
METRICS = "tests/test_text_metrics.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a held-out part that is trained on, too",
        "data/corpora.py",
        "            return text[: found + len(mark)], text[found + len(mark) :]",
        "            return text, text[found + len(mark) :]",
        (f"{DATA}::test_a_text_is_cut_at_a_blank_line_else_a_line_end_else_anywhere",),
    ),
    Mutant(
        "pairs learned from the held-out part, too",
        "data/tokenizers.py",
        "    return BPE.trained(corpus.train, size)",
        "    return BPE.trained(corpus.train + corpus.test, size)",
        (f"{DATA}::test_the_pairs_are_learned_from_the_training_part_alone",),
    ),
    Mutant(
        "an alphabet without the held-out characters",
        "data/tokenizers.py",
        "    return Characters.of(corpus.train + corpus.test)",
        "    return Characters.of(corpus.train)",
        (f"{DATA}::test_characters_are_those_of_both_parts_by_code_point",),
    ),
    Mutant(
        "unknown characters become their neighbours",
        "data/tokenizers.py",
        "        wrong = codes[alphabet[tokens] != codes]",
        "        wrong = codes[:0]",
        (f"{DATA}::test_unknown_characters_are_named",),
    ),
    Mutant(
        "text8 that joins what punctuation parts",
        "data/tokenizers.py",
        'return re.sub(r"[^a-z]+", " ", spelled)',
        'return re.sub(r"[^a-z ]+", "", spelled)',
        (f"{DATA}::test_text8_is_its_27_symbols",),
    ),
    Mutant(
        "a mask token decoded as text",
        "data/text_transform.py",
        "        strange = ((x < 0) | (x >= size)).any(1)",
        "        strange = ((x < 0) | (x > size)).any(1)",
        (f"{DATA}::test_a_state_that_is_no_text_is_refused",),
    ),
    Mutant(
        "the last window lost",
        "data/text.py",
        "(len(self.tokens) - self.length) // self.stride + 1)",
        "(len(self.tokens) - self.length) // self.stride)",
        (f"{DATA}::test_windows_are_those_that_fit",),
    ),
    Mutant(
        "held-out windows that overlap",
        "data/text.py",
        '            stride = self.stride if split == "train" else length',
        "            stride = self.stride",
        (f"{DATA}::test_training_windows_begin_at_every_token_and_held_out_ones_do_not_overlap",),
    ),
    Mutant(
        "a template that is known behind its end",
        "data/text_transform.py",
        "torch.zeros(length, dtype=torch.bool)",
        "torch.ones(length, dtype=torch.bool)",
        (f"{DATA}::test_every_underscore_of_a_template_is_free",),
    ),
    Mutant(
        "a causal mask that sees one place ahead",
        "nets/masks.py",
        "        return keys[None] <= queries[:, None]\n",
        "        return keys[None] <= queries[:, None] + 1\n",
        (f"{NET}::test_a_place_is_moved_by_those_that_it_may_see_and_by_no_other",),
    ),
    Mutant(
        "a noisy block that sees its own clean tokens",
        "nets/masks.py",
        "block[None] < block[:, None]",
        "block[None] <= block[:, None]",
        (
            f"{NET}::test_the_paired_mask_is_the_one_of_block_diffusion",
            f"{NET}::test_a_noisy_block_never_sees_its_own_clean_tokens",
        ),
    ),
    Mutant(
        "masked attention without its mask on the way back",
        "nets/masks.py",
        "p = kept[i] if len(kept) else torch.softmax((q[i] @ k[i].mT).add_(bias), -1)",
        "p = kept[i] if len(kept) else torch.softmax((q[i] @ k[i].mT), -1)",
        (f"{NET}::test_masked_attention_has_exact_first_and_second_derivatives",),
    ),
    Mutant(
        "rotations that stretch",
        "nets/rotary.py",
        "first * cos - second * sin, first * sin + second * cos",
        "first * cos - second * sin, first * sin - second * cos",
        (f"{NET}::test_a_rotated_product_depends_on_the_distance_alone_and_lengths_stay",),
    ),
    Mutant(
        "cached pieces that all begin at place 0",
        "nets/text_transformer.py",
        "seen, slice(start, start + n), cache)",
        "seen, slice(0, n), cache)",
        (f"{NET}::test_reading_piece_by_piece_is_reading_the_whole",),
    ),
    Mutant(
        "clean tokens at the time of the noisy ones",
        "nets/text_transformer.py",
        "torch.cat([t, torch.zeros_like(t)], 1)",
        "torch.cat([t, t], 1)",
        (f"{NET}::test_block_diffusion_in_one_call_is_block_after_block",),
    ),
    Mutant(
        "clean tokens at places of their own",
        "nets/text_transformer.py",
        "torch.arange(n, device=noisy.device).repeat(2)",
        "torch.arange(n, device=noisy.device).repeat_interleave(2)",
        (f"{NET}::test_block_diffusion_in_one_call_is_block_after_block",),
    ),
    Mutant(
        "gates that start open",
        "nets/transformer.py",
        "closed = [self.out, self.down] if self.film is None else [self.film]",
        "closed = [self.out, self.down] if self.film is None else []",
        (f"{NET}::test_a_fresh_network_is_blocks_of_identity",),
    ),
    Mutant(
        "words that a window cuts are counted",
        "metrics/text.py",
        "if m.start() > 0 and m.end() < len(text)",
        "if m.end() < len(text)",
        (f"{METRICS}::test_words_are_runs_of_letters_and_a_window_drops_those_that_it_cuts",),
    ),
    Mutant(
        "a divergence in nats",
        "metrics/text.py",
        "np.log2(",
        "np.log(",
        (f"{METRICS}::test_the_divergence_is_jensen_and_shannons",),
    ),
    Mutant(
        "n-grams that forget their order",
        "metrics/text.py",
        "h * np.uint64(0xD6E8FEB86659FD93) + mixed",
        "h + mixed",
        (f"{METRICS}::test_grams_are_equal_exactly_where_the_words_are",),
    ),
)
