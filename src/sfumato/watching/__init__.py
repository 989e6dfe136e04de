"""Watching a run from elsewhere: TensorBoard, Weights & Biases, MLflow and Trackio beside the run's own ``log.jsonl``.

``names("tensorboard,wandb")`` refuses what is unknown or not installed, before anything is trained; ``watched(...)``
opens the trackers of a run and closes them whatever happens.
"""

from __future__ import annotations

from sfumato.watching.kinds import KINDS, Kind, Opening
from sfumato.watching.trackers import NOTHING, Trackers, continued, names, scalars, watched

__all__ = ["KINDS", "NOTHING", "Kind", "Opening", "Trackers", "continued", "names", "scalars", "watched"]
