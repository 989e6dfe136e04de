"""The command line: thin verbs over the library.

The contract: this module imports neither torch nor the library, so that ``sfumato --help`` answers at once; a verb
imports what it needs when it runs.
"""

from __future__ import annotations

import functools
import inspect as inspection
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato import launch

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
    list[str] | None,
    typer.Option(metavar="NAME", help="A class name; may be repeated. Default: all in turn (eval: as held out)."),
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
Threshold = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE]",
        help="Hold predicted clean images in range: none, static, dynamic:quantile=0.995. Default: the run's.",
    ),
]
Prompt = Annotated[str | None, typer.Option(metavar="TEXT", help="Text models: what every sample begins with.")]
Infill = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Text models: a text to fill, one underscore for every free character."),
]
Temperature = Annotated[
    float | None, typer.Option(help="Text models: below 1 likelier tokens, 0 the likeliest. Default: the recipe's.")
]
TopP = Annotated[
    float | None,
    typer.Option(help="Text models: choose among the likeliest tokens of this mass. Default: the recipe's."),
]
Png = Annotated[bool, typer.Option("--png", help="Images: every sample in a PNG file of its own, too.")]
Count = Annotated[int | None, typer.Option("--n", help="How many. Default: 8 per class, or 64.")]
Many = Annotated[
    int | None,
    typer.Option("--n", help="How many. Default: 2000, or as many as training samples; tables, series 1000; text 64."),
]
Likelihood = Annotated[
    bool, typer.Option("--likelihood", help="Measure bits per dimension of test images in place of samples.")
]
ExtractorName = Annotated[
    str | None,
    typer.Option("--extractor", metavar="NAME[:KEY=VALUE]", help="What makes features. See: sfumato list extractors."),
]
MetricNames = Annotated[
    str | None, typer.Option("--metrics", metavar="A,B,...", help="What is measured. See: sfumato list metrics.")
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="RUN|FILE", help="Compare with the newest records of a run, or with a file of records."),
]
FailAbove = Annotated[
    float | None,
    typer.Option("--fail-above", metavar="X", help="With --against: exit with 1 where worse by X standard errors."),
]
Transport = Annotated[
    bool, typer.Option("--transport", help="Measure a flow's straightness and transport cost in place of samples.")
]


Resolution = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Images: height x width, as in 64x48, or one number. Default: inferred."),
]
Crop = Annotated[
    str | None,
    typer.Option(metavar="center|none", help="Images of another shape: cut the middle out (default), or stretch all."),
]
Background = Annotated[
    str | None, typer.Option(metavar="COLOUR", help="What transparent images are laid on: white (default), #rrggbb.")
]
LabelColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The column with the class. Default: the one called label.")
]
Labels = Annotated[
    str | None,
    typer.Option(metavar="auto|none", help="none: leave classes out. Default: read them where there are any."),
]
Corrupt = Annotated[
    str | None, typer.Option(metavar="refuse|skip", help="Files that cannot be read. Default: refuse the whole set.")
]

KindOption = Annotated[
    str | None, typer.Option(metavar="table|series", help="What a file of rows or of floats holds. Default: inferred.")
]


def _reading(
    resolution: Resolution = None,
    crop: Crop = None,
    background: Background = None,
    label_column: LabelColumn = None,
    labels: Labels = None,
    corrupt: Corrupt = None,
    kind: KindOption = None,
) -> Any:
    """The options that say how data are read; None where none is given."""
    from sfumato.data import options

    given = {
        "resolution": None if resolution is None else options.size(resolution), "crop": crop, "background": background,
        "label_column": label_column, "labels": labels, "corrupt": corrupt, "kind": kind,
    }  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return options.Options(**chosen) if chosen else None


