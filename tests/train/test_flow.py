"""Teacher forcing: who sees whom by brute force, training = inference, and a loss whose value is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from arvid.caches.full import Full
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.train.flow import FlowBatch, TeacherForcing, groups
from arvid.types import Condition, Estimate, Span, View

BLOCK, FRAMES, CHANNELS, SIDE = 3, 11, 4, 4
TIED = {"noisy_past": 0.0, "rough_past": 0.0}


def may_look(frame: int, key: int, block: int, window: int, sink: int) -> bool:
    start = frame // block * block
    return key // block == frame // block or (key < start and (key >= start - window or key < sink))


@given(st.integers(1, 14), st.integers(1, 4), st.integers(1, 9), st.integers(0, 4))
def test_the_mask_is_what_blocks_may_see(frames: int, block: int, window: int, sink: int) -> None:
    expected = [[may_look(f, k, block, window, sink) for k in range(frames)] for f in range(frames)]
    places = tuple(range(frames))
    mask = TeacherForcing(wan(), frames, block, Window(window, sink)).passes.view.mask(places)
    everywhere = torch.ones(frames, frames, dtype=torch.bool)
    assert (everywhere if mask is None else mask).tolist() == expected


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 9), st.integers(0, 4))
def test_blocks_that_share_a_pass_see_the_same_distances(frames: int, block: int, window: int, sink: int) -> None:
    made = groups(frames, block, Window(window, sink))
    assert sorted(start for group in made for start, _ in group) == list(range(0, frames, block))
    for group in made:
        for start, past in group:
            assert list(past) == [f for f in range(start) if may_look(start, f, block, window, sink)]
        assert len({(min(block, frames - start), tuple(start - f for f in past)) for start, past in group}) == 1


# ---------------------------------------------------------------- training = inference


def wan(seed: int = 0) -> CausalWan:
    torch.manual_seed(seed)
    config = WanConfig(24, 48, 2, 2, 8, 5, CHANNELS, CHANNELS, 16)
    model = CausalWan(config).eval()
    with torch.no_grad():
        for layer in range(2):
            model.get_parameter(f"blocks.{layer}.self_attn.norm_q.weight").mul_(3)
            model.get_parameter(f"blocks.{layer}.self_attn.o.weight").mul_(3)
    return model


@pytest.mark.parametrize("policy", [Full(), Window(3), Window(4, sink=2)], ids=str)
def test_training_computes_what_a_cached_rollout_computes(policy: Policy) -> None:
    """The same clean (or noised) past and the same noisy block: one layout in training, a store in a rollout."""
    model = wan()
    past, mixed = torch.randn(2, 2, FRAMES, CHANNELS, SIDE, SIDE)
    text = torch.randn(2, 5, 8)
    levels = torch.rand(2, 2, 4).repeat_interleave(BLOCK, 2)[:, :, :FRAMES]
    past_sigma, sigma = levels[0] * torch.tensor([[0.0], [1.0]]), levels[1]
    objective = TeacherForcing(model, FRAMES, BLOCK, policy)
    store, condition = Store(policy, BLOCK), Condition("words", text)
    with torch.no_grad():
        trained = objective.passes(past, past_sigma, mixed, sigma, text)
        for start in range(0, FRAMES, BLOCK):
            span = Span(start, min(start + BLOCK, FRAMES))
            part = slice(span.start, span.stop)
            view = store.view(span)
            rolled = model(mixed[:, part], sigma[:, part], condition, view, span).flow_BTCHW
            torch.testing.assert_close(trained[:, part], rolled, rtol=1e-5, atol=1e-5)
            store.commit(span, model(past[:, part], past_sigma[:, part], condition, view, span).memory)


def test_a_step_draws_one_of_several_policies() -> None:
    model, policies = wan(), (Window(3), Window(6), Full())
    batch = FlowBatch(torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE), torch.randn(2, 5, 8))
    varied = TeacherForcing(model, FRAMES, BLOCK, *policies)
    drawn = []
    with torch.no_grad():
        for seed in range(12):
            generator = torch.Generator().manual_seed(seed)
            which = int(torch.randint(3, (), generator=generator))
            alone = TeacherForcing(model, FRAMES, BLOCK, policies[which])(batch, generator)["loss"]
            assert torch.equal(varied(batch, torch.Generator().manual_seed(seed))["loss"], alone)
            drawn.append(which)
    assert set(drawn) == {0, 1, 2}


def test_every_weight_learns_in_fp32_though_passes_run_in_half_precision() -> None:
    model = wan()
    objective = TeacherForcing(model, FRAMES, BLOCK, Full())
    batch = FlowBatch(torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE), torch.randn(2, 5, 8))
    objective(batch, torch.Generator().manual_seed(0))["loss"].backward()
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()


def test_the_objective_is_a_function_of_its_generator() -> None:
    objective = TeacherForcing(wan(), FRAMES, BLOCK, Window(3))
    batch = FlowBatch(torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE), torch.randn(2, 5, 8))
    with torch.no_grad():
        losses = [objective(batch, torch.Generator().manual_seed(seed))["loss"] for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


# ---------------------------------------------------------------- a loss whose value is known


class Toy(nn.Module):
    """Answers x * scale / sigma (the exact flow of a clip that is zero everywhere) and remembers what it was asked."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.asked: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []

    def read_text(self, text_BSD: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return ()

    def flow(
        self,
        z_BTCHW: Tensor,
        sigma_BT: Tensor,
        context: tuple[tuple[Tensor, Tensor], ...],
        view: View,
        frames: tuple[int, ...],
    ) -> Estimate:
        self.asked.append((z_BTCHW, sigma_BT, frames))
        return Estimate(z_BTCHW * self.scale.float() / sigma_BT[:, :, None, None, None].clamp(1e-6), ())


def zeros(size: int = 64) -> FlowBatch:
    return FlowBatch(torch.zeros(size, FRAMES, CHANNELS, SIDE, SIDE), torch.zeros(size, 5, 8))


def test_the_exact_flow_has_no_loss_and_none_has_the_variance_of_noise() -> None:
    right, wrong = (
        TeacherForcing(Toy(scale), FRAMES, BLOCK, Full())(zeros(), torch.Generator().manual_seed(0))
        for scale in (1.0, 0.0)
    )
    assert float(right["loss"].detach()) < 1e-6
    assert float(wrong["loss"].detach()) == pytest.approx(1.0, abs=0.02)
    assert float(wrong["first"]) == pytest.approx(1.0, abs=0.05)
    assert right["loss"].requires_grad
    assert not right["first"].requires_grad


def test_the_target_of_the_flow_is_noise_minus_clean() -> None:
    clip = torch.full((64, FRAMES, CHANNELS, SIDE, SIDE), 3.0)
    objective = TeacherForcing(Toy(0.0), FRAMES, BLOCK, Full())
    loss = objective(FlowBatch(clip, torch.zeros(64, 5, 8)), torch.Generator().manual_seed(0))["loss"]
    assert float(loss.detach()) == pytest.approx(1 + 3**2, abs=0.1)


def test_frames_before_what_the_text_tells_are_not_learned() -> None:
    """Clips are 3 where nothing is to be learned and 0 behind: a model that says no flow pays for noise alone."""
    begins = torch.tensor([BLOCK, 2 * BLOCK] * 64)
    clip = 3.0 * (torch.arange(FRAMES) < begins[:, None]).float()
    clip = clip[:, :, None, None, None].expand(-1, -1, CHANNELS, SIDE, SIDE)
    objective = TeacherForcing(Toy(0.0), FRAMES, BLOCK, Full())
    loss = objective(FlowBatch(clip, torch.zeros(128, 5, 8), begins_B=begins), torch.Generator().manual_seed(0))["loss"]
    assert float(loss.detach()) == pytest.approx(1.0, abs=0.02)


def asked(size: int = 128, **options: float) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """((past, level told), level of each noisy block [size, blocks]) of one call on zeros."""
    toy = Toy(0.0)
    objective = TeacherForcing(toy, FRAMES, BLOCK, Window(3), **options)
    objective(zeros(size), torch.Generator().manual_seed(4))
    past, told, frames = toy.asked[0]
    assert frames == tuple(range(FRAMES))
    levels = [sigma.unflatten(0, (size, -1)) for _, sigma, _ in toy.asked[1:]]
    for level in levels:
        assert (level == level[..., :1]).all(), "one level per block"
    return (past, told), torch.cat([level[..., 0] for level in levels], 1)


def test_every_clip_has_one_block_in_each_part_of_the_walk() -> None:
    _, sigma = asked(shift=5.0)
    tau = sigma / (5 - 4 * sigma)
    blocks = -(-FRAMES // BLOCK)
    assert ((tau.sort(1).values * blocks).floor().clamp(max=blocks - 1) == torch.arange(blocks)).float().mean() > 0.999
    assert tau.mean(0).sub(0.5).abs().max() < 0.1, "no block has levels of its own"


def spread(past: Tensor) -> Tensor:
    """Standard deviation per clip and block of a noised clip of zeros: the noise level really used."""
    cut = [part.flatten(1).square().mean(1).sqrt() for part in past.split(BLOCK, 1)]
    return torch.stack(cut, 1)


def per_block(told: Tensor) -> Tensor:
    assert all((part == part[:, :1]).all() for part in told.split(BLOCK, 1))
    return told[:, ::BLOCK]


def test_a_clean_past_is_clean_and_told_so() -> None:
    (past, told), _ = asked(**TIED)
    assert (past == 0).all()
    assert (told == 0).all()


def test_a_noisy_past_is_told_its_level() -> None:
    (past, told), _ = asked(noisy_past=1.0, rough_past=1.0, past_level=0.85)
    level = per_block(told)
    torch.testing.assert_close(spread(past), level, rtol=0.35, atol=0.01)
    assert 0.75 < float(level.max()) <= 0.85
    assert float(level.mean()) == pytest.approx(0.85 / 2, abs=0.05)


def test_a_rough_past_is_not_told() -> None:
    (past, told), _ = asked(noisy_past=0.0, rough_past=1.0, rough_level=0.12)
    assert (told == 0).all()
    assert 0.1 < float(spread(past).max()) < 0.17
    assert float(spread(past).mean()) == pytest.approx(0.06, abs=0.01)


def test_shares_are_shares_of_clips() -> None:
    (past, told), _ = asked(1000, noisy_past=0.3, rough_past=0.5)
    noisy = (told > 0).any(1)
    rough = (past != 0).flatten(1).any(1) & ~noisy
    assert float(noisy.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float(rough.float().mean()) == pytest.approx(0.5 * 0.7, abs=0.05)
