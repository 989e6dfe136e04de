"""Orders of convergence and errors of solvers on the two mixtures that they are measured on by name."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.oracles.problems import three_modes, unequal
from sfumato.testing import log_snr_grid, measure_order

EDM = sf.processes.Gaussian(sf.schedules.get("karras"))


def karras_levels(n: int) -> torch.Tensor:
    levels = torch.linspace(10 ** (1 / 7), 0.1 ** (1 / 7), n + 1, dtype=torch.float64) ** 7
    return torch.as_tensor(sf.schedules.time_at(EDM.schedule, -2 * levels.log()))


def even_levels(n: int) -> torch.Tensor:
    return log_snr_grid(EDM, n, -2 * math.log(10), 2 * math.log(10))


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "adams"])
def test_declared_order_in_64_dimensions(name: str) -> None:
    sampler: Any = sf.samplers.get(name)
    order, errors = measure_order(sampler, EDM, unequal(), karras_levels, (160, 320), batch=16)
    assert order == pytest.approx(sampler.order, abs=0.1), errors


def test_errors_of_the_singlestep_solver_of_order_3() -> None:
    """The errors measured elsewhere, on starts that are not known: a factor of 3 is what starts near a divide make."""
    _, errors = measure_order(sf.samplers.get("dpm-solver"), EDM, three_modes(), even_levels, (10, 20, 40, 80, 160))
    for found, elsewhere in zip(errors, (1.5e-3, 1.5e-4, 2.0e-5, 2.6e-6, 3.2e-7), strict=True):
        assert elsewhere / 3 < found < elsewhere * 3, errors
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(2.98, abs=0.1)


def test_the_published_order_3_of_dpmpp_falls_to_2() -> None:
    """About 2.3 on the way, as measured elsewhere; 2 in the end."""
    sampler = sf.samplers.get("dpmpp-3m", form="published")
    _, errors = measure_order(sampler, EDM, three_modes(), karras_levels, (40, 80, 160, 320))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == sorted(orders, reverse=True), orders
    assert orders[1] == pytest.approx(2.3, abs=0.1), orders
    assert orders[2] == pytest.approx(2.1, abs=0.1), orders
