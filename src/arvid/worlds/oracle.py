"""The oracle of the shapes world: how well frames show what a prompt says, as one number and as attributes.

Knows: what a story must look like (things, acts, motions, camera) and how much each kind of error costs.
Does not know: seeds, true tracks, models. It looks at pixels only, through `worlds.tracking`.

The score is alignment times quality. Alignment is a mean over things (each a product over what was said about it)
times the marks for background, count and camera; quality is the product of permanence, smoothness, flicker and
sharpness. Marks are flat for errors a good decoder makes and fall steeply beyond.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from arvid.worlds import shapes
from arvid.worlds.grammar import SHAPES, THING_COLOURS, Background, Event, Scene, Story, Thing, parse
from arvid.worlds.motion import path_of, score_motion, smoothness
from arvid.worlds.stories import after
from arvid.worlds.tracking import (
    STRANGE,
    THINGS,
    Blobs,
    Ground,
    Sighting,
    blocks,
    find_blobs,
    find_ground,
    grow,
    label,
    read_film,
    sample,
    sight,
    soften,
)

ALIGNMENT = ("presence", "count", "shape", "colour", "size", "background", "direction", "speed", "camera")
QUALITY = ("permanence", "smoothness", "flicker", "sharpness")
FLOORS = {"shape": 0.4, "colour": 0.3, "size": 0.6, "direction": 0.4, "speed": 0.6}
"""What is left of a thing's mark when it gets this attribute altogether wrong; without presence nothing is left."""
SCENE_FLOORS = {"background": 0.4, "count": 0.5, "camera": 0.6}
SETTLE = 4
"""Frames after a change of act that are not judged: models decide in blocks, a change may come a little late."""


_LEAST = float(np.pi * shapes.RADII["small"] ** 2)


@dataclass(frozen=True)
class WorldScore:
    """`score` = `alignment` * `quality`; all of them and every attribute (ALIGNMENT and QUALITY) in [0, 1]."""

    score: float
    alignment: float
    quality: float
    attributes: dict[str, float]


@dataclass(frozen=True)
class _Role:
    """A thing as an act wants it; `hidden` once it has vanished."""

    thing: Thing
    hidden: bool = False


@dataclass(frozen=True)
class _Act:
    """Frames [start, stop) of the whole film, the frame its scene began, who plays and before what."""

    start: int
    stop: int
    began: int
    roles: tuple[_Role, ...]
    background: Background
    camera: str


@dataclass(frozen=True)
class _Marks:
    """Marks of one act; `things` holds one value per thing that is expected or should have vanished, `ends` where
    each was first and last seen."""

    things: tuple[float, ...]
    attributes: dict[str, float]
    ends: tuple[tuple[np.ndarray, np.ndarray] | None, ...]


def judge(frames: np.ndarray, prompt: str, first_frame: int = 0, total: int | None = None) -> WorldScore:
    """Judges frames [T, n, n, 3] uint8, or [T, 3, n, n] floats in [-1, 1] (v_TCHW), n >= 64, against a prompt.

    The frames are number `first_frame` and following of a film of `total` frames (default: it ends with them), which
    the acts of the prompt share equally. Raises ValueError for other forms of frames, for a film shorter than the
    frames, and for prompts that `grammar.parse` refuses.
    """
    story = parse(prompt)
    film = read_film(frames)
    total = first_frame + len(film) if total is None else total
    if first_frame < 0 or first_frame + len(film) > total:
        raise ValueError(
            f"frames {first_frame} to {first_frame + len(film) - 1} do not lie in a film of {total} frames; "
            f"give total of at least {first_frame + len(film)} and first_frame of at least 0"
        )
    shares: list[int] = []
    marks: list[_Marks] = []
    before: _Marks | None = None
    for act in _acts(story, total):
        start, stop = max(act.start - first_frame, 0), min(act.stop - first_frame, len(film))
        if stop <= start:
            continue
        settled = start + SETTLE if act.start > 0 and start == act.start - first_frame else start
        settled = settled if stop - settled >= 2 * SETTLE else start
        current = _judge_act(film[settled:stop], act, first_frame + settled - act.began)
        if before is not None and act.began < act.start:
            current = _hold_together(before, current)
        marks.append(current)
        shares.append(stop - start)
        before = current
    return _sum_up(marks, np.array(shares, float))


