"""Guidance and thresholding: wrappers from denoiser to denoiser.

The contract: ``guided = ref + w (cond - ref)``, so ``w = 0`` is unconditional, ``w = 1`` plain conditional, ``w > 1``
stronger; papers that write ``(1 + w')`` use ``w = 1 + w'``.  Terms that share a denoiser share one batched forward.
"""

from sfumato.guidance.guided import Guided, Term, autoguidance, cfg, interval, same
from sfumato.guidance.thresholds import Mapped, clip, dynamic

__all__ = ["Guided", "Mapped", "Term", "autoguidance", "cfg", "clip", "dynamic", "interval", "same"]
