"""Reflow: straighten a trained flow by training on its own pairs, and again; then distil it to one step.

Liu, Gong, Liu 2022, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
https://arxiv.org/abs/2209.03003.

* pairs: ``(x0, x1)`` with ``x1`` from the prior and ``x0`` where the teacher's ODE carries it, made once
  by the teacher's own solver and kept in the run folder: :mod:`sfumato.training.pairs`;
* ``stage=reflow`` (eq. 1 on those pairs): ``E |v_theta(x_t, t) - (x1 - x0)|^2``, ``x_t = (1 - t) x0 + t x1``, from the
  teacher's weights.  Straightness falls and no convex transport cost rises (section 3); the result may teach the
  next;
* ``stage=distill``: the same loss at ``t = 1`` alone, for one Euler step ``x1 - v_theta(x1, 1)``.

    sfumato train reflow --data mnist --set teacher=runs/flow --out runs/reflow
    sfumato train reflow --data mnist --set teacher=runs/reflow --set stage=distill --out runs/one-step
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from sfumato import schedules
from sfumato.data.sets import Data
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.errors import Refusal
from sfumato.processes.interpolant import Interpolant
from sfumato.recipes.recipe import Recipe
from sfumato.training.checkpoint import steps_of
from sfumato.training.composition import Composition
from sfumato.training.diffusion import Diffusion, load, load_weights
from sfumato.training.files import read_json
from sfumato.training.pairs import Pairs, collect, require_teacher, source, stored
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, choose, require
from sfumato.training.times import TimeLaw, Uniform
from sfumato.training.velocity import AtOne, velocity_loss


@final
@dataclass(frozen=True)
class Settings:
    """``teacher``: the run folder of a flow on the straight path; ``stage``: reflow or distill; ``pairs``: how many to
    train on (``validation_images`` more are held out); ``pair_guidance``: the guidance that the teacher makes them
    with."""

    teacher: str = ""
    stage: str = "reflow"
    pairs: int = 8192
    pair_guidance: float = 1.0
    network: Network = Network()
    optimisation: Optimisation = Optimisation(lr=5e-4, label_dropout=0.0)
    sampling: Sampling = Sampling(sampler="euler", grid="uniform", sampling_steps=4, guidance=1.0, clip=False)
    reporting: Reporting = Reporting()

    def __post_init__(self) -> None:
        choose("stage", self.stage, ("reflow", "distill"))
        require(self.pairs >= 1, "pairs", self.pairs, "at least 1 pair")
        require(0 <= self.pair_guidance < float("inf"), "pair_guidance", self.pair_guidance, "0 or more")
        one = self.stage == "reflow" or (self.sampling.sampling_steps, self.sampling.sampler) == (1, "euler")
        require(one, "stage", self.stage, "sampler=euler and sampling_steps=1: it is trained at t = 1 alone")


def settle(given: Mapping[str, Any]) -> Settings:
    """The defaults: network and units are the teacher's, and a distilled flow takes one step."""
    teacher = str(given.get("teacher", ""))
    if not teacher:
        raise Refusal("reflow needs a teacher: --set teacher=RUN, the folder of a flow, ot-cfm or reflow run")
    taught = load(teacher, device="cpu").settings
    defaults = Settings(teacher=teacher, network=taught.network)
    defaults = replace(
        defaults, optimisation=replace(defaults.optimisation, standardise=taught.optimisation.standardise)
    )
    if given.get("stage") == "distill":
        one = replace(defaults.sampling, sampling_steps=1)
        return replace(defaults, stage="distill", sampling=one, reporting=replace(defaults.reporting, grid_steps=1))
    return defaults


def compose(settings: Settings, net: Any) -> Composition:
    """The straight path between given ends; all times, or ``t = 1`` alone."""
    head = GaussianHead(Interpolant(schedules.get("flow")), "flow")
    times: dict[str, TimeLaw] = {"reflow": Uniform(), "distill": AtOne()}
    return Composition(Preconditioned(net, head), times[settings.stage], velocity_loss)


def _settings(model: Diffusion) -> Settings:
    """The settings, which are reflow's own."""
    assert isinstance(model.settings, Settings)
    return model.settings


def _teacher(model: Diffusion, device: str) -> Diffusion:
    """The teacher, after it was found to speak of the same data."""
    run = Path(_settings(model).teacher)
    teacher = load(run, device=device)
    require_teacher(teacher, run, _settings(model).pair_guidance)
    for what in ("sha256", "transform", "classes"):
        if teacher.data[what] != model.data[what]:
            raise Refusal(f"teacher={run} was trained on other data ({what} differs); give the data it was trained on")
    if teacher.classes != model.classes:
        raise Refusal(f"teacher={run} and this run differ in conditional; leave network settings to the teacher")
    return teacher


def begin(model: Diffusion, data: Any) -> None:
    """Start from the teacher's weights."""
    load_weights(model.net, _teacher(model, "cpu").net.state_dict(), Path(_settings(model).teacher))


def dataset(
    model: Diffusion, data: Data, run: Path | None, device: torch.device, say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Pairs | None:  # fmt: skip
    """The run's pairs, made now where they are not there yet; None where ``stop()`` came first.

    Raises :class:`Refusal` where the run has pairs of another teacher, or of other weights; once it has a checkpoint of
    its own and all pairs, the teacher is not asked for again.
    """
    held = model.settings.reporting.validation_images
    n = _settings(model).pairs + held
    pairs = stored(run, n)
    if pairs is None or run is None or not steps_of(run):
        seed, guidance = int(model.origin["seed"]), _settings(model).pair_guidance
        made = source(_teacher(model, device.type), data, n, seed, guidance)
        if pairs is None:
            pairs = collect(made, run, say, stop)
        elif run is not None:
            made.require(read_json(run / "pairs.json"), run)
    if pairs is None:
        return None
    return Pairs(pairs["x0"], pairs["end"], pairs.get("label"), device).split(held)


RECIPE = Recipe(
    name="reflow",
    title="reflow: train on a flow's own pairs until it is straight, then distil it to one step",
    paper="Liu et al. 2022, arXiv 2209.03003",
    defaults=Settings(),
    compose=compose,
    dataset=dataset,
    begin=begin,
    settle=settle,
)
