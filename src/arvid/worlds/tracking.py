"""Looks at frames of the shapes world: which background, which blobs, where each thing is and what it looks like.

Knows: palette, backdrops and outlines of the shapes world, the torus, anti-aliasing, occlusion.
Does not know: prompts, acts, motions, seeds, scores of a video (`worlds.oracle` draws the conclusions).

Legend: T frames, n frame width in pixels, B background blocks; positions and lengths in frame widths unless said
otherwise; colours in 0..255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from arvid.worlds import shapes
from arvid.worlds.grammar import BACKGROUND_COLOURS, SHAPES, TEXTURES, THING_COLOURS, Background, Thing

BLOCKS = 16
"""Backgrounds are compared in this many blocks per side: fine enough for textures, coarse enough to ignore noise."""
SAMPLES = 8
"""Frames per act that are looked at where every frame would be wasteful (shape, background)."""
THINGS = np.array([shapes.PALETTE[name] for name in THING_COLOURS], np.float32)
STRANGE = len(THING_COLOURS) + 1
"""Label of pixels that are neither background nor any thing's colour."""
_EDGE = math.sqrt(1 / 12)
"""Standard deviation, in pixels, of the blur that anti-aliasing is."""
_SMALL = math.pi * shapes.RADII["small"] ** 2


@dataclass(frozen=True, eq=False)
class Ground:
    """The background found: `image_T` [T or 1, n, n, 3], the `expected_T` one moved along with it, how much better
    than the expected one the best known backdrop fits (`excess`, 0..1) and the measured shift of the world."""

    image_T: np.ndarray
    expected_T: np.ndarray
    excess: float
    camera_T2: np.ndarray


@dataclass(frozen=True, eq=False)
class Blobs:
    """What there is of one colour: all pixels, the largest blob per frame, its area, the number of solid blobs."""

    mask: np.ndarray
    main: np.ndarray
    area_T: np.ndarray
    count_T: np.ndarray


@dataclass(frozen=True, eq=False)
class Sighting:
    """One thing through T frames: where it is, its area (of the frame), whether it touches another thing, its mean
    colour, and at the sampled frames the overlap with each of the five shapes and how much too wide its edges are
    (standard deviation in 64ths of the frame)."""

    centre_T2: np.ndarray
    area_T: np.ndarray
    contact_T: np.ndarray
    colour_T3: np.ndarray
    overlap_KS: np.ndarray
    blur_K: np.ndarray


def soften(error: np.ndarray, half: float, order: int = 4) -> np.ndarray:
    """1 at no error, 0.5 at an error of `half`: flat for small errors, steep beyond."""
    return np.asarray(1.0 / (1.0 + (np.abs(error) / half) ** order))


def wrap(offset: np.ndarray) -> np.ndarray:
    """The shortest way on the torus: offsets folded into [-0.5, 0.5)."""
    return np.asarray(np.mod(offset + 0.5, 1.0) - 0.5)


