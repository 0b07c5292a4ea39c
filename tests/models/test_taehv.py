"""TAEHV under its public names: against the decoder written out frame by frame, and streamed = whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvid.models.taehv import TAEHV, TAEHVConfig, config_of

# Where the published decoder has layers with weights: [memory blocks], the growing layer, the convolution after it.
STAGES = (((3, 4, 5), 7, 8), ((9, 10, 11), 13, 14), ((15, 16, 17), 19, 20))
WIDTHS, GROWTH, LAST = (6, 5, 4, 3), (1, 2, 2), 22


def checkpoint(latent_channels: int = 16) -> dict[str, Tensor]:
    """Random weights under the public names, the layout of the published file at another width."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        fan = shape[1] * shape[2] * shape[3] if len(shape) == 4 else 9
        return torch.randn(*shape, generator=generator) * (2 / fan) ** 0.5

    found = {"decoder.1.weight": drawn(WIDTHS[0], latent_channels, 3, 3), "decoder.1.bias": drawn(WIDTHS[0])}
    for stage, (blocks, grow, after) in enumerate(STAGES):
        width = WIDTHS[stage]
        for place in blocks:
            for number, inputs in ((0, 2 * width), (2, width), (4, width)):
                found[f"decoder.{place}.conv.{number}.weight"] = drawn(width, inputs, 3, 3)
                found[f"decoder.{place}.conv.{number}.bias"] = drawn(width)
        found[f"decoder.{grow}.conv.weight"] = drawn(GROWTH[stage] * width, width, 1, 1)
        found[f"decoder.{after}.weight"] = drawn(WIDTHS[stage + 1], width, 3, 3)
    found[f"decoder.{LAST}.weight"] = drawn(3, WIDTHS[-1], 3, 3)
    found[f"decoder.{LAST}.bias"] = drawn(3) + 0.5
    found["encoder.0.weight"] = drawn(4, 3, 3, 3)
    return found


def plain(w: Mapping[str, Tensor], z_BTCHW: Tensor) -> Tensor:
    """The decoder one frame at a time, memory by memory, from the public names alone; pixels in [0, 1]."""
    seen: dict[int, Tensor] = {}
    frames: list[Tensor] = []

    def convolve(x: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def walk(x: Tensor, stage: int) -> None:
        if stage == len(STAGES):
            frames.append(convolve(F.relu(x), f"decoder.{LAST}").clamp(0, 1))
            return
        blocks, grow, after = STAGES[stage]
        for place in blocks:
            before = seen.get(place, torch.zeros_like(x))
            seen[place] = x
            y = torch.cat([x, before], 1)
            for number in (0, 2):
                y = F.relu(convolve(y, f"decoder.{place}.conv.{number}"))
            x = F.relu(convolve(y, f"decoder.{place}.conv.4") + x)
        wide = convolve(F.interpolate(x, scale_factor=2), f"decoder.{grow}.conv")
        for part in wide.chunk(GROWTH[stage], 1):
            walk(convolve(part, f"decoder.{after}"), stage + 1)

    for z_BCHW in z_BTCHW.unbind(1):
        walk(F.relu(convolve(torch.tanh(z_BCHW / 3) * 3, "decoder.1")), 0)
    return torch.stack(frames[3:], 1)


def latents(batch: int, frames: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(batch, frames, 16, 2, 3, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=8)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_streamed_in_any_split_is_the_decoder_frame_by_frame(parts: list[int]) -> None:
    weights, z_BTCHW = checkpoint(), latents(2, sum(parts))
    model, state, pieces = TAEHV.from_weights(weights), None, []
    for part in z_BTCHW.split(parts, 1):
        piece, state = model.decode(part, state)
        assert piece.shape[1] == 4 * part.shape[1] - (0 if pieces else 3)
        pieces.append(piece)
    found = torch.cat(pieces, 1)
    torch.testing.assert_close((found + 1) / 2, plain(weights, z_BTCHW), rtol=1e-5, atol=1e-4)
    assert found.std() > 0.1


def test_blocks_of_three_give_9_then_12_frames() -> None:
    model = TAEHV.from_weights(checkpoint())
    first, state = model.decode(latents(1, 3))
    kept = tuple(held.clone() for held in state)
    second, _ = model.decode(latents(1, 3), state)
    assert (first.shape, second.shape) == ((1, 9, 3, 16, 24), (1, 12, 3, 16, 24))
    assert all(map(torch.equal, state, kept))


def test_a_state_holds_one_frame_per_memory_block_and_nothing_else_alive() -> None:
    _, state = TAEHV.from_weights(checkpoint()).decode(latents(1, 3))
    assert len(state) == 9
    assert sum(held.numel() for held in state) == 3 * 6 * (6 + 5 * 4 + 4 * 16)
    assert all(held.untyped_storage().nbytes() == held.numel() * 4 for held in state)


def test_the_published_file_is_recognised_by_its_shapes() -> None:
    with torch.device("meta"):
        state = {f"decoder.{name}": value for name, value in TAEHV().decoder.state_dict().items()}
    renamed = {
        name.replace("decoder.layers.", "decoder.").replace("convolve", "conv").replace("split", "conv"): value
        for name, value in state.items()
    }
    assert config_of(renamed) == TAEHVConfig()
    assert set(renamed) == {name for name in checkpoint() if name.startswith("decoder.")}


def test_the_types_of_the_weights_are_kept() -> None:
    model = TAEHV.from_weights({name: value.bfloat16() for name, value in checkpoint().items()})
    frames, state = model.decode(latents(1, 1))
    assert {frames.dtype, *(held.dtype for held in state)} == {torch.bfloat16}
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_file_of_weights_is_read(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "taew2_1.pth")
    model = TAEHV.load(tmp_path / "taew2_1.pth")
    assert torch.equal(model.decode(latents(1, 1))[0], TAEHV.from_weights(checkpoint()).decode(latents(1, 1))[0])
    with pytest.raises(ValueError, match=r"no weights at .*nowhere"):
        TAEHV.load(tmp_path / "nowhere")


def test_other_weights_are_refused_with_what_is_wrong() -> None:
    weights = checkpoint()
    weights["decoder.23.bias"] = weights.pop("decoder.22.bias")
    with pytest.raises(ValueError, match=r"1 missing \['decoder.22.bias'\], 1 surplus \['decoder.23.bias'\]"):
        TAEHV.from_weights(weights)
    with pytest.raises(ValueError, match="0 stages among 0 decoder weights, expected 3"):
        TAEHV.from_weights({"blocks.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"decoder\.22\.weight missing"):
        TAEHV.from_weights({name: value for name, value in weights.items() if name != "decoder.22.weight"})
    other = {**checkpoint(), f"decoder.{LAST}.weight": torch.zeros(12, WIDTHS[-1], 3, 3)}
    with pytest.raises(ValueError, match=r"space 16 times is not one of Wan 2\.1's"):
        TAEHV.from_weights(other)
    model = TAEHV.from_weights(checkpoint())
    with pytest.raises(ValueError, match="1 latent frames of 4 channels; expected at least 1 frame of 16"):
        model.decode(latents(1, 1)[:, :, :4])
    with pytest.raises(ValueError, match="0 latent frames"):
        model.decode(latents(1, 0))
