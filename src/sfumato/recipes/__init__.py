"""Recipes: one short file per published method.  ``get(name)`` gives the recipe, ``names()`` lists them."""

from __future__ import annotations

from sfumato.errors import Refusal, nearest
from sfumato.recipes import (
    ddpm,
    edm,
    edm2,
    flow,
    improved_ddpm,
    interpolant,
    ncsn,
    ncsnv2,
    ot_cfm,
    reflow,
    sb_cfm,
    subvp_sde,
    vdm,
    ve_sde,
    vp_sde,
)
from sfumato.recipes.recipe import Recipe

_MODULES = (
    ddpm,
    improved_ddpm,
    vdm,
    ncsn,
    ncsnv2,
    vp_sde,
    ve_sde,
    subvp_sde,
    edm,
    edm2,
    flow,
    ot_cfm,
    sb_cfm,
    interpolant,
    reflow,
)
_RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in _MODULES}


def get(name: str) -> Recipe:
    """The recipe called ``name``; raises :class:`Refusal` with the nearest names."""
    if name not in _RECIPES:
        raise Refusal(f"unknown recipe {name!r}; {nearest(name, _RECIPES)}")
    return _RECIPES[name]


def names() -> list[str]:
    """The names of all recipes."""
    return list(_RECIPES)


__all__ = ["Recipe", "get", "names"]
