"""Schedules and grids against published and closed-form values, each through the call that a user would make."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.schedules import at, log_snr, time_at

MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
UNEQUAL = sf.oracles.GaussianMixture(
    [0.4, 0.6],
    [[0.5, 0.5, -1.0, 0.0], [-0.5, 0.2, 0.3, 0.3]],
    [[0.01, 0.2, 0.05, 0.3], [0.3, 0.1, 0.02, 0.05]],
)


# ------------------------------------------------------------------------------------------------------------ tables


def test_the_polynomial_table_is_that_of_molecules() -> None:
    # polynomial_2, s = 1e-5, T = 1000: the paper's step k is t = (k + 1) / 1001
    schedule = sf.schedules.get("polynomial")
    for k, gamma in ((0, -11.512915), (500, -0.251309), (1000, 11.512516)):
        assert -log_snr(schedule, (k + 1) / 1001) == pytest.approx(gamma, abs=1e-6)


def test_zero_terminal_snr_keeps_the_first_step_and_loses_the_last() -> None:
    base, rescaled = sf.schedules.get("scaled-linear"), sf.schedules.get("zero-terminal")
    assert at(rescaled, 1.0) == (0.0, 1.0)
    assert at(rescaled, 1 / 1000) == pytest.approx(at(base, 1 / 1000), rel=1e-12)
    # algorithm 1 keeps the proportions of sqrt(alpha_bar) between the two
    first, last = at(base, 0.001)[0], at(base, 1.0)[0]
    for k in (2, 100, 500, 999):
        share = (at(base, k / 1000)[0] - last) / (first - last)
        assert at(rescaled, k / 1000)[0] / first == pytest.approx(share, rel=1e-12)
        assert math.hypot(*at(rescaled, k / 1000)) == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(sf.Refusal, match="is no table"):
        sf.schedules.get("zero-terminal", base="flow")


def test_levels_are_read_at_their_steps() -> None:
    sigmas = [1.0, 0.599484, 0.359381, 0.215443, 0.129155, 0.077426, 0.046416, 0.027826, 0.016681, 0.01]
    schedule = sf.schedules.Levels(sigmas)
    for k, sigma in enumerate(reversed(sigmas), start=1):
        assert at(schedule, k / 10) == pytest.approx((1.0, sigma), rel=1e-12)
        assert time_at(schedule, -2 * math.log(sigma)) == pytest.approx(k / 10, abs=1e-12)
    # geometric between the levels, linear to the data
    assert at(schedule, 0.55)[1] == pytest.approx(math.sqrt(at(schedule, 0.5)[1] * at(schedule, 0.6)[1]), rel=1e-12)
    assert at(schedule, 0.05)[1] == pytest.approx(0.005, rel=1e-12)
    for bad in ([], [1.0, 1.0], [0.0, 1.0], [1.0, math.inf]):
        with pytest.raises(sf.Refusal, match="positive, finite and distinct"):
            sf.schedules.Levels(bad)


def test_the_levels_of_ncsn_are_geometric() -> None:
    schedule = sf.schedules.get("levels", sigma_max=1.0, sigma_min=0.01, count=10)
    ratios = [at(schedule, (k + 1) / 10)[1] / at(schedule, k / 10)[1] for k in range(1, 10)]
    assert ratios == pytest.approx([100 ** (1 / 9)] * 9, rel=1e-12)


def test_the_square_root_table_is_its_formula_at_every_knot() -> None:
    """CHECKS: ``alpha_bar_k = 1 - sqrt(k/T + 1e-4)``, whose ``.99`` at ``k = 0`` is a share of the first step."""
    schedule = sf.schedules.get("square-root")
    formula = [1 - math.sqrt(k / 1000 + 1e-4) for k in range(1000)]
    assert formula[0] == pytest.approx(0.99, abs=1e-12)
    assert at(schedule, 0.001)[0] ** 2 == pytest.approx(0.966834, abs=1e-6)
    for k in (1, 2, 10, 500, 999):
        assert at(schedule, k / 1000)[0] ** 2 == pytest.approx(formula[k], rel=1e-10)
    assert at(schedule, 0.0) == (1.0, 0.0)
    assert at(schedule, 1.0)[0] ** 2 == pytest.approx(0.001 * formula[999], rel=1e-10)  # the last beta is clipped


# -------------------------------------------------------------------------------------------------------- formulas


def moments(drift: str, steps: int = 20_000) -> tuple[float, float]:
    """Mean and variance at t = 1 of Song et al.'s SDEs from a point, by the midpoint rule on their own equations."""
    mean, var, integral, h = 1.0, 0.0, 0.0, 1 / steps
    for k in range(steps):
        t = (k + 0.5) * h
        beta = 0.1 + 19.9 * t
        middle = integral + h * (0.1 + 19.9 * (k * h + t) / 2) / 2
        squared = {
            "vp": beta,
            "sub-vp": beta * -math.expm1(-2 * middle),
            "geometric": 2 * math.log(5000) * (0.01 * 5000**t) ** 2,
        }[drift]
        rate = 0.0 if drift == "geometric" else beta
        integral += h * beta
        mean *= math.exp(-rate * h / 2)
        var = var * math.exp(-rate * h) + squared * h * math.exp(-rate * h / 2)
    return mean, var


