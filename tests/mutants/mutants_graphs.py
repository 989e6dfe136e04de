"""Faults in the discrete diffusion of graphs, and in what refuses other tokens, rates and texts."""

from __future__ import annotations

from mutants import Mutant

GRAPHS = "tests/test_graphs.py"
LAWS = "tests/laws/test_space_laws.py"
TEXT = "tests/test_text_recipes.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "both copies of an edge are drawn, and one of them read",
        "spaces/symmetric_edges.py",
        "return self._both(self._draw(rng.uniform, shape), shape[1])",
        "return rng.uniform(shape)",
        (f"{GRAPHS}::test_every_edge_is_drawn_once",),
    ),
    Mutant(
        "a mirrored copy of an edge has a share of the divergence",
        "laws/basic.py",
        "return counted(terms, self.space.sites(terms))",
        "return flat_sum(terms)",
        (f"{GRAPHS}::test_laws_and_losses_are_those_of_the_upper_triangle",),
    ),
    Mutant(
        "nothing times infinity",
        "trees.py",
        "torch.where(sites == 0, 0.0, x) * sites if",
        "x * sites if",
        (f"{GRAPHS}::test_the_diagonal_may_be_impossible",),
    ),
    Mutant(
        "the likeliest token of the diagonal is the mask",
        "laws/basic.py",
        "return self.space.project(self.logp.argmax(-1))",
        "return self.logp.argmax(-1)",
        (f"{GRAPHS}::test_every_edge_is_drawn_once",),
    ),
    Mutant(
        "decoding by confidence shows one half of an edge",
        "samplers/jump_masked.py",
        "return process.space.project(torch.where(chosen, tokens, x)), whole",
        "return torch.where(chosen, tokens, x), whole",
        (f"{GRAPHS}::test_samplers_of_tokens_walk_graphs",),
    ),
    Mutant(
        "a hit shows one half of an edge",
        "samplers/jump_masked.py",
        "x = process.space.project(shown)",
        "x = shown",
        (f"{GRAPHS}::test_samplers_of_tokens_walk_graphs",),
    ),
    Mutant(
        "a table that keeps its numbering",
        "oracles/graphs.py",
        "total = total + table.permute(nodes + edges)",
        "total = total + table",
        (f"{GRAPHS}::test_an_invariant_table_is_the_mean_over_all_numberings",),
    ),
    Mutant(
        "the table's edges by rows of the lower triangle",
        "oracles/graphs.py",
        "i, j = torch.triu_indices(self.n, self.n, 1)",
        "j, i = torch.tril_indices(self.n, self.n, -1)",
        (f"{GRAPHS}::test_the_sides_of_a_table_are_pairs_row_by_row",),
    ),
    Mutant(
        "directed graphs from the oracle",
        "oracles/graphs.py",
        "out[:, j, i] = sites",
        "out[:, i, j] = sites",
        (f"{GRAPHS}::test_every_edge_is_drawn_once",),
    ),
    Mutant(
        "a directed graph has the probability of its upper triangle",
        "oracles/chains.py",
        "inside = inside & (own == given[part]).flatten(1).all(1)",
        "inside = inside & (own == own).flatten(1).all(1)",
        (f"{GRAPHS}::test_what_is_no_undirected_graph_has_no_probability",),
    ),
    Mutant(
        "loops that hold the mask",
        "spaces/symmetric_edges.py",
        "        return True\n",
        "        return False\n",
        (f"{GRAPHS}::test_refusals_are_one_line",),
    ),
    Mutant(
        "a kind of edge beyond the last",
        "spaces/symmetric_edges.py",
        "((x >= 0) & (x < self.size)).all()",
        "((x >= 0) & (x <= self.size)).all()",
        (f"{LAWS}::test_space",),
    ),
    Mutant(
        "the last kind of edge is never drawn",
        "spaces/symmetric_edges.py",
        "rng) * self.size).long()",
        "rng) * (self.size - 1)).long()",
        (f"{LAWS}::test_space",),
    ),
    Mutant(
        "kinds of edges are not made symmetric",
        "spaces/symmetric_edges.py",
        "even = torch.where(upper, x, x.transpose(1, 2))",
        "even = torch.where(upper, x, x)",
        (f"{LAWS}::test_space",),
    ),
    # ------------------------------------------------------------------------------------------------- what is refused
    Mutant(
        "rows of rates in units of the fastest",
        "processes/kernels.py",
        "1e-6 * rates.abs().amax(1)",
        "1e-6 * rates.abs().max()",
        ("tests/test_jump.py::test_refusals_are_one_line",),
    ),
    Mutant(
        "blocks of masks that are reached by way of other tokens",
        "processes/blocks.py",
        "if not masks(self.inner.kernel):",
        "if self.inner.kernel.mask is None:",
        ("tests/test_blocks.py::test_masks_that_are_reached_by_way_of_other_tokens_are_refused",),
    ),
    Mutant(
        "decoding of masks that are reached by way of other tokens",
        "samplers/jump_masked.py",
        "mask = process.kernel.mask if masks(process.kernel) else None",
        "mask = process.kernel.mask",
        ("tests/test_jump_samplers.py::test_refusals",),
    ),
    Mutant(
        "the bits of a text in another alphabet",
        "likelihood/text.py",
        "if own != other:",
        "if own.size != other.size:",
        (f"{TEXT}::test_a_text_that_is_cut_into_other_tokens_is_refused",),
    ),
    Mutant(
        "given characters in another case",
        "data/text_transform.py",
        "if back != piece:",
        "if len(back) != len(piece):",
        ("tests/test_text_data.py::test_infilling_moves_no_given_character",),
    ),
    Mutant(
        "a prompt that is a number",
        "training/decoding.py",
        "if not isinstance(asked, str | None):",
        "if asked == 0:",
        (f"{TEXT}::test_a_prompt_that_is_no_string_is_refused",),
    ),
    Mutant(
        "cross-entropy beside the bound of redrawn tokens",
        "recipes/d3pm.py",
        "else replace(defaults, auxiliary=0.0)",
        "else replace(defaults, auxiliary=0.01)",
        (f"{TEXT}::test_d3pm_adds_the_cross_entropy_where_tokens_are_masked_alone",),
    ),
)
