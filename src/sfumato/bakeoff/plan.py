"""What a bake-off compares, checked whole before anything is trained.

The contract: all recipes get the same data, budget, seed and way of measuring (:class:`Terms`); what differs between
two of them is their method, its own settings, and what was set for one of them by name (``flow.lr=0.001``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from sfumato.errors import Refusal, nearest

#: Where neither minutes nor steps are given.
MINUTES = 3.0
#: The folder of an entry's run, in that of the bake-off.
RUNS = "runs"
#: All are watched alike, unless told otherwise: one report, at the end, without pictures.  Validating and drawing take
#: some recipes far longer than others, and would come out of their minutes.
WATCHED: Mapping[str, Any] = {"reports": 1, "grid_columns": 0}


@final
@dataclass(frozen=True)
class Terms:
    """What all recipes have in common.

    ``minutes`` or ``steps``: the budget of training; ``n``: samples of the final measure; ``moments``: how often over
    the training quality is measured, and ``nfe``: at which numbers of sampling steps, both on ``few`` samples;
    ``extractor``: what looks at samples (None: what is usual for the data).  All have the same labels, sample k has
    seed ``seed + k``.
    """

    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    n: int = 2000
    few: int = 500
    moments: int = 6
    nfe: tuple[int, ...] = (5, 10, 20, 50)
    extractor: str | None = None

    def __post_init__(self) -> None:
        from sfumato.training.horizon import choose

        if self.minutes is None and self.steps is None:
            object.__setattr__(self, "minutes", MINUTES)
        choose(self.minutes, self.steps)  # refuses what is no budget
        for name, value, least in (("n", self.n, 1), ("few", self.few, 1), ("moments", self.moments, 0)):
            if value < least:
                raise Refusal(f"{name}={value}: needs at least {least}")
        if any(count < 1 for count in self.nfe):
            raise Refusal(f"nfe={','.join(map(str, self.nfe))}: needs numbers of sampling steps of at least 1")

    @property
    def seconds(self) -> float | None:
        """The budget of one recipe in seconds, where it is one of time."""
        return None if self.minutes is None else 60 * self.minutes

    @property
    def budget(self) -> str:
        """The budget in words."""
        return f"{self.steps:,} steps" if self.minutes is None else f"{self.minutes:g} minutes"

    def to_json(self) -> dict[str, Any]:
        """What is stored; two bake-offs are one where it is equal."""
        return {
            "minutes": self.minutes, "steps": self.steps, "seed": self.seed, "n": self.n, "few": self.few,
            "moments": self.moments, "nfe": list(self.nfe), "extractor": self.extractor,
        }  # fmt: skip


@final
@dataclass(frozen=True)
class Entry:
    """One recipe.  ``settings``: what it is trained with beside its defaults; ``teacher``: the entry it learns from."""

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""

    def given(self, out: Path, moments: int) -> dict[str, Any]:
        """The settings for :func:`sfumato.train`."""
        teacher = {"teacher": str(out / RUNS / self.teacher)} if self.teacher else {}
        return {"snapshots": moments} | dict(WATCHED) | teacher | dict(self.settings)

    def plain(self, kind: str, moments: int) -> dict[str, Any]:
        """The same as it is stored: each value of its setting's own type, whether it came as a word or as a number."""
        from sfumato import recipes
        from sfumato.training.settings import flatten, resolve

        recipe, given = recipes.get(self.recipe).on(kind), self.given(Path("."), moments)
        defaults = recipe.defaults if recipe.settle is None or self.teacher else recipe.settle(given)
        settings = flatten(resolve(defaults, given))
        return {name: settings[name] for name in given}


def shares(given: Mapping[str, Any], recipes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by recipe: ``lr`` goes to all of them, ``flow.lr`` to one, over what all have.

    Raises :class:`Refusal` for a recipe that is not compared.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in recipes}
    own: dict[str, dict[str, Any]] = {name: {} for name in recipes}
    for key, value in given.items():
        head, dot, name = key.partition(".")
        if not dot:
            for settings in found.values():
                settings[key] = value
        elif head in own:
            own[head][name] = value
        else:
            raise Refusal(f"{key}={value}: {head!r} is not compared; {nearest(head, recipes)}")
    return {name: settings | own[name] for name, settings in found.items()}


def entries(names: str | Sequence[str], data: Any, settings: Mapping[str, Any]) -> list[Entry]:
    """The entries for recipes (``"ddpm,flow"`` or a list), teachers before their pupils.

    Raises :class:`Refusal` for an unknown recipe, one that does not make such data, and one whose teacher is missing.
    """
    from sfumato import recipes
    from sfumato.training.settings import flatten

    words = names.split(",") if isinstance(names, str) else list(names)
    chosen = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not chosen:
        raise Refusal(f"no recipe to compare: give some of {', '.join(recipes.names(data.kind))}")
    for name in chosen:
        if recipes.get(name).on(data.kind).kind != data.kind:
            fit = ", ".join(recipes.names(data.kind))
            raise Refusal(f"recipe {name!r} makes {recipes.get(name).kind}, {data.name} holds {data.kind}; take {fit}")
    share = shares(settings, chosen)
    found = []
    for name in chosen:
        pupil = "teacher" in flatten(recipes.get(name).defaults) and "teacher" not in share[name]
        teacher = next((other for other in chosen if other in ("flow", "ot-cfm")), "") if pupil else ""
        if pupil and not teacher:
            raise Refusal(f"{name} learns from another run: compare flow, too, or give --set {name}.teacher=RUN")
        found.append(Entry(name, share[name], teacher))
    return sorted(found, key=lambda entry: bool(entry.teacher))


def check(entry: Entry, data: Any, terms: Terms, out: Path) -> int:
    """Build the untrained model of an entry and return its number of parameters (0 for a pupil, which has its teacher's
    network).  Raises :class:`Refusal`, naming the recipe, for settings that it has not or that do not fit.
    """
    from sfumato import recipes
    from sfumato.training.settings import resolve

    recipe = recipes.get(entry.recipe).on(data.kind)
    try:
        if entry.teacher:
            resolve(recipe.defaults, entry.given(out, terms.moments))
            return 0
        given = entry.given(out, terms.moments)
        defaults = recipe.defaults if recipe.settle is None else recipe.settle(given)
        settings = resolve(defaults, given)
        model = recipe.build(settings, data.prepared(settings).spec(), {"seed": terms.seed, "horizon": {"steps": 1}})
    except Refusal as refusal:
        raise Refusal(f"{entry.recipe}: {refusal}") from None
    return sum(p.numel() for p in model.net.parameters())
