"""Every annotation of the library is checked at run time in tests, and every test runs on one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping

sys.path.insert(0, str(Path(__file__).parent))
import typed

sys.path.remove(str(Path(__file__).parent))
jaxtyping.jaxtyped = typed.jaxtyped  # which the hook's decorators look up
jaxtyping.install_import_hook("sfumato", "typed.check")

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


@pytest.fixture(scope="session")
def forks() -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a job of ``forks.py`` in processes of its own: ``forks(task=..., processes=2, ...)``, its codes back."""
    import sfumato

    source = str(Path(sfumato.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forks.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        write, read = server.stdin, server.stdout

        def run(**job: Any) -> dict[str, Any]:
            write.write(json.dumps(job) + "\n")
            write.flush()
            answer: dict[str, Any] = json.loads(read.readline())
            return answer

        yield run
        write.close()
