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
from arvid.worlds import captions, shapes
from arvid.worlds.grammar import Scene
from arvid.worlds.labels import Labels, label

PIXEL_FRAMES, BLOCK = 81, 3
LEVELS = (1, 2, 2)
"""Levels of the grammar the pair is trained on: one third one thing, two thirds two things."""


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


def plain(number: int, held_out: bool = False, levels: tuple[int, ...] = LEVELS) -> Take:
    """The clip with a number, from the training or the held-out part. Raises ValueError for unknown levels."""
    prompt = captions.sample(random.Random(f"{number}-{held_out}"), levels, held_out).prompt
    return Take(prompt, number, None, prompt)


def changing(number: int) -> Take:
    """The clip with a number whose prompt changes at a block of the first five: to a new scene, or something happens to
    one of its things. Both scenes are of the training part."""
    rng = random.Random(f"changing-{number}")
    while True:
        story = captions.sample(rng, (3, 4))
        turns = [act for act in story.acts[1:] if isinstance(act, Scene) or act[0].kind != "reverse"]
        if not turns:
            continue  # Three things, a camera, or a turn that the words of a scene cannot tell.
        begins = (0, TIME_STRIDE * BLOCK * rng.randint(1, 5) - TIME_STRIDE + 1)
        last = shapes.takes(story.prompt, number, PIXEL_FRAMES, begins)[-1]
        scene = Scene(tuple(track.thing for track in last.tracks if track.visible), last.scene.background)
        if scene.things and not captions.is_held_out(scene):
            return Take(story.prompt, number, begins, captions.say(scene, rng))


def clip(job: tuple[int, bool, tuple[int, ...]]) -> tuple[str, np.ndarray]:
    """Prompt and frames of the clip with a number."""
    take = plain(*job)
    return take.told, take.render()


def labelled(job: tuple[int, bool, tuple[int, ...]]) -> tuple[np.ndarray, Labels]:
    """Frames and labels of the clip with a number."""
    take = plain(*job)
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
    """What stands in every cell of every latent frame of clips: `classes` [N, T, Y, X, 3] uint8 (shape, size, colour)
    and `velocity` [N, T, Y, X, 2] fp16."""
    found = [take.label(frames) for take in takes]
    classes = [np.stack([row.shape_TYX, row.size_TYX, row.colour_TYX], -1)[::TIME_STRIDE] for row in found]
    velocity = [row.velocity_TYX2[::TIME_STRIDE] for row in found]
    return {"classes": torch.from_numpy(np.stack(classes)), "velocity": torch.from_numpy(np.stack(velocity))}
