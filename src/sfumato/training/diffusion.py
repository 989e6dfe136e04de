"""A diffusion model as a whole: what training trains, what a run folder stores, what a user samples from.

The contract: a :class:`Diffusion` is a denoiser, its process, the law of its training times and the data's transform,
and all of it is rebuilt from ``config.json`` and ``model.safetensors`` alone.  Sample ``k`` depends on its seed,
``seed + k``, and its own settings only: its noise is bitwise the same in any batch.  Sampling keeps no state, so
threads may share a model.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

import sfumato
from sfumato.core import RNG
from sfumato.data.transforms import Transform
from sfumato.errors import Refusal
from sfumato.randomness import Share, Shared
from sfumato.schedules import at
from sfumato.training.composition import Composition, level
from sfumato.training.files import make_folder, pack_tensors, read_json, to_json, unpack_tensors, write_bytes
from sfumato.training.samples import Samples
from sfumato.training.settings import Network, Optimisation, Reporting, Sampling, flatten
from sfumato.training.times import TimeLaw

FORMAT = 1
#: Called with a step, the number of steps and the state after it.
Watch = Callable[[int, int, Tensor], None]


@runtime_checkable
class RecipeSettings(Protocol):
    """The groups that the settings of every recipe hold, beside what is its own."""

    @property
    def network(self) -> Network: ...
    @property
    def optimisation(self) -> Optimisation: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def reporting(self) -> Reporting: ...


@final
@dataclass(frozen=True, eq=False)
class Diffusion:
    """A model for images.  ``recipe`` and ``settings`` rebuild it; ``data`` is the specification of its data.

    ``classes`` is empty for an unconditional model.  ``net`` is the ``nn.Module`` that holds everything learned, and
    ``compose(net)`` the parts around it.  ``origin`` records seed and horizon of the training; ``weights`` is ``"ema"``
    or ``"raw"``.
    """

    recipe: str
    settings: RecipeSettings
    data: Mapping[str, Any]
    transform: Transform
    classes: tuple[str, ...]
    net: Any
    compose: Callable[[Any], Composition]
    origin: Mapping[str, Any]
    weights: str = "raw"

    @functools.cached_property
    def parts(self) -> Composition:
        """What the recipe composes around ``net``."""
        return self.compose(self.net)

    @property
    def denoiser(self) -> Any:
        """The denoiser around ``net``."""
        return self.parts.denoiser

    @property
    def times(self) -> TimeLaw:
        """The law of training times."""
        return self.parts.times

    @property
    def process(self) -> Any:
        """The process the denoiser was built for."""
        return self.denoiser.head.process

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state."""
        return tuple(int(v) for v in self.data["shape"])

    def like(self, n: int) -> Tensor:
        """``n`` empty states: what a process shapes its prior after."""
        if self.parts.codec is not None:
            return self.parts.codec.like(n, self.device)
        return torch.zeros((n, *self.shape), dtype=self.transform.dtype, device=self.device)

    def decode(self, x: Tensor) -> Any:
        """States in the user's units."""
        return self.transform.decode(x if self.parts.codec is None else self.parts.codec.decode(x))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = next(iter(self.net.parameters())).device
        return device

    def with_net(self, net: Any, weights: str) -> Diffusion:
        """The same model around other weights, called ``weights``."""
        return replace(self, net=net, weights=weights)

    # ---------------------------------------------------------------------------------------------------- training

    def draw_times(self, n: int, rng: RNG) -> Float[Tensor, " n"]:
        """Training times ``[n]``, float64: independent, or an even spread with one random offset."""
        if self.settings.optimisation.low_discrepancy:
            source, share = (rng.source, rng.share) if isinstance(rng, Shared) else (rng, Share(0, n, n))
            even = torch.arange(share.first, share.last, dtype=torch.float64) / share.whole
            u = (source.uniform((1,)).double() + even) % 1.0
        else:
            u = rng.uniform((n,)).double()
        return self.times(u)

    def drop_labels(self, label: Tensor | None, rng: RNG) -> dict[str, Tensor] | None:
        """The training condition: labels, a share of them replaced by the null label (Ho and Salimans 2022, alg. 1)."""
        if not self.classes or label is None:
            return None
        dropped = rng.uniform((len(label),)).to(label.device) < self.settings.optimisation.label_dropout
        return {"label": torch.where(dropped, len(self.classes), label)}

    def losses(self, batch: Mapping[str, Tensor], rng: RNG) -> dict[str, Tensor]:
        """The recipe's objective, ``[b]``, for uint8 ``batch["x"] [b, c, h, w]`` (or ``"x0"`` in model units, with the
        prior draw ``"end"`` that it is paired with).

        With a :class:`~sfumato.randomness.Shared` as ``rng``: those of a share of the batch, equal to the whole
        batch's at its rows.  ``batch`` holds the share's rows, or all of them where the recipe ``couples``.
        """
        share = rng.share if isinstance(rng, Shared) and self.couples else None
        own = batch if share is None else {name: share.of(rows) for name, rows in batch.items()}
        x0 = self._encoded(own)
        t = self.draw_times(len(x0), rng)  # float64, so on the CPU: not every device has it
        cond = self.drop_labels(own.get("label"), rng)
        if share is None or not isinstance(rng, Shared):
            end = self._coupled(x0, batch, rng, batch.get("end"))
        else:
            coupled = self._coupled(self._encoded(batch), batch, rng.source, batch.get("end"))
            end = None if coupled is None else share.of(coupled)
        return {"net": self.parts.objective(self.denoiser, x0, t, cond, rng, end=end)}

    @property
    def couples(self) -> bool:
        """Whether a row's loss depends on the other rows of its batch."""
        return self.parts.coupling is not None

    def _encoded(self, batch: Mapping[str, Tensor]) -> Tensor:
        """A batch in model units."""
        return batch["x0"] if "x0" in batch else self.transform.encode(batch["x"])

    def _coupled(self, x0: Tensor, batch: Mapping[str, Tensor], rng: RNG, end: Tensor | None) -> Tensor | None:
        """The prior draws that go with ``x0``, where the recipe couples them."""
        if self.parts.coupling is None:
            return end
        drawn = self.process.prior(x0).draw(rng) if end is None else end
        return self.parts.coupling(x0, drawn, batch.get("label") if self.classes else None, rng)

    def losses_at(self, batch: Mapping[str, Tensor], t: Tensor, eps: Tensor | None, rng: RNG) -> Float[Tensor, " b"]:
        """The loss ``[b]`` at given times and noise, every label shown: what validation measures.

        ``rng``: where the objective draws more (all there is to draw, where ``eps`` is None); with one stream per row a
        row's loss does not depend on the others.
        """
        x0 = self._encoded(batch)
        cond = {"label": batch["label"]} if self.classes else None
        prior = batch.get("end")
        if self.parts.coupling is not None and eps is not None:
            prior = at(self.process.schedule, 1.0)[1] * eps
        end = self._coupled(x0, batch, rng, prior)
        return self.parts.objective(self.denoiser, x0, t, cond, rng, eps=eps, end=end)

    def describe_level(self, n: int, worst: int, rng: RNG) -> str:
        """The noise level of sample ``worst`` of a batch of ``n`` whose step drew from ``rng``."""
        t, exchanged = self.draw_times(n, rng), getattr(self.parts.objective, "exchanged", None)
        return level(self.process, float((t if exchanged is None else exchanged(t))[worst]))

    # ---------------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        n: int = 16,
        *,
        label: str | int | Sequence[str | int] | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        grid: str | None = None,
        seed: int = 0,
        batch: int = 256,
        autoguide: Diffusion | None = None,
        threshold: str | None = None,
        prompt: str | None = None,
        infill: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        watch: Watch | None = None,
        processes: Any = None,
    ) -> Samples:
        """``n`` samples in the data's units (uint8), with the record of how they were made.

        ``label``: a class name, or a list of them taken in turn; None draws without a label.  ``guidance``: 1 is plain
        conditional, more is stronger; ``interval``: guide only at ``low < t <= high``.  ``sampler``, ``steps``,
        ``grid``: the recipe's own unless given.  Sample ``k`` has seed ``seed + k``; ``batch`` changes the speed
        alone.  ``autoguide``: a weaker model of the same data and process, to guide away from in place of the model
        without a label (:func:`sfumato.guidance.autoguidance`); it needs no label.  ``threshold``: none, static, or
        dynamic as in ``"dynamic:quantile=0.995"`` (:mod:`sfumato.guidance.thresholds`), of the predicted clean data.
        Of a text model alone: ``prompt``: what every sample begins with; ``infill``: a text whose underscores are free
        and whose other characters stay; ``temperature`` (0 is greedy) and ``top_p`` change which tokens are chosen,
        never when.  ``watch(step, steps, x)`` is called with the first batch's state after every step.
        ``processes``: those that share the samples out, all of which must call
        (:func:`sfumato.training.parallel.join`).  Raises :class:`Refusal` for anything that does not fit the model, and
        where a state stops being finite.
        """
        from sfumato.training.parallel import ALONE
        from sfumato.training.sampling import draw, plan

        return draw(
            self,
            plan(
                self, n, label, guidance=guidance, interval=interval, sampler=sampler, steps=steps, grid=grid,
                seed=seed, autoguide=autoguide, threshold=threshold,
                prompt=prompt, infill=infill, temperature=temperature, top_p=top_p,
            ),
            batch=batch,
            watch=watch,
            processes=processes or ALONE,
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------------- storing

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return {
            "format": FORMAT,
            "recipe": self.recipe,
            "settings": flatten(self.settings),
            "data": dict(self.data),
            "conditional": bool(self.classes),
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "compute": str(self.net.compute_dtype).removeprefix("torch."),
            "versions": {
                "sfumato": sfumato.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            **self.origin,
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``; raises :class:`Refusal` over another run."""
        folder = make_folder(Path(folder))
        if (folder / "config.json").exists():
            raise Refusal(f"{folder} holds a run already and is kept; give another folder")
        self.save_weights(folder)
        write_bytes(folder / "config.json", to_json(self.config()))
        return folder

    def save_weights(self, folder: Path) -> None:
        """Replace ``model.safetensors`` (it carries its own checksum) atomically."""
        write_bytes(folder / "model.safetensors", pack_tensors(self.net.state_dict()))


def load_weights(net: Any, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy ``tensors`` into ``net``; raises :class:`Refusal` naming the first that is missing, extra or misshaped."""
    own = net.state_dict()
    for name in own.keys() | tensors.keys():
        found, needed = tensors.get(name), own.get(name)
        if found is None or needed is None or found.shape != needed.shape:
            shapes = f"{_shape(found)} in the file, {_shape(needed)} in the network"
            raise Refusal(f"{source} does not fit its config.json at {name}: {shapes}; restore the file or train again")
    net.load_state_dict(dict(tensors))


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(list(tensor.shape))


def read_config(run: Path) -> dict[str, Any]:
    """``RUN/config.json``, checked for its format; raises :class:`Refusal` where it is missing, damaged or newer."""
    if not run.is_dir():
        raise Refusal(f"{run} is not a folder; give the --out of a training run")
    config = read_json(run / "config.json")
    if config.get("format") != FORMAT:
        raise Refusal(
            f"{run}/config.json has format {config.get('format')!r}, this version reads {FORMAT}; update sfumato"
        )
    missing = {"recipe", "settings", "data", "seed", "horizon", "parameters", "compute", "versions"} - config.keys()
    if not missing and isinstance(config["data"], dict):
        missing = {"name", "shape", "classes", "transform", "train", "test", "sha256"} - config["data"].keys()
    if missing:
        raise Refusal(f"{run}/config.json is damaged (no {min(missing)}); restore it or train again")
    return config


def from_config(config: Mapping[str, Any], run: Path) -> Diffusion:
    """An untrained model from a configuration; raises :class:`Refusal` where the recipe or a setting is unknown."""
    from sfumato import recipes
    from sfumato.training.settings import resolve

    recipe = recipes.get(str(config["recipe"]))
    try:
        recipe = recipe.on(str(config["data"].get("kind", recipe.kind)))
        settings = resolve(recipe.defaults, config["settings"])
        origin = {key: config[key] for key in ("seed", "horizon")}
        return recipe.build(settings, config["data"], origin)
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{run}/config.json is damaged ({error}); restore it or train again") from None


def load(run: str | Path, *, weights: str = "ema", ema: float | None = None, device: str = "auto") -> Diffusion:
    """The model in a run folder (or in ``RUN/snapshots/FILE``, an average as it was then), ready to sample.

    ``weights``: ``"ema"`` (``model.safetensors``) or ``"raw"``, the trained weights of the newest checkpoint;
    ``ema``: an average of this relative width in their place, from the run's snapshots
    (:mod:`sfumato.training.phema`).  Raises :class:`Refusal` where a file is missing, damaged or does not fit.
    """
    from sfumato.training.checkpoint import newest
    from sfumato.training.devices import resolve_device
    from sfumato.training.phema import load_average
    from sfumato.training.settings import choose

    run = Path(run)
    if run.parent.name == "snapshots" and run.suffix == ".safetensors":
        return _load_snapshot(run, weights, ema, device)
    choose("weights", weights, ("ema", "raw"))
    if weights == "raw" and ema is not None:
        raise Refusal(f"ema={ema:g}: raw weights are no average; leave one of the two out")
    model = from_config(read_config(run), run)
    if weights == "ema":
        source = run / "model.safetensors"
        load_weights(model.net, unpack_tensors(source), source)
    else:
        checkpoint, _ = newest(run)
        if checkpoint is None:
            raise Refusal(f"{run} has no checkpoint with raw weights; sample its EMA weights instead")
        load_weights(model.net, checkpoint.model, run / "checkpoints")
    if ema is not None:
        load_average(model.net, run, ema)
    model.net.to(resolve_device(device)).eval().requires_grad_(False)
    return replace(model, weights=weights if ema is None else f"ema={ema:g}")


def _load_snapshot(path: Path, weights: str, ema: float | None, device: str) -> Diffusion:
    from sfumato.training.phema import load_parameters

    if weights != "ema" or ema is not None:
        raise Refusal(f"{path} is an average already; leave the choice of weights out")
    model = load(path.parent.parent, device=device)
    load_parameters(model.net, unpack_tensors(path), path)
    return replace(model, weights=path.stem)
