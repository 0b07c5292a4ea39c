"""Writes prompts of the shapes world: a story in many wordings.

Knows: how people say things (verbs, synonyms, word orders). Does not know: how a sentence is read (`grammar.parse`).
The two are held together by a test: every caption parses back to the scene it was written from.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from arvid.worlds import grammar
from arvid.worlds.grammar import Background, Event, Motion, Scene, Thing

HELD_OUT = 7
"""A prompt whose first scene has a (colour, shape, motion) fingerprint of 0 modulo this is never drawn for training.
What comes after a cut or an event may be of either part: the recipes of transformers look at every scene they are
shown (`recipes.world`), those of the text encoder, the autoencoder and the frame reward do not."""


@dataclass(frozen=True)
class Caption:
    """A prompt and the acts it was written from."""

    prompt: str
    acts: tuple[Scene | tuple[Event, ...], ...]


def sample(rng: random.Random, levels: tuple[int, ...] = (1, 2), held_out: bool = False) -> Caption:
    """A random caption of one of the levels (see `grammar.Story.level`), from the training or the held-out part.

    Raises ValueError for a level outside 1..4.
    """
    if not levels or not set(levels) <= {1, 2, 3, 4}:
        raise ValueError(f"levels {levels} asked for; the grammar has levels 1, 2, 3 and 4")
    while True:
        acts = _acts(rng, rng.choice(levels))
        first = acts[0]
        assert isinstance(first, Scene)
        if is_held_out(first) == held_out:
            return Caption(_write(acts, rng), acts)


def say(scene: Scene, rng: random.Random) -> str:
    """A prompt of one scene, in one of many wordings; of a scene without things its ground alone."""
    return _write((scene,), rng)


def is_held_out(scene: Scene) -> bool:
    """Whether a scene belongs to the held-out part: decided by what its things are and do, not by the wording."""
    total = 0
    for thing in scene.things:
        total += grammar.THING_COLOURS.index(thing.colour) * 3 + grammar.SHAPES.index(thing.shape) * 5
        total += ("still", "move", "bounce", "orbit").index(thing.motion.kind) + len(thing.motion.way)
    return total % HELD_OUT == 0


# ---------------------------------------------------------------- what to say


def _acts(rng: random.Random, level: int) -> tuple[Scene | tuple[Event, ...], ...]:
    if level <= 2:
        return (_scene(rng, level),)
    if level == 3:
        if rng.random() < 0.5:
            return (_scene(rng, 3),)
        scene = _scene(rng, rng.choice((1, 2)))
        return (scene, (_event(rng, scene),))
    if rng.random() < 0.5:
        scene = _scene(rng, rng.choice((1, 2)), camera=rng.choice(grammar.DIRECTIONS))
        return (scene,)
    return (_scene(rng, rng.choice((1, 2))), _scene(rng, rng.choice((1, 2))))


def _scene(rng: random.Random, count: int, camera: str = "") -> Scene:
    colours = rng.sample(grammar.THING_COLOURS, count)
    things = tuple(
        Thing(rng.choice(grammar.SHAPES), colour, rng.choice(grammar.SIZES), _motion(rng)) for colour in colours
    )
    return Scene(things, _background(rng, textured=bool(camera)), camera)


def _motion(rng: random.Random) -> Motion:
    kind = rng.choice(("still", "move", "move", "move", "bounce", "bounce", "orbit"))
    if kind == "still":
        return Motion()
    ways = {"move": grammar.DIRECTIONS, "bounce": grammar.AXES, "orbit": grammar.TURNS}[kind]
    return Motion(kind, rng.choice(ways), rng.choice(grammar.SPEEDS))


def _background(rng: random.Random, textured: bool = False) -> Background:
    kind = "texture" if textured else rng.choice(("plain", "plain", "gradient", "texture"))
    colours = tuple(rng.sample(grammar.BACKGROUND_COLOURS, 2))
    if kind == "gradient":
        return Background("gradient", colours)
    return Background(kind, colours[:1], rng.choice(grammar.TEXTURES) if kind == "texture" else "")


def _event(rng: random.Random, scene: Scene) -> Event:
    thing = rng.randrange(len(scene.things))
    kind = rng.choice(("stop", "reverse", "vanish", "recolour", "motion"))
    if scene.things[thing].motion.kind == "still" and kind in ("stop", "reverse"):
        kind = "recolour"
    if kind == "recolour":
        used = {t.colour for t in scene.things}
        return Event(kind, thing, rng.choice([c for c in grammar.THING_COLOURS if c not in used]))
    if kind == "motion":
        return Event(kind, thing, motion=Motion("move", rng.choice(grammar.DIRECTIONS), rng.choice(grammar.SPEEDS)))
    return Event(kind, thing)


# ---------------------------------------------------------------- how to say it


def _write(acts: tuple[Scene | tuple[Event, ...], ...], rng: random.Random) -> str:
    scene = acts[0]
    assert isinstance(scene, Scene)
    text = _say_scene(scene, rng)
    for act in acts[1:]:
        if isinstance(act, Scene):
            text += rng.choice((", then a new scene: ", "; then cut to ")) + _say_scene(act, rng)
        else:
            text += ", then " + " and ".join(_say_event(event, scene, rng) for event in act)
    return text[0].upper() + text[1:] + "." if rng.random() < 0.3 else text


def _say_scene(scene: Scene, rng: random.Random) -> str:
    clauses = []
    for thing in scene.things:
        noun, verb = _noun(thing, rng), _verb(thing.motion, rng)
        clauses.append(rng.choice((f"{noun} {verb[0]}", f"{noun} {verb[1]}", f"{noun} that {verb[0]}")))
    joint = rng.choice((" and ", " while ", ", "))
    text = joint.join(clauses)
    if len(clauses) == 1 and rng.random() < 0.15:
        thing = scene.things[0]
        text = f"{_verb(thing.motion, rng)[1]}, {_noun(thing, rng)}"
    ground = _ground(scene.background, rng)
    if not clauses:
        return ground
    text = rng.choice((f"{text} {ground}", f"{text}, {ground}", f"{ground}, {text}"))
    if scene.camera:
        text += rng.choice((f", the camera pans {scene.camera}", f", camera moving {scene.camera}"))
    opening = "" if text.startswith(("on", "ag", "ov")) else rng.choice(("", "", "", "a video of ", "we see "))
    return opening + text


def _noun(thing: Thing, rng: random.Random) -> str:
    shape = rng.choice(grammar.SHAPE_WORDS[thing.shape])
    colour = rng.choice(grammar.COLOUR_WORDS[thing.colour])
    if thing.size == "medium":
        size = rng.choice(("", "", "medium-sized "))
    else:
        size = rng.choice(grammar.SIZE_WORDS[thing.size]) + " "
    text = rng.choice((f"{size}{colour}", f"{size}{colour}", f"{colour} {size.strip()}".strip()))
    return ("an " if text[0] in "aeiou" else "a ") + f"{text} {shape}"


def _verb(motion: Motion, rng: random.Random) -> tuple[str, str]:
    """(present, participle) of a motion, with its adverb."""
    if motion.kind == "still":
        return rng.choice(
            (("stays still", "staying still"), ("does not move", "not moving"), ("rests", "resting"),
             ("stands still", "standing still"), ("is motionless", "sitting still"))
        )  # fmt: skip
    speed = rng.choice(grammar.SPEED_WORDS[motion.speed][:3]) if motion.speed != "medium" else ""
    if motion.speed == "medium" and rng.random() < 0.2:
        speed = "steadily"
    if motion.kind == "move":
        verb, way = _move(motion.way, rng)
    elif motion.kind == "bounce":
        verb = rng.choice(("bounce", "bounce", "jump", "ricochet"))
        way = rng.choice({
            "horizontal": ("left and right", "from side to side", "sideways", "horizontally"),
            "vertical": ("up and down", "vertically"),
            "diagonal": ("diagonally",),
        }[motion.way])  # fmt: skip
    else:
        verb = rng.choice(grammar.ORBIT_VERBS)
        way = rng.choice(grammar.TURN_WORDS[motion.way])
    order = rng.random()
    said = f"{way} {speed}".strip() if order < 0.7 else f"{speed} {way}".strip()
    return f"{_present(verb)} {said}".strip(), f"{_participle(verb)} {said}".strip()


def _move(way: str, rng: random.Random) -> tuple[str, str]:
    falls = [verb for verb, goes in grammar.FALL_VERBS.items() if goes == way]
    if falls and rng.random() < 0.25:
        return rng.choice(falls), ""
    said = rng.choice((way, way, f"{way}ward", f"{way}wards"))
    if way in ("left", "right") and rng.random() < 0.25:
        said = rng.choice((f"to the {way}", f"towards the {way}"))
    return rng.choice(grammar.MOVE_VERBS), said


def _present(verb: str) -> str:
    if verb == "fly":
        return "flies"
    return verb + ("es" if verb.endswith(("o", "s", "ch")) else "s")


def _participle(verb: str) -> str:
    if verb in ("run", "drop"):
        return verb + verb[-1] + "ing"
    return (verb[:-1] if verb.endswith("e") else verb) + "ing"


def _ground(background: Background, rng: random.Random) -> str:
    colours = [rng.choice(grammar.GROUND_WORDS[colour]) for colour in background.colours]
    place = rng.choice(("background", "backdrop"))
    if background.kind == "gradient":
        return rng.choice((
            f"on a gradient from {colours[0]} to {colours[1]}",
            f"against a {colours[0]} to {colours[1]} gradient",
            f"over a {place} fading from {colours[0]} to {colours[1]}",
        ))  # fmt: skip
    if background.kind == "texture":
        word = rng.choice({"stripes": ("striped",), "checks": ("checkered", "checked"), "spots": ("spotted", "dotted")}[
            background.texture
        ])  # fmt: skip
        return rng.choice((f"on a {word} {colours[0]} {place}", f"over a {colours[0]} {word} {place}"))
    return rng.choice((
        f"on a {colours[0]} {place}", f"on a plain {colours[0]} {place}", f"against {colours[0]}", f"on {colours[0]}",
        f"in front of a {colours[0]} {place}",
    ))  # fmt: skip


def _say_event(event: Event, scene: Scene, rng: random.Random) -> str:
    thing = scene.things[event.thing]
    who = f"the {thing.colour} {thing.shape}"
    if event.kind == "recolour":
        return f"{who} {rng.choice(('turns', 'becomes'))} {event.value}"
    if event.kind == "motion":
        return f"{who} {_verb(event.motion, rng)[0]}"
    return f"{who} " + rng.choice({
        "stop": ("stops", "halts"), "reverse": ("reverses", "turns back"), "vanish": ("vanishes", "disappears"),
    }[event.kind])  # fmt: skip
