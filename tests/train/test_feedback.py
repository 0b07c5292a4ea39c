"""Reward feedback: the loss by hand, outliers cut short, what is right teaches nothing, and a model that learns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from arvid.caches.window import Window
from arvid.rewards.reading import MARKS, Asked, distance
from arvid.samplers.grids import few_step
from arvid.samplers.steps import euler
from arvid.train.feedback import OUTLIER, Feedback, FeedbackBatch, shortened
from arvid.train.self_forcing import LAST, Horizon, SelfForcing
from arvid.types import Estimate, View

SHAPE = (2, 2, 2)


class Toy(nn.Module):
    """Its walks end at `level` in every number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.0))

    def read_text(self, text_BSD: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return ()

    def flow(self, z_BTCHW: Tensor, sigma_BT: Tensor, context: object, view: View, frames: tuple[int, ...]) -> Estimate:
        here = z_BTCHW.flatten(2)[:, :, None]
        flow = (z_BTCHW - self.level.float()) / sigma_BT[:, :, None, None, None].clamp(min=0.1)
        return Estimate(flow, ((here, here),))


class Level:
    """A distance that is the square of what latents are above `wanted`, as every term."""

    def __init__(self, wanted: float) -> None:
        self.wanted, self.seen = wanted, []

    def __call__(self, z_NTCHW: Tensor, asked: Asked) -> dict[str, Tensor]:
        self.seen.append(z_NTCHW.detach())
        off = (z_NTCHW - self.wanted).square().mean((1, 2, 3, 4))
        return {"shape": off, "motion": off}


def nobody(count: int) -> Asked:
    one = torch.zeros(count, 1)
    said, classes = torch.zeros(count, 1, 6).long(), torch.zeros(count, 1, 3).long()
    return Asked(said, classes, one, one, one, torch.zeros(count, 1, 2), one, one)


def batch() -> FeedbackBatch[float]:
    return FeedbackBatch(torch.zeros(4, 1, 1), nobody(4), 0.25)


def feedback(
    model: Toy, asking: Level, again: Callable[[Tensor], Tensor] = lambda z: z, weight: float = 2.0, blocks: int = 1
) -> Feedback[float]:
    horizon = Horizon(3 * blocks, 3 * blocks, 3)
    rollout = SelfForcing(model, Window(3), horizon, SHAPE, few_step(4), step=euler, deep=2, part=LAST)
    anchor = lambda given, generator: {"loss": given * model.level}  # noqa: E731
    return Feedback(rollout, again, asking, 3, anchor, weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_loss_is_the_distance_of_own_blocks_and_the_anchor(blocks: int) -> None:
    asking = Level(0.25)
    numbers = feedback(Toy(), asking, blocks=blocks)(batch(), torch.Generator().manual_seed(0))
    shown = asking.seen[0]
    assert shown.shape == (4 * blocks, 3, *SHAPE), "every block of the window is looked at"
    off = float((shown - 0.25).square().mean())
    assert off == pytest.approx(0.75**2, rel=0.05), "the walk ends where the model says"
    far = float(torch.log1p(torch.tensor(1.0 * off + 0.5 * off)))
    assert float(numbers["distance"]) == pytest.approx(far, rel=1e-4)
    assert float(numbers["loss"].detach()) == pytest.approx(far + 2.0 * 0.25, rel=1e-4)


def test_blocks_are_read_as_they_are_and_as_they_come_back() -> None:
    """The way back adds 1: shapes are half of either reading, motion a quarter of the second."""
    terms = feedback(Toy(), Level(0.0), lambda z: z + 1).terms(torch.ones(2, 3, *SHAPE), nobody(2))
    torch.testing.assert_close(terms["shape"], torch.full((2,), 0.5 * 1 + 0.5 * 4))
    torch.testing.assert_close(terms["motion"], torch.full((2,), 0.75 * 1 + 0.25 * 4))


def test_what_is_right_teaches_nothing() -> None:
    toy = Toy()
    feedback(toy, Level(1.0), weight=0.0)(batch(), torch.Generator().manual_seed(0))["loss"].backward()
    assert float(toy.level.grad) == pytest.approx(0, abs=1e-3)


def test_a_model_learns_what_is_asked() -> None:
    toy, generator = Toy(), torch.Generator().manual_seed(0)
    objective, step = feedback(toy, Level(-0.5), weight=0.0), torch.optim.Adam(toy.parameters(), 0.1)
    for _ in range(80):
        step.zero_grad()
        objective(batch(), generator)["loss"].backward()
        step.step()
    assert float(toy.level.detach()) == pytest.approx(-0.5, abs=0.1)


def test_only_outliers_are_cut() -> None:
    lengths = torch.tensor([0.0, 1.0, 2.0, 2.0, 100.0])
    direction = nn.functional.normalize(torch.randn(5, 3 * 2 * 2 * 2), dim=1).view(5, 3, *SHAPE)
    cut = shortened(direction * lengths[:, None, None, None, None])
    torch.testing.assert_close(cut.flatten(1).norm(dim=1), torch.tensor([0.0, 1.0, 2.0, 2.0, OUTLIER * 2]))
    torch.testing.assert_close(nn.functional.normalize(cut[4].flatten(), dim=0), direction[4].flatten())


def test_the_distance_of_terms() -> None:
    terms = {"shape": torch.tensor([2.0]), "size": torch.tensor([1.0]), "stray": torch.tensor([4.0])}
    assert float(distance(terms)) == pytest.approx(float(torch.log(torch.tensor(1 + 2 + 0.5 + 2.0))))
    assert float(distance(terms, MARKS)) == pytest.approx(float(torch.log(torch.tensor(1 + 2 + 1 + 2.0))))
