"""Which number format a network computes in.

The contract: parameters, inputs and outputs are float32; only the arithmetic in between may be narrower.
``bfloat16`` keeps float32's range (8 exponent bits) and rounds to 8 significant bits, so it needs no loss scaling; it
is chosen where the processor multiplies it natively, and never where it would be emulated (there it is slower than
float32).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

#: Flags of torch.cpu.get_capabilities() that mean a native bfloat16 dot product (x86 AVX512-BF16 and AMX; Arm BF16).
_NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@cache
def _best(kind: str) -> torch.dtype:
    if kind == "cpu":
        detect = getattr(torch.cpu, "get_capabilities", dict)  # absent before PyTorch 2.12: float32 is always right
        capabilities: dict[str, object] = detect()
        return torch.bfloat16 if any(capabilities.get(flag) for flag in _NATIVE_BF16) else torch.float32
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """The fastest safe compute format on ``device``: bfloat16 where it is native, else float32.

    Detected once per kind of device (``cpu``, ``cuda``, ``mps``, ...).
    """
    return _best(torch.device(device).type)


def computing(part: str) -> property:
    """``compute_dtype`` of a network: the format of the arithmetic inside; parameters, input and output stay float32.

    By default the fastest safe one (:func:`best_dtype`) where the weight of its ``part`` is; assign ``torch.float32``
    or ``torch.bfloat16`` to fix it, None to leave it to be chosen again.
    """

    def read(net: Any) -> torch.dtype:
        return getattr(net, "_dtype", None) or best_dtype(getattr(net, part).weight.device)

    def write(net: Any, dtype: torch.dtype | None) -> None:
        net._dtype = dtype

    return property(
        read, write, doc="The format of the arithmetic inside (see :func:`sfumato.nets.precision.computing`)."
    )
