"""The trackers that there are: how each begins (anew, or where it was), takes a picture, and what it may raise.

Everything goes through the trackers of Accelerate (``accelerate.tracking``); nothing here is imported before a run asks
for it.  The contract: what a tracker calls its run (``identity``) is stored in the run folder, so that a resumed
training continues the same run there.
"""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

#: The project (W&B, Trackio) or experiment (MLflow) that runs are put under.
PROJECT = "sfumato"


@final
@dataclass(frozen=True)
class Opening:
    """What a tracker begins with: the run's folder, its configuration, the step that it continues from (0: anew), and
    what the tracker calls it (None: not known yet).
    """

    run: Path
    config: Mapping[str, Any]
    step: int
    identity: str | None


@final
@dataclass(frozen=True)
class Kind:
    """``package``: what it needs; ``begin``: a started tracker of Accelerate and the identity of its run;
    ``picture(tracker, path, image, step)``: shows a ``PIL.Image`` that lies at ``path``; ``errors``: what it raises
    where its server or disk fails, as ``module:name`` (an ``OSError`` always counts, a module that is not installed
    does not).
    """

    package: str
    begin: Callable[[Opening], tuple[Any, str]]
    picture: Callable[[Any, Path, Any, int], None]
    errors: tuple[str, ...] = ()

    def failures(self) -> tuple[type[BaseException], ...]:
        """The classes of ``errors``."""
        named = (name.split(":") for name in self.errors)
        here = ((module, name) for module, name in named if importlib.util.find_spec(module.partition(".")[0]))
        return (OSError, *(getattr(importlib.import_module(module), name) for module, name in here))


def plain(value: Any) -> Any:
    """A setting as trackers take it: numbers, words, true and false as they are, anything else as text."""
    return value if isinstance(value, str | int | float | bool) else str(value)


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker is told of a run: its recipe, data, seed, horizon, size and every setting."""
    data = config["data"]
    own = {key: config[key] for key in ("recipe", "seed", "parameters") if key in config}
    horizon = {f"horizon_{name}": value for name, value in config["horizon"].items()}
    known = own | horizon | {"data": data["name"], "data_sha256": data["sha256"]} | dict(config["settings"])
    return {name: plain(value) for name, value in known.items()}


def _started(tracker: Any) -> Any:
    from accelerate.state import PartialState

    PartialState()  # the trackers' own log asks which process this is
    tracker.start()
    return tracker


# ------------------------------------------------------------------------------------------------------- TensorBoard


def _tensorboard(opening: Opening) -> tuple[Any, str]:
    from accelerate.tracking import TensorBoardTracker

    # what was written after the step that training continues from is taken back
    again = {"purge_step": opening.step + 1} if opening.step else {}
    tracker = _started(TensorBoardTracker("tensorboard", opening.run, **again))
    if not opening.step:
        rows = [f"| {name} | {value} |" for name, value in facts(opening.config).items()]
        tracker.tracker.add_text("config", "\n".join(["| setting | value |", "| --- | --- |", *rows]))
    return tracker, "tensorboard"


def _tensorboard_picture(tracker: Any, path: Path, image: Any, step: int) -> None:
    import numpy as np

    tracker.log_images({"samples": np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC")


# -------------------------------------------------------------------------------------------- W&B, Trackio and MLflow


def _wandb(opening: Opening) -> tuple[Any, str]:
    from accelerate.tracking import WandBTracker

    identity = opening.identity or uuid.uuid4().hex[:8]
    tracker = _started(
        WandBTracker(
            PROJECT,
            id=identity,
            name=opening.run.name,
            resume="allow",
            dir=str(opening.run),
            config=facts(opening.config),
        )
    )
    return tracker, identity


def _wandb_picture(tracker: Any, path: Path, image: Any, step: int) -> None:
    tracker.log_images({"samples": [image]}, step=step)


def _trackio(opening: Opening) -> tuple[Any, str]:
    from accelerate.tracking import TrackioTracker

    identity = opening.identity or f"{opening.run.name}-{uuid.uuid4().hex[:6]}"
    tracker = _started(TrackioTracker(PROJECT, name=identity, resume="allow", config=facts(opening.config)))
    return tracker, identity


def _trackio_picture(tracker: Any, path: Path, image: Any, step: int) -> None:
    import trackio  # type: ignore[import-not-found,unused-ignore]

    tracker.log({"samples": trackio.Image(str(path))}, step=step)


def _mlflow(opening: Opening) -> tuple[Any, str]:
    from accelerate.tracking import MLflowTracker

    tracker = _started(MLflowTracker(PROJECT, run_id=opening.identity, run_name=opening.run.name))
    if not opening.identity:
        tracker.store_init_configuration(facts(opening.config))
    return tracker, str(tracker.tracker.info.run_id)


def _mlflow_picture(tracker: Any, path: Path, image: Any, step: int) -> None:
    tracker.log_artifact(str(path), artifact_path="samples")


#: What Trackio keeps runs in, and what it reaches servers by: a locked or full database, a server that is away.
_TRACKIO_ERRORS = ("sqlite3:Error", "httpx:HTTPError", "httpx2:HTTPError")

KINDS: dict[str, Kind] = {
    "tensorboard": Kind("tensorboard", _tensorboard, _tensorboard_picture),
    "wandb": Kind("wandb", _wandb, _wandb_picture, ("wandb:Error",)),
    "mlflow": Kind("mlflow", _mlflow, _mlflow_picture, ("mlflow.exceptions:MlflowException",)),
    "trackio": Kind("trackio", _trackio, _trackio_picture, _TRACKIO_ERRORS),
}
