"""Bake-offs: several methods, one set of data, one budget, one way to measure, one report.

``bakeoff("mnist", ["ddpm", "edm", "flow"], "runs/bakeoff", minutes=3)`` trains, measures and writes ``report.html``.
"""

from __future__ import annotations

from sfumato.bakeoff.plan import Entry, Terms, entries
from sfumato.bakeoff.report import write
from sfumato.bakeoff.run import Result, bakeoff, stored

__all__ = ["Entry", "Result", "Terms", "bakeoff", "entries", "stored", "write"]
