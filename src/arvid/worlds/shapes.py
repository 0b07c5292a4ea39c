"""The shapes world: a story becomes frames, exactly the same ones for the same (prompt, seed).

Knows: geometry, colours, anti-aliasing, the clock of 16 frames per second, what each motion does.
Does not know: models, tensors, scores. Space is a torus for things that move in one direction (they leave on the
right and come back on the left), and has walls for things that bounce.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from arvid.worlds.grammar import Background, Event, Motion, Scene, Thing, parse

FPS = 16
SIZE = 64
PALETTE = {
    "red": (225, 40, 40), "green": (40, 180, 60), "blue": (50, 100, 255), "yellow": (250, 225, 50),
    "orange": (255, 140, 20), "purple": (165, 60, 210), "cyan": (60, 215, 225),
    "black": (16, 16, 18), "white": (238, 238, 238), "gray": (128, 128, 128),
    "brown": (92, 62, 40), "beige": (222, 205, 172), "navy": (20, 26, 78),
}  # fmt: skip
RADII = {"small": 6.0 / 64, "medium": 8.5 / 64, "large": 11.5 / 64}
"""Radius of the disc of equal area, as a fraction of the frame: every shape of one size covers the same area."""
SPEEDS = {"slow": 0.5 / 64, "medium": 1.0 / 64, "fast": 1.75 / 64}
"""Path length per frame, as a fraction of the frame."""
ORBIT_RADIUS = 16.0 / 64
PAN_SPEED = 0.75 / 64
TEXTURE_PERIOD = 16 / 64
TEXTURE_CONTRAST = 34
_VECTORS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_AXES = {"horizontal": (1.0, 0.0), "vertical": (0.0, 1.0), "diagonal": (math.sqrt(0.5), math.sqrt(0.5))}


@dataclass(frozen=True)
class Track:
    """One thing through one act: `path_T2` holds x, y in frame widths, `visible` is False once it has vanished."""

    thing: Thing
    path_T2: np.ndarray
    visible: bool = True


@dataclass(frozen=True)
class Take:
    """One act on the film: frames [start, stop), the scene as it then stands, a track per thing, the camera shift."""

    start: int
    stop: int
    scene: Scene
    tracks: tuple[Track, ...]
    camera_T2: np.ndarray


def render(
    prompt: str, seed: int = 0, frames: int = 81, size: int = SIZE, begins: Sequence[int] | None = None
) -> np.ndarray:
    """Frames [frames, size, size, 3] uint8 of a prompt, deterministic in (prompt, seed). Acts share the film equally,
    or begin at the frames `begins`, the first at 0.

    Raises ValueError for an empty prompt, a prompt without a shape, fewer than one frame, a size below 16 or acts that
    do not begin one after the other within the film.
    """
    if frames < 1 or size < 16:
        raise ValueError(f"cannot render {frames} frames of {size} pixels; ask for at least 1 frame of 16 pixels")
    film = np.empty((frames, size, size, 3), np.float32)
    for take in takes(prompt, seed, frames, begins):
        film[take.start : take.stop] = _draw(take, size)
    return np.rint(film).clip(0, 255).astype(np.uint8)


def takes(prompt: str, seed: int, frames: int, begins: Sequence[int] | None = None) -> list[Take]:
    """What happens and where, act by act: the truth behind `render`, whose arguments these are."""
    story = parse(prompt)
    rng = np.random.default_rng([seed, zlib.crc32(" ".join(prompt.lower().split()).encode())])
    edges = _edges(len(story.acts), frames, begins)
    result: list[Take] = []
    for (start, stop), act in zip(pairwise(edges), story.acts, strict=True):
        if isinstance(act, Scene):
            result.append(_open(act, start, stop, rng))
        else:
            result.append(_change(result[-1], act, stop))
    return result


def _edges(acts: int, frames: int, begins: Sequence[int] | None) -> list[int]:
    if begins is None:
        return [round(frames * act / acts) for act in range(acts + 1)]
    edges = [*begins, frames]
    if len(begins) != acts or edges[0] != 0 or any(start >= stop for start, stop in pairwise(edges)):
        raise ValueError(
            f"{acts} acts cannot begin at frames {edges[:-1]} of {frames}; give one frame for each, from 0, rising"
        )
    return edges


def _open(scene: Scene, start: int, stop: int, rng: np.random.Generator) -> Take:
    """A new scene: of 24 random placements the one whose things overlap least."""
    length = max(stop - start, 81)
    best, least = None, math.inf
    for _ in range(24):
        tracks = tuple(Track(thing, _path(thing, _place(thing, rng), _heading(rng), length)) for thing in scene.things)
        overlap = sum(_overlap(a, b) for i, a in enumerate(tracks) for b in tracks[:i])
        if overlap < least:
            best, least = tracks, overlap
        if least == 0:
            break
    assert best is not None
    tracks = tuple(replace(track, path_T2=track.path_T2[: stop - start]) for track in best)
    return Take(start, stop, scene, tracks, _pan(scene.camera, stop - start))


def _pan(camera: str, length: int) -> np.ndarray:
    """Shift of the world under a panning camera: the world moves against the camera."""
    way = np.array(_VECTORS.get(camera, (0.0, 0.0)))
    return -way * PAN_SPEED * np.arange(length)[:, None]


def _place(thing: Thing, rng: np.random.Generator) -> np.ndarray:
    radius = reach(thing)
    margin = radius + (ORBIT_RADIUS if thing.motion.kind == "orbit" else 0.0)
    margin = min(margin, 0.48)
    spot = rng.uniform(margin, 1 - margin, 2)
    if thing.motion.kind == "move":
        spot[0 if thing.motion.way in ("left", "right") else 1] = rng.uniform(0, 1)
    return spot


def _heading(rng: np.random.Generator) -> np.ndarray:
    """Two free choices of a path: signs for a bounce, the first also the starting angle of an orbit."""
    return rng.uniform(-1, 1, 2)


def _path(thing: Thing, spot: np.ndarray, heading: np.ndarray, length: int) -> np.ndarray:
    motion, step = thing.motion, SPEEDS[thing.motion.speed]
    time = np.arange(length)[:, None]
    if motion.kind == "move":
        return spot + time * step * np.array(_VECTORS[motion.way])
    if motion.kind == "bounce":
        axis = np.array(_AXES[motion.way]) * np.where(heading < 0, -1.0, 1.0)
        return _reflect(spot + time * step * axis, reach(thing))
    if motion.kind == "orbit":
        turn = 1.0 if motion.way == "clockwise" else -1.0
        angle = heading[0] * math.pi + turn * time[:, 0] * step / ORBIT_RADIUS
        return spot + ORBIT_RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.repeat(spot[None], length, 0)


def _reflect(path: np.ndarray, margin: float) -> np.ndarray:
    """A straight path folded between walls at `margin` and 1 - margin."""
    room = 1 - 2 * margin
    phase = np.mod(path - margin, 2 * room)
    return margin + np.minimum(phase, 2 * room - phase)


def reach(thing: Thing) -> float:
    """Half the width of a thing in frame widths: how close to a wall its centre may come."""
    return RADII[thing.size] * _EXTENT[thing.shape]


def _overlap(a: Track, b: Track) -> float:
    """Mean depth to which two tracks run into each other, on the torus."""
    gap = np.abs(np.mod(a.path_T2 - b.path_T2 + 0.5, 1) - 0.5)
    return float(np.maximum(reach(a.thing) + reach(b.thing) - np.hypot(gap[:, 0], gap[:, 1]), 0).mean())


def _change(last: Take, events: tuple[Event, ...], stop: int) -> Take:
    """The scene goes on from where it stands, with events applied."""
    length = stop - last.stop
    tracks = []
    for index, track in enumerate(last.tracks):
        thing, visible = track.thing, track.visible
        back = False
        for event in (event for event in events if event.thing == index):
            if event.kind == "vanish":
                visible = False
            elif event.kind == "recolour":
                thing = replace(thing, colour=event.value)
            elif event.kind == "stop":
                thing = replace(thing, motion=Motion())
            elif event.kind == "motion":
                thing = replace(thing, motion=event.motion)
            elif event.kind == "reverse":
                back = True
        tracks.append(Track(thing, _continue(track, thing, back, length), visible))
    scene = replace(last.scene, things=tuple(track.thing for track in tracks))
    shift = _pan(scene.camera, last.stop - last.start + length)[last.stop - last.start :]
    return Take(last.stop, stop, scene, tuple(tracks), shift)


def _continue(track: Track, thing: Thing, back: bool, length: int) -> np.ndarray:
    """The path after the last frame of `track`, in the same motion, backwards, or in a new one."""
    path, motion = track.path_T2, thing.motion
    spot, step = path[-1], path[-1] - path[-2] if len(path) > 1 else np.zeros(2)
    time = np.arange(1, length + 1)[:, None]
    if motion != track.thing.motion:
        start = np.mod(spot, 1)
        if motion.kind == "orbit":
            return _path(thing, start - np.array([ORBIT_RADIUS, 0.0]), np.zeros(2), length + 1)[1:]
        return _path(thing, start, np.ones(2), length + 1)[1:]
    sign = -1.0 if back else 1.0
    if motion.kind == "bounce":
        # Only the signs of the last step are kept: a step that folded at a wall is shorter than the pace.
        heading = np.where(step < 0, -1.0, 1.0) * np.array(_AXES[motion.way]) * SPEEDS[motion.speed]
        return _reflect(spot + sign * time * heading, reach(thing))
    if motion.kind == "orbit":
        turn = sign * (1.0 if motion.way == "clockwise" else -1.0) * SPEEDS[motion.speed] / ORBIT_RADIUS
        before = path[-2] if len(path) > 1 else spot
        centre = _orbit_centre(before, spot, motion)
        angle = math.atan2(*(spot - centre)[::-1]) + turn * time[:, 0]
        return centre + ORBIT_RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
    return spot + sign * time * step


def _orbit_centre(before: np.ndarray, now: np.ndarray, motion: Motion) -> np.ndarray:
    """Centre of the circle through two neighbouring points of an orbit."""
    chord = now - before
    length = float(np.hypot(*chord))
    if length == 0:
        return now - np.array([ORBIT_RADIUS, 0.0])
    inward = np.array([-chord[1], chord[0]]) / length
    inward = inward if motion.way == "clockwise" else -inward
    return (before + now) / 2 + inward * math.sqrt(max(ORBIT_RADIUS**2 - (length / 2) ** 2, 0.0))


# ---------------------------------------------------------------- drawing


def _polygon(corners: int, turn: float, inner: float = 0.0) -> np.ndarray:
    """Corners of a regular polygon (or star, with `inner` radius) of the area of the unit disc."""
    count = corners * 2 if inner else corners
    angle = turn + 2 * math.pi * np.arange(count) / count
    radius = np.where(np.arange(count) % 2, inner, 1.0) if inner else np.ones(count)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    nxt = np.roll(points, -1, 0)
    area = 0.5 * abs(float((points[:, 0] * nxt[:, 1] - points[:, 1] * nxt[:, 0]).sum()))
    return points * math.sqrt(math.pi / area)


POLYGONS = {
    "square": _polygon(4, math.pi / 4),
    "triangle": _polygon(3, -math.pi / 2),
    "diamond": _polygon(4, 0.0),
    "star": _polygon(5, -math.pi / 2, 0.42),
}
_EXTENT = {"circle": 1.0, **{name: float(np.abs(points).max()) for name, points in POLYGONS.items()}}


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of unit-disc area centred at 0; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    points = POLYGONS[shape].astype(x.dtype)
    nearest = np.full(x.shape, np.inf, x.dtype)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clip(0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (ex * (y - ay) / (ey if ey else 1) + ax > x)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def coverage(thing: Thing, path_T2: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anti-aliased coverage of a thing along a path: patches [T, h, h] and their wrapped rows and columns [T, h]."""
    radius = RADII[thing.size] * size
    half = math.ceil(radius * 1.7) + 1
    centre = path_T2 * size - 0.5
    corner = np.floor(centre).astype(int) - half
    offsets = np.arange(2 * half + 2)
    columns, rows = corner[:, :1] + offsets, corner[:, 1:] + offsets
    x = ((columns - centre[:, :1]) / radius).astype(np.float32)[:, None, :]
    y = ((rows - centre[:, 1:]) / radius).astype(np.float32)[:, :, None]
    x, y = np.broadcast_arrays(x, y)
    mask = (0.5 - distance(thing.shape, x, y) * radius).clip(0, 1)
    return mask, np.mod(rows, size), np.mod(columns, size)


