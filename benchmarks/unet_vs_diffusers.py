"""Speed of Sfumato's U-Net against diffusers' UNet2DModel: the same function, the same weights, the same tensors.

    python benchmarks/unet_vs_diffusers.py [--quick]        (pip install 'sfumato[bench]')

What is compared.  Both networks have the same stages, channels, layers per block, heads and attention, and
scale-shift time conditioning, hence the same number of parameters; the weights of the diffusers network are copied
into ours, and the outputs are compared in float32 before anything is timed.  All contenders run in one process and
take turns, one step each, on the same batch; the medians over the turns are reported.

* ``diffusers``       as it comes: float32, its own defaults, ``torch.optim.AdamW`` with its defaults
* ``diffusers bf16``  the same network under ``torch.autocast(bfloat16)``, ``channels_last``, fused AdamW
* ``sfumato``         as our training loop runs it: ``compute_dtype`` detected, fused AdamW

Training is forward, backward and optimiser step of the DDPM noise-prediction loss (linear schedule, T = 1000);
forward is one evaluation under ``no_grad``, which is what sampling costs at equal NFE.  The losses are those of
another run from the same weights on the same batches of 16: the first step's, and the mean of the last ten steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import Refusal, missing_extra
from sfumato.nets import UNet

RESULTS = Path(__file__).parent / "results" / "unet_vs_diffusers.json"


@dataclass(frozen=True)
class Config:
    """One architecture, for both libraries."""

    name: str
    channels: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    size: int = 32
    head_channels: int = 8  # the default of UNet2DModel


CONFIGS = (
    Config("attention at 8x8", (32, 64, 96), 2, (False, False, True)),
    Config("attention at 16x16 and 8x8", (32, 64, 96), 2, (False, True, True)),
)


def build_diffusers(config: Config) -> nn.Module:
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise missing_extra("diffusers", "bench") from None
    build: Any = UNet2DModel
    net: nn.Module = build(
        sample_size=config.size,
        in_channels=3,
        out_channels=3,
        layers_per_block=config.blocks,
        block_out_channels=config.channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
        attention_head_dim=config.head_channels,
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,  # else scale_shift leaves the middle attention without a norm
    )
    return net


def build_sfumato(config: Config) -> UNet:
    return UNet(
        size=(config.size, config.size),
        channels=config.channels,
        blocks=config.blocks,
        attention=config.attention,
        head_channels=config.head_channels,
    )


@torch.no_grad()
def copy_weights(theirs: Any, ours: UNet) -> None:
    """Give ``ours`` the weights of ``theirs``: the same function of (x, t), with k = 1000 t."""
    taken = 0

    def put(target: Tensor, *sources: Tensor) -> None:
        nonlocal taken
        source = torch.cat(list(sources))
        target.copy_(source.view_as(target))
        taken += source.numel()

    def affine(target: Any, *sources: Any) -> None:
        put(target.weight, *(s.weight for s in sources))
        put(target.bias, *(s.bias for s in sources))

    projections: list[Any] = []

    def residual(target: Any, source: Any) -> None:
        for mine, its in (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2")):
            affine(getattr(target, mine), getattr(source, its))
        if source.conv_shortcut is not None:
            affine(target.skip, source.conv_shortcut)
        projections.append(source.time_emb_proj)

    def attention(target: Any, source: Any) -> None:
        affine(target.norm, source.group_norm)
        affine(target.qkv, source.to_q, source.to_k, source.to_v)
        affine(target.out, source.to_out[0])

    affine(ours.stem, theirs.conv_in)
    affine(ours.time[0], theirs.time_embedding.linear_1)
    affine(ours.time[2], theirs.time_embedding.linear_2)
    for way, blocks in ((iter(ours.down), theirs.down_blocks), (iter(ours.up), theirs.up_blocks)):
        if way is not None and blocks is theirs.up_blocks:
            first, attend, second = ours.middle
            residual(first, theirs.mid_block.resnets[0])
            attention(attend, theirs.mid_block.attentions[0])
            residual(second, theirs.mid_block.resnets[1])
        for block in blocks:
            for j, resnet in enumerate(block.resnets):
                stage: Any = next(way)
                residual(stage[0], resnet)
                if getattr(block, "attentions", None) is not None:
                    attention(stage[1], block.attentions[j])
            if getattr(block, "downsamplers", None) is not None:
                affine(next(way), block.downsamplers[0].conv)
            if getattr(block, "upsamplers", None) is not None:
                affine(next(way).conv, block.upsamplers[0].conv)
    affine(ours.films, *projections)
    affine(ours.norm, theirs.conv_norm_out)
    affine(ours.head, theirs.conv_out)
    total = sum(p.numel() for p in theirs.parameters())
    assert taken == total == sum(p.numel() for p in ours.parameters()), (taken, total)


def images(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth coloured blobs in [-1, 1]: something a network can learn in a hundred steps."""
    centre, colour = torch.rand(n, 2, 1, 1, generator=generator), torch.rand(n, 3, 1, 1, generator=generator)
    axis = torch.linspace(0, 1, size)
    r2 = (axis[None, :, None] - centre[:, 0]) ** 2 + (axis[None, None, :] - centre[:, 1]) ** 2
    return 2 * colour * torch.exp(-r2 / 0.05)[:, None] - 1


