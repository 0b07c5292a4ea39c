"""Training the autoencoder: what an error weighs, and what noise a decoder that is finished alone is shown."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.train.autoencoder import DECODER_NOISE, Decoding, EncodedClips, psnr, weighted

TINY = TAEConfig(
    latent_channels=4, encoder_widths=(4, 6, 8), decoder_widths=(4, 6, 8), encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
)  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_pixels_of_things_count_three_times(share: float) -> None:
    things = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    things[..., : int(8 * share)] = True
    found = weighted(torch.full((2, 3, 3, 8, 8), -0.5), things)
    assert float(found) == pytest.approx((1 + 2 * share) * (0.5 + 4 * 0.25))


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (2 / 255, 20 * math.log10(255))])
def test_psnr_is_that_of_pixels_in_minus_one_to_one(error: float, decibels: float) -> None:
    assert float(psnr(torch.tensor(error) ** 2)) == pytest.approx(decibels, abs=1e-4)


class Seen:
    """A decoder that keeps what it is shown."""

    def __init__(self) -> None:
        self.z_BTCHW = torch.zeros(0)

    def decode(self, z_BTCHW: Tensor, state: None = None) -> tuple[Tensor, object]:
        self.z_BTCHW = z_BTCHW
        return z_BTCHW.new_zeros(len(z_BTCHW), 9, 3, 8, 8), state


def test_every_clip_has_noise_of_its_own_up_to_the_limit() -> None:
    decoder, shape = Seen(), (64, 3, 16, 8, 8)
    batch = EncodedClips(torch.zeros(shape), torch.zeros(64, 9, 3, 8, 8), torch.zeros(64, 9, 8, 8, dtype=torch.bool))
    out = Decoding(decoder)(batch, torch.Generator().manual_seed(0))
    deviation = decoder.z_BTCHW.flatten(1).std(1)
    assert float(deviation.max()) < 1.1 * DECODER_NOISE
    assert float(deviation.min()) < 0.2 * DECODER_NOISE
    assert float(deviation.mean()) == pytest.approx(DECODER_NOISE / 2, rel=0.2)
    assert float(out["loss"]) == 0.0


def test_a_decoder_learns_from_it_and_the_statistics_of_its_latents_apply() -> None:
    torch.manual_seed(0)
    model = TinyAutoencoder(TINY).train()
    model.latent_mean.fill_(0.3)
    batch = EncodedClips(
        torch.randn(4, 3, 4, 2, 2), torch.full((4, 9, 3, 16, 16), 0.5), torch.zeros(4, 9, 16, 16, dtype=torch.bool)
    )
    optimiser, losses = torch.optim.Adam(model.decoder.parameters(), 5e-3), []
    for step in range(60):
        loss = Decoding(model)(batch, torch.Generator().manual_seed(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.8 * losses[0]
    assert all(p.grad is None for p in model.encoder.parameters())
