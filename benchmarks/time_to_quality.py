"""Seconds until digits are good: the demo's recipe beside training loops of diffusers and torchcfm, on MNIST.

    python benchmarks/time_to_quality.py [--cap 30] [--only sfumato] [--quick] [--runs DIR]

Each peer trains as its own class-conditional MNIST example does, with that example's network, optimiser and batch:

* ``diffusers``: the Hugging Face diffusion course, unit 2: ``UNet2DModel`` (32, 64, 64) with attention and the class as
  extra channels, ``DDPMScheduler`` with the cosine schedule, Adam 1e-3, batches of 128.  Sampled by its DDPM at 50
  steps and by its DPM-Solver++ at 25: the better of the two counts (the course takes 1000 steps).
* ``torchcfm``: its conditional MNIST notebook: ``UNetModel`` of 32 channels with one block a stage, plain conditional
  flow matching, Adam 1e-3, batches of 128.  Sampled by the midpoint rule, 25 steps (the notebook's dopri5 takes more).
* ``sfumato``: the demo's recipe with all of its settings, one fresh run for each budget, since its learning rate falls
  to the end of the budget.

Quality is the Frechet distance of n samples, labels in turn, drawn once, in the features of the digit classifier.  A
peer's clock counts its training steps alone, ours all that ``sfumato train`` does.  Contenders take turns; a peer
stops where it arrives at the goal or at the cap.  Every look is stored; the same command continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato import metrics
from sfumato.bakeoff.parts import machine
from sfumato.cli.demo import DEMO
from sfumato.errors import missing_extra
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.monitor import read_log

RESULTS = Path(__file__).parent / "results" / "time_to_quality.json"
#: The Frechet distance to arrive at.
GOAL = 1.0
#: Minutes of a peer's clock at which it is looked at, and budgets of our runs.
LOOKS = (3.0, 6.0, 10.0, 15.0, 20.0, 25.0, 30.0)
BUDGETS = (0.5, 0.75, 1.0, 1.5, DEMO.minutes)
#: At this many minutes throughput and quality are compared.
EQUAL = 3.0
BATCH = 128
CLASSES = 10


class Peer(Protocol):
    """Another library's training loop."""

    net: nn.Module

    def loss(self, x0: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch in [-1, 1]."""
        ...

    def samples(self, label: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        """Name, evaluations and images in [-1, 1] of each way it is sampled."""
        ...


class ByChannels(nn.Module):
    """A U-Net of diffusers that is shown the class as constant extra channels, as the course does it."""

    def __init__(self, inner: nn.Module, size: int = 4) -> None:
        super().__init__()
        self.inner, self.embedding = inner, nn.Embedding(CLASSES, size)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        shown = self.embedding(label)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        out: Tensor = self.inner(torch.cat([x, shown], 1), t).sample
        return out


class Diffusers:
    """The course's loop: noise prediction with the cosine schedule of a thousand steps."""

    def __init__(self) -> None:
        try:
            import diffusers
        except ImportError:
            raise missing_extra("diffusers", "bench") from None
        library: Any = diffusers
        schedule = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
        self.train_scheduler = library.DDPMScheduler(**schedule)
        self.ways = {
            "DDPM": (library.DDPMScheduler(**schedule, timestep_spacing="trailing"), 50),
            "DPM-Solver++": (library.DPMSolverMultistepScheduler(**schedule), 25),
        }
        self.net = ByChannels(
            library.UNet2DModel(
                sample_size=28, in_channels=1 + 4, out_channels=1, layers_per_block=2, block_out_channels=(32, 64, 64),
                down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            )
        )  # fmt: skip

    def loss(self, x0: Tensor, label: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(0, 999, (len(x0),))
        noisy = self.train_scheduler.add_noise(x0, noise, t)
        return nn.functional.mse_loss(self.net(noisy, t, label), noise)

    def samples(self, label: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        for name, (scheduler, steps) in self.ways.items():
            made, generator = [], torch.Generator().manual_seed(0)
            for part in label.split(BATCH):
                scheduler.set_timesteps(steps)
                x = torch.randn(len(part), 1, 28, 28, generator=generator)
                for t in scheduler.timesteps:
                    out = self.net(x, t.expand(len(part)), part)
                    x = scheduler.step(out, t, x, generator=generator).prev_sample
                made.append(x)
            yield name, steps, torch.cat(made)


class TorchCFM:
    """The notebook's loop: straight paths from noise to independent data."""

    def __init__(self) -> None:
        try:
            from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
            from torchcfm.models.unet import UNetModel
        except ImportError:
            raise missing_extra("torchcfm", "bench") from None
        self.matcher: Any = ConditionalFlowMatcher(sigma=0.0)
        build: Any = UNetModel
        self.net: nn.Module = build(
            dim=(1, 28, 28), num_channels=32, num_res_blocks=1, num_classes=CLASSES, class_cond=True
        )

    def loss(self, x0: Tensor, label: Tensor) -> Tensor:
        t, x_t, velocity = self.matcher.sample_location_and_conditional_flow(torch.randn_like(x0), x0)
        return torch.mean((self.net(t, x_t, label) - velocity) ** 2)

    def samples(self, label: Tensor, steps: int = 25) -> Iterator[tuple[str, int, Tensor]]:
        made, generator = [], torch.Generator().manual_seed(0)
        for part in label.split(BATCH):
            x = torch.randn(len(part), 1, 28, 28, generator=generator)
            for k in range(steps):
                t, h = torch.full((len(part),), k / steps), 1 / steps
                middle = x + h / 2 * self.net(t, x, part)
                x = x + h * self.net(t + h / 2, middle, part)
            made.append(x)
        yield "midpoint", 2 * steps, torch.cat(made)


PEERS: dict[str, Callable[[], Peer]] = {"diffusers": Diffusers, "torchcfm": TorchCFM}


class Race:
    """The data, what was seen so far, and where runs are kept."""

    def __init__(self, runs: Path, out: Path, n: int) -> None:
        self.data, self.runs, self.out = sf.data.load("mnist"), make_folder(runs), out
        self.reference = metrics.Reference.of(self.data, n, names=("frechet", "label-accuracy"))
        self.label = torch.arange(n) % CLASSES
        protocol = {"goal": GOAL, "n": n, "batch": BATCH, "extractor": self.reference.extractor.name}
        stored = json.loads(out.read_text()) if out.exists() else {}
        self.found: dict[str, Any] = (
            stored if stored.get("protocol") == protocol else {"protocol": protocol, "looks": []}
        )

    def seen(self, name: str) -> list[dict[str, Any]]:
        """What was seen of a contender."""
        return [look for look in self.found["looks"] if look["contender"] == name]

    def add(self, look: dict[str, Any]) -> None:
        """Keep a look."""
        self.found["looks"].append(look)
        self.found["machine"] = machine()
        make_folder(self.out.parent)
        write_bytes(self.out, to_json(self.found))
        numbers = f"Frechet {look['frechet']:7.3f}  accuracy {look['accuracy']:.3f}  {look['images_per_second']:7.1f}/s"
        print(f"{look['contender']:10}{look['seconds']:8.0f} s  {numbers}  ({look['sampler']})", flush=True)

    def quality(self, x: Tensor) -> dict[str, float]:
        """Frechet distance and label accuracy of uint8 ``[n, h, w]``."""
        made = {"sampler": None, "nfe": None, "seed": 0}
        records = metrics.measure(x, self.label, self.reference, generated=made)
        values = {record.name: record.value for record in records}
        return {"frechet": values["frechet"], "accuracy": values["label-accuracy"]}

    def ours(self, minutes: float) -> None:
        """One run of the demo's recipe for a budget."""
        run = self.runs / f"sfumato-{minutes:g}"
        began = time.perf_counter()
        model = sf.train(DEMO.recipe, self.data, minutes=minutes, out=run, seed=DEMO.seed, quiet=True, **DEMO.settings)
        seconds = time.perf_counter() - began
        samples = model.sample(len(self.label), label=list(model.classes), seed=DEMO.seed)
        lines = [line for line in read_log(run / "log.jsonl") if line["kind"] == "train"]
        speeds = [line["images_per_second"] for line in lines]
        record = samples.record
        self.add(
            {
                "contender": "sfumato", "minutes": minutes, "seconds": seconds, "steps": lines[-1]["step"],
                "images_per_second": statistics.median(speeds), "parameters": _parameters(model.net),
                "sampler": f"{record['sampler']}, {record['steps']} steps, guidance {record['guidance']:g}",
                **self.quality(samples.x),
            }
        )  # fmt: skip

    def peer(self, name: str, minutes: float) -> None:
        """Take a peer on to this many minutes of its clock, and look at it."""
        torch.manual_seed(0)
        peer, path = PEERS[name](), self.runs / f"{name}.pt"
        optimiser = torch.optim.Adam(peer.net.parameters(), 1e-3)
        state: dict[str, Any] = {"steps": 0, "seconds": 0.0}
        if path.exists():
            state = torch.load(path, weights_only=True)
            peer.net.load_state_dict(state["net"])
            optimiser.load_state_dict(state["optimiser"])
        generator = torch.Generator().manual_seed(state["steps"])
        images, label = self.data.train.x, self.data.train.label
        assert label is not None
        steps, seconds, taken = int(state["steps"]), float(state["seconds"]), []
        peer.net.train()
        while seconds < 60 * minutes:
            began = time.perf_counter()
            rows = torch.randint(0, len(images), (BATCH,), generator=generator)
            loss = peer.loss(images[rows].float() / 127.5 - 1, label[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            taken.append(time.perf_counter() - began)
            seconds, steps = seconds + taken[-1], steps + 1
        torch.save(
            {"net": peer.net.state_dict(), "optimiser": optimiser.state_dict(), "steps": steps, "seconds": seconds},
            path,
        )
        peer.net.eval()
        with torch.no_grad():
            ways = [
                {"sampler": f"{way}, {nfe} evaluations", **self.quality(as_bytes(x))}
                for way, nfe, x in peer.samples(self.label)
            ]
        best = min(ways, key=lambda way: float(way["frechet"]))
        self.add(
            {
                "contender": name, "minutes": minutes, "seconds": seconds, "steps": steps,
                "images_per_second": BATCH / statistics.median(taken), "parameters": _parameters(peer.net), **best,
                "ways": ways,
            }
        )  # fmt: skip


def as_bytes(x: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 ``[n, h, w]``."""
    return ((x[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def arrival(looks: list[dict[str, Any]]) -> float | None:
    """Seconds at the first look within the goal."""
    return min((look["seconds"] for look in looks if look["frechet"] <= GOAL), default=None)


def summary(race: Race) -> dict[str, Any]:
    """Ratios of time and of throughput against the best peer, from all looks."""
    ours, names = race.seen("sfumato"), [name for name in PEERS if race.seen(name)]
    times = {name: arrival(race.seen(name)) for name in names}
    last = {name: max(look["seconds"] for look in race.seen(name)) for name in names}
    found = arrival(ours)
    least = min((times[name] or last[name] for name in names), default=None)
    equal = {
        name: next(look for look in race.seen(name) if look["minutes"] >= EQUAL) for name in names
    } | {"sfumato": max(ours, key=lambda look: float(look["minutes"]))}  # fmt: skip
    fastest = max((equal[name]["images_per_second"] for name in names), default=float("nan"))
    return {
        "seconds": {"sfumato": found} | times,
        "not_arrived_after": {name: last[name] for name in names if times[name] is None},
        "time_ratio": least / found if found and least else None,
        "throughput_ratio": equal["sfumato"]["images_per_second"] / fastest,
        "frechet_after_equal_seconds": {name: look["frechet"] for name, look in equal.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=float, default=LOOKS[-1], help="minutes of training that a peer gets at most")
    parser.add_argument("--only", nargs="*", default=["sfumato", *PEERS], choices=["sfumato", *PEERS])
    parser.add_argument("--n", type=int, default=1000, help="samples of every look")
    parser.add_argument("--quick", action="store_true", help="a smoke test: seconds of training, 100 samples")
    parser.add_argument("--runs", type=Path, default=Path("runs/time-to-quality"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    budgets, looks, n = (0.1,), (0.1,), 100
    if not options.quick:
        budgets, looks, n = BUDGETS, tuple(look for look in LOOKS if look <= options.cap), options.n
    race = Race(options.runs, options.out, n)
    for turn in range(max(len(budgets), len(looks))):
        waiting = [each for each in budgets[turn : turn + 1] if all(x["minutes"] != each for x in race.seen("sfumato"))]
        for minutes in waiting if "sfumato" in options.only else []:
            race.ours(minutes)
        for name in (name for name in PEERS if name in options.only and turn < len(looks)):
            before = race.seen(name)
            reached = any(look["frechet"] <= GOAL and look["minutes"] >= EQUAL for look in before)
            if not reached and all(look["minutes"] != looks[turn] for look in before):
                race.peer(name, looks[turn])
    if race.seen("sfumato") and len(race.found["looks"]) > len(race.seen("sfumato")) and not options.quick:
        race.found["summary"] = summary(race)
        write_bytes(race.out, to_json(race.found))
        print(json.dumps(race.found["summary"], indent=1))


if __name__ == "__main__":
    try:
        main()
    except sf.Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        raise SystemExit(2) from None
