"""Every metric of features against an independent implementation of it on the same features, to 1e-6 relative."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from sfumato import metrics
from sfumato.errors import Refusal
from sfumato.metrics import kernels, manifolds, sliced

SAME = 1e-6
pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features:UserWarning")


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    """Features like a network's: correlated, not negative, some of them rarely on."""
    mix = normal(d, d, 100) / d**0.5
    return ((normal(n, d, seed) + shift) @ mix - 0.3).relu()


class Flat(nn.Module):
    """The features themselves, for metrics that bring their own network."""

    num_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.num_features]


def images(features: Tensor) -> Tensor:
    """Features in a form that torchmetrics takes for images."""
    return features[:, :, None, None]


def test_frechet_is_that_of_torchmetrics() -> None:
    x, y = skewed(700, 24, 0, 0.2), skewed(900, 24, 1)
    judge = FrechetInceptionDistance(feature=Flat())
    judge.update(images(y), real=True)
    judge.update(images(x), real=False)
    assert metrics.frechet_distance(x, y) == pytest.approx(float(judge.compute()), rel=SAME)


@pytest.mark.parametrize("subset", [100, 400])
def test_kernel_distances_are_those_of_torchmetrics(subset: int) -> None:
    x, y = skewed(400, 24, 2, 0.3), skewed(400, 24, 3)

    def judged(a: Tensor, b: Tensor) -> float:
        judge = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=subset)
        judge.update(images(b), real=True)
        judge.update(images(a), real=False)
        return float(judge.compute()[0])

    if subset == 400:  # one subset of all: the unbiased estimate over all pairs
        assert metrics.kernel_distance(x, y) == pytest.approx(judged(x, y), rel=SAME)
        assert metrics.mmd(x, y, metrics.Cubic()).value == pytest.approx(judged(x, y), rel=SAME)
        return
    values = [judged(x[rows], y[rows]) for rows in kernels.blocks_of(400, 4, subset)]
    found = metrics.block_distance(x, y, size=subset)
    assert found.value == pytest.approx(np.mean(values), rel=SAME)
    assert found.error == pytest.approx(np.std(values, ddof=1) / 2, rel=SAME)


