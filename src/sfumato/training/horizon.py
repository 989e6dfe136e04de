"""How long training lasts, fixed at its start: a number of steps, or of training seconds.

The contract: progress runs from 0 to 1 over the horizon and the learning rate with it.  Training seconds count what the
loop does (steps, validation, sample grids, checkpoints) and add up over resumed parts; importing, building and loading
do not count.  A horizon in seconds keeps back the time that the final report takes, as measured, so that all ends on
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from sfumato.errors import Refusal


class Clock:
    """Training seconds: those stored by earlier parts of the run and those since :meth:`start`.

    ``reserve``: seconds that the final report is expected to take.  ``agreed``: what several processes make of the
    seconds of each; they then all read the time at which they last agreed (:meth:`agree`), so that all decide alike.
    """

    def __init__(
        self, stored: float = 0.0, reserve: float = 0.0, agreed: Callable[[float], float] | None = None
    ) -> None:
        self.stored, self.reserve = stored, reserve
        self._agreed, self._common = agreed, stored
        self._start = time.perf_counter()

    def start(self) -> None:
        """Begin to count."""
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Training seconds so far."""
        return self._own() if self._agreed is None else self._common

    def agree(self) -> None:
        """Where there are several processes: agree with the others on the time, which all must do here."""
        if self._agreed is not None:
            self._common = self._agreed(self._own())

    def _own(self) -> float:
        return self.stored + time.perf_counter() - self._start


@runtime_checkable
class Horizon(Protocol):
    """The length of a run."""

    def progress(self, step: int, clock: Clock) -> float:
        """How much of the run lies behind after ``step`` steps: 1 or more means it is over."""
        ...

    def remaining(self, step: int, clock: Clock) -> float | None:
        """Expected seconds to go, None before anything is known."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What ``config.json`` stores."""
        ...

    def __str__(self) -> str: ...


@final
@dataclass(frozen=True)
class Steps:
    """A fixed number of steps: resuming is exact."""

    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise Refusal(f"steps={self.steps}: training needs a whole number of at least 1 step")

    def progress(self, step: int, clock: Clock) -> float:
        """``step / steps``."""
        return step / self.steps

    def remaining(self, step: int, clock: Clock) -> float | None:
        """By the mean time of the steps so far."""
        return clock.seconds() / step * (self.steps - step) if step else None

    def to_json(self) -> dict[str, Any]:
        """``{"steps": n}``."""
        return {"steps": self.steps}

    def __str__(self) -> str:
        return f"{self.steps} steps"


@final
@dataclass(frozen=True)
class Seconds:
    """A fixed number of training seconds: resuming continues the stored seconds."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise Refusal(f"minutes={self.seconds / 60:g}: training needs a positive time")

    def progress(self, step: int, clock: Clock) -> float:
        """Share of the seconds that are left for steps once the final report is paid."""
        return clock.seconds() / max(self.seconds - clock.reserve, 1e-9)

    def remaining(self, step: int, clock: Clock) -> float | None:
        """To the end of the horizon."""
        return max(0.0, self.seconds - clock.seconds())

    def to_json(self) -> dict[str, Any]:
        """``{"seconds": s}``."""
        return {"seconds": self.seconds}

    def __str__(self) -> str:
        return f"{self.seconds / 60:g} minutes"


def choose(minutes: float | None, steps: int | None) -> Horizon | None:
    """The horizon asked for, None where neither is given; raises :class:`Refusal` where both are."""
    if minutes is not None and steps is not None:
        raise Refusal(f"minutes={minutes:g} and steps={steps}: give one of them")
    if steps is not None:
        return Steps(steps)
    return None if minutes is None else Seconds(60.0 * minutes)


def from_json(value: Any) -> Horizon:
    """The horizon stored in ``config.json``; raises :class:`Refusal` where it is none."""
    match value:
        case {"steps": int(steps)}:
            return Steps(steps)
        case {"seconds": int(seconds) | float(seconds)}:
            return Seconds(float(seconds))
    raise Refusal(f"horizon {value!r} in config.json is damaged; restore the file or train again")
