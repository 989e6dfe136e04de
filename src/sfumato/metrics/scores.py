"""What a classifier says of samples: the inception score.

The contract: ``IS = exp(E KL(p(y | x) || p(y)))`` with ``p(y)`` the mean over the samples (Salimans et al. 2016, arXiv
1606.03498, section 4), 1 where the classifier says the same of all, up to its number of classes where it is sure of
each and all classes come equally often.  It sees no real image: read it beside the score that real images have.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import Refusal
from sfumato.metrics.distances import Estimate, checked

#: The parts that the samples are cut into.
SPLITS = 10


def inception_score(logits: Float[Tensor, "n k"], splits: int = SPLITS) -> Estimate:
    """The mean of the scores of ``splits`` equal parts, taken in order, with the standard error of that mean.

    Raises :class:`Refusal` for fewer than 2 parts, or parts of fewer than 2 samples.
    """
    if splits < 2:
        raise Refusal(f"splits = {splits}; give at least 2")
    log_p = checked(logits, 2 * splits).log_softmax(1)
    scores = []
    for part in torch.tensor_split(log_p, splits):
        p = part.exp()
        kl = (p * (part - p.mean(0).log().clamp_min(-745.0))).sum(1)
        scores.append(kl.mean().exp())
    found = torch.stack(scores)
    return Estimate(float(found.mean()), float(found.std() / splits**0.5))
