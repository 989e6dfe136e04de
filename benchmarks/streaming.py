"""Training from shards that are larger than memory: what it costs in memory, and how long the loop waits for data.

    python benchmarks/streaming.py [--quick] [--folder FOLDER]

Writes JPEG pictures of 512 x 512 into .tar shards (2 GB of them), lists each shard ten times (20 GB listed), and trains
the demo network on them at 32 x 32 until 2 GB were really read.  Three numbers count: the most memory that the process
held (it must stay under 2 GB), the share of the loop's time spent waiting for the next batch (under 5 %), and the bytes
that were read.  The shards are removed at the end.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from unet_vs_diffusers import machine

from sfumato import data, recipes
from sfumato.data.options import Options
from sfumato.data.rows import Rows, ahead
from sfumato.data.shards import ShardData
from sfumato.training import horizon, loop
from sfumato.training.optim import Optimiser
from sfumato.training.settings import resolve

RESULTS = Path(__file__).parent / "results" / "streaming.json"
#: Different pictures; every file of a shard is one of them, so all cost the same to decode.
PICTURES = 200
SIDE = 512


def picture(seed: int) -> bytes:
    """A JPEG file of smooth colours and noise, about 130 kB."""
    g = np.random.default_rng(seed)
    smooth = Image.fromarray(g.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(smooth).astype(np.int64) + g.integers(-30, 31, (SIDE, SIDE, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_shards(folder: Path, count: int, size: int) -> int:
    """``count`` shards of about ``size`` bytes; the bytes of all."""
    pictures = [picture(seed) for seed in range(PICTURES)]
    total = 0
    for k in range(count):
        path = folder / f"{k:03d}.tar"
        with tarfile.open(path, "w") as tar:
            written = number = 0
            while written < size:
                for ending, content in (("jpg", pictures[number % PICTURES]), ("cls", str(number % 10).encode())):
                    info = tarfile.TarInfo(f"{k:03d}-{number:06d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    written += len(content)
                number += 1
        total += path.stat().st_size
    return total


def most_memory() -> int:
    """The most bytes that this process held at any time."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 MB instead of 2 GB: tries the script, says little")
    parser.add_argument("--folder", type=Path, help="where the shards are written (the system's temporary folder)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    count, size, listings = (4, 1_500_000, 10) if arguments.quick else (20, 100_000_000, 10)
    place = Path(tempfile.mkdtemp(prefix="shards-", dir=arguments.folder))
    try:
        if shutil.disk_usage(place).free < 2 * count * size:
            sys.exit(f"streaming: {place} has no room for {count * size / 1e9:g} GB; give another --folder")
        on_disk = write_shards(place, count, size)
        record = measured(place, count, listings, arguments.batch) | {"bytes on disk": on_disk}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    record = {"machine": machine(), **record}
    text = json.dumps(record, indent=2)
    print(text)
    if not arguments.quick:
        arguments.out.write_text(text + "\n")


def measured(place: Path, count: int, listings: int, batch: int) -> dict[str, object]:
    """Train until as many bytes were read as the shards hold."""
    before = most_memory()
    opening = time.perf_counter()
    names = ",".join(f"{k:03d}" for _ in range(listings) for k in range(count))
    loaded: ShardData = data.load(f"{place}/{{{names}}}.tar", Options(resolution=(32, 32)))
    opening = time.perf_counter() - opening
    opened = most_memory()
    shards = loaded.rows_of.decoder.place.shards
    listed = sum(int(shard.size.sum()) for shard in shards)
    images = sum(len(shard) for shard in shards)
    recipe = recipes.get("flow")
    settings = resolve(recipe.defaults, {"batch": batch})
    units = loaded.prepared(settings)
    model = recipe.build(settings, units.spec(), {"seed": 0, "horizon": {}})
    model.net.train()
    rows = units.rows(torch.device("cpu"))
    waits: list[float] = []

    def timed(source: Rows, indices: Iterator[Tensor]) -> Iterator[dict[str, Tensor]]:
        feed = ahead(source, indices)
        while True:
            start = time.perf_counter()
            found = next(feed)
            waits.append(time.perf_counter() - start)
            yield found

    loop.ahead = timed  # type: ignore[assignment]
    steps = -(-(listed // listings) // (batch * (listed // images)))
    began = time.perf_counter()
    optimiser = {"net": Optimiser(model.net, settings.optimisation)}
    chosen = horizon.choose(None, steps)
    assert chosen is not None
    for step in loop.train_steps(model, rows, optimiser, chosen, batch=batch, seed=0):
        if step.step % 10 == 0:
            print(f"step {step.step} of {steps}, {most_memory() / 1e9:.2f} GB", flush=True)
    seconds = time.perf_counter() - began
    return {
        "shards listed": len(shards),
        "images listed": images,
        "bytes listed": listed,
        "bytes read": steps * batch * (listed // images),
        "steps": steps,
        "batch": batch,
        "seconds": seconds,
        "seconds to open": opening,
        "seconds waited for data": sum(waits),
        "share waited for data": sum(waits) / seconds,
        "share waited after the first batch": sum(waits[1:]) / seconds,
        "bytes of memory before": before,
        "bytes of memory with the shards open": opened,
        "bytes of memory at most": most_memory(),
    }


if __name__ == "__main__":
    main()
