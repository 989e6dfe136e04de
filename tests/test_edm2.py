"""Recipe edm2: its loss, its rates, its levels, a short training; autoguidance by a weaker model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato import recipes
from sfumato.__main__ import run as run_sfumato
from sfumato.errors import Refusal
from sfumato.guidance import autoguidance, interval
from sfumato.laws import Dirac
from sfumato.nets.mp_unet import MPUNet
from sfumato.recipes.edm2 import Noise, Settings, Uncertainty
from sfumato.training.diffusion import Diffusion
from sfumato.training.objectives import prediction_loss
from sfumato.training.optim import rate_share
from sfumato.training.phema import stored
from sfumato.training.settings import Optimisation, resolve

TINY: dict[str, Any] = {
    "channels": (8, 16), "attention": (False, False), "blocks": 1, "batch": 32, "warmup": 2, "precision": "float32",
    "reports": 1, "validation_images": 8, "grid_columns": 0,
}  # fmt: skip
SPEC: dict[str, Any] = {
    "name": "toy", "shape": [1, 8, 8], "classes": ["a", "b"], "train": 10, "test": 10, "sha256": "",
    "transform": sf.data.load("digits").spec()["transform"],
}  # fmt: skip


def untrained(recipe: str = "edm2", spec: dict[str, Any] = SPEC, **settings: Any) -> Diffusion:
    chosen = recipes.get(recipe)
    given = {key: value for key, value in TINY.items() if key not in settings} | settings
    return chosen.build(resolve(chosen.defaults, given), spec, {"seed": 0, "horizon": {"steps": 1}})


def test_it_is_the_papers_composition() -> None:
    model, settings = untrained(), Settings()
    assert isinstance(model.net.net, MPUNet)
    assert (settings.p_mean, settings.p_std, settings.optimisation.weight_decay) == (-0.4, 1.0, 0.0)
    sigma = 80 * model.times(torch.linspace(0.001, 0.999, 999, dtype=torch.float64)) ** 7
    assert float(sigma.log().mean()) == pytest.approx(-0.4, abs=1e-3)
    assert float(sigma.log().std()) == pytest.approx(1.0, abs=0.01)


def test_the_network_is_told_a_quarter_of_the_log_noise() -> None:
    noise, t = Noise(sf.schedules.get("karras")), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(noise(t), ((80 * t**7).log() / 4).float())
    assert bool(torch.isfinite(noise(torch.zeros(1))).all())
    model, seen = untrained(), []
    model.net.net.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    model.denoiser(torch.zeros(3, 1, 8, 8), t)
    torch.testing.assert_close(seen[0], noise(t))


def test_the_loss_is_equation_21() -> None:
    model = untrained()
    x0, t = 0.5 * torch.randn(6, 1, 8, 8), torch.linspace(0.3, 0.7, 6, dtype=torch.float64)
    model.net.net.gain.data.fill_(0.3)
    found = model.parts.objective(model.denoiser, x0, t, None, sf.Stream(3))
    plain = prediction_loss(model.denoiser, x0, t, None, sf.Stream(3))
    u = model.net.uncertainty(Noise(model.process.schedule)(t))
    torch.testing.assert_close(found, plain / u.exp() + u)
    # the plain loss is lambda |D - x0|^2 with lambda c_out^2 = 1
    sigma, s = 80 * t**7, 0.5
    eps = sf.Stream(3).normal((6, 1, 8, 8))
    x_t = x0 + sigma.float()[:, None, None, None] * eps
    error = (model.denoiser(x_t, t).point() - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(plain, ((sigma**2 + s**2) / (sigma * s) ** 2).float() * error, rtol=1e-4, atol=1e-5)
    model.net.eval()
    torch.testing.assert_close(model.parts.objective(model.denoiser, x0, t, None, sf.Stream(3)), plain)


def test_the_uncertainty_learns_the_loss_of_every_level() -> None:
    """At the optimum of eq. 21 exp(u) is the expected loss at the level, and every level pulls equally."""
    torch.manual_seed(0)
    u = Uncertainty(64)
    optimiser = torch.optim.Adam(u.parameters(), 0.02)
    for _ in range(300):
        noise = torch.rand(256) * 2 - 1
        loss = (noise.exp() + 0.2) * torch.randn(256, 8).square().mean(1)
        (loss / u(noise).exp() + u(noise)).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    levels = torch.linspace(-0.9, 0.9, 10)
    with torch.no_grad():
        torch.testing.assert_close(u(levels).exp(), levels.exp() + 0.2, rtol=0.15, atol=0)


def test_rates_are_equation_67() -> None:
    settings = Optimisation(decay="inverse-sqrt", decay_step=100, warmup=10)
    assert rate_share(settings, 4, 0.9) == pytest.approx(0.5)
    assert [rate_share(settings, step, 0.9) for step in (20, 100, 400, 10_000)] == pytest.approx([1, 1, 0.5, 0.1])
    with pytest.raises(Refusal, match="decay_step=0"):
        Optimisation(decay_step=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edm2") / "run"
    sf.train("edm2", "digits", steps=120, out=folder, quiet=True, **TINY)
    return folder


def test_a_short_training_learns(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_out = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert held_out[-1] < 0.6  # the plain loss, which is 1 for a network of zeros
    assert len(stored(run)) == 2 * 16
    raw = sf.load(run, weights="raw")
    norms = [p.square().mean(tuple(range(1, p.ndim))).sqrt() for p in raw.net.parameters() if p.ndim > 1]
    assert all(float((n - 1).abs().max()) < 0.2 for n in norms)  # one step from unit norm
    model = sf.load(run, ema=0.15)
    samples = model.sample(4, label="3", steps=3)
    assert samples.x.shape == (4, 8, 8)


# ------------------------------------------------------------------------------------------------------- autoguidance


class Fixed:
    """A denoiser that believes one number, and counts."""

    kind = "belief"

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Dirac[Tensor]:
        self.calls += 1
        shift = 0 if cond is None else cond["label"][:, None]
        return Dirac(torch.full_like(x_t, self.value) + shift)


def test_autoguidance_moves_away_from_the_weak_model() -> None:
    strong, weak, x = Fixed(1.0), Fixed(0.75), torch.zeros(3, 2)
    cond = {"label": torch.tensor([0, 1, 2])}
    guided = autoguidance(strong, weak, 2.0)(x, 0.5, cond)
    torch.testing.assert_close(guided.point(), torch.tensor([[1.25], [2.25], [3.25]]).expand(3, 2))
    assert float(autoguidance(strong, weak, 1.0)(x, 0.5).point()[0, 0]) == 1.0
    assert float(autoguidance(strong, weak, 0.0)(x, 0.5).point()[0, 0]) == 0.75
    limited, before = autoguidance(strong, weak, 2.0, interval(0.2, 0.6)), weak.calls
    assert float(limited(x, 0.7).point()[0, 0]) == 1.0
    assert weak.calls == before
    assert float(limited(x, 0.6).point()[0, 0]) == 1.25


def test_autoguided_sampling_needs_no_label_and_records_the_weak_model(run: Path) -> None:
    strong = sf.load(run)
    weak = sf.load(run / "snapshots" / f"step-{stored(run)[3].step}-0.050.safetensors")
    assert weak.weights.startswith("step-")
    plain = strong.sample(3, steps=4)
    guided = strong.sample(3, steps=4, guidance=2.0, autoguide=weak)
    assert bool((plain.x != guided.x).any())
    assert guided.record["autoguide"] == f"edm2, {weak.weights}"
    assert guided.record["network_rows_per_sample"] == 2 * plain.record["network_rows_per_sample"]
    # a model guided by itself is itself
    same = strong.sample(3, steps=4, guidance=2.0, autoguide=strong)
    assert float((same.x.int() - plain.x.int()).abs().max()) <= 1
    some = strong.sample(3, steps=4, guidance=2.0, autoguide=weak, interval=(0.3, 0.6))
    assert plain.record["network_rows_per_sample"] < some.record["network_rows_per_sample"] < 14


def test_autoguidance_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weak = run / "snapshots" / f"step-{stored(run)[3].step}-0.050.safetensors"
    options = ["--n", "2", "--steps", "2", "--guidance", "2"]
    assert run_sfumato(["sample", str(run), *options, "--autoguide", str(weak), "--out", str(tmp_path / "a")]) == 0
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["autoguide"] == f"edm2, {weak.stem}"
    assert run_sfumato(["sample", str(run), *options, "--autoguide", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_models_that_do_not_fit_are_refused() -> None:
    model = untrained()
    other = SPEC | {"shape": [1, 16, 16]}
    for weak, message in (
        (untrained(spec=other), r"images of shape \[1, 16, 16\], this one \[1, 8, 8\]"),
        (untrained(spec=SPEC | {"classes": ["a"]}), r"classes \['a'\], this one \['a', 'b'\]"),
        (untrained("flow"), "process Gaussian"),
        (untrained(sigma_max=40.0), "process Gaussian"),
    ):
        with pytest.raises(Refusal, match=message):
            model.sample(2, guidance=2.0, autoguide=weak)
    with pytest.raises(Refusal, match="guidance=1: autoguidance needs"):
        model.sample(2, guidance=1.0, autoguide=untrained())
    with pytest.raises(Refusal, match="0 <= low < high"):
        model.sample(2, guidance=2.0, autoguide=untrained(), interval=(0.5, 0.1))
    model.sample(1, steps=1, guidance=2.0, autoguide=untrained("edm"))  # another network of the same process fits
