"""Scenes that come back, and prompts that change on the way: what is shown, and how alike things look before and after.

Knows: sentences of the shapes world, how a thing looks in frames (colour, size, outline, through `worlds.tracking`).
Does not know: policies, ways to change a prompt, how videos are made.

A scene returns after another one: the past holds a true clip of A, then a true clip of B, and the prompt says A again.
Whether it is the same A is judged by looks alone, against the frames the video began with. A change of prompt is tried
twice: to another thing (is it there within two blocks?) and to another motion of the same thing (is it still the
same?).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from arvid.evals.clips import Pixels
from arvid.worlds import captions, oracle, shapes
from arvid.worlds.grammar import BACKGROUND_COLOURS, DIRECTIONS, SHAPES, SIZES, THING_COLOURS, Thing, parse
from arvid.worlds.tracking import find_blobs, find_ground, label, read_film, sight, soften

COLOUR, SIZE, OUTLINE = 30.0, 0.17, 0.25
"""Differences that halve the likeness: of colour (of 442), of the logarithm of the radius, of overlaps with shapes."""
SEEN = 0.3
"""Share of its area from which a thing counts as seen in a frame."""
TWO_BLOCKS = 2
"""Blocks within which a change has to show."""


@dataclass(frozen=True)
class Scenes:
    """One trial: a scene, another one with another thing before another background, and the first one in which the
    same thing moves another way; and a seed."""

    first: str
    other: str
    turned: str
    seed: int


def draw_scenes(count: int) -> tuple[Scenes, ...]:
    """Trials of held-out scenes (see `captions.is_held_out`); the same for the same count."""
    rng = random.Random("memory/scenes")
    found: list[Scenes] = []
    while len(found) < count:
        colours, forms = rng.sample(THING_COLOURS, 2), rng.sample(SHAPES, 2)
        grounds, ways = rng.sample(BACKGROUND_COLOURS, 2), rng.sample(DIRECTIONS, 2)
        size = rng.choice(SIZES)
        first, other = (
            say(rng.choice(SIZES) if n else size, colours[n], forms[n], ways[n], grounds[n]) for n in (0, 1)
        )
        turned = say(size, colours[0], forms[0], ways[1], grounds[0])
        if all(captions.is_held_out(parse(prompt).scene) for prompt in (first, other)):
            found.append(Scenes(first, other, turned, len(found)))
    return tuple(found)


def say(size: str, colour: str, form: str, way: str, ground: str) -> str:
    """A sentence of the world about one thing."""
    return f"a {size} {colour} {form} moves {way} on a plain {ground} background"


# ---------------------------------------------------------------- looks


@dataclass(frozen=True, eq=False)
class Look:
    """How a thing looked: the share of frames in which it was seen, and of those its mean colour [3], the logarithm of
    its radius, and its overlap with each shape [5]."""

    seen: float
    colour_3: np.ndarray
    radius: float
    overlap_S: np.ndarray


def look(frames: Pixels, prompt: str) -> Look:
    """How the first thing of a prompt looks in frames [T, n, n, 3]."""
    scene = parse(prompt).scene
    thing = scene.things[0]
    film = read_film(frames)
    colour = THING_COLOURS.index(thing.colour)
    ground = find_ground(film, scene.background, np.zeros((len(film), 2)))
    mask = label(film, ground.image_T, (colour,)) == colour + 1
    area = _area(thing)
    if mask.sum() < 12:
        return Look(0.0, np.zeros(3), 0.0, np.zeros(len(SHAPES)))
    found = sight(film, ground.image_T, find_blobs(mask), np.zeros_like(mask), colour, thing)
    there = found.area_T > SEEN * area
    tints = found.colour_T3[there & ~np.isnan(found.colour_T3[:, 0])]
    if not len(tints) or not len(found.overlap_KS):
        return Look(0.0, np.zeros(3), 0.0, np.zeros(len(SHAPES)))
    radius = 0.5 * float(np.log(found.area_T[there]).mean())
    return Look(float(there.mean()), tints.mean(0), radius, found.overlap_KS.mean(0))


def alike(before: Look, after: Look) -> float | None:
    """How much what came after looks like what was before, in [0, 1]: the share of frames in which it is seen, times
    the likeness of colour, size and outline. None when there was nothing to be like."""
    if before.seen < SEEN:
        return None
    if not after.seen:
        return 0.0
    tint = soften(np.array(np.linalg.norm(before.colour_3 - after.colour_3)), COLOUR)
    size = soften(np.array(before.radius - after.radius), SIZE)
    outline = soften(np.array(np.linalg.norm(before.overlap_S - after.overlap_S)), OUTLINE)
    return float(min(1.0, after.seen / before.seen) * tint * size * outline)


def _area(thing: Thing) -> float:
    return float(np.pi * shapes.RADII[thing.size] ** 2)


# ---------------------------------------------------------------- what changed


def adopted(frames: Pixels, old: str, new: str) -> bool:
    """Whether frames show the thing of the new prompt, and no longer that of the old one, in at least half of them."""
    return look(frames, new).seen >= 0.5 and look(frames, old).seen < 0.5


def adherence(frames: Pixels, prompt: str) -> float:
    """The oracle's alignment with a prompt, in [0, 1]."""
    return oracle.judge(frames, prompt).alignment


def step_at(frames: Pixels, start: int, around: int) -> float:
    """The step into frame `start` beside the `around` steps before and behind it: (B + 1) / (I + 1) - 1 in grey levels,
    as chunk discontinuity is (docs/evaluation.md). 0: no seam."""
    part = frames[max(0, start - around - 1) : start + around + 1].astype(np.int16)
    steps = np.abs(np.diff(part, axis=0)).mean((1, 2, 3))
    place = start - 1 - max(0, start - around - 1)
    inside = np.delete(steps, place)
    return float((steps[place] + 1) / (inside.mean() + 1) - 1)


def continuity(seam: float) -> float:
    """A seam as a share: 1 where there is none, 0.5 where the step is twice its neighbours."""
    return 1 / (1 + max(0.0, seam))
