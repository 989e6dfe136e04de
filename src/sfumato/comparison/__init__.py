"""Samplers side by side on one model: quality, or distance to the exact ODE, against evaluations and seconds."""

from __future__ import annotations

from sfumato.comparison.ode import ODE
from sfumato.comparison.result import Cell, Comparison, read
from sfumato.comparison.run import compare, compare_with_ode

__all__ = ["ODE", "Cell", "Comparison", "compare", "compare_with_ode", "read"]
