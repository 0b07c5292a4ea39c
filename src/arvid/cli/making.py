"""One video made and kept: blocks from a session onto a shelf, watched by a display, and a report.

Knows: what is done with every block as it comes, and what is left when somebody interrupts. Does not know: arguments,
where a block goes (cli/keeping.py, cli/saving.py).
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor

from arvid.cli.delivering import Delivery, lateness
from arvid.cli.keeping import Job as Job
from arvid.cli.keeping import Log, Shelf
from arvid.cli.options import Parts
from arvid.cli.progress import Display
from arvid.cli.report import Recorder, head, run_of, write_report
from arvid.cli.saving import SavedShelf
from arvid.pipeline import Pipeline
from arvid.rollout.guard import STEADY
from arvid.rollout.session import Session
from arvid.types import Block

PATHS = ("model", "drafter", "lora", "text", "vae", "reward")
"""What an order names by path."""


@dataclass(frozen=True)
class Order(Job):
    """A job that knows what its family was made of: the options that named it, as plain data."""

    made_of: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        there = {name: _absolute(self.made_of[name]) for name in PATHS if self.made_of.get(name)}
        object.__setattr__(self, "made_of", {**self.made_of, **there})


def made_of(job: Job) -> tuple[Parts, str]:
    """The parts of the family of a saved run, and how its weights were rounded. Raises ValueError when its file names
    something else."""
    path = job.folder / "job.json"
    told = json.loads(path.read_text(encoding="utf-8")).get("made_of")
    if not told:
        return Parts(job.model, job.drafter), ""
    try:
        return Parts(**{name: value for name, value in told.items() if name != "quantise"}), told["quantise"]
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not a run that can be gone on with ({error}); begin again") from error


def _absolute(named: Any) -> Any:
    """A path that means the same from anywhere; a name or an id on the hub stays as it is."""
    if isinstance(named, list):
        return [_absolute(one) for one in named]
    return str(Path(named).absolute()) if named != "embedded" and Path(named).exists() else named


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


def make(pipeline: Pipeline, job: Job, display: Display, given: Tensor | None = None) -> Recorder:
    """Make one video, or go on with one that was saved, and write its files; it begins with the latents `given`. An
    interrupt ends it at the last finished block; the files of the finished blocks are written all the same, and
    `interrupted` of the recorder is true."""
    recorder, log = Recorder(), Log()
    delivery = Delivery((recorder, log, display), lateness(pipeline.family, bool(job.save_every)))
    shelf = SavedShelf(pipeline, job) if job.save_every else Shelf(pipeline, job)
    with Interrupts() as interrupts:
        try:
            session = shelf.open(pipeline, given, delivery.listeners, recorder, log)
            display.begin(job.request.prompt, session.blocks)
            with shelf, display:
                blocks = recorder.watch(interrupts.during(delivery.blocks(session)))
                _fill(shelf, session, blocks, recorder, log, display)
            if recorder.rows:
                shelf.finish(not recorder.interrupted)
                _report(pipeline, job, recorder, log)
        finally:
            shelf.clear()
        display.end(recorder.totals(), _notes(job, recorder, log, session.blocks))
    if interrupts.noted and not recorder.interrupted:
        raise KeyboardInterrupt
    return recorder


def _fill(
    shelf: Shelf, session: Session, blocks: Iterator[Block], recorder: Recorder, log: Log, display: Display
) -> None:
    if not recorder.rows:
        shelf.begin()
    try:
        for block in blocks:
            shelf.add(block, session, recorder, log)
            display.block(recorder.rows[-1])
    except KeyboardInterrupt:
        recorder.interrupted = True
        shelf.stopped(session, recorder, log)


def _report(pipeline: Pipeline, job: Job, recorder: Recorder, log: Log) -> None:
    if not job.places.report:
        return
    told = {
        **({"changes": changes} if (changes := log.named("changed")) else {}),
        **({"guard": log.named("guard")} if log.named("guard") else {}),
        **({"start": job.start.path} if job.start else {}),
    }
    report = {
        **head("generate", str(pipeline.family.device)),
        **run_of(job.request, pipeline.family.card, recorder, job.drafter),
        **told,
        "outputs": job.places.named(),
    }
    job.places.report.parent.mkdir(exist_ok=True)
    write_report(report, job.places.report)


def _notes(job: Job, recorder: Recorder, log: Log, blocks: int) -> list[str]:
    if not recorder.rows:
        return ["interrupted before the first block; nothing was written"]
    lines = []
    drifted = [look for look in log.named("guard") if look["decision"] != STEADY]
    if log.named("guard"):
        found = ", ".join(f"{look['block'] + 1} ({look['worst']}: {look['decision']})" for look in drifted[:8])
        more = f" and {len(drifted) - 8} more" if len(drifted) > 8 else ""
        lines.append(f"guard: drift in {len(drifted)} looks: block {found}{more}" if drifted else "guard: no drift")
    if recorder.interrupted:
        lines.append(f"interrupted; the files hold the first {len(recorder.rows)} of {blocks} blocks")
        if job.save_every:
            lines.append(f"go on with: arvid generate --resume {job.folder}")
    return [*lines, "wrote " + ", ".join(job.places.named().values())]
