"""Measure samples against a data set: every metric as a record, with the floor that real samples reach.

The contract: the floor is the same computation, at the same n, with real samples in the samples' place.  For the
metrics of features these are n training samples, the mean over up to 5 disjoint sets drawn by a fixed seed (for
distances whose mean is 0, the root mean square); for ``label-accuracy`` and ``copy-rate`` they are held-out images,
since the classifier and the copies both know the training images.  Everything is a function of its arguments: the same
samples give the same records.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from sfumato import __version__
from sfumato.errors import Refusal
from sfumato.metrics import catalogue, copies, units
from sfumato.metrics.catalogue import METRICS, Target
from sfumato.metrics.distances import Estimate
from sfumato.metrics.extractors import DEFAULTS, Classifier, Digits, Extractor, get
from sfumato.metrics.records import Record

#: What ``label-accuracy`` can be measured for: the classes that the classifier knows.
DIGITS = tuple(str(k) for k in range(10))
#: At most this many held-out images calibrate the copy rule.
CALIBRATION = 2000
#: The floor is the mean over this many disjoint sets of training samples, where there are enough.
DRAWS = 5
#: What ``generated`` must say; a value may be None where it is not known.
REQUIRED = ("sampler", "nfe", "seed")

#: What a record keeps of how its samples were made, beside the first of their seeds and how often each class was asked
#: for.
KEPT = (
    "sampler", "steps", "grid", "nfe", "network_rows_per_sample", "guidance", "interval", "autoguide",
    "threshold", "weights", "compute", "solver", "prompt", "temperature", "top_p",
)  # fmt: skip


def made(record: Mapping[str, Any]) -> dict[str, Any]:
    """``generated`` for :func:`evaluate`, from the record of :class:`~sfumato.training.samples.Samples`."""
    label = None if record["label"] is None else dict(Counter(record["label"]))
    own = {"nfe": float(record["nfe"]), "seed": record["seeds"][0], "label": label}
    return {key: record[key] for key in KEPT} | own


def evaluate_with(
    data: Any, extractor: Extractor | str | None, names: Sequence[str] | None
) -> tuple[Extractor, list[str]]:
    """The extractor and the metrics for a data set: those of its kind where none are given.

    Raises :class:`Refusal` for what does not go with it.
    """
    units.form(data.kind)
    chosen = DEFAULTS[data.kind] if extractor is None else extractor
    found = get(chosen, data.kind) if isinstance(chosen, str) else chosen
    asked = catalogue.DEFAULTS[data.kind] if names is None else catalogue.read(",".join(names))
    labelled = data.kind == "images" and data.classes == DIGITS and isinstance(found, Digits)
    if names is not None and "label-accuracy" in asked and not labelled:
        raise Refusal(f"label-accuracy is of the ten digits seen by digit-net, not {data.name} by {found.name}")
    if "inception-score" in asked and not isinstance(found, Classifier):
        raise Refusal(f"inception-score asks a classifier, and {found.name} is none; take mobilenet, or leave it out")
    if names is not None and "copy-rate" in asked and data.kind != "images":
        raise Refusal(f"copy-rate is of images, {data.name} holds {data.kind}; leave it out")
    return found, [name for name in asked if labelled or name != "label-accuracy"]


def fitting(data: Any, extractor: Extractor | str | None = None) -> tuple[list[str], list[str]]:
    """The metrics of a kind of data that a set is large enough for, and those that it is too small for."""
    found, names = evaluate_with(data, extractor, None)
    real = [units.form(data.kind).real(data, split) for split in ("train", "test")]
    d, most = found.dimension(real[0]), min(map(len, real))
    large = [name for name in names if catalogue.least([name], d) <= most]
    return large, [name for name in names if name not in large]


def limits(data: Any, extractor: Extractor | str | None = None, names: Sequence[str] | None = None) -> tuple[int, int]:
    """The fewest and the most samples that can be evaluated: enough for every metric, and at most the training set.

    Raises :class:`Refusal` where the data set itself is too small.
    """
    found, chosen = evaluate_with(data, extractor, names)
    train, test = (units.form(data.kind).real(data, split) for split in ("train", "test"))
    least = catalogue.least(chosen, found.dimension(train))
    if len(test) < least or len(train) < least:
        raise Refusal(
            f"{data.name} has {len(train)} train and {len(test)} test {data.kind}; the metrics need at least {least} "
            "of each: leave frechet out, or give more data"
        )
    return least, len(train)


def _some(size: int, n: int) -> Int64[Tensor, " n"]:
    """n of ``size`` rows without replacement, by a fixed seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:n]


