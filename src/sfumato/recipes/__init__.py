"""Recipes: one short file per published method.  ``get(name)`` gives the recipe, ``names()`` lists them."""

from __future__ import annotations

from sfumato.errors import Refusal, nearest
from sfumato.recipes import ddpm, edm, flow
from sfumato.recipes.recipe import Recipe

_RECIPES = {recipe.name: recipe for recipe in (ddpm.RECIPE, flow.RECIPE, edm.RECIPE)}


def get(name: str) -> Recipe:
    """The recipe called ``name``; raises :class:`Refusal` with the nearest names."""
    if name not in _RECIPES:
        raise Refusal(f"unknown recipe {name!r}; {nearest(name, _RECIPES)}")
    return _RECIPES[name]


def names() -> list[str]:
    """The names of all recipes."""
    return list(_RECIPES)


__all__ = ["Recipe", "get", "names"]
