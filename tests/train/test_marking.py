"""Learning to mark: the loss by hand, and that a rule behind the marks is found again."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from arvid.recipes.marking import Blocks
from arvid.rewards.marking import Evidence, MarkingJudge, MarkingJudgeConfig
from arvid.rewards.reading import Asked, Meaning, ReadingJudge, ReadingJudgeConfig
from arvid.train.marking import ATTRIBUTES, MarkedBlocks, Marking
from arvid.train.trainer import TrainConfig, train

MEANING = Meaning([[3.0, 6.0], [4.0, 7.0]], ["still", "move", "orbit"], [[0.0, 0.0], [1.0, 0.0]], [0.5, 1.5], 3)
THINGS, SCENE, KINDS = 5, 4, 2


def judge() -> MarkingJudge:
    torch.manual_seed(0)
    reading = ReadingJudge(ReadingJudgeConfig(channels=4, width=16, blocks=1, text_width=8, things=2, meaning=MEANING))
    return MarkingJudge(MarkingJudgeConfig(MEANING.fields, THINGS, SCENE, KINDS, width=16), reading)


def rows(count: int) -> MarkedBlocks:
    """Blocks of one or two things whose mark is the mean over things of a number being near a value, which their speed
    decides."""
    generator = torch.Generator().manual_seed(count)
    fields = torch.tensor(MEANING.fields)
    things = (torch.rand(count, 2, len(fields), generator=generator) * fields).long()
    there = torch.stack([torch.ones(count), (torch.rand(count, generator=generator) < 0.5).float()], 1)
    numbers = torch.randn(count, 2, THINGS, generator=generator)
    wanted = 2.0 * things[..., -1] - 1
    near = torch.exp(-((numbers[..., 0] - wanted) ** 2))
    mark = (near * there).sum(1) / there.sum(1)
    shown = Evidence(numbers, torch.randn(count, SCENE, generator=generator), Asked.of(things, there, MEANING))
    return MarkedBlocks(shown, mark, torch.stack([mark, 1 - mark], 1))


def test_the_loss_is_the_cross_entropy_of_both_kinds_of_marks() -> None:
    made, batch = judge().eval(), rows(3)
    for name in ("things", "scene"):
        made.get_buffer(f"{name}_spread").zero_().add_(1e-9)  # noise is a part of it
        made.get_buffer(f"{name}_mean").zero_()
    with torch.no_grad():
        found = Marking(made)(batch, torch.Generator())
        logits, attributes = made(batch.shown)

    def entropy(p: float, mark: float) -> float:
        return -(mark * math.log(p) + (1 - mark) * math.log(1 - p))

    whole = [entropy(float(x.sigmoid()), float(m)) for x, m in zip(logits, batch.mark_N, strict=True)]
    parts = [
        entropy(min(max(float(p), 1e-4), 1 - 1e-4), float(m))
        for p, m in zip(attributes.flatten(), batch.attributes_NA.flatten(), strict=True)
    ]
    assert math.isclose(float(found["mark"]), sum(whole) / 3, rel_tol=1e-4)
    assert math.isclose(float(found["loss"]), sum(whole) / 3 + ATTRIBUTES * sum(parts) / 6, rel_tol=1e-4)


def test_a_rule_behind_the_marks_is_found_again(tmp_path: Path) -> None:
    made, learn, held = judge(), rows(4000), rows(500)
    made.measure(learn.shown)
    settings = TrainConfig(400, 4e-3, warmup=20, average=0.98, save_every=400)
    made.load_state_dict(train(made, Marking(made), Blocks(learn), settings, tmp_path))
    with torch.no_grad():
        off = (made.eval()(held.shown)[0].sigmoid() - held.mark_N).abs().mean()
    assert off < 0.06, "marks lie .25 from their mean"
    assert (held.mark_N - held.mark_N.mean()).abs().mean() > 0.2


def test_batches_are_a_pure_function_of_the_step() -> None:
    source = Blocks(rows(50))
    one, again, other = source(3), source(3), source(4)
    assert torch.equal(one.shown.things_NKF, again.shown.things_NKF)
    assert not torch.equal(one.mark_N, other.mark_N)
    assert len(one) == len(one.attributes_NA) == len(one.shown.asked.pace_NK)
