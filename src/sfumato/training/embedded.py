"""Continuous diffusion of text: on learned embeddings of tokens, and on the latents of a learned autoencoder.

The contract: a state is a float tensor ``[b, places, d]`` of unit mean square; a codec leads from it back to tokens.
Everything learned (embeddings, encoder, decoder) is part of the one network that is trained, averaged and stored.

Embeddings (Li et al. 2022, "Diffusion-LM", https://arxiv.org/abs/2205.14217): the data are ``E(w)``; at the first noise
level ``t_0`` the token is read by Bayes' rule for tokens that are equally likely a priori,

    ``p(w | x) = softmax_w( -|x - alpha_0 E(w)|^2 / (2 sigma_0^2) )``        (rounding; exact for one token at a place),

and the bound is ``-log p(w) <= KL(q(x_1) || prior) + int_{t_0}^1 rate dt + E[-log p(w | x_{t_0})]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sfumato.core import Cond, Law
from sfumato.laws import Dirac
from sfumato.nets.delegated import Delegated
from sfumato.randomness import as_rng
from sfumato.schedules import at


def unit(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """``x`` with a mean square of 1 along the last axis."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-12).rsqrt()


def rounding(
    x: Float[Tensor, "b sites d"], table: Float[Tensor, "k d"], alpha: float, sigma: float
) -> Float[Tensor, "b sites k"]:
    """``log p(w | x)`` up to a constant, for noise ``sigma`` about ``alpha E(w)``: logits ``[b, L, K]``."""
    return alpha / sigma**2 * (x @ table.T) - (alpha / sigma) ** 2 / 2 * table.square().sum(-1)


# ------------------------------------------------------------------------------------------------------- embeddings


@final
class EmbeddedNet(nn.Module):
    """A network on embeddings and the table of them, ``[K, d]``, every row of unit mean square."""

    compute_dtype = Delegated("net")

    def __init__(self, net: Any, size: int, width: int) -> None:
        super().__init__()
        self.net = net
        self.weight = nn.Parameter(torch.randn(size, width))

    def table(self) -> Float[Tensor, "k d"]:
        """The embeddings."""
        return unit(self.weight)

    def embed(self, tokens: Int[Tensor, "b sites"]) -> Float[Tensor, "b sites d"]:
        """The embeddings of tokens."""
        return self.table()[tokens]

    def forward(self, x: Float[Tensor, "b sites d"], t: Tensor, cond: Cond | None = None) -> Float[Tensor, "b sites d"]:
        """The network's own output."""
        out: Tensor = self.net(x, t, cond)
        return out


@final
@dataclass(frozen=True)
class EmbeddedCodec:
    """States are embeddings ``[n, length, d]``; the nearest one is the token."""

    net: EmbeddedNet
    length: int

    def like(self, n: int, device: Any) -> Tensor:
        """``n`` empty states."""
        return torch.zeros((n, self.length, self.net.weight.shape[1]), device=device)

    def decode(self, x: Float[Tensor, "b sites d"]) -> Int[Tensor, "b sites"]:
        """The token of largest scalar product: embeddings are of one length, so the nearest."""
        return (x @ self.net.table().T).argmax(-1)

    def clamp(self, q: Law[Tensor]) -> Dirac:
        """The belief's point moved to the nearest embedding: the clamping trick (section 4.2)."""
        return Dirac(self.net.embed(self.decode(q.point())))


