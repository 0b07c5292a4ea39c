"""The tiny autoencoder: streamed = whole, causal, and a state that is a value."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.models.tae import Rise, TAEConfig, TinyAutoencoder

TINY = TAEConfig(
    latent_channels=4, encoder_widths=(4, 6, 8), decoder_widths=(4, 6, 8), encoder_blocks=(1, 1, 2),
    decoder_blocks=(1, 2, 1),
)  # fmt: skip


def tiny() -> TinyAutoencoder:
    torch.manual_seed(0)
    model = TinyAutoencoder(TINY).eval().requires_grad_(False)
    for p in model.parameters():
        p.mul_(2.0)  # an untrained stack fades; every frame shall matter to the next
    model.latent_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    model.latent_std.copy_(torch.tensor([0.5, 1.0, 2.0, 1.5]))
    return model


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (81, 21)])
def test_frames_and_latents_count_each_other(frames: int, latents: int) -> None:
    model = tiny()
    z_BTCHW = model.encode(torch.rand(1, frames, 3, 16, 8) * 2 - 1)
    assert z_BTCHW.shape == (1, latents, 4, 2, 1)
    assert model.decode(z_BTCHW)[0].shape == (1, frames, 3, 16, 8)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_streamed_is_whole(parts: list[int]) -> None:
    model, z_BTCHW = tiny(), torch.randn(2, sum(parts), 4, 2, 3, generator=torch.Generator().manual_seed(1))
    whole, last = model.decode(z_BTCHW)
    state, frames = None, []
    for part in z_BTCHW.split(parts, 1):
        piece, state = model.decode(part, state)
        assert piece.shape[1] == 4 * part.shape[1] - (3 if not frames else 0)
        frames.append(piece)
    torch.testing.assert_close(torch.cat(frames, 1), whole, rtol=1e-5, atol=1e-5)
    assert state is not None
    for ours, expected in zip(state, last, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_past_matters_to_the_next_frames() -> None:
    model = tiny()
    _, state = model.decode(torch.randn(1, 2, 4, 2, 2))
    block = torch.randn(1, 2, 4, 2, 2)
    after, alone = model.decode(block, state)[0], model.decode(block)[0]
    assert (after[:, 3:] - alone).abs().max() > 1e-3


def test_a_later_latent_changes_no_earlier_frame() -> None:
    model, z_BTCHW = tiny(), torch.randn(1, 5, 4, 2, 2)
    changed = z_BTCHW.clone()
    changed[:, 3] += 1
    before, after = model.decode(z_BTCHW)[0], model.decode(changed)[0]
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


def test_a_later_frame_changes_no_earlier_latent() -> None:
    model, v_BTCHW = tiny(), torch.rand(1, 17, 3, 16, 16)
    changed = v_BTCHW.clone()
    changed[:, 9] = 0.0
    before, after = model.encode(v_BTCHW), model.encode(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


def test_an_old_state_can_be_used_again() -> None:
    model = tiny()
    blocks = torch.randn(4, 1, 2, 4, 2, 2)
    _, state = model.decode(blocks[0])
    kept = [tensor.clone() for tensor in state]
    first, following = model.decode(blocks[1], state)
    model.decode(blocks[2], following)
    assert all(torch.equal(a, b) for a, b in zip(kept, state, strict=True))
    assert torch.equal(model.decode(blocks[1], state)[0], first)
    assert not torch.equal(model.decode(blocks[3], state)[0], first)


def test_statistics_normalise_latents_and_are_undone() -> None:
    model, v_BTCHW = tiny(), torch.rand(1, 5, 3, 16, 16)
    raw, normal = model.encode_raw(v_BTCHW), model.encode(v_BTCHW)
    for channel in range(4):
        mean, std = float(model.latent_mean[channel]), float(model.latent_std[channel])
        torch.testing.assert_close(normal[:, :, channel], (raw[:, :, channel] - mean) / std)
    torch.testing.assert_close(model.decode(normal)[0], model.decode_raw(raw)[0], rtol=1e-4, atol=1e-4)


def test_frames_stay_in_range_except_while_training() -> None:
    model, z_BTCHW = tiny(), torch.randn(1, 2, 4, 2, 2) * 50
    assert model.decode(z_BTCHW)[0].abs().max() == 1
    assert model.train().decode(z_BTCHW)[0].abs().max() > 1


def test_settings_build_the_same_model() -> None:
    assert TAEConfig(**tiny().settings) == TINY  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 4, 3, 16, 16), (1, 5, 3, 12, 16), (1, 5, 3, 16, 20)])
def test_a_clip_that_does_not_fit_is_one_clear_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"cannot encode {shape[1]} frames of {shape[4]}x{shape[3]}: .*trim or pad"):
        tiny().encode(torch.zeros(shape))


def test_rising_is_a_transposed_convolution_of_two_by_two() -> None:
    torch.manual_seed(0)
    rise, x_NCHW = Rise(6, 5), torch.randn(3, 6, 4, 7)
    weight, bias = rise[0].weight, rise[0].bias
    assert bias is not None
    # Every cell becomes 2x2 cells, each by a map of its own: the kernel of a transposed convolution of stride 2.
    kernel = weight.view(5, 2, 2, 6).permute(3, 0, 1, 2)
    expected = F.conv_transpose2d(x_NCHW, kernel, stride=2) + bias.view(5, 2, 2).repeat(1, 4, 7)
    torch.testing.assert_close(rise(x_NCHW), expected, rtol=1e-5, atol=1e-5)
