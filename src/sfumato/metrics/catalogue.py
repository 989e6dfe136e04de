"""The metrics by name: what each one measures, in which direction it improves, and the paper that it follows.

The contract: a metric is a function of the features of samples and of a :class:`Target` alone; its ``rule`` names all
that was chosen in it, so that two records with one rule, one n and one reference can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sfumato.errors import Refusal, nearest
from sfumato.metrics import manifolds, sliced
from sfumato.metrics.distances import Estimate, Moments, frechet_error, frechet_from_moments, moments
from sfumato.metrics.extractors import Classifier, Extractor
from sfumato.metrics.kernels import BLOCK, BLOCKS, MEDIAN_OF, WIDTHS, Cubic, Embedded, block_distance, radial_of
from sfumato.metrics.scores import SPLITS, inception_score

#: Neighbours of precision and recall, of density and coverage: those of the papers.
K, K_DENSITY = 3, 5


@final
@dataclass(frozen=True, eq=False)
class Target:
    """What samples are measured against: ``features`` of the whole reference, the rows ``part`` of it that metrics of
    two sets of one size use, and the extractor.  What several sets need of it is computed once.
    """

    features: Float[Tensor, "m d"]
    part: Int64[Tensor, " n_part"]
    extractor: Extractor

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the whole."""
        return moments(self.features)

    @cached_property
    def cubic(self) -> Embedded:
        """The whole in the polynomial kernel."""
        return Embedded.of(self.features, Cubic())

    @cached_property
    def radial(self) -> Embedded:
        """The whole in Gaussian kernels of its own scale."""
        return Embedded.of(self.features, radial_of(self.features))

    @cached_property
    def near(self) -> Float[Tensor, "n_part d"]:
        """The features of ``part``."""
        return self.features[self.part]


@final
@dataclass(frozen=True)
class Metric:
    """``measure(features, target)``.

    ``better``: the direction of improvement.  ``scope``: whether the reference is the whole test split, a part of it as
    large as the samples, or not seen.  ``least(d)``: the fewest samples and real samples for d features.  ``centred``:
    whether it is 0 on average for two sets of one law, so that its floor is a root mean square.  ``error``: its
    standard error, where that takes much longer than the value itself.
    """

    name: str
    better: Literal["lower", "higher"]
    scope: Literal["whole", "part", "none"]
    rule: str
    paper: str
    least: Callable[[int], int]
    measure: Callable[[Tensor, Target], Estimate]
    centred: bool = False
    error: Callable[[Tensor, Target], float | None] | None = None

    def floor(self, values: Sequence[float]) -> float:
        """What real samples give, from the values of several sets of them."""
        if self.centred:
            return math.sqrt(sum(value**2 for value in values) / len(values))
        return sum(values) / len(values)


def _frechet(x: Tensor, target: Target) -> Estimate:
    return Estimate(frechet_from_moments(moments(x), target.moments), frechet_error(x, target.moments))


def _score(x: Tensor, target: Target) -> Estimate:
    if not isinstance(target.extractor, Classifier):
        raise Refusal(f"the inception score asks a classifier, {target.extractor.name} is none; take mobilenet")
    return inception_score(target.extractor.logits(x.float()))


def _table(*rows: Metric) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in rows}


