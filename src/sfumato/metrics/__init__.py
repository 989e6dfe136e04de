"""Metrics: every result is a record with its floor, never a bare number.

``evaluate(x, label, data, generated=...)`` measures samples; the functions under it work on any features
(:mod:`~sfumato.metrics.distances`, :mod:`~sfumato.metrics.kernels`, :mod:`~sfumato.metrics.manifolds`,
:mod:`~sfumato.metrics.sliced`, :mod:`~sfumato.metrics.scores`) and any images (:mod:`~sfumato.metrics.copies`).  What
makes the features is chosen by name (:mod:`~sfumato.metrics.extractors`), and so is what is measured
(:mod:`~sfumato.metrics.catalogue`).
"""

from __future__ import annotations

from sfumato.metrics import catalogue, extractors
from sfumato.metrics.classifier import DigitNet, digit_net
from sfumato.metrics.copies import copy_rate, copy_scores, copy_threshold, nearest_training
from sfumato.metrics.distances import (
    Estimate,
    Moments,
    frechet_distance,
    frechet_error,
    frechet_from_moments,
    kernel_between,
    kernel_distance,
    kernel_within,
    moments,
)
from sfumato.metrics.evaluate import Reference, evaluate, evaluate_with, fitting, limits, made, measure
from sfumato.metrics.kernels import Cubic, Radial, block_distance, mmd, radial_of
from sfumato.metrics.manifolds import coverage, density, precision, precision_recall, recall
from sfumato.metrics.records import Record, change, comparable, differences, table
from sfumato.metrics.scores import inception_score
from sfumato.metrics.sliced import sliced_wasserstein

__all__ = [
    "Cubic", "DigitNet", "Estimate", "Moments", "Radial", "Record", "Reference", "block_distance", "catalogue",
    "change", "comparable", "copy_rate", "copy_scores", "copy_threshold", "coverage", "density", "differences",
    "digit_net", "evaluate", "evaluate_with", "extractors", "fitting", "frechet_distance", "frechet_error",
    "frechet_from_moments", "inception_score", "kernel_between", "kernel_distance", "kernel_within", "limits",
    "made", "measure", "mmd", "moments", "nearest_training", "precision", "precision_recall", "radial_of", "recall",
    "sliced_wasserstein", "table",
]  # fmt: skip
