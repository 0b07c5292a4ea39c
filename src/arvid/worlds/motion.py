"""Judges paths of the shapes world: is this the motion that was asked for, and is it smooth?

Knows: what moving, bouncing, orbiting and standing still look like as a curve, walls and torus.
Does not know: pixels, prompts, things. Paths are [T, 2] in frame widths, unwrapped, x to the right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from arvid.worlds import shapes
from arvid.worlds.grammar import Motion

_WAYS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_PIXEL = 1 / 64
STRIDE, SHORT_STRIDE = 8, 4
"""Frames over which a velocity is measured: straight motions, and curved or folded ones."""


def _soften(error: np.ndarray, half: float) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + (np.abs(error) / half) ** 4))


def _ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.asarray(((value - low) / (high - low)).clip(0, 1))


@dataclass(frozen=True, eq=False)
class Path:
    """A thing from its first to its last sight: `place_F2` unwrapped, gaps filled straight; `known_F` where it was
    seen, `steady_F` where it was seen with nothing else touching it."""

    place_F2: np.ndarray
    known_F: np.ndarray
    steady_F: np.ndarray


def path_of(place_T2: np.ndarray, seen_T: np.ndarray, contact_T: np.ndarray) -> Path:
    """The path through places [T, 2] on the torus, measured where `seen_T`."""
    index = np.flatnonzero(seen_T)
    if not len(index):
        return Path(np.zeros((0, 2)), np.zeros(0, bool), np.zeros(0, bool))
    known = place_T2[index]
    steps = np.mod(np.diff(known, axis=0) + 0.5, 1) - 0.5
    known = np.concatenate([known[:1], known[:1] + np.cumsum(steps, 0)])
    time = np.arange(index[0], index[-1] + 1)
    place = np.stack([np.interp(time, index, known[:, axis]) for axis in range(2)], 1)
    return Path(place, seen_T[time], (seen_T & ~contact_T)[time])


def score_motion(path: Path, motion: Motion, margin: float) -> tuple[float, float]:
    """Marks for direction and speed, each in [0, 1]. `margin` is how near to a wall the middle of the thing may come.
    A path of fewer than three frames shows no motion and gets full marks; standing still is judged by both."""
    if len(path.place_F2) < 3:
        return 1.0, 1.0
    if motion.kind == "move":
        return _move(path, motion)
    if motion.kind == "bounce":
        return _bounce(path, motion, margin)
    if motion.kind == "orbit":
        return _orbit(path, motion)
    velocity, good = _chords(path, _stride(path, STRIDE))
    rest = float(_soften(np.linalg.norm(velocity[good], axis=1) / _PIXEL, 0.22).mean())
    return rest, rest


def _stride(path: Path, longest: int) -> int:
    return max(min(longest, (len(path.place_F2) - 1) // 2), 1)


def _chords(path: Path, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean velocities over `stride` frames [F - stride, 2], and which of them have both ends seen (all of them, if
    hardly any do)."""
    velocity = (path.place_F2[stride:] - path.place_F2[:-stride]) / stride
    good = path.known_F[stride:] & path.known_F[:-stride]
    return velocity, good if good.sum() >= 2 else np.ones_like(good)


def _pace(ratio: np.ndarray) -> np.ndarray:
    """Marks for speeds relative to the expected one."""
    return _soften(np.log(np.maximum(ratio, 1e-3)), 0.3)


def _move(path: Path, motion: Motion) -> tuple[float, float]:
    velocity, good = _chords(path, _stride(path, STRIDE))
    velocity = velocity[good]
    speed = np.linalg.norm(velocity, axis=1)
    ratio = speed / shapes.SPEEDS[motion.speed]
    cosine = velocity @ np.array(_WAYS[motion.way]) / np.maximum(speed, 1e-9)
    direction = _ramp(cosine, 0.5, 0.95) * _ramp(ratio, 0.1, 0.3)
    return float(direction.mean()), float(_pace(ratio).mean())