def _job(
    label: Label = None,
    guidance: Guidance = None,
    interval: Interval = None,
    threshold: Threshold = None,
    seed: Seed = 0,
    batch: Batch = 256,
    device: Device = "auto",
    raw: Raw = False,
    ema: Ema = None,
    autoguide: Autoguide = None,
) -> Any:
    """The options of every verb that samples, as a job."""
    from sfumato.cli.verbs import Job

    return Job(
        label=label, guidance=guidance, interval=interval, threshold=threshold, seed=seed, batch=batch, device=device,
        raw=raw, ema=ema, autoguide=autoguide,
    )  # fmt: skip


def _solver(
    sampler: SamplerName = None,
    steps: Steps = None,
    grid: GridName = None,
    prompt: Prompt = None,
    infill: Infill = None,
    temperature: Temperature = None,
    top_p: TopP = None,
) -> dict[str, Any]:
    """The options of verbs that sample with one solver."""
    return {
        "sampler": sampler, "steps": steps, "grid": grid, "prompt": prompt, "infill": infill,
        "temperature": temperature, "top_p": top_p,
    }  # fmt: skip


def shared(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb with the options of other functions: each group's in the place of the verb's parameter of its name.

    The verb is called with what the group's function makes of them.
    """

    def shares(verb: Callable[..., None]) -> Callable[..., None]:
        options = {name: inspection.signature(group, eval_str=True).parameters for name, group in groups.items()}
        own = inspection.signature(verb, eval_str=True)

        @functools.wraps(verb)
        def wrapper(**given: Any) -> None:
            made = {name: group(**{key: given.pop(key) for key in options[name]}) for name, group in groups.items()}
            verb(**made, **given)

        whole = [option for p in own.parameters.values() for option in options.get(p.name, {p.name: p}).values()]
        # keyword-only: an option without a default may follow one with a default
        parameters = [option.replace(kind=inspection.Parameter.KEYWORD_ONLY) for option in whole]
        wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {option.name: option.annotation for option in parameters}
        return wrapper

    return shares


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="[recipes|data|samplers|schedules|grids|nets|metrics|extractors]")
    ] = "all",
) -> None:
    """List the parts by name."""
    from sfumato.cli.lists import list_parts

    list_parts(what)


@app.command()
@shared(options=_reading)
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="DATA|RUN|SCHEDULE", help="A data set by name or path, a run folder or a schedule's name."
        ),
    ],
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Where the contact sheet or picture goes.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="A page with the report and pictures.")] = None,
    options: Any = None,
) -> None:
    """Print the report of a data set (with a contact sheet), a schedule's table, or all a run knows of itself."""
    from sfumato.cli.inspect import inspect_target

    inspect_target(target, sheet, html, options)


@app.command()
@shared(options=_reading)
def train(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="See: sfumato list recipes.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="A set by name or your own by path. See: sfumato list data.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run folder to make.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train this long (default 3).")] = None,
    steps: Annotated[int | None, typer.Option(help="Train this many steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Decides weights, order of the data and noise (0 unless given).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda or mps.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Options and settings: a .yaml, .toml or .json file, a run's config.json, or a preset."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")
    ] = None,
    options: Any = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Of several processes: divide the weights among them (FSDP2).")
    ] = False,
    auto_batch: Annotated[
        str | None, typer.Option(metavar="MEMORY", help="The largest batch that fits, as in 4GB.")
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Also watch by tensorboard, wandb, mlflow, trackio (each an extra)."),
    ] = None,
) -> None:
    """Train a recipe on data into a run folder."""
    from sfumato.cli.verbs import train_run

    given = {
        "recipe": recipe, "data": data, "out": out, "minutes": minutes, "steps": steps, "seed": seed, "device": device,
        "shard": shard or None, "auto_batch": auto_batch, "tracker": tracker,
    }  # fmt: skip
    train_run(given, resume, config, set_ or [], options)


@app.command()
@shared(solver=_solver, job=_job)
def sample(run: Run, n: Count = None, out: Out = None, png: Png = False, solver: Any = None, job: Any = None) -> None:
    """Sample from a run: samples.npz, a file to look at (grid.png, row = class; samples.txt) and samples.json."""
    from sfumato.cli.verbs import sample_run

    sample_run(run, replace(job, n=n, **solver), out, png)


@app.command("eval")
@shared(solver=_solver, job=_job)
def eval_(
    run: Run,
    n: Many = None,
    out: Out = None,
    solver: Any = None,
    job: Any = None,
    likelihood: Likelihood = False,
    transport: Transport = False,
    extractor: ExtractorName = None,
    metrics: MetricNames = None,
    against: Against = None,
    fail_above: FailAbove = None,
) -> None:
    """Sample from a run and measure the samples; appends to RUN/metrics.jsonl, compares with another run's."""
    from sfumato.cli.evaluate import Look, evaluate_run

    job = replace(job, n=n, **solver)
    look = Look(extractor, metrics, against, fail_above)
    if likelihood or transport:
        look.refuse_elsewhere("--likelihood" if likelihood else "--transport")
    if (likelihood or transport) and launch.rank() > 0:
        return  # the first process measures alone
    if likelihood:
        from sfumato.cli.likelihood import likelihood_run

        likelihood_run(run, job, out, transport, look)
        return
    if transport:
        from sfumato.cli.transport import transport_run

        transport_run(run, job, out, look)
        return
    evaluate_run(run, job, out, look)


@app.command()
@shared(job=_job)
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
    job: Any = None,
) -> None:
    """Compare samplers on a run: quality, or the distance to the ODE, against evaluations and seconds."""
    from sfumato.cli.compare import compare_run

    compare_run(run, replace(job, n=n, sampler=samplers, grid=grid), steps, against_ode, out)


