"""Settings: frozen dataclasses whose leaves have unique flat names, so that ``--set lr=0.001`` needs no path.

The contract: :func:`resolve` returns a complete, validated value or refuses in one line (unknown name with the nearest,
wrong type, value out of range); :func:`flatten` is its inverse and is what ``config.json`` stores.  Groups nest by
composition: a recipe's settings hold a :class:`Network`, an :class:`Optimisation`, a :class:`Sampling`, a
:class:`Reporting` and whatever is its own.  A setting that another one can put out of use says so where it is declared
(:func:`idle`), and a new run that changes it then is refused (:func:`refuse_idle`).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

from sfumato.errors import Refusal, nearest

S = TypeVar("S")
#: How a step is computed, not what: these may change when a run is resumed.
FREE = ("accumulate", "recompute", "compile")


def require(condition: bool, name: str, value: object, need: str) -> None:
    """Raises :class:`Refusal` naming the setting, its value and what it needs to be."""
    if not condition:
        raise Refusal(f"{name}={value}: needs {need}")


def idle(default: Any, **others: Any) -> Any:
    """A setting that does nothing while another one, or a fact of the run, has some value (several: a tuple).

    ``hold: float = idle(0.0, decay="inverse-sqrt")``: that decay has no place for a hold.  The facts are those that
    :func:`refuse_idle` is called with.
    """
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in others.items()}
    return dataclasses.field(default=default, metadata=values)


@final
@dataclass(frozen=True)
class Network:
    """The U-Net: ``channels`` per stage, residual ``blocks`` per stage, ``attention`` per stage, ``patch`` at the
    ends.  ``energy``: none, or the form of the energy whose gradient is the output (:mod:`sfumato.nets.energy`).
    """

    channels: tuple[int, ...] = (64, 128, 128)
    blocks: int = 2
    attention: tuple[bool, ...] = (False, True, True)
    patch: int = 1
    dropout: float = 0.0
    conditional: bool = True
    energy: str = "none"

    def __post_init__(self) -> None:
        require(len(self.channels) > 0 and min(self.channels) > 0, "channels", self.channels, "positive numbers")
        require(self.blocks >= 1, "blocks", self.blocks, "at least 1")
        stages = len(self.channels)
        require(
            len(self.attention) == stages, "attention", self.attention, f"{stages} values, one per stage of channels"
        )
        require(self.patch >= 1, "patch", self.patch, "at least 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a probability below 1")
        choose("energy", self.energy, ("none", "inner", "distance"))


@final
@dataclass(frozen=True)
class Optimisation:
    """The optimiser, with warm-up and a decay to zero over the horizon, clipping, and the EMA that is sampled from.

    ``optimiser``: adamw, or muon (Muon at ``muon_lr`` on hidden kernels and matrices, AdamW at ``lr`` on the rest);
    ``warmup``: steps of linear warm-up; ``hold``: share of the horizon before the decay starts; ``decay``: its shape,
    cosine, linear, or inverse-sqrt, which is 1 until step ``decay_step`` and then ``(decay_step / step)^(1/2)``;
    ``ema``: relative width of the power-function EMA (Karras et al. 2024); ``snapshots``: how many pairs of averages to
    store over the horizon, for averages of any other width afterwards (0: none); ``label_dropout``: share of labels
    replaced by the null label, which classifier-free guidance needs; ``low_discrepancy``: spread the times of a batch
    evenly (Kingma et al. 2021, appendix I.1); ``standardise``: train on pixels of mean 0 and standard deviation 0.5
    over the training set, else on [-1, 1]; ``precision``: auto, float32 or bfloat16.

    How a step is computed, which a resumed run may change: ``accumulate``: in so many parts of the batch, one after
    another, in so much less memory; ``recompute``: forget what is inside a layer and compute it again on the way back
    (Chen et al. 2016); ``compile``: by ``torch.compile``, on, off, or auto (:mod:`sfumato.training.estimate`).
    """

    batch: int = 128
    optimiser: str = "adamw"
    muon_lr: float = idle(0.03, optimiser="adamw")
    lr: float = 1e-3
    warmup: int = 100
    hold: float = idle(0.0, decay="inverse-sqrt")
    decay: str = "cosine"
    decay_step: int = idle(1000, decay=("cosine", "linear"))
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0
    ema: float = 0.1
    snapshots: int = idle(0, out=None)
    label_dropout: float = idle(0.1, conditional=False, classes=0)
    low_discrepancy: bool = True
    standardise: bool = idle(True, kind=("text", "points", "table", "series"))
    precision: str = "auto"
    accumulate: int = 1
    recompute: bool = False
    compile: str = "off"

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "at least 1")
        require(1 <= self.accumulate <= self.batch, "accumulate", self.accumulate, f"1 to {self.batch}, the batch")
        choose("compile", self.compile, ("auto", "on", "off"))
        choose("optimiser", self.optimiser, ("adamw", "muon"))
        require(self.lr > 0, "lr", self.lr, "a positive number")
        require(self.muon_lr > 0, "muon_lr", self.muon_lr, "a positive number")
        require(self.warmup >= 0, "warmup", self.warmup, "0 or more steps")
        require(0 <= self.hold < 1, "hold", self.hold, "a share of the horizon below 1")
        choose("decay", self.decay, ("cosine", "linear", "inverse-sqrt"))
        require(self.decay_step >= 1, "decay_step", self.decay_step, "at least 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.beta1 < 1, "beta1", self.beta1, "a number in [0, 1)")
        require(0 <= self.beta2 < 1, "beta2", self.beta2, "a number in [0, 1)")
        require(self.clip_norm > 0, "clip_norm", self.clip_norm, "a positive number")
        require(0 < self.ema < 0.28, "ema", self.ema, "a relative width between 0 and 0.28 (0.1 is usual)")
        require(self.snapshots >= 0, "snapshots", self.snapshots, "0 or more")
        require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "a probability below 1")
        choose("precision", self.precision, ("auto", "float32", "bfloat16"))


@final
@dataclass(frozen=True)
class Sampling:
    """How the model samples unless told otherwise.  ``clip``: hold the predicted clean image in the data's range, by
    the ``threshold`` static (clamp it), or dynamic, as in dynamic:quantile=0.995 (clamp and rescale it).
    """

    sampler: str = "ddim"
    sampling_steps: int = idle(20, recipe="autoregressive")  # a token a step, as many as the text has
    grid: str = "uniform"
    guidance: float = idle(1.0, classes=0)
    clip: bool = True
    threshold: str = idle("static", clip=False)

    def __post_init__(self) -> None:
        from sfumato import grids, samplers
        from sfumato.guidance import thresholds

        if self.sampler != samplers.auto.NAME:
            samplers.build(self.sampler)  # refuses what is unknown
        grids.build(self.grid)
        thresholds.parse(self.threshold)
        require(self.threshold != "none", "threshold", self.threshold, "static or dynamic; clip=false for none")
        require(self.sampling_steps >= 1, "sampling_steps", self.sampling_steps, "at least 1 step")
        require(self.guidance >= 0, "guidance", self.guidance, "0 or more (1 is plain conditional)")


@final
@dataclass(frozen=True)
class Reporting:
    """What is measured while training; none of it changes the weights after a number of steps, but in a number of
    minutes it leaves fewer steps.

    ``reports``: how often over the horizon to validate, draw the sample grid and save; ``validation_images``: held-out
    images, shared out over 8 noise levels; ``grid_columns`` and ``grid_steps`` of the sample grid (0 columns: no grid);
    ``checkpoint_seconds``: also save when this long has passed.  ``best``: none, or the metric of which ``RUN/best``
    keeps the best weights, measured at every report on ``best_samples`` samples (:mod:`sfumato.metrics.watch`).
    """

    reports: int = 8
    validation_images: int = 512
    grid_columns: int = 4
    grid_steps: int = 10
    checkpoint_seconds: float = 60.0
    best: str = idle("none", out=None)
    best_samples: int = idle(256, best="none")

    def __post_init__(self) -> None:
        require(self.reports >= 1, "reports", self.reports, "at least 1")
        require(self.validation_images >= 8, "validation_images", self.validation_images, "at least 8, one per level")
        require(self.grid_columns >= 0, "grid_columns", self.grid_columns, "0 or more")
        require(self.grid_steps >= 1, "grid_steps", self.grid_steps, "at least 1")
        require(self.checkpoint_seconds > 0, "checkpoint_seconds", self.checkpoint_seconds, "a positive number")
        require(self.best_samples >= 2, "best_samples", self.best_samples, "at least 2")
        if self.best != "none":
            from sfumato.metrics import catalogue

            choose("best", self.best, ("none", *catalogue.names()))


def choose(name: str, value: str, known: Iterable[str]) -> None:
    """Raises :class:`Refusal` with the nearest names unless ``value`` is one of ``known``."""
    known = list(known)
    if value not in known:
        raise Refusal(f"unknown {name} {value!r}; {nearest(value, known)}")


def flatten(settings: Any) -> dict[str, Any]:
    """The leaves of a settings dataclass by name, JSON-able (tuples become lists)."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value)
        else:
            flat[field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def resolve(defaults: S, overrides: Mapping[str, Any]) -> S:
    """``defaults`` with the named leaves replaced; strings are parsed by the field's type.

    Raises :class:`Refusal` for an unknown name (with the nearest), a value of the wrong type or out of range.
    """
    known = flatten(defaults)
    for name in overrides:
        if name not in known:
            raise Refusal(f"unknown setting {name!r}; {nearest(name, known)}")
    resolved: S = _replace(defaults, overrides)
    return resolved


def refuse_idle(defaults: S, settings: S, **facts: Any) -> None:
    """Raises :class:`Refusal` for a setting that differs from ``defaults`` while it does nothing (see :func:`idle`).

    ``facts``: what else is known of the run: ``out``, its folder or None; ``classes``, how many labels it has;
    ``kind``, what its data are; ``recipe``, its name.
    Runs that are stored are not asked.
    """
    now, before = flatten(settings) | facts, flatten(defaults)
    for field in _leaves(settings):
        for other, values in field.metadata.items():
            if now[field.name] != before[field.name] and other in now and now[other] in values:
                raise Refusal(
                    f"{field.name}={now[field.name]} does nothing with {other}={now[other]}; change {other}, or leave "
                    f"{field.name} at {before[field.name]}"
                )


def _leaves(settings: Any) -> Iterator[dataclasses.Field[Any]]:
    """The fields that hold values, in the order of :func:`flatten`."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        yield from _leaves(value) if dataclasses.is_dataclass(value) else (field,)


def _replace(settings: Any, overrides: Mapping[str, Any]) -> Any:
    types = typing.get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replace(value, overrides)
        elif field.name in overrides:
            changes[field.name] = parse(field.name, overrides[field.name], types[field.name])
    return dataclasses.replace(settings, **changes)


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(word)
    return word in _TRUE


def _parse_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError(value)
    return int(value)


def _parse_float(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return number


def _parse_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


_PARSERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (_parse_bool, "true or false"),
    int: (_parse_int, "a whole number"),
    float: (_parse_float, "a number"),
    str: (_parse_str, "a name"),
}


def parse(name: str, value: Any, kind: Any) -> Any:
    """``value`` as a ``kind``: bool, int, float, str, or a tuple of one of them (``"64,128"`` or a list).

    Raises :class:`Refusal` naming the setting, the value and the type it needs.
    """
    many = typing.get_origin(kind) is tuple
    parser, need = _PARSERS[typing.get_args(kind)[0] if many else kind]
    try:
        if not many:
            return parser(value)
        parts = [p for p in value.strip("()[] ").split(",") if p.strip()] if isinstance(value, str) else list(value)
        return tuple(parser(p.strip() if isinstance(p, str) else p) for p in parts)
    except (TypeError, ValueError, OverflowError):
        raise Refusal(f"{name}={value}: needs {need + ', several separated by commas' if many else need}") from None
