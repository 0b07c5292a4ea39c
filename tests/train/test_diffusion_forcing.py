"""Diffusion forcing: the pass of training against a cached rollout, the law of levels, a loss whose value is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from arvid.caches.full import Full
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.train.diffusion_forcing import DiffusionForcing
from arvid.train.flow import FlowBatch, joint
from arvid.train.scores import CausalScore, JointScore
from arvid.types import Condition, Estimate, Span, View

BLOCK, FRAMES, CHANNELS, SIDE = 3, 11, 4, 4


def wan() -> CausalWan:
    model = CausalWan(WanConfig(24, 48, 2, 2, 8, 5, CHANNELS, CHANNELS, 16)).eval()
    with torch.no_grad():
        for layer in range(2):
            model.get_parameter(f"blocks.{layer}.self_attn.norm_q.weight").mul_(3)
            model.get_parameter(f"blocks.{layer}.self_attn.o.weight").mul_(3)
    return model


@pytest.mark.parametrize("policy", [Full(), Window(3), Window(4, sink=2)], ids=str)
def test_training_computes_what_a_rollout_with_noisy_commits_computes(policy: Policy) -> None:
    """One pass over all noisy blocks in training; block by block, each committed at its own level, in a rollout."""
    model, text = wan(), torch.randn(2, 5, 8)
    mixed = torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE)
    sigma = torch.rand(2, 4).repeat_interleave(BLOCK, 1)[:, :FRAMES]
    store = Store(policy, BLOCK)
    with torch.no_grad():
        trained = joint(model, mixed, sigma, text, JointScore(model, FRAMES, BLOCK, policy).view)
        for start in range(0, FRAMES, BLOCK):
            span = Span(start, min(start + BLOCK, FRAMES))
            part = slice(span.start, span.stop)
            rolled = model(mixed[:, part], sigma[:, part], Condition("words", text), store.view(span), span)
            torch.testing.assert_close(trained[:, part], rolled.flow_BTCHW, rtol=1e-5, atol=1e-5)
            store.commit(span, rolled.memory)


def test_what_a_score_looks_at() -> None:
    """Causal: clean blocks before and the noisy block itself. Joint: noisy blocks only; all of them if one block."""
    model, text = wan(), torch.randn(1, 5, 8)
    clean, x, sigma = torch.randn(1, 9, CHANNELS, SIDE, SIDE), torch.randn(1, 9, CHANNELS, SIDE, SIDE), torch.rand(1, 9)
    other = torch.randn(1, 3, CHANNELS, SIDE, SIDE)
    clean2, x2 = torch.cat([clean[:, :3], other, clean[:, 6:]], 1), torch.cat([x[:, :3], other, x[:, 6:]], 1)
    seen: dict[str, list[list[bool]]] = {}
    scores = {"causal": CausalScore(model, 9, 3, Full()), "joint": JointScore(model, 9, 3, Full()),
              "whole": JointScore(model, 9, 9, Full())}  # fmt: skip
    with torch.no_grad():
        for name, score in scores.items():
            before = score(clean, x, sigma, text)
            changed = [before != score(clean2, x, sigma, text), before != score(clean, x2, sigma, text)]
            seen[name] = [[bool(part.any()) for part in change.split(3, 1)] for change in changed]
    assert seen == {
        "causal": [[False, False, True], [False, True, False]],
        "joint": [[False, False, False], [False, True, True]],
        "whole": [[False, False, False], [True, True, True]],
    }


def test_every_weight_learns_and_the_loss_is_a_function_of_the_generator() -> None:
    model = wan()
    objective = DiffusionForcing(model, FRAMES, BLOCK, Window(3))
    firsts = torch.randn(4, BLOCK, CHANNELS, SIDE, SIDE), torch.randn(4, 5, 8)
    batch = FlowBatch(torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE), torch.randn(2, 5, 8), firsts)
    losses = [objective(batch, torch.Generator().manual_seed(seed))["loss"] for seed in (1, 1, 2)]
    losses[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


class Toy(nn.Module):
    """Answers x * scale / sigma (the exact flow of a clip that is zero everywhere), remembers levels and answers."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.asked: list[tuple[Tensor, Tensor]] = []

    def read_text(self, text_BSD: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return ()

    def flow(self, z_BTCHW: Tensor, sigma_BT: Tensor, context: object, view: View, frames: tuple[int, ...]) -> Estimate:
        answer = (z_BTCHW * self.scale / sigma_BT[:, :, None, None, None].clamp(1e-6)).requires_grad_()
        self.asked.append((sigma_BT, answer))
        return Estimate(answer, ())


def zeros(size: int) -> FlowBatch:
    return FlowBatch(torch.zeros(size, FRAMES, CHANNELS, SIDE, SIDE), torch.zeros(size, 5, 8))


def test_the_exact_flow_has_no_loss_and_none_has_the_variance_of_noise() -> None:
    right, wrong = (
        DiffusionForcing(Toy(scale), FRAMES, BLOCK, Full())(zeros(64), torch.Generator().manual_seed(0))
        for scale in (1.0, 0.0)
    )
    assert float(right["loss"].detach()) < 1e-6
    assert float(wrong["loss"].detach()) == pytest.approx(1.0, abs=0.02)
    assert float(wrong["first"]) == pytest.approx(1.0, abs=0.05)


def test_one_pass_and_a_loss_on_every_number_of_every_frame() -> None:
    toy = Toy(0.0)
    loss = DiffusionForcing(toy, FRAMES, BLOCK, Full())(zeros(3), torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    (_, answer), = toy.asked  # fmt: skip
    assert answer.shape[:2] == (3, FRAMES)
    assert (answer.grad != 0).all()


def test_levels_of_blocks_are_uniform_and_independent() -> None:
    toy = Toy(0.0)
    DiffusionForcing(toy, FRAMES, BLOCK, Full(), shift=5.0)(zeros(4000), torch.Generator().manual_seed(0))
    sigma = toy.asked[0][0]
    assert all((part == part[:, :1]).all() for part in sigma.split(BLOCK, 1)), "one level per block"
    tau = (sigma / (5 - 4 * sigma))[:, ::BLOCK]
    for block in range(tau.shape[1]):
        shares = torch.histc(tau[:, block], 10, 0, 1) / len(tau)
        assert (shares - 0.1).abs().max() < 0.02
    assert (torch.corrcoef(tau.T) - torch.eye(tau.shape[1])).abs().max() < 0.06


def test_first_blocks_of_other_clips_add_their_weight() -> None:
    firsts = torch.full((64, BLOCK, CHANNELS, SIDE, SIDE), 3.0), torch.zeros(64, 5, 8)
    batch = FlowBatch(zeros(16).latents_BTCHW, zeros(16).text_BSD, firsts)
    found = DiffusionForcing(Toy(0.0), FRAMES, BLOCK, Full(), first_weight=2.0)(batch, torch.Generator().manual_seed(0))
    assert float(found["first"]) == pytest.approx(1 + 3**2, abs=0.2)
    assert float(found["loss"].detach()) == pytest.approx(1 + 2 * (1 + 3**2), abs=0.4)
