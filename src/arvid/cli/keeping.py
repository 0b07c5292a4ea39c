"""What a run is, and where its blocks go as they come: film, latents, album.

Knows: what a video begins with, files beside their places, what a report tells of a run. Does not know: arguments,
interrupts, displays, how a run is saved to be gone on with (cli/saving.py).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arvid.cli.places import Places
from arvid.cli.report import Recorder, Row
from arvid.models.tae import TIME_STRIDE
from arvid.pipeline import Pipeline, Request
from arvid.rollout.session import Session
from arvid.rollout.state import LatentsFile
from arvid.rollout.steered import GIVEN
from arvid.types import Block, Listener
from arvid.video import Album, Reel, VideoWriter, contact_sheet, fitted, frames_of, read_picture

COMFORTABLE = 512
"""Small videos are enlarged by a whole number until their smaller side comes near this many pixels."""


def fitting_scale(size: tuple[int, int]) -> int:
    """How often frames of a size are enlarged when nobody says so."""
    return max(1, COMFORTABLE // min(size))


# ---------------------------------------------------------------- what is made of what


@dataclass(frozen=True)
class Start:
    """What a video begins with: a picture, or the end of a clip (`moving`)."""

    path: str
    moving: bool


def start_of(image: str, clip: str) -> Start | None:
    """The start that two options name. Raises ValueError when both do, or the file is missing."""
    if image and clip:
        raise ValueError(f"--image {image} and --continue {clip} at once; give one of them")
    name = image or clip
    if name and not Path(name).is_file():
        raise ValueError(f"no file {name}; give a {'picture' if image else 'video'} to begin with")
    return Start(str(Path(name).absolute()), bool(clip)) if name else None


def begin(pipeline: Pipeline, start: Start | None) -> Tensor | None:
    """Latents of what a video begins with. Raises ValueError when it cannot be read or is of another shape."""
    if start is None:
        return None
    card = pipeline.family.card
    if not start.moving:
        return pipeline.encode(read_picture(Path(start.path), *card.size))
    last = deque(clip_frames(start, card.size), maxlen=1 + TIME_STRIDE * (card.trained_frames - 1))
    return pipeline.encode(np.stack(last))


def clip_frames(start: Start, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames of a clip in the size of the video."""
    return (fitted(picture_HWC, *size, start.path) for picture_HWC in frames_of(Path(start.path)))


@dataclass(frozen=True)
class Job:
    """One video: what is asked for, where it goes, how often its frames are enlarged (0: as fits), the names of the
    family and of the directory its drafter was taken from (empty: the family's own), what it begins with, after how
    many blocks its state is saved (0: never), and the folder of a run that was begun before."""

    request: Request
    places: Places
    scale: int = 0
    model: str = ""
    drafter: str = ""
    start: Start | None = None
    save_every: int = 0
    begun: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the run is saved."""
        return self.begun or self.places.video.with_suffix(".run")

    def check_folder(self) -> None:
        """Raises ValueError when the folder of a run that shall be saved is in use."""
        if self.save_every and self.folder.exists():
            raise ValueError(
                f"{self.folder} holds a run that was not finished; go on with --resume {self.folder}, or remove it"
            )

    def enlarged(self, size: tuple[int, int]) -> int:
        """How often frames of a size are enlarged."""
        return self.scale or fitting_scale(size)


# ---------------------------------------------------------------- where it goes


class Log:
    """Changes of the prompt and looks of the guard, as they happen (see `arvid.types.Listener`)."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Row]] = []

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Remember what a report tells."""
        if event in ("changed", "guard"):
            self.entries.append((event, dict(payload)))

    def named(self, event: str) -> list[Row]:
        """What happened of one kind."""
        return [payload for name, payload in self.entries if name == event]


class Shelf:
    """Where the blocks of a run go as they come. Use it as a context; nothing of a block is kept in memory but a few
    frames for the album."""

    def __init__(self, pipeline: Pipeline, job: Job) -> None:
        card = pipeline.family.card
        self.job, self.size, self.fps = job, card.size, card.fps
        self.album = Album(card.fps)
        job.places.video.parent.mkdir(exist_ok=True)
        self.film: VideoWriter | Reel = VideoWriter(job.places.video, card.fps, *card.size, job.enlarged(card.size))
        self.latents = LatentsFile(self._raw(job.places.latents), pipeline.latent_shape) if job.places.latents else None

    def _raw(self, latents: Path) -> Path:
        latents.parent.mkdir(exist_ok=True)
        return latents.with_name(f".{latents.name}.{os.getpid()}.raw")

    def __enter__(self) -> Shelf:
        self.film.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.film.__exit__(kind, error, trace)

    def open(
        self,
        pipeline: Pipeline,
        given: Tensor | None,
        listeners: tuple[Listener, ...],
        recorder: Recorder,
        log: Log,
    ) -> Session:
        """The session whose blocks come here."""
        return pipeline.session(self.job.request, listeners, given, keep=1)

    def begin(self) -> None:
        """Put what goes before the first block on the film."""
        if self.job.start is not None and self.job.start.moving:
            for picture_HWC in clip_frames(self.job.start, self.size):
                self.film.append_bytes(picture_HWC[None])
                self._show(pixels(picture_HWC), GIVEN)

    def add(self, block: Block, session: Session, recorder: Recorder, log: Log) -> None:
        """Put a block away. What was given of a clip is on the film already."""
        if not (block.source == GIVEN and self.job.start is not None and self.job.start.moving):
            self.film.append(block.frames_BTCHW[0])
            self._show(block.frames_BTCHW[0], block.source)
        if self.latents is not None:
            self.latents.append(block.latents_BTCHW)

    def _show(self, v_TCHW: Tensor, source: str) -> None:
        if self.job.places.sheet:
            self.album.add(v_TCHW, source)

    def stopped(self, session: Session, recorder: Recorder, log: Log) -> None:
        """Somebody interrupted after the last block that was put away."""

    def finish(self, whole: bool) -> None:
        """Write what the film does not hold: the contact sheet and the latents; `whole` when no block is missing."""
        request, places = self.job.request, self.job.places
        if places.sheet:
            places.sheet.parent.mkdir(exist_ok=True)
            contact_sheet([self.album.strip()], places.sheet, request.prompt, lines=2)
        if self.latents is not None and places.latents:
            self.latents.finish(places.latents, {"prompt": request.prompt, "seed": str(request.seed)})

    def clear(self) -> None:
        """Close what is open and remove what is no result."""
        if self.latents is not None:
            self.latents.close()
            self.latents.path.unlink(missing_ok=True)


def pixels(picture_HWC: np.ndarray) -> Tensor:
    """A picture as one frame v_TCHW."""
    return torch.tensor(picture_HWC)[None].movedim(-1, 1).float() / 127.5 - 1
