"""Which law is checked on which process and space, and by which test: the table of ``docs/laws.md``, kept true.

The contract: a cell names a test that exists and is run for every case of its row, or a reason why the law says nothing
of that process.  A process that is added to a table of the law tests has to be in a row here.
"""

from __future__ import annotations

import importlib.util
import re
import string
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import sfumato as sf

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "laws.md"
FILES = {
    "process": "laws/test_process_laws.py", "sampler": "laws/test_sampler_laws.py", "space": "laws/test_space_laws.py",
    "denoiser": "laws/test_denoiser_laws.py", "restoring": "laws/test_restoring_laws.py",
    "law": "laws/test_law_laws.py", "training": "laws/test_training_laws.py", "heat": "test_heat.py",
    "geodesic": "test_geodesic.py",
}  # fmt: skip
#: The laws in the order of their numbers.
LAWS = (
    "bridge", "membership", "Markov joint", "recovery", "order", "predictions", "evidence bound", "pool",
    "equivariance", "training", "ends", "streams",
)  # fmt: skip
CHAIN, SAMPLED = "bridge, membership, Markov joint", "recovery, ends, streams"
#: Spaces: their own laws.
OF_SPACES = (
    "membership", "noise", "streams", "equivariance", "geodesics", "densities", "Gaussian noise on it",
)  # fmt: skip


@dataclass(frozen=True)
class No:
    """The law says nothing of this process, because ..."""

    reason: str


#: A test, a name after a file of :data:`FILES`, or why there is none.  A test in parentheses is run for the process
#: but not by the names of its cases.
Cell = str | No


@dataclass(frozen=True)
class Row:
    """A process: the ``cases`` of the tables that are it, and a cell for every law (some laws, comma between, at
    once)."""

    name: str
    cases: tuple[str, ...]
    stated: Mapping[str, Cell]

    @property
    def cells(self) -> dict[str, Cell]:
        """The cells by law."""
        return {law: cell for laws, cell in self.stated.items() for law in laws.split(", ")}


DRAWS = No("its samplers draw and declare no order; that their law converges at order 1 is measured by enumeration")
NO_CHAIN = No("it is no Markov chain: `forward`, a bridge that draws and `rate` are refused")
NO_STATES = No("given the data its states are independent: `forward` and `rate` are refused")
NO_ODE = No("there is no differential equation that its steps approximate")
ONE = No("its networks have one prediction")
JUMPS = No("the exact velocity jumps where a ball drawn in to a point ends, so no solver has an order")
NO_BRIDGE = No("its bridge has no closed form: `ddpm` and `ddim` are refused, the reverse SDE is walked")
PARTS = No("every part moves as it would alone, which is tested, and has its own row")

TRAINED = "training:test_training_reaches_the_exact_model"
SYMMETRIC = "process:test_symmetries_commute"
TANGENTS = "(restoring:test_heads_on_manifolds_are_denoisers_whose_beliefs_pool)"
ANY, TOGETHER = "sampler:test_any_process", "process:test_numbers_and_tokens"


def tokens(name: str, case: str) -> Row:
    """A kernel of a jump process, or blocks of one."""
    cells: dict[str, Cell] = {
        CHAIN: "process:test_jump",
        SAMPLED: ANY,
        "order": DRAWS,
        "predictions": "denoiser:test_predictions_of_tokens_are_one_belief",
        "evidence bound": "process:test_the_bound_of_tokens_is_the_entropy",
        "pool": "(law:test_categorical)",
        "equivariance": SYMMETRIC,
        "training": TRAINED,
    }
    return Row(name, (case,), cells)


def graph() -> Row:
    """Edges of undirected graphs, drawn once and counted once."""
    own = tokens("Jump, edges of graphs", "graph")
    return Row(own.name, own.cases, own.stated | {"evidence bound": "process:test_the_bound_of_graphs_is_the_entropy"})


def geodesic(name: str, case: str, order: Cell) -> Row:
    """Geodesics on a manifold that has an exact posterior."""
    cells: dict[str, Cell] = {
        "bridge, membership": "space:test_geodesic",
        "Markov joint, evidence bound": NO_CHAIN,
        SAMPLED: "space:test_ddim_with_eta_0_samples_geodesics",
        "order": order,
        "predictions": "denoiser:test_predictions_on_manifolds_are_one_belief",
        "pool": TANGENTS,
        "equivariance": "space:test_symmetries_commute_with_geodesics",
        "training": TRAINED,
    }
    return Row(name, (case,), cells)


def brownian(name: str, case: str, bridge: Cell) -> Row:
    """Random walks on a manifold."""
    cells: dict[str, Cell] = {
        "bridge, Markov joint": bridge,
        "membership": "space:test_brownian",
        SAMPLED: "space:test_walks_sample_brownian_motion",
        "order": "geodesic:test_the_walk_at_eta_0_is_of_first_order",
        "predictions": ONE,
        "evidence bound": "space:test_the_bound_on_walks_is_the_entropy",
        "pool": TANGENTS,
        "equivariance": "space:test_symmetries_commute_with_walks",
        "training": TRAINED,
    }
    return Row(name, (case,), cells)


