"""Data sets: embedded ones by name, the user's own by path, all as uint8 images in memory with an invertible transform.

``load("mnist")`` and ``load("digits")`` need no download.  See :mod:`sfumato.data.sets` for what a data set is.
"""

from __future__ import annotations

from sfumato.data.loading import load, names
from sfumato.data.report import Report
from sfumato.data.sets import Data, Split
from sfumato.data.sheets import contact_sheet
from sfumato.data.transforms import Transform, Uint8Image, from_json

__all__ = ["Data", "Report", "Split", "Transform", "Uint8Image", "contact_sheet", "from_json", "load", "names"]
