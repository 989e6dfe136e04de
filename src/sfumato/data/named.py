"""Sets that are known by a name: emoji, photographs, clothes, series, toys, and what ``sfumato list data`` says of all.

The contract: one name, one data set, whose checksum is in this package; :func:`entries` opens no data set and fetches
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

from sfumato.data.options import Options

#: Where a set is: in the package, in the cache, still in its registry, or nowhere because code makes it.
EMBEDDED, CACHED, FETCHED, MADE = "embedded", "fetched (in the cache)", "fetched on first use", "made by code"
OWN = "made by this library's own code"
#: The options that images with a name have a use for: all of them are opaque and readable, and have their classes.
RELAID = ("resolution", "crop")
#: Points of a toy density, of which one in ten is held out, and the seed they are drawn with.
POINTS, SEED = 11_000, 5
#: The electrocardiogram: values of the file that are averaged into one (250 a second), values of a window, where the
#: held-out end begins, and how far apart the windows of the two parts are.
AVERAGED, WINDOW, BORDER, STRIDES = 4, 250, 2000, (4, 10)
#: Millivolt of one unit of its file.
MILLIVOLT = 1.25e-3


@final
@dataclass(frozen=True)
class Family:
    """Sets that are known by name.  ``kind``: what they hold; ``uses``: the options that ``load`` has a use for."""

    kind: str
    names: Callable[[], tuple[str, ...]]
    load: Callable[[str, Options], Any]
    uses: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Entry:
    """One named set.  ``size``: of its file or package in bytes, 0 where there is none."""

    name: str
    kind: str
    size: int
    licence: str
    where: str


def _emoji_names() -> tuple[str, ...]:
    from sfumato.data import emoji

    return emoji.names()


def _emoji(name: str, options: Options) -> Any:
    from sfumato.data import emoji

    return emoji.load(name, options)


def _photo_names() -> tuple[str, ...]:
    from sfumato.data import photos

    return photos.names()


def _photos(name: str, options: Options) -> Any:
    from sfumato.data import photos

    return photos.load(name, options)


def _fashion_names() -> tuple[str, ...]:
    return ("fashion-mnist",)


def _fashion(name: str, options: Options) -> Any:
    import numpy as np
    import torch

    from sfumato.data import fetched
    from sfumato.data.images import relaid
    from sfumato.data.sets import Data, Split
    from sfumato.data.transforms import Uint8Image

    chosen = fetched.SETS[name]
    arrays = chosen.arrays()

    def split(part: str) -> Split:
        x = relaid(arrays[f"{part}.x"][..., None], options, name)
        return Split(torch.from_numpy(x), torch.from_numpy(arrays[f"{part}.label"].astype(np.int64)))

    return Data(
        name=name,
        train=split("train"),
        test=split("test"),
        classes=fetched.CLOTHES,
        transform=Uint8Image(),
        options=options,
        **fetched.record(chosen),
    )


def _series_names() -> tuple[str, ...]:
    from sfumato.data import fetched

    return tuple(sorted((*fetched.UCR, "ecg")))


def _series(name: str, options: Options) -> Any:
    from sfumato.data import fetched
    from sfumato.data.series import of_arrays

    chosen = fetched.SETS[name]
    arrays = chosen.arrays()
    if name == "ecg":
        return _ecg(arrays["x"], fetched.record(chosen))
    return of_arrays(arrays["x"], arrays["label"], name=name, **fetched.record(chosen))


def _ecg(waveform: Any, record: dict[str, Any]) -> Any:
    """Windows of one second of all 12 leads in millivolt; those of the last two seconds are held out."""
    import numpy as np
    import torch

    from sfumato.data.series import SeriesData, SeriesSplit
    from sfumato.data.series_transform import Layout, SeriesTransform

    leads = waveform.shape[1]
    signal = (waveform.reshape(-1, AVERAGED, leads).mean(1) * MILLIVOLT).astype(np.float32).T

    def split(part: Any, stride: int) -> SeriesSplit:
        starts = range(0, part.shape[1] - WINDOW + 1, stride)
        return SeriesSplit(torch.from_numpy(np.stack([part[:, k : k + WINDOW] for k in starts])), None)

    train, test = split(signal[:, :BORDER], STRIDES[0]), split(signal[:, BORDER:], STRIDES[1])
    return SeriesData(
        name="ecg",
        train=train,
        test=test,
        classes=(),
        transform=SeriesTransform.of(train.x, Layout(flat=False, numbers="float32")),
        notes=("windows of 1 s at 250 Hz, in mV; training windows overlap, held-out ones are from the last 2 s",),
        **record,
    )


def _toy_names() -> tuple[str, ...]:
    from sfumato.data import toys

    return tuple(name for name in toys.names() if name != "gaussian")


def _toys(name: str, options: Options) -> Any:
    from sfumato.data import toys
    from sfumato.data.table import of_columns

    points = toys.sample(name, POINTS, SEED)
    columns = {axis: [f"{value:.6f}" for value in points[:, k].tolist()] for k, axis in enumerate("xy")}
    source = "synthetic: made by code from a fixed seed (sfumato.data.toys)"
    return replace(of_columns(columns, name), source=source, licence=OWN)


#: The sets of this module; :data:`sfumato.data.loading.FAMILIES` has all.
FAMILIES: tuple[Family, ...] = (
    Family("images", _emoji_names, _emoji, RELAID),
    Family("images", _fashion_names, _fashion, RELAID),
    Family("images", _photo_names, _photos, RELAID),
    Family("series", _series_names, _series),
    Family("table", _toy_names, _toys),
)


def entries() -> list[Entry]:
    """Every named set."""
    from sfumato.data.loading import FAMILIES as EVERY

    return [_entry(name, family.kind) for family in EVERY for name in family.names()]


def _entry(name: str, kind: str) -> Entry:
    from sfumato.data import fetched
    from sfumato.data.cards import FILES, read_card

    if name in fetched.SETS:
        chosen = fetched.SETS[name]
        return Entry(name, kind, chosen.package.size, chosen.licence, CACHED if chosen.cached else FETCHED)
    stem = {"emoji-32": "emoji", "emoji-64": "emoji", "photos-32": "photos", "photos-64": "photos"}.get(name, name)
    files = [path for path in FILES.glob(f"{stem}.*") if path.suffix != ".json"]
    if not files:
        return Entry(name, kind, 0, OWN, MADE)
    return Entry(name, kind, files[0].stat().st_size, str(read_card(stem)["licence"]), EMBEDDED)
