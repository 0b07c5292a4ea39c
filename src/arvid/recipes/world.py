"""Clips of the shapes world for training: which ones there are, what they show, what is told of them.

Knows: numbers of clips, levels of the grammar, where a prompt changes on the way. Does not know: latents, files, what
is trained on them.

A clip whose prompt changes has two acts, of which the second begins with a block; its text tells of the second alone.
So it is what a model reads that was told a new prompt and whose past was written again under it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arvid.models.tae import TIME_STRIDE
from arvid.worlds import captions, shapes, stories
from arvid.worlds.grammar import Event, Scene, parse
from arvid.worlds.labels import Labels, label

PIXEL_FRAMES, BLOCK = 81, 3
LEVELS = (1, 2, 2, 3, 3, 4, 4)
"""Levels of the grammar the pair is trained on; only half of the third and of the fourth is one scene (see `scene`), so
one fifth is one thing, two fifths are two things, one fifth is three and one a camera that pans."""
EVENTFUL = (3, 3, 4)
"""Levels that clips whose prompt changes are drawn from: two thirds events, one third new scenes."""


@dataclass(frozen=True)
class Take:
    """A clip to be rendered: the prompt of all of it and its seed, the frames at which its acts begin (None: they share
    the clip equally, and a model is told of all), and the prompt that a model is told."""

    prompt: str
    seed: int
    begins: tuple[int, ...] | None
    told: str

    @property
    def learned(self) -> int:
        """The first latent frame that shows what a model is told."""
        return -(-self.begins[-1] // TIME_STRIDE) if self.begins else 0

    def render(self, frames: int = PIXEL_FRAMES) -> np.ndarray:
        """Its first frames [frames, 64, 64, 3] uint8."""
        return shapes.render(self.prompt, self.seed, frames, begins=self.begins)

    def label(self, frames: int = PIXEL_FRAMES) -> Labels:
        """What stands where in them."""
        return label(self.prompt, self.seed, frames, begins=self.begins)


def film(number: int, held_out: bool, levels: tuple[int, ...]) -> Take:
    """The clip with a number, from the training or the held-out part: of a story all acts. Raises ValueError for
    unknown levels."""
    prompt = captions.sample(random.Random(f"{number}-{held_out}"), levels, held_out).prompt
    return Take(prompt, number, None, prompt)


def scene(number: int) -> Take:
    """The training clip with a number, of one scene: a model is told the acts of a story one by one."""
    rng = random.Random(f"{number}-False")
    while True:
        told = captions.sample(rng, LEVELS)
        if len(told.acts) == 1:
            return Take(told.prompt, number, None, told.prompt)


def changing(number: int) -> Take:
    """The clip with a number whose prompt changes at a block of the first five: to a new scene, or something happens to
    one of its things. Both scenes are of the training part."""
    rng = random.Random(f"changing-{number}")
    while True:
        story = captions.sample(rng, EVENTFUL)
        told = stories.acts(story.prompt)
        if len(told) < 2 or _untold(story.acts):
            continue
        begins = (0, TIME_STRIDE * BLOCK * rng.randint(1, 5) - TIME_STRIDE + 1)
        if not captions.is_held_out(parse(told[-1].prompt).scene):
            return Take(story.prompt, number, begins, told[-1].prompt)


def _untold(acts: tuple[Scene | tuple[Event, ...], ...]) -> bool:
    """Whether the words of a scene cannot say what happened: a bouncing thing turns back, or nothing is left."""
    first, last = acts[0], acts[-1]
    if isinstance(last, Scene):
        return False
    assert isinstance(first, Scene)
    kind, thing = last[0].kind, first.things[last[0].thing]
    return (kind == "reverse" and thing.motion.kind == "bounce") or (kind == "vanish" and len(first.things) == 1)


def clip(job: tuple[int, bool, tuple[int, ...]]) -> tuple[str, np.ndarray]:
    """Prompt and frames of the clip with a number."""
    take = film(*job)
    return take.told, take.render()


def labelled(job: tuple[int, bool, tuple[int, ...]]) -> tuple[np.ndarray, Labels]:
    """Frames and labels of the clip with a number."""
    take = film(*job)
    return take.render(), take.label()


def clips(count: int, held_out: bool, levels: tuple[int, ...], start: int = 0) -> tuple[list[str], np.ndarray]:
    """`count` prompts and their frames [count, 81, 64, 64, 3] uint8, rendered on all cores."""
    jobs = [(number, held_out, levels) for number in range(start, start + count)]
    with ProcessPoolExecutor() as pool:
        made = list(pool.map(clip, jobs, chunksize=32))
    return [prompt for prompt, _ in made], np.stack([frames for _, frames in made])


def labelled_clips(count: int, levels: tuple[int, ...], start: int = 0) -> list[tuple[np.ndarray, Labels]]:
    """Frames and labels of `count` clips of the training part, made on all cores."""
    jobs = [(number, False, levels) for number in range(start, start + count)]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(labelled, jobs, chunksize=32))


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] -> fp32 [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def labels(takes: Sequence[Take], frames: int) -> dict[str, Tensor]:
    """What stands in every cell of every latent frame of clips: `classes` [N, T, Y, X, 3] uint8 (shape, size,
    colour), `velocity` and `offset` [N, T, Y, X, 2] fp16."""
    found = [take.label(frames) for take in takes]
    classes = [np.stack([row.shape_TYX, row.size_TYX, row.colour_TYX], -1)[::TIME_STRIDE] for row in found]
    velocity = [row.velocity_TYX2[::TIME_STRIDE] for row in found]
    offset = [row.offset_TYX2[::TIME_STRIDE] for row in found]
    kinds = {"classes": classes, "velocity": velocity, "offset": offset}
    return {kind: torch.from_numpy(np.stack(rows)) for kind, rows in kinds.items()}