@pytest.mark.parametrize("name", ["vp", "sub-vp", "geometric"])
def test_the_transition_is_that_of_the_sde(name: str) -> None:
    mean, var = moments(name)
    alpha, sigma = at(sf.schedules.get(name), 1.0)
    assert alpha == pytest.approx(mean, rel=1e-6)
    assert sigma**2 == pytest.approx(var, rel=1e-5)


def test_the_variances_of_the_sdes_have_their_closed_forms() -> None:
    for t in (0.1, 0.5, 1.0):
        decay = math.exp(-(0.1 * t + 19.9 * t**2 / 2))
        assert at(sf.schedules.get("vp"), t)[1] ** 2 == pytest.approx(1 - decay, rel=1e-12)
        assert at(sf.schedules.get("sub-vp"), t)[1] ** 2 == pytest.approx((1 - decay) ** 2, rel=1e-12)
        level = (0.01 * 5000**t) ** 2 - 0.01**2
        assert at(sf.schedules.get("geometric"), t)[1] ** 2 == pytest.approx(level, rel=1e-12)


def test_the_sigmoid_curve() -> None:
    schedule = sf.schedules.get("sigmoid", floor=0.0)
    # (sigmoid(3) - sigmoid(-1.5)) / (sigmoid(3) - sigmoid(-3)), and one half in the middle by symmetry
    assert at(schedule, 0.25)[0] ** 2 == pytest.approx(0.8508528, rel=1e-6)
    assert at(schedule, 0.5)[0] ** 2 == pytest.approx(0.5, rel=1e-12)
    assert at(sf.schedules.get("sigmoid"), 1.0)[0] ** 2 == pytest.approx(1e-9, rel=1e-6)


def test_a_shift_of_the_flow_moves_the_log_snr() -> None:
    plain, shifted = sf.schedules.get("flow"), sf.schedules.get("flow", shift=3.0)
    assert at(shifted, 0.5) == (0.25, 0.75)  # Esser et al. 2024, eq. 23
    for t in (0.1, 0.4, 0.9):
        assert log_snr(shifted, t) == pytest.approx(log_snr(plain, t) - 2 * math.log(3), abs=1e-12)


def test_the_log_snr_of_log_linear_is_a_line() -> None:
    schedule = sf.schedules.get("log-linear", highest=6.0, lowest=-4.0, first=0.01)
    for u in (0.0, 0.3, 1.0):
        assert log_snr(schedule, 0.01 + 0.99 * u) == pytest.approx(6 - 10 * u, abs=1e-9)


def test_a_schedule_from_a_log_snr_of_ones_own() -> None:
    schedule = sf.schedules.LogSNR(lambda u: 5 - 8 * u**2)
    sf.testing.check_schedule(schedule)
    assert log_snr(schedule, 1.0) == pytest.approx(-3.0, abs=1e-9)


# ----------------------------------------------------------------------------------------------- the optimised grid


