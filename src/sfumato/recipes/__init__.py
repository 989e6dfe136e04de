"""Recipes: one short file per published method.  ``get(name)`` gives the recipe, ``names()`` lists them."""

from __future__ import annotations

from sfumato.errors import Refusal, nearest
from sfumato.recipes import (
    autoregressive,
    block_diffusion,
    cold,
    d3pm,
    ddpm,
    diffusion_lm,
    discrete_flow,
    edm,
    edm2,
    flow,
    geodesic,
    heat,
    improved_ddpm,
    interpolant,
    latent_text,
    mdlm,
    ncsn,
    ncsnv2,
    ot_cfm,
    reflow,
    sb_cfm,
    sedd,
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
    cold,
    heat,
    d3pm,
    mdlm,
    sedd,
    discrete_flow,
    diffusion_lm,
    latent_text,
    autoregressive,
    block_diffusion,
    geodesic,
)
_RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in _MODULES}


def get(name: str) -> Recipe:
    """The recipe called ``name``; raises :class:`Refusal` with the nearest names."""
    if name not in _RECIPES:
        raise Refusal(f"unknown recipe {name!r}; {nearest(name, _RECIPES)}")
    return _RECIPES[name]


def names(kind: str | None = None) -> list[str]:
    """The names of all recipes, or of those for one kind of data (images, text, points, table, series)."""
    return [name for name, recipe in _RECIPES.items() if kind in (None, recipe.kind, *recipe.also)]


__all__ = ["Recipe", "get", "names"]