@dataclass
class Contender:
    """A network, how to call it, and its optimiser."""

    name: str
    net: nn.Module
    call: Callable[[Tensor, Tensor], Tensor]
    optimiser: torch.optim.Optimizer


def contenders(config: Config) -> list[Contender]:
    def call_diffusers(net: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, k: net(x, k, return_dict=False)[0]

    plain = build_diffusers(config)
    tuned = build_diffusers(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tuned.load_state_dict(plain.state_dict())
    ours = build_sfumato(config)
    copy_weights(plain, ours)

    def call_tuned(x: Tensor, k: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return call_diffusers(tuned)(x.contiguous(memory_format=torch.channels_last), k).float()

    return [
        Contender("diffusers", plain, call_diffusers(plain), torch.optim.AdamW(plain.parameters(), 2e-4)),
        Contender("diffusers bf16", tuned, call_tuned, torch.optim.AdamW(tuned.parameters(), 2e-4, fused=True)),
        Contender(
            "sfumato", ours, lambda x, k: ours(x, k / 1000), torch.optim.AdamW(ours.parameters(), 2e-4, fused=True)
        ),
    ]


def clock(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Job:
    """How much to run.  ``only``: names of the contenders, all where empty."""

    batch: int
    train_turns: int
    sample_turns: int
    loss_batch: int
    loss_steps: int
    only: tuple[str, ...] = ()


def batches(config: Config, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Noisy images, steps k and noise of the DDPM objective: the same sequence for everyone."""
    generator = torch.Generator().manual_seed(0)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    while True:
        x0, k = images(batch, config.size, generator), torch.randint(0, 1000, (batch,), generator=generator)
        eps, level = torch.randn(x0.shape, generator=generator), alpha_bar[k].view(-1, 1, 1, 1)
        yield level.sqrt() * x0 + (1 - level).sqrt() * eps, k, eps


def train_step(rival: Contender, x_t: Tensor, k: Tensor, eps: Tensor) -> float:
    loss = F.mse_loss(rival.call(x_t, k), eps)
    torch.autograd.backward(loss)
    rival.optimiser.step()
    rival.optimiser.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def largest_difference(rivals: list[Contender], x: Tensor, k: Tensor) -> float:
    """Between the outputs of diffusers and ours, both in float32."""
    theirs, ours = rivals[0], rivals[-1]
    assert isinstance(ours.net, UNet)
    ours.net.compute_dtype = torch.float32
    difference = float((theirs.call(x, k) - ours.call(x, k)).abs().max())
    ours.net.compute_dtype = None
    assert difference < 1e-4, f"not the same function: {difference}"
    return difference


def measure(config: Config, job: Job) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rivals = contenders(config)
    source = batches(config, job.batch)
    x_t, k, eps = next(source)
    difference = largest_difference(rivals, x_t[:8], k[:8])
    chosen = [r for r in rivals if not job.only or r.name in job.only]
    train: dict[str, list[float]] = {r.name: [] for r in chosen}
    forward: dict[str, list[float]] = {r.name: [] for r in chosen}
    for turn in range(job.train_turns + 2):
        x_t, k, eps = next(source)
        for rival in chosen:
            spent = clock(partial(train_step, rival, x_t, k, eps))
            if turn > 1:  # the first turns warm up
                train[rival.name].append(spent)
    with torch.no_grad():
        for turn in range(job.sample_turns + 1):
            for rival in chosen:
                spent = clock(partial(rival.call, x_t, k))
                if turn:
                    forward[rival.name].append(spent)

    torch.manual_seed(0)
    losses: dict[str, list[float]] = {r.name: [] for r in chosen}
    fresh = [r for r in contenders(config) if r.name in losses]
    for _, (x_t, k, eps) in zip(range(job.loss_steps), batches(config, job.loss_batch), strict=False):
        for rival in fresh:
            losses[rival.name].append(train_step(rival, x_t, k, eps))
    rows: list[dict[str, Any]] = [
        {
            "contender": r.name,
            "parameters": sum(p.numel() for p in r.net.parameters()),
            "train_images_per_s": job.batch / statistics.median(train[r.name]),
            "sample_images_per_s": job.batch / statistics.median(forward[r.name]),
            "train_seconds": train[r.name],
            "sample_seconds": forward[r.name],
            "first_loss": losses[r.name][0],
            "loss": statistics.fmean(losses[r.name][-10:]),
            "largest_float32_difference": difference,
        }
        for r in chosen
    ]
    for row in rows:
        row["train_ratio"] = row["train_images_per_s"] / rows[0]["train_images_per_s"]
        row["sample_ratio"] = row["sample_images_per_s"] / rows[0]["sample_images_per_s"]
    return rows


def machine() -> dict[str, Any]:
    cpu = next((s.split(":")[1].strip() for s in _cpuinfo() if s.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
                "python": platform.python_version(), "system": platform.platform(),
                "load_average": os.getloadavg()}  # fmt: skip


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def show(config: Config, job: Job, rows: list[dict[str, Any]]) -> None:
    millions, difference = rows[0]["parameters"] / 1e6, rows[0]["largest_float32_difference"]
    print(f"\n{config.name}: channels {config.channels}, {config.size}x{config.size}, batch {job.batch}")
    print(f"{millions:.2f}M parameters each; the two agree to {difference:.0e} in float32")
    last = f"loss at {job.loss_steps}"
    print(f"{'':16}{'train img/s':>12}{'ratio':>7}{'forward img/s':>15}{'ratio':>7}{'first loss':>12}{last:>12}")
    for row in rows:
        print(
            f"{row['contender']:16}{row['train_images_per_s']:12.1f}{row['train_ratio']:7.2f}"
            f"{row['sample_images_per_s']:15.1f}{row['sample_ratio']:7.2f}{row['first_loss']:12.4f}{row['loss']:12.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first architecture, fewer turns (about a minute)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--config", type=int, choices=range(len(CONFIGS)), help="one architecture only")
    parser.add_argument("--only", nargs="*", default=[], help="contenders to run, by name (for profiling)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    quick = bool(arguments.quick)
    job = Job(arguments.batch, 4 if quick else 8, 4 if quick else 10, 16, 20 if quick else 60, tuple(arguments.only))
    picked = [arguments.config] if arguments.config is not None else [0] if quick else range(len(CONFIGS))
    results = []
    for config in (CONFIGS[i] for i in picked):
        rows = measure(config, job)
        results.append({"config": asdict(config), "job": asdict(job), "rows": rows})
        show(config, job, rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    print(f"\nwritten to {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        raise SystemExit(f"error: {refusal}") from None
