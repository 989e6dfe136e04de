"""Measure samples against a data set: every metric as a record, with the floor that real images reach.

The contract: the floor is the same computation, at the same n, with real images in the samples' place.  For
``frechet``, ``kernel``, ``precision`` and ``recall`` these are n training images, the mean over up to 5 disjoint sets
drawn by a fixed seed (for ``kernel``, whose mean is 0, the root mean square); for ``label-accuracy`` and ``copy-rate``
they are held-out images, since the classifier and the copies both know the training images.  Everything is a function
of its arguments: the same samples give the same records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from sfumato import __version__
from sfumato.data.sets import Data, Split
from sfumato.errors import Refusal
from sfumato.metrics import copies
from sfumato.metrics.classifier import DIMENSION, DigitNet, Images, digit_net, preparation
from sfumato.metrics.distances import (
    Moments,
    frechet_from_moments,
    kernel_between,
    kernel_within,
    moments,
    precision_recall,
)
from sfumato.metrics.records import Record

#: What ``label-accuracy`` can be measured for: the classes that the classifier knows.
DIGITS = tuple(str(k) for k in range(10))
#: The neighbours of the precision and recall manifolds.
K = 3
#: At most this many held-out images calibrate the copy rule.
CALIBRATION = 2000
#: The floor is the mean over this many disjoint sets of training images, where there are enough.
DRAWS = 5
#: Of the metrics that compare two sets of features: the better direction, whether the reference is the whole test split
#: (else ``part`` of it), and the rule.
RULES = {
    "frechet": ("lower", True, "Fréchet distance of the features' Gaussians (unbiased covariances)"),
    "kernel": ("lower", True, "unbiased MMD^2, kernel (x.y/d + 1)^3, all pairs"),
    "precision": ("higher", False, f"share of samples within the reference's {K}-nearest-neighbour manifold"),
    "recall": ("higher", False, f"share of the reference within the samples' {K}-nearest-neighbour manifold"),
}
#: What ``generated`` must say; a value may be None where it is not known.
REQUIRED = ("sampler", "nfe", "seed")

#: What a record keeps of how its samples were made, beside the first of their seeds.
KEPT = (
    "sampler", "steps", "grid", "nfe", "network_rows_per_sample", "guidance", "interval", "autoguide",
    "threshold", "weights", "compute",
)  # fmt: skip


def made(record: Mapping[str, Any]) -> dict[str, Any]:
    """``generated`` for :func:`evaluate`, from the record of :class:`~sfumato.training.samples.Samples`."""
    return {key: record[key] for key in KEPT} | {"nfe": float(record["nfe"]), "seed": record["seeds"][0]}


def limits(data: Data) -> tuple[int, int]:
    """The fewest and the most samples that can be evaluated: above the feature dimension, and at most the training set.

    Raises :class:`Refusal` where the data set itself is too small.
    """
    least, most = DIMENSION + 1, len(data.train)
    if len(data.test) < least or most < least:
        raise Refusal(
            f"{data.name} has {most} train and {len(data.test)} test images; the metrics need at least {least} of each"
        )
    return least, most


def _pictures(split: Split) -> UInt8[Tensor, "n h w"] | UInt8[Tensor, "n h w c"]:
    """A split's images in the user's layout."""
    return split.x[:, 0] if split.x.shape[1] == 1 else split.x.permute(0, 2, 3, 1)


def _some(size: int, n: int) -> Int64[Tensor, " n"]:
    """n of ``size`` rows without replacement, by a fixed seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:n]


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """What n samples are measured against; make it once to measure many sets of one n.

    ``test``: features of the whole test split, with their ``moments`` and ``within`` (the kernel distance's own term);
    ``part``: the rows of the test split that precision, recall and label accuracy use, ``min(n, n_test)`` of them;
    ``floor`` and ``floor_rule``: what real images give; ``held_out``: copy scores of test images.
    """

    data: Data
    n: int
    net: DigitNet
    test: Float32[Tensor, "n_test d"]
    moments: Moments
    within: float
    part: Int64[Tensor, " n_part"]
    floor: Mapping[str, float]
    floor_rule: str
    held_out: Float32[Tensor, " n_held"]

    @staticmethod
    def of(data: Data, n: int) -> Reference:
        """The reference for n samples.  Raises :class:`Refusal` for n outside :func:`limits`."""
        least, most = limits(data)
        if not least <= n <= most:
            raise Refusal(
                f"n = {n} samples; {data.name} can be evaluated with {least}..{most} (above the {DIMENSION} features, "
                "and no more than the training images that give the floor)"
            )
        net = digit_net()
        train, test = _pictures(data.train), _pictures(data.test)
        draws = min(DRAWS, most // n)
        features = net.features(test)
        bare = Reference(
            data=data,
            n=n,
            net=net,
            test=features,
            moments=moments(features),
            within=kernel_within(features),
            part=_some(len(test), n),
            floor={},
            floor_rule=f"mean over {draws} disjoint sets of n training images (kernel: root mean square)",
            held_out=copies.copy_scores(test[_some(len(test), CALIBRATION)], train),
        )
        sets = _some(most, draws * n).reshape(draws, n)
        found = [bare.compare(net.features(train[rows])) for rows in sets]
        floor = {name: sum(f[name] for f in found) / draws for name in RULES}
        floor["kernel"] = math.sqrt(sum(f["kernel"] ** 2 for f in found) / draws)
        return replace(bare, floor=floor)

    def compare(self, features: Float32[Tensor, "n d"]) -> dict[str, float]:
        """The metrics that compare two sets of features: Fréchet, kernel, precision, recall."""
        precision, recall = precision_recall(self.test[self.part], features, K)
        return {
            "frechet": frechet_from_moments(moments(features), self.moments),
            "kernel": kernel_within(features) + self.within - 2 * kernel_between(features, self.test),
            "precision": precision,
            "recall": recall,
        }


def measure(
    x: Images, label: Int64[Tensor, " _"] | None, reference: Reference, *, generated: Mapping[str, Any]
) -> list[Record]:
    """Measure n samples against a prepared reference; see :func:`evaluate`."""
    r, data = reference, reference.data
    missing = [key for key in REQUIRED if key not in generated]
    if missing:
        raise Refusal(f"generated lacks {', '.join(missing)}; say how the samples were made (None where not known)")
    real = _pictures(data.train)
    if x.dtype != torch.uint8 or x.shape[1:] != real.shape[1:]:
        what = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}"
        raise Refusal(f"samples are {what}, {data.name} is uint8 {list(real.shape[1:])}; give them in the data's units")
    if len(x) != r.n:
        raise Refusal(f"{len(x)} samples for a reference of n = {r.n}; make the reference for {len(x)}")
    if label is not None and (
        label.shape != (len(x),) or int(label.min()) < 0 or int(label.max()) >= len(data.classes)
    ):
        raise Refusal(f"label of shape {list(label.shape)} for {len(x)} samples; give one class index for each")
    known = {"sampler", "steps", "nfe", "seed", "guidance"}
    colour = real.ndim == 4

    def record(name: str, value: float, floor: float, better: str, n_ref: int, rule: str, floor_rule: str) -> Record:
        seen = name != "copy-rate"
        return Record(
            name=name,
            value=value,
            floor=floor,
            better=better,
            n=len(x),
            n_ref=n_ref,
            reference=f"{data.name}/{'test' if seen else 'train'}",
            data_sha256=data.sha256,
            rule=rule,
            floor_rule=floor_rule,
            extractor="digit-net" if seen else "pixels",
            extractor_sha256=r.net.sha256 if seen else "",
            preparation=preparation(real.shape[1], real.shape[2], colour) if seen else "none",
            sampler=generated["sampler"],
            steps=generated.get("steps"),
            nfe=generated["nfe"],
            seed=generated["seed"],
            guidance=generated.get("guidance"),
            version=__version__,
            settings={key: value for key, value in generated.items() if key not in known},
        )

    features = r.net.features(x)
    records = [
        record(name, value, r.floor[name], better, len(r.test) if whole else len(r.part), rule, r.floor_rule)
        for (name, value), (better, whole, rule) in zip(r.compare(features).items(), RULES.values(), strict=True)
    ]
    if label is not None and data.classes == DIGITS and data.test.label is not None:
        accuracy = float((r.net.classify(features) == label).double().mean())
        real_accuracy = float((r.net.classify(r.test[r.part]) == data.test.label[r.part]).double().mean())
        rule = "share of samples that the classifier gives the label they were asked for"
        held = "the classifier on the reference images"
        records.append(record("label-accuracy", accuracy, real_accuracy, "higher", len(r.part), rule, held))
    threshold = copies.copy_threshold(r.held_out)
    rate = copies.copy_rate(copies.copy_scores(x, real), threshold)
    rule = (
        "share of samples whose distance to the nearest training image, over the mean of the "
        f"{copies.NEIGHBOURS} nearest, is below the {copies.HELD_OUT_RATE:.0%} quantile of "
        f"{len(r.held_out)} held-out images"
    )
    held = f"the same rule on these {len(r.held_out)} held-out images"
    records.append(record("copy-rate", rate, copies.copy_rate(r.held_out, threshold), "lower", len(real), rule, held))
    return records


def evaluate(x: Images, label: Int64[Tensor, " _"] | None, data: Data, *, generated: Mapping[str, Any]) -> list[Record]:
    """Measure n samples: ``frechet``, ``kernel``, ``precision``, ``recall``, ``label-accuracy``, ``copy-rate``.

    ``x``: uint8 ``[n, h, w]`` or ``[n, h, w, 3]``, in the data's own size; ``label``: the class index that each was
    asked for (None: no label accuracy; nor is there one unless the classes are the ten digits).  ``generated`` says how
    the samples were made: ``sampler``, ``nfe`` and ``seed`` (None where not known), and whatever else is to be kept.
    Raises :class:`Refusal` for n outside :func:`limits`, and for samples in other units than the data.
    """
    return measure(x, label, Reference.of(data, len(x)), generated=generated)