#: The metrics of features, in the order of records.
METRICS = _table(
    Metric(
        "frechet", "lower", "whole", "Fréchet distance of the features' Gaussians (unbiased covariances)",
        "Heusel et al. 2017, arXiv 1706.08500, eq. 6", lambda d: d + 1, _frechet,
    ),
    Metric(
        "kernel", "lower", "whole", "unbiased MMD^2, kernel (x.y/d + 1)^3, all pairs",
        "Binkowski et al. 2018, arXiv 1801.01401, section 4", lambda d: 3,
        lambda x, target: target.cubic.distance(x), centred=True,
    ),
    Metric(
        "precision", "higher", "part", f"share of samples within the reference's {K}-nearest-neighbour manifold",
        "Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-2", lambda d: K + 1,
        lambda x, target: manifolds.precision(target.near, x, K),
    ),
    Metric(
        "recall", "higher", "part", f"share of the reference within the samples' {K}-nearest-neighbour manifold",
        "Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-2", lambda d: K + 1,
        lambda x, target: manifolds.recall(target.near, x, K),
    ),
    Metric(
        "density", "higher", "part", f"mean number of the reference's {K_DENSITY}-neighbour balls around a sample, / k",
        "Naeem et al. 2020, arXiv 2002.09797, eq. 3", lambda d: K_DENSITY + 1,
        lambda x, target: manifolds.density(target.near, x, K_DENSITY),
    ),
    Metric(
        "coverage", "higher", "part", f"share of the reference's {K_DENSITY}-neighbour balls that hold a sample",
        "Naeem et al. 2020, arXiv 2002.09797, eq. 4", lambda d: K_DENSITY + 1,
        lambda x, target: manifolds.coverage(target.near, x, K_DENSITY),
    ),
    Metric(
        "kid", "lower", "whole", f"the same MMD^2 over disjoint blocks of {BLOCK}, or n/{BLOCKS} where that is less",
        "Binkowski et al. 2018, arXiv 1801.01401, section 4; Zaremba et al. 2013, arXiv 1307.1954, eq. 4",
        lambda d: 3 * BLOCKS, lambda x, target: block_distance(x, target.features), centred=True,
    ),
    Metric(
        "mmd-rbf", "lower", "whole",
        f"unbiased MMD^2, mean of Gaussian kernels {', '.join(map(str, WIDTHS))} x the median distance "
        f"of {MEDIAN_OF:,} evenly spaced reference vectors",
        "Gretton et al. 2012, JMLR 13, eq. 3", lambda d: 3,
        lambda x, target: target.radial.distance(x), centred=True,
    ),
    Metric(
        "sliced-w2", "lower", "whole",
        f"2-Wasserstein distance along {sliced.PROJECTIONS} directions (root mean square)",
        "Bonneel et al. 2015, J. Math. Imaging Vis. 51, eq. 6-8", lambda d: 2 * manifolds.GROUPS,
        lambda x, target: sliced.sliced_wasserstein(x, target.features, groups=0),
        error=lambda x, target: sliced.sliced_wasserstein(x, target.features).error,
    ),
    Metric(
        "inception-score", "higher", "none", f"exp of the mean KL from the mean prediction, mean of {SPLITS} parts",
        "Salimans et al. 2016, arXiv 1606.03498, section 4", lambda d: 2 * SPLITS, _score,
    ),
)  # fmt: skip
#: What sees more than features: labels, or the training images themselves.
BESIDE = {
    "label-accuracy": "share of samples that the classifier gives the label they were asked for (the ten digits)",
    "copy-rate": "share of samples that are nearer to a training image than 99% of held-out images are, relative to "
    "its surroundings (Carlini et al. 2023, arXiv 2301.13188, section 4.2)",
}
#: What is measured unless told otherwise, by the kind of data.
DEFAULTS = {
    "images": ("frechet", "kernel", "precision", "recall", "label-accuracy", "copy-rate"),
    "points": ("frechet", "kernel", "precision", "recall", "sliced-w2"),
    "table": ("frechet", "kernel", "precision", "recall", "sliced-w2"),
    "series": ("frechet", "kernel", "precision", "recall", "sliced-w2"),
    "text": ("kernel", "precision", "recall"),
}


def names() -> tuple[str, ...]:
    """All metrics by name."""
    return (*METRICS, *BESIDE)


def read(text: str) -> tuple[str, ...]:
    """``"frechet,kid"`` as names, in the order of records; raises :class:`Refusal` for an unknown or repeated one."""
    chosen = [word.strip() for word in text.split(",")]
    for name in chosen:
        if name not in names():
            raise Refusal(f"unknown metric {name!r}; {nearest(name, names())}")
        if chosen.count(name) > 1:
            raise Refusal(f"--metrics {text} names {name} twice; name it once")
    return tuple(name for name in names() if name in chosen)


def least(chosen: Sequence[str], d: int) -> int:
    """The fewest samples, and real samples, that the chosen metrics take with d features."""
    return max([2, *(METRICS[name].least(d) for name in chosen if name in METRICS)])


def standardised(reference: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and deviation of every feature over a reference; a constant feature has deviation 1."""
    deviation = reference.double().std(0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return reference.double().mean(0).float(), scale.float()
