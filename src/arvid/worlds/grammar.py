"""The prompt grammar of the shapes world: what can be said, and what a sentence means.

Knows: words, their synonyms, and the story (acts, scenes, things) that a prompt describes.
Does not know: pixels, seconds, models. `parse` is the only reader of prompts; `worlds.captions` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

THING_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan")
BACKGROUND_COLOURS = ("black", "white", "gray", "brown", "beige", "navy")
SHAPES = ("circle", "square", "triangle", "diamond", "star")
SIZES = ("small", "medium", "large")
SPEEDS = ("slow", "medium", "fast")
DIRECTIONS = ("left", "right", "up", "down")
AXES = ("horizontal", "vertical", "diagonal")
TURNS = ("clockwise", "anticlockwise")
TEXTURES = ("stripes", "checks", "spots")


@dataclass(frozen=True)
class Motion:
    """How a thing moves: `kind` is still, move, bounce or orbit; `way` a direction, an axis or a turn."""

    kind: str = "still"
    way: str = ""
    speed: str = "medium"


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    shape: str
    colour: str
    size: str = "medium"
    motion: Motion = field(default_factory=Motion)


@dataclass(frozen=True)
class Background:
    """`kind` is plain, gradient (two colours, top to bottom) or texture (one colour and a pattern)."""

    kind: str = "plain"
    colours: tuple[str, ...] = ("black",)
    texture: str = ""


@dataclass(frozen=True)
class Event:
    """A change to one thing of the running scene: stop, reverse, vanish, recolour (value) or motion."""

    kind: str
    thing: int
    value: str = ""
    motion: Motion = field(default_factory=Motion)


@dataclass(frozen=True)
class Scene:
    """What is on the stage: one to three things of different colours, a background, a camera pan ('' is none)."""

    things: tuple[Thing, ...]
    background: Background = field(default_factory=Background)
    camera: str = ""


@dataclass(frozen=True)
class Story:
    """A first scene and what follows it: every later act is a new Scene or a tuple of Events."""

    acts: tuple[Scene | tuple[Event, ...], ...]
    unknown: tuple[str, ...] = ()

    @property
    def scene(self) -> Scene:
        """The scene of the first act."""
        first = self.acts[0]
        assert isinstance(first, Scene)
        return first

    @property
    def level(self) -> int:
        """1: one thing; 2: two things; 3: three things or events; 4: new scenes or a camera pan."""
        scenes = [act for act in self.acts if isinstance(act, Scene)]
        if len(scenes) > 1 or any(scene.camera for scene in scenes):
            return 4
        return 3 if len(self.acts) > 1 else len(self.scene.things)


# ---------------------------------------------------------------- words

SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc", "disk"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
}
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow", "golden"),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
}
GROUND_WORDS = {
    "black": ("black",),
    "white": ("white",),
    "gray": ("gray", "grey"),
    "brown": ("brown",),
    "beige": ("beige", "tan"),
    "navy": ("navy",),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium",), "large": ("large", "big", "huge")}
SPEED_WORDS = {
    "slow": ("slowly", "gently", "leisurely", "slow"),
    "medium": ("steadily",),
    "fast": ("quickly", "fast", "rapidly", "swiftly"),
}
WAY_WORDS = {
    "left": ("left", "leftward", "leftwards"),
    "right": ("right", "rightward", "rightwards"),
    "up": ("up", "upward", "upwards"),
    "down": ("down", "downward", "downwards"),
}
AXIS_WORDS = {
    "horizontal": ("sideways", "horizontally"),
    "vertical": ("vertically",),
    "diagonal": ("diagonally",),
}
TURN_WORDS = {"clockwise": ("clockwise",), "anticlockwise": ("anticlockwise", "counterclockwise")}
MOVE_VERBS = ("move", "drift", "slide", "glide", "travel", "go", "fly", "float", "head", "roll", "run")
FALL_VERBS = {"fall": "down", "sink": "down", "drop": "down", "rise": "up", "climb": "up"}
BOUNCE_VERBS = ("bounce", "jump", "ricochet", "hop")
ORBIT_VERBS = ("orbit", "revolve", "loop")
STILL_WORDS = ("still", "motionless", "rest", "unmoving", "stationary", "stay", "stand", "sit")
TEXTURE_WORDS = {
    "stripes": ("striped", "stripes", "stripy"),
    "checks": ("checkered", "checked", "checkerboard", "chequered"),
    "spots": ("spotted", "spots", "dotted"),
}
GRADIENT_WORDS = ("gradient", "fading", "fade")
CAMERA_WORDS = ("camera", "pan", "view")
STOP_WORDS = ("stop", "halt", "freeze")
REVERSE_WORDS = ("reverse", "return", "turn back")
VANISH_WORDS = ("vanish", "disappear")
RECOLOUR_WORDS = ("turn", "become", "change")
SCENE_WORDS = ("scene", "cut")
PLAIN_WORDS = (
    "a an the it its is are be there in on of to from at by with and while as against over across front background "
    "backdrop plain solid uniform colour color colored coloured sized size speed towards toward off "
    "into new we see shows showing video clip wall ground one two three another other around round around not does "
    "dont doesnt any keep keeps side sides corner corners screen frame edge edges high low pace back behind that which "
    "sized constantly makes place dark way direction"
).split()

_STEMS = {
    "sits": "sit", "sitting": "sit", "stays": "stay", "staying": "stay", "stands": "stand", "standing": "stand",
    "rests": "rest", "resting": "rest", "going": "go", "goes": "go", "flies": "fly", "flying": "fly",
    "running": "run", "panning": "pan", "hopping": "hop", "stopping": "stop", "dropping": "drop",
    "pans": "pan", "stopped": "stop", "turns": "turn", "freezing": "freeze", "cuts": "cut", "moved": "move",
}  # fmt: skip
_PHRASES = (
    (r"\bleft and right\b|\bright and left\b|\b(from )?side to side\b|\bback and forth\b", "sideways"),
    (r"\bup and down\b|\bdown and up\b", "vertically"),
    (r"\bdark blue\b", "navy"),
    (r"\bcounter-clockwise\b|\bcounter clockwise\b|\banti-clockwise\b", "anticlockwise"),
    (r"\bdo(es)? not move\b|\bdoesn'?t move\b|\bwithout moving\b|\bnot moving\b", "motionless"),
    (r"\bturn(s|ing)? (back|around|round)\b", "reverse"),
    (r"\bmedium-sized\b", "medium"),
    (r"\bpolka dots?\b", "spots"),
)


def _index(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: name for name, words in table.items() for word in words}


_SHAPE, _COLOUR, _GROUND, _SIZE = (_index(table) for table in (SHAPE_WORDS, COLOUR_WORDS, GROUND_WORDS, SIZE_WORDS))
_SPEED, _WAY, _AXIS, _TURN, _TEXTURE = (
    _index(table) for table in (SPEED_WORDS, WAY_WORDS, AXIS_WORDS, TURN_WORDS, TEXTURE_WORDS)
)
_VERBS = {
    **dict.fromkeys((*MOVE_VERBS, *FALL_VERBS), "move"),
    **dict.fromkeys(BOUNCE_VERBS, "bounce"),
    **dict.fromkeys(ORBIT_VERBS, "orbit"),
    **dict.fromkeys(STILL_WORDS, "still"),
}
_CHANGES = {
    **dict.fromkeys(STOP_WORDS, "stop"),
    **dict.fromkeys(REVERSE_WORDS, "reverse"),
    **dict.fromkeys(VANISH_WORDS, "vanish"),
    **dict.fromkeys(RECOLOUR_WORDS, "recolour"),
}
_KNOWN = set().union(
    _SHAPE, _COLOUR, _GROUND, _SIZE, _SPEED, _WAY, _AXIS, _TURN, _TEXTURE, _VERBS, _CHANGES,
    GRADIENT_WORDS, CAMERA_WORDS, SCENE_WORDS, PLAIN_WORDS,
)  # fmt: skip


def stem(word: str) -> str:
    """The dictionary form of a word where one is known ('gliding' -> 'glide'), else the word itself."""
    if word in _KNOWN:
        return word
    if word in _STEMS:
        return _STEMS[word]
    for ending, put in (("ing", ""), ("ing", "e"), ("es", ""), ("es", "e"), ("s", ""), ("ed", ""), ("ed", "e")):
        if word.endswith(ending) and word[: -len(ending)] + put in _KNOWN:
            return word[: -len(ending)] + put
    return word


def words(text: str) -> list[str]:
    """Lower-case words and clause marks (',') of a prompt, phrases folded and endings removed."""
    text = text.lower()
    for pattern, put in _PHRASES:
        text = re.sub(pattern, put, text)
    text = re.sub(r"[.;:!?()]", ",", text)
    return [stem(word.replace("'", "")) for word in re.findall(r"[a-z']+|,", text)]


# ---------------------------------------------------------------- parsing

THEN = re.compile(r"[,;.]?\s*\b(?:and )?(?:then|after that|afterwards)\b,?", re.IGNORECASE)
"""What stands between two acts."""


def parse(prompt: str) -> Story:
    """The story a prompt tells. Words outside the grammar are listed in `Story.unknown`; what is left unsaid takes
    the defaults (medium size and speed, standing still, plain black).

    Raises ValueError when the prompt is empty or names no shape at all.
    """
    if not prompt.strip():
        raise ValueError(f"the prompt is empty; say for example {EXAMPLE!r}")
    acts: list[Scene | tuple[Event, ...]] = []
    unknown: list[str] = []
    for text in THEN.split(prompt):
        tokens = words(text)
        unknown += [word for word in tokens if word != "," and word not in _KNOWN]
        if not acts or any(word in SCENE_WORDS for word in tokens):
            acts.append(_scene(tokens, prompt))
        elif any(word != "," for word in tokens):
            acts.append(_events(tokens, _latest(acts)))
    return Story(tuple(acts), tuple(dict.fromkeys(unknown)))


EXAMPLE = "a small red circle moves right while a large blue square bounces up and down on a gray background"


def _latest(acts: list[Scene | tuple[Event, ...]]) -> Scene:
    return next(act for act in reversed(acts) if isinstance(act, Scene))


def _clauses(tokens: list[str]) -> list[list[str]]:
    clauses: list[list[str]] = [[]]
    for word in tokens:
        if word in (",", "and", "while", "as", "with"):
            clauses.append([])
        else:
            clauses[-1].append(word)
    return [clause for clause in clauses if clause]


def _find(clause: list[str], table: dict[str, str]) -> str:
    return next((table[word] for word in clause if word in table), "")


def _motion(clause: list[str]) -> Motion | None:
    """The motion a clause names, or None. A direction without a verb counts; a speed alone does not."""
    kind = next((_VERBS[word] for word in clause if word in _VERBS), "")
    turn, axis, way = _find(clause, _TURN), _find(clause, _AXIS), _find(clause, _WAY)
    speed = _find(clause, _SPEED) or "medium"
    if turn or kind == "orbit":
        return Motion("orbit", turn or "clockwise", speed)
    if axis or kind == "bounce":
        default = {"left": "horizontal", "right": "horizontal", "": "vertical"}.get(way, "vertical")
        return Motion("bounce", axis or default, speed)
    fall = _find(clause, FALL_VERBS)
    if way or fall or kind == "move":
        return Motion("move", way or fall or "right", speed)
    return Motion() if kind == "still" else None


def _scene(tokens: list[str], prompt: str) -> Scene:
    things: list[Thing] = []
    motions: list[Motion | None] = []
    pending: Motion | None = None
    camera = ""
    for clause in _clauses(tokens):
        if any(word in CAMERA_WORDS for word in clause):
            camera = _find(clause, _WAY)
            continue
        nouns = [i for i, word in enumerate(clause) if word in _SHAPE]
        motion = _motion(clause)
        if not nouns:
            if motion and motions and motions[-1] is None:
                motions[-1] = motion
            elif motion:
                pending = motion
            continue
        for place, noun in enumerate(nouns):
            before = clause[(nouns[place - 1] + 1 if place else 0) : noun]
            things.append(Thing(_SHAPE[clause[noun]], _find(before, _COLOUR), _find(before, _SIZE) or "medium"))
            motions.append(None)
        motions[-1] = motion or pending
        pending = None
    if not things:
        raise ValueError(
            f"no shape found in {prompt!r}; the shapes world knows {', '.join(SHAPES)}: for example {EXAMPLE!r}"
        )
    things = [Thing(t.shape, t.colour, t.size, m or Motion()) for t, m in zip(things, motions, strict=True)]
    return Scene(_coloured(things[:3]), _background(tokens), camera)


def _coloured(things: list[Thing]) -> tuple[Thing, ...]:
    """Every thing gets a colour of its own: an unsaid or repeated colour becomes the first free one."""
    said = {thing.colour for thing in things}
    free = [colour for colour in THING_COLOURS if colour not in said]
    used: set[str] = set()
    result = []
    for thing in things:
        colour = thing.colour if thing.colour and thing.colour not in used else free.pop(0)
        used.add(colour)
        result.append(Thing(thing.shape, colour, thing.size, thing.motion))
    return tuple(result)


def _background(tokens: list[str]) -> Background:
    colours = tuple(_GROUND[word] for word in tokens if word in _GROUND)
    texture = _find(tokens, _TEXTURE)
    if texture:
        return Background("texture", colours[:1] or ("gray",), texture)
    if any(word in GRADIENT_WORDS for word in tokens):
        return Background("gradient", (*colours, "black", "white")[:2])
    return Background("plain", colours[:1] or ("black",))


def _events(tokens: list[str], scene: Scene) -> tuple[Event, ...]:
    events = []
    for clause in _clauses(tokens):
        colour, shape = _find(clause, _COLOUR), _find(clause, _SHAPE)
        kind = _find(clause, _CHANGES)
        thing = next((i for i, t in enumerate(scene.things) if t.shape == shape), 0)
        named = sum(word in _COLOUR for word in clause) > (kind == "recolour")
        if named:
            thing = next((i for i, t in enumerate(scene.things) if t.colour == colour), thing)
        motion = _motion(clause)
        if kind == "recolour" and colour:
            events.append(Event("recolour", thing, _recolour(clause)))
        elif kind in ("stop", "reverse", "vanish"):
            events.append(Event(kind, thing))
        elif motion:
            events.append(Event("motion", thing, motion=motion))
    return tuple(events)


def _recolour(clause: list[str]) -> str:
    """The last colour of the clause: in 'the red ball turns blue' it is what the thing becomes."""
    return [_COLOUR[word] for word in clause if word in _COLOUR][-1]