def restored(name: str, cases: tuple[str, ...], bound: Cell, trained: Cell) -> Row:
    """Degradations, and heat."""
    cells: dict[str, Cell] = {
        "bridge, membership": "process:test_without_a_chain",
        "Markov joint": NO_STATES,
        "recovery": "restoring:test_the_exact_posterior_recovers_the_images",
        "order": NO_ODE,
        "predictions": ONE,
        "evidence bound": bound,
        "pool": "restoring:test_restorers_are_denoisers_whose_beliefs_pool",
        "equivariance": SYMMETRIC,
        "training": trained,
        "ends": "restoring:test_ends_and_driver",
        "streams": "restoring:test_streams",
    }
    return Row(name, cases, cells)


def rows(name: str, case: str) -> Row:
    """Numbers and tokens side by side."""
    cells: dict[str, Cell] = {
        CHAIN: TOGETHER,
        SAMPLED: ANY,
        "order, predictions": PARTS,
        "evidence bound": "(process:test_the_bound_of_numbers_and_tokens_is_the_sum_of_entropies)",
        "pool": "(law:test_joint)",
        "equivariance": SYMMETRIC,
        "training": TRAINED,
    }
    return Row(name, (case,), cells)


ROWS = (
    Row(
        "Gaussian, every schedule",
        tuple(sf.schedules.names()),
        {
            CHAIN: "process:test_gaussian_process",
            "recovery": "(sampler:test_recovery)",
            "order": "(sampler:test_order)",
            "predictions": "denoiser:test_predictions_are_one_belief",
            "evidence bound": "process:test_the_bound_is_the_entropy",
            "pool": "(law:test_normal)",
            "equivariance": "process:test_rotations_commute",
            "training": "(denoiser:test_training_reaches_the_oracle)",
            "ends": "sampler:test_ends_are_finite",
            "streams": "sampler:test_streams_and_driver",
        },
    ),
    Row(
        "Interpolant",
        ("straight", "trigonometric", "brownian", "sine-squared", "parabola"),
        {
            "bridge, membership": "process:test_interpolant",
            "Markov joint, evidence bound": NO_CHAIN,
            SAMPLED: ANY,
            "order": "sampler:test_order_on_coupled_paths",
            "predictions": ONE,
            "pool": "(law:test_dirac)",
            "equivariance": SYMMETRIC,
            "training": f"({TRAINED})",
        },
    ),
    tokens("Jump, absorbing", "absorbing"),
    tokens("Jump, uniform", "uniform"),
    tokens("Jump, marginal", "marginal"),
    tokens("Jump, discretised Gaussian", "ordinal"),
    tokens("Jump, any rate matrix", "rates"),
    tokens("Blocks (block diffusion)", "blocks"),
    graph(),
    geodesic("Geodesic, torus", "torus", JUMPS),
    geodesic("Geodesic, sphere", "sphere", "(geodesic:test_ddim_on_a_sphere_is_of_first_order)"),
    geodesic("Geodesic, SO(3)", "so3", JUMPS),
    geodesic("Geodesic, simplex", "simplex", JUMPS),
    brownian(
        "Brownian, torus",
        "circles",
        "space:test_brownian_bridges_of_the_torus_are_exact",
    ),
    brownian("Brownian, SO(3)", "rotations", NO_BRIDGE),
    restored("Cold, every degradation", tuple(sf.degradations.names()), NO_STATES, f"({TRAINED})"),
    restored("Heat", ("heat",), "(heat:test_the_bound_of_the_exact_model)", TRAINED),
    Row(
        "Product, numbers",
        (),
        {
            CHAIN: "process:test_product",
            SAMPLED: "sampler:test_a_product",
            "order, predictions, equivariance, training": PARTS,
            "evidence bound": "process:test_the_bound_of_a_product_is_the_sum_of_entropies",
            "pool": "law:test_joint",
        },
    ),
    rows("Product, numbers and tokens", "product with tokens"),
    rows("Mixed, in one tensor", "mixed"),
    Row(
        "Product, nodes and edges",
        ("graph with kinds of nodes",),
        {
            CHAIN: TOGETHER,
            SAMPLED: ANY,
            "order, predictions, training": PARTS,
            "evidence bound": "process:test_the_bound_of_graphs_is_the_entropy",
            "pool": "(law:test_joint)",
            "equivariance": SYMMETRIC,
        },
    ),
)

FLAT = No("it is not curved")
NO_NOISE = No("Gaussian noise needs a linear space; here processes are geodesics and walks")
JUMPING = No("tokens jump")
SUBSPACE = "space:test_gaussian_on_a_subspace"
OWN = "membership, noise, streams"


