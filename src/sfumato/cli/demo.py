"""``sfumato demo`` (``make demo``): from nothing to evaluated, labelled digits, and what to do next.

The contract: all that decides the result is :data:`DEMO`.  The model is trained, 2,000 samples are drawn once (every
class equally often, none chosen or rejected), saved as ``RUN/samples/`` and measured.  A run that is already there is
moved aside to ``RUN.1``, ``RUN.2``, ... and never touched.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from sfumato import presets
from sfumato.cli.evaluate import measured
from sfumato.cli.verbs import new_folder_for


@final
@dataclass(frozen=True)
class Demo:
    """What the demo trains and how it samples."""

    recipe: str
    data: str
    minutes: float
    settings: dict[str, Any] = field(default_factory=dict)
    n: int = 2000
    seed: int = 0


#: The one place that holds the demo's choices.
DEMO = Demo(
    recipe="edm",
    data="mnist",
    minutes=2.98,
    settings={
        **presets.get("small"),
        # digits are decided at higher noise than photographs: the median level is 0.67, the data's deviation 0.5
        "p_mean": -0.4,
        "reports": 2,
        "validation_images": 256,
        "grid_columns": 2,
        # on 20 evaluations of a young model fresh noise mends errors that an ODE solver keeps, and needs less guidance
        "sampler": "ddpm",
        "sampling_steps": 20,
        "guidance": 1.4,
        "clip": True,
    },
)


def move_aside(run: Path) -> Path | None:
    """Rename an existing ``run`` to the first free ``run.1``, ``run.2``, ...; None where there is nothing."""
    if not run.exists():
        return None
    k = 1
    while (aside := run.with_name(f"{run.name}.{k}")).exists():
        k += 1
    run.rename(aside)
    return aside


def demo_run(run: Path, demo: Demo = DEMO) -> None:
    """Train, sample, evaluate, draw, and print the commands to go on with."""
    from sfumato import data as data_sets
    from sfumato.reports import write as write_report
    from sfumato.training.pictures import save_png
    from sfumato.training.run import train

    began = time.perf_counter()
    aside = move_aside(run)
    if aside is not None:
        print(f"{run} was there already: it is now {aside}")
    data = data_sets.load(demo.data)
    print(f"training {demo.recipe} on {demo.data} for {demo.minutes:g} minutes into {run}")
    model = train(demo.recipe, data, minutes=demo.minutes, out=run, seed=demo.seed, **demo.settings)

    print(f"drawing {demo.n} samples, every class equally often")
    samples = model.sample(demo.n, label=list(model.classes), seed=demo.seed).noting({"run": str(run)})
    samples.save(run / "samples")
    save_png(_labelled(samples), run / "digits.png")
    save_png(_walk_strip(model, demo.seed), run / "trajectory.png")
    measured(run, samples, data)
    write_report(run)

    print(f"\ndone in {(time.perf_counter() - began) / 60:.1f} minutes; all of it is in {run}/")
    for name, what in _FILES:
        print(f"  {name:<22} {what}")
    print("\ngo on with:")
    for line in (
        f"sfumato sample {run} --label 7 --n 16 --out {new_folder_for(run)}",
        f"sfumato eval {run} --sampler heun --steps 8",
        f"sfumato inspect {run}",
        f"sfumato train {demo.recipe} --data {demo.data} --minutes 20 --out runs/longer",
    ):
        print(f"  {line}")


_FILES = (
    ("report.html", "all of this on one page that opens offline"),
    ("digits.png", "ten samples of every class, row = class"),
    ("trajectory.png", "from noise to digits, a row per sample"),
    ("loss.png", "training and held-out loss, also by noise level"),
    ("samples/", "the evaluated samples: samples.npz (x, label), grid.png, samples.json"),
    ("metrics.jsonl", "every measure with its floor and how it was made"),
    ("neighbours.png", "the samples nearest to training images, each beside its three nearest"),
    ("grids/", "the same seeds while training"),
    ("model.safetensors", "the weights (averaged); config.json says what they are"),
    ("checkpoints/", "to continue with --resume"),
)


def _labelled(samples: Any, columns: int = 10) -> Any:
    """The first ``columns`` samples of every class, row = class."""
    from sfumato.data.grid import image_grid

    images, per_class = samples.ordered(), samples.columns()
    first = [row * per_class + k for row in range(len(samples.classes)) for k in range(min(columns, per_class))]
    return image_grid(images[first], min(columns, per_class), scale=2)


def _walk_strip(model: Any, seed: int, columns: int = 10) -> Any:
    """One sample of every class on its way from noise."""
    from sfumato.data.grid import image_grid
    from sfumato.training.sampling import plan, strip

    job = plan(model, len(model.classes), list(model.classes), seed=seed)
    return image_grid(strip(model, job, columns), min(columns, job.steps + 1), scale=2)
