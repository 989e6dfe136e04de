"""Parts with their settings as one word: ``name:key=value``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

import sfumato as sf
from sfumato import grids, samplers, spec
from sfumato.samplers.ancestral import DDIM


@dataclass(frozen=True)
class Part:
    count: int = 1
    width: float = 0.5
    shape: str = "wide"
    fresh: bool = False
    levels: tuple[float, ...] = (1.0,)
    top: float | None = None
    kind: Literal["near", "far"] = "near"


def find(name: str) -> Any:
    return {"part": Part, "bare": object}[name]


def test_values_are_read_by_the_declared_type() -> None:
    words = "part:count=3:width=2:shape=narrow:fresh=yes:levels=0.5,-1,2e-3:top=80:kind=far"
    name, settings = spec.parse("part", words, find)
    assert (name, Part(**settings)) == ("part", Part(3, 2.0, "narrow", True, (0.5, -1.0, 0.002), 80.0, "far"))
    assert type(settings["width"]) is float
    assert spec.parse("part", "part:top=none", find) == ("part", {"top": None})
    assert spec.parse("part", "part:width=inf", find) == ("part", {"width": float("inf")})
    assert spec.parse("part", "part", find) == ("part", {})


def test_text_is_the_inverse() -> None:
    settings = {"count": 3, "levels": (0.5, 2.0), "top": None, "fresh": True}
    assert spec.parse("part", spec.text("part", settings), find) == ("part", settings)


def test_the_settings_of_a_part_are_its_fields() -> None:
    assert {k: v.default for k, v in spec.settings_of(Part).items()} == Part().__dict__
    assert list(spec.settings_of(sf.grids.karras, 2)) == ["sigma_min", "sigma_max", "rho"]


def test_samplers_from_text() -> None:
    assert samplers.parse("ddim:eta=0.5") == ("ddim", {"eta": 0.5})
    assert samplers.build("ddim:eta=0.5") == DDIM(eta=0.5)
    assert samplers.build("ddim:eta=0.5").order is None
    assert samplers.build(" heun ") == samplers.get("heun")


def test_every_registered_part_can_be_read_back_with_its_defaults() -> None:
    for module, given in ((samplers, 0), (grids, 2)):
        for name in module.names():
            builder = samplers.registry.builder(name) if module is samplers else grids.get(name)
            defaults = {k: v.default for k, v in spec.settings_of(builder, given).items()}
            assert module.parse(spec.text(name, defaults)) == (name, defaults)


def test_grids_from_text() -> None:
    schedule = sf.schedules.get("karras")
    built = grids.build("karras:rho=5:sigma_min=0.01")(schedule, 7)
    assert torch.equal(built, grids.karras(schedule, 7, sigma_min=0.01, rho=5.0))
    assert not torch.equal(built, grids.karras(schedule, 7))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddmi", "unknown sampler 'ddmi'; did you mean dd"),
        ("ddim:et=1", "sampler 'ddim' has no setting 'et'; did you mean eta?"),
        ("ddim:eta", "sampler 'ddim:eta': write ddim:KEY=VALUE, with eta for KEY"),
        ("ddim:eta=", "sampler 'ddim:eta=': write ddim:KEY=VALUE"),
        ("ddim:", "sampler 'ddim:': write ddim:KEY=VALUE"),
        ("ddim:eta=much", "ddim:eta=much: needs a number"),
        ("ddim:eta=0.1:eta=0.2", "gives eta twice; give it once"),
        ("ddim:eta=3", "eta=3.0: DDIM's share of fresh noise lies in [0, 1]"),
        ("euler:eta=0", "sampler 'euler' takes no settings; write euler alone, not euler:eta=0"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(sf.Refusal) as refusal:
        samplers.build(text)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_refusals_of_other_types() -> None:
    for text, message in (
        ("part:width=nan", "part:width=nan: needs a number"),
        ("part:count=1.5", "part:count=1.5: needs a whole number"),
        ("part:fresh=maybe", "needs true or false"),
        ("part:kind=fat", "unknown part:kind 'fat'; did you mean far?"),
        ("part:levels=1,x", "several separated by commas"),
    ):
        with pytest.raises(sf.Refusal) as refusal:
            spec.parse("part", text, find)
        assert message in str(refusal.value)
    with pytest.raises(sf.Refusal, match="cannot be written as text"):
        spec.read("part:rule", "x", Any)
    with pytest.raises(sf.Refusal, match="grid 'uniform' takes no settings"):
        grids.build("uniform:rho=1")


def test_lists_of_parts() -> None:
    assert spec.split("heun, ddim:eta=0.5 ,euler") == ["heun", "ddim:eta=0.5", "euler"]
    assert spec.split("part:levels=0.5,-1,.2,heun") == ["part:levels=0.5,-1,.2", "heun"]
    with pytest.raises(sf.Refusal, match="names nothing between two commas"):
        spec.split("heun,,euler")
