"""Audit the schedulers of diffusers against exact mathematics, and write docs/audit-diffusers.md.

    python tools/audit_diffusers.py        (pip install 'sfumato[bench]'; about two minutes)

Every scheduler that walks a Gaussian path runs with a perfect model, as a pipeline runs it:

* **steps**: asked for n, how many evaluations it takes, and whether that is n (2n - 1 for two-evaluation solvers);
* **targets**: the level its state really reaches, measured with a model that always answers the same clean data (for
  which every right solver moves exactly along the path);
* **order**: errors against the exact probability flow of a mixture of three Gaussians, on levels imposed on it, or on
  its own where it takes none (then with what its first and last steps cost);
* **values**: PNDM, whose error is no power of its steps, by the factor it gives to a normal law;
* **spacing**: the error at ten steps for every spacing it offers, and whether it is finite.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from sfumato.errors import Refusal, missing_extra
from sfumato.oracles.problems import three_modes
from sfumato.processes.gaussian import Gaussian
from sfumato.schedules import Flow, Karras
from sfumato.testing import log_snr_grid, measure_order
from sfumato.testing.adapters import KINDS, GivenTimes, OwnTimes, diffusers_schedule, visits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "audit-diffusers.md"
RECORD = ROOT / "benchmarks" / "results" / "audit_diffusers.json"

#: Why the others do not take part.
LEFT_OUT = {
    "AmusedScheduler": "masked tokens, no Gaussian path",
    "BlockRefinementScheduler": "masked tokens",
    "DiscreteDDIMScheduler": "discrete states",
    "EntropyBoundScheduler": "masked tokens",
    "VQDiffusionScheduler": "discrete states",
    "CMStochasticIterativeScheduler": "needs a consistency function, not a belief",
    "ConsistencyDecoderScheduler": "needs a consistency function",
    "SCMScheduler": "needs a consistency function (TrigFlow)",
    "FlowMapEulerDiscreteScheduler": "needs a flow map",
    "PiflowScheduler": "needs a network that outputs a policy",
    "HeliosScheduler": "renoises between stages of changing size",
    "HeliosDMDScheduler": "needs a distilled student, in stages of changing size",
    "RePaintScheduler": "inpainting: its steps need an image and a mask",
    "DDIMInverseScheduler": "walks from data to noise",
    "DPMSolverMultistepInverseScheduler": "walks from data to noise",
    "ScoreSdeVeScheduler": "two kinds of step (step_pred, step_correct), no step",
    "KarrasVeScheduler": "deprecated; two kinds of step (step, step_correct)",
    "ScoreSdeVpScheduler": "deprecated; step_pred only",
    "CogVideoXDPMScheduler": "its steps need the last step's own prediction and time",
    "DDPMWuerstchenScheduler": "its times are vectors, and its pipeline drops the last of them",
    "RFD4ProteinaScheduler": "its steps need a mask of atoms; a protein model's own noise",
}
#: Stochastic by construction, or at their defaults.
RANDOM = {
    *("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler", "LCMScheduler"),
    *("TCDScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"),
    *("SASolverScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler"),
    *("CosineDPMSolverMultistepScheduler",),
}
#: Evaluations of one step, where not 1.
TWICE = {
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
}
#: The order their papers state, where it is not that of one-step solvers.  Liu et al. 2022 call PNDM second-order
#: convergent, though its weights are those of order 4.
STATED = {"PNDMScheduler": 2, "IPNDMScheduler": 4, "LMSDiscreteScheduler": 4}
#: Settings without which unbounded data is clipped.
UNCLIPPED = ("clip_sample", "clip_denoised")


@dataclass(frozen=True)
class Case:
    """A scheduler with settings, and the order its paper states (None: it draws noise)."""

    label: str
    name: str
    settings: dict[str, Any]
    order: int | None


def cases() -> Iterator[Case]:
    for name in KINDS:
        if name == "DPMSolverMultistepScheduler":
            for p, kind, algorithm in (
                (1, "midpoint", "dpmsolver++"),
                (2, "midpoint", "dpmsolver++"),
                (2, "heun", "dpmsolver++"),
                (3, "midpoint", "dpmsolver++"),
                (2, "midpoint", "dpmsolver"),
                (3, "midpoint", "dpmsolver"),
            ):
                settings = {"solver_order": p, "solver_type": kind, "algorithm_type": algorithm}
                if algorithm == "dpmsolver":
                    settings["final_sigmas_type"] = "sigma_min"
                yield Case(f"DPMSolverMultistep {algorithm} {p} {kind}", name, settings, p)
        elif name == "DPMSolverSinglestepScheduler":
            for p in (1, 2, 3):
                yield Case(f"DPMSolverSinglestep dpmsolver++ {p}", name, {"solver_order": p}, p)
        elif name in ("DEISMultistepScheduler", "UniPCMultistepScheduler"):
            for p in (1, 2, 3):
                more = 1 if name.startswith("UniPC") else 0
                yield Case(f"{name.removesuffix('Scheduler')} {p}", name, {"solver_order": p}, p + more)
        elif name == "EDMDPMSolverMultistepScheduler":
            for p in (2, 3):
                yield Case(f"EDMDPMSolverMultistep {p}", name, {"solver_order": p}, p)
        else:
            order = None if name in RANDOM else STATED.get(name, 2 if name in TWICE else 1)
            yield Case(name.removesuffix("Scheduler"), name, {}, order)


def build(case: Case, **more: Any) -> Any:
    import diffusers

    cls = getattr(diffusers, case.name)
    known = inspect.signature(cls.__init__).parameters
    settings = {key: False for key in UNCLIPPED if key in known} | case.settings | more
    return cls(**{key: value for key, value in settings.items() if key in known})


def process_for(scheduler: Any) -> Gaussian:
    try:
        return Gaussian(diffusers_schedule(scheduler))
    except Refusal:
        return Gaussian(sf.schedules.get("cosine-continuous"))


@dataclass
class Finding:
    """What was measured of one case."""

    label: str
    stated: int | None
    evaluations: dict[int, str] = field(default_factory=dict)
    start: str = ""
    end: str = ""
    order: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    told: str = ""


def evaluations(case: Case, n: int) -> str:
    scheduler = build(case)
    scheduler.set_timesteps(n)
    taken = len(scheduler.timesteps)
    right = 2 * n - 1 if case.name in TWICE else n
    return f"{taken}" if taken == right else f"**{taken}** (not {right})"


def ends(case: Case) -> tuple[str, str, str]:
    """The first and last level (sigma/alpha), and how far the timestep told to the network is from the level used."""
    seen = visits(build(case), 10)
    a, s = seen[-1].reached
    last = "data, exactly" if abs(s) < 1e-6 and abs(a - 1) < 1e-6 else f"x = {a:.4f} x0 + {s:.4f} eps"
    return f"{seen[0].ratio:.4g}", last, told(case, seen)


def told(case: Case, seen: list[Any]) -> str:
    """The largest relative difference between the level of the timestep handed to the network and the level used."""
    scheduler = build(case, use_karras_sigmas=True)
    if not hasattr(scheduler, "alphas_cumprod") or not getattr(scheduler.config, "use_karras_sigmas", False):
        return ""
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double().log()
    worst = 0.0
    for visit in visits(scheduler, 10):
        low = min(int(visit.timestep), len(table) - 2)
        share = visit.timestep - low
        level = float((1 - share) * table[low] + share * table[low + 1])
        worst = max(worst, abs(level - math.log(visit.ratio)))
    return f"{worst:.1%}"


#: Marks an order that was measured from end to end of a scheduler's own times.
OWN = "(own times)"


def order(case: Case) -> str:
    """The measured order between 80 and 160 steps, inside (imposed levels) or on its own times."""
    if case.order is None:
        return "draws noise"
    mixture, evaluations_ = three_modes(), 2 if case.name in TWICE else 1
    scheduler = build(case, lower_order_final=False, final_sigmas_type="sigma_min")
    process = process_for(scheduler)
    try:
        inside, _ = measure_order(
            GivenTimes(scheduler, case.order, evaluations_),
            process,
            mixture,
            lambda n: log_snr_grid(process, n),
            (80, 160),
        )
        return f"{inside:.2f}"
    except Refusal:
        pass
    steps = (100, 200)
    own, _ = measure_order(
        OwnTimes(
            build(case, set_alpha_to_one=True, timestep_spacing="trailing", skip_prk_steps=True),
            case.order,
            evaluations_,
        ),
        process,
        mixture,
        lambda n: sf.grids.uniform(process.schedule, n),
        steps,
    )
    return f"{own:.2f} {OWN}"


#: A last step of no length: with few steps a lower order at the end hides what it does.
LONG = "karras, sigma_min, 20 steps"
SPACINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "sigma_min": {"final_sigmas_type": "sigma_min"},
    LONG: {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
}


def spacing_errors(case: Case, n: int = 10) -> dict[str, str]:
    """The error at n steps from the same noise, by spacing; relative to the root mean square norm of the exact ends."""
    import diffusers

    known = inspect.signature(getattr(diffusers, case.name).__init__).parameters
    found: dict[str, str] = {}
    for label, settings in SPACINGS.items():
        steps = 20 if label == LONG else n
        if not set(settings) <= set(known) or (label not in ("default", LONG) and set(settings) & set(case.settings)):
            continue
        scheduler = build(case, **settings)
        process = process_for(scheduler)
        mixture = three_modes()
        x1 = process.prior(torch.zeros(64, 2, dtype=torch.float64)).draw(sf.Stream(2))
        truth = _end(mixture, process, x1)
        sampler = OwnTimes(scheduler, case.order, 2 if case.name in TWICE else 1)
        try:
            x = sf.sample(
                mixture.denoiser(process), process, sampler, sf.grids.uniform(process.schedule, steps), x1, rng=0
            )
        except (IndexError, RuntimeError, ValueError) as error:
            found[label] = f"{type(error).__name__}: {str(error)[:60]}"
            continue
        if not bool(torch.isfinite(x).all()):
            found[label] = "**NaN**"
        elif case.order is None:
            found[label] = "finite"
        else:
            found[label] = f"{float((x - truth).norm(dim=1).mean() / truth.norm(dim=1).square().mean().sqrt()):.2e}"
    return found


#: Steps at which PNDM is held to its values, and the standard deviation of the normal data.
VALUED, STD = (10, 50, 100, 500), 0.5


def values() -> list[tuple[int, float, float, float]]:
    """Steps, and the factor from noise to data ``N(0, STD^2)`` that PNDM, DDIM and the exact flow have from the first
    of them: its steps are even in the table's index, but for the last, which ends at the data."""
    import diffusers

    found = []
    for n in VALUED:
        settings = {"set_alpha_to_one": True}
        pndm = diffusers.PNDMScheduler(skip_prk_steps=True, **settings)
        ddim = diffusers.DDIMScheduler(clip_sample=False, **settings)
        process = process_for(pndm)
        model = sf.oracles.Gaussian([0.0], [[STD**2]]).denoiser(process)
        grid = sf.grids.leading(process.schedule, n)
        alpha, sigma = sf.schedules.at(process.schedule, float(grid[0]))
        noise = torch.full((1, 1), sigma, dtype=torch.float64)  # what the adapter scales to 1
        factors = [float(sf.sample(model, process, OwnTimes(s, order=1), grid, noise)) for s in (pndm, ddim)]
        found.append((n, *factors, STD / math.hypot(alpha * STD, sigma)))
    return found


