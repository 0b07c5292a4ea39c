"""Consistency distillation: zero for the exact function, the solution in closed form, and who is taught by whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arvid.caches.full import Full
from arvid.caches.window import Window
from arvid.samplers.grids import few_step
from arvid.train.consistency import Consistency
from arvid.train.flow import FlowBatch
from arvid.train.scores import Guided
from arvid.train.trainer import TrainConfig, train
from arvid.types import Estimate, View
from oracles import gaussian

BLOCK, FRAMES = 2, 5
MEAN, DEVIATION = 1.5, 0.5
LEVELS = few_step(4)


def teacher(clean: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    return gaussian.flow(x, sigma[:, :, None, None, None], MEAN, DEVIATION)


def batch(size: int = 32, seed: int = 0) -> FlowBatch:
    z = torch.randn(size, FRAMES, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return FlowBatch(MEAN + DEVIATION * z, torch.zeros(size, 1, 1))


class Toy(nn.Module):
    """A model with an estimate of the end; remembers what it was asked. Its past is empty talk."""

    def __init__(self, end: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.end = end
        self.asked: list[tuple[Tensor, Tensor]] = []

    def read_text(self, text_BSD: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return ()

    def flow(self, z_BTCHW: Tensor, sigma_BT: Tensor, context: object, view: View, frames: tuple[int, ...]) -> Estimate:
        self.asked.append((z_BTCHW, sigma_BT))
        sigma = sigma_BT[:, :, None, None, None]
        here = z_BTCHW.flatten(2)[..., None, :]
        return Estimate((z_BTCHW - self.end(z_BTCHW, sigma)) / sigma.clamp(1e-6), ((here, here),))


def euler_end(levels: tuple[float, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """Where Euler steps of the teacher along `levels` end, from any of them."""
    gains = {round(level, 5): gaussian.euler_gain(levels[place:], DEVIATION) for place, level in enumerate(levels)}

    def end(x: Tensor, sigma: Tensor) -> Tensor:
        gain = sigma.clone().apply_(lambda level: gains[round(level, 5)])
        return MEAN + gain * (x - (1 - sigma) * MEAN)

    return end


def loss_of(model: nn.Module, levels: tuple[float, ...], size: int = 32) -> float:
    objective = Consistency(model, teacher, FRAMES, BLOCK, Full(), levels)
    return float(objective(batch(size), torch.Generator().manual_seed(0))["loss"])


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_the_exact_consistency_function_has_no_loss(count: int) -> None:
    assert loss_of(Toy(euler_end(few_step(count))), few_step(count)) < 1e-10


def test_the_end_of_the_flow_itself_is_exact_in_the_limit_of_many_levels() -> None:
    exact = Toy(lambda x, sigma: gaussian.end(x, sigma, MEAN, DEVIATION))
    losses = [loss_of(exact, few_step(count)) for count in (2, 8, 32, 128)]
    assert losses[0] > 1e-3
    assert losses[-1] < 1e-6
    assert all(later < earlier / 4 for earlier, later in pairwise(losses))


def test_a_student_that_changes_nothing_misses_by_what_is_known() -> None:
    """One level: eps stays eps, the teacher's step from pure noise ends at the mean. E(eps - m)^2 = 1 + m^2."""
    assert loss_of(Toy(lambda x, sigma: x), (1.0, 0.0), 512) == pytest.approx(1 + MEAN**2, abs=0.1)


# ---------------------------------------------------------------- what is learned


class Linear(Toy):
    """gain and offset of the end at every level, which are learned."""

    def __init__(self, levels: tuple[float, ...] = LEVELS) -> None:
        super().__init__(self._end)
        self.levels = torch.tensor(levels[:-1])
        self.gain, self.offset = nn.Parameter(torch.ones(len(levels) - 1)), nn.Parameter(torch.zeros(len(levels) - 1))

    def _end(self, x: Tensor, sigma: Tensor) -> Tensor:
        place = (sigma[..., None] - self.levels).abs().argmin(-1)
        return self.gain.float()[place] * x + self.offset.float()[place]


CONFIG = TrainConfig(steps=260, learning_rate=0.1, warmup=1, average=0.9, log_every=1000, save_every=1000, clip=100.0)


def linear() -> tuple[Linear, Consistency]:
    model = Linear()
    return model, Consistency(model, teacher, FRAMES, BLOCK, Full(), LEVELS, keep=0.8)