@final
@dataclass(frozen=True)
class EmbeddedLoss:
    """``L_simple`` end to end, per token ``[b]`` (Li et al. 2022, eq. 2): the square error of the predicted embedding,
    averaged over coordinates, plus ``anchor`` times two readings of the token in nats: from the first noise level
    (rounding), and from the prediction itself.

    The readings keep embeddings apart: a square error alone is least where all are equal.  ``first``: the time ``t_0``.
    """

    first: float
    anchor: float = 1.0

    def __call__(
        self, denoiser: Any, x0: Tensor, t: Tensor, cond: Cond | None, rng: Any = None, eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:  # fmt: skip
        net, process, source = denoiser.net, denoiser.head.process, as_rng(rng)
        clean = net.embed(x0)
        x_t = process.marginal(clean, t).draw(source)
        found = denoiser(x_t, t, cond).point()
        square = (found - clean).square().flatten(1).mean(1)
        alpha, sigma = at(process.schedule, self.first)
        begun = process.marginal(clean, self.first).draw(source)
        # the prediction is read at the scale of unit noise: a soft choice among embeddings
        readings = (rounding(begun, net.table(), alpha, sigma), rounding(found, net.table(), 1.0, 1.0))
        nats = [cross_entropy(logits.transpose(1, 2), x0, reduction="none").mean(1) for logits in readings]
        loss: Tensor = square + self.anchor * (nats[0] + nats[1])
        return loss


@final
@dataclass(frozen=True)
class EmbeddedNelbo:
    """The bound above in nats per sequence ``[b]``, the mean of ``draws`` stratified times."""

    first: float
    draws: int = 16
    name: ClassVar[str] = "NELBO"

    def __call__(self, denoiser: Any, x0: Int[Tensor, "b sites"], rng: Any) -> Float[Tensor, " b"]:
        net, process, source = denoiser.net, denoiser.head.process, as_rng(rng)
        clean = net.embed(x0)
        alpha, sigma = at(process.schedule, self.first)
        begun = process.marginal(clean, self.first).draw(source)
        logits = rounding(begun, net.table(), alpha, sigma)
        total = cross_entropy(logits.transpose(1, 2), x0, reduction="none").sum(1).double()
        total = total + process.marginal(clean, 1.0).kl(process.prior(clean)).double()
        offset = source.uniform((len(x0),)).double()
        for k in range(self.draws):
            t = self.first + (1 - self.first) * (offset + k) / self.draws
            x_t = process.marginal(clean, t).draw(source)
            rate = process.rate(denoiser(x_t, t), clean, x_t, t).double()
            total = total + rate * (1 - self.first) / self.draws
        found: Tensor = total
        return found


# ---------------------------------------------------------------------------------------------------------- latents


@final
class LatentNet(nn.Module):
    """An autoencoder of text and the network that denoises its latents, one module.

    ``group`` neighbouring tokens share a latent of ``width`` numbers; the encoder and the decoder see the whole text.
    """

    compute_dtype = Delegated("net")

    def __init__(self, net: Any, encoder: Any, decoder: Any, size: int, token_width: int, group: int) -> None:
        super().__init__()
        self.net, self.encoder, self.decoder, self.group, self.size = net, encoder, decoder, group, size
        self.tokens = nn.Embedding(size, token_width)

    def encode(self, tokens: Int[Tensor, "b sites"]) -> Float[Tensor, "b places d"]:
        """The latents of tokens, of unit mean square."""
        b, length = tokens.shape
        grouped = self.tokens(tokens).reshape(b, length // self.group, -1)
        return unit(self.encoder(grouped, None))

    def logits(self, z: Float[Tensor, "b places d"]) -> Float[Tensor, "b sites k"]:
        """What the decoder says of every token."""
        out: Tensor = self.decoder(z, None)
        return out.reshape(len(z), -1, self.size)

    def forward(self, x: Float[Tensor, "b places d"], t: Tensor, cond: Cond | None = None) -> Tensor:
        """The denoising network's own output."""
        out: Tensor = self.net(x, t, cond)
        return out


@final
@dataclass(frozen=True)
class LatentCodec:
    """States are latents ``[n, length / group, width]``; the decoder's likeliest tokens are the text."""

    net: LatentNet
    length: int
    width: int

    def like(self, n: int, device: Any) -> Tensor:
        """``n`` empty states."""
        return torch.zeros((n, self.length // self.net.group, self.width), device=device)

    def decode(self, x: Float[Tensor, "b places d"]) -> Int[Tensor, "b sites"]:
        """The likeliest token of every place."""
        return self.net.logits(x).argmax(-1)


@final
@dataclass(frozen=True)
class LatentLoss:
    """Reconstruction and denoising at once ``[b]``: the decoder's cross-entropy in nats per token, from latents with
    noise ``blur`` (so that it reads what a sampler makes), plus the denoiser's own square error on latents that it
    cannot move.
    """

    blur: float = 0.3

    def __call__(
        self, denoiser: Any, x0: Tensor, t: Tensor, cond: Cond | None, rng: Any = None, eps: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Float[Tensor, " b"]:  # fmt: skip
        net, process, source = denoiser.net, denoiser.head.process, as_rng(rng)
        latent = net.encode(x0)
        read = latent + self.blur * source.normal(tuple(latent.shape)).to(latent)
        nats = cross_entropy(net.logits(read).transpose(1, 2), x0, reduction="none").mean(1)
        fixed = latent.detach()
        noise = source.normal(tuple(fixed.shape)).to(fixed)
        alpha, sigma = at(process.schedule, t, fixed)
        output = denoiser.raw(alpha * fixed + sigma * noise, t, cond)
        error = (output - denoiser.head.target_from_noise(fixed, noise, t)).square().flatten(1).mean(1)
        found: Tensor = nats + error
        return found
