"""Compare our Inception network with torch-fidelity's on the same weights: every tensor name, feature and logit.

    pip install --no-deps torch-fidelity
    python tools/check_inception.py

The weights are drawn (the real ones need not be there), written to a file and read by both.  torch-fidelity's own
package imports torchvision at its start; only the module of the network is loaded here, which does not need it.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.metrics.inception import SIZE, inception, layout


def peer(path: Path) -> Any:
    """torch-fidelity's network with the weights in ``path``."""
    found = importlib.util.find_spec("torch_fidelity")
    if found is None or found.submodule_search_locations is None:
        sys.exit("torch-fidelity is not installed; pip install --no-deps torch-fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that keep activations near 1."""
    g, weights = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        u = torch.rand(shape, generator=g)
        if name.endswith(("running_var", "bn.weight")):
            weights[name] = 0.5 + u
        else:
            weights[name] = (2 * u - 1) * ((6 / math.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.2)
    return weights


def main() -> int:
    weights = drawn(layout()) | {"fc.bias": torch.zeros(1008)}
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in weights if "mean" in name
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(weights | counts, path)
        own, other = inception(path), peer(path)
    names = {name for name in other.state_dict() if "num_batches" not in name}
    assert names == weights.keys(), names ^ weights.keys()
    x = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    features, logits = (f.double() for f in other(x))
    # torch-fidelity scales levels by (x - 128) / 128, pytorch-fid by 2 x / 255 - 1: compare on its own scale
    found = own.pooled((x.float() - 128) / 128)
    difference = float((found - features).abs().max() / features.abs().max())
    logit = float((own.logits(found) - logits).abs().max() / logits.abs().max())
    print(f"{len(names)} tensors; largest difference {difference:.1e} of the features, {logit:.1e} of the logits")
    print("torch-fidelity's mean feature, and features 0 and 2047 of the first image:")
    print(float(features.mean()), *(float(features[0, k]) for k in (0, 2047)))
    return int(max(difference, logit) > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
