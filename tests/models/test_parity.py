"""Our Wan against diffusers' and against a dense one written out in fp64, and the published step lists."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import Tensor

from arvid.models.checkpoints.families import FAMILIES, SIZES, partners, told_by
from arvid.models.checkpoints.maps import to_diffusers
from arvid.models.checkpoints.reading import settings_of, wan_from_state
from arvid.models.wan.presets import WAN_1_3B, WAN_14B
from arvid.models.wan.transformer import CausalWan
from arvid.rollout.replay import Recorded, Recording, replay
from arvid.samplers.grids import few_step
from arvid.samplers.timetable import Timetable
from arvid.types import Condition, Rotate, Span
from oracles import dense_wan
from oracles.dense_wan import CFG, weights

SHAPE = (2, 4, 4, 6)
"""Batch, channels, height, width of the recordings."""


class AllAtOnce:
    """A view of nothing, in which all frames of the pass see each other."""

    frames: tuple[int, ...] = ()

    def read(self, layer: int, rotate: Rotate) -> None:
        return None

    def mask(self, frames: tuple[int, ...]) -> None:
        return None


@pytest.fixture(scope="module")
def theirs() -> WanTransformer3DModel:
    torch.manual_seed(1)
    made = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=16, ffn_dim=80, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6,
        rope_max_seq_len=64,
    )  # fmt: skip
    return made.eval()


def same_flow(ours: CausalWan, theirs: WanTransformer3DModel) -> None:
    """One block at one timestep, on numbers of its own."""
    z_BTCHW, text_BLD, sigma = torch.randn(2, 3, 4, 6, 8), torch.randn(2, 7, 12), 0.625
    with torch.no_grad():
        expected = theirs(z_BTCHW.transpose(1, 2), torch.full((2,), 1000 * sigma), text_BLD, return_dict=False)[0]
        said = Condition("", text_BLD)
        found = ours(z_BTCHW, torch.full((2, 3), sigma), said, AllAtOnce(), Span(0, 3)).flow_BTCHW
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_their_weights_in_our_model(theirs: WanTransformer3DModel) -> None:
    same_flow(wan_from_state(theirs.state_dict(), settings_of(CFG)), theirs)


def test_our_weights_in_their_model(theirs: WanTransformer3DModel) -> None:
    held = weights(seed=4)
    theirs.load_state_dict({to_diffusers(name): value for name, value in held.items()}, strict=True)
    same_flow(wan_from_state(held, settings_of(CFG)), theirs)


def recording(timesteps: list[float], blocks: int = 3, shift: float = 5.0) -> tuple[Recording, Tensor]:
    """Random noise for a rollout, and the prompt as it is before padding."""
    batch, *sides = SHAPE
    noise, context = torch.randn(batch, 3 * blocks, *sides), torch.randn(5, CFG["text_dim"])
    renoise = torch.randn(blocks, len(timesteps) - 1, batch, 3, *sides)
    text = torch.nn.functional.pad(context, (0, 0, 0, CFG["text_len"] - 5))[None]
    return Recording(noise, renoise, text, tuple(timesteps), shift), context


@pytest.mark.parametrize(
    ("timesteps", "shift", "window"),
    [
        ([1000, 937.5, 2500 / 3, 625], 5.0, None),
        ([1000, 937.5, 2500 / 3, 625, 0], 5.0, 6),
        ([1000, 757, 522], 8.0, None),
        ([1000, 750, 500, 250], 5.0, 7),
        ([1000, 600], 5.0, 3),
        ([1000], 5.0, 100),
    ],
)
def test_a_cached_rollout_is_the_dense_one(timesteps: list[float], shift: float, window: int | None) -> None:
    held = weights(seed=2)
    given, context = recording(timesteps, shift=shift)
    found = replay(wan_from_state(held, settings_of(CFG)), given, window)
    noise, renoise = given.noise_BTCHW, given.renoise_NSBFCHW
    expected = dense_wan.roll(held, CFG, noise, renoise, context, timesteps, shift, window or 10**6)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_window_and_the_timestep_are_felt() -> None:
    """What the comparison above would not show if nothing depended on them."""
    model = wan_from_state(weights(seed=2), settings_of(CFG))
    given, _ = recording([1000, 757])
    whole, narrow = replay(model, given), replay(model, given, 6)
    torch.testing.assert_close(whole[:, :6], narrow[:, :6])
    assert (whole[:, 6:] - narrow[:, 6:]).abs().max() > 1e-2
    told = Recording(given.noise_BTCHW, given.renoise_NSBFCHW, given.text_BLD, (1000, Timetable().nearest(757) * 1000))
    assert (replay(model, told) - whole).abs().max() > 1e-3


def test_a_recording_answers_what_it_holds_and_nothing_else() -> None:
    given, _ = recording([1000, 500])
    noise = Recorded(given)
    assert torch.equal(noise.draw(1, 0, (2, 3, *SHAPE[1:])), given.noise_BTCHW[:, 3:6])
    assert torch.equal(noise.draw(2, 1, (2, 3, *SHAPE[1:])), given.renoise_NSBFCHW[2, 0])
    with pytest.raises(ValueError, match="step 2 of block 0 is not recorded"):
        noise.draw(0, 2, (2, 3, *SHAPE[1:]))
    with pytest.raises(ValueError, match=r"\[2, 2, 4, 4, 6\] asked for"):
        noise.draw(0, 0, (2, 2, *SHAPE[1:]))


def test_a_recording_must_fit_itself() -> None:
    given, _ = recording([1000, 500])
    noise, renoise, text = given.noise_BTCHW, given.renoise_NSBFCHW, given.text_BLD
    with pytest.raises(ValueError, match=r"expected \[3, 2, 2, 3, 4, 4, 6\]"):
        Recording(noise, renoise, text, (1000, 500, 250))
    with pytest.raises(ValueError, match="whole blocks of 3"):
        Recording(noise[:, :8], renoise[:2], text, (1000, 500))
    with pytest.raises(ValueError, match="blocks, steps - 1, B, frames"):
        Recording(noise[0], renoise, text, (1000, 500))
    with pytest.raises(ValueError, match="expected \\[1 or 2, L, D\\]"):
        Recording(noise, renoise, text[0], (1000, 500))
    with pytest.raises(ValueError, match="a window of 2 frames is smaller than a block of 3"):
        replay(wan_from_state(weights(), settings_of(CFG)), given, 2)


# ---------------------------------------------------------------- step lists


def test_the_published_lists() -> None:
    table = Timetable()
    expected = [1000, 937.5, 833.3333, 625]
    assert table.warped([1000, 750, 500, 250]) == pytest.approx(expected, abs=1e-4)
    assert table.levels(expected) == pytest.approx((1, 0.9375, 0.83333, 0.625, 0), abs=1e-5)
    assert table.levels(expected)[:-1] == pytest.approx(few_step(4)[:-1], abs=1e-6)
    assert table.levels([1000, 0]) == pytest.approx((1, 0.00498, 0), abs=1e-5)
    assert table.warped([1000, 0]) == (1000, 0)
    for name in ("self-forcing", "longlive", "krea"):
        assert FAMILIES[name].timesteps[:4] == pytest.approx(expected, abs=1e-4)
    assert FAMILIES["krea"].timesteps[4:] == (0,)
    assert Timetable(8.0).levels(FAMILIES["causvid"].timesteps) == pytest.approx((1, 0.756757, 0.521739, 0), abs=1e-5)


@pytest.mark.parametrize("shift", [5.0, 8.0])
def test_the_table_is_the_schedulers(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    assert Timetable(shift).sigmas == pytest.approx(theirs.sigmas[:1000].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("timesteps", "said"),
    [([], "at least one"), ([1001], "between 0 and 1000"), ([500, 500], "must fall"), ([1000, 4, 0], "must fall")],
)
def test_a_list_that_is_no_walk(timesteps: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Timetable().levels(timesteps)
    with pytest.raises(ValueError, match="between 0 and 1000"):
        Timetable().warped([1001])
    with pytest.raises(ValueError, match="above 0"):
        Timetable(0.0)


def test_what_goes_together() -> None:
    assert partners(WAN_1_3B) == [("target", "krea")]
    assert partners(WAN_14B) == [
        ("drafter", name) for name in ("self-forcing", "causvid", "longlive", "causal-forcing")
    ]
    assert partners(settings_of(CFG)) == []
    assert set(SIZES) == set(FAMILIES)
    assert told_by(frozenset()) == ("wan-2.1",)
