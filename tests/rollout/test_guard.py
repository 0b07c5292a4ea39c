"""The drift guard on clips with planted faults, and what it has done about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arvid.pipeline import Pipeline, Request
from arvid.recipes.guard_limits import NUMBERS, looks, measure
from arvid.rollout.guard import GUARDS, Act, Guard, Limits, Warn
from arvid.rollout.judging import Routing
from arvid.rollout.routers import ROUTERS, First
from arvid.rollout.stage import Clock
from arvid.rollout.steered import statistics
from arvid.spec import build
from arvid.types import Condition, Move, Proposal, Span, Verdict
from arvid.worlds import shapes

FRAMES = 12
CONDITION = Condition("a", torch.zeros(1, 1, 1))


def clip(block: int) -> Tensor:
    """A bright square that moves over a striped ground: frames v_TCHW of one block."""
    v = torch.full((FRAMES, 3, 64, 64), -0.2)
    v[..., ::4] = 0.1
    for frame in range(FRAMES):
        left = 20 - abs((block * FRAMES + frame) % 40 - 20)
        v[frame, :, 20:44, left : left + 24] = 0.7
    return v


def latents(block: int) -> Tensor:
    return torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(block))


class Watch:
    """A guard, and what it orders and tells."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.orders: list[tuple[str, Tensor | None]] = []
        self.told: list[dict[str, Any]] = []
        clock = Clock()
        self.guard = Guard(
            Routing(First(), None, clock), limits or Warn(), lambda *order: self.orders.append(order),
            lambda event, payload: self.told.append(payload), clock,
        )  # fmt: skip

    def see(self, block: int, v_TCHW: Tensor, source: str = "target", condition: Condition = CONDITION) -> Verdict:
        move = Move(block, Span(3 * block, 3 * block + 3), (1.0, 0.0))
        return self.guard.judge(move, Proposal(latents(block), source=source), lambda: v_TCHW[None], condition)

    @property
    def last(self) -> dict[str, Any]:
        return self.told[-1]


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "colour": lambda v: v * 0.6 + torch.tensor([0.3, 0.0, -0.2])[:, None, None],
    "sharpness": lambda v: torch.nn.functional.avg_pool2d(v, 9, 1, 4),
    "seam": lambda v: v.flip(-1),
    "motion": lambda v: v[:1].expand_as(v),
}


def test_a_steady_clip_stays_below_every_limit() -> None:
    watch = Watch()
    for block in range(6):
        assert watch.see(block, clip(block)).decision == "accept"
    assert [told["decision"] for told in watch.told] == ["steady"] * 6
    assert all(told[name] < 0.8 for told in watch.told[1:] for name in ("colour", "sharpness", "seam", "motion"))
    assert watch.told[0]["worst"] is None, "the first block is the anchor"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_moves_its_own_number(fault: str) -> None:
    watch = Watch()
    for block in range(2):
        watch.see(block, clip(block))
    before = watch.last[fault]
    watch.see(2, FAULTS[fault](clip(2)))
    assert watch.last["decision"] == "warned"
    assert watch.last[fault] > 1 > before
    numbers = {name: watch.last[name] for name in FAULTS}
    assert {name for name, value in numbers.items() if value > 1} <= {fault, "seam"}, "all come at once, with a step"
    assert watch.last["worst"] == max(numbers, key=lambda name: numbers[name])
    assert watch.orders == [], "a warning does nothing"


def test_the_numbers_are_what_they_say() -> None:
    watch = Watch(Warn(colour=0.5))
    watch.see(0, clip(0))
    watch.see(1, clip(0) + 0.1)
    assert watch.last["colour"] == pytest.approx(0.1 * 3**0.5 / 0.5, rel=1e-3)
    assert watch.last["sharpness"] == pytest.approx(1 / 2, rel=1e-3)
    assert watch.last["motion"] == pytest.approx(1 / 4, rel=1e-3)


def test_a_drifted_draft_goes_back_and_a_drifted_rest_climbs_the_ladder() -> None:
    watch = Watch(Act())
    watch.see(0, clip(0))
    bad = FAULTS["colour"]
    assert watch.see(1, bad(clip(1)), "draft").decision == "redo"
    assert watch.see(1, clip(1)).decision == "accept"
    assert watch.orders == []
    for block in range(2, 6):
        assert watch.see(block, bad(clip(block)), "refined").decision == "accept"
    assert [name for name, _ in watch.orders] == ["target", "refresh", "anchor", "anchor"]
    wanted = watch.orders[-1][1]
    assert wanted is not None
    torch.testing.assert_close(wanted, statistics(latents(0)))
    watch.see(6, clip(6), "refined")
    watch.see(7, bad(clip(7)), "target")
    assert [name for name, _ in watch.orders[4:]] == ["refresh"], "the target itself need not be asked again"
    assert [told["decision"] for told in watch.told][:3] == ["steady", "rejected", "steady"]


