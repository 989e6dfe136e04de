"""Bits per character of held-out text, under a model of text.

The contract: ``bits = -sum log2 p(window) / sum characters`` over windows of the held-out text that do not overlap;
``exact`` for a factorisation from left to right, ``NELBO`` (an upper bound on it, estimated) for everything that
diffuses, and the record says which.  A window begins without context, so every number includes the cost of its first
characters.  Window ``k`` draws from its own stream: the result does not depend on the batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sfumato import __version__
from sfumato.data.tokenizers import described
from sfumato.errors import Refusal
from sfumato.metrics import units
from sfumato.metrics.records import Record
from sfumato.randomness import Streams
from sfumato.training.seeds import mix


def bits_per_character(model: Any, data: Any, windows: int = 128, *, seed: int = 0, batch: int = 32) -> Record:
    """The record ``bits-per-character`` of ``windows`` held-out windows of ``data``, spread evenly over the text.

    Raises :class:`Refusal` where the recipe states no likelihood, for a text cut into other tokens than the model's,
    and for a number of windows that the text has not.
    """
    likelihood = model.parts.likelihood
    if likelihood is None:
        raise Refusal(f"recipe {model.recipe!r} states no likelihood of text; evaluate its samples")
    own, other = model.transform.tokenizer, data.transform.tokenizer
    if own != other:
        reads, cut = described(own), described(other)
        raise Refusal(
            f"the model reads {reads}, {data.name} is cut into {'another ' if cut == reads else ''}{cut}; cut it as "
            "the model reads: TextData.of(data.corpus, model.transform.tokenizer, model.transform.length)"
        )
    rows = data.held_out.tensors()["x"]
    if not 1 <= windows <= len(rows):
        raise Refusal(f"windows={windows}: the held-out text has {len(rows)} windows of {rows.shape[1]}; ask for these")
    chosen = rows[torch.linspace(0, len(rows) - 1, windows).round().long()]
    characters = torch.tensor([len(text) for text in model.transform.decode(chosen.to(torch.int64))])
    nats = []
    with torch.no_grad():
        for first in range(0, windows, batch):
            x0 = model.transform.encode(chosen[first : first + batch].to(model.device))
            rng = Streams(mix(seed, "text likelihood", k) for k in range(first, first + len(x0)))
            nats.append(likelihood(model.denoiser, x0, rng).cpu().double())
    bits = torch.cat(nats) / math.log(2) / characters.double().mean()
    return Record(
        name="bits-per-character",
        value=float(bits.mean()),
        floor=0.0,
        better="lower",
        n=windows,
        n_ref=windows,
        reference=units.reference(data, "test"),
        data_sha256=data.sha256,
        rule=f"{likelihood.name} of held-out windows of {rows.shape[1]} tokens, each without context",
        floor_rule="0: the entropy of the text is not known",
        extractor="the model itself",
        extractor_sha256="",
        preparation="none",
        sampler=likelihood.name,
        steps=None,
        nfe=float(getattr(likelihood, "draws", 1)),
        seed=seed,
        guidance=None,
        version=__version__,
        settings={
            "recipe": model.recipe,
            "weights": model.weights,
            "tokenizer": str(model.transform.to_json()["tokenizer"]["name"]),
            "standard_error": float(bits.std() / math.sqrt(windows)) if windows > 1 else None,
        },
    )