_ENDS: dict[Any, torch.Tensor] = {}


def _end(mixture: Any, process: Gaussian, x1: torch.Tensor) -> torch.Tensor:
    schedule = process.schedule
    key = (
        repr(schedule)
        if isinstance(schedule, Flow | Karras)
        else tuple(float(v) for v in schedule(torch.linspace(0, 1, 9).double())[0])
    )
    if key not in _ENDS:
        _ENDS[key] = mixture.flow(process, x1, 1.0, 0.0)
    return _ENDS[key]


def attempt(work: Any, *arguments: Any) -> Any:
    """What ``work`` returns, or its error as text: an audit reports failures, it does not stop at them."""
    try:
        return work(*arguments)
    except (
        AttributeError,
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
        AssertionError,
        ZeroDivisionError,
    ) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:70]}"


def audit() -> list[Finding]:
    found = []
    for case in cases():
        finding = Finding(case.label, case.order)
        for n in (3, 7, 10, 30, 150):
            finding.evaluations[n] = attempt(evaluations, case, n)
        if case.order is not None:
            levels = attempt(ends, case)
            finding.start, finding.end, finding.told = levels if isinstance(levels, tuple) else ("", levels, "")
        finding.order = attempt(order, case)
        errors = attempt(spacing_errors, case)
        finding.errors = errors if isinstance(errors, dict) else {"default": errors}
        found.append(finding)
        print(finding.label, finding.evaluations, finding.start, finding.end, finding.order, finding.errors, flush=True)
    return found


