"""Training throughput and memory of the recommended network against diffusers' U-Net of equally many parameters.

    python benchmarks/training_throughput.py [--quick]        (pip install 'sfumato[bench]')

Both train on MNIST, class by class, in batches of 128.  They take turns, one step each, in one process; the medians
over the turns are reported.  Memory is the largest resident size of a process that trains one of them alone, over what
the process held before its first network.

* ``sfumato``: the demo's network, recipe and optimiser by our own training loop: batches, noise, loss, backward, Muon,
  clipping, the average of the weights, the clock;
* ``diffusers``: ``UNet2DModel`` with the same channels and blocks, no attention but the one in its middle, class
  embedding, its noise-prediction loss and ``torch.optim.AdamW``, as it comes;
* ``diffusers bf16``: the same under ``torch.autocast``, ``channels_last``, fused AdamW.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sfumato as sf
from sfumato import recipes
from sfumato.bakeoff.parts import machine
from sfumato.cli.demo import DEMO
from sfumato.errors import missing_extra
from sfumato.training.ema import EMA
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.horizon import Steps
from sfumato.training.loop import train_steps
from sfumato.training.optim import Optimiser
from sfumato.training.settings import resolve

RESULTS = Path(__file__).parent / "results" / "training_throughput.json"
BATCH = 128
#: One training step, and the number of parameters.
Contender = tuple[Callable[[], Any], int]


def count(net: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def ours(data: Any) -> Contender:
    """The demo as our loop trains it."""
    recipe = recipes.get(DEMO.recipe)
    settings = resolve(recipe.defaults, DEMO.settings)
    units = data.prepared(settings)
    model = recipe.build(settings, units.spec(), {"seed": 0, "horizon": Steps(10**9).to_json()})
    model.net.train()
    average = EMA(model.net, settings.optimisation.ema)
    optimiser = {"net": Optimiser(model.net, settings.optimisation)}
    steps = train_steps(model, units.rows(torch.device("cpu")), optimiser, Steps(10**9), batch=BATCH, seed=0)

    def step() -> None:
        average.update(next(steps).step)

    return step, count(model.net)


def theirs(data: Any, tuned: bool) -> Contender:
    """diffusers' network and loss; ``tuned``: under autocast, channels last."""
    try:
        import diffusers
    except ImportError:
        raise missing_extra("diffusers", "bench") from None
    library: Any = diffusers
    channels = tuple(DEMO.settings["channels"])
    net = library.UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, layers_per_block=DEMO.settings["blocks"],
        block_out_channels=channels, norm_num_groups=16, num_class_embeds=len(data.classes),
        down_block_types=("DownBlock2D",) * len(channels), up_block_types=("UpBlock2D",) * len(channels),
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    net = net.to(memory_format=torch.channels_last) if tuned else net
    scheduler = library.DDPMScheduler(num_train_timesteps=1000)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, fused=True if tuned else None)
    images, label = data.train.x, data.train.label

    def step() -> None:
        rows = torch.randint(0, len(images), (BATCH,))
        x0 = images[rows].float() / 127.5 - 1
        noise, k = torch.randn_like(x0), torch.randint(0, 1000, (BATCH,))
        noisy = scheduler.add_noise(x0, noise, k)
        if tuned:
            with torch.autocast("cpu", torch.bfloat16):
                out = net(noisy.contiguous(memory_format=torch.channels_last), k, label[rows]).sample.float()
        else:
            out = net(noisy, k, label[rows]).sample
        loss = nn.functional.mse_loss(out, noise)
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()

    return step, count(net)


CONTENDERS: dict[str, Callable[[Any], Contender]] = {
    "diffusers": lambda data: theirs(data, tuned=False),
    "diffusers bf16": lambda data: theirs(data, tuned=True),
    "sfumato": ours,
}


def resident() -> int:
    """The largest resident size of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def memory(name: str) -> int:
    """Bytes that training one contender takes, measured in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--memory", name], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_memory(name: str) -> int:
    """Bytes over those of a process that has imported everything and read the data."""
    data = sf.data.load("mnist")
    import diffusers  # noqa: F401  (both processes hold it)

    before = resident()
    step, _ = CONTENDERS[name](data)
    for _ in range(3):
        step()
    return resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--memory", choices=CONTENDERS, help="only print the bytes that one contender takes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.memory:
        print(measure_memory(options.memory))
        return
    torch.manual_seed(0)
    data = sf.data.load("mnist")
    built = {name: make(data) for name, make in CONTENDERS.items()}
    taken: dict[str, list[float]] = {name: [] for name in built}
    for turn in range(2 + (3 if options.quick else 20)):
        for name, (step, _) in built.items():
            began = time.perf_counter()
            step()
            if turn > 1:  # the first turns warm up
                taken[name].append(time.perf_counter() - began)
    rows = [
        {
            "contender": name, "parameters": parameters, "images_per_second": BATCH / statistics.median(taken[name]),
            "bytes": memory(name), "seconds": taken[name],
        }
        for name, (_, parameters) in built.items()
    ]  # fmt: skip
    print(f"{'':16}{'parameters':>12}{'images/s':>10}{'ratio':>7}{'MB':>8}")
    for row in rows:
        row["ratio"] = row["images_per_second"] / rows[0]["images_per_second"]
        print(
            f"{row['contender']:16}{row['parameters']:12,}{row['images_per_second']:10.1f}{row['ratio']:7.2f}"
            f"{row['bytes'] / 1e6:8.0f}"
        )
    make_folder(options.out.parent)
    write_bytes(options.out, to_json({"batch": BATCH, "rows": rows, "machine": machine()}))
    print(f"written to {options.out}")


if __name__ == "__main__":
    try:
        main()
    except sf.Refusal as refusal:
        raise SystemExit(f"error: {refusal}") from None
