"""One video made and kept: blocks from the pipeline into files, an album and a report, watched by a display.

Knows: what is done with every block as it comes, and what is left when somebody interrupts. Does not know: arguments.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from arvid.cli.families import check
from arvid.cli.places import Places, whole
from arvid.cli.progress import Display
from arvid.cli.report import Recorder, head, run_of, write_report
from arvid.pipeline import Pipeline, Request
from arvid.types import Block
from arvid.video import Album, VideoWriter, contact_sheet

COMFORTABLE = 512
"""Small videos are enlarged by a whole number until their smaller side comes near this many pixels."""


def fitting_scale(size: tuple[int, int]) -> int:
    """How often frames of a size are enlarged when nobody says so."""
    return max(1, COMFORTABLE // min(size))


@dataclass(frozen=True)
class Job:
    """One video: what is asked for, where it goes, how often its frames are enlarged (0: as
    fits), the directory its drafter was taken from (empty: the family's own)."""

    request: Request
    places: Places
    scale: int = 0
    drafter: str = ""

    def writer(self, pipeline: Pipeline) -> VideoWriter:
        """The file of the video, not yet opened. Raises ValueError when it cannot be written as asked."""
        card = pipeline.family.card
        self.places.video.parent.mkdir(exist_ok=True)
        return VideoWriter(self.places.video, card.fps, *card.size, self.scale or fitting_scale(card.size))


class Keeper:
    """What is kept of a rollout beside its video."""

    def __init__(self, places: Places, fps: float) -> None:
        self._places = places
        self._album = Album(fps)
        self._latents: list[Tensor] = []

    def add(self, block: Block) -> None:
        """Keep what the files will need of a block."""
        if self._places.sheet:
            self._album.add(block.frames_BTCHW[0], block.source)
        if self._places.latents:
            self._latents.append(block.latents_BTCHW.float().cpu())

    def write(self, request: Request) -> None:
        """The contact sheet and the latents."""
        if self._places.sheet:
            self._places.sheet.parent.mkdir(exist_ok=True)
            contact_sheet([self._album.strip()], self._places.sheet, request.prompt, lines=2)
        if self._places.latents:
            self._places.latents.parent.mkdir(exist_ok=True)
            told = {"prompt": request.prompt, "seed": str(request.seed)}
            with whole(self._places.latents) as part:
                part.write_bytes(save({"latents": torch.cat(self._latents, 1).contiguous()}, told))


class Interrupts:
    """Ctrl-C ends a rollout while a block is being made; while one is put away it waits, so that video, latents and
    report always hold the same blocks and every file is whole. Use it as a context; `noted` tells of a late one."""

    def __init__(self) -> None:
        self.noted = False
        self._making = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self._making:
            raise KeyboardInterrupt
        self.noted = True

    def during(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The blocks; raises KeyboardInterrupt when one was noted since the last."""
        while True:
            if self.noted:
                raise KeyboardInterrupt
            self._making = True
            try:
                block = next(blocks, None)
            finally:
                self._making = False
            if block is None:
                return
            yield block


def make(pipeline: Pipeline, job: Job, display: Display) -> Recorder:
    """Make one video and write its files. An interrupt ends the video at the last finished block; the files of the
    finished blocks are written all the same, and `interrupted` of the recorder is true."""
    recorder, keeper = Recorder(), Keeper(job.places, pipeline.family.card.fps)
    blocks = check(pipeline, job.request)
    display.begin(job.request.prompt, blocks)
    with Interrupts() as interrupts:
        with job.writer(pipeline) as film, display:
            stream = interrupts.during(pipeline.stream(job.request, (recorder, display)))
            try:
                for block in recorder.watch(stream):
                    film.append(block.frames_BTCHW[0])
                    keeper.add(block)
                    display.block(recorder.rows[-1])
            except KeyboardInterrupt:
                recorder.interrupted = True
        if recorder.rows:
            keeper.write(job.request)
            _report(pipeline, job, recorder)
        display.end(recorder.totals(), _notes(job, recorder, blocks))
    if interrupts.noted and not recorder.interrupted:
        raise KeyboardInterrupt
    return recorder


def _report(pipeline: Pipeline, job: Job, recorder: Recorder) -> None:
    if job.places.report:
        report = {
            **head("generate", str(pipeline.family.device)),
            **run_of(job.request, pipeline.family.card, recorder, job.drafter),
            "outputs": job.places.named(),
        }
        job.places.report.parent.mkdir(exist_ok=True)
        write_report(report, job.places.report)


def _notes(job: Job, recorder: Recorder, blocks: int) -> list[str]:
    if not recorder.rows:
        return ["interrupted before the first block; nothing was written"]
    stopped = [f"interrupted; the files hold the first {len(recorder.rows)} of {blocks} blocks"]
    return [*(stopped if recorder.interrupted else []), "wrote " + ", ".join(job.places.named().values())]
