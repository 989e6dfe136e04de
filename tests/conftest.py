"""Every annotation of the library is checked at run time in tests, and every test runs on one thread."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("sfumato", "beartype.beartype")

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # torch.func.jvp loads torch's own decompositions, which it still scripts
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _same_chance() -> None:
    """No test depends on the global generator's state, and none leaves gradients switched off."""
    torch.manual_seed(0)
    assert torch.is_grad_enabled(), "a test before this one left gradients switched off"
    assert torch.get_default_dtype() == torch.float32, "a test before this one changed the default dtype"
