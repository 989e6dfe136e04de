"""Every refusal of a sampler advises another that takes the process: on every process, by following the advice."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.laws import Dirac
from sfumato.oracles import ManifoldData
from sfumato.processes import (
    Blocks,
    Brownian,
    Circles,
    Cold,
    Gaussian,
    Geodesic,
    Heat,
    Interpolant,
    Jump,
    Mixed,
    Product,
    Rotations,
    absorbing,
    uniform,
)
from sfumato.processes.mixed import NUMBERS, TOKENS, Together, join
from sfumato.samplers import PerPart
from sfumato.spaces import SO3, Torus
from sfumato.testing import Independent

FLOW = sf.schedules.get("flow")
GRID = [1.0, 0.7, 0.4, 0.0]
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 1.0]], 0.25)
CHAIN = sf.oracles.dirichlet(3, 4)
ANGLES = ManifoldData(Torus(), [[-1.0], [2.0]])
POSES = ManifoldData(SO3(), SO3().uniform(torch.zeros(2, 3, 3, dtype=torch.float64), sf.Stream(1)))
IMAGES = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Rows:
    """Numbers and tokens in one tensor, which know nothing of each other."""

    inside = Independent({NUMBERS: MIXTURE, TOKENS: CHAIN})

    def sample(self, n: int, rng: Any) -> Tensor:
        return join(self.inside.sample(n, rng))

    def denoiser(self, process: Any) -> Any:
        exact = self.inside.denoiser(process.product)
        return lambda x, t, cond=None: Together(exact(process.split(x), t))


class Restores:
    """Images, and a model that gives back most of what it sees."""

    def sample(self, n: int, rng: Any) -> Tensor:
        return IMAGES[:n]

    def denoiser(self, process: Any) -> Any:
        return lambda x, t, cond=None: Dirac(0.9 * x + 0.1)


def product(**parts: Any) -> tuple[Any, Any]:
    return Product({key: process for key, (process, _) in parts.items()}), Independent(
        {key: oracle for key, (_, oracle) in parts.items()}
    )


LINE, COUPLED, MASKED = (Gaussian(FLOW), MIXTURE), (Interpolant(FLOW), MIXTURE), (Jump(absorbing(4), FLOW), CHAIN)
BENT, TURNED = (Geodesic(Torus()), ANGLES), (Brownian(Rotations()), POSES)
CASES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gaussian": lambda: LINE,
    "coupled path": lambda: COUPLED,
    "masked tokens": lambda: MASKED,
    "redrawn tokens": lambda: (Jump(uniform(3), FLOW), CHAIN),
    "blocks": lambda: (Blocks(Jump(absorbing(4), FLOW), 2), CHAIN),
    "geodesic": lambda: BENT,
    "walk on the torus": lambda: (Brownian(Circles()), ANGLES),
    "walk of rotations": lambda: TURNED,
    "cold": lambda: (Cold(sf.degradations.Blur(2.0)).fit(IMAGES), Restores()),
    "heat": lambda: (Heat().fit(IMAGES), Restores()),
    "numbers": lambda: product(x=LINE, y=LINE),
    "numbers and tokens": lambda: product(x=LINE, kind=MASKED),
    "numbers and tokens in one tensor": lambda: (Mixed(Gaussian(FLOW), 2, 3, FLOW), Rows()),
    "coupled numbers and tokens in one tensor": lambda: (Mixed(Interpolant(FLOW), 2, 3, FLOW), Rows()),
    "angles and tokens": lambda: product(angle=BENT, kind=MASKED),
    "angles and numbers": lambda: product(angle=BENT, x=LINE),
    "angles and coupled numbers": lambda: product(angle=BENT, x=COUPLED),
    "coupled numbers and tokens": lambda: product(x=COUPLED, kind=MASKED),
    "poses and tokens": lambda: product(pose=TURNED, kind=MASKED),
    "poses and angles": lambda: product(pose=TURNED, angle=BENT),
    "poses, and numbers with tokens": lambda: product(pose=TURNED, inner=product(x=LINE, kind=MASKED)),
}
SAMPLERS = [*sf.samplers.names(), "ddim:eta=0.5", "walk:eta=0"]


def runs(process: Any, oracle: Any, sampler: Any) -> None:
    """Walk a few steps; raises what the sampler refuses."""
    x1 = process.prior(oracle.sample(3, sf.Stream(0))).draw(sf.Stream(1))
    x = sf.sample(oracle.denoiser(process), process, sampler, GRID, x1, rng=2)
    assert all(bool(torch.isfinite(part).all()) for part in leaves(x))


def leaves(x: Any) -> list[Tensor]:
    return [leaf for part in x.values() for leaf in leaves(part)] if isinstance(x, dict) else [x.double()]


def advised(refusal: str) -> list[Any]:
    """The samplers that a refusal names, built as it says."""
    mend = refusal.partition("; use ")[2]
    own = {key: name for name, key in re.findall(r"'([\w-]+)' for '(\w+)'", mend)}
    if mend.startswith("PerPart"):
        return [PerPart({key: sf.samplers.get(name) for key, name in own.items()})]
    return [sf.samplers.build(name) for name in re.findall(r"'([\w:=-]+)'", mend)]


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_of_a_sampler_advises_one_that_works(name: str) -> None:
    process, oracle = CASES[name]()
    taken, refused = [], []
    for text in SAMPLERS:
        try:
            runs(process, oracle, sf.samplers.build(text))
        except sf.Refusal as refusal:
            refused.append(str(refusal))
            continue
        taken.append(text)
    mends = {text: advised(text) for text in refused}
    for refusal, samplers in mends.items():
        assert "\n" not in refusal
        assert samplers, refusal
        for sampler in samplers:
            runs(process, oracle, sampler)
    assert refused
    assert taken or name.startswith("poses")


@pytest.mark.parametrize("name", ["numbers and tokens in one tensor", "coupled numbers and tokens in one tensor"])
def test_tokens_beside_numbers_have_no_points_to_follow(name: str) -> None:
    process, oracle = CASES[name]()
    with pytest.raises(sf.Refusal, match="tokens have none between them; use 'ddpm'"):
        runs(process, oracle, sf.samplers.get("ddim"))


def test_a_part_that_needs_more_calls_is_told_what_takes_one() -> None:
    for key, name in (("x", "heun"), ("kind", "tau-leaping:corrections=1"), ("angle", "heun")):
        process, oracle = product(x=LINE, kind=MASKED, angle=BENT)
        own = {"x": "ddim", "kind": "ddpm", "angle": "ddim"}
        samplers = {part: sf.samplers.get(sampler) for part, sampler in own.items()}
        with pytest.raises(sf.Refusal, match=f"part '{key}' 2 times a step") as refusal:
            runs(process, oracle, PerPart(samplers | {key: sf.samplers.build(name)}))
        for other in advised(str(refusal.value)):
            runs(process, oracle, PerPart(samplers | {key: other}))


def test_what_cannot_be_walked_back_is_told_so() -> None:
    process, oracle = BENT
    x0 = oracle.sample(3, sf.Stream(0))
    with pytest.raises(sf.Refusal, match="GeodesicWalk draws noise and cannot be walked back; invert with 'ddim'"):
        sf.samplers.invert(oracle.denoiser(process), process, sf.samplers.get("walk"), GRID, x0)
    there = sf.samplers.invert(oracle.denoiser(process), process, sf.samplers.get("ddim"), GRID, x0)
    assert bool(torch.isfinite(there).all())
    process, oracle = MASKED
    for name in ("ddpm", "ddim"):
        with pytest.raises(sf.Refusal, match="tokens of a Jump are drawn"):
            sf.samplers.invert(
                oracle.denoiser(process), process, sf.samplers.get(name), GRID, oracle.sample(3, sf.Stream(0))
            )