def test_kernels_are_those_of_scikit_learn() -> None:
    x, y = skewed(50, 7, 0).numpy(), skewed(60, 7, 1).numpy()
    own = metrics.Cubic()(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert np.allclose(own, polynomial_kernel(x, y, degree=3, gamma=1 / 7, coef0=1), rtol=1e-12)
    radial = metrics.Radial((0.7, 2.0))(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert np.allclose(radial, (rbf_kernel(x, y, 1 / (2 * 0.49)) + rbf_kernel(x, y, 1 / 8)) / 2, rtol=1e-9)


def test_radial_distance_is_that_of_scikit_learns_kernels() -> None:
    x, y = skewed(1100, 6, 0, 0.3), skewed(1200, 6, 1)
    kernel = metrics.radial_of(y)
    from scipy.spatial.distance import pdist

    scale = np.sort(pdist(y[torch.arange(1000) * 1200 // 1000].numpy()))
    assert kernel.widths[2] == pytest.approx(scale[(len(scale) - 1) // 2], rel=1e-9)

    def k(a: Tensor, b: Tensor) -> np.ndarray:
        parts = [rbf_kernel(a.numpy(), b.numpy(), 1 / (2 * width**2)) for width in kernel.widths]
        return np.asarray(sum(parts) / len(parts))

    within = [(k(a, a).sum() - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y)]
    assert metrics.mmd(x, y, kernel).value == pytest.approx(sum(within) - 2 * k(x, y).mean(), rel=SAME)


def test_neighbourhoods_are_those_of_scikit_learn() -> None:
    real, generated = skewed(1100, 8, 0), 0.9 * skewed(1050, 8, 1) + 0.05

    def reach(x: Tensor, k: int) -> np.ndarray:
        return np.asarray(NearestNeighbors(n_neighbors=k + 1).fit(x.numpy()).kneighbors(x.numpy())[0][:, k])

    distance = np.linalg.norm(real.numpy()[:, None] - generated.numpy()[None], axis=2)
    for k in (3, 5):
        inside = distance <= reach(real, k)[:, None]
        assert manifolds.precision(real, generated, k).value == pytest.approx(inside.any(0).mean(), rel=SAME)
        assert manifolds.density(real, generated, k).value == pytest.approx(inside.sum(0).mean() / k, rel=SAME)
        assert manifolds.coverage(real, generated, k).value == pytest.approx(inside.any(1).mean(), rel=SAME)
        within = (distance <= reach(generated, k)).any(1).mean()
        assert manifolds.recall(real, generated, k).value == pytest.approx(within, rel=SAME)


@pytest.mark.parametrize("m", [300, 350, 113])
def test_sliced_distance_is_that_of_pot(m: int) -> None:
    x, y = skewed(300, 9, 0, 0.4), skewed(m, 9, 1)
    lines = sliced.directions(9, 60, seed=5)
    exact = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=lines.numpy().T, p=2)
    found = metrics.sliced_wasserstein(x, y, projections=60, seed=5).value
    assert found == pytest.approx(float(exact), rel=SAME)


def test_inception_score_is_that_of_torchmetrics() -> None:
    logits = 2 * normal(600, 15, 0)
    judge = InceptionScore(feature=Flat(), splits=10)
    judge.update(images(logits))
    torch.manual_seed(3)
    mean, deviation = judge.compute()
    torch.manual_seed(3)
    order = torch.randperm(600)  # it shuffles
    found = metrics.inception_score(logits[order])
    assert found.value == pytest.approx(float(mean), rel=SAME)
    assert found.error == pytest.approx(float(deviation) / 10**0.5, rel=SAME)


# ------------------------------------------------------------------------------------------------------ closed forms


def test_inception_score_of_certain_and_of_ignorant_classifiers() -> None:
    sure = 800.0 * torch.eye(5, dtype=torch.float64).repeat(40, 1)
    assert metrics.inception_score(sure).value == pytest.approx(5)
    assert metrics.inception_score(torch.zeros(40, 7)).value == pytest.approx(1)
    with pytest.raises(Refusal, match="n at least 20"):
        metrics.inception_score(torch.zeros(19, 7))
    with pytest.raises(Refusal, match="splits = 1"):
        metrics.inception_score(torch.zeros(40, 7), splits=1)


def test_sliced_distance_of_a_shift() -> None:
    """Along u a shift by v moves everything by u.v, whose mean square is v^2 / d; equal sets are 0 apart."""
    x, shift = normal(200, 4, 0), torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert metrics.sliced_wasserstein(x, x).value == pytest.approx(0, abs=1e-12)
    exact = float((sliced.directions(4) @ shift).square().mean()) ** 0.5
    assert metrics.sliced_wasserstein(x + shift, x).value == pytest.approx(exact, rel=1e-12)
    assert exact == pytest.approx(1.5, rel=0.1)
    with pytest.raises(Refusal, match="projections = 0"):
        metrics.sliced_wasserstein(x, x, projections=0)


def test_density_and_coverage_of_a_line() -> None:
    """k = 1: real 0, 1, 3 have balls [-1, 1], [0, 2], [1, 5]; generated 1.5 lies in two, 4 in one, 9 in none."""
    real, generated = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[1.5], [4.0], [9.0]])
    assert manifolds.density(real, generated, 1).value == pytest.approx(1)
    assert manifolds.coverage(real, generated, 1).value == pytest.approx(2 / 3)
    # a stray real sample with a huge ball raises precision, not coverage
    far = torch.cat([real, torch.tensor([[90.0]])])
    assert manifolds.precision(far, generated, 1).value == pytest.approx(1)
    assert manifolds.coverage(far, generated, 1).value == pytest.approx(3 / 4)


# ---------------------------------------------------------------------------------------------------- standard errors


def spread(measure: object, draws: int = 40, n: int = 160) -> tuple[float, float]:
    """The standard deviation of a metric over fresh sets, and the mean of the errors that it states."""
    reference = skewed(900, 6, 10_000)
    found = [measure(skewed(n, 6, seed, 0.25), reference) for seed in range(draws)]  # type: ignore[operator]
    return float(np.std([f.value for f in found], ddof=1)), float(np.mean([f.error for f in found]))


def frechet(x: Tensor, reference: Tensor) -> metrics.Estimate:
    return metrics.Estimate(
        metrics.frechet_distance(x, reference), metrics.frechet_error(x, metrics.moments(reference))
    )


#: What each stated error may be of the actual one: forty draws know a deviation to 11%, and a jackknife of what any
#: neighbour reaches is too large.
NEAR, CAUTIOUS = (0.65, 1.5), (0.9, 2.2)


@pytest.mark.parametrize(
    ("measure", "bounds"),
    [
        (frechet, NEAR),
        (lambda x, y: metrics.mmd(x, y, metrics.Cubic()), NEAR),
        (lambda x, y: metrics.mmd(x, y, metrics.Radial((1.0,))), NEAR),
        (lambda x, y: metrics.block_distance(x, y, 16), NEAR),
        (lambda x, y: metrics.sliced_wasserstein(x, y, projections=20), NEAR),
        (lambda x, y: manifolds.precision(y[:160], x), NEAR),
        (lambda x, y: manifolds.recall(y[:160], x), CAUTIOUS),
        (lambda x, y: manifolds.density(y[:160], x), NEAR),
        (lambda x, y: manifolds.coverage(y[:160], x), CAUTIOUS),
    ],
    ids=["frechet", "kernel", "radial", "blocks", "sliced", "precision", "recall", "density", "coverage"],
)
def test_stated_errors_are_those_of_repeated_draws(measure: object, bounds: tuple[float, float]) -> None:
    actual, stated = spread(measure)
    assert bounds[0] < stated / actual < bounds[1]


#: Ten kinds that stand far apart, as classes do in feature space.
KINDS = 12 * normal(10, 6, 7)


def in_turn(n: int, seed: int) -> Tensor:
    """Kinds in turn, as samples of all classes are drawn."""
    return KINDS[torch.arange(n) % 10] + normal(n, 6, seed)


@pytest.mark.parametrize(
    ("measure", "bounds"),
    [
        (lambda x, y: metrics.sliced_wasserstein(x, y, projections=20), (0.6, 1.8)),
        (lambda x, y: manifolds.recall(y[:200], x), (0.95, 2.0)),
        (lambda x, y: manifolds.coverage(y[:200], x), (0.95, 2.0)),
    ],
    ids=["sliced", "recall", "coverage"],
)
def test_errors_of_kinds_in_turn(measure: object, bounds: tuple[float, float]) -> None:
    reference = in_turn(900, 10_000)
    found = [measure(in_turn(200, seed), reference) for seed in range(30)]  # type: ignore[operator]
    actual = float(np.std([f.value for f in found], ddof=1))
    assert bounds[0] < float(np.mean([f.error for f in found])) / actual < bounds[1]


def test_the_scale_of_a_radial_kernel_is_that_of_all_kinds_of_a_sorted_reference() -> None:
    kinds = torch.cat([normal(1000, 3, 0), normal(1000, 3, 1) + 50])
    assert kernels.median_distance(kinds) > 40
    few = kinds[[0, 1, 1500]]
    assert kernels.median_distance(few) == pytest.approx(float(torch.nn.functional.pdist(few).median()))


def test_the_error_of_a_kernel_distance_is_that_of_leaving_each_vector_out() -> None:
    x, y = skewed(14, 5, 0), skewed(17, 5, 1)
    without = [metrics.mmd(torch.cat([x[:k], x[k + 1 :]]), y, metrics.Cubic()).value for k in range(14)]
    exact = (13 / 14 * ((np.array(without) - np.mean(without)) ** 2).sum()) ** 0.5
    assert metrics.mmd(x, y, metrics.Cubic()).error == pytest.approx(exact, rel=1e-9)


def test_block_distance_refuses_and_the_block_follows_the_sets() -> None:
    assert [kernels.block_size(*sizes) for sizes in ((2000, 10_000), (50_000, 60_000), (90, 400))] == [200, 1000, 9]
    with pytest.raises(Refusal, match="blocks of 2 from sets of 40 and 40"):
        metrics.block_distance(normal(40, 3, 0), normal(40, 3, 1), 2)
    with pytest.raises(Refusal, match="at least 2 blocks of 3"):
        metrics.block_distance(normal(40, 3, 0), normal(40, 3, 1), 30)
    with pytest.raises(Refusal, match="has no scale"):
        metrics.radial_of(torch.zeros(20, 3))
    with pytest.raises(Refusal, match="positive numbers"):
        metrics.Radial((1.0, 0.0))
