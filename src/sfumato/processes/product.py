"""A product of processes: named parts destroyed independently, denoised together.

The contract: a state is a dict with one entry per part; every law is the :class:`~sfumato.laws.Joint` of the parts'
laws; losses and rates come back per part, so that they can be logged and weighted apart.

A part that is no Markov chain (a geodesic, a coupled path) has no noise of its own, so its bridge is the deterministic
one at every ``eta``.  Given the data the parts are independent, so their velocities, noise and jumps act side by side;
with each one's mean over the joint belief they have the joint law of ``x_t`` ("Generator Matching", Holderrieth et al.
2024, https://arxiv.org/abs/2410.20587), up to an error of order 1 in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from sfumato.core import Law, Process, Time
from sfumato.laws import Dirac, Joint, Through

State = Mapping[str, Any]


def parts_of(q: Law[Any]) -> Mapping[str, Law[Any]]:
    """The beliefs of a joint law by part; those of a point are points."""
    return q.parts if isinstance(q, Joint) else {key: Dirac(value) for key, value in q.point().items()}


def moved(part: Process[Any], x_t: Any, q: Law[Any], t: Time, s: Time, eta: float) -> Law[Any]:
    """The bridge of one part; of one that is no Markov chain that of ``eta = 0``, at the belief's point."""
    if eta > 0 and not getattr(part, "markov", True):
        return part.bridge(x_t, Dirac(q.point()), t, s, 0.0)
    return part.bridge(x_t, q, t, s, eta)


@final
@dataclass(frozen=True)
class Product:
    """Independent processes by name; one network call denoises all parts."""

    parts: Mapping[str, Process[Any]]

    @property
    def markov(self) -> bool:
        """Whether some part is a Markov chain, so that there is noise to draw."""
        return any(getattr(part, "markov", True) for part in self.parts.values())

    def _each(self, f: Callable[[str, Process[Any]], Any]) -> dict[str, Any]:
        return {key: f(key, part) for key, part in self.parts.items()}

    def prior(self, like: State) -> Joint:
        """The joint of the parts' priors."""
        return Joint(self._each(lambda key, part: part.prior(like[key])))

    def marginal(self, x0: State, t: Time, end: State | None = None) -> Joint:
        """The joint of the parts' marginals; ``end`` holds a prior draw for every part."""
        return Joint(self._each(lambda k, part: part.marginal(x0[k], t, None if end is None else end[k])))

    def forward(self, x_s: State, s: Time, t: Time) -> Joint:
        """The joint of the parts' transitions."""
        return Joint(self._each(lambda key, part: part.forward(x_s[key], s, t)))

    def bridge(self, x_t: State, q: Law[Any], t: Time, s: Time, eta: float = 1.0) -> Law[Any]:
        """The joint of the parts' bridges; a belief that is not a joint (or a point) is drawn from first.

        Parts that are no Markov chain take no ``eta``.
        """
        if not isinstance(q, Joint | Dirac):
            return Through(q, lambda belief: self.bridge(x_t, belief, t, s, eta))
        beliefs = parts_of(q)
        return Joint(self._each(lambda key, part: moved(part, x_t[key], beliefs[key], t, s, eta)))

    def loss(self, q: Any, x0: State, x_t: State, t: Time) -> dict[str, Any]:
        """Per part."""
        beliefs = parts_of(q)
        return self._each(lambda key, part: part.loss(beliefs[key], x0[key], x_t[key], t))

    def rate(self, q: Any, x0: State, x_t: State, t: Time) -> dict[str, Any]:
        """Per part."""
        beliefs = parts_of(q)
        return self._each(lambda key, part: part.rate(beliefs[key], x0[key], x_t[key], t))
