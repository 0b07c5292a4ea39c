"""Temperature: whose noise is narrower, against runs whose noise was narrowed outside."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from arvid.pipeline import Pipeline, Request, load
from arvid.rollout.timeline import Entry
from arvid.samplers.noise import INITIAL, NOISES, REFINE, TURN, SeededNoise
from oracles import toy_family
from rollout.rig import BLOCK, Run, run, same


class Narrowed:
    """Noise of half the spread where blocks behind the first begin from it, and where drafts are mended from it."""

    def __init__(self) -> None:
        self._inner = SeededNoise(3)

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        noise = self._inner.draw(block, step, shape)
        return noise / 2 if block and step % TURN in (INITIAL, REFINE) else noise


@pytest.mark.parametrize(
    "text",
    [
        "target:", "target:level=0.3,", "draft:draft_steps=2,", "reward:tau=0.2,repair=1,", "first:refine=0.8+0.4,",
        "refine:levels=0.8,", "verify:level=0.6,tau=0.5,", "refine:levels=0.6,ahead=2,",
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", ["renoise", "euler"])
def test_blocks_behind_a_past_are_made_from_narrower_noise(text: str, step: str) -> None:
    """The noise between passes, and that of what is remembered, stays as it is."""
    made = Run(f"{text}temperature=0.5", step)
    assert same(made, Run(text.rstrip(":,"), step, noise=Narrowed()))
    whole = Run(text.rstrip(":,"), step)
    assert torch.equal(made.latents[:, :BLOCK], whole.latents[:, :BLOCK]) and not same(made, whole)


def test_the_warmest_is_as_in_training() -> None:
    assert same(run("target:temperature=1"), run("target"))


@pytest.mark.parametrize("text", ["target:temperature=1.5", "draft:temperature=-0.1"])
def test_a_temperature_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"temperature=.* of the noise; give above 0 to 1"):
        run(text)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(load(toy_family.write(tmp_path_factory.mktemp("families") / "toy")))


def cooled(toy: Pipeline, temperature: float) -> Pipeline:
    family = toy.family
    return Pipeline(replace(family, card=replace(family.card, temperature=temperature)))


def latents(pipeline: Pipeline, router: str, *timeline: Entry, seconds: float = 2.2) -> Tensor:
    blocks = pipeline.stream(Request("a red circle", seconds, 3, router, timeline=timeline))
    return torch.cat([block.latents_BTCHW for block in blocks], 1)


def test_of_several_blocks_that_open_a_scene_the_first_does(toy: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a cut the later blocks of a move go on from it, in narrower noise."""
    ours = latents(toy, "target:ahead=3,temperature=0.5", Entry(1.2, "a star", "cut"), seconds=4)
    opening = {(0, 0), (2, 0)}  # blocks 0 and 4 to 6 of three frames, the latter one move

    class Outside(SeededNoise):
        def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
            number, own = divmod(step, TURN)
            noise = super().draw(block, step, shape)
            return noise if own != INITIAL or (block, number) in opening else noise / 2

    monkeypatch.setitem(NOISES, "white", lambda: Outside)
    theirs = latents(toy, "target:ahead=3,temperature=1", Entry(1.2, "a star", "cut"), seconds=4)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("router", ["target", "first", "refine:levels=0.7"])
def test_a_family_has_one_of_its_own_that_a_router_may_overrule(toy: Pipeline, router: str) -> None:
    cool, join = cooled(toy, 0.5), "," if ":" in router else ":"
    assert torch.equal(latents(cool, router), latents(toy, f"{router}{join}temperature=0.5"))
    assert torch.equal(latents(cool, f"{router}{join}temperature=1"), latents(toy, router))
    assert not torch.equal(latents(cool, router), latents(toy, router))


def test_longer_videos_than_in_training_have_all_of_their_noise(toy: Pipeline) -> None:
    """With narrow noise what they lose stays lost. What a router says holds for any length."""
    card, cool = toy.family.card, cooled(toy, 0.5)
    longest = (4 * card.trained_frames - 3) / card.fps
    for seconds, alike in ((longest, False), (longest + 12 / card.fps, True)):
        assert torch.equal(latents(cool, "target", seconds=seconds), latents(toy, "target", seconds=seconds)) == alike
    one, other = (latents(each, "target:temperature=0.5", seconds=longest + 1) for each in (toy, cool))
    assert torch.equal(one, other) and not torch.equal(one, latents(toy, "target", seconds=longest + 1))


def test_what_opens_a_scene_is_made_from_all_of_its_noise(toy: Pipeline) -> None:
    """It sees nothing of what was before, so it is the same whatever that was; a prompt that merely changes goes on."""
    block = toy.family.card.block
    for how, alike in (("cut", True), ("recache", False)):
        warm, cool = (latents(each, "target", Entry(1.2, "a star", how)) for each in (toy, cooled(toy, 0.5)))
        third = slice(2 * block, 3 * block)
        assert torch.equal(warm[:, third], cool[:, third]) == alike
        assert not torch.equal(warm[:, 3 * block :], cool[:, 3 * block :])