# ---------------------------------------------------------------- what should happen


def _acts(story: Story, total: int) -> list[_Act]:
    """What the story asks for, act by act: the part of the truth that does not depend on a seed."""
    count = len(story.acts)
    edges = [round(total * act / count) for act in range(count + 1)]
    result: list[_Act] = []
    for (start, stop), act in zip(pairwise(edges), story.acts, strict=True):
        if isinstance(act, Scene):
            roles = tuple(_Role(thing) for thing in act.things)
            result.append(_Act(start, stop, start, roles, act.background, act.camera))
        else:
            last = result[-1]
            roles = tuple(_after(role, [e for e in act if e.thing == i]) for i, role in enumerate(last.roles))
            result.append(replace(last, start=start, stop=stop, roles=roles))
    return result


def _after(role: _Role, events: list[Event]) -> _Role:
    for event in events:
        thing = after(role.thing, event)
        role = replace(role, hidden=True) if thing is None else replace(role, thing=thing)
    return role


def _pan(camera: str, since: int, length: int) -> np.ndarray:
    """Expected shift [T, 2] of the world `since` frames after its scene began."""
    ways = {"left": (1.0, 0.0), "right": (-1.0, 0.0), "up": (0.0, 1.0), "down": (0.0, -1.0)}
    step = shapes.PAN_SPEED * np.array(ways.get(camera, (0.0, 0.0)))
    return np.asarray((since + np.arange(length))[:, None] * step)


# ---------------------------------------------------------------- judging one act


def _judge_act(film: np.ndarray, act: _Act, since: int) -> _Marks:
    pan = _pan(act.camera, since, len(film))
    ground = find_ground(film, act.background, pan)
    wanted = [THING_COLOURS.index(role.thing.colour) for role in act.roles]
    labels = label(film, ground.image_T, tuple(wanted))
    blobs = _all_blobs(labels)
    colours = _cast(act, wanted, blobs)
    stage = _stage(labels.shape, blobs)
    attributes = {
        "background": _background(film, ground, stage, act),
        "camera": _camera(ground.camera_T2, pan),
    }
    rows: list[dict[str, float]] = []
    values: list[float] = []
    ends: list[tuple[np.ndarray, np.ndarray] | None] = []
    contact = np.zeros(len(film), bool)
    for role, own, colour in zip(act.roles, wanted, colours, strict=True):
        if role.hidden:
            values.append(1 - float(np.mean(blobs[own].area_T > 0.3 * _area(role.thing))) if own in blobs else 1.0)
            ends.append(None)
            continue
        if colour not in blobs:
            values.append(0.0)
            ends.append(None)
            continue
        others = np.zeros(labels.shape, bool)
        for other in set(colours) - {colour}:
            if other in blobs:
                others |= blobs[other].mask
        sighting = sight(film, ground.image_T, blobs[colour], others, colour, role.thing)
        row, path = _judge_thing(role.thing, sighting, ground.camera_T2)
        rows.append(row)
        contact |= sighting.contact_T
        value = row["presence"]
        for name, floor in FLOORS.items():
            value *= floor + (1 - floor) * row[name]
        values.append(value)
        ends.append((path[0], path[-1]) if len(path) else None)
    for name in (*FLOORS, *QUALITY):
        attributes[name] = float(np.mean([row[name] for row in rows])) if rows else float(not _shown(act))
    present = [row["presence"] for row in rows] + [0.0] * (len(_shown(act)) - len(rows))
    present += [value for role, value in zip(act.roles, values, strict=True) if role.hidden]
    attributes["presence"] = float(np.mean(present))
    attributes["count"] = _count(blobs, contact, len(_shown(act)))
    attributes["flicker"] *= _steadiness(film, ground, stage)
    return _Marks(tuple(values), attributes, tuple(ends))


def _shown(act: _Act) -> list[_Role]:
    return [role for role in act.roles if not role.hidden]


def _area(thing: Thing) -> float:
    return float(np.pi * shapes.RADII[thing.size] ** 2)


def _all_blobs(labels: np.ndarray) -> dict[int, Blobs]:
    """Blobs per index into THINGS, for colours that show at least a few pixels."""
    counts = np.bincount(labels.ravel(), minlength=STRANGE + 1)
    return {index: find_blobs(labels == index + 1) for index in range(len(THINGS)) if counts[index + 1] >= 12}


