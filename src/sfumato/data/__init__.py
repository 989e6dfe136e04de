"""Data sets: embedded ones by name, the user's own by path, in memory, with an invertible transform to model units.

``load("mnist")``, ``load("shakespeare")`` and ``load("torsions")`` need no download; ``load("photos/")`` is a folder.
See :mod:`sfumato.data.sets` for images, :mod:`sfumato.data.readers` for a user's own, :mod:`sfumato.data.text` for
text, :mod:`sfumato.data.points` for points on manifolds.
"""

from __future__ import annotations

from sfumato.data.loading import image_names, load, names, reload
from sfumato.data.options import Options
from sfumato.data.report import Report
from sfumato.data.sets import Data, Split
from sfumato.data.sheets import contact_sheet
from sfumato.data.transforms import Transform, Uint8Image, from_json

__all__ = [
    "Data",
    "Options",
    "Report",
    "Split",
    "Transform",
    "Uint8Image",
    "contact_sheet",
    "from_json",
    "image_names",
    "load",
    "names",
    "reload",
]
