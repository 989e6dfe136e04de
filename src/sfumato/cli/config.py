"""What a training is asked for: a file of hyper-parameters, a run's own ``config.json``, and the command line together.

The contract: the command line wins over the file, and every contradiction is said; a name that means nothing is refused
with the nearest that does, never ignored.  The ``config.json`` of a run repeats the run: its recipe, data (checked by
checksum, read as they were then), settings, horizon and seed.

    recipe: flow              # run.yaml: every key is optional, and so are the groups
    data: mnist
    minutes: 3
    optimisation: {lr: 0.001, batch: 64}
    sampling_steps: 20
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from sfumato import presets
from sfumato.errors import Refusal, nearest

#: What a file may say beside settings and how data are read, each as on the command line.
OPTIONS = ("recipe", "data", "out", "minutes", "steps", "seed", "device", "tracker", "shard", "auto_batch")
#: Of them, those that are no text.
TYPES: dict[str, Any] = {"minutes": float, "steps": int, "seed": int, "shard": bool}
#: What the command line alone can say, so that a setting of that name would be lost.
ALONE = ("resume", "quiet", "options", "config")


@final
@dataclass(frozen=True)
class Filed:
    """What a file holds: ``options`` by name, ``reading`` (how data are read), ``settings`` by their names as written
    (``lr`` or ``optimisation.lr``), and for a run's ``config.json`` the ``data`` that it was trained on.
    """

    path: Path
    options: Mapping[str, Any]
    reading: Mapping[str, Any]
    settings: Mapping[str, Any]
    data: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------ reading


def _yaml(text: str) -> Any:
    import yaml  # type: ignore[import-untyped,unused-ignore]

    class Strict(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
        """A key that is given twice is a mistake."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(f"{twice!r} is given twice")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    try:
        return yaml.load(text, Strict)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ".toml": ("TOML", tomllib.loads),
    ".yaml": ("YAML", _yaml),
    ".yml": ("YAML", _yaml),
    ".json": ("JSON", json.loads),
}


def _parsed(path: Path) -> Mapping[str, Any]:
    if path.suffix not in _READERS:
        raise Refusal(f"{path}: hyper-parameters are read from {', '.join(_READERS)}; rename it after what it holds")
    kind, reader = _READERS[path.suffix]
    try:
        found = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"cannot read {path} ({error.strerror}); check the path") from None
    except ValueError as error:
        raise Refusal(f"{path} is no {kind} file: {error}") from None
    if not isinstance(found, Mapping):
        raise Refusal(f"{path} holds no settings; write KEY{' = ' if kind == 'TOML' else ': '}VALUE lines")
    return found


def read(path: Path) -> Filed:
    """What ``path`` holds, a file or the name of a preset; raises :class:`Refusal` where it cannot be read."""
    if not path.suffix and path.name == str(path) and not path.is_file():
        path = presets.path(path.name)
    found = _parsed(path)
    if {"format", "recipe", "settings", "horizon"} <= found.keys():
        return _of_run(path, found)
    from sfumato.data.options import Options
    from sfumato.training.settings import parse

    how = {option.name for option in dataclasses.fields(Options)}
    options = {name: parse(name, found[name], TYPES.get(name, str)) for name in OPTIONS if name in found}
    reading = {name: _word(path, name, value) for name, value in found.items() if name in how}
    rest = {name: value for name, value in found.items() if name not in options and name not in reading}
    own = rest.pop("settings", {})
    if not isinstance(own, Mapping):
        raise Refusal(f"{path}: settings is {own!r}; write settings as KEY and VALUE under it")
    return Filed(path, options, reading, dict(_flat(path, rest)) | dict(_flat(path, own)))


