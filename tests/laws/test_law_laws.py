"""Law 8 and the laws of laws: Dirac, Normal, Categorical, Joint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.laws import Categorical, Dirac, Joint, Normal, natural_pool, pool
from sfumato.laws.manifold import Along
from sfumato.processes.heat import Restoration
from sfumato.spaces import SO3, Simplex, Sphere, Torus
from sfumato.testing import check_law, check_pool

N = 100_000


def normal(mean: float, var: float) -> Normal:
    return Normal(torch.full((N, 2), mean, dtype=torch.float64), torch.tensor([var, 2 * var], dtype=torch.float64))


def categorical(*p: float) -> Categorical:
    return Categorical(torch.tensor(p, dtype=torch.float64).log().expand(N, 2, len(p)))


def test_normal() -> None:
    check_law(normal(0.3, 0.5), normal(-0.2, 0.9), sf.Stream(0))


def test_normal_with_a_number_for_variance() -> None:
    mean = torch.zeros(N, 3, dtype=torch.float64)
    check_law(Normal(mean, 0.5), Normal(mean + 0.3, 0.8), sf.Stream(0))


def test_categorical() -> None:
    check_law(categorical(0.5, 0.3, 0.2), categorical(0.2, 0.3, 0.5), sf.Stream(0))


def test_joint() -> None:
    a = Joint({"x": normal(0.3, 0.5), "c": categorical(0.5, 0.3, 0.2)})
    b = Joint({"x": normal(0.0, 0.8), "c": categorical(0.2, 0.3, 0.5)})
    # pooling is checked part by part: a joint's point mixes states and tokens
    for key in a.parts:
        check_law(a.parts[key], b.parts[key], sf.Stream(1))
    assert set(a.kl(b)) == {"x", "c"}
    tilted = a.tilt(b, {"x": 2.0, "c": 1.0})
    assert torch.allclose(tilted.point()["x"], 2 * a.parts["x"].mean - b.parts["x"].mean)
    assert torch.equal(tilted.parts["c"].logp, a.parts["c"].logp.log_softmax(-1))


def test_dirac() -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    check_pool([Dirac(x + 1), Dirac(x)], sf.Stream(0))
    assert Dirac(x).nll(x).tolist() == [0.0] * 5
    assert Dirac(x).nll(x + 1).tolist() == [math.inf] * 5
    q = Normal(x + 0.5, 0.3)
    assert torch.equal(Dirac(x).kl(q), q.nll(x))


def test_points_with_a_noise_of_their_own() -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    check_pool([Restoration(x + 1, 0.3), Restoration(x, 0.1)], sf.Stream(0))
    assert Restoration(x, 0.1).tilt(Restoration(x + 1, 0.3), 2.0).delta == 0.1


@pytest.mark.parametrize(("space", "shape"), [(Torus(), (2,)), (Sphere(), (3,)), (SO3(), (3, 3)), (Simplex(), (4,))])
def test_points_along_tangents(space: Any, shape: tuple[int, ...]) -> None:
    x = space.uniform(torch.zeros(5, *shape, dtype=torch.float64), sf.Stream(0))
    v, u = (0.3 * space.noise(x, sf.Stream(seed)) for seed in (1, 2))
    check_pool([Along(x, u, space), Along(x, v, space)], sf.Stream(3))
    guided = Along(x, v, space).tilt(Along(x, u, space), 1.5)
    assert space.contains(guided.point())
    assert torch.allclose(guided.point(), space.exp(x, 1.5 * v - 0.5 * u), atol=1e-9)


def test_the_kit_sees_points_of_a_manifold_that_are_averaged() -> None:
    class Averaged(Along):  # type: ignore[misc]
        """Angles mixed as numbers, not as ways from one place."""

        @staticmethod
        def pool(laws: Any, weights: Any) -> Averaged:
            x = sum(w * law.point() for law, w in zip(laws, weights, strict=True))
            return Averaged(laws[0].x, Torus().project(x) - laws[0].x, Torus())

    x = torch.tensor([[3.0]], dtype=torch.float64)
    with pytest.raises(AssertionError, match="pool of Averaged"):
        check_pool([Averaged(x, x - 2.5, Torus()), Averaged(x, x - 3.3, Torus())], sf.Stream(0))


def test_what_one_term_forbids_stays_forbidden() -> None:
    law, reference = categorical(0.5, 0.5, 0.0), categorical(0.2, 0.3, 0.5)
    check_pool([reference, law], sf.Stream(0))
    assert pool([reference, law], [0.0, 1.0]).logp[0, 0, 2] == -math.inf
    assert pool([law, reference], [0.0, 1.0]).logp[0, 0, 2] > -1


def test_a_categorical_never_draws_a_token_of_no_mass_at_the_edges() -> None:
    class Edge:
        def uniform(self, shape: tuple[int, ...], rows: object = None) -> torch.Tensor:
            return torch.full(shape, 1 - 2**-24)

        normal = uniform

    law = Categorical(torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]]).log())
    assert law.draw(Edge()).tolist() == [1, 1]
    assert law.point().tolist() == [1, 1]


def test_normals_pool_by_means_and_keep_the_conditional_variance() -> None:
    guided = normal(1.0, 0.2).tilt(normal(0.0, 0.7), 3.0)
    assert torch.allclose(guided.mean, torch.full_like(guided.mean, 3.0))
    assert torch.equal(torch.as_tensor(guided.var), normal(0.0, 0.2).var)


def test_weights_per_sample() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    guided = Dirac(x + 1).tilt(Dirac(x), torch.tensor([0.0, 1.0, 2.5]))
    assert guided.point()[:, 0].tolist() == [0.0, 1.0, 2.5]


def test_the_natural_pool_is_the_exact_tilt() -> None:
    # N(1, .25)^2 / N(0, 1) = N(8/7, 1/7)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    law = natural_pool([Normal(zero, 1.0), Normal(one, 0.25)], [-1.0, 2.0])
    assert law.mean.item() == pytest.approx(8 / 7, abs=1e-12)
    assert law.var.item() == pytest.approx(1 / 7, abs=1e-12)
    floored = natural_pool([Normal(zero, 0.25), Normal(one, 1.0)], [-1.0, 2.0])
    assert floored.var.item() == pytest.approx(1.0)
    assert floored.mean.item() == pytest.approx(2.0)


def test_laws_without_closed_forms_refuse() -> None:
    x = torch.zeros(2, 1)
    through = sf.laws.Through(Dirac(x), lambda point: Normal(point.x, 1.0))
    for call in (lambda: through.kl(Dirac(x)), lambda: through.nll(x), lambda: Normal(x, 1.0).kl(Dirac(x))):
        with pytest.raises(sf.Refusal, match="no closed form"):
            call()


def test_the_kit_sees_a_missing_square_root() -> None:
    class Loud:
        """A Normal drawn with its variance in place of its standard deviation."""

        leaves = ("mean",)

        def __init__(self, law: Normal) -> None:
            self.law, self.mean = law, law.mean

        def draw(self, rng: sf.core.RNG) -> torch.Tensor:
            return self.law.mean + self.law.var * rng.normal(tuple(self.law.mean.shape))

        def __getattr__(self, name: str) -> object:
            return getattr(self.law, name)

    with pytest.raises(AssertionError, match=r"densities are not normalised"):
        check_law(Loud(normal(0.0, 0.5)), normal(0.2, 0.9), sf.Stream(0))
