"""What a user may ask of a text model beside a sampler: a prompt, an infilling, a temperature.

The contract: everything is checked against the model before anything is sampled; a model of something else refuses.
"""

from __future__ import annotations

from typing import Any

from sfumato.errors import Refusal
from sfumato.guidance.prompts import Given
from sfumato.guidance.tempered import tempered


def _require_text(model: Any, what: str) -> None:
    if model.transform.view.noun != "texts":
        raise Refusal(f"{what} is for text; {model.recipe} makes {model.transform.view.noun}; leave it out")


def given(model: Any, prompt: str | None, infill: str | None) -> Given | None:
    """The tokens that a prompt or an infilling fixes; None without either.

    Raises :class:`Refusal` for both at once, a text that is longer than the model or holds unknown characters, and for
    an infilling of a model that writes from left to right.
    """
    from sfumato.data import text

    if prompt is None and infill is None:
        return None
    _require_text(model, "a prompt" if infill is None else "an infilling")
    if prompt is not None and infill is not None:
        raise Refusal("a prompt and an infilling at once; write the prompt into the infilling")
    if infill is None:
        row = text.prompt(model.transform, prompt or "")
    else:
        if getattr(model.process, "size", None) is not None:
            raise Refusal(
                f"{model.recipe} writes from left to right and cannot see what follows a gap; use --prompt, or mdlm"
            )
        row = text.template(model.transform, infill)
    return Given(*row)


def choice(model: Any, temperature: float | None, top_p: float | None) -> tempered:
    """How tokens are chosen: as asked, else as the recipe says; nothing for models of something else."""
    own = getattr(model.settings, "decoding", None)
    if own is None:
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            if value is not None:
                _require_text(model, f"{name}={value:g}")
                raise Refusal(f"{name}={value:g}: {model.recipe} does not choose tokens from a belief; leave it out")
        return tempered()
    return tempered(own.temperature if temperature is None else temperature, own.top_p if top_p is None else top_p)
