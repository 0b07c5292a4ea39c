"""The Wan autoencoder against diffusers' own whole decode and encode: streamed = whole, and a state that is a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.wan.vae import WanAutoencoder
from arvid.types import Decoder, DecoderState

TINY: dict[str, Any] = {"base_dim": 4, "num_res_blocks": 1}
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def diffusers_model(seed: int = 0, **more: Any) -> AutoencoderKLWan:
    """Random weights; the same seed, the same model."""
    torch.manual_seed(seed)
    return AutoencoderKLWan(**{**TINY, **more}).eval().requires_grad_(False)


def latents(batch: int, frames: int, side: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, frames, 16, side, side + 1, generator=torch.Generator().manual_seed(seed))


def whole(z_BTCHW: Tensor) -> Tensor:
    """What diffusers' pipeline gives for normalised latents: its own decode of all of them at once."""
    std, mean = torch.tensor(STD).view(1, 16, 1, 1, 1), torch.tensor(MEAN).view(1, 16, 1, 1, 1)
    v_BCTHW: Tensor = diffusers_model().decode(z_BTCHW.permute(0, 2, 1, 3, 4) * std + mean).sample
    return v_BCTHW.permute(0, 2, 1, 3, 4)


def streamed(model: Decoder, z_BTCHW: Tensor, parts: list[int]) -> tuple[list[Tensor], DecoderState]:
    state, pieces = None, []
    for part in z_BTCHW.split(parts, 1):
        piece, state = model.decode(part, state)
        pieces.append(piece)
    assert state is not None
    return pieces, state


@pytest.fixture(scope="module")
def vae() -> WanAutoencoder:
    return WanAutoencoder(diffusers_model())


@settings(max_examples=8)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_streamed_in_any_split_is_the_whole_decode_of_diffusers(parts: list[int]) -> None:
    z_BTCHW = latents(2, sum(parts))
    pieces, _ = streamed(WanAutoencoder(diffusers_model()), z_BTCHW, parts)
    assert [piece.shape[1] for piece in pieces] == [4 * n - (3 if i == 0 else 0) for i, n in enumerate(parts)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole(z_BTCHW), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [[1, 1, 2], [3, 1]])
def test_streamed_is_whole_at_8x8_latents(vae: WanAutoencoder, parts: list[int]) -> None:
    z_BTCHW = latents(1, 4, side=8)
    pieces, _ = streamed(vae, z_BTCHW, parts)
    torch.testing.assert_close(torch.cat(pieces, 1), whole(z_BTCHW), rtol=1e-5, atol=1e-5)


