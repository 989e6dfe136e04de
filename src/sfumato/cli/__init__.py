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
Count = Annotated[int | None, typer.Option("--n", help="How many. Default: 8 per class, or 64.")]
Many = Annotated[int | None, typer.Option("--n", help="How many. Default: 2000, or as many as training images.")]
Likelihood = Annotated[
    bool, typer.Option("--likelihood", help="Measure bits per dimension of test images in place of samples.")
]
Transport = Annotated[
    bool, typer.Option("--transport", help="Measure a flow's straightness and transport cost in place of samples.")
]


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
            metavar="DATA|RUN|SCHEDULE", help="A data set, an .npz or .txt file, a run folder or a schedule's name."
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
    data: Annotated[
        str, typer.Option(metavar="DATA", help="An embedded set, an .npz or a .txt. See: sfumato list data.")
    ],
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
@shared(solver=_solver, job=_job)
def sample(run: Run, n: Count = None, out: Out = None, solver: Any = None, job: Any = None) -> None:
    """Sample from a run: samples.npz, a file to look at (grid.png, row = class; samples.txt) and samples.json."""
    from sfumato.cli.verbs import sample_run

    sample_run(run, replace(job, n=n, **solver), out)


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
) -> None:
    """Sample from a run and measure the samples; appends to RUN/metrics.jsonl."""
    job = replace(job, n=n, **solver)
    if likelihood:
        from sfumato.cli.likelihood import likelihood_run

        likelihood_run(run, job, out, transport)
        return
    if transport:
        from sfumato.cli.transport import transport_run

        transport_run(run, job, out)
        return
    from sfumato.cli.verbs import evaluate_run

    evaluate_run(run, job, out)


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
def demo(
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder; an older one is moved aside.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train on MNIST for under three minutes, sample a labelled grid, evaluate it, draw pictures."""
    from sfumato.cli.demo import demo_run

    demo_run(out)
