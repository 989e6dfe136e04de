"""What a sampler costs over the bare network, at batch 64: it should stay under 2 %.

    python benchmarks/sampler_overhead.py [--quick]

DDIM walks 20 steps with the U-Net of the MNIST demo.  Two measurements, which agree when the machine is quiet:

* inside: one run of ``sfumato.sample``, with a clock around the network: (whole - network) / network;
* beside: the median run of ``sfumato.sample`` against the median run of a plain loop of 20 network calls, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from unet_vs_diffusers import clock, machine

import sfumato as sf
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.nets import UNet

RESULTS = Path(__file__).parent / "results" / "sampler_overhead.json"
SAMPLERS = ("ddim", "ddpm", "dpmpp-2m")


class Clocked:
    """A network with a clock around every call."""

    def __init__(self, net: UNet) -> None:
        self.net, self.seconds, self.calls = net, 0.0, 0

    def __call__(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        start = time.perf_counter()
        y: Tensor = self.net(x, t, cond)
        self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1
        return y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    b, n, turns = arguments.batch, arguments.steps, 3 if arguments.quick else 9
    torch.manual_seed(0)
    settings = {"channels": (64, 128), "blocks": 1, "attention": (False, True), "patch": 2}
    net = UNet(1, 1, (28, 28), classes=10, **settings).eval()  # type: ignore[arg-type]
    clocked = Clocked(net)
    process = sf.processes.Gaussian(sf.schedules.get("cosine"))
    denoiser = Preconditioned(clocked, GaussianHead(process, "v"))
    grid = sf.grids.uniform(process.schedule, n)
    x1, cond = torch.randn(b, 1, 28, 28), {"label": torch.arange(b) % 10}
    rng = sf.Streams(range(b))

    def bare() -> None:
        with torch.no_grad():
            for t in grid[:-1].tolist():
                net(x1, torch.full((b,), t), cond)

    rows = []
    for name in SAMPLERS:
        sampler = sf.samplers.get(name)
        inside, whole, loop = [], [], []
        for turn in range(turns + 1):
            clocked.seconds, clocked.calls = 0.0, 0
            spent = clock(lambda: sf.sample(denoiser, process, sampler, grid, x1, cond=cond, rng=rng))  # noqa: B023
            assert clocked.calls == n, clocked.calls
            plain = clock(bare)
            if turn:  # the first warms up
                inside.append(spent / clocked.seconds - 1)
                whole.append(spent)
                loop.append(plain)
        rows.append(
            {
                "sampler": name,
                "inside": statistics.median(inside),
                "beside": statistics.median(whole) / statistics.median(loop) - 1,
                "network_ms_per_evaluation": 1e3 * statistics.median(loop) / n,
            }
        )
    print(f"batch {b}, {n} steps, network {rows[0]['network_ms_per_evaluation']:.1f} ms an evaluation")
    print(f"{'sampler':12}{'inside':>10}{'beside':>10}")
    for row in rows:
        print(f"{row['sampler']:12}{row['inside']:10.2%}{row['beside']:10.2%}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine(), "batch": b, "steps": n, "rows": rows}, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