def test_the_student_ends_where_the_teachers_walk_ends(tmp_path: Path) -> None:
    """The fixed point in closed form: at every level, mean and gain of the rest of the teacher's Euler walk."""
    model, objective = linear()
    train(model, objective, lambda step: batch(16, step), CONFIG, tmp_path)
    for place, level in enumerate(LEVELS[:-1]):
        gain = gaussian.euler_gain(LEVELS[place:], DEVIATION)
        assert float(model.gain[place].detach()) == pytest.approx(gain, abs=0.02)
        assert float(model.offset[place].detach()) == pytest.approx(MEAN - gain * (1 - level) * MEAN, abs=0.03)


def test_killed_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=9, save_every=4)

    def deadly(step: int) -> FlowBatch:
        if step == 6:
            raise KeyboardInterrupt
        return batch(4, step)

    whole, objective = linear()
    train(whole, objective, lambda step: batch(4, step), config, tmp_path / "whole")
    parts, cut = linear()
    with pytest.raises(KeyboardInterrupt):
        train(parts, cut, deadly, config, tmp_path / "parts")
    again, resumed = linear()
    train(again, resumed, lambda step: batch(4, step), config, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert all(torch.equal(value, resumed.slow[name]) for name, value in objective.slow.items())
    assert not torch.equal(objective.slow["gain"], whole.gain.detach())


def test_a_checkpoint_of_another_objective_is_refused(tmp_path: Path) -> None:
    model, objective = linear()
    config = replace(CONFIG, steps=1)
    train(model, objective, batch, config, tmp_path)
    with pytest.raises(ValueError, match=r"saved by another objective: function does not keep a state"):
        train(model, lambda batch, generator: objective(batch, generator), batch, config, tmp_path)


# ---------------------------------------------------------------- who is taught by whom


def test_the_slow_copy_follows_the_weights_and_sets_the_targets() -> None:
    """slow <- keep slow + (1 - keep) weights at every call; no gradient enters it or the teacher."""
    model, objective = linear()
    slow = 1.0
    for value in (1.0, 2.0, 5.0):
        with torch.no_grad():
            model.gain.fill_(value)
        loss = objective(batch(4), torch.Generator().manual_seed(0))["loss"]
        slow = 0.8 * slow + 0.2 * value
        assert objective.slow["gain"].tolist() == pytest.approx([slow] * 4)
        assert not objective.slow["gain"].requires_grad
    loss.backward()
    with torch.no_grad():
        before = float(loss)
        objective.slow["offset"].add_(1.0)
        objective.keep = 1.0
        assert float(objective(batch(4), torch.Generator().manual_seed(0))["loss"]) != pytest.approx(before, rel=1e-3)


def test_the_past_is_the_clean_clip_and_every_block_has_a_level_of_the_grid() -> None:
    toy = Toy(lambda x, sigma: x)
    clip = batch(64)
    Consistency(toy, teacher, FRAMES, BLOCK, Window(2), LEVELS)(clip, torch.Generator().manual_seed(0))
    pasts = [(z, sigma) for z, sigma in toy.asked if z.shape == clip.latents_BTCHW.shape]
    assert len(pasts) == 2, "the student's and its slow copy's"
    for z, told in pasts:
        assert torch.equal(z, clip.latents_BTCHW)
        assert (told == 0).all()
    noisy = [sigma for z, sigma in toy.asked if z.shape != clip.latents_BTCHW.shape]
    slow, student = noisy[: len(noisy) // 2], noisy[len(noisy) // 2 :]
    following = dict(pairwise(round(level, 5) for level in LEVELS))
    for high, low in zip(student, slow, strict=True):
        assert all((level == level[:, :1]).all() for level in (high, low)), "one level per block"
        pairs = {(round(h, 5), round(n, 5)) for h, n in zip(high[:, 0].tolist(), low[:, 0].tolist(), strict=True)}
        assert pairs == set(following.items())


def test_guidance_goes_from_the_untold_flow_through_the_told_one() -> None:
    def score(clean: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        return x + text.sum()

    x, text = torch.randn(1, 2, 1, 2, 2), torch.ones(1, 2, 2)
    for weight, expected in ((0.0, 4.0), (2.0, 12.0)):
        torch.testing.assert_close(Guided(score, weight)(x, x, x[..., 0, 0, 0], text), x + expected)


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 0.5), (0.5, 1.0, 0.0)])
def test_levels_must_fall_to_nothing(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must fall strictly"):
        Consistency(Linear(), teacher, FRAMES, BLOCK, Full(), levels)
