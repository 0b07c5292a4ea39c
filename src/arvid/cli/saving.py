"""A run that can be killed and gone on with: a folder with what was asked for, the last state, and what is finished.

Knows: the names in the folder and the order in which they are written, so that a kill at any moment leaves a state and
files that agree. Does not know: what is in a state, how blocks are made.

    job.json            what was asked for
    state.safetensors   the last saved state; its notes say how much of the other files belongs to it
    part-000000.mp4     finished parts of the video, closed when a state is saved
    latents.raw         latents so far, when they were asked for
    events.jsonl        blocks, changes and looks of the guard so far, one per line
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from arvid.cli.keeping import Job, Log, Shelf, Start, pixels
from arvid.cli.places import Places, whole
from arvid.cli.report import Recorder
from arvid.pipeline import Pipeline, Request
from arvid.rollout import state
from arvid.rollout.session import Session
from arvid.rollout.steered import GIVEN
from arvid.types import Block, Listener
from arvid.video import Reel, frames_of

SCHEMA = 1


def read_job(folder: Path) -> Job:
    """The job of a folder. Raises ValueError when there is none."""
    path = folder / "job.json"
    if not path.is_file():
        raise ValueError(f"no run in {folder}: job.json is missing; give a folder that --save-every left")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}")
        video, *others = (found["places"][name] for name in ("video", "report", "latents", "sheet"))
        places = Places(Path(video), *(Path(name) if name else None for name in others))
        start = Start(**found["start"]) if found["start"] else None
        rest = (found["scale"], found["model"], found["drafter"], start, found["save_every"])
        request = Request.of(found["request"])
        numbers = (request.seconds, request.seed, found["scale"], found["save_every"])
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError(f"expected numbers of seconds, seed, scale and save_every, found {numbers}")
        return Job(request, places, *rest, folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run that can be gone on with ({error}); begin again") from error


def _write_job(job: Job) -> None:
    job.folder.mkdir()
    absolute = {name: str(path.absolute()) if path else None for name, path in vars(job.places).items()}
    model = str(Path(job.model).absolute()) if Path(job.model).is_dir() else job.model
    drafter = str(Path(job.drafter).absolute()) if job.drafter and Path(job.drafter).is_dir() else job.drafter
    plain = {**asdict(job), "places": absolute, "model": model, "drafter": drafter, "begun": None, "schema": SCHEMA}
    with whole(job.folder / "job.json") as part:
        part.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class SavedShelf(Shelf):
    """A shelf whose run can be gone on with."""

    def __init__(self, pipeline: Pipeline, job: Job) -> None:
        fresh = not job.folder.exists()
        if fresh:
            _write_job(job)
        try:
            super().__init__(pipeline, job)
            self.film = self.reel = Reel(job.folder, (), self.fps, self.size, job.enlarged(self.size))
        except ValueError:
            if fresh:
                shutil.rmtree(job.folder)
            raise
        self._state = job.folder / "state.safetensors"
        self._events = (job.folder / "events.jsonl").open("a", encoding="utf-8")
        self._logged = 0
        self._clip = 0
        self._done = False

    def _raw(self, latents: Path) -> Path:
        return self.job.folder / "latents.raw"

    def open(
        self,
        pipeline: Pipeline,
        given: Tensor | None,
        listeners: tuple[Listener, ...],
        recorder: Recorder,
        log: Log,
    ) -> Session:
        """The session of the last saved state, with film, latents and rows as they were then; a new one when none was
        saved. Raises ValueError when files of the folder are missing or damaged."""
        if not self._state.is_file():
            self._trim(0)
            return super().open(pipeline, given, listeners, recorder, log)
        snapshot, notes = state.load(self._state, str(pipeline.family.device))
        for name in notes["parts"]:
            try:
                next(frames_of(self.job.folder / name))
            except ValueError as error:
                raise ValueError(
                    f"{self.job.folder / name} is no finished part of the video any more; put it back, or begin again"
                ) from error
        for kind, entry in self._trim(notes["lines"]):
            if kind == "block":
                recorder.rows.append(entry)
            else:
                log.entries.append((kind, entry))
        self._logged, self._clip = len(log.entries), notes["clip"]
        recorder.seconds, recorder.first_frame_s = notes["seconds"], notes["first_frame_s"]
        self.reel.parts = list(notes["parts"])
        if self.latents is not None:
            self.latents.truncate(notes["latent_frames"])
        if self.job.places.sheet:
            self._look_again(recorder)
        return pipeline.resume(snapshot, listeners, keep=1)

    def _trim(self, lines: int) -> list[tuple[str, dict[str, Any]]]:
        """The first lines of the events; the others go. Raises ValueError when they are not there."""
        path = self.job.folder / "events.jsonl"
        with path.open("r+", encoding="utf-8") as file:
            kept = [file.readline() for _ in range(lines)]
            try:
                told = [(found["kind"], found["entry"]) for found in map(json.loads, kept)]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is not what its {lines} lines were ({error}); begin again") from error
            file.seek(sum(len(line.encode()) for line in kept))
            file.truncate()
        if self.latents is not None and not lines:
            self.latents.truncate(0)
        return told

    def _look_again(self, recorder: Recorder) -> None:
        """Fill the album with what the finished parts show."""
        moving = self.job.start is not None and self.job.start.moving
        shown = [(self._clip, GIVEN)] if self._clip else []
        shown += [(row["frames"], row["source"]) for row in recorder.rows if not (moving and row["source"] == GIVEN)]
        pictures = self._finished()
        for count, source in shown:
            for picture_HWC in islice(pictures, count):
                self._show(pixels(picture_HWC), source)

    def _finished(self) -> Iterator[np.ndarray]:
        scale = self.job.enlarged(self.size)
        for name in self.reel.parts:
            for picture_HWC in frames_of(self.job.folder / name):
                yield np.ascontiguousarray(picture_HWC[scale // 2 :: scale, scale // 2 :: scale])

    def begin(self) -> None:
        """As a shelf does; the frames of a clip are counted."""
        super().begin()
        if self.job.start is not None and self.job.start.moving:
            self._clip = sum(1 for _ in frames_of(Path(self.job.start.path)))

    def add(self, block: Block, session: Session, recorder: Recorder, log: Log) -> None:
        """As a shelf does, then the row of the block, and at times a state."""
        super().add(block, session, recorder, log)
        self._note("block", recorder.rows[-1])
        for kind, entry in log.entries[self._logged :]:
            self._note(kind, entry)
        self._logged = len(log.entries)
        if len(recorder.rows) % self.job.save_every == 0:
            self._save(session, recorder)

    def _note(self, kind: str, entry: dict[str, Any]) -> None:
        self._events.write(json.dumps({"kind": kind, "entry": entry}) + "\n")

    def _save(self, session: Session, recorder: Recorder) -> None:
        self.reel.cut()
        self._events.flush()
        if self.latents is not None:
            self.latents.flush()
        notes = {
            "lines": len(recorder.rows) + self._logged,
            "parts": self.reel.parts,
            "latent_frames": 0 if self.latents is None else self.latents.frames,
            "clip": self._clip,
            "seconds": recorder.seconds,
            "first_frame_s": recorder.first_frame_s,
        }
        state.save(session.snapshot(), self._state, notes)

    def stopped(self, session: Session, recorder: Recorder, log: Log) -> None:
        """Save where it stopped: the block that was interrupted has left no trace in the session."""
        if recorder.rows:
            for kind, entry in log.entries[self._logged :]:
                self._note(kind, entry)
            self._logged = len(log.entries)
            self._save(session, recorder)

    def finish(self, whole: bool) -> None:
        """Also join the parts; a run that is whole needs its folder no longer."""
        self.reel.join(self.job.places.video)
        super().finish(whole)
        self._done = whole

    def clear(self) -> None:
        """The folder stays while there is something to go on with."""
        self._events.close()
        if self.latents is not None:
            self.latents.close()
        if self._done or not self._state.is_file():
            shutil.rmtree(self.job.folder)
