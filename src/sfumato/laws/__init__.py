"""Everything random is a law: :mod:`~sfumato.laws.basic` (exported here), and :mod:`~sfumato.laws.manifold` for laws on
curved spaces."""

from __future__ import annotations

from sfumato.laws.basic import Categorical, Dirac, Joint, Normal, Through, natural_pool, pool

__all__ = ["Categorical", "Dirac", "Joint", "Normal", "Through", "natural_pool", "pool"]
