"""Metrics: every result is a record with its floor, never a bare number.

``evaluate(x, label, data, generated=...)`` measures samples; the functions under it work on any features
(:mod:`sfumato.metrics.distances`) and any images (:mod:`sfumato.metrics.copies`).
"""

from __future__ import annotations

from sfumato.metrics.classifier import DigitNet, digit_net
from sfumato.metrics.copies import copy_rate, copy_scores, copy_threshold, nearest_training
from sfumato.metrics.distances import (
    Moments,
    frechet_distance,
    frechet_from_moments,
    kernel_between,
    kernel_distance,
    kernel_within,
    moments,
    precision_recall,
)
from sfumato.metrics.evaluate import Reference, evaluate, limits, made, measure
from sfumato.metrics.records import Record, change, comparable, differences, table

__all__ = [
    "DigitNet", "Moments", "Record", "Reference", "change", "comparable", "copy_rate", "copy_scores", "copy_threshold",
    "differences", "digit_net", "evaluate", "frechet_distance", "frechet_from_moments", "kernel_between",
    "kernel_distance", "kernel_within", "limits", "made", "measure", "moments", "nearest_training", "precision_recall",
    "table",
]  # fmt: skip