def in_short(found: list[Finding]) -> list[str]:
    """What the tables show, each line computed from them."""

    def measured(finding: Finding) -> float:
        try:
            return float(finding.order.split()[0])
        except (ValueError, IndexError):
            return math.nan

    other = [f.label for f in found if any("not" in text for text in f.evaluations.values())]
    away = [f for f in found if f.stated is not None and f.end and not f.end.startswith("data")]
    noisy = [f.label for f in away if "+ 0.0000 eps" not in f.end]
    off = [f"{f.label} ({f.end})" for f in away if "+ 0.0000 eps" in f.end]
    inside = [f for f in found if f.stated and OWN not in f.order]  # steps at the ends are of lower order for all
    low = [f"{f.label} ({f.order} for {f.stated})" for f in inside if measured(f) < f.stated - 0.25]
    raised = [f"{f.label} ({label}: {text})" for f in found for label, text in f.errors.items() if "Error" in text]
    raised += [f"{f.label} ({n} steps: {text})" for f in found for n, text in f.evaluations.items() if "Error" in text]
    nan = [f"{f.label} ({label})" for f in found for label, text in f.errors.items() if "NaN" in text]
    listed = (
        ("Evaluations other than asked for", other),
        ("Stops short of the data at its defaults", noisy),
        ("Loses the path: with one and the same clean data for an answer it ends elsewhere", off),
        ("Converges more slowly than stated, between imposed levels", low),
        ("Raises", raised),
        ("Not finite", nan),
    )
    return [f"* **{title}**: {'; '.join(names) if names else 'none'}." for title, names in listed]


