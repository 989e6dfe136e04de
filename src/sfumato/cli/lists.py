"""``sfumato list``: every part by name, with what it is and what can be set.

The contract: what is printed is read from the parts themselves (their docstrings, declared orders and settings), so it
cannot go out of date.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from sfumato.errors import Refusal, nearest

#: A name and what is said of it, in columns.
Row = tuple[str, ...]


def summary(part: Any) -> str:
    """The first paragraph of a docstring in one line, without markup."""
    first = (inspect.getdoc(part) or "").split("\n\n")[0]
    return " ".join(first.replace("``", "").split())


def settings(builder: Callable[..., Any], given: int = 0) -> str:
    """The settings of a part with their defaults, as they are written on the command line."""
    from sfumato import spec

    found = spec.settings_of(builder, given)
    defaults = {name: "..." if s.default is inspect.Parameter.empty else s.default for name, s in found.items()}
    return spec.text("", defaults).removeprefix(":").replace(":", " ")


def megabytes(size: int) -> str:
    """A number of bytes in words; nothing for none."""
    return f"{size / 1e6:.2g} MB" if size else ""


def _recipes() -> list[Row]:
    from sfumato import recipes

    return [(name, f"{recipes.get(name).title}  ({recipes.get(name).paper})") for name in recipes.names()]


def _data() -> list[Row]:
    from sfumato.data import named

    return [(e.name, e.kind, megabytes(e.size), e.where, e.licence) for e in named.entries()]


def _samplers() -> list[Row]:
    from sfumato import samplers

    rows: list[Row] = []
    for name in samplers.names():
        builder = samplers.registry.builder(name)
        built = samplers.get(name)
        kind = "draws noise" if built.order is None else f"order {built.order}"
        rows.append((name, kind, f"{built.evaluations} a step", summary(builder), settings(builder)))
    rule = "Solver and grid by one rule of steps, schedule and guidance (sfumato.samplers.auto)."
    rows.append((samplers.auto.NAME, "order 1 to 3", "1 a step", rule, ""))
    return rows


def _schedules() -> list[Row]:
    from sfumato import schedules

    builders = {name: schedules.registry.builder(name) for name in schedules.names()}
    return [(name, summary(builder), settings(builder)) for name, builder in builders.items()]


def _grids() -> list[Row]:
    from sfumato import grids

    rows = [(name, summary(grids.get(name)), settings(grids.get(name), 2)) for name in grids.names()]
    return [*rows, ("optimised", "Measured on the model itself: equal shares of a solver's local error.", "")]


def _nets() -> list[Row]:
    from sfumato import nets

    return [(name,) for name in nets.names()]


def _metrics() -> list[Row]:
    from sfumato.metrics.catalogue import BESIDE, METRICS

    rows: list[Row] = [(m.name, m.better, m.rule, m.paper) for m in METRICS.values()]
    return rows + [(name, "", rule, "") for name, rule in BESIDE.items()]


def _extractors() -> list[Row]:
    from sfumato.metrics.extractors import DEFAULTS, names, registry

    usual = {name: ", ".join(kind for kind, own in DEFAULTS.items() if own == name) for name in names()}
    builders = {name: registry.builder(name) for name in names()}
    return [(name, usual[name], summary(each), settings(each)) for name, each in builders.items()]


def _presets() -> list[Row]:
    from sfumato import presets, spec

    return [(name, presets.title(name), spec.text("", presets.get(name)).removeprefix(":")) for name in presets.names()]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "recipes": _recipes,
    "data": _data,
    "samplers": _samplers,
    "schedules": _schedules,
    "grids": _grids,
    "nets": _nets,
    "metrics": _metrics,
    "extractors": _extractors,
    "presets": _presets,
}
#: What is printed under a list of parts that have settings.
HINTS = {
    "samplers": "evaluations and settings are those of the defaults; set them as in --sampler ddim:eta=0.5",
    "grids": "set them as in --grid karras:rho=5",
    "data": "the licence is that of the data itself; fetched data is kept in SFUMATO_CACHE, else ~/.cache/sfumato",
    "presets": "give one as in sfumato train RECIPE --config small; --set changes what is in it",
    "metrics": "choose as in sfumato eval RUN --metrics frechet,kid",
    "extractors": "choose as in sfumato eval RUN --extractor mobilenet:size=96; a kind of data stands by its default",
}


def lines(rows: list[Row]) -> list[str]:
    """Rows in columns; settings, the last of more than two columns, on a line of their own where there are any."""
    short = max((len(row) for row in rows), default=1) - 2
    widths = [max(len(row[k]) for row in rows) for k in range(max(short, 1))]
    found = []
    for row in rows:
        head = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        found.append("  ".join([head, *row[len(widths) : len(widths) + 1]]).rstrip())
        if len(row) > len(widths) + 1 and row[-1]:
            found.append(" " * (widths[0] + 2) + row[-1])
    return found


def list_parts(what: str) -> None:
    """Print one kind of part, or the names of all."""
    if what != "all" and what not in PARTS:
        raise Refusal(f"unknown part {what!r}; {nearest(what, PARTS)}")
    if what == "all":
        for kind, rows in PARTS.items():
            print(f"{kind}: {', '.join(row[0] for row in rows())}")
        print("\nmore of each: sfumato list samplers, sfumato list recipes, ...")
        return
    for line in lines(PARTS[what]()):
        print(line)
    if what in HINTS:
        print(f"\n{HINTS[what]}")