def _draw(take: Take, size: int) -> np.ndarray:
    length = take.stop - take.start
    ground = backdrop(take.scene.background, size)
    film = np.repeat(ground[None], length, 0)
    shift = np.rint(take.camera_T2 * size).astype(int)
    if shift.any():
        film = np.stack([np.roll(frame, (dy, dx), (0, 1)) for frame, (dx, dy) in zip(film, shift, strict=True)])
    time = np.arange(length)[:, None, None]
    for track in take.tracks:
        if track.visible:
            mask, rows, columns = coverage(track.thing, track.path_T2 + take.camera_T2, size)
            place = (time, rows[:, :, None], columns[:, None, :])
            colour = np.array(PALETTE[track.thing.colour], np.float32)
            film[place] += mask[..., None] * (colour - film[place])
    return film


def backdrop(background: Background, size: int) -> np.ndarray:
    """The background [size, size, 3] float32 in 0..255."""
    first = np.array(PALETTE[background.colours[0]], np.float32)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if background.kind == "gradient":
        last = np.array(PALETTE[background.colours[1]], np.float32)
        return first + y[..., None] * (last - first)
    if background.kind == "texture":
        wave_x, wave_y = (np.sin(2 * math.pi * axis / TEXTURE_PERIOD) for axis in (x, y))
        sharp = 4.0
        pattern = {
            "stripes": np.tanh(sharp * wave_x),
            "checks": np.tanh(sharp * wave_x * wave_y),
            "spots": np.tanh(sharp * (wave_x * wave_y - 0.5)),
        }[background.texture]
        sign = -1.0 if first.mean() > 128 else 1.0
        return first + sign * TEXTURE_CONTRAST * (0.5 + 0.5 * pattern[..., None])
    return np.broadcast_to(first, (size, size, 3)).copy()
