"""Train the small digit classifier whose features the metrics are measured in, on the MNIST training images alone.

    python tools/train_digit_net.py            # about 5 minutes on 2 cores

Five 3x3 convolutions and a linear layer; batch normalisation is folded into the convolutions when it is saved, so the
stored network is convolution, bias, ReLU.  Training images are moved by random affine maps and smooth warps.  The test
images are looked at once, after the last step, with the stored float16 weights.
Writes src/sfumato/metrics/files/digit_net.safetensors and its record, digit_net.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.data import load
from sfumato.metrics.classifier import LAYERS, DigitNet

OUT = Path(__file__).parent.parent / "src/sfumato/metrics/files"


def network() -> nn.Sequential:
    """The network while it trains: convolution, batch normalisation, ReLU; then the image mean; then linear."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride in LAYERS:
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(LAYERS[-1][1], 10))


def augment(x: Tensor, g: torch.Generator) -> Tensor:
    """Random rotation (std 7 degrees), scale and shear (std 7%), shift (1.2 pixels), and a smooth warp (.6 pixels)."""
    b = len(x)
    angle, shear = torch.randn(b, generator=g) * math.radians(7), torch.randn(b, generator=g) * 0.07
    scale = torch.exp(torch.randn(b, 2, generator=g) * 0.07)
    cos, sin = angle.cos(), angle.sin()
    shift = torch.randn(b, 2, 1, generator=g) * (1.2 / 14)
    rows = [torch.stack([cos, shear * cos - sin], 1), torch.stack([sin, shear * sin + cos], 1)]
    theta = torch.cat([torch.stack(rows, 1) * scale[:, :, None], shift], 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    warp = F.interpolate(torch.randn(b, 2, 5, 5, generator=g) * (0.6 / 14), size=x.shape[2:], mode="bicubic")
    return F.grid_sample(x, grid + warp.permute(0, 2, 3, 1), align_corners=False)


def fold(net: nn.Sequential) -> dict[str, Tensor]:
    """The stored float16 weights: every batch normalisation folded into the convolution before it."""
    weights: dict[str, Tensor] = {}
    for k in range(len(LAYERS)):
        conv, norm = net[3 * k], net[3 * k + 1]
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        weights[f"conv{k}.weight"] = conv.weight * gain[:, None, None, None]
        weights[f"conv{k}.bias"] = norm.bias - norm.running_mean * gain
    weights["linear.weight"], weights["linear.bias"] = net[-1].weight, net[-1].bias
    return {name: w.detach().to(torch.float16).contiguous() for name, w in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    settings = parser.parse_args()
    torch.manual_seed(settings.seed)
    g = torch.Generator().manual_seed(settings.seed)
    data = load("mnist")
    assert data.train.label is not None
    assert data.test.label is not None
    net = network().to(memory_format=torch.channels_last)
    batch, n = 128, len(data.train)
    steps = settings.epochs * (n // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(settings.epochs):
        net.train()
        order, total = torch.randperm(n, generator=g), 0.0
        for rows in order[: n // batch * batch].split(batch):
            x = augment(data.train.x[rows].float() / 255, g).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(x)
            loss = F.cross_entropy(logits.float(), data.train.label[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / (n // batch):.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    seconds = time.perf_counter() - start
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "digit_net.safetensors"
    save_file(fold(net.eval()), path)
    weights = path.read_bytes()
    accuracy = float((DigitNet.read(weights).predict(data.test.x[:, 0]) == data.test.label).double().mean())
    record = {
        "name": "digit-net",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "test_accuracy": accuracy,
        "trained_on": f"mnist/train (sha256 {data.sha256})",
        "made_by": "tools/train_digit_net.py",
        "epochs": settings.epochs,
        "seed": settings.seed,
        "seconds": round(seconds),
        "torch": str(torch.__version__),
        "licence": "Apache-2.0 (weights); trained on MNIST, CC BY-SA 3.0",
    }
    (settings.out / "digit_net.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{path}: {len(weights):,} bytes, test accuracy {accuracy:.4f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
