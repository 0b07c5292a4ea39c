"""Training the small text encoder: its token embeddings must let a reader name everything the prompt says.

Knows: the vocabulary of the shapes world, the fields of a scene, the two throw-away readers. Does not know: which
encoder it trains (a module from token numbers and mask to embeddings) nor who uses it later.

Two readers share the loss. The slot reader is one cross-attention whose learned queries each ask for one field of one
thing by its place in the prompt. The noun reader is linear on the single token that names the thing's shape: what it
can read there is bound to that thing, so that one look-up of a later cross-attention finds the whole thing.

Legend: B prompts, L tokens, D width, K thing slots.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.worlds import captions, grammar
from arvid.worlds.grammar import Scene

THINGS = 3
ABSENT = -100
"""The target of a field of a thing that is not there; cross-entropy leaves it out."""
WAYS = ("", *grammar.DIRECTIONS, *grammar.AXES, *grammar.TURNS)
THING_FIELDS: dict[str, tuple[str, ...]] = {
    "shape": grammar.SHAPES,
    "colour": grammar.THING_COLOURS,
    "size": grammar.SIZES,
    "motion": ("still", "move", "bounce", "orbit"),
    "way": WAYS,
    "speed": grammar.SPEEDS,
}
SCENE_FIELDS: dict[str, tuple[str, ...]] = {
    "ground": ("plain", "gradient", "texture"),
    "ground colour": grammar.BACKGROUND_COLOURS,
    "second colour": ("", *grammar.BACKGROUND_COLOURS),
    "texture": ("", *grammar.TEXTURES),
    "camera": ("", *grammar.DIRECTIONS),
    "things": ("1", "2", "3"),
}
DROP = 0.02
"""Share of tokens replaced by the unknown token in training."""
SWAP = 0.05
"""Share of words replaced by one of the same meaning, so that words the captions never write are learned too."""
FILL = 0.3
"""Share of prompts that get one more word which says nothing."""

Tokenise = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Prompts to token numbers and mask, both [B, L]."""


class TextBatch(NamedTuple):
    """Tokens [B, L], their mask, where thing k's shape word stands [B, K] (0 where absent), and the targets: things
    [B, K, thing fields] and scene [B, scene fields], class numbers, ABSENT for things that are not there."""

    ids_BL: Tensor
    mask_BL: Tensor
    noun_BK: Tensor
    things_BKF: Tensor
    scene_BF: Tensor


# ---------------------------------------------------------------- words


def inflections(verb: str) -> tuple[str, ...]:
    """A verb's dictionary form, present and participle ('glide', 'glides', 'gliding')."""
    irregular = {"fly": ("fly", "flies", "flying"), "go": ("go", "goes", "going")}
    if verb in irregular:
        return irregular[verb]
    present = verb + ("es" if verb.endswith(("s", "sh", "ch", "o", "x")) else "s")
    if verb in ("run", "drop", "hop", "stop", "sit", "pan", "cut", "spot"):
        return verb, present, f"{verb}{verb[-1]}ing"
    return verb, present, (verb[:-1] if verb.endswith("e") and verb != "see" else verb) + "ing"


_STILL_VERBS = ("rest", "stay", "stand", "sit")
_CHANGE_VERBS = (*grammar.STOP_WORDS, *grammar.VANISH_WORDS, "reverse", "return", "turn", "become", "change")
_VERB_GROUPS = (
    grammar.MOVE_VERBS,
    *(tuple(v for v, way in grammar.FALL_VERBS.items() if way == said) for said in ("up", "down")),
    grammar.BOUNCE_VERBS,
    grammar.ORBIT_VERBS,
    _STILL_VERBS,
)
_TABLES = (
    grammar.SHAPE_WORDS, grammar.COLOUR_WORDS, grammar.GROUND_WORDS, grammar.SIZE_WORDS, grammar.SPEED_WORDS,
    grammar.WAY_WORDS, grammar.AXIS_WORDS, grammar.TURN_WORDS, grammar.TEXTURE_WORDS,
)  # fmt: skip
_EXTRA = (
    "then", "after", "afterwards", "counter", "anti", "without", "polka", "dots", "forth", "moved", "stopped",
    "travelling",
)  # fmt: skip
_SHAPE_FORMS = tuple(
    (*said, *(word + ("es" if word in ("box", "rhombus") else "s") for word in said))
    for said in grammar.SHAPE_WORDS.values()
)
_PHRASES = {
    "sideways": ("back and forth", "side to side"),
    "vertically": ("down and up", "up and down"),
    "anticlockwise": ("anti-clockwise", "counter-clockwise"),
    "counterclockwise": ("anti-clockwise", "counter-clockwise"),
    "motionless": ("not moving", "without moving"),
    "navy": ("dark blue",),
    "spotted": ("polka dots",),
    "background": ("wall", "ground", "screen", "backdrop"),
    "turns": ("is turning", "changes to"),
    "reverses": ("turns around", "returns", "turns back", "turns round"),
    "stops": ("freezes", "is stopped", "stands still"),
}
"""Ways of saying a word that the captions do not write."""
_SILENT = tuple(
    word for word in grammar.PLAIN_WORDS
    if word not in (
        "and", "with", "while", "as", "not", "does", "dont", "doesnt", "around", "round", "back", "from", "dark",
        "ground", "keep", "keeps",
    )
)  # fmt: skip


