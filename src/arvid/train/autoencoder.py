"""Training the light autoencoder: reconstruct clips through noised latents.

Knows: the reconstruction loss and what keeps latents small and smooth. Does not know: the world the clips come from.
Latents are trained with Gaussian noise of standard deviation NOISE added before decoding, so that the decoder bears
the small errors of a generator; a small penalty on their square fixes the scale the noise is measured against.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

NOISE = 0.1
PENALTY = 2e-4


class Autoencoder(Protocol):
    """What this objective trains."""

    def encode_raw(self, v_BTCHW: Tensor) -> Tensor:
        """Latents before normalisation."""
        ...

    def decode_raw(self, z_BTCHW: Tensor, state: None = None) -> tuple[Tensor, object]:
        """Frames of such latents."""
        ...


class Reconstruction:
    """Mean absolute plus mean squared error of decoded frames, and the latent penalty."""

    def __init__(self, model: Autoencoder) -> None:
        self.model = model

    def __call__(self, v_BTCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`v_BTCHW` in [-1, 1]; returns loss, l1, psnr (dB, pixels of range 1) and the latents' mean square."""
        with torch.autocast("cpu", torch.bfloat16):
            z_BTCHW = self.model.encode_raw(v_BTCHW)
            noise = torch.randn(z_BTCHW.shape, generator=generator)
            y_BTCHW, _ = self.model.decode_raw(z_BTCHW + NOISE * noise)
        error = y_BTCHW.float() - v_BTCHW
        absolute, square, size = error.abs().mean(), error.square().mean(), z_BTCHW.float().square().mean()
        loss = absolute + 4 * square + PENALTY * size
        return {"loss": loss, "l1": absolute.detach(), "psnr": psnr(square.detach()), "latent": size.detach()}


class Decoding:
    """The same error for the decoder alone, on latents that were encoded before; for finishing a decoder whose latents
    are in use already. The noise is half of what the pair was trained with."""

    def __init__(self, model: Autoencoder) -> None:
        self.model = model

    def __call__(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """`batch` is latents before normalisation [B, T, C, H, W] and their frames v_BTCHW in [-1, 1]."""
        z_BTCHW, v_BTCHW = batch
        noise = torch.randn(z_BTCHW.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            y_BTCHW, _ = self.model.decode_raw(z_BTCHW + NOISE / 2 * noise)
        error = y_BTCHW.float() - v_BTCHW
        absolute, square = error.abs().mean(), error.square().mean()
        return {"loss": absolute + 4 * square, "l1": absolute.detach(), "psnr": psnr(square.detach())}


def psnr(square: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [-1, 1]."""
    return -10 * torch.log10(square / 4)
