"""Settings that were found to go well together, by name: ``sfumato train --config small``, ``sf.presets.get("small")``.

The contract: a preset is a file of hyper-parameters like any user's own (:mod:`sfumato.cli.config`), with no recipe and
no data in it, so that it goes with every recipe that has its settings; its first line says what it is for.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import Refusal, nearest

#: With fewer steps than this in the time that is given, a smaller network is worth a thought.
FEW_STEPS = 1000
#: The preset for little time.
SMALL = "small"
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every preset."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def path(name: str) -> Path:
    """The file of a preset.  Raises :class:`Refusal` for an unknown name, with the nearest."""
    if name not in names():
        raise Refusal(f"unknown preset {name!r}; {nearest(name, names())}")
    return _FOLDER / f"{name}.toml"


def title(name: str) -> str:
    """What a preset is for."""
    return path(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def get(name: str) -> dict[str, Any]:
    """The settings of a preset, as keywords of :func:`sfumato.train`."""
    found = tomllib.loads(path(name).read_text(encoding="utf-8"))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def hint(settings: Mapping[str, Any], steps: int) -> str:
    """What to say of a run of so few ``steps`` that the small preset would serve it; nothing where it would not.

    ``settings``: the run's, by their flat names.
    """
    small = get(SMALL)
    sizes = ("channels", "blocks", "patch")
    if steps >= FEW_STEPS or not small.keys() <= settings.keys():
        return ""
    if all(_plain(settings[name]) == _plain(small[name]) for name in sizes):
        return ""
    return f"few steps for this network: --config {SMALL} takes more of them in the same time"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