def page(found: list[Finding], valued: list[tuple[int, float, float, float]], versions: dict[str, str]) -> str:
    lines = [
        "# Audit: the schedulers of diffusers",
        "",
        "Made entirely by `python tools/audit_diffusers.py` with "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + ".",
        "Every scheduler runs with a perfect model of a mixture of three Gaussians, in float64, through the adapters",
        "of `sfumato.testing.adapters`, at its defaults (clipping off).  Bold: not what was asked for.",
        "",
        *in_short(found),
        "",
        "## Steps asked, evaluations taken",
        "",
        "| scheduler | 3 | 7 | 10 | 30 | 150 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {f.label} | " + " | ".join(f.evaluations.values()) + " |" for f in found]
    lines += [
        "",
        "## Where it starts, where it ends, and its order",
        "",
        "*Start*: sigma/alpha of the first of ten steps.  *End*: the state after the last, measured with a model that",
        "always answers the same clean data.  *Told*: with Karras spacing, the largest relative difference between the",
        "noise level of the timestep that the network is told and the level that the solver uses.  *Order*: error",
        "against the exact flow between 80 and 160 steps even in log-SNR from -6 to 6, imposed on it, or between 100",
        "and 200 of its own times, where the steps at both ends are counted: there no multistep solver has its order.",
        "",
        "| scheduler | start | end | told | order stated | order measured |",
        "|---|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {f.label} | {f.start} | {f.end} | {f.told} | {f.stated or ''} | {f.order} |"
        for f in found
        if f.stated is not None
    ]
    lines += [
        "",
        "## PNDM by its values",
        "",
        "PNDM's error is no power of its steps: its weights are those of even steps, and its last step is not even.",
        f"So it is held to values: the factor from noise to data of standard deviation {STD:g}, with",
        "`skip_prk_steps` and `set_alpha_to_one`, against the exact flow from the same start, and DDIM's beside it.",
        "It is right: its error is far below DDIM's from the fewest steps on.  (By default it takes 9 evaluations",
        "more, to begin by the method of Runge and Kutta as published, and stops a step of the table short.)",
        "",
        "| steps | PNDM | exact | error | DDIM's error |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {n} | {own:.6f} | {exact:.6f} | {own - exact:+.1e} | {ddim - exact:+.1e} |"
        for n, own, ddim, exact in valued
    ]
    labels = list(SPACINGS)
    lines += [
        "",
        "## Spacing: the error at ten steps",
        "",
        "Mean distance to the exact end of the probability flow from the same noise, relative to the size of the data.",
        "Stochastic schedulers: whether the samples are finite.",
        "",
        "| scheduler | " + " | ".join(labels) + " |",
        "|---|" + "---:|" * len(labels),
    ]
    lines += [f"| {f.label} | " + " | ".join(f.errors.get(label, "") for label in labels) + " |" for f in found]
    lines += ["", "## Left out", "", "| scheduler | why |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in LEFT_OUT.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--record", type=Path, default=RECORD)
    arguments = parser.parse_args()
    try:
        import diffusers
    except ImportError:
        raise missing_extra("diffusers", "bench") from None
    diffusers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    missing = unaccounted(diffusers)
    if missing:
        raise Refusal(
            f"diffusers has schedulers unknown to this audit: {', '.join(missing)}; add them to KINDS or LEFT_OUT"
        )
    versions = {name: importlib.metadata.version(name) for name in ("diffusers", "torch")} | {"sfumato": sf.__version__}
    found = audit()
    valued = values()
    arguments.page.write_text(page(found, valued, versions))
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    record = {"versions": versions, "findings": [asdict(f) for f in found], "values": valued, "left out": LEFT_OUT}
    arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {arguments.page} and {arguments.record}")


def unaccounted(diffusers: Any) -> list[str]:
    """The PyTorch schedulers that are neither audited nor left out with a reason."""
    listed = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    return sorted(set(listed) - set(KINDS) - set(LEFT_OUT))


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        raise SystemExit(f"error: {refusal}") from None