def vocabulary() -> tuple[str, ...]:
    """Every word the captions write or the grammar knows, inflected, sorted."""
    found = {word for table in _TABLES for said in table.values() for word in said}
    found |= {form for forms in _SHAPE_FORMS for form in forms}
    verbs = (*(verb for group in _VERB_GROUPS for verb in group), *_CHANGE_VERBS, "pan", "fade", "cut", "show")
    found |= {form for verb in verbs for form in inflections(verb)}
    found |= {*grammar.STILL_WORDS, *grammar.GRADIENT_WORDS, *grammar.CAMERA_WORDS, *grammar.SCENE_WORDS}
    return tuple(sorted(found | {*grammar.REVERSE_WORDS[:2], *grammar.PLAIN_WORDS, *_EXTRA}))


def _synonyms() -> dict[str, tuple[str, ...]]:
    """Other ways of saying a word, of the same meaning and form."""
    groups: list[tuple[str, ...]] = [said for table in _TABLES[1:] for said in table.values()]
    groups += [*_SHAPE_FORMS]
    groups += [tuple(inflections(verb)[form] for verb in group) for group in _VERB_GROUPS for form in range(3)]
    groups += [("camera", "view"), ("motionless", "unmoving", "stationary"), ("traveling", "travelling")]
    found = dict(_PHRASES)
    for said in groups:
        for word in said:
            found[word] = (*found.get(word, ()), *(other for other in said if other != word))
    return {word: others for word, others in found.items() if others}


SYNONYMS = _synonyms()


def reword(prompt: str, rng: random.Random) -> str:
    """The prompt with some words swapped for synonyms and now and then a word more that says nothing."""
    said = prompt.split(" ")
    for place, word in enumerate(said):
        bare = word.rstrip(",.;:")
        others = SYNONYMS.get(bare.lower())
        if others and rng.random() < SWAP:
            said[place] = rng.choice(others) + word[len(bare) :]
    if rng.random() < FILL:
        said.insert(rng.randrange(len(said) + 1), rng.choice(_SILENT))
    return " ".join(said)


# ---------------------------------------------------------------- batches


def targets(scene: Scene) -> tuple[list[list[int]], list[int]]:
    """Class numbers of a scene: THINGS rows of thing fields and one row of scene fields."""
    rows = [[ABSENT] * len(THING_FIELDS) for _ in range(THINGS)]
    for row, thing in zip(rows, scene.things, strict=False):
        motion = thing.motion
        values = (thing.shape, thing.colour, thing.size, motion.kind, motion.way, motion.speed)
        row[:] = [names.index(value) for names, value in zip(THING_FIELDS.values(), values, strict=True)]
    ground = scene.background
    second = ground.colours[1] if len(ground.colours) > 1 else ""
    said = (ground.kind, ground.colours[0], second, ground.texture, scene.camera, str(len(scene.things)))
    return rows, [names.index(value) for names, value in zip(SCENE_FIELDS.values(), said, strict=True)]


class Captions:
    """Batches of captions, a pure function of (seed, step): training ones reworded and with words dropped, held-out
    ones as the caption generator writes them. Steps take turns through `levels`, so that the prompts of a batch are of
    like length and little is spent on padding."""

    def __init__(
        self,
        tokenise: Tokenise,
        unknown: int,
        batch: int = 128,
        levels: tuple[int, ...] = (1, 2, 3, 4),
        seed: int = 0,
        held_out: bool = False,
    ) -> None:
        self.tokenise = tokenise
        self.unknown = unknown
        self.batch = batch
        self.levels = levels
        self.seed = seed
        self.held_out = held_out
        shapes = [word for said in _SHAPE_FORMS for word in said]
        self.shape_ids = tokenise([" ".join(shapes)])[0][0, : len(shapes)]

    def __call__(self, step: int) -> TextBatch:
        """The batch of a step."""
        rng = random.Random(f"text/{self.seed}/{self.held_out}/{step}")
        level = self.levels[step % len(self.levels)]
        drawn = [captions.sample(rng, (level,), self.held_out) for _ in range(self.batch)]
        prompts = [caption.prompt if self.held_out else reword(caption.prompt, rng) for caption in drawn]
        ids_BL, mask_BL = self.tokenise(prompts)
        longest = int(mask_BL.sum(1).max())
        ids_BL, mask_BL = ids_BL[:, :longest], mask_BL[:, :longest]
        rows = [targets(first) for caption in drawn if isinstance(first := caption.acts[0], Scene)]
        things_BKF = torch.tensor([things for things, _ in rows])
        scene_BF = torch.tensor([scene for _, scene in rows])
        noun_BK = self._nouns(ids_BL, things_BKF)
        if not self.held_out:
            generator = torch.Generator().manual_seed(rng.getrandbits(62))
            dropped = torch.rand(ids_BL.shape, generator=generator) < DROP
            dropped.scatter_(1, mask_BL.sum(1, keepdim=True) - 1, False)
            ids_BL = ids_BL.masked_fill(dropped & mask_BL.bool(), self.unknown)
        return TextBatch(ids_BL, mask_BL, noun_BK, things_BKF, scene_BF)

    def _nouns(self, ids_BL: Tensor, things_BKF: Tensor) -> Tensor:
        """Position of the k-th shape word, which names the k-th thing."""
        rank_BL = torch.isin(ids_BL, self.shape_ids).long().cumsum(1)
        at_BK = torch.stack([(rank_BL == k + 1).long().argmax(1) for k in range(THINGS)], 1)
        return torch.where(things_BKF[..., 0] == ABSENT, 0, at_BK)