def _cast(act: _Act, wanted: list[int], blobs: dict[int, Blobs]) -> list[int]:
    """The colour each thing actually has: its own, or, if that is hardly seen, the most seen colour nobody wants."""
    seen = {index: float(np.mean(found.area_T > 0.3 * _LEAST)) for index, found in blobs.items()}
    result = []
    spare = [index for index in seen if index not in wanted]
    for role, own in zip(act.roles, wanted, strict=True):
        rest = [index for index in spare if index not in result]
        best = max(rest, key=lambda index: seen[index], default=own)
        swaps = not role.hidden and best != own and seen.get(own, 0.0) < 0.25 and seen[best] > seen.get(own, 0.0) + 0.2
        result.append(best if swaps else own)
    return result


def _ramp(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, straight between."""
    return float(np.clip((value - low) / (high - low), 0, 1))


def _judge_thing(thing: Thing, seen: Sighting, camera_T2: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Marks of one thing by attribute, and its path from first to last sight in world coordinates [F, 2]."""
    present = seen.area_T > 0.25 * _area(thing)
    partly = seen.contact_T & (seen.area_T > 0.03 * _area(thing))
    there = present | partly | _covered(present, seen.contact_T)
    share = float(there.mean())
    motion = thing.motion
    sure = seen.area_T > np.where(seen.contact_T, 0.5, 0.25) * _area(thing)
    path = path_of(seen.centre_T2 - camera_T2, sure if sure.any() else partly, seen.contact_T)
    margin = shapes.reach(thing)
    direction, speed = score_motion(path, motion, margin)
    clean = present & ~seen.contact_T
    growth = 0.5 * np.log(np.maximum(seen.area_T, 1e-6) / _area(thing))
    growth = growth[clean] if clean.any() else np.maximum(growth[present], 0)
    tints = seen.colour_T3[~np.isnan(seen.colour_T3[:, 0])]
    paint = np.array(shapes.PALETTE[thing.colour], np.float32)
    row = {
        "presence": _ramp(share, 0.0, 0.6),
        "shape": _shape(thing.shape, seen.overlap_KS),
        "colour": float(soften(np.linalg.norm(tints - paint, axis=1), 45.0).mean()) if len(tints) else 0.0,
        "size": float(soften(growth, 0.17).mean()) if len(growth) else 0.0,
        "direction": direction,
        "speed": speed,
        "permanence": share,
        "smoothness": smoothness(path, motion, margin),
        "flicker": _constancy(seen, clean),
        "sharpness": float(soften(seen.blur_K, 0.9).mean()) if len(seen.blur_K) else 0.0,
    }
    return row, path.place_F2


def _covered(present: np.ndarray, contact: np.ndarray) -> np.ndarray:
    """Frames in which a thing is out of sight between, before or after frames in which it touches another one."""
    missing = np.flatnonzero(~present & ~contact)
    if not len(missing) or not (present | contact).any():
        return np.zeros(len(present), bool)
    result = np.zeros(len(present), bool)
    for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
        sides = [contact[i] for i in (run[0] - 1, run[-1] + 1) if 0 <= i < len(contact)]
        result[run] = bool(sides) and all(sides)
    return result


def _shape(shape: str, overlap_KS: np.ndarray) -> float:
    """Full marks where the shape overlaps its outline well and better than it does any other."""
    if not len(overlap_KS):
        return 0.0
    own = SHAPES.index(shape)
    lead = overlap_KS[:, own] - np.delete(overlap_KS, own, 1).max(1)
    return float((((lead + 0.04) / 0.06).clip(0, 1) * ((overlap_KS[:, own] - 0.5) / 0.25).clip(0, 1)).mean())


def _constancy(seen: Sighting, clean: np.ndarray) -> float:
    """How little colour and area change from frame to frame while nothing touches the thing."""
    both = clean[1:] & clean[:-1]
    if not both.any():
        return 1.0
    growth = np.diff(np.log(np.maximum(seen.area_T, 1e-6)))[both]
    tint = np.linalg.norm(np.diff(seen.colour_T3, axis=0), axis=1)[both]
    return float((soften(growth, 0.3) * soften(np.nan_to_num(tint), 40.0)).mean())


# ---------------------------------------------------------------- judging the stage


def _stage(shape: tuple[int, ...], blobs: dict[int, Blobs]) -> np.ndarray:
    """Pixels [T, n, n] away from everything that is large enough to be a thing."""
    things = np.zeros(shape, bool)
    for blob in blobs.values():
        things |= blob.main & (blob.area_T > 0.3 * _LEAST)[:, None, None]
    return ~grow(things, 2)


def _background(film: np.ndarray, ground: Ground, stage: np.ndarray, act: _Act) -> float:
    """Agreement with the expected backdrop, block by block, on pixels away from things."""
    picks = sample(len(film), 12)
    stage = stage[picks]
    expected = ground.expected_T[picks] if len(ground.expected_T) > 1 else ground.expected_T
    weight = blocks(stage[..., None].astype(np.float32))
    gap = blocks(np.where(stage[..., None], film[picks] - expected, 0)) / np.maximum(weight, 1e-3)
    marks = soften(np.linalg.norm(gap, axis=-1), 28.0) * (weight[..., 0] > 0.2)
    seen = (weight[..., 0] > 0.2).sum((1, 2))
    room = 1 - sum(_area(role.thing) for role in _shown(act))
    enough = (seen / marks[0].size / (0.4 * room)).clip(0, 1)
    mean = float((marks.sum((1, 2)) / np.maximum(seen, 1) * enough).mean())
    return mean * _ramp(-ground.excess, -0.25, -0.05)


def _camera(measured_T2: np.ndarray, expected_T2: np.ndarray) -> float:
    """Agreement of the pan with the expected one, both as speeds; a pan that does not show cannot be wrong."""
    if len(measured_T2) < 2:
        return 1.0
    gap = float(np.linalg.norm(np.diff(measured_T2 - expected_T2, axis=0).mean(0)))
    return float(soften(np.array(gap / shapes.PAN_SPEED), 0.4))


def _count(blobs: dict[int, Blobs], contact: np.ndarray, expected: int) -> float:
    """Number of solid blobs of any colour against the number of things; while things touch, one may hide or split."""
    found = np.zeros(len(contact), int)
    for blob in blobs.values():
        found = found + blob.count_T
    error = np.maximum(np.abs(found - expected) - contact, 0)
    return float((1 / (1 + 1.5 * error)).mean())


def _steadiness(film: np.ndarray, ground: Ground, stage: np.ndarray) -> float:
    """How little the stage itself changes from frame to frame, where no thing is in either frame."""
    if len(film) < 2:
        return 1.0
    both = (stage[1:] & stage[:-1])[..., None]
    rest = film - ground.image_T
    change = np.where(both, np.diff(rest, axis=0), 0)
    noise = np.sqrt((change**2).sum((1, 2, 3)) / (6 * np.maximum(both.sum((1, 2, 3)), 1)))
    return float(soften(noise, 24.0).mean())


# ---------------------------------------------------------------- the whole film


def _hold_together(before: _Marks, now: _Marks) -> _Marks:
    """Between acts of one scene things go on from where they were: jumps cost smoothness."""
    pairs = [(a[1], b[0]) for a, b in zip(before.ends, now.ends, strict=True) if a is not None and b is not None]
    if not pairs:
        return now
    allowed = (SETTLE + 2) * shapes.SPEEDS["fast"]
    jumps = [max(float(np.linalg.norm(np.mod(b - a + 0.5, 1) - 0.5)) - allowed, 0.0) for a, b in pairs]
    kept = float(soften(np.array(jumps), 0.1).mean())
    return replace(now, attributes={**now.attributes, "smoothness": now.attributes["smoothness"] * kept})


def _sum_up(marks: list[_Marks], shares: np.ndarray) -> WorldScore:
    shares = shares / shares.sum()
    attributes = {
        name: float(sum(w * mark.attributes[name] for w, mark in zip(shares, marks, strict=True)))
        for name in (*ALIGNMENT, *QUALITY)
    }
    alignment = 0.0
    for weight, mark in zip(shares, marks, strict=True):
        value = float(np.mean(mark.things))
        for name, floor in SCENE_FLOORS.items():
            value *= floor + (1 - floor) * mark.attributes[name]
        alignment += float(weight) * value
    quality = float(np.prod([attributes[name] for name in QUALITY]))
    return WorldScore(alignment * quality, alignment, quality, attributes)