@pytest.mark.parametrize("schedule", ["cosine", "karras", "flow"])
@pytest.mark.parametrize(("oracle", "dim"), [(MIXTURE, 2), (UNEQUAL, 4)], ids=["three modes", "unequal"])
def test_the_measured_grid_beats_fixed_ones(oracle: sf.oracles.GaussianMixture, dim: int, schedule: str) -> None:
    process = sf.processes.Gaussian(sf.schedules.get(schedule))
    model = oracle.denoiser(process)
    own = sf.grids.measure(model, process, oracle.sample(128, sf.Stream(0)), sf.Stream(1))
    x1 = process.prior(torch.zeros(128, dim, dtype=torch.float64)).draw(sf.Stream(2))
    dpm = sf.samplers.get("dpmpp-2m")
    exact = sf.sample(model, process, dpm, sf.grids.uniform_logsnr(process.schedule, 600), x1)
    for name, share in (("ddim", 0.7), ("dpmpp-2m", 0.75)):
        for n in (6, 10):
            errors = [
                float((sf.sample(model, process, sf.samplers.get(name), grid(process.schedule, n), x1) - exact).norm())
                for grid in (own, sf.grids.uniform_logsnr, sf.grids.karras)
            ]
            assert errors[0] < share * min(errors[1:]), (name, n, errors)


def test_the_measured_grid_keeps_the_laws_of_grids() -> None:
    process = sf.processes.Gaussian(sf.schedules.get("vp"))
    x0 = MIXTURE.sample(32, sf.Stream(0))
    measured = sf.grids.measure(MIXTURE.denoiser(process), process, x0, sf.Stream(1), order=1)
    sf.testing.check_grid(measured, process.schedule)
    direct = sf.grids.optimised(MIXTURE.denoiser(process), process, x0, 7, sf.Stream(1), order=1)
    assert torch.equal(direct, measured(process.schedule, 7))
    with pytest.raises(sf.Refusal, match="order"):
        sf.grids.measure(MIXTURE.denoiser(process), process, x0, sf.Stream(1), order=0)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_of_schedules(tmp_path: Path) -> None:
    from PIL import Image

    image = torch.zeros(8, 8)
    path = sf.schedules.plot(["flow", sf.schedules.get("learned")], tmp_path / "two.png", image)
    with Image.open(path) as picture:
        assert picture.width > 600
        assert len(np.unique(np.asarray(picture.convert("L")))) > 8
    with pytest.raises(sf.Refusal, match="unknown schedule"):
        sf.schedules.plot("flo", tmp_path / "none.png")
    with pytest.raises(sf.Refusal, match="no schedule"):
        sf.schedules.plot([], tmp_path / "none.png")


def test_a_picture_of_grids(tmp_path: Path) -> None:
    from PIL import Image

    from sfumato.schedules.plots import along

    schedule, image = sf.schedules.get("flow"), torch.full((4, 4), 0.5)
    path = sf.grids.plot(["uniform", "karras:rho=5"], tmp_path / "two.png", schedule, 4, image)
    with Image.open(path) as picture:
        assert picture.width > 600
        assert len(np.unique(np.asarray(picture.convert("L")))) > 8
    drawn = along(schedule, image, [1.0, 0.5, 0.0])
    assert drawn.shape == (4, 12)
    assert torch.equal(drawn[:, 8:], image)
    with pytest.raises(sf.Refusal, match="unknown grid"):
        sf.grids.plot("karas", tmp_path / "none.png", schedule)
    with pytest.raises(sf.Refusal, match="no grid"):
        sf.grids.plot([], tmp_path / "none.png", schedule)


def test_what_an_image_looks_like_along_a_schedule() -> None:
    from sfumato.schedules.plots import strip, table

    image = torch.full((4, 4), 0.5)
    drawn = strip(sf.schedules.get("flow"), image, columns=3)
    assert drawn.shape == (4, 12)
    assert torch.equal(drawn[:, :4], image)
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(drawn[:, 8:], noise.clamp(-1, 1))
    rows = table(sf.schedules.get("flow"), rows=5)
    assert rows[1] == pytest.approx((0.25, 0.75, 0.25, 2 * math.log(3)), rel=1e-12)


def test_inspect_a_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato.cli.inspect import inspect_target

    inspect_target("flow", tmp_path / "flow.png")
    printed = capsys.readouterr().out
    assert "0.50   0.500000        0.5      0.000" in printed
    assert (tmp_path / "flow.png").stat().st_size > 2000
    with pytest.raises(sf.Refusal, match="exists already"):
        inspect_target("flow", tmp_path / "flow.png")
