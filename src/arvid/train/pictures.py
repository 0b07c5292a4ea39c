"""Single frames of the shapes world: right and clean, wrong in one field, or flawed by a known amount.

Knows: how to draw one moment of a story, wrongly or badly, what it then shows, and how much of it is kept.
Does not know: prompts' wording, models, losses. What `train.reward` teaches is drawn here; the oracle is never asked.

Legend: N frames, T frames of a track, C channels, H height, W width; drawings are [64, 64, 3] in 0..255, pixels
v_NCHW in [-1, 1].
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from arvid.worlds import grammar, shapes
from arvid.worlds.grammar import Background, Thing
from arvid.worlds.shapes import Take, Track

HARM = 18.0
"""Mean absolute error (0..255) over the worst 9 x 9 patch that halves what counts as kept."""
CHANGES = ("colour", "shape", "size", "background", "missing", "added")
"""The fields of a scene in which a wrong picture differs."""
CLEARLY, BARELY = 0.3, 0.05
"""Shares of a cell that a thing covers."""
THING_FLAWS = ("ghost", "erased", "smeared", "faded", "wobbly", "double")
FRAME_FLAWS = ("blurred", "noisy", "patched", "tinted")
FLAWS = THING_FLAWS + FRAME_FLAWS
NAMES = (
    *grammar.SHAPES, *grammar.THING_COLOURS, *grammar.SIZES, *grammar.BACKGROUND_COLOURS,
    "plain", "gradient", "texture", *grammar.TEXTURES,
    *(f"{colour} {said}" for colour in grammar.THING_COLOURS for said in (*grammar.SHAPES, *grammar.SIZES)),
)  # fmt: skip
"""What `named` tells of a look, one number each; the pairs tell which thing has which shape and size."""
Patch = tuple[np.ndarray, ...]
"""Coverage [h, h] and the rows and the columns [h] it lies on."""
Look = tuple[Background, tuple[Thing, ...]]


@dataclass(frozen=True)
class Flaw:
    """A way to spoil a picture, with strength in (0, 1]; `seed` decides the details, the same for a whole clip."""

    kind: str = ""
    strength: float = 0.0
    seed: int = 0


SOUND = Flaw()

# ---------------------------------------------------------------- drawing


def take_at(film: list[Take], time: int) -> Take:
    """The take that holds frame `time` of a film."""
    return next(take for take in film if take.start <= time < take.stop)


def draw(film: list[Take], time: int, flaw: Flaw = SOUND) -> np.ndarray:
    """One frame [64, 64, 3] float32 in 0..255, spoilt by a flaw of a thing or of the frame; without one it is the
    frame that `shapes.render` makes, before rounding."""
    take, rng = take_at(film, time), np.random.default_rng(flaw.seed)
    shift = take.camera_T2[time - take.start]
    picture = np.roll(
        shapes.backdrop(take.scene.background, shapes.SIZE), np.rint(shift * shapes.SIZE).astype(int)[::-1], (0, 1)
    )
    seen = [track for track in take.tracks if track.visible]
    spoilt = int(rng.integers(len(seen))) if seen else 0
    for index, track in enumerate(seen):
        spot = track.path_T2[time - take.start] + shift
        patches = [_patch(track.thing, spot)]
        if flaw.kind in THING_FLAWS and index == spoilt:
            patches = _spoil(track, spot, patches[0], flaw, rng)
        colour = np.array(shapes.PALETTE[track.thing.colour], np.float32)
        for mask, rows, columns in patches:
            place = (rows[:, None], columns[None])
            picture[place] += mask[..., None] * (colour - picture[place])
    return _spoil_frame(picture, flaw, rng) if flaw.kind in FRAME_FLAWS else picture


def _patch(thing: Thing, spot: np.ndarray) -> Patch:
    return tuple(part[0] for part in shapes.coverage(thing, spot[None], shapes.SIZE))


def _spoil(track: Track, spot: np.ndarray, patch: Patch, flaw: Flaw, rng: np.random.Generator) -> list[Patch]:
    """What is drawn in place of a thing."""
    mask, rows, columns = patch
    angle, strength = rng.uniform(0, 2 * np.pi), flaw.strength
    way = np.array([np.cos(angle), np.sin(angle)])
    if flaw.kind == "faded":
        return [(mask * (1 - 0.9 * strength), rows, columns)]
    if flaw.kind == "double":
        other, at_rows, at_columns = _patch(track.thing, spot + rng.uniform(0.15, 0.5) * way)
        return [patch, (other * min(1.0, 0.3 + strength), at_rows, at_columns)]
    if flaw.kind == "ghost":
        weight = 0.5 * strength
        other, at_rows, at_columns = _patch(track.thing, spot + rng.uniform(0.04, 0.3) * way)
        return [(mask * (1 - weight), rows, columns), (other * weight, at_rows, at_columns)]
    if flaw.kind == "smeared":
        steps = np.linspace(-0.5, 0.5, 7)[:, None] * (0.03 + 0.17 * strength) * way
        many, all_rows, all_columns = shapes.coverage(track.thing, spot + steps, shapes.SIZE)
        canvas = np.zeros((shapes.SIZE, shapes.SIZE), np.float32)
        for one, at_rows, at_columns in zip(many, all_rows, all_columns, strict=True):
            canvas[at_rows[:, None], at_columns[None]] += one / len(many)
        return [(canvas, np.arange(shapes.SIZE), np.arange(shapes.SIZE))]
    grid = (np.mgrid[0 : len(mask), 0 : len(mask)] + 0.5) / len(mask) * 2 - 1
    if flaw.kind == "erased":
        near = shapes.RADII[track.thing.size] * shapes.SIZE * 2 / len(mask)
        along = (grid[0] * way[1] + grid[1] * way[0]) / near
        keep = 1 / (1 + np.exp((along - 0.8 + 1.3 * strength) * rng.uniform(2, 12)))
        return [(mask * keep.astype(np.float32), rows, columns)]
    waves = rng.integers(2, 6, 4)
    phase = rng.uniform(0, 2 * np.pi, 4)
    bend = [np.sin(np.pi * (grid[0] * waves[i] + grid[1] * waves[i + 1]) + phase[i]) for i in (0, 2)]
    where = np.mgrid[0 : len(mask), 0 : len(mask)] + (0.6 + 2.6 * strength) * np.stack(bend)
    return [(ndimage.map_coordinates(mask, where, order=1), rows, columns)]


def _spoil_frame(picture: np.ndarray, flaw: Flaw, rng: np.random.Generator) -> np.ndarray:
    strength = flaw.strength
    if flaw.kind == "blurred":
        width = 0.4 + 2.4 * strength
        return np.asarray(ndimage.gaussian_filter(picture, (width, width, 0), mode="wrap"))
    if flaw.kind == "noisy":
        grain = rng.standard_normal(picture.shape).astype(np.float32)
        soft = float(rng.choice((0.0, 0.0, 0.7, 1.5)))
        grain = ndimage.gaussian_filter(grain, (soft, soft, 0), mode="wrap") if soft else grain
        return picture + (3 + 57 * strength) * grain / grain.std()
    if flaw.kind == "tinted":
        aim = rng.uniform(0, 255, 3).astype(np.float32)
        return picture + (0.05 + 0.45 * strength) * (aim - picture)
    edge = int(rng.integers(8, 28))
    here, there = (tuple(slice(at, at + edge) for at in rng.integers(0, shapes.SIZE - edge, 2)) for _ in range(2))
    result = picture.copy()
    result[here] += (0.15 + 0.85 * strength) * (picture[there] - picture[here])
    return result


def fidelity(v_NCHW: Tensor, clean_NCHW: Tensor) -> Tensor:
    """Graded targets [N]: 1 for equal frames, 1/2 where the worst 9 x 9 patch is off by HARM grey levels in the mean,
    falling with the square of the damage."""
    error_NHW = (v_NCHW - clean_NCHW).abs().mean(1) * 127.5
    worst_N = F.avg_pool2d(error_NHW[:, None], 9, 2).amax((1, 2, 3))
    return 1 / (1 + (worst_N / HARM).square())


def pixels(frames: list[np.ndarray]) -> Tensor:
    """Drawings as v_NCHW, rounded to whole grey levels as films are."""
    return torch.from_numpy(np.rint(np.stack(frames)).clip(0, 255) / 127.5 - 1).float().permute(0, 3, 1, 2)


# ---------------------------------------------------------------- wrong pictures


def look(take: Take) -> Look:
    """What a single frame of a take shows, motion aside: equal looks cannot be told apart."""
    things = [Thing(t.thing.shape, t.thing.colour, t.thing.size) for t in take.tracks if t.visible]
    return take.scene.background, tuple(sorted(things, key=repr))


def named(looks: set[Look]) -> list[float]:
    """1 for each of NAMES that one of the looks has, else 0."""
    found: set[str] = set()
    for ground, things in looks:
        found |= {ground.kind, ground.texture, *ground.colours}
        for thing in things:
            found |= _words(thing)
    return [float(name in found) for name in NAMES]


def _words(thing: Thing) -> set[str]:
    shape, colour, size = thing.shape, thing.colour, thing.size
    return {shape, colour, size, f"{colour} {shape}", f"{colour} {size}"}


def mapped(take: Take, time: int) -> np.ndarray:
    """Which of NAMES every 8 x 8 cell of a frame shows [64, K] float32: the background everywhere, a thing where it
    covers more than CLEARLY of the cell, -1 for its names where it covers less but more than BARELY."""
    result = np.repeat(np.array([named({(take.scene.background, ())})], np.float32), 64, 0)
    for track in take.tracks:
        if track.visible:
            spot = track.path_T2[time - take.start] + take.camera_T2[time - take.start]
            mask, rows, columns = _patch(track.thing, spot)
            canvas = np.zeros((shapes.SIZE, shapes.SIZE), np.float32)
            canvas[rows[:, None], columns[None]] = mask
            share_L = canvas.reshape(8, 8, 8, 8).mean((1, 3)).reshape(64, 1)
            words_K = np.array([name in _words(track.thing) for name in NAMES])
            state_L = np.where(share_L > CLEARLY, 1.0, np.where(share_L > BARELY, -1.0, 0.0))
            result = np.where(words_K & (state_L != 0) & (result != 1), state_L, result)
    return result.astype(np.float32)


def change(take: Take, kind: str, rng: random.Random) -> Take:
    """A take in which exactly one field of the scene differs: see CHANGES."""
    if kind == "background":
        return replace(take, scene=replace(take.scene, background=_other_ground(take.scene.background, rng)))
    tracks = list(take.tracks)
    if kind == "added":
        used = {track.thing.colour for track in tracks}
        colour = rng.choice([c for c in grammar.THING_COLOURS if c not in used])
        spot = np.array([rng.random(), rng.random()])
        thing = Thing(rng.choice(grammar.SHAPES), colour, rng.choice(grammar.SIZES))
        return replace(take, tracks=(*tracks, Track(thing, np.repeat(spot[None], take.stop - take.start, 0))))
    index = rng.randrange(len(tracks))
    if kind == "missing":
        tracks[index] = replace(tracks[index], visible=False)
        return replace(take, tracks=tuple(tracks))
    thing = tracks[index].thing
    if kind == "colour":
        thing = replace(thing, colour=rng.choice([c for c in grammar.THING_COLOURS if c != thing.colour]))
    elif kind == "shape":
        thing = replace(thing, shape=rng.choice([s for s in grammar.SHAPES if s != thing.shape]))
    else:
        thing = replace(thing, size=rng.choice([s for s in grammar.SIZES if s != thing.size]))
    tracks[index] = replace(tracks[index], thing=thing)
    return replace(take, tracks=tuple(tracks))


def _other_ground(now: Background, rng: random.Random) -> Background:
    """Another background: of another colour, another pattern, or another kind."""
    while True:
        first, second = rng.sample(grammar.BACKGROUND_COLOURS, 2)
        first = now.colours[0] if rng.random() < 0.4 else first
        kind = rng.choice((now.kind, now.kind, "plain", "gradient", "texture"))
        if kind == "gradient" and first != second:
            new = Background("gradient", (first, second))
        elif kind == "texture":
            new = Background("texture", (first,), rng.choice(grammar.TEXTURES))
        else:
            new = Background("plain", (first,))
        if new != now:
            return new
