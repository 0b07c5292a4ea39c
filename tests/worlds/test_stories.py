"""Acts of a story: what is told of an act is what the renderer shows while it runs."""

from __future__ import annotations

import random

import pytest

from arvid.worlds import captions, oracle, shapes
from arvid.worlds.grammar import Event, Motion, Thing, parse
from arvid.worlds.stories import acts, after

FRAMES = 81


def told_and_shown(prompt: str, seed: int) -> list[float]:
    """The judge's marks for every act of a rendered story, each judged by what is told of it alone."""
    film, told = shapes.render(prompt, seed, FRAMES), acts(prompt)
    edges = [round(FRAMES * number / len(told)) for number in range(len(told) + 1)]
    return [
        oracle.judge(film[start:stop], act.prompt).score
        for act, start, stop in zip(told, edges[:-1], edges[1:], strict=True)
    ]


@pytest.mark.parametrize("kind", ["stop", "recolour", "motion", "reverse", "vanish", "cut"])
def test_what_is_told_of_an_act_is_what_is_rendered_then(kind: str) -> None:
    """The renderer changes tracks and knows nothing of the words; the mean, because a marked wall bounce or a crossing
    costs even the truth something."""
    rng, marks = random.Random(kind), []
    while len(marks) < 6:
        story = captions.sample(rng, (4,) if kind == "cut" else (3,))
        if len(story.acts) < 2:
            continue
        turn = story.acts[1]
        if kind != "cut":
            assert isinstance(turn, tuple)
            scene = story.acts[0]
            thing = scene.things[turn[0].thing]  # type: ignore[union-attr]
            untold = kind == "reverse" and thing.motion.kind == "bounce"
            empty = kind == "vanish" and len(scene.things) == 1  # type: ignore[union-attr]
            if turn[0].kind != kind or untold or empty:
                continue
        marks.append(told_and_shown(story.prompt, len(marks))[1])
    assert sum(marks) / len(marks) > 0.9


def test_the_first_act_keeps_its_words() -> None:
    told = acts("A big Red Star rests on black; then cut to a blue ball rolls left over a white dotted backdrop.")
    assert [act.cut for act in told] == [False, True]
    assert told[0].prompt == "A big Red Star rests on black"
    assert parse(told[1].prompt).scene == parse("a blue ball rolls left over a white dotted backdrop").scene
    assert acts("a red star rests, then it turns blue") == acts("a red star rests, then it turns blue")


@pytest.mark.parametrize("prompt", ["a red star rests on black.", "a cat on a sofa, then it sleeps", ""])
def test_a_prompt_of_one_act_or_of_another_world_is_itself(prompt: str) -> None:
    (act,) = acts(prompt)
    assert act.prompt == prompt
    assert not act.cut


def test_events_add_up_and_the_gone_stay_gone() -> None:
    told = acts("a red star and a blue ball rest on black, then the red star vanishes, then the blue ball turns green")
    assert [[thing.colour for thing in parse(act.prompt).scene.things] for act in told] == [
        ["red", "blue"], ["blue"], ["green"],
    ]  # fmt: skip


def test_an_empty_stage_is_told_as_its_ground() -> None:
    _, last = acts("a red star rests on a checkered white background, then the red star vanishes")
    assert "white" in last.prompt
    assert "star" not in last.prompt


@pytest.mark.parametrize(
    ("way", "back"),
    [("left", "right"), ("up", "down"), ("clockwise", "anticlockwise"), ("anticlockwise", "clockwise")],
)
def test_backwards_is_the_other_way(way: str, back: str) -> None:
    thing = Thing("star", "red", "medium", Motion("orbit" if "wise" in way else "move", way))
    turned = after(thing, Event("reverse", 0))
    assert turned is not None
    assert turned.motion.way == back
