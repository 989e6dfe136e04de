"""Samplers inside samplers: corrections reach the end, restarts fit every solver, nothing hides a state that is not
finite."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import sfumato as sf

MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)
PROCESS = sf.processes.Gaussian(sf.schedules.get("karras"))
GRID = sf.grids.get("karras")(PROCESS.schedule, 10)
X1 = PROCESS.prior(torch.zeros(64, 2, dtype=torch.float64)).draw(sf.Stream(0))
ORDERED = [name for name in sf.samplers.names() if sf.samplers.get(name).order is not None]
FAST = [name for name in ORDERED if name != "rk45"]


@pytest.mark.parametrize("predictor", FAST)
def test_the_predictor_goes_on_from_the_corrected_state(predictor: str) -> None:
    """A predictor that went on from its own past would lose the correction: every step is as its first one is."""
    model, sampler = MIXTURE.denoiser(PROCESS), sf.samplers.build(f"pc:predictor={predictor}:snr=0.3")
    x, source, times = X1, sf.Stream(1), GRID.tolist()
    with torch.no_grad():
        for t, s in pairwise(times):
            x = sampler.correct(model, PROCESS, x, t, source)
            first = sampler.predictor.start(model, PROCESS, times)
            x = sampler.predictor.step(model, PROCESS, x, t, s, first, source)[0]
    assert torch.equal(sf.sample(model, PROCESS, sampler, GRID, X1, rng=sf.Stream(1)), x)


@pytest.mark.parametrize("solver", ORDERED)
def test_restarts_fit_every_solver(solver: str) -> None:
    sampler = sf.samplers.build(f"restart:solver={solver}")
    x = sf.sample(MIXTURE.denoiser(PROCESS), PROCESS, sampler, GRID, X1, rng=1)
    nearest = torch.cdist(x, torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]]).double()).amin(1)
    assert float(nearest.median()) < 0.6


@pytest.mark.parametrize("name", FAST)
def test_every_solver_inverts_from_the_data(name: str) -> None:
    process = sf.processes.Gaussian(sf.schedules.get("flow"))
    model, x0 = MIXTURE.denoiser(process), MIXTURE.sample(16, 0)
    grid = sf.grids.uniform(process.schedule, 60)
    noise = sf.samplers.invert(model, process, sf.samplers.get(name), grid, x0)
    assert bool(torch.isfinite(noise).all()), name
    assert float(noise.std()) < 2.0


class Broken:
    """A model that stops being finite."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        return sf.laws.Dirac(torch.full_like(x_t, float("nan")))


def test_rk45_stops_at_a_state_that_is_not_finite() -> None:
    model = Broken()
    with pytest.raises(sf.Refusal, match="rk45: the state is not finite"):
        sf.sample(model, PROCESS, sf.samplers.get("rk45"), [1.0, 0.0], X1)
    assert model.calls < 20


def test_churn_refuses_a_history() -> None:
    churned = sf.samplers.Churned(sf.samplers.get("dpmpp-2m"), 1.0)
    with pytest.raises(sf.Refusal, match="DPMSolverPP2M keeps a history, which churn would falsify"):
        sf.samplers.trajectory(MIXTURE.denoiser(PROCESS), PROCESS, churned, GRID, X1, rng=0)


@pytest.mark.parametrize(
    ("predictor", "corrector", "order"), [(1, 0, 1), (4, 0, 2), (1, 2, 2), (2, 3, 3), (3, 4, 3), (4, 4, 3)]
)
def test_adams_declares_what_its_first_step_allows(predictor: int, corrector: int, order: int) -> None:
    assert sf.samplers.get("adams", predictor=predictor, corrector=corrector).order == order