def real_features(extractor: Extractor, x: Any) -> Float[Tensor, "n d"]:
    """The features of real samples; those of a heavy extractor are kept in the cache, by the contents of ``x``."""
    if not extractor.heavy:
        return extractor.features(x)
    from sfumato.fetch import cache
    from sfumato.training.files import make_folder, pack_tensors, unpack_tensors, write_bytes

    pixels = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
    parts = (extractor.name, extractor.sha256, extractor.preparation(x), str(list(x.shape)), pixels)
    path = cache() / "features" / f"{hashlib.sha256('/'.join(parts).encode()).hexdigest()}.safetensors"
    if path.is_file():
        try:
            return unpack_tensors(path)["features"]
        except Refusal:
            path.unlink()  # it is made again
    found = extractor.features(x)
    make_folder(path.parent)
    write_bytes(path, pack_tensors({"features": found}))
    return found


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """What n samples are measured against; make it once to measure many sets of one n.

    ``names``: the metrics; ``target``: the features of the test split; ``scale``: the mean and the deviation that
    features are standardised by, where the extractor asks for it; ``floor`` and ``floor_rule``: what real samples give;
    ``held_out``: copy scores of test images (None where copies are not asked for).
    """

    data: Any
    n: int
    names: tuple[str, ...]
    target: Target
    scale: tuple[Float[Tensor, " d"], Float[Tensor, " d"]] | None
    floor: Mapping[str, float]
    floor_rule: str
    held_out: Float32[Tensor, " n_held"] | None

    @staticmethod
    def of(
        data: Any, n: int, *, extractor: Extractor | str | None = None, names: Sequence[str] | None = None
    ) -> Reference:
        """The reference for n samples, seen by an extractor (by name, as in ``"mobilenet:size=96"``).

        Raises :class:`Refusal` for n outside :func:`limits`, and metrics that do not go with the data.
        """
        found, chosen = evaluate_with(data, extractor, names)
        least, most = limits(data, found, names)
        if not least <= n <= most:
            raise Refusal(
                f"n = {n} samples; {data.name} can be evaluated with {least}..{most} (enough for every metric, and no "
                "more than the training set that gives the floor)"
            )
        train, test = (units.form(data.kind).real(data, split) for split in ("train", "test"))
        features = real_features(found, test)
        scale = catalogue.standardised(features) if found.standardised else None
        draws = 1 if found.heavy else min(DRAWS, most // n)
        sets = f"{draws} disjoint sets of n training {data.kind}"
        bare = Reference(
            data=data,
            n=n,
            names=tuple(chosen),
            target=Target(_scaled(features, scale), _some(len(test), n), found),
            scale=scale,
            floor={},
            floor_rule=f"mean over {sets} (kernels: root mean square)",
            held_out=copies.copy_scores(units.take(test, _some(len(test), CALIBRATION)), train)
            if "copy-rate" in chosen
            else None,
        )
        rows = _some(most, draws * n).reshape(draws, n)
        values = [bare.compare(real_features(found, units.take(train, part))) for part in rows]
        floor = {name: METRICS[name].floor([v[name].value for v in values]) for name in values[0]}
        return replace(bare, floor=floor)

    @property
    def extractor(self) -> Extractor:
        """What looks at the samples."""
        return self.target.extractor

    def compare(self, features: Float[Tensor, "n d"]) -> dict[str, Estimate]:
        """The metrics of features, of those that were asked for."""
        scaled = _scaled(features, self.scale)
        return {name: METRICS[name].measure(scaled, self.target) for name in self.names if name in METRICS}


def _scaled(features: Float[Tensor, "n d"], scale: tuple[Tensor, Tensor] | None) -> Float[Tensor, "n d"]:
    return features if scale is None else (features - scale[0]) / scale[1]


def _share(hits: Tensor) -> Estimate:
    """A share with its binomial standard error."""
    p = float(hits.double().mean())
    return Estimate(p, (p * (1 - p) / len(hits)) ** 0.5)


def _checked(x: Any, label: Tensor | None, r: Reference) -> Any:
    """The samples in the form that extractors read; refuses those of another form, number or labelling."""
    real, form = units.form(r.data.kind).real(r.data, "test"), units.form(r.data.kind)
    given = form.made(r.data, x)
    if units.like(given) != units.like(real):
        raise Refusal(
            f"samples are {units.like(given)}, {r.data.name} is {units.like(real)}; give them in the data's units"
        )
    if len(given) != r.n:
        raise Refusal(f"{len(given)} samples for a reference of n = {r.n}; make the reference for {len(given)}")
    if label is not None and (
        label.shape != (len(given),) or int(label.min()) < 0 or int(label.max()) >= len(r.data.classes)
    ):
        raise Refusal(f"label of shape {list(label.shape)} for {len(given)} samples; give one class index for each")
    return given


def measure(
    x: Any, label: Int64[Tensor, " _"] | None, reference: Reference, *, generated: Mapping[str, Any]
) -> list[Record]:
    """Measure n samples against a prepared reference; see :func:`evaluate`."""
    r, data, extractor = reference, reference.data, reference.extractor
    missing = [key for key in REQUIRED if key not in generated]
    if missing:
        raise Refusal(f"generated lacks {', '.join(missing)}; say how the samples were made (None where not known)")
    given = _checked(x, label, r)
    known = {"sampler", "steps", "nfe", "seed", "guidance"}
    blind = Record(
        name="",
        value=0.0,
        floor=0.0,
        better="",
        n=len(given),
        n_ref=0,
        reference=units.reference(data, "test"),
        data_sha256=data.sha256,
        rule="",
        floor_rule=r.floor_rule,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        preparation=_preparation(extractor, given, data),
        sampler=generated["sampler"],
        steps=generated.get("steps"),
        nfe=generated["nfe"],
        seed=generated["seed"],
        guidance=generated.get("guidance"),
        version=__version__,
        settings={key: value for key, value in generated.items() if key not in known},
    )
    features = extractor.features(given)
    sizes = {"whole": len(r.target.features), "part": len(r.target.part), "none": 0}
    records = []
    for name, found in r.compare(features).items():
        metric = METRICS[name]
        error = found.error if metric.error is None else metric.error(_scaled(features, r.scale), r.target)
        records.append(
            replace(
                blind, name=name, value=found.value, error=error, floor=r.floor[name], better=metric.better,
                n_ref=sizes[metric.scope], rule=metric.rule,
            )
        )  # fmt: skip
    if "label-accuracy" in r.names and label is not None and data.classes == DIGITS and data.test.label is not None:
        records.append(_accuracy(blind, features, label, r))
    if r.held_out is not None:
        records.append(_copies(blind, given, r, r.held_out))
    return records


def _preparation(extractor: Extractor, x: Any, data: Any) -> str:
    """What is done to samples, and to features, before they are compared; how the reference is cut, for text."""
    scaled = ["standardised over the reference"] if extractor.standardised else []
    steps = [step for step in (extractor.preparation(x), *scaled, units.windowed(data)) if step != "none"]
    return ", ".join(steps) or "none"


def _accuracy(blind: Record, features: Tensor, label: Tensor, r: Reference) -> Record:
    """The share of samples that get the label they were asked for."""
    net = r.extractor
    assert isinstance(net, Digits)
    found = _share(net.logits(features).argmax(1) == label)
    real = _share(net.logits(r.target.near).argmax(1) == r.data.test.label[r.target.part])
    return replace(
        blind, name="label-accuracy", value=found.value, error=found.error, floor=real.value, better="higher",
        n_ref=len(r.target.part), rule="share of samples that the classifier gives the label they were asked for",
        floor_rule="the classifier on the reference images",
    )  # fmt: skip


def _copies(blind: Record, x: Tensor, r: Reference, held_out: Tensor) -> Record:
    """The share of samples that stand too near to a training image."""
    train = units.form(r.data.kind).real(r.data, "train")
    threshold, every = copies.copy_threshold(held_out), int(r.data.spec()["train"])
    of = f" (of {len(train):,} of {every:,} training images)" if every > len(train) else ""
    found = _share(copies.copy_scores(x, train) < threshold)
    return replace(
        blind, name="copy-rate", value=found.value, error=found.error,
        floor=copies.copy_rate(held_out, threshold), better="lower", n_ref=len(train),
        reference=units.reference(r.data, "train"), extractor="pixels", extractor_sha256="", preparation="none",
        rule="share of samples whose distance to the nearest training image, over the mean of the "
        f"{copies.NEIGHBOURS} nearest, is below the {copies.HELD_OUT_RATE:.0%} quantile of "
        f"{len(held_out)} held-out images{of}",
        floor_rule=f"the same rule on these {len(held_out)} held-out images",
    )  # fmt: skip


def evaluate(
    x: Any, label: Int64[Tensor, " _"] | None, data: Any, *, generated: Mapping[str, Any],
    extractor: Extractor | str | None = None, names: Sequence[str] | None = None,
) -> list[Record]:  # fmt: skip
    """Measure n samples: by default ``frechet``, ``kernel``, ``precision``, ``recall``, ``label-accuracy``,
    ``copy-rate``.

    ``x``: samples in the data's own units (images: uint8 ``[n, h, w]`` or ``[n, h, w, 3]``, in the data's size);
    ``label``: the class index that each was asked for (None: no label accuracy; nor is there one unless the classes
    are the ten digits).  ``generated`` says how the samples were made: ``sampler``, ``nfe`` and ``seed`` (None where
    not known), and whatever else is to be kept.  ``extractor`` and ``names``: what looks at them and which metrics
    (:mod:`sfumato.metrics.extractors`, :mod:`sfumato.metrics.catalogue`).  Raises :class:`Refusal` for n outside
    :func:`limits`, and for samples in other units than the data.
    """
    return measure(x, label, Reference.of(data, len(x), extractor=extractor, names=names), generated=generated)