def read_film(frames: np.ndarray) -> np.ndarray:
    """Frames as float32 [T, n, n, 3] in 0..255 with n in [64, 128): larger ones are averaged over whole pixels.

    Raises ValueError for frames of another form.
    """
    if frames.ndim == 4 and frames.dtype == np.uint8 and frames.shape[3] == 3:
        film = frames.astype(np.float32)
    elif frames.ndim == 4 and np.issubdtype(frames.dtype, np.floating) and frames.shape[1] == 3:
        film = ((frames.astype(np.float32).transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255)
    else:
        raise ValueError(
            f"frames of shape {frames.shape} and type {frames.dtype} given; "
            "expected uint8 [T, H, W, 3] or floats [T, 3, H, W] in [-1, 1]"
        )
    height, width = film.shape[1:3]
    if height != width or height < 64 or not len(film):
        raise ValueError(
            f"{len(film)} frames of {height} x {width} given; the shapes world is square: expected at least 1 frame of "
            "64 x 64 or more"
        )
    step = height // 64
    if step > 1:
        side = height // step
        film = film[:, : side * step, : side * step].reshape(len(film), side, step, side, step, 3).mean((2, 4))
    return film


# ---------------------------------------------------------------- background


@lru_cache(maxsize=4)
def _bank(size: int) -> tuple[tuple[Background, ...], np.ndarray]:
    """Every backdrop the world can show, and their block means [N, B, B, 3]."""
    known = [Background("plain", (colour,)) for colour in BACKGROUND_COLOURS]
    known += [Background("gradient", pair) for pair in permutations(BACKGROUND_COLOURS, 2)]
    known += [Background("texture", (colour,), texture) for colour in BACKGROUND_COLOURS for texture in TEXTURES]
    return tuple(known), blocks(np.stack([shapes.backdrop(background, size) for background in known]))


def blocks(image: np.ndarray) -> np.ndarray:
    """Means over the blocks of [..., n, n, C]: [..., B, B, C]."""
    edges = np.arange(BLOCKS) * image.shape[-2] // BLOCKS
    count = np.diff([*edges, image.shape[-2]]).astype(np.float32)
    total = np.add.reduceat(np.add.reduceat(image, edges, axis=-3), edges, axis=-2)
    return np.asarray(total / (count[:, None, None] * count[None, :, None]))


def find_ground(film: np.ndarray, background: Background, camera_T2: np.ndarray) -> Ground:
    """The background of `film` [T, n, n, 3] float32, when `background` is expected to shift by `camera_T2`."""
    size = film.shape[1]
    expected = shapes.backdrop(background, size)
    camera_T2 = _measure_camera(film, expected, background, camera_T2)
    picks = sample(len(film))
    still = np.median(np.stack([_roll(film[t], -camera_T2[t]) for t in picks]), axis=0).astype(np.float32)
    known, bank = _bank(size)
    seen = blocks(still)
    distance = np.linalg.norm(seen - bank, axis=-1)
    fits = soften(distance, 28.0).mean((1, 2))
    best = int(fits.argmax())
    wanted = blocks(expected)
    fit = float(soften(np.linalg.norm(seen - wanted, axis=-1), 28.0).mean())
    excess = max(float(fits[best]) - fit, 0.0)
    found, chosen = (expected, wanted) if excess < 0.02 else (shapes.backdrop(known[best], size), bank[best])
    near = np.linalg.norm(seen - chosen, axis=-1) < 45
    offset = np.median((seen - chosen)[near], axis=0).clip(-20, 20) if near.sum() > 8 else np.zeros(3)
    found = found + offset.astype(np.float32)
    if not camera_T2.any():
        return Ground(found[None], expected[None], excess, camera_T2)
    moved = np.stack([_roll(found, shift) for shift in camera_T2])
    return Ground(moved, np.stack([_roll(expected, shift) for shift in camera_T2]), excess, camera_T2)


def sample(count: int, most: int = SAMPLES) -> np.ndarray:
    """Up to `most` evenly spread indices below `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _roll(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    dx, dy = np.rint(shift * len(image)).astype(int)
    return np.roll(image, (dy, dx), (0, 1))


def _measure_camera(
    film: np.ndarray, expected: np.ndarray, background: Background, camera_T2: np.ndarray
) -> np.ndarray:
    """Shift of the backdrop along the axis of the expected pan, by correlation; the expected one where the backdrop
    does not show it. A texture shows a shift up to its period, so the one nearest to the neighbour's is taken."""
    moving = np.ptp(camera_T2, axis=0)
    if moving.max() == 0:
        return camera_T2
    axis = int(moving.argmax())
    size, along = film.shape[1], 2 - axis
    pattern = expected.mean(-1)
    level = pattern.mean()
    pattern = pattern - level
    if np.ptp(pattern, axis=along - 1).max() < 4:
        return camera_T2
    light = film.mean(-1)
    light = (light - level).clip(2 * pattern.min(), 2 * pattern.max())
    product = np.fft.rfft(light, axis=along) * np.conj(np.fft.rfft(pattern, axis=along - 1))
    match = np.fft.irfft(product.sum(3 - along), n=size, axis=1)
    power = np.sqrt((light**2).sum((1, 2)) * (pattern**2).sum()) + 1e-6
    if float(np.median(match.max(1) / power)) < 0.3:
        return camera_T2
    period = shapes.TEXTURE_PERIOD if background.kind == "texture" else 1.0
    drift = match.argmax(1) / size - camera_T2[:, axis]
    drift = np.unwrap(drift, period=period)
    drift -= period * np.rint(drift[0] / period)
    if np.abs(drift).max() <= 1.5 / size:
        return camera_T2
    result = camera_T2.copy()
    result[:, axis] += drift
    return result


# ---------------------------------------------------------------- blobs


def label(film: np.ndarray, ground_T: np.ndarray, expected: tuple[int, ...]) -> np.ndarray:
    """Per pixel [T, n, n]: 0 background, 1 + index into THINGS, or STRANGE. A pixel on an edge is a mixture of the
    background and one colour, so the colour is the one whose line to the background passes nearest; `expected`
    colours get the benefit of the doubt."""
    offset = film - ground_T
    power = np.einsum("tyxc,tyxc->tyx", offset, offset)
    flat = np.flatnonzero(power > 40**2)
    result = np.zeros(power.shape, np.int8)
    if not len(flat):
        return result
    pixel = offset.reshape(-1, 3)[flat]
    places = flat if len(ground_T) == len(film) else flat % power[0].size
    base = ground_T.reshape(-1, 3)[places]
    square = power.reshape(-1)[flat]
    towards = pixel @ THINGS.T - np.einsum("nc,nc->n", pixel, base)[:, None]
    length = (THINGS**2).sum(1) - 2 * base @ THINGS.T + np.einsum("nc,nc->n", base, base)[:, None]
    share = (towards / length).clip(0, 1)
    rest = np.sqrt(np.maximum(square[:, None] - 2 * share * towards + share**2 * length, 0))
    rest[:, list(expected)] -= 12
    best = rest.argmin(1)
    rows = np.arange(len(flat))
    own = np.where(share[rows, best] >= 0.5, best + 1, 0)
    result.reshape(-1)[flat] = np.where(rest[rows, best] < 60, own, STRANGE)
    return result


def grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask [T, n, n] grown by pixels in the four directions on the torus, alternating with the diagonals."""
    for step in range(steps):
        wide = mask | np.roll(mask, 1, 1) | np.roll(mask, -1, 1)
        across = wide if step % 2 else mask
        mask = wide | np.roll(across, 1, 2) | np.roll(across, -1, 2)
    return mask


def shrink(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours on the torus also belong to the mask [T, n, n]."""
    return np.asarray(~grow(~mask, 1))


def find_blobs(mask: np.ndarray) -> Blobs:
    """Blobs of a mask [T, n, n], connected within a frame and over its borders."""
    length, size = mask.shape[:2]
    plane = np.zeros((3, 3, 3), int)
    plane[1] = 1
    numbers, count = ndimage.label(mask, plane)
    pairs = [
        np.stack([numbers[:, 0].ravel(), numbers[:, -1].ravel()]),
        np.stack([numbers[:, :, 0].ravel(), numbers[:, :, -1].ravel()]),
    ]
    joined = np.concatenate(pairs, 1)
    joined = joined[:, (joined > 0).all(0)]
    graph = coo_matrix((np.ones(joined.shape[1]), joined), shape=(count + 1, count + 1))
    groups, group = connected_components(graph, directed=False)
    if groups <= count:
        numbers = group.astype(np.int32)[numbers]
    zero = int(numbers[~mask][0]) if not mask.all() else -1
    area = np.bincount(numbers.ravel(), minlength=groups)
    core = np.bincount(numbers[shrink(mask)], minlength=groups)
    frame = np.zeros(groups, int)
    where = np.nonzero(mask)
    frame[numbers[where]] = where[0]
    least = _SMALL * size**2
    kept = np.flatnonzero((np.arange(groups) != zero) & (area > 0))
    solid = kept[(area[kept] >= 0.35 * least) & (core[kept] >= 0.12 * least)]
    largest = np.full(length, -1)
    order = kept[np.argsort(area[kept], kind="stable")]
    largest[frame[order]] = order
    main = mask & (numbers == largest[:, None, None])
    areas = np.where(largest >= 0, area[largest], 0) / size**2
    return Blobs(mask, main, areas, np.bincount(frame[solid], minlength=length))


# ---------------------------------------------------------------- one thing


def sight(
    film: np.ndarray, ground_T: np.ndarray, found: Blobs, others: np.ndarray, colour: int, thing: Thing
) -> Sighting:
    """Follows one thing, drawn in THINGS[colour], among `others` [T, n, n]; what it should be (`thing`) is used only to
    find its middle where another thing hides a part of it."""
    size, radius = film.shape[1], shapes.RADII[thing.size]
    contact_T = (grow(found.main, 3) & others).any((1, 2))
    mask = np.where(contact_T[:, None, None], found.mask, found.main)
    core = shrink(mask)
    weight = core.sum((1, 2))
    sums = np.einsum("tyx,tyxc->tc", core.astype(np.float32), film)
    colour_T3 = sums / np.maximum(weight, 1)[:, None]
    clear = weight >= 6
    colour_T3[~clear] = np.nan
    paint = np.median(colour_T3[clear], axis=0).astype(np.float32) if clear.any() else THINGS[colour]
    towards = paint - ground_T
    length = np.maximum(np.einsum("tyxc,tyxc->tyx", towards, towards), 1.0)
    towards = towards / length[..., None]
    alpha = np.einsum("tyxc,tyxc->tyx", film, np.broadcast_to(towards, film.shape))
    alpha -= np.einsum("tyxc,tyxc->tyx", ground_T, towards)
    near = grow(mask, 3)
    alpha = np.where(near & ~others, alpha.clip(-0.25, 1.25), 0).astype(np.float32)
    centre_T2, area_T = _middles(alpha)
    hidden = np.flatnonzero(contact_T & (found.area_T > 0))
    if len(hidden):
        open_ = ~grow(others[hidden], 1)
        centre_T2[hidden] = _match(alpha[hidden], open_, thing.shape, radius * size)
    picks = _best_frames(area_T, contact_T, radius)
    open_ = ~grow(others[picks], 1)
    radius_K = np.where(contact_T, radius, np.sqrt(area_T / math.pi))[picks]
    overlap_KS, blur_K = _compare(alpha[picks], open_, near[picks], centre_T2[picks], radius_K)
    return Sighting(centre_T2, area_T, contact_T, colour_T3, overlap_KS, blur_K)


def _middles(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroids [T, 2] on the torus and areas [T] of coverages [T, n, n]."""
    size = alpha.shape[1]
    place = (np.arange(size) + 0.5) / size
    area = np.maximum(alpha.sum((1, 2)), 0)
    centre = np.empty((len(alpha), 2))
    for axis in range(2):
        share = alpha.sum(1 + axis).astype(np.float64)
        around = np.angle(share @ np.exp(2j * np.pi * place)) / (2 * np.pi)
        offset = wrap(place[None] - around[:, None])
        centre[:, axis] = around + (share * offset).sum(1) / np.maximum(area, 1)
    return np.mod(centre, 1), area / size**2


def _match(alpha: np.ndarray, open_: np.ndarray, shape: str, radius: float) -> np.ndarray:
    """Where a template fits best, looking only at `open_` pixels: least squares at every shift at once by FFT."""
    size = alpha.shape[1]
    axis = wrap(np.arange(size) / size).astype(np.float32) * size / radius
    template = (0.5 - shapes.distance(shape, *np.meshgrid(axis, axis)) * radius).clip(0, 1)
    seen = np.where(open_, alpha, 0)
    first = np.fft.rfft2(seen) * np.conj(np.fft.rfft2(template))
    second = np.fft.rfft2(open_.astype(np.float32)) * np.conj(np.fft.rfft2(template**2))
    error = np.fft.irfft2(second - 2 * first, s=(size, size))
    best = error.reshape(len(error), -1).argmin(1)
    row, column = np.divmod(best, size)
    time = np.arange(len(error))
    result = np.empty((len(error), 2))
    for place, (dy, dx), index in ((0, (0, 1), column), (1, (1, 0), row)):
        here = error[time, row, column]
        after = error[time, (row + dy) % size, (column + dx) % size]
        before = error[time, (row - dy) % size, (column - dx) % size]
        bend = np.maximum(after + before - 2 * here, 1e-6)
        result[:, place] = (index + ((before - after) / (2 * bend)).clip(-0.5, 0.5) + 0.5) / size
    return np.mod(result, 1)


def _best_frames(area_T: np.ndarray, contact_T: np.ndarray, radius: float) -> np.ndarray:
    """Frames that show a thing well: of those that show anything, evenly spread ones without contact if there are."""
    shown = np.flatnonzero(area_T > 0.3 * math.pi * radius**2)
    free = shown[~contact_T[shown]]
    chosen = free if len(free) >= min(3, len(shown)) else shown
    return chosen[sample(len(chosen))] if len(chosen) else chosen


def _compare(
    alpha: np.ndarray, open_: np.ndarray, near: np.ndarray, centre_K2: np.ndarray, radius_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Overlap (intersection over union, K x 5) with each shape of radius `radius_K`, and the surplus of edge
    width [K] in 64ths of the frame."""
    if not len(alpha):
        return np.zeros((0, len(SHAPES))), np.zeros(0)
    size = alpha.shape[1]
    radius_K = radius_K * size
    half = min(math.ceil(1.75 * float(radius_K.max())) + 2, size // 2)
    middle = centre_K2 * size - 0.5
    offsets = np.arange(-half, half)
    columns, rows = np.floor(middle[:, :1]).astype(int) + offsets, np.floor(middle[:, 1:]).astype(int) + offsets
    x = ((columns - middle[:, :1]) / radius_K[:, None]).astype(np.float32)[:, None, :]
    y = ((rows - middle[:, 1:]) / radius_K[:, None]).astype(np.float32)[:, :, None]
    x, y = np.broadcast_arrays(x, y)
    place = (np.arange(len(alpha))[:, None, None], np.mod(rows, size)[:, :, None], np.mod(columns, size)[:, None, :])
    weight, seen = open_[place].astype(np.float32), alpha[place]
    close = weight * near[place]
    steep = _steepness(seen, close)
    clipped = seen.clip(0, 1)
    overlap, surplus = [], []
    for shape in SHAPES:
        mask = (0.5 - shapes.distance(shape, x, y) * radius_K[:, None, None]).clip(0, 1)
        union = (weight * np.maximum(mask, clipped)).sum((1, 2))
        overlap.append((weight * np.minimum(mask, clipped)).sum((1, 2)) / np.maximum(union, 1))
        ratio = steep / np.maximum(_steepness(mask, close), 1e-3)
        surplus.append((1 / ratio.clip(0.02, 1) - 1) * _EDGE * 64 / size)
    overlap_KS = np.stack(overlap, 1)
    blur = np.stack(surplus, 1)[np.arange(len(alpha)), overlap_KS.argmax(1)]
    return overlap_KS, blur


def _steepness(mask: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sum of squared differences of neighbouring pixels [K]: length of the outline over the width of its edge."""
    across = weight[:, :, 1:] * weight[:, :, :-1] * np.diff(mask, axis=2) ** 2
    down = weight[:, 1:] * weight[:, :-1] * np.diff(mask, axis=1) ** 2
    return np.asarray(across.sum((1, 2)) + down.sum((1, 2)))
