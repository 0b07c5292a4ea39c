"""One video made and kept: blocks from the pipeline into files, an album and a report, watched by a display.

Knows: what is done with every block as it comes, and what is left when somebody interrupts. Does not know: arguments.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

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


def make(pipeline: Pipeline, job: Job, display: Display) -> Recorder:
    """Make one video and write its files. An interrupt ends the video at the last finished block; the files of the
    finished blocks are written all the same, and `interrupted` of the recorder is true."""
    card, recorder = pipeline.family.card, Recorder()
    keeper, blocks = Keeper(job.places, card.fps), check(pipeline, job.request)
    display.begin(job.request.prompt, blocks)
    with ExitStack() as stack:
        film = stack.enter_context(job.writer(pipeline))
        stack.enter_context(display)
        try:
            for block in recorder.watch(pipeline.stream(job.request, (recorder, display))):
                film.append(block.frames_BTCHW[0])
                keeper.add(block)
                display.block(recorder.rows[-1])
        except KeyboardInterrupt:
            recorder.interrupted = True
    if recorder.rows:
        keeper.write(job.request)
        if job.places.report:
            report = {
                **head("generate", str(pipeline.family.device)),
                **run_of(job.request, card, recorder, job.drafter),
                "outputs": job.places.named(),
            }
            job.places.report.parent.mkdir(exist_ok=True)
            write_report(report, job.places.report)
    display.end(recorder.totals(), _notes(job, recorder, blocks))
    return recorder


def _notes(job: Job, recorder: Recorder, blocks: int) -> list[str]:
    if not recorder.rows:
        return ["interrupted before the first block; nothing was written"]
    stopped = [f"interrupted; the files hold the first {len(recorder.rows)} of {blocks} blocks"]
    return [*(stopped if recorder.interrupted else []), "wrote " + ", ".join(job.places.named().values())]