@app.command()
@shared(options=_reading)
def bakeoff(
    data: Annotated[
        str, typer.Option(metavar="DATA", help="A set by name or your own by path. See: sfumato list data.")
    ],
    recipes: Annotated[str, typer.Option(metavar="A,B,C", help="See: sfumato list recipes.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs and results go, and continue.")],
    minutes: Annotated[float | None, typer.Option(help="Train each this long (default 3).")] = None,
    steps: Annotated[int | None, typer.Option(help="Train each this many steps.")] = None,
    seed: Annotated[int, typer.Option(help="Of training and of samples.")] = 0,
    n: Annotated[int, typer.Option("--n", help="Samples of the final measure, or as many as the data allow.")] = 2000,
    few: Annotated[int, typer.Option(help="Samples of each point of a curve.")] = 500,
    moments: Annotated[int, typer.Option(help="Points of quality over time.")] = 6,
    nfe: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of sampling steps, for quality over evaluations.")
    ] = "5,10,20,50",
    extractor: Annotated[
        str | None,
        typer.Option(metavar="NAME[:KEY=VALUE]", help="What looks at samples. See: sfumato list extractors."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings of all: a .yaml, .toml or .json file, or a preset.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[RECIPE.]KEY=VALUE", help="One setting, of all or of one; repeatable."),
    ] = None,
    device: Device = "auto",
    options: Any = None,
) -> None:
    """Train several recipes under one budget, measure them in one way, write one report."""
    from sfumato.cli.bakeoff import bakeoff_run

    terms = {
        "minutes": minutes, "steps": steps, "seed": seed, "n": n, "few": few, "moments": moments,
        "extractor": extractor,
    }  # fmt: skip
    bakeoff_run(data, recipes, out, terms, nfe, config, set_ or [], options, device)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or that of a bake-off.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: RUN/report.html, which is replaced.")
    ] = None,
) -> None:
    """Write the report of a run as one HTML file that opens offline."""
    from sfumato.cli.bakeoff import report_run

    report_run(run, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder; an older one is moved aside.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train on MNIST for under three minutes, sample a labelled grid, evaluate it, draw pictures."""
    from sfumato.cli.demo import demo_run

    demo_run(out)
