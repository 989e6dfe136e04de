"""Every registered schedule and grid keeps the laws of the public kit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.testing import check_grid, check_schedule


@pytest.mark.parametrize("name", list(sf.schedules.registry))
def test_schedule(name: str) -> None:
    check_schedule(sf.schedules.get(name))


#: The same schedules at other settings; every setting of every schedule is varied once.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"steps": 3}),
    ("scaled-linear", {"steps": 10, "beta_start": 0.01, "beta_end": 0.5}),
    ("cosine", {"steps": 40, "offset": 0.1, "max_beta": 0.9}),
    ("flow", {"shift": 3.0}),
    ("flow", {"shift": 0.3}),
    ("karras", {"sigma_max": 5.0, "rho": 3.0}),
    ("sigmoid", {"start": 0.0, "end": 3.0, "tau": 0.7, "floor": 0.0}),
    ("polynomial", {"steps": 50, "power": 3.0, "precision": 1e-3}),
    ("log-linear", {"highest": 5.0, "lowest": -3.0, "first": 0.05}),
    ("vp", {"beta_min": 1.0, "beta_max": 1.0}),
    ("sub-vp", {"beta_min": 0.5, "beta_max": 8.0}),
    ("geometric", {"sigma_min": 0.1, "sigma_max": 3.0}),
    ("levels", {"sigma_max": 1.0, "sigma_min": 0.5, "count": 2}),
    ("levels", {"count": 1}),
    ("zero-terminal", {"base": "cosine", "steps": 5}),
    ("learned", {"gamma_0": -5.0, "gamma_1": 2.0, "hidden": 3, "first": 0.01}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=[f"{name} {next(iter(s))}" for name, s in SETTINGS])
def test_schedule_at_other_settings(name: str, settings: dict[str, Any]) -> None:
    check_schedule(sf.schedules.get(name, **settings))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_learned_schedule_of_any_weights_and_its_frozen_copy(seed: int) -> None:
    learned = sf.schedules.Learned()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise))
    check_schedule(learned)
    frozen = sf.schedules.freeze(learned)
    check_schedule(frozen)
    t = torch.linspace(0, 1, 777, dtype=torch.float64)
    for live, tabulated in zip(learned(t), frozen(t), strict=True):
        assert float((live.detach() - tabulated).abs().max()) < 1e-9
    assert sf.schedules.freeze(frozen) is frozen


@pytest.mark.parametrize("schedule", sf.schedules.names())
@pytest.mark.parametrize("name", sf.grids.names())
def test_grid(name: str, schedule: str) -> None:
    check_grid(sf.grids.get(name), sf.schedules.get(schedule))


def test_the_kit_sees_a_schedule_that_does_not_start_at_the_data() -> None:
    def blurred(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - t, 0.01 + 0.99 * t

    with pytest.raises(AssertionError, match=r"must be exactly \(1, 0\)"):
        check_schedule(blurred)


def test_the_kit_sees_a_schedule_whose_snr_rises() -> None:
    def wave(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - t, t * (1.2 - torch.sin(6 * t))

    with pytest.raises(AssertionError, match="does not fall"):
        check_schedule(wave)


def test_the_kit_sees_a_grid_of_one_time_too_many() -> None:
    def arange(schedule: object, n: int) -> torch.Tensor:
        return torch.arange(1.0, -1e-9, -1 / (n + 1), dtype=torch.float64)

    with pytest.raises(AssertionError, match="n=1 gives 3 times, must be 2"):
        check_grid(arange, sf.schedules.get("flow"))
