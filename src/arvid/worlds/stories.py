"""A prompt that tells a story, as the prompts of its acts: each says what is to be seen from where it begins.

Knows: what an event makes of a thing, how a scene with its events behind it is said in the words of one scene. Does not
know: how long acts are, blocks, models.

A model of one scene is told of the act that runs and of nothing before it: "a red star rests, then it turns blue" is
"a red star rests" and later "a blue star stays still". Backwards on a bouncing thing has no words; it goes on as it
moves.
"""

from __future__ import annotations

import random
from dataclasses import replace

from arvid.types import Act
from arvid.worlds import captions
from arvid.worlds.grammar import THEN, Event, Motion, Scene, Thing, parse

_BACK = {
    "left": "right", "right": "left", "up": "down", "down": "up",
    "clockwise": "anticlockwise", "anticlockwise": "clockwise",
}  # fmt: skip


def after(thing: Thing, event: Event) -> Thing | None:
    """What an event makes of the thing it happens to; None when it is gone."""
    if event.kind == "vanish":
        return None
    if event.kind == "recolour":
        return replace(thing, colour=event.value)
    if event.kind == "reverse":
        return replace(thing, motion=replace(thing.motion, way=_BACK.get(thing.motion.way, thing.motion.way)))
    return replace(thing, motion=Motion() if event.kind == "stop" else event.motion)


def acts(prompt: str) -> tuple[Act, ...]:
    """The acts of a prompt, the first in its own words. A prompt of one act, or of nothing the world knows, is its own
    only act; where all things are gone, the ground alone is told."""
    try:
        story = parse(prompt)
    except ValueError:
        return (Act(prompt),)
    if len(story.acts) == 1:
        return (Act(prompt),)
    rng, scene = random.Random(prompt), story.scene
    cast: list[Thing | None] = list(scene.things)
    found = [Act(THEN.split(prompt)[0].strip(" ,;."))]
    for act in story.acts[1:]:
        if isinstance(act, Scene):
            scene, cast = act, list(act.things)
        else:
            for event in act:
                thing = cast[event.thing]
                cast[event.thing] = thing and after(thing, event)
        there = tuple(thing for thing in cast if thing is not None)
        found.append(Act(captions.say(replace(scene, things=there), rng), cut=isinstance(act, Scene)))
    return tuple(found)
