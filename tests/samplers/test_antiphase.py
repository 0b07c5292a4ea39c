"""Noise that leans against its neighbours: its marginals, its correlation, and where it stops."""

from __future__ import annotations

import pytest
import torch

from arvid.samplers.noise import INITIAL, NOISES, Antiphase, SeededNoise
from arvid.spec import build

SHAPE = (1, 6, 4, 64, 64)


@pytest.mark.parametrize("rho", [0.0, -0.3, -0.5, -0.7, -0.9, 0.5])
def test_every_frame_is_standard_normal_and_neighbours_have_the_stated_correlation(rho: float) -> None:
    frames_TN = Antiphase(SeededNoise(1), rho).draw(3, INITIAL, SHAPE)[0].flatten(1)
    each = 1 / frames_TN.shape[1] ** 0.5
    assert frames_TN.mean(1).abs().max() < 5 * each
    assert (frames_TN.var(1) - 1).abs().max() < 8 * each
    correlation = torch.corrcoef(frames_TN)
    for lag in range(1, 4):
        assert (correlation.diagonal(lag) - rho**lag).abs().max() < 5 * each


@pytest.mark.parametrize(("rho", "share"), [(0.0, 0.5), (-0.7, 0.89), (-0.9, 0.97)])
def test_motion_goes_into_the_fast_half_of_the_band(rho: float, share: float) -> None:
    """Energy of the upper half of the spectrum in time: (1 / pi) of the integral of (1 - rho^2) / |1 - rho e^iw|^2."""
    row = Antiphase(SeededNoise(0), rho).draw(0, INITIAL, (1, 2048, 1, 4, 4))[0, :, 0].flatten(1)
    energy = torch.fft.rfft(row, dim=0).abs().square().sum(1)
    assert float(energy[512:].sum() / energy.sum()) == pytest.approx(share, abs=0.01)


def test_without_correlation_it_is_the_noise_itself_bit_for_bit() -> None:
    assert torch.equal(Antiphase(SeededNoise(4), 0.0).draw(1, INITIAL, SHAPE), SeededNoise(4).draw(1, INITIAL, SHAPE))


def test_blocks_and_later_steps_are_as_independent_as_ever() -> None:
    noise = Antiphase(SeededNoise(4), -0.9)
    assert torch.equal(noise.draw(2, 1, SHAPE), SeededNoise(4).draw(2, 1, SHAPE))
    last, first = noise.draw(0, INITIAL, SHAPE)[0, -1], noise.draw(1, INITIAL, SHAPE)[0, 0]
    assert torch.corrcoef(torch.stack([last.flatten(), first.flatten()]))[0, 1].abs() < 5 / 128
    assert torch.equal(first, SeededNoise(4).draw(1, INITIAL, SHAPE)[0, 0])


def test_noise_by_name() -> None:
    assert torch.equal(build("white", NOISES, "noise")(7).draw(0, 0, SHAPE), SeededNoise(7).draw(0, 0, SHAPE))
    made = build("antiphase:rho=-0.7", NOISES, "noise")(7).draw(0, 0, SHAPE)
    assert torch.equal(made, Antiphase(SeededNoise(7), -0.7).draw(0, 0, SHAPE))
    with pytest.raises(ValueError, match=r"correlation -1; needs -1 < rho < 1"):
        build("antiphase:rho=-1", NOISES, "noise")