def _near_wall(path: np.ndarray, motion: Motion, reach: float) -> np.ndarray:
    """Frames within `reach` of a wall on an axis along which the thing moves."""
    place = np.mod(path, 1)
    near = (place < reach) | (place > 1 - reach)
    near &= np.array([motion.way != "vertical", motion.way != "horizontal"])
    return np.asarray(near.any(1))


def _bounce(path: Path, motion: Motion, margin: float) -> tuple[float, float]:
    expected, stride = shapes.SPEEDS[motion.speed], _stride(path, SHORT_STRIDE)
    velocity, good = _chords(path, stride)
    turning = _near_wall(path.place_F2, motion, margin + 0.5 * stride * expected)
    free = good & ~(turning[stride:] | turning[:-stride])
    if free.sum() >= 2:
        used = velocity[free]
    else:
        length = np.linalg.norm(velocity[good], axis=1)
        used = velocity[good][length >= np.median(length)]
    speed = np.linalg.norm(used, axis=1)
    ratio = speed / expected
    share = np.abs(used) / np.maximum(speed, 1e-9)[:, None]
    if motion.way == "diagonal":
        along = _ramp(share.min(1), 0.25, 0.6)
    else:
        along = _ramp(share[:, 0 if motion.way == "horizontal" else 1], 0.75, 0.95)
    direction = float((along * _ramp(ratio, 0.1, 0.3)).mean())
    outside = float(_near_wall(path.place_F2, motion, margin - 2 * _PIXEL)[path.known_F].mean())
    walls = float(_ramp(np.array(outside), 0.15, 0.03)) if margin > 2 * _PIXEL else 1.0
    before, after = velocity[:-stride], velocity[stride:]
    flips = ((before * after < 0) & (np.minimum(np.abs(before), np.abs(after)) > 0.5 * expected)).any(1)
    midair = float((flips & free[stride:] & free[:-stride]).sum()) / stride
    return direction * walls * 0.7**midair, float(_pace(ratio).mean())


def _orbit(path: Path, motion: Motion) -> tuple[float, float]:
    stride = _stride(path, SHORT_STRIDE)
    velocity, good = _chords(path, stride)
    chord = velocity * stride
    length = np.linalg.norm(chord, axis=1)
    radius, expected = shapes.ORBIT_RADIUS, shapes.SPEEDS[motion.speed]
    whole = 2 * radius * math.sin(stride * expected / (2 * radius))
    speed = float(_pace(length[good] / whole).mean())
    moving = length > 0.3 * whole
    pairs = good[stride:] & good[:-stride]
    if not pairs.any() or (len(chord) - 1) * expected / radius < 0.25:  # too short an arc to tell from a line
        return float(moving[good].mean()), speed
    heading = np.arctan2(chord[:, 1], chord[:, 0])
    turn = np.mod(heading[stride:] - heading[:-stride] + math.pi, 2 * math.pi) - math.pi
    used = pairs & moving[stride:] & moving[:-stride]
    if not used.any():
        return 0.0, speed
    sign = 1.0 if motion.way == "clockwise" else -1.0
    bend = sign * float(turn[used].sum() / (length[stride:] + length[:-stride])[used].sum()) * 2 * radius
    right = float(_ramp(np.array(bend), 0.25, 0.75) * _soften(np.array(max(bend - 1, 0.0)), 1.2))
    return right * float(used.sum() / pairs.sum()), speed


def smoothness(path: Path, motion: Motion, margin: float) -> float:
    """Marks in [0, 1] for small second differences of a path, where it is measured well and, for bounces, away from
    the walls; every jump costs extra."""
    if len(path.place_F2) < 3:
        return 1.0
    bend = np.linalg.norm(np.diff(path.place_F2, 2, axis=0), axis=1) / _PIXEL
    good = path.steady_F[2:] & path.steady_F[1:-1] & path.steady_F[:-2]
    if motion.kind == "bounce":
        good &= ~_near_wall(path.place_F2, motion, margin + 2 * shapes.SPEEDS[motion.speed])[1:-1]
    if not good.any():
        return 1.0
    jumps = int((bend[good] > 3.0).sum())
    return float(_soften(bend[good], 1.2).mean()) * math.exp(-0.12 * jumps)