def _word(path: Path, name: str, value: Any) -> str:
    """A data option as on the command line; raises :class:`Refusal` for what is no text and no whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refusal(f"{path}: {name} is {value!r}; write a whole number, or a text (in quotes)")
    return str(value)


def _of_run(path: Path, found: Mapping[str, Any]) -> Filed:
    """A run's own ``config.json``."""
    from sfumato.data.options import from_json
    from sfumato.training import horizon

    length = horizon.from_json(found["horizon"]).to_json()
    times = {"steps": length["steps"]} if "steps" in length else {"minutes": length["seconds"] / 60}
    try:
        data = dict(found["data"])
        options = {"recipe": str(found["recipe"]), "data": str(data["name"]), "seed": int(found["seed"]), **times}
        how = {name: text(value) for name, value in from_json(data.get("options", {})).changed().items()}
        return Filed(path, options, how, dict(found["settings"]), data, dict(found.get("versions", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(f"{path} is damaged ({error}); restore it, or write the settings into another file") from None


def text(value: Any) -> str:
    """How a value of a data option is written on the command line."""
    from sfumato.data import options

    return options.text(value)


def _flat(path: Path, values: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(path, value, f"{head}{name}.")
        elif value is None:
            raise Refusal(f"{path}: {head}{name} has no value; give it one, or leave the line out")
        else:
            yield f"{head}{name}", value


def read_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` words by key; raises :class:`Refusal` for another form."""
    settings: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.strip():
            raise Refusal(f"--set {pair}: write KEY=VALUE, e.g. --set lr=0.001")
        settings[key.strip()] = value.strip()
    return settings


# -------------------------------------------------------------------------------------------------------------- names


def names(recipe: str) -> dict[str, str]:
    """Every name of a recipe's settings, alone (``lr``) and with its groups (``optimisation.lr``), by what
    :func:`sfumato.train` calls it.
    """
    from sfumato import recipes

    chosen = recipes.get(recipe)
    found: dict[str, str] = {}
    for kind in (chosen.kind, *chosen.also):
        found |= dict(_names(chosen.on(kind).defaults))
    return found


def _names(settings: Any, head: str = "") -> Iterator[tuple[str, str]]:
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if dataclasses.is_dataclass(value):
            yield from _names(value, f"{head}{each.name}.")
        else:
            yield each.name, each.name
            yield f"{head}{each.name}", each.name


def plain_names(given: Mapping[str, Any], recipe: str, where: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """``given`` settings by their plain names; ``more``: what else could be meant there.

    Raises :class:`Refusal` for one that the recipe has not, with the nearest, and for one given in two ways.
    """
    known, found = names(recipe), {}
    for name, value in given.items():
        if name in (*OPTIONS, *ALONE) and name not in known:
            raise Refusal(f"{where}: {name!r} is an option; give it as --{name.replace('_', '-')}")
        if name not in known:
            raise Refusal(f"{where}: unknown setting {name!r} of {recipe}; {nearest(name, [*known, *more])}")
        plain = known[name]
        if plain in found:
            raise Refusal(f"{where}: {plain} is given twice, once as {name}; leave one of them out")
        found[plain] = value
    return found


# ----------------------------------------------------------------------------------------------------------- together


@final
@dataclass(frozen=True)
class Asked:
    """What is to be trained.  ``reading``: how data are read; ``data_spec``: the data of the run that is repeated;
    ``notes``: what the command line has in place of the file's.
    """

    options: Mapping[str, Any]
    reading: Mapping[str, Any]
    settings: Mapping[str, Any]
    data_spec: Mapping[str, Any] | None
    notes: tuple[str, ...]

    def data(self) -> Any:
        """The data: of a run that is repeated those that it was trained on, else their name."""
        from sfumato import data

        return self.get("data") if self.data_spec is None else data.reload(self.data_spec)

    def how(self) -> Any:
        """How the data are read; None where nothing is said of it, or the data are loaded already."""
        from sfumato.data import options

        if not self.reading or self.data_spec is not None:
            return None
        given = dict(self.reading)
        if "resolution" in given:
            given["resolution"] = options.size(str(given["resolution"]))
        return options.Options(**given)

    def get(self, name: str) -> Any:
        """An option; raises :class:`Refusal` where it must be given and was not."""
        value = self.options.get(name)
        if value is None and name in ("recipe", "data", "out"):
            how = "sfumato train RECIPE" if name == "recipe" else f"--{name}"
            raise Refusal(f"no {name}: give {how}, or --config FILE with {name} in it")
        return value


def _same(a: Any, b: Any) -> bool:
    """Whether two values say the same: ``"0.001"`` and ``0.001``, ``"8,16"`` and ``[8, 16]``."""

    def words(value: Any) -> list[str]:
        if isinstance(value, list | tuple):
            return [word for each in value for word in words(each)]
        return [word.strip().lower() for word in str(value).strip("()[] ").split(",")]

    def number(word: str) -> Any:
        try:
            return float(word)
        except ValueError:
            return word

    return [number(word) for word in words(a)] == [number(word) for word in words(b)]


def together(
    filed: Filed | None, given: Mapping[str, Any], reading: Mapping[str, Any], pairs: Mapping[str, Any]
) -> Asked:
    """The file and the command line as one; ``given``: options, None where not given; ``pairs``: of ``--set``."""
    own = {name: value for name, value in given.items() if value is not None}
    if filed is None:
        recipe = own.get("recipe")
        settings = pairs if recipe is None else plain_names(pairs, recipe, "--set")
        return Asked(own, reading, settings, None, ())
    options, notes = dict(filed.options), []
    for name, value in own.items():
        if name in options and not _same(options[name], value):
            notes.append(_note(_option(name, value), f"{name}: {options[name]}", filed.path))
        options[name] = value
    for one, other in (("minutes", "steps"), ("steps", "minutes")):
        if own.get(one) is not None and other in filed.options:
            notes.append(_note(_option(one, own[one]), f"{other}: {filed.options[other]}", filed.path))
            options.pop(other)
    recipe = options.get("recipe")
    if recipe is None:  # which is refused when it is asked for
        return Asked(options, reading, pairs, None, tuple(notes))
    first = plain_names(filed.settings, str(recipe), str(filed.path), (*OPTIONS, *filed.reading))
    second = plain_names(pairs, str(recipe), "--set")
    for name, value in second.items():
        if name in first and not _same(first[name], value):
            notes.append(_note(f"--set {name}={value}", f"{name}: {first[name]}", filed.path))
    how = dict(filed.reading)
    for name, value in reading.items():
        if name in how and not _same(how[name], value):
            notes.append(_note(f"{name}={value}", f"{name}: {how[name]}", filed.path))
        how[name] = value
    same_data = "data" not in own or _same(own["data"], filed.options.get("data"))
    spec = filed.data if same_data and not reading else None
    return Asked(options, how, first | second, spec, (*notes, *_versions(filed)))


def _option(name: str, value: Any) -> str:
    return f"recipe {value}" if name == "recipe" else f"--{name.replace('_', '-')} {value}"


def _note(now: str, then: str, path: Path) -> str:
    return f"{now} (the command line) in place of {then} ({path})"


def _versions(filed: Filed) -> Iterator[str]:
    """What made a run that is repeated, where it was something else."""
    import sfumato

    then = filed.versions.get("sfumato")
    if then is not None and then != sfumato.__version__:
        yield f"{filed.path} is from sfumato {then}, this is {sfumato.__version__}: the result may differ"