def test_the_split_leaves_no_trace_in_the_state(vae: WanAutoencoder) -> None:
    z_BTCHW = latents(1, 5)
    (_, one), (_, many) = streamed(vae, z_BTCHW, [5]), streamed(vae, z_BTCHW, [1, 3, 1])
    assert len(one) == len(many)
    for ours, expected in zip(many, one, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_blocks_of_three_give_9_then_12_frames(vae: WanAutoencoder) -> None:
    pieces, _ = streamed(vae, latents(1, 12), [3, 3, 3, 3])
    assert [tuple(piece.shape) for piece in pieces] == [(1, n, 3, 16, 24) for n in (9, 12, 12, 12)]


def test_the_published_size_keeps_what_its_authors_state() -> None:
    """At 832x480 the original's decoder keeps 32 feature maps of 944,286,720 numbers together."""
    with torch.device("meta"):
        model = WanAutoencoder.build({})
        frames, state = model.decode(torch.empty(1, 3, 16, 60, 104))
    assert frames.shape == (1, 9, 3, 480, 832)
    assert (len(state), sum(held.numel() for held in state)) == (32, 944_286_720)


def test_frames_are_clamped_as_a_decoder_must(vae: WanAutoencoder) -> None:
    z_BTCHW = latents(1, 3) * 1e3
    for piece in streamed(vae, z_BTCHW, [1, 2])[0]:
        assert piece.abs().max() <= 1
    loud = WanAutoencoder(diffusers_model())
    loud.model.decoder.conv_out.bias.add_(5.0)
    assert (loud.decode(z_BTCHW)[0] == 1).all()


def test_the_past_matters_to_the_next_frames(vae: WanAutoencoder) -> None:
    block = latents(1, 2, seed=2)
    _, one = vae.decode(latents(1, 3, seed=3))
    _, other = vae.decode(latents(1, 3, seed=4))
    assert (vae.decode(block, one)[0] - vae.decode(block, other)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("before", [0, 1, 2, 4])
def test_a_state_is_a_value(vae: WanAutoencoder, before: int) -> None:
    state = vae.decode(latents(1, before))[1] if before else None
    kept = tuple(held.clone() for held in state or ())
    draft, target = latents(1, 3, seed=5), latents(1, 3, seed=6)
    first, after_first = vae.decode(draft, state)
    middle, _ = vae.decode(target, state)
    again, after_again = vae.decode(draft, state)
    assert not torch.equal(first, middle)
    assert torch.equal(first, again)
    assert all(map(torch.equal, after_first, after_again))
    assert all(map(torch.equal, state or (), kept))


def test_a_state_is_tensors_and_frames_share_no_memory_with_it(vae: WanAutoencoder) -> None:
    _, state = vae.decode(latents(1, 1))
    assert isinstance(state, tuple) and all(isinstance(held, Tensor) for held in state)
    assert sum(held.numel() == 0 for held in state) == 2  # both temporal upsamplers have only repeated so far
    frames, state = vae.decode(latents(1, 1, seed=2), state)
    assert all(held.numel() for held in state)
    after = vae.decode(latents(1, 1, seed=3), state)[0]
    frames.fill_(9.0)
    assert torch.equal(after, vae.decode(latents(1, 1, seed=3), state)[0])


def test_two_streams_and_the_models_own_decode_do_not_meet(vae: WanAutoencoder) -> None:
    one, other = latents(1, 4, seed=7), latents(1, 4, seed=8)
    _, state = vae.decode(one[:, :2])
    _, between = vae.decode(other[:, :2])
    vae.model.decode(other.transpose(1, 2))
    pieces = [vae.decode(one[:, 2:], state)[0], vae.decode(other[:, 2:], between)[0]]
    for piece, z_BTCHW in zip(pieces, (one, other), strict=True):
        torch.testing.assert_close(piece, whole(z_BTCHW)[:, 5:], rtol=1e-5, atol=1e-5)


def test_a_batch_is_its_clips_one_by_one(vae: WanAutoencoder) -> None:
    z_BTCHW = latents(3, 5)
    together = torch.cat(streamed(vae, z_BTCHW, [2, 3])[0], 1)
    alone = [torch.cat(streamed(vae, z_1TCHW, [2, 3])[0], 1) for z_1TCHW in z_BTCHW.split(1)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_encode_is_the_normalised_mode_of_diffusers(vae: WanAutoencoder, frames: int) -> None:
    v_BTCHW = torch.rand(2, frames, 3, 16, 24) * 2 - 1
    z_BCTHW = diffusers_model().encode(v_BTCHW.transpose(1, 2)).latent_dist.mode()
    expected = [(z_BCTHW[:, c] - MEAN[c]) / STD[c] for c in range(16)]
    z_BTCHW = vae.encode(v_BTCHW)
    assert z_BTCHW.shape == (2, 1 + (frames - 1) // 4, 16, 2, 3)
    torch.testing.assert_close(z_BTCHW, torch.stack(expected, 2), rtol=1e-5, atol=1e-5)
    assert vae.decode(z_BTCHW)[0].shape == v_BTCHW.shape


def test_half_precision_goes_through(vae: WanAutoencoder) -> None:
    model = WanAutoencoder(diffusers_model()).to(torch.bfloat16)
    z_BTCHW = latents(1, 3)
    pieces, state = streamed(model, z_BTCHW, [1, 2])
    assert {held.dtype for held in (*pieces, *state)} == {torch.bfloat16}
    assert (torch.cat(pieces, 1).float() - vae.decode(z_BTCHW)[0]).abs().mean() < 0.02
    assert model.encode(torch.zeros(1, 1, 3, 8, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 8, 8), (0, 8, 8), (5, 12, 8), (5, 8, 9), (5, 0, 8)])
def test_a_clip_that_does_not_fit_is_refused_with_its_numbers(
    vae: WanAutoencoder, frames: int, height: int, width: int
) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames of {width}x{height}.*trim or pad"):
        vae.encode(torch.zeros(1, frames, 3, height, width))


def test_latents_that_do_not_fit_are_refused_with_their_numbers(vae: WanAutoencoder) -> None:
    with pytest.raises(ValueError, match="0 latent frames of 16 channels"):
        vae.decode(latents(1, 0))
    with pytest.raises(ValueError, match=r"2 latent frames of 4 channels.*of 16 channels"):
        vae.decode(latents(1, 2)[:, :, :4])
    _, state = vae.decode(latents(1, 1))
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) cannot go on with latents of \(2, 2, 3\)"):
        vae.decode(latents(2, 1), state)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) cannot go on with latents of \(1, 4, 5\)"):
        vae.decode(latents(1, 1, side=4), state)
    foreign = TinyAutoencoder(TAEConfig(16, (4, 4, 4), (4, 4, 4))).decode(latents(1, 1))[1]
    for wrong in ((), foreign):
        with pytest.raises(ValueError, match="cannot go on"):
            vae.decode(latents(1, 1), wrong)


def test_build_makes_the_published_statistics_and_takes_a_config_json(tmp_path: Path) -> None:
    diffusers_model().save_pretrained(tmp_path)
    model = WanAutoencoder.build(json.loads((tmp_path / "config.json").read_text()))
    assert model.latent_mean.tolist() == pytest.approx(MEAN)
    assert model.latent_std.tolist() == pytest.approx(STD)
    assert not model.training
    own = WanAutoencoder.build({**TINY, "z_dim": 2, "latents_mean": [1.0, 2.0], "latents_std": [3.0, 4.0]})
    assert own.decode(torch.zeros(1, 1, 2, 1, 1))[0].shape == (1, 1, 3, 8, 8)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"is_residual": True}, "Wan 2.2"),
        ({"patch_size": 2}, "Wan 2.2"),
        ({"temperal_downsample": [False, False, True]}, "shrinks time 2 and space 8 times; expected 4 and 8"),
        ({"dim_mult": [1, 2, 4]}, "space 4 times"),
        ({"z_dim": 4}, "latents_mean has 16 values for 4"),
        ({"latents_std": [1.0]}, "latents_std has 1 values for 16"),
        ({"base_dims": 4}, "base_dims"),
    ],
)
def test_settings_of_another_kind_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WanAutoencoder.build({**TINY, **more})


