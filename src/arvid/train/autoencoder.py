"""Training the light autoencoder: reconstruct clips through noised latents.

Knows: the reconstruction loss, what keeps latents small, smooth and readable. Does not know: the world the clips come
from, nor how their labels are made.
Latents are trained with Gaussian noise of standard deviation NOISE added before decoding, so that the decoder bears
the small errors of a generator; a small penalty on their square fixes the scale the noise is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from arvid.train.flow import noise_like
from arvid.train.reading import Told, cells_loss, offset_loss
from arvid.types import Decoder

NOISE = 0.1
DECODER_NOISE = 0.2
PENALTY = 3e-3
THINGS = 3.0
PROBE = 0.15
PROBE_NOISE = 0.6
PROBE_MOTION = 2.0
GAIN = 8.0


class Autoencoder(Protocol):
    """What this objective trains."""

    def encode_raw(self, v_BTCHW: Tensor) -> Tensor:
        """Latents before normalisation."""
        ...

    def decode_raw(self, z_BTCHW: Tensor, state: None = None) -> tuple[Tensor, object]:
        """Frames of such latents."""
        ...


@dataclass(frozen=True)
class LabelledClips:
    """Frames v_BTCHW in [-1, 1], what stands in every cell of every latent frame (shape and size) and where its middle
    is, and the pixels that belong to things [B, T, H, W] bool. `stills` are single frames that are encoded and probed
    only: many things for little work."""

    v_BTCHW: Tensor
    told: Told
    things_BTHW: Tensor
    stills: LabelledClips | None = None


class Probe(nn.Module):
    """One linear map from a latent cell to what stands there."""

    def __init__(self, channels: int, shapes: int, sizes: int) -> None:
        super().__init__()
        self.parts = (shapes + 1, sizes + 1, 2, 2)
        self.map = nn.Linear(channels, sum(self.parts))
        nn.init.zeros_(self.map.weight)

    def forward(self, z_BTCHW: Tensor) -> tuple[Tensor, ...]:
        """Of latents of unit variance: logits of shape, logits of size, velocity, offset; each [B, T, Y, X, n]. The
        gain lets so small a map keep pace with the encoder at one learning rate."""
        return (GAIN * self.map(z_BTCHW.movedim(2, -1))).split(self.parts, -1)


class Reconstruction:
    """Weighted absolute and squared error of decoded frames, the latent penalty, and what a probe reads from latents.

    A generator learns what makes up much of a latent's variance, and a shape is few pixels. So a linear probe must read
    what stands in a cell from the latent under as much noise as PROBE_NOISE of its spread: meaning gets room of its own
    in the latent. (After VA-VAE, 2501.01423, which aligns latents with a vision model's features; here the renderer
    knows the labels.) Pixels of things count THINGS times more.
    """

    def __init__(self, model: Autoencoder, probe: Probe) -> None:
        self.model, self.probe = model, probe

    def __call__(self, batch: LabelledClips, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns loss, l1, psnr (dB, pixels of range 1), the latents' mean square, the probe's loss and its share of
        right shapes where things stand."""
        with torch.autocast(batch.v_BTCHW.device.type, torch.bfloat16):
            z_BTCHW = self.model.encode_raw(batch.v_BTCHW)
            y_BTCHW, _ = self.model.decode_raw(z_BTCHW + NOISE * noise_like(z_BTCHW, generator))
        error = y_BTCHW.float() - batch.v_BTCHW
        size = z_BTCHW.float().square().mean()
        probe, right = self._probe(z_BTCHW.float(), batch, generator)
        if batch.stills is not None:
            with torch.autocast(batch.v_BTCHW.device.type, torch.bfloat16):
                still_BTCHW = self.model.encode_raw(batch.stills.v_BTCHW)
            more, right = self._probe(still_BTCHW.float(), batch.stills, generator)
            probe = probe + more
        loss = weighted(error, batch.things_BTHW) + PENALTY * size + PROBE * probe
        return {
            "loss": loss, "psnr": psnr(error.square().mean().detach()), "latent": size.detach(),
            "probe": probe.detach(), "right": right,
        }  # fmt: skip

    def _probe(self, z_BTCHW: Tensor, batch: LabelledClips, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # The spread is differentiated with the rest: were it a constant, latents would grow to drown the noise.
        spread = z_BTCHW.std((0, 1, 3, 4), keepdim=True)
        centre = z_BTCHW.mean((0, 1, 3, 4), keepdim=True)
        noised = (z_BTCHW - centre) / spread + PROBE_NOISE * noise_like(z_BTCHW, generator)
        # The first latent frame is one pixel frame: nothing in it tells a velocity.
        moving_BT = torch.arange(z_BTCHW.shape[1], device=z_BTCHW.device).expand(z_BTCHW.shape[:2]) > 0
        *read, offset = self.probe(noised)
        loss, right = cells_loss(read, batch.told, moving_BT, PROBE_MOTION)
        return loss + offset_loss(offset, batch.told), right


@dataclass(frozen=True)
class EncodedClips:
    """Latents of unit variance z_BTCHW, the frames v_BTCHW in [-1, 1] they stand for, and the pixels that belong to
    things [B, T, H, W] bool."""

    z_BTCHW: Tensor
    v_BTCHW: Tensor
    things_BTHW: Tensor


class Decoding:
    """The same error for the decoder alone, on latents that were encoded before; for finishing a decoder whose latents
    are in use already. Every clip's latents carry noise of a deviation of its own, from none to DECODER_NOISE of their
    spread: a generator's errors are of all sizes, and what it means by a small thing is often plain all the same."""

    def __init__(self, model: Decoder) -> None:
        self.model = model

    def __call__(self, batch: EncodedClips, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns loss, l1 and psnr (dB)."""
        z_BTCHW = batch.z_BTCHW
        deviation = DECODER_NOISE * torch.rand(len(z_BTCHW), 1, 1, 1, 1, generator=generator).to(z_BTCHW.device)
        with torch.autocast(z_BTCHW.device.type, torch.bfloat16):
            y_BTCHW, _ = self.model.decode(z_BTCHW + deviation * noise_like(z_BTCHW, generator))
        error = y_BTCHW.float() - batch.v_BTCHW
        return {
            "loss": weighted(error, batch.things_BTHW), "l1": error.detach().abs().mean(),
            "psnr": psnr(error.detach().square().mean()),
        }  # fmt: skip


def weighted(error_BTCHW: Tensor, things_BTHW: Tensor) -> Tensor:
    """Mean absolute and squared error of frames; pixels of things count THINGS times."""
    weight = 1 + (THINGS - 1) * things_BTHW[:, :, None].float()
    return (weight * error_BTCHW.abs()).mean() + 4 * (weight * error_BTCHW.square()).mean()


def psnr(square: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [-1, 1]."""
    return -10 * torch.log10(square / 4)
