"""Prompts of the shapes world: what is written is what is read."""

from __future__ import annotations

import random

import pytest

from arvid.worlds import captions
from arvid.worlds.grammar import Background, Event, Motion, Scene, Thing, parse


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("held_out", [False, True])
def test_every_caption_reads_back(level: int, held_out: bool) -> None:
    rng = random.Random(level)
    for _ in range(250):
        caption = captions.sample(rng, (level,), held_out)
        story = parse(caption.prompt)
        assert story.acts == caption.acts, caption.prompt
        assert story.unknown == (), caption.prompt
        assert story.level == level
        assert captions.is_held_out(story.scene) == held_out


def test_captions_are_deterministic_and_differ() -> None:
    draws = [[captions.sample(random.Random(seed), (1, 2, 3, 4)).prompt for _ in range(1)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    rng = random.Random(0)
    assert len({captions.sample(rng).prompt for _ in range(200)}) > 190


@pytest.mark.parametrize("levels", [(), (0,), (1, 5)])
def test_unknown_levels(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels 1, 2, 3 and 4"):
        captions.sample(random.Random(0), levels)


def test_said_plainly() -> None:
    story = parse("A tiny crimson ball drifting leftwards rapidly on a dark blue background.")
    assert story.acts == (
        Scene((Thing("circle", "red", "small", Motion("move", "left", "fast")),), Background("plain", ("navy",))),
    )


def test_defaults_for_what_is_unsaid() -> None:
    assert parse("star").acts == (Scene((Thing("star", "red", "medium", Motion()),)),)
    two = parse("a square and a red circle").scene.things
    assert [thing.colour for thing in two] == ["green", "red"]


def test_acts() -> None:
    story = parse("a green box sits on white and a blue star falls, then the blue star turns red, then it is gone")
    assert story.acts[1] == (Event("recolour", 1, "red"),)
    assert story.unknown == ("gone",)
    cut = parse("a circle moves up; then cut to a purple pyramid on gray")
    assert isinstance(cut.acts[1], Scene)
    assert cut.level == 4


def test_unknown_words_are_listed_once_in_order() -> None:
    assert parse("a furry red circle eats a furry cake").unknown == ("furry", "eats", "cake")


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "empty"), ("  \n", "empty"), ("a dog runs", "no shape found in 'a dog")]
)
def test_errors(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(prompt)
