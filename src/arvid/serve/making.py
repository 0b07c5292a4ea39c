"""One job's video in the making: blocks from a session into files, so that a kill at any moment loses little.

Knows: the files of a job and the order in which they are written. Does not know: the database, who asked, when the next
block may be made (serve/engine.py).

    given.safetensors   latents to begin with          start.png, start.mp4   a picture or clip to begin with
    state.safetensors   the last saved state; its notes say how much of the next two belongs to it
    part-000000.mp4     finished parts of the video    latents.raw            latents so far
    latents.safetensors all latents: nothing is left to be sampled
    video.mp4           thumbnail.webp                 spritesheet.jpg        report.json

What was sampled is never sampled again, unless what is known of it is lost or of another version: if joining the parts
fails, the video is decoded from the latents.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from arvid.pipeline import Family, Pipeline, Request, describe
from arvid.rollout import state
from arvid.rollout.session import Session
from arvid.rollout.stage import shown
from arvid.rollout.state import LatentsFile, Snapshot
from arvid.rollout.steered import GIVEN
from arvid.serve.pictures import draw
from arvid.serve.place import whole
from arvid.types import Block
from arvid.video import Reel, VideoWriter, fitted, frames_of, read_picture

LATENTS, PICTURE, CLIP = "given.safetensors", "start.png", "start.mp4"
MOST_STRIDE = 16
"""More frames than any autoencoder makes of one latent frame."""
Step = Block | Future[Any] | None
STARTS = (LATENTS, PICTURE, CLIP)
"""What a video may begin with, by the name of the file in its folder."""
SAMPLED, STATE, RAW, VIDEO = "latents.safetensors", "state.safetensors", "latents.raw", "video.mp4"
THUMBNAIL, SHEET, REPORT = "thumbnail.webp", "spritesheet.jpg", "report.json"


@dataclass(frozen=True)
class Asked:
    """What is made: a request, the file it begins with (empty: none; one of STARTS), how often frames are enlarged, and
    how many frames of a clip to begin with are kept (0: all)."""

    request: Request
    start: str = ""
    scale: int = 1
    kept: int = 0

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Asked:
        """What `asdict` made plain. Raises ValueError for what another version of this program has made of it."""
        try:
            return cls(**{**plain, "request": Request.of(plain["request"])})
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"what was asked for is of another version ({error!r}); ask for it again") from error


@dataclass(frozen=True)
class Hands:
    """Threads for what needs no model: `films` encodes frames while the next block is made, `ends` joins and draws."""

    films: Executor
    ends: Executor


Speed = Callable[[Request, Family, Sequence[dict[str, Any]]], "dict[str, Any] | None"]
"""The timing record of a request's blocks, told as rows: put together by another room than this one."""


def untimed(request: Request, family: Family, rows: Sequence[dict[str, Any]]) -> None:
    """No record."""


