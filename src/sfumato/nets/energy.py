"""The energy-based view: a network whose output is the gradient of a scalar.

The contract: ``Energy(net)(x, t, cond)`` is ``grad_x E(x, t, cond)`` of shape ``[b, ...]``, with one energy per row of
the batch, so its Jacobian in ``x`` is symmetric: the field is conservative, as a score is and as the output of a free
network is not.  Energies at one ``t`` and ``cond`` may be compared; :func:`sfumato.energies.log_density` turns them
into log-densities.

===========  ======================  =====================================================
form         ``E``, f = net(x, t)    source
===========  ======================  =====================================================
inner        ``<x, f>``              Du et al. 2023, section 3.4 (arXiv 2302.11552)
distance     ``|x - f|^2 / 2``       Salimans and Ho 2021, section 3 (arXiv 2104.00163)
===========  ======================  =====================================================

Training differentiates a gradient, so every layer of ``net`` needs second derivatives (those of this library have
them); a step costs two to three times that of ``net``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.errors import Refusal, nearest
from sfumato.nets.delegated import Delegated


def _inner(x: Tensor, f: Tensor) -> Tensor:
    return (x * f).flatten(1).sum(1)


def _distance(x: Tensor, f: Tensor) -> Tensor:
    return (x - f).square().flatten(1).sum(1) / 2


#: From ``x`` and the network's output to an energy per row.
FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"inner": _inner, "distance": _distance}


def energy_of(
    net: Any, x: Float[Tensor, "b ..."], t: Float[Tensor, " b"], cond: Mapping[str, Tensor] | None = None
) -> Float[Tensor, " b"]:
    """The energy whose gradient at the input ``x`` is ``net(x, t, cond)``: ``net.energy``, which wrappers hand on.

    Raises :class:`Refusal` where ``net``, or the network that it wraps, is no energy.
    """
    own = getattr(net, "energy", None)
    if own is None:
        raise Refusal(
            f"the network is {type(net).__name__}, the gradient of no energy; wrap it in nets.Energy, or train with "
            "--set energy=inner"
        )
    found: Tensor = own(x, t, cond)
    return found


@final
class Energy(nn.Module):
    """``grad_x E`` for the energy ``form`` of a network whose output has the shape of its input.

    Works under ``no_grad``, too; there the result carries no graph.  Raises :class:`Refusal` for an unknown form, and
    when called for an output that is not shaped like the input.
    """

    compute_dtype = Delegated("net")

    def __init__(self, net: nn.Module, form: str = "inner") -> None:
        super().__init__()
        if form not in FORMS:
            raise Refusal(f"unknown energy {form!r}; {nearest(form, FORMS)}")
        self.net, self.form = net, form

    @property
    def settings(self) -> dict[str, Any]:
        """What rebuilds the network inside."""
        settings: dict[str, Any] = self.net.settings  # type: ignore[assignment]
        return settings

    def energy(
        self, x: Float[Tensor, "b ..."], t: Float[Tensor, " b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, " b"]:
        """``E(x, t, cond)``, ``[b]``, up to a constant for every ``(t, cond)``."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            f = self.net(x, t, cond)
        if f.shape != x.shape:
            raise Refusal(f"an energy needs an output shaped like the input {list(x.shape)}, not {list(f.shape)}")
        return FORMS[self.form](x, f)

    def forward(
        self, x: Float[Tensor, "b ..."], t: Float[Tensor, " b"], cond: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "b ..."]:
        """``grad_x E(x, t, cond)``."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if wanted and x.requires_grad else x.detach().requires_grad_()
            total = self.energy(x, t, cond).sum()
            gradient: Tensor = torch.autograd.grad(total, x, create_graph=wanted)[0]
        return gradient
