"""Validation: fixed held-out images, fixed noise, fixed noise levels, so that two numbers differ by the weights alone.

The contract: image ``k`` is always seen at level ``k mod 8`` with the same noise, and whatever else its loss draws is
from a stream of its own, so the loss of an image does not depend on the batch that it is in (but for recipes that
couple data and noise, which do so within batches of the size of training).  The levels are the midpoints of eight
equally likely parts of the recipe's own law of times, so the mean over levels estimates the training loss.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch

from sfumato.randomness import Stream, Streams
from sfumato.training.composition import snr_of
from sfumato.training.parallel import ALONE, Processes
from sfumato.training.seeds import mix

LEVELS = 8


@final
class Validation:
    """Call it with a model for ``{"loss": mean, "levels": [{"t", "log_snr", "loss"}, ...]}``, highest SNR first."""

    def __init__(
        self, model: Any, held_out: Any, images: int, *, seed: int, batch: int, processes: Processes = ALONE
    ) -> None:
        self.n = max(LEVELS, min(images, len(held_out)) // LEVELS * LEVELS)
        index = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(mix(seed, "validation")))
        index = index.repeat(-(-self.n // len(index)))[: self.n]  # a tiny test set is seen at several levels
        self.rows = {name: rows[index] for name, rows in held_out.tensors().items()}
        shape = self.rows["x" if "x" in self.rows else "x0"].shape
        # states that are no numbers (tokens) or not the data (latents) are noised from their rows' own streams
        gaussian = model.transform.dtype.is_floating_point and model.parts.codec is None
        self.eps = Stream(mix(seed, "validation noise")).normal(tuple(shape)) if gaussian else None
        self.t = model.times((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS)
        self.batch, self.processes = batch, processes
        self.seeds = [mix(seed, "validation stream", k) for k in range(self.n)]

    def __call__(self, model: Any) -> dict[str, Any]:
        """The losses of ``model``, whose network should be in evaluation mode; its batches are shared out among the
        processes, which all must call."""
        times, firsts = self.t.repeat(self.n // LEVELS), range(0, self.n, self.batch)
        begin, end = (min(k * self.batch, self.n) for k in self.processes.share(len(firsts)))
        losses = [torch.zeros(0, dtype=torch.float64)]
        with torch.no_grad():
            for first in range(begin, end, self.batch):
                part = slice(first, first + self.batch)
                rows = {name: tensor[part].to(model.device) for name, tensor in self.rows.items()}
                eps = None if self.eps is None else self.eps[part].to(model.device)
                losses.append(model.losses_at(rows, times[part], eps, Streams(self.seeds[part])).cpu().double())
        by_level = self.processes.joined(torch.cat(losses), begin, self.n).reshape(-1, LEVELS).mean(0)
        return {
            "loss": _finite(float(by_level.mean())),
            "levels": [
                {
                    "t": float(t),
                    "log_snr": snr_of(model.process, float(t)),
                    "loss": _finite(float(loss)),
                }
                for t, loss in zip(self.t, by_level, strict=True)
            ],
        }


def _finite(value: float) -> float | None:
    """JSON has no infinities."""
    return value if math.isfinite(value) else None
