"""Every registered schedule and grid keeps the laws of the public kit."""

from __future__ import annotations

import pytest
import torch

import sfumato as sf
from sfumato.testing import check_grid, check_schedule


@pytest.mark.parametrize("name", sf.schedules.names())
def test_schedule(name: str) -> None:
    check_schedule(sf.schedules.get(name))


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
