"""Resampled pasts: which blocks of the second walk's past are estimates of the first, what is learned, what is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.train.flow import FlowBatch, TeacherForcing
from arvid.train.reading import CellReader, ReadForcing, Told, ToldBatch
from arvid.train.resampling import ResampledForcing

FRAMES, BLOCK, CHANNELS, SIDE = 9, 3, 4, 4
POLICY = Window(4)
ROUNDING = 2e-4
"""The keeper computes attention by another kernel, in half precision."""


def wan() -> CausalWan:
    torch.manual_seed(0)
    model = CausalWan(WanConfig(24, 48, 2, 2, 8, 5, CHANNELS, CHANNELS, 16))
    torch.nn.init.normal_(model.head.head.weight, 0.0, 0.3)
    return model.to(torch.bfloat16).float()  # passes of training round the weights so


def keeper() -> CausalWan:
    """The same in half precision, as passes of training compute."""
    return wan().to(torch.bfloat16).requires_grad_(False)


def batch(clips: int = 2, begins: tuple[int, ...] | None = None) -> FlowBatch:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    first = (normal(4, BLOCK, CHANNELS, SIDE, SIDE), normal(4, 5, 8))
    told = None if begins is None else torch.tensor(begins)
    return FlowBatch(normal(clips, FRAMES, CHANNELS, SIDE, SIDE), normal(clips, 5, 8), first, told)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class Walks:
    """In place of the passes: a model whose estimate of every clean latent is off by `error` [B, T]."""

    def __init__(self, truth_BTCHW: Tensor, error_BT: Tensor) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._made_BTCHW = truth_BTCHW + error_BT[:, :, None, None, None]

    def __call__(self, past: Tensor, told: Tensor, mixed: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        self.seen.append((past, told, sigma))
        return (mixed - self._made_BTCHW) / sigma[:, :, None, None, None]


def walked(
    given: FlowBatch, error: Callable[[Tensor], Tensor], **options: float
) -> tuple[Walks, dict[str, Tensor], ResampledForcing]:
    forcing = ResampledForcing(wan(), keeper(), FRAMES, BLOCK, POLICY, **options)
    z = given.latents_BTCHW
    walks = Walks(z, error(torch.arange(FRAMES).expand(len(z), -1).float()))
    forcing.passes = walks  # type: ignore[assignment]
    return walks, forcing(given, generator()), forcing


def test_the_second_walk_reads_what_the_first_estimated() -> None:
    given = batch(300)
    walks, _, _ = walked(given, torch.ones_like, share=0.6, least=0.5)
    (first, told, levels), (second, untold, _) = walks.seen
    plain = TeacherForcing(wan(), FRAMES, BLOCK, POLICY)._past(given, generator())
    assert torch.equal(first, plain[0])
    assert torch.equal(told, plain[1])
    assert not untold.any(), "nothing is told of estimates"
    off = second - given.latents_BTCHW
    own_BT = off.flatten(2).abs().amax(-1) > 0.5
    torch.testing.assert_close(off, own_BT.float()[:, :, None, None, None].expand_as(off), rtol=0, atol=1e-4)
    assert not own_BT[levels < 0.5].any(), "what a low level knows of the truth says little of the model"
    assert float(own_BT[levels >= 0.5].float().mean()) == pytest.approx(0.6, abs=0.05)
    blocks = own_BT.unflatten(1, (-1, BLOCK))
    assert torch.equal(blocks.all(-1), blocks.any(-1)), "whole blocks"


def test_a_model_without_errors_loses_nothing_and_keeps_a_true_past() -> None:
    given = batch()
    walks, numbers, _ = walked(given, torch.zeros_like, share=1.0, least=0.0)
    torch.testing.assert_close(walks.seen[1][0], given.latents_BTCHW, rtol=0, atol=1e-5)
    for name in ("all", "own", "first", "loss"):
        assert float(numbers[name].detach()) == pytest.approx(0.0, abs=ROUNDING)


def test_blocks_that_follow_nothing_and_what_the_text_does_not_tell_are_not_learned() -> None:
    _, numbers, _ = walked(batch(), lambda at: (at < BLOCK).float())
    assert float(numbers["loss"].detach()) == pytest.approx(0.0, abs=ROUNDING)
    _, numbers, _ = walked(batch(2, (6, 6)), lambda at: (at < 6).float())
    assert float(numbers["loss"].detach()) == pytest.approx(0.0, abs=ROUNDING)
    for begins in ((0, 0), (6, 6)):
        walks, numbers, _ = walked(batch(2, begins), lambda at: (at >= 6).float())
        learned = torch.arange(FRAMES) >= max(BLOCK, begins[0])
        errors = [(sigma[:, 6:] ** -2).sum() / learned.sum() / len(sigma) for _, _, sigma in walks.seen]
        torch.testing.assert_close(torch.stack([numbers["all"], numbers["own"]]), torch.stack(errors))


def test_first_blocks_stay_with_the_keeper() -> None:
    model, kept = wan(), keeper()
    forcing = ResampledForcing(model, kept, FRAMES, BLOCK, POLICY)
    assert float(forcing(batch(), generator())["first"]) == pytest.approx(0.0, abs=ROUNDING)
    with torch.no_grad():
        model.head.head.bias.add_(0.5)
    numbers = forcing(batch(), generator())
    assert float(numbers["first"]) == pytest.approx(0.25, rel=0.02)
    numbers["loss"].backward()
    assert all(p.grad is None for p in kept.parameters())
    assert model.blocks[0].self_attn.k.weight.grad is not None
    assert float(numbers["loss"].detach()) == pytest.approx(
        (float(numbers["all"]) + float(numbers["own"])) / 2 + 5 * float(numbers["first"])
    )


def test_reading_hears_both_walks() -> None:
    """As many frames are read as two walks and the first blocks show, and all of them with their own labels."""
    model, heard = wan(), []

    class Listening(CellReader):
        def loss(self, x_BTPD: Tensor, told: Told) -> tuple[Tensor, Tensor]:
            assert x_BTPD.shape[:2] == told.classes_BTYXK.shape[:2]
            heard.append(told.classes_BTYXK[..., 0, 0, 0])
            return super().loss(x_BTPD, told)

    forcing = ResampledForcing(model, keeper(), FRAMES, BLOCK, POLICY)
    objective = ReadForcing(forcing, Listening(24, (2, 2), (20, 20)), model.blocks[1])

    def labels(clips: int, frames: int) -> Told:
        number = torch.arange(frames).expand(clips, -1)[:, :, None, None, None].expand(-1, -1, SIDE, SIDE, 2)
        still = torch.zeros(clips, frames, SIDE, SIDE, 2)
        return Told(number, still, still, torch.ones(clips, frames).bool())

    objective(ToldBatch(batch(), labels(2, FRAMES), labels(4, BLOCK)), generator())["loss"].backward()
    shown = torch.cat([each.flatten() for each in heard]).bincount(minlength=FRAMES)
    assert shown.tolist() == [4 + 4] * BLOCK + [4] * (FRAMES - BLOCK)


def test_wrong_shares_and_batches_are_refused() -> None:
    for options in ({"share": 1.5}, {"least": -0.1}):
        with pytest.raises(ValueError, match=r"both must lie in \[0, 1\]"):
            ResampledForcing(wan(), keeper(), FRAMES, BLOCK, POLICY, **options)
    given = batch()
    with pytest.raises(ValueError, match="give some, or first blocks are forgotten"):
        ResampledForcing(wan(), keeper(), FRAMES, BLOCK, POLICY)(
            FlowBatch(given.latents_BTCHW, given.text_BSD), generator()
        )
