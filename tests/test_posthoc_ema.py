"""Post-hoc EMA (Karras et al. 2024, section 3): the check's values, and the whole way from training to ``--ema``."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato.__main__ import run as run_sfumato
from sfumato.errors import Refusal
from sfumato.training import checkpoint as checkpoints
from sfumato.training.ema import EMA, exponent
from sfumato.training.files import pack_tensors, unpack_tensors, write_bytes
from sfumato.training.phema import WIDTHS, Averages, Profile, average, blend, combine, inner, stored

SETTINGS: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 32, "warmup": 2, "precision": "float32",
    "reports": 2, "validation_images": 8, "grid_columns": 0, "snapshots": 8,
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize(
    ("width", "gamma"), [(0.05, 16.972199), (0.10, 6.937204), (0.15, 3.557869), (0.20, 1.826214), (0.25, 0.719824)]
)
def test_exponents(width: float, gamma: float) -> None:
    assert exponent(width) == pytest.approx(gamma, abs=1e-6)


@pytest.mark.parametrize(("width", "expected"), [(0.05, 0.947291), (0.10, 0.888108)])
def test_the_average_of_a_power_of_time(width: float, expected: float) -> None:
    """The average of theta(t) = t^k over [0, 1] is (g + 1) / (g + 1 + k); here k = 1 and 20,000 steps."""
    net = nn.Linear(1, 1, bias=False).double()
    ema, n = EMA(net, width), 20_000
    for step in range(1, n + 1):
        net.weight.data.fill_(step / n)
        ema.update(step)
    assert ema.net.weight.item() == pytest.approx(expected, abs=1e-4)


def profile(p: Profile, steps: int) -> Tensor:
    """Its discrete weights on steps 1..``steps``, from the definition of the update."""
    i, power = torch.arange(steps + 1, dtype=torch.float64).clamp(max=p.step) / p.step, p.exponent + 1
    return (i**power).diff()


def pairs(count: int, steps: int) -> list[Profile]:
    return [Profile(steps * (k + 1) // count, width) for k in range(count) for width in WIDTHS]


def walk_error(count: int, width: float, steps: int = 20_000) -> float:
    """Root mean square error relative to the average itself, over all random walks of the parameters (exactly)."""
    kept = pairs(count, steps)
    found = combine(kept, Profile(steps, width))
    weights = torch.stack([profile(p, steps) for p in kept])
    true = profile(Profile(steps, width), steps)

    def norm(p: Tensor) -> float:  # a walk is a sum of steps: its average weighs a step by what comes after
        return float(p.flip(0).cumsum(0).norm())

    return norm(found.coefficients @ weights - true) / norm(true)


@pytest.mark.parametrize(("width", "error"), [(0.15, 3e-6), (0.20, 7e-5), (0.25, 1.7e-3), (0.03, 2.9e-5)])
def test_errors_with_64_snapshots(width: float, error: float) -> None:
    assert error / 4 < walk_error(64, width) <= error


def test_the_error_falls_tenfold_with_every_doubling_of_the_snapshots() -> None:
    errors = [walk_error(count, 0.15) for count in (16, 32, 64)]
    for few, many in itertools.pairwise(errors):
        assert 6 < few / many < 14


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("steps", [6400, 20_000])
def test_a_stored_profile_is_reproduced(width: float, steps: int) -> None:
    assert walk_error(64, width, steps) < 2e-15


def test_products_of_profiles_are_integrals() -> None:
    some = [Profile(100, 0.05), Profile(40, 0.2), Profile(100, 0.1)]
    n = 200_000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 100
    shapes = [(p.exponent + 1) * t**p.exponent / p.step ** (p.exponent + 1) * (t <= p.step) for p in some]
    exact = torch.stack([torch.stack([(a * b).sum() * 100 / n for b in shapes]) for a in shapes])
    torch.testing.assert_close(inner(some, some), exact, rtol=1e-4, atol=0)


def test_coefficients_sum_to_one_and_the_system_needs_float64() -> None:
    kept = pairs(64, 20_000)
    assert float(torch.linalg.cond(inner(kept, kept))) == pytest.approx(1.6e6, rel=0.05)
    for width in (0.03, 0.1, 0.15, 0.25):
        found = combine(kept, Profile(20_000, width))
        assert found.coefficients.dtype == torch.float64
        assert float(found.coefficients.sum()) == pytest.approx(1, abs=1e-12)


# --------------------------------------------------------------------------------------------- snapshots of a network


def test_snapshots_of_a_walking_network_give_any_average(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Linear(16, 16).double()
    steps, count = 1600, 16
    averages, true = Averages(net, count), {width: EMA(net, width) for width in (0.05, 0.07, 0.15, 0.2)}
    for step in range(1, steps + 1):
        net.weight.data += 0.02 * torch.randn_like(net.weight)  # the bias never changes
        averages.update(step)
        for ema in true.values():
            ema.update(step)
        if averages.due((step - 1) / steps, step / steps):
            averages.write(tmp_path, step)
    assert len(stored(tmp_path)) == 2 * count
    for width, ema in true.items():
        found = average(tmp_path, width)
        error = (found["weight"].double() - ema.net.weight).norm() / ema.net.weight.norm()
        assert float(error) < (5e-4 if width == 0.05 else 3e-3)  # float16, then the profile
        torch.testing.assert_close(found["bias"].double(), net.bias.detach(), rtol=0, atol=4e-4)


def test_blend_is_a_float64_sum() -> None:
    kept = [Profile(1, 0.05), Profile(2, 0.05)]
    found = combine(kept, kept[1])
    mixed = blend(found, [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 5.0])}])
    assert mixed["a"].dtype == torch.float32
    torch.testing.assert_close(mixed["a"], torch.tensor([3.0, 5.0]))


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phema") / "run"
    sf.train("edm", "digits", steps=32, out=folder, quiet=True, **SETTINGS)
    return folder


def test_a_run_stores_its_snapshots_and_its_own_average_comes_back(run: Path) -> None:
    assert [p.step for p in stored(run)] == [step for step in range(4, 33, 4) for _ in WIDTHS]
    sampled, found = unpack_tensors(run / "model.safetensors"), average(run, 0.1)
    for name, value in found.items():
        torch.testing.assert_close(value, sampled[name], rtol=1e-3, atol=1e-7)


def test_load_with_another_width(run: Path) -> None:
    model, other = sf.load(run), sf.load(run, ema=0.15)
    assert other.weights == "ema=0.15"
    expected = average(run, 0.15)
    for name, value in other.net.named_parameters():
        torch.testing.assert_close(value, expected[name])
    assert any(not torch.equal(a, b) for a, b in zip(model.net.parameters(), other.net.parameters(), strict=True))


def test_resuming_gives_the_same_snapshots(run: Path, tmp_path: Path) -> None:
    part = tmp_path / "run"
    shutil.copytree(run, part)
    shutil.rmtree(checkpoints.folder_of(part, 32))  # what remains is step 16 of 32, and later snapshots
    for p in stored(part):
        if p.step > 16:
            write_bytes(part / "snapshots" / f"step-{p.step}-{p.width:.3f}.safetensors", b"from another future")
    write_bytes(part / "snapshots" / "step-31-0.100.safetensors", b"from another future")
    sf.train("edm", "digits", out=part, resume=True, quiet=True)
    assert stored(part) == stored(run)
    for path in (run / "snapshots").iterdir():
        assert path.read_bytes() == (part / "snapshots" / path.name).read_bytes()


def test_inspect_sample_and_eval(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_sfumato(["inspect", str(run)]) == 0
    assert "snapshots    8 of widths 0.05, 0.1, steps 4 to 32" in capsys.readouterr().out
    assert run_sfumato(["sample", str(run), "--n", "2", "--steps", "2", "--ema", "0.15", "--out", "out"]) == 0
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["weights"] == "ema=0.15"


def test_refusals(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"ema=0\.4: needs a relative width between 0 and 0\.28"):
        sf.load(run, ema=0.4)
    with pytest.raises(Refusal, match=r"ema=0\.01: the 8 snapshots of .* reach widths 0\.035 to 0\.215"):
        sf.load(run, ema=0.01)
    with pytest.raises(Refusal, match="raw weights are no average"):
        sf.load(run, weights="raw", ema=0.1)
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "snapshots")
    with pytest.raises(Refusal, match=r"no snapshots for ema=0\.1; train with --set snapshots=16"):
        sf.load(bare, ema=0.1)
    (bare / "snapshots").mkdir()
    write_bytes(bare / "snapshots" / "step-3-0.100.safetensors", pack_tensors({"a": torch.zeros(1)}))
    with pytest.raises(Refusal, match=r"does not fit its config\.json"):
        sf.load(bare, ema=0.1)
    with pytest.raises(Refusal, match="snapshots=-1"):
        sf.train("edm", "digits", steps=1, snapshots=-1)
    with pytest.raises(Refusal, match="no snapshots to combine"):
        combine([], Profile(1, 0.1))
