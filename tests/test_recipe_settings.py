"""Settings that depend on one another: what follows from a setting, what is out of use with it, what stays loadable."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato import recipes
from sfumato.cli.demo import DEMO
from sfumato.errors import Refusal
from sfumato.training import ladders
from sfumato.training.settings import Reporting, Sampling, flatten, idle, refuse_idle, resolve
from sfumato.training.times import Shifted, Uniform

TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 32, "warmup": 2, "precision": "float32",
    "reports": 1, "validation_images": 16, "grid_columns": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> sf.data.Data:
    return sf.data.load("digits")


def settled(name: str, **given: Any) -> Any:
    """The settings of a new run of a recipe."""
    recipe = recipes.get(name)
    return resolve(recipe.defaults if recipe.settle is None else recipe.settle(given), given)


# ----------------------------------------------------------------------------------------------------------- ladders


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
@pytest.mark.parametrize("given", [{"levels": "20"}, {"levels": 30, "sigma_max": 4.0}, {"sigma_min": 0.05}])
def test_a_ladder_of_ones_own_is_walked_level_by_level(name: str, given: dict[str, Any]) -> None:
    settings = settled(name, **given)
    ladder, sampling = settings.ladder, settings.sampling
    assert sampling.sampling_steps == ladder.levels
    grid = sf.grids.build(sampling.grid)(ladder.process.schedule, sampling.sampling_steps)
    _, walked = sf.schedules.at(ladder.process.schedule, grid[:-1])
    ratios = walked[:-1] / walked[1:]
    assert torch.allclose(ratios, ratios[:1])
    # technique 4: the chain leaves about the variance of the level
    chain = sf.samplers.build(sampling.sampler)
    assert isinstance(chain, sf.samplers.Langevin)
    assert ladders.spread(chain.size, float(ratios[0]), chain.steps) == pytest.approx(1.0, abs=0.15)
    if name == "ncsnv2":
        best = ladders.langevin_size(ladder.sigma_max, ladder.sigma_min, ladder.levels, chain.steps)
        assert chain.size == pytest.approx(best, rel=5e-3)
        count = ladders.level_count(ladder.sigma_max, ladder.sigma_min, 28 * 28)
        assert ladder.levels == int(given.get("levels", count))


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_what_is_given_is_kept(name: str) -> None:
    assert settled(name) == recipes.get(name).defaults
    chosen = settled(name, levels=20, sampling_steps=5, sampler="langevin:steps=3")
    assert (chosen.sampling.sampling_steps, chosen.sampling.sampler) == (5, "langevin:steps=3")
    with pytest.raises(Refusal, match="levels=1: needs at least 2"):
        settled(name, levels=1)
    with pytest.raises(Refusal, match="levels=few: needs a whole number"):
        settled(name, levels="few")


def test_levels_alone_make_a_run(digits: sf.data.Data) -> None:
    model = sf.train("ncsnv2", digits, steps=1, quiet=True, levels=6, **TINY)
    record = model.sample(2, label="3").record
    assert (record["steps"], record["nfe"]) == (6, 100 * 6 + 1)  # far levels: as many steps a level as there may be
    assert len(set(model.times(torch.linspace(0.01, 0.99, 50)).tolist())) == 6


# -------------------------------------------------------------------------------------------------- idle settings


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("flow", {"time_mean": 0.5}, "time_mean=0.5 does nothing with time_law=uniform; change time_law, or leave"),
        ("flow", {"time_std": 0.5}, "time_std=0.5 does nothing with time_law=uniform"),
        ("interpolant", {"bump": "none", "bump_scale": 1.0}, "bump_scale=1.0 does nothing with bump=none"),
        ("improved-ddpm", {"objective": "vlb", "vlb_weight": 1.0}, "vlb_weight=1.0 does nothing with objective=vlb"),
        ("edm", {"decay": "inverse-sqrt", "hold": 0.3}, "hold=0.3 does nothing with decay=inverse-sqrt"),
        ("edm2", {"hold": 0.3}, "hold=0.3 does nothing with decay=inverse-sqrt; .* leave hold at 0.0"),
        ("edm", {"decay_step": 50}, "decay_step=50 does nothing with decay=cosine"),
        ("edm", {"muon_lr": 0.1}, "muon_lr=0.1 does nothing with optimiser=adamw"),
        ("edm", {"label_dropout": 0.2, "conditional": False}, "label_dropout=0.2 does nothing with conditional=False"),
        ("edm", {"snapshots": 4}, "snapshots=4 does nothing with out=None"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(
    name: str, given: dict[str, Any], message: str, digits: sf.data.Data
) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        sf.train(name, digits, steps=1, quiet=True, **TINY | given)
    assert "\n" not in str(refusal.value)


def test_labels_are_not_dropped_where_there_are_none(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "plain.npz", x=np.repeat(np.arange(64, dtype=np.uint8), 64).reshape(64, 8, 8))
    with pytest.raises(Refusal, match=r"label_dropout=0\.2 does nothing with classes=0"):
        sf.train("flow", tmp_path / "plain.npz", steps=1, quiet=True, label_dropout=0.2, **TINY)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("flow", {"time_law": "logit-normal", "time_mean": 0.5, "time_std": 0.5}),
        ("interpolant", {"bump_scale": 1.0}),
        ("improved-ddpm", {"vlb_weight": 1.0}),
        ("edm", {"decay": "inverse-sqrt", "decay_step": 50}),
        ("edm2", {"decay": "linear", "hold": 0.3}),
        ("edm2", {"decay_step": 50, "snapshots": 4}),
        ("edm", {"optimiser": "muon", "muon_lr": 0.1, "label_dropout": 0.2}),
        ("flow", {"sampler": "auto"}),
        ("flow", {"sampler": "auto", "shift": 3.0}),
        ("edm", DEMO.settings),
    ],
)
def test_a_setting_in_use_is_taken(name: str, given: dict[str, Any]) -> None:
    recipe = recipes.get(name)
    defaults = recipe.defaults if recipe.settle is None else recipe.settle(given)
    refuse_idle(defaults, resolve(defaults, given), out="run", classes=10)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "reflow"])
def test_defaults_are_never_refused(name: str) -> None:
    given = flatten(recipes.get(name).defaults)
    refuse_idle(recipes.get(name).defaults, settled(name, **given), out=None, classes=0)


def test_the_benchmark_gives_nothing_idle() -> None:
    script = _script("recipes")
    for name in script.ENTRIES:
        if name != "reflow":  # whose defaults its teacher settles
            given = script.Job(name, 3.0, False, "mnist", 0, 2000, 128, {}).settings(Path("runs"))
            recipe = recipes.get(name)
            defaults = recipe.defaults if recipe.settle is None else recipe.settle(given)
            refuse_idle(defaults, resolve(defaults, given), out="run", classes=10)


def _script(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"settings_of_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_runs_of_before_with_idle_settings_load_and_resume(digits: sf.data.Data, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sf.train("flow", digits, steps=1, out=run, quiet=True, **TINY)
    config = json.loads((run / "config.json").read_text())
    del config["settings"]["shift"]  # an older version's
    config["settings"] |= {"time_mean": 0.7, "muon_lr": 0.5}
    (run / "config.json").write_text(json.dumps(config))
    assert flatten(sf.load(run, device="cpu").settings)["time_mean"] == 0.7
    sf.train("flow", digits, out=run, resume=True, quiet=True)


def test_idle_names_settings_and_facts_alike() -> None:
    @dataclass(frozen=True)
    class Own:
        mode: str = "a"
        size: int = idle(3, mode=("b", "c"), fact=None)
        sampling: Sampling = Sampling()
        reporting: Reporting = Reporting()

    refuse_idle(Own(), resolve(Own(), {"size": 4}), fact=1)
    refuse_idle(Own(), resolve(Own(), {"mode": "c"}), fact=None)
    with pytest.raises(Refusal, match=r"^size=4 does nothing with mode=c; change mode, or leave size at 3$"):
        refuse_idle(Own(), resolve(Own(), {"size": 4, "mode": "c"}), fact=1)
    with pytest.raises(Refusal, match="size=4 does nothing with fact=None"):
        refuse_idle(Own(), resolve(Own(), {"size": 4}), fact=None)


# ----------------------------------------------------------------------------------------- schedules and shifted times


def test_a_shifted_flow_trains_and_samples_on_shifted_times(digits: sf.data.Data) -> None:
    model = sf.train("flow", digits, steps=1, quiet=True, shift=3.0, **TINY)
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(model.times(u), 3 * u / (1 + 2 * u))
    assert model.process.schedule == sf.schedules.get("flow")  # the path stays, so the target does, too
    job = model.sample(2, label="3", steps=5).record
    assert job["grid"] == "shifted:shift=3.0:rho=1"
    even = torch.arange(5, -1, -1, dtype=torch.float64) / 5
    assert torch.allclose(sf.grids.build(job["grid"])(model.process.schedule, 5), 3 * even / (1 + 2 * even))
    assert settled("flow", shift=3.0, grid="karras").sampling.grid == "karras"
    assert settled("flow", shift=1.0) == settled("flow") == recipes.get("flow").defaults


def test_shift_one_is_no_shift() -> None:
    u = torch.rand(1000, dtype=torch.float64)
    assert torch.equal(Shifted(Uniform())(u), Uniform()(u))
    below = Shifted(Uniform(), 0.5)(u)
    assert bool((below < Uniform()(u)).all())
    for bad in (0.0, -1.0, float("inf")):
        with pytest.raises(Refusal, match=r"^shift="):
            Shifted(Uniform(), bad)
    with pytest.raises(Refusal, match=r"shift=0\.0"):
        settled("flow", shift=0)


@pytest.mark.parametrize(
    ("text", "schedule", "first"),
    [
        ("cosine", sf.schedules.get("cosine"), 1 / 1000),
        ("cosine:steps=250", sf.schedules.get("cosine", steps=250), 1 / 250),
        ("scaled-linear", sf.schedules.get("scaled-linear"), 1 / 1000),
        ("sigmoid:tau=0.7", sf.schedules.get("sigmoid", tau=0.7), 1 / 1000),
    ],
)
def test_ddpm_takes_the_schedules_of_its_followers(text: str, schedule: Any, first: float) -> None:
    recipe = recipes.get("ddpm")
    parts = recipe.compose(settled("ddpm", schedule=text), torch.nn.Identity())
    assert parts.denoiser.head.process.schedule == schedule
    assert float(parts.times(torch.zeros(1))) == pytest.approx(first)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "did you mean cosine"),
        ("learned", "unknown schedule 'learned'"),
        ("cosine:stps=3", "no setting 'stps'"),
        ("cosine:steps=0", "steps=0"),
        ("sigmoid:tau=-1", "tau=-1"),
    ],
)
def test_ddpm_refuses_what_is_no_schedule(text: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        settled("ddpm", schedule=text)
