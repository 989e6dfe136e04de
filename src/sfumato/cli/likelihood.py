"""``sfumato eval RUN --likelihood``: bits per dimension of a run on test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: How many test images are measured unless told otherwise.
IMAGES = 128
#: Traces keep the network's activations: at most so many images at a time, whatever ``--batch`` says.
MOST_AT_ONCE = 64


def likelihood_run(
    run: Path,
    n: int | None,
    seed: int,
    batch: int,
    device: str,
    raw: bool,
    ema: float | None,
    unused: Mapping[str, Any],
) -> None:
    """Measure, print the table, append the records to ``RUN/metrics.jsonl``; ``unused``: options of sampling."""
    from sfumato import data, likelihood
    from sfumato.errors import Refusal
    from sfumato.training.diffusion import load, read_config

    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise Refusal(f"--{given[0]} goes with samples, and --likelihood draws none; leave one of them out")
    loaded = data.load(read_config(run)["data"]["name"])
    model = load(run, weights="raw" if raw else "ema", ema=ema, device=device)
    count = min(IMAGES, len(loaded.test)) if n is None else n
    if batch < 1:
        raise Refusal(f"batch={batch}: needs at least 1")
    records = likelihood.evaluate(model, loaded, count, seed=seed, batch=min(batch, MOST_AT_ONCE))
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record.to_json()) + "\n" for record in records)
    print(likelihood.table(records))
    print(f"appended to {run / 'metrics.jsonl'}")