def test_a_given_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="latents_mean has 16 values for 4"):
        WanAutoencoder(diffusers_model(z_dim=4))


@pytest.fixture
def saved(vae: WanAutoencoder, tmp_path: Path) -> Path:
    vae.model.save_pretrained(tmp_path)
    return tmp_path


def test_load_reads_what_diffusers_saves(vae: WanAutoencoder, saved: Path) -> None:
    model = WanAutoencoder.load(saved)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model.decode(latents(1, 3))[0], vae.decode(latents(1, 3))[0])


def test_weights_stored_in_half_precision_load_in_single(vae: WanAutoencoder, tmp_path: Path) -> None:
    diffusers_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in WanAutoencoder.load(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_missing_or_damaged_file_is_named(saved: Path, name: str) -> None:
    path = saved / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"damaged.*fetch it again") as found:
        WanAutoencoder.load(saved)
    assert "\n" not in str(found.value)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        WanAutoencoder.load(saved)


def test_pickled_weights_are_not_read(saved: Path) -> None:
    weights = saved / "diffusion_pytorch_model.safetensors"
    torch.save({}, saved / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="safetensors only"):
        WanAutoencoder.load(saved)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"_class_name": "AutoencoderKL"}, "describes AutoencoderKL, expected AutoencoderKLWan"),
        ({"num_res_blocks": 2}, "damaged"),
        ({"is_residual": True}, "Wan 2.2's kind"),
        ({"latents_mean": 5}, "damaged"),
        ({"base_dim": 8}, r"damaged .*size mismatch for encoder"),
    ],
)
def test_a_config_of_other_weights_is_refused(saved: Path, more: dict[str, Any], said: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    with pytest.raises(ValueError, match=said) as found:
        WanAutoencoder.load(saved)
    assert "\n" not in str(found.value)


def test_missing_and_surplus_weights_are_counted_and_named(saved: Path) -> None:
    path = saved / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["stranger"] = weights.pop("quant_conv.bias")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing \['quant_conv.bias'\], 1 surplus \['stranger'\]; fetch both"):
        WanAutoencoder.load(saved)


def original(model: AutoencoderKLWan, blocks: int = 1) -> dict[str, Tensor]:
    """The weights as the original file names them, written by hand: its layers are numbered from first to last."""
    state, found = dict(model.state_dict()), {}
    residual = {"norm1.gamma": "0.gamma", "conv1.weight": "2.weight", "conv1.bias": "2.bias", "norm2.gamma": "3.gamma",
                "conv2.weight": "6.weight", "conv2.bias": "6.bias"}  # fmt: skip

    def move(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias", "gamma"):
            if f"{ours}.{kind}" in state:
                found[f"{theirs}.{kind}"] = state.pop(f"{ours}.{kind}").clone()

    def block(ours: str, theirs: str) -> None:
        for here, there in residual.items():
            found[f"{theirs}.residual.{there}"] = state.pop(f"{ours}.{here}").clone()
        move(f"{ours}.conv_shortcut", f"{theirs}.shortcut")

    def scale(ours: str, theirs: str) -> None:
        move(f"{ours}.resample.1", f"{theirs}.resample.1")
        move(f"{ours}.time_conv", f"{theirs}.time_conv")

    move("quant_conv", "conv1")
    move("post_quant_conv", "conv2")
    for side in ("encoder", "decoder"):
        move(f"{side}.conv_in", f"{side}.conv1")
        move(f"{side}.norm_out", f"{side}.head.0")
        move(f"{side}.conv_out", f"{side}.head.2")
        block(f"{side}.mid_block.resnets.0", f"{side}.middle.0")
        for part in ("norm", "to_qkv", "proj"):
            move(f"{side}.mid_block.attentions.0.{part}", f"{side}.middle.1.{part}")
        block(f"{side}.mid_block.resnets.1", f"{side}.middle.2")
    place = 0
    for level in range(4):
        for _ in range(blocks):
            block(f"encoder.down_blocks.{place}", f"encoder.downsamples.{place}")
            place += 1
        if level < 3:
            scale(f"encoder.down_blocks.{place}", f"encoder.downsamples.{place}")
            place += 1
    place = 0
    for level in range(4):
        for number in range(blocks + 1):
            block(f"decoder.up_blocks.{level}.resnets.{number}", f"decoder.upsamples.{place}")
            place += 1
        if level < 3:
            scale(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.upsamples.{place}")
            place += 1
    assert not state
    return found


@pytest.mark.parametrize("blocks", [1, 2])
def test_original_names_load_to_the_same_model_and_go_back(blocks: int, tmp_path: Path) -> None:
    theirs = diffusers_model(num_res_blocks=blocks)
    weights = original(theirs, blocks)
    model = WanAutoencoder.from_weights(weights)
    assert {name: value.data_ptr() for name, value in model.to_original().items()} == {
        name: value.data_ptr() for name, value in weights.items()
    }
    back = model.model.state_dict()
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    torch.save(weights, tmp_path / "Wan2.1_VAE.pth")
    for read in (model, WanAutoencoder.load(tmp_path / "Wan2.1_VAE.pth")):
        assert torch.equal(read.decode(latents(1, 2))[0], WanAutoencoder(theirs).decode(latents(1, 2))[0])


def test_original_names_are_those_diffusers_reads() -> None:
    """At the published depth, diffusers' own reading of the original file arrives where ours does."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.device("meta"):
        model = WanAutoencoder.build({})
    theirs = convert_wan_vae_to_diffusers(model.to_original())
    wanted = {name: value.shape for name, value in model.model.state_dict().items()}
    assert {name: value.shape for name, value in theirs.items()} == wanted


def test_original_weights_keep_their_type_and_wrong_ones_are_named() -> None:
    weights = {name: value.bfloat16() for name, value in original(diffusers_model()).items()}
    assert WanAutoencoder.from_weights(weights).decode(latents(1, 1))[0].dtype == torch.bfloat16
    weights["stranger"] = weights.pop("decoder.upsamples.2.resample.1.bias")
    with pytest.raises(ValueError, match=r"1 missing \['decoder.upsamples.2.resample.1.bias'\], 1 surplus") as found:
        WanAutoencoder.from_weights(weights)
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"'conv2.weight'.* missing among 1; pass the autoencoder"):
        WanAutoencoder.from_weights({"encoder.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="latents_mean has 16 values for 4"):
        WanAutoencoder.from_weights(original(diffusers_model(z_dim=4)))