# ---------------------------------------------------------------- readers


class Reader(nn.Module):
    """An encoder and the two readers its training needs; `encoder` maps (ids_BL, mask_BL) to x_BLD."""

    def __init__(self, encoder: nn.Module, width: int, heads: int = 4) -> None:
        super().__init__()
        self.encoder = encoder
        things = [len(names) for names in THING_FIELDS.values()]
        self.sizes = things * THINGS + [len(names) for names in SCENE_FIELDS.values()]
        self.queries_QD = nn.Parameter(torch.randn(len(self.sizes), width, generator=torch.Generator().manual_seed(0)))
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.name = nn.ModuleList(nn.Linear(width, size) for size in self.sizes)
        self.noun = nn.ModuleList(nn.Linear(width, size) for size in things)

    def forward(self, batch: TextBatch) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of every slot query [B, classes], and of every thing field at the noun [B, K, classes]."""
        x_BLD = self.encoder(batch.ids_BL, batch.mask_BL)
        queries_BQD = self.queries_QD.expand(len(x_BLD), -1, -1)
        y_BQD, _ = self.attend(queries_BQD, x_BLD, x_BLD, key_padding_mask=batch.mask_BL == 0, need_weights=False)
        at_BKD = torch.take_along_dim(x_BLD, batch.noun_BK[..., None], 1)
        slots = [layer(y_BQD[:, place]) for place, layer in enumerate(self.name)]
        return slots, [layer(at_BKD) for layer in self.noun]


class Reading:
    """The objective: mean cross-entropy of the slot reader plus that of the noun reader."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __call__(self, batch: TextBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss and its two parts, in nats per field; `generator` is not drawn from."""
        slots, nouns = self.reader(batch)
        wanted = _wanted(batch)
        slot = torch.stack([entropy(a, b) for a, b in zip(slots, wanted, strict=True)]).mean()
        told = torch.stack([entropy(a, batch.things_BKF[..., f]) for f, a in enumerate(nouns)]).mean()
        return {"loss": slot + told, "slot": slot.detach(), "noun": told.detach()}


@torch.no_grad()
def accuracy(reader: Reader, source: Callable[[int], TextBatch], batches: int) -> dict[str, float]:
    """Share of right fields in [0, 1] over `batches` batches: by slot ('colour', over the things that are there), at
    the noun ('noun colour'), over all slots ('fields'), and the share of prompts with every slot right ('prompts')."""
    right: dict[str, list[Tensor]] = {}
    for step in range(batches):
        batch = source(step)
        slots, nouns = reader(batch)
        names = [*THING_FIELDS] * THINGS + [*SCENE_FIELDS]
        hits_BQ = torch.stack([a.argmax(-1) == b for a, b in zip(slots, _wanted(batch), strict=True)], 1)
        there_BQ = torch.stack(_wanted(batch), 1) != ABSENT
        for place, name in enumerate(names):
            right.setdefault(name, []).append(hits_BQ[:, place][there_BQ[:, place]])
        for name, logits, wanted in zip(THING_FIELDS, nouns, batch.things_BKF.unbind(-1), strict=True):
            right.setdefault(f"noun {name}", []).append((logits.argmax(-1) == wanted)[wanted != ABSENT])
        right.setdefault("fields", []).append(hits_BQ[there_BQ])
        right.setdefault("prompts", []).append((hits_BQ | ~there_BQ).all(1))
    return {name: torch.cat(hits).float().mean().item() for name, hits in right.items()}


def _wanted(batch: TextBatch) -> list[Tensor]:
    return [*batch.things_BKF.flatten(1).unbind(1), *batch.scene_BF.unbind(1)]


def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy over the targets that are there; 0 where none is."""
    total = F.cross_entropy(logits.flatten(0, -2), wanted.flatten(), ignore_index=ABSENT, reduction="sum")
    return total / (wanted != ABSENT).sum().clamp(min=1)
