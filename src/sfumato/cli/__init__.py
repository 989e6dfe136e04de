"""The command line: thin verbs over the library.

The contract: this module imports neither torch nor the library, so that ``sfumato --help`` answers at once; a verb
imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="sfumato",
    help="Diffusion and flow models: train, sample, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder: the --out of a training.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder for the samples. Default: in the run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Seed = Annotated[int, typer.Option(help="The seed; sample k has seed + k.")]
Label = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A class name; may be repeated. Default: all in turn.")
]
Guidance = Annotated[
    float | None, typer.Option(help="1 is plain conditional, more is stronger. Default: the recipe's.")
]
Interval = Annotated[
    tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Guide only at times between these, in [0, 1].")
]
SamplerName = Annotated[
    str | None,
    typer.Option("--sampler", metavar="NAME[:KEY=VALUE]", help="As in ddim:eta=0.5. See: sfumato list samplers."),
]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.")]
GridName = Annotated[
    str | None,
    typer.Option("--grid", metavar="NAME[:KEY=VALUE]", help="As in karras:rho=5. See: sfumato list grids."),
]
Batch = Annotated[int, typer.Option(help="Samples at a time; changes the speed alone.")]
Ema = Annotated[
    float | None,
    typer.Option(metavar="WIDTH", help="Relative width of the average, from the run's snapshots (e.g. 0.1)."),
]
Autoguide = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="Guide away from a weaker run (a run folder, or one of its snapshot files)."),
]
Raw = Annotated[bool, typer.Option("--raw", help="Use the trained weights in place of their average.")]
Likelihood = Annotated[
    bool, typer.Option("--likelihood", help="Measure bits per dimension of test images in place of samples.")
]


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="[recipes|data|samplers|schedules|grids|nets]")] = "all",
) -> None:
    """List the parts by name."""
    from sfumato.cli.lists import list_parts

    list_parts(what)


@app.command()
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="DATA|RUN|SCHEDULE", help="A data set, an .npz file, a run folder or a schedule's name."
        ),
    ],
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Where the contact sheet or picture goes.")] = None,
) -> None:
    """Print the report of a data set (with a contact sheet), a schedule's table, or all a run knows of itself."""
    from sfumato.cli.verbs import inspect_target

    inspect_target(target, sheet)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="See: sfumato list recipes.")],
    data: Annotated[str, typer.Option(metavar="DATA", help="An embedded set or an .npz file. See: sfumato list data.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    minutes: Annotated[float | None, typer.Option(help="Train this long (default 3).")] = None,
    steps: Annotated[int | None, typer.Option(help="Train this many steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Decides weights, order of the data and noise (0 unless given).")
    ] = None,
    device: Device = "auto",
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in a .toml or .json file.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")
    ] = None,
) -> None:
    """Train a recipe on data into a run folder."""
    from sfumato.cli.verbs import train_run

    train_run(recipe, data, out, minutes, steps, resume, seed, device, config, set_ or [])


@app.command()
def sample(
    run: Run,
    n: Annotated[int | None, typer.Option("--n", help="How many. Default: 8 per class, or 64.")] = None,
    out: Out = None,
    label: Label = None,
    guidance: Guidance = None,
    interval: Interval = None,
    sampler: SamplerName = None,
    steps: Steps = None,
    grid: GridName = None,
    seed: Seed = 0,
    batch: Batch = 256,
    device: Device = "auto",
    raw: Raw = False,
    ema: Ema = None,
    autoguide: Autoguide = None,
) -> None:
    """Sample from a run: samples.npz, grid.png (row = class) and samples.json."""
    from sfumato.cli.verbs import Job, sample_run

    job = Job(n, label, guidance, interval, sampler, steps, grid, seed, batch, device, raw, ema, autoguide)
    sample_run(run, job, out)


@app.command("eval")
def eval_(
    run: Run,
    n: Annotated[
        int | None, typer.Option("--n", help="How many. Default: 2000, or as many as training images.")
    ] = None,
    out: Out = None,
    label: Label = None,
    guidance: Guidance = None,
    interval: Interval = None,
    sampler: SamplerName = None,
    steps: Steps = None,
    grid: GridName = None,
    seed: Seed = 0,
    batch: Batch = 256,
    device: Device = "auto",
    raw: Raw = False,
    ema: Ema = None,
    autoguide: Autoguide = None,
    likelihood: Likelihood = False,
) -> None:
    """Sample from a run and measure the samples; appends to RUN/metrics.jsonl."""
    if likelihood:
        from sfumato.cli.likelihood import likelihood_run

        unused: dict[str, object] = {"out": out, "label": label, "guidance": guidance, "interval": interval}
        unused |= {"sampler": sampler, "steps": steps, "grid": grid, "autoguide": autoguide}
        likelihood_run(run, n, seed, batch, device, raw, ema, unused)
        return
    from sfumato.cli.verbs import Job, evaluate_run

    job = Job(n, label, guidance, interval, sampler, steps, grid, seed, batch, device, raw, ema, autoguide)
    evaluate_run(run, job, out)


@app.command()
def compare(
    run: Run,
    samplers: Annotated[
        str,
        typer.Option(metavar="A,B:KEY=VALUE,...", help="Samplers with settings. See: sfumato list samplers."),
    ],
    steps: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of steps.")] = "5,10,20,50",
    grid: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Time grids; each with each sampler. Default: the run's.")
    ] = None,
    against_ode: Annotated[
        bool, typer.Option("--against-ode", help="Measure the distance to the exactly solved ODE from the same noise.")
    ] = False,
    n: Annotated[int | None, typer.Option("--n", help="How many. Default: 2000, with --against-ode 64.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where results go, and continue. Default: RUN/compare or RUN/compare-ode."),
    ] = None,
    label: Label = None,
    guidance: Guidance = None,
    interval: Interval = None,
    seed: Seed = 0,
    batch: Batch = 256,
    device: Device = "auto",
    raw: Raw = False,
) -> None:
    """Compare samplers on a run: quality, or the distance to the ODE, against evaluations and seconds."""
    from sfumato.cli.compare import compare_run
    from sfumato.cli.verbs import Job

    job = Job(n, label, guidance, interval, samplers, None, grid, seed, batch, device, raw)
    compare_run(run, job, steps, against_ode, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder; an older one is moved aside.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train on MNIST for under three minutes, sample a labelled grid, evaluate it, draw pictures."""
    from sfumato.cli.demo import demo_run

    demo_run(out)