def flat(name: str, case: str, symmetry: Cell, gaussian: Cell) -> Row:
    """A linear space, or tokens."""
    cells = {OWN: "space:test_space", "equivariance": symmetry, "geodesics, densities": FLAT}
    return Row(name, (case,), cells | {"Gaussian noise on it": gaussian})


def manifold(name: str, cases: tuple[str, ...]) -> Row:
    """A space with geodesics."""
    cells: dict[str, Cell] = {
        OWN: "space:test_space",
        "equivariance, geodesics": "space:test_manifold",
        "densities": "space:test_densities_of_geodesics",
        "Gaussian noise on it": NO_NOISE,
    }
    return Row(name, cases, cells)


SPACES = (
    flat("Euclidean", "euclidean", "(process:test_rotations_commute)", "(process:test_gaussian_process)"),
    flat("ZeroCoM", "zero-com", SUBSPACE, SUBSPACE),
    flat("SymmetricEdges, numbers", "edges", SUBSPACE, SUBSPACE),
    flat("SymmetricEdges, tokens", "kinds of edges", f"({SYMMETRIC})", JUMPING),
    manifold("Torus", ("torus",)),
    manifold("Sphere", ("sphere", "spheres")),
    manifold("SO3", ("so3",)),
    manifold("Simplex", ("simplex",)),
    flat("Tokens", "tokens", f"({SYMMETRIC})", JUMPING),
)


# ------------------------------------------------------------------------------------------------------------- checks


@cache
def module(file: str) -> Any:
    """A test module by its name in :data:`FILES`."""
    path = TESTS / FILES[file]
    spec = importlib.util.spec_from_file_location(f"matrix_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def ids(test: Any) -> set[str]:
    """All names that a test is parametrised by."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    values = [value for mark in marks for value in mark.args[1]]
    return {value for value in values if isinstance(value, str)}


def named(cell: str) -> Any:
    """The test that a cell names."""
    file, name = cell.strip("()").split(":")
    return getattr(module(file), name)


@pytest.mark.parametrize("row", [*ROWS, *SPACES], ids=lambda row: row.name)
def test_a_cell_names_a_test_that_is_run_for_its_process(row: Row) -> None:
    assert set(row.cells) == set(LAWS if row in ROWS else OF_SPACES)
    for law, cell in row.cells.items():
        if isinstance(cell, No):
            continue
        test = named(cell)
        if not cell.startswith("("):
            missing = [case for case in row.cases if case not in ids(test)]
            assert not missing, f"{law}: {cell} is not run for {missing}"


@pytest.mark.parametrize(
    ("table", "rows"),
    [("process:JUMPS", ROWS), ("process:GRAPHS", ROWS), ("process:INTERPOLANTS", ROWS), ("process:CHAINLESS", ROWS),
     ("process:TOGETHER", ROWS), ("process:SCHEDULES", ROWS), ("sampler:GENERAL_CASES", ROWS),
     ("space:GEODESICS", ROWS), ("space:BROWNIAN", ROWS), ("space:SPACES", SPACES)],
)  # fmt: skip
def test_every_case_of_a_table_has_a_row(table: str, rows: tuple[Row, ...]) -> None:
    """A variant after a comma belongs to the case before it."""
    cases = {case for row in rows for case in row.cases}
    assert {name.split(",")[0] for name in named(table)} <= cases


# --------------------------------------------------------------------------------------------------------------- page


def reasons(laws: tuple[str, ...], rows: tuple[Row, ...]) -> dict[No, str]:
    """A letter for every reason, in the order in which they come."""
    stated = (row.cells[law] for row in rows for law in laws)
    return dict(
        zip(dict.fromkeys(cell for cell in stated if isinstance(cell, No)), string.ascii_lowercase, strict=False)
    )


def rendered(first: str, laws: tuple[str, ...], rows: tuple[Row, ...]) -> Iterator[str]:
    """The lines of a table and of its reasons."""
    letters = reasons(laws, rows)
    yield f"| {first} | " + " | ".join(laws) + " |"
    yield "|---" * (len(laws) + 1) + "|"
    for row in rows:
        stated = (row.cells[law] for law in laws)
        cells = (letters[cell] if isinstance(cell, No) else re.sub(r"\w+:\w+", "yes", cell) for cell in stated)
        yield f"| {row.name} | " + " | ".join(cells) + " |"
    yield ""
    for reason, letter in letters.items():
        yield f"- {letter}: {reason.reason}"


def test_the_page_is_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for first, laws, rows in (("process", LAWS, ROWS), ("space", OF_SPACES, SPACES)):
        assert "\n".join(rendered(first, laws, rows)) in text, (
            f"{first}: python tests/laws/test_law_matrix.py writes it"
        )
    assert len(re.findall(r"^\| ", text, re.MULTILINE)) == len(ROWS) + len(SPACES) + 2


if __name__ == "__main__":
    for arguments in (("process", LAWS, ROWS), ("space", OF_SPACES, SPACES)):
        print("\n".join(rendered(*arguments)), end="\n\n")