class Making:
    """See the module. `save_seconds` lie between two saved states; `saves` counts them, `blocks` is what the whole
    video has, `rows` tells of those that are made, which are all of them when it is `sampled`."""

    def __init__(
        self, pipeline: Pipeline, folder: Path, asked: Asked, hands: Hands, save_seconds: float, speed: Speed = untimed
    ) -> None:
        self._pipeline, self._folder, self._asked, self._speed = pipeline, folder, asked, speed
        self._hands, self._every = hands, save_seconds
        self._size, self._fps = pipeline.family.card.size, pipeline.family.card.fps
        self.rows: list[dict[str, Any]] = []
        self.blocks, self.saves, self.sampled, self._closing = 0, 0, False, False
        self._film: Reel | None = None
        self._latents: LatentsFile | None = None
        self._session: Session | None = None
        self._filming: deque[Future[Any]] = deque()
        self._begun: int | None = None

    def run(self) -> Generator[Step, None, None]:
        """Make it, or go on with it. Yields each block that was made, what must be waited for, and None between other
        pieces of work. Raises ValueError when what it begins with cannot be read."""
        if not self._recall():
            yield from self._sample()
        self.sampled = True
        joined = self._hands.ends.submit(self._join)
        yield joined
        if not joined.result():
            yield from self._decode()
        told = self._hands.ends.submit(self._tell)
        yield told
        told.result()

    def close(self) -> None:
        """Let go of all files."""
        self._closing = True
        try:
            self._filmed()
        finally:
            if self._film is not None:
                self._film.cut()
            if self._latents is not None:
                self._latents.close()

    def save(self) -> None:
        """Write the state after the last block, if there is something to go on with."""
        if self._session is None or self._film is None or self._latents is None or not self.rows:
            return
        self._filmed()
        self._film.cut()
        self._latents.flush()
        notes = {"parts": self._film.parts, "frames": self._latents.frames, "rows": self.rows, "blocks": self.blocks}
        state.save(self._session.snapshot(), self._folder / STATE, notes)
        self.saves += 1

    # ------------------------------------------------------------ sampling

    def _sample(self) -> Iterator[Step]:
        latents = self._latents = LatentsFile(self._folder / RAW, self._pipeline.latent_shape)
        found, clip = self._saved(str(self._pipeline.family.device)), self._asked.start == CLIP
        self.rows, parts, frames = (found[1]["rows"], found[1]["parts"], found[1]["frames"]) if found else ([], [], 0)
        latents.truncate(frames)
        film = self._film = self._reel(parts)
        if found:
            session = self._pipeline.resume(found[0], keep=1)
        else:
            end = (yield from self._filmed_clip(film)) if clip else []
            session = self._pipeline.session(self._asked.request, given=self._given(end), keep=1)
        self._session, self.blocks, saved = session, session.blocks, time.monotonic()
        for block in session:
            if not (block.source == GIVEN and clip):
                self._filming.append(self._hands.films.submit(film.append, block.frames_BTCHW[0]))
            latents.append(block.latents_BTCHW)
            self.rows.append(describe(block))
            yield block
            due = time.monotonic() - saved >= self._every
            yield from self._film_behind(0 if due else 1)
            if due:
                self.save()
                saved = time.monotonic()
        yield from self._film_behind(0)
        self.save()
        told = {"prompt": self._asked.request.prompt, "seed": str(self._asked.request.seed)}
        latents.finish(self._folder / SAMPLED, told)

    def _saved(self, device: str) -> tuple[Snapshot, dict[str, Any]] | None:
        """The last saved state; None when there is none, or it is of another version of this program."""
        try:
            return state.load(self._folder / STATE, device)
        except ValueError:
            return None

    def _recall(self) -> bool:
        """Whether the video was sampled before the server ended, and what is known of it. Latents of which nothing is
        known are removed, or they would be taken for whole when a kill ends their being sampled again."""
        sampled = self._folder / SAMPLED
        found = self._saved("cpu") if sampled.is_file() else None
        if found is None:
            sampled.unlink(missing_ok=True)
            return False
        notes = found[1]
        self.rows, self.blocks = notes["rows"], notes["blocks"]
        self._film = self._reel(notes["parts"])
        return True

    def _reel(self, parts: list[str]) -> Reel:
        return Reel(self._folder, parts, self._fps, self._size, self._asked.scale)

    def _filmed(self) -> None:
        """Wait until the frames so far are on the film."""
        filming = list(self._filming)
        self._filming.clear()
        wait(filming)
        for filmed in filming:
            filmed.result()

    def _film_behind(self, most: int) -> Iterator[Step]:
        """Until the film is at most so many blocks behind. The engine does something else meanwhile."""
        while len(self._filming) > most:
            if not self._filming[0].done():
                yield self._filming[0]
            self._filming.popleft().result()

    def _filmed_clip(self, film: Reel | VideoWriter) -> Generator[Step, None, Sequence[np.ndarray]]:
        """Have the clip put on film; its last frames."""
        filmed = self._hands.films.submit(self._film_clip, film)
        self._filming.append(filmed)
        yield from self._film_behind(0)
        return filmed.result()

    def _film_clip(self, film: Reel | VideoWriter) -> Sequence[np.ndarray]:
        end: deque[np.ndarray] = deque(maxlen=MOST_STRIDE * self._pipeline.family.card.trained_frames)
        for picture_HWC in self._clip():
            if self._closing:
                break
            film.append_bytes(picture_HWC[None])
            end.append(picture_HWC)
        return end

    def _given(self, end: Sequence[np.ndarray]) -> Tensor | None:
        """Latents to begin with, where it begins with something; those of a clip are those of its `end`."""
        if self._asked.start == LATENTS:
            return load_file(self._folder / LATENTS)["latents"].to(self._pipeline.family.device)
        if self._asked.start == PICTURE:
            return self._pipeline.encode(read_picture(self._folder / PICTURE, *self._size))
        return self._pipeline.encode(np.stack(end)) if self._asked.start == CLIP else None

    def _clip(self) -> Iterator[np.ndarray]:
        """Frames of the clip in the size of the video."""
        for picture_HWC in islice(frames_of(self._folder / CLIP), self._asked.kept or None):
            yield fitted(picture_HWC, *self._size, "the video")

    # ------------------------------------------------------------ rendering

    def _join(self) -> bool:
        """Make the video of its parts. False when one is missing or damaged."""
        assert self._film is not None
        try:
            self._film.join(self._folder / VIDEO)
            return frames_in(self._folder / VIDEO) == self._frames()
        except (av.error.FFmpegError, OSError, ValueError, IndexError):
            return False

    def _decode(self) -> Iterator[Step]:
        """Make the video of the latents, block by block."""
        decoder, past, clip = self._pipeline.family.decoder, None, self._asked.start == CLIP
        writer = VideoWriter(self._folder / VIDEO, self._fps, *self._size, self._asked.scale)
        with writer, safe_open(self._folder / SAMPLED, "pt", str(self._pipeline.family.device)) as file:
            latents = file.get_slice("latents")
            if clip:
                yield from self._filmed_clip(writer)
            for row in self.rows:
                begin, end = row["latent_frames"]
                with torch.inference_mode():
                    frames, past = shown(decoder, latents[:, begin:end], past, bool(row.get("opens")))
                if not (clip and row["source"] == GIVEN):
                    writer.append(frames[0])
                yield None

    def _tell(self) -> None:
        """Write what goes with the video, and remove what is no result."""
        draw(self._folder / VIDEO, self._frames(), self._folder / THUMBNAIL, self._folder / SHEET)
        with whole(self._folder / REPORT) as part:
            part.write_text(json.dumps(self.report(), indent=2) + "\n", encoding="utf-8")
        self.close()
        for path in [*self._folder.glob("part-*.mp4"), *self._folder.glob(".*"), self._folder / RAW]:
            path.unlink(missing_ok=True)

    def _frames(self) -> int:
        clip = self._asked.start == CLIP
        if self._begun is None:  # counted once, and not by the engine's thread: it takes as long as decoding all of it
            self._begun = sum(1 for _ in self._clip()) if clip else 0
        return self._begun + sum(row["frames"] for row in self.rows if not (clip and row["source"] == GIVEN))

    def settle(self) -> None:
        """Remove what a finished video needs no longer; to be called when it is known to everybody as finished."""
        (self._folder / STATE).unlink(missing_ok=True)

    def report(self) -> dict[str, Any]:
        """What is told about the video: who made which block, and what it took."""
        sources = Counter(row["source"] for row in self.rows)
        seconds = sum(sum(row["seconds"].values()) for row in self.rows)
        made = [row for row in self.rows if row["source"] != GIVEN]
        return {"schema": 1, "frames": self._frames(), "seconds": round(seconds, 4), "sources": dict(sources),
                "speed": self._speed(self._asked.request, self._pipeline.family, made),
                "blocks": self.rows}  # fmt: skip


def frames_in(path: Path) -> int:
    """Frames of a video by its index."""
    with av.open(str(path)) as file:
        return file.streams.video[0].frames


def keep_latents(source: Path, frames: int | None, path: Path) -> int:
    """Copy the first latent frames (None: all) of a finished video to begin another with; how many there are. Raises
    ValueError when the video has no latents."""
    try:
        with safe_open(source / SAMPLED, "pt") as file:
            latents = file.get_slice("latents")[:, slice(0, frames)]
    except (OSError, ValueError) as error:
        raise ValueError(f"the latents of this video are missing ({error}); make it again") from error
    with whole(path) as part:
        save_file({"latents": latents.contiguous()}, part)
    return int(latents.shape[1])
