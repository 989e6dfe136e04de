"""Guidance, thresholding, temperature and prompts: wrappers from denoiser to denoiser (or sampler to sampler).

The contract: ``guided = ref + w (cond - ref)``, so ``w = 0`` is unconditional, ``w = 1`` plain conditional, ``w > 1``
stronger; papers that write ``(1 + w')`` use ``w = 1 + w'``.  Terms that share a denoiser share one batched forward.
Control by a gradient (:func:`steered`) adds ``w`` times what a classifier says, so that ``w = 0`` is the model alone.
"""

from sfumato.guidance.control import of_prediction, of_state, steered
from sfumato.guidance.guided import Guided, Term, autoguidance, cfg, interval, same
from sfumato.guidance.prompts import Given, Infilled, Prompted, prompt
from sfumato.guidance.tempered import tempered
from sfumato.guidance.thresholds import Mapped, clip, dynamic

__all__ = [
    "Given", "Guided", "Infilled", "Mapped", "Prompted", "Term", "autoguidance", "cfg", "clip", "dynamic", "interval",
    "of_prediction", "of_state", "prompt", "same", "steered", "tempered",
]  # fmt: skip
