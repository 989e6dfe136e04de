"""The trackers of one run: what they are told, and what becomes of one that fails.

The contract: watching never changes what a step trains; in a horizon of seconds it costs steps.  A tracker is told what
``log.jsonl`` is told, at the same steps, and shown the sample grids; one that fails while training is left out from
then on, in one line, and training goes on.  A tracker that cannot begin is a :class:`~sfumato.errors.Refusal` before
the first step.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sfumato.errors import Refusal, missing_extra, nearest
from sfumato.training.files import read_json, to_json, write_bytes
from sfumato.watching.kinds import KINDS, Kind, Opening

#: What each tracker calls the run, by name; so a resumed training continues them.
FILE = "trackers.json"
#: Of a line of the log: what it is about, said once by its name.
ABOUT = ("kind", "step")
#: Pictures of these kinds are shown.
PICTURES = (".png", ".jpg", ".jpeg", ".webp")

Say = Callable[[str], None]


def names(asked: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers asked for (``"tensorboard,wandb"`` or a list).

    Raises :class:`Refusal` for an unknown one, and for one whose package is not installed (it names the extra).
    """
    words = asked.split(",") if isinstance(asked, str) else list(asked)
    found = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    for name in found:
        if name not in KINDS:
            raise Refusal(f"unknown tracker {name!r}; {nearest(name, KINDS)}")
    for name in found:
        if importlib.util.find_spec(KINDS[name].package) is None:
            raise missing_extra(KINDS[name].package, name)
    return found


def continued(run: Path) -> tuple[str, ...]:
    """The trackers that a run had before it was stopped."""
    return names([name for name in read_json(run / FILE) if name in KINDS]) if (run / FILE).exists() else ()


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log by name: ``train/loss``, and by noise level ``validation_by_level/t_0.0625``.

    What is no finite number is left out.

    >>> scalars({"kind": "train", "step": 3, "loss": 0.5, "note": "x"})
    {'train/loss': 0.5}
    """
    kind = str(line.get("kind", "log"))
    found = {f"{kind}/{name}": value for name, value in line.items() if name not in ABOUT}
    for level in line.get("levels", ()):
        found[f"{kind}_by_level/t_{level['t']:.4f}"] = level["loss"]
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


@final
@dataclass(frozen=True, eq=False)
class Opened:
    """A tracker that has begun."""

    name: str
    kind: Kind
    tracker: Any
    failures: tuple[type[BaseException], ...]


@final
class Trackers:
    """What a run is watched by; none at all is :data:`NOTHING`."""

    def __init__(self, opened: Sequence[Opened], say: Say) -> None:
        self.opened, self.say = list(opened), say

    def line(self, line: Mapping[str, Any]) -> None:
        """A line that was written to the log."""
        if self.opened:
            values, step = scalars(line), int(line["step"])
            self._tell(lambda each: each.tracker.log(values, step=step))

    def picture(self, path: Path, content: bytes, step: int) -> None:
        """A file of samples; what is no picture is not shown."""
        if not self.opened or path.suffix.lower() not in PICTURES:
            return
        from PIL import Image

        with Image.open(io.BytesIO(content)) as image:
            image.load()
            self._tell(lambda each: each.kind.picture(each.tracker, path, image, step))

    def close(self) -> None:
        """Finish all of them."""
        self._tell(lambda each: each.tracker.finish())
        self.opened = []

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Finish all of them; an error of the run itself goes on, whatever becomes of the trackers."""
        try:
            self.close()
        finally:
            if error is not None:
                raise error

    def _tell(self, what: Callable[[Opened], None]) -> None:
        for each in list(self.opened):
            try:
                what(each)
            except each.failures as error:
                self.opened.remove(each)
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                self.say(f"{each.name} failed and is left out from here on ({reason}); training goes on")


def _silent(line: str) -> None:
    """Says nothing."""


#: No trackers.
NOTHING = Trackers((), _silent)


def _begun(name: str, opening: Opening) -> tuple[Opened, str]:
    kind = KINDS[name]
    failures = kind.failures()
    try:
        tracker, identity = kind.begin(opening)
    except failures as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        file = opening.run / FILE
        without = "add --resume, leave --tracker out" if opening.identity is None else f"take it out of {file}"
        raise Refusal(f"{name} does not start: {reason}; mend it, or go on without it: {without}") from None
    return Opened(name, kind, tracker, failures), identity


@contextmanager
def watched(
    asked: Sequence[str], run: Path | None, config: Mapping[str, Any], step: int, say: Say
) -> Iterator[Trackers]:
    """The trackers of ``run``, begun at ``step`` (0: anew), finished at the end of the block, however it ends.

    Raises :class:`Refusal` where one of them cannot begin.
    """
    if not asked or run is None:
        yield NOTHING
        return
    path = run / FILE
    known = read_json(path) if path.exists() else {}
    with Trackers((), say) as trackers:
        for name in asked:
            opened, known[name] = _begun(name, Opening(run, config, step, known.get(name)))
            trackers.opened.append(opened)
            write_bytes(path, to_json(known))
        yield trackers
