"""Settings by name: a preset goes with every recipe that has its settings, on the command line and in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import sfumato as sf
from sfumato import presets, recipes
from sfumato.cli import config
from sfumato.cli.bakeoff import of_all
from sfumato.cli.demo import DEMO
from sfumato.cli.lists import PARTS
from sfumato.errors import Refusal
from sfumato.training.settings import flatten, resolve

IMAGES = [name for name in recipes.names() if presets.get("small").keys() <= flatten(recipes.get(name).defaults).keys()]


def test_the_recipes_of_the_table_take_the_small_preset() -> None:
    assert {"ddpm", "vdm", "ncsnv2", "edm", "edm2", "flow", "reflow", "interpolant", "cold", "heat"} <= set(IMAGES)
    assert not {"mdlm", "geodesic"} & set(IMAGES)


@pytest.mark.parametrize("recipe", IMAGES)
@pytest.mark.parametrize("preset", presets.names())
def test_a_preset_is_taken_by_name(recipe: str, preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = config.together(config.read(Path(preset)), {"recipe": recipe}, {}, {"lr": "0.5"})
    settings = flatten(resolve(recipes.get(recipe).defaults, asked.settings))
    assert settings == flatten(resolve(recipes.get(recipe).defaults, presets.get(preset))) | {"lr": 0.5}
    assert any("lr" in note and f"{preset}.toml" in note for note in asked.notes)


def test_a_file_of_the_same_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text("lr = 0.25\n")
    assert config.read(Path("small.toml")).settings == {"lr": 0.25}
    assert config.read(Path("small")).settings["lr"] == presets.get("small")["lr"]
    with pytest.raises(Refusal, match="unknown preset 'smal'; did you mean small"):
        config.read(Path("smal"))
    with pytest.raises(Refusal, match=r"cannot read elsewhere/small\.toml"):
        config.read(Path("elsewhere/small.toml"))


def test_a_bakeoff_takes_the_settings_of_a_file(tmp_path: Path) -> None:
    assert of_all(Path("small")) == presets.get("small") | {"channels": [48, 96], "attention": [False, False]}
    own = tmp_path / "own.toml"
    own.write_text('lr = 0.25\ndata = "mnist"\n')
    with pytest.raises(Refusal, match=r"own\.toml holds data; a bake-off reads settings alone"):
        of_all(own)
    assert of_all(None) == {}


def test_a_text_recipe_refuses_a_network_for_images() -> None:
    with pytest.raises(Refusal, match=r"small.toml: unknown setting 'channels' of mdlm"):
        config.together(config.read(Path("small")), {"recipe": "mdlm"}, {}, {})


def test_the_list_says_what_each_is_for() -> None:
    rows = {row[0]: row for row in PARTS["presets"]()}
    assert rows["small"][1].startswith("A U-Net and an optimiser")
    assert "channels=48,96" in rows["small"][2]


def test_the_demo_is_the_small_preset_and_what_belongs_to_digits() -> None:
    assert presets.get("small").items() <= DEMO.settings.items()


def test_a_run_of_few_steps_hears_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    large = flatten(recipes.get("edm").defaults)
    assert "--config small" in presets.hint(large, presets.FEW_STEPS - 1)
    assert not presets.hint(large, presets.FEW_STEPS)
    assert not presets.hint(large | presets.get("small"), 1)
    assert not presets.hint(flatten(recipes.get("mdlm").defaults), 1)
    tiny = {"channels": (8,), "attention": (False,), "blocks": 1, "batch": 2, "reports": 1, "validation_images": 8}
    sf.train("flow", "digits", minutes=0.01, **tiny)
    assert "--config small" in capsys.readouterr().err