def test_another_condition_gets_an_anchor_of_its_own_from_its_second_block() -> None:
    watch = Watch(Act())
    bad, other = FAULTS["colour"], Condition("b", torch.zeros(1, 1, 1))
    watch.see(0, clip(0))
    for block in (1, 2):
        watch.see(block, bad(clip(block)), "refined", other)
        assert watch.last == {"block": block, "decision": "steady", "worst": None}
    watch.see(3, bad(clip(3)), "refined", other)
    assert watch.last["decision"] == "steady"
    watch.see(4, clip(4), "refined", other)
    assert watch.last["decision"] == "target"


def test_a_guard_goes_back_to_a_snapshot() -> None:
    watch = Watch(Act())
    bad = FAULTS["colour"]
    watch.see(0, clip(0))
    watch.see(1, bad(clip(1)), "refined")
    held = watch.guard.snapshot()
    for _ in range(2):
        watch.guard.restore(held)
        watch.see(2, bad(clip(2)), "refined")
        assert watch.last["decision"] == "refresh"


@pytest.mark.parametrize(
    "prompt", ["a large red circle moves right", "a small blue star bounces up and down on stripes"]
)
def test_true_films_stay_far_below_every_default(prompt: str) -> None:
    found = measure([prompt], 153)
    limits = Warn()
    for name in NUMBERS:
        assert found[name]["1.0"] < (limits.colour / 2 if name == "colour" else 1 + (getattr(limits, name) - 1) / 1.5)


def test_a_film_that_drifts_is_measured_as_one() -> None:
    def faded(prompt: str, seed: int, frames: int) -> np.ndarray:
        share = np.linspace(1, 0.3, frames)[:, None, None, None]
        return (shapes.render(prompt, seed, frames) * share).astype(np.uint8)

    prompt = "a large red circle moves right on a plain white background"
    faded_by, steady = measure([prompt], 153, faded), measure([prompt], 153)
    assert faded_by["colour"]["1.0"] > Warn().colour > steady["colour"]["1.0"]
    [*_, last] = looks(faded(prompt, 0, 57))
    anchor, end = faded(prompt, 0, 57)[:9] / 127.5 - 1, faded(prompt, 0, 57)[45:57] / 127.5 - 1
    wanted = sum(
        float((of(anchor, axis=(0, 1, 2)) - of(end, axis=(0, 1, 2))).__pow__(2).sum()) for of in (np.mean, np.std)
    )
    assert last["colour"] == pytest.approx(wanted**0.5, rel=1e-3)


def test_a_single_frame_can_be_the_anchor() -> None:
    watch = Watch()
    watch.see(0, clip(0)[:1])
    watch.see(1, clip(0)[1:])
    assert watch.last["decision"] == "steady"
    assert "motion" not in watch.last


@pytest.mark.parametrize("router", ["target", "first", "reward:tau=0.5", "hold:fps=9", "refine:levels=0.8"])
def test_a_guard_that_acts_needs_somebody_who_makes_blocks_again(router: str) -> None:
    build("act", GUARDS, "guard").check_router(build(router, ROUTERS, "router"))
    drafts = build("draft", ROUTERS, "router")
    for text in ("off", "warn"):
        build(text, GUARDS, "guard").check_router(drafts)
    with pytest.raises(
        ValueError, match=r"the target make what drifted, and router draft never asks it; use guard warn"
    ):
        build("act", GUARDS, "guard").check_router(drafts)
    with pytest.raises(ValueError, match="router draft never asks it"):
        Pipeline.embedded().check(Request("a red circle", 1, router="draft", guard="act:colour=0.1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shout", "unknown guard 'shout'; known: act, off, warn"),
        ("warn:colour=0", "guard limits colour=0, "),
        ("act:seam=0.5", "seam=0.5"),
        ("act:hue=2", "guard 'act' has no option 'hue=2'"),
    ],
)
def test_wrong_limits_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(text, GUARDS, "guard")
