"""A recipe for images on another kind of data: the same process, times and loss, another network and other defaults.

The contract: :func:`adapted` changes nothing of the method; what a kind of data needs (its network, what stands around
the composition, how much is sampled) is in :data:`KINDS`, once for all recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from sfumato.recipes.networks import series_net
from sfumato.recipes.recipe import Recipe
from sfumato.training.networks import SeriesNetwork, TableNetwork
from sfumato.training.tables import table_net, tabled


def _same(compose: Any) -> Any:
    return compose


@final
@dataclass(frozen=True)
class Kind:
    """``network``: its settings; ``make``: builds it; ``around``: of the composition; the rest: other defaults."""

    network: Any
    make: Callable[..., Any]
    around: Callable[[Any], Any] = _same
    optimisation: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    reporting: Mapping[str, Any] = field(default_factory=dict)


#: What other kinds of data need.
KINDS: dict[str, Kind] = {
    "table": Kind(
        TableNetwork(),
        table_net,
        tabled,
        optimisation={"batch": 512, "precision": "float32"},
        sampling={"sampling_steps": 50, "guidance": 1.0, "clip": False},
        reporting={"grid_columns": 8, "grid_steps": 50},
    ),
    "series": Kind(
        SeriesNetwork(),
        series_net,
        sampling={"guidance": 1.0, "clip": False},
        reporting={"grid_steps": 10},
    ),
}


def adapted(recipe: Recipe, kind: str) -> Recipe:
    """``recipe`` for data of another ``kind``."""
    chosen = KINDS[kind]

    def refitted(settings: Any) -> Any:
        return replace(
            settings,
            network=chosen.network,
            optimisation=replace(settings.optimisation, **chosen.optimisation),
            sampling=replace(settings.sampling, **chosen.sampling),
            reporting=replace(settings.reporting, **chosen.reporting),
        )

    settle = recipe.settle
    return replace(
        recipe,
        kind=kind,
        also=(),
        defaults=refitted(recipe.defaults),
        settle=None if settle is None else (lambda given: refitted(settle(given))),
        compose=chosen.around(recipe.compose),
        make=chosen.make,
    )
