"""What a user may ask of a text model beside a sampler: a prompt, an infilling, a temperature.

The contract: everything is checked against the model before anything is sampled; a model of something else refuses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sfumato.errors import Refusal
from sfumato.guidance.prompts import Given
from sfumato.guidance.tempered import tempered
from sfumato.processes.blocks import Blocks
from sfumato.samplers.jump import DiscreteEuler
from sfumato.samplers.jump_masked import ConfidenceOrdered


def _require_text(model: Any, what: str) -> None:
    if model.transform.view.noun != "texts":
        raise Refusal(f"{what} is for text; {model.recipe} makes {model.transform.view.noun}; leave it out")


def given(model: Any, prompt: str | None, infill: str | None) -> Given | None:
    """The tokens that a prompt or an infilling fixes; None without either.

    Raises :class:`Refusal` for what is no string, for both at once, a text that is longer than the model or holds
    unknown characters, and for an infilling of a model that writes from left to right.
    """
    from sfumato.data import text

    if prompt is None and infill is None:
        return None
    _require_text(model, "a prompt" if infill is None else "an infilling")
    for name, asked in (("prompt", prompt), ("infill", infill)):
        if not isinstance(asked, str | None):
            raise Refusal(f"{name}={asked!r} is no text; give a string")
    if model.parts.codec is not None:
        raise Refusal(f"{model.recipe} has no tokens to hold while it samples; use mdlm for prompts and infilling")
    if prompt is not None and infill is not None:
        raise Refusal("a prompt and an infilling at once; write the prompt into the infilling")
    if infill is None:
        row = text.prompt(model.transform, prompt or "")
    else:
        if isinstance(model.process, Blocks) and model.process.count(model.transform.length) > 1:
            raise Refusal(
                f"{model.recipe} writes from left to right and cannot see what follows a gap; use --prompt, or mdlm"
            )
        row = text.template(model.transform, infill)
    return Given(*row)


def choice(model: Any, sampler: Any, temperature: float | None, top_p: float | None) -> tuple[tempered, Any]:
    """How tokens are chosen, as asked or else as the recipe says, and the sampler: one that chooses tokens itself
    (``confidence``) is told, so that it ranks places by what the model believes.

    Raises :class:`Refusal` for models of something else, and for a process that redraws tokens with a sampler whose
    rates read the belief: a sharper belief would change when tokens change, and not only which.
    """
    own = getattr(model.settings, "decoding", None)
    if own is None:
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            if value is not None:
                _require_text(model, f"{name}={value:g}")
                raise Refusal(f"{name}={value:g}: {model.recipe} does not choose tokens from a belief; leave it out")
        return tempered(), sampler
    chosen = tempered(own.temperature if temperature is None else temperature, own.top_p if top_p is None else top_p)
    if chosen == tempered():
        return chosen, sampler
    if isinstance(sampler, ConfidenceOrdered):
        return tempered(), replace(sampler, temperature=chosen.temperature, top_p=chosen.top_p)
    if model.process.kernel.mask is None and not (isinstance(sampler, DiscreteEuler) and sampler.noise == 0):
        raise Refusal(
            f"temperature={chosen.temperature:g}, top_p={chosen.top_p:g}: {model.recipe} redraws tokens, and "
            f"{type(sampler).__name__} would change them less often, too; use discrete-euler, or temperature 1"
        )
    return chosen, sampler
