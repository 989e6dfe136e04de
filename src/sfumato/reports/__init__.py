"""Reports: one HTML file that holds everything and opens offline.

``write(run)`` makes ``RUN/report.html``; :mod:`sfumato.reports.page` is the page, :mod:`sfumato.reports.charts` its
curves.
"""

from __future__ import annotations

from sfumato.reports.charts import Chart, Line, svg
from sfumato.reports.page import Commands, Figure, Note, Pictures, Section, Table, Texts, render
from sfumato.reports.run import write

__all__ = [
    "Chart", "Commands", "Figure", "Line", "Note", "Pictures", "Section", "Table", "Texts", "render", "svg", "write",
]  # fmt: skip
