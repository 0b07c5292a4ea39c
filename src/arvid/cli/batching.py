"""Rows made one after the other, and what is told of each of them.

Knows: how a row becomes a video and a report in a folder, what is a fault of the row and what is one of ours. Does not
know: arguments, who makes which row (serve/cluster/rows.py spreads them over workers).
"""

from __future__ import annotations

import json
import pickle
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arvid.cli.families import open_pipeline, set_up
from arvid.cli.folder import DONE, FAILED, SCHEMA, Folder, Told
from arvid.cli.keeping import Job, begin
from arvid.cli.making import make
from arvid.cli.progress import Display
from arvid.cli.report import Recorder
from arvid.cli.rows import Row
from arvid.pipeline import Pipeline

INPUT, FAULT = "invalid_input", "fault"
"""Why a row failed: it asked for what cannot be made, or something failed that should not have."""
NO_MODELS = "no_models"


@dataclass(frozen=True)
class Models:
    """What makes the videos, by the options of the command line."""

    model: str
    drafter: str
    device: str
    threads: int

    @property
    def made_with(self) -> dict[str, str]:
        """What a video depends on beyond its row."""
        return {"model": self.model, "drafter": self.drafter}

    def open(self) -> Pipeline:
        """The pipeline. Raises ValueError as `open_pipeline` does."""
        set_up(self.threads)
        return open_pipeline(self.model, self.drafter, self.device)


def row_failed(row: Row, error: str, kind: str = INPUT) -> Told:
    """What is told of a row that was not made."""
    return {"schema": SCHEMA, "line": row.line, "id": row.name, "status": FAILED, "kind": kind, "error": error}


class Maker:
    """Makes rows in one process; a worker has one. The pipeline is opened by the first row."""

    def __init__(self, models: Models, folder: Folder) -> None:
        self._models, self._folder = models, folder
        self._pipeline: Pipeline | None = None

    def __call__(self, row: Row) -> Told:
        """Make a row; what went wrong is told, not raised. Raises KeyboardInterrupt, and ValueError when there is no
        pipeline to be had."""
        if self._pipeline is None:
            self._pipeline = self._models.open()
        try:
            return self._made(self._pipeline, row)
        except ValueError as error:
            return row_failed(row, " ".join(str(error).split()))
        except Exception as error:
            print(f"line {row.line}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            return row_failed(row, f"{type(error).__name__}: {' '.join(str(error).split())}", FAULT)

    def _made(self, pipeline: Pipeline, row: Row) -> Told:
        folder, request = self._folder, row.request
        assert request is not None
        folder.begin(row.name)
        job = Job(request, folder.places(row.name), row.scale, self._models.model, self._models.drafter, row.start)
        given = begin(pipeline, row.start)
        pipeline.check(request, 0 if given is None else given.shape[1])
        try:
            recorder = make(pipeline, job, Display(), given)
        except KeyboardInterrupt:
            folder.begin(row.name)
            raise
        if recorder.interrupted:
            folder.begin(row.name)
            raise KeyboardInterrupt
        told = {**_told(row, recorder), "video": f"{row.name}.mp4", "mark": row.mark(self._models.made_with)}
        folder.settle(row.name, told)
        return told


def _told(row: Row, recorder: Recorder) -> Told:
    totals = recorder.totals()
    assert row.request is not None
    return {
        "schema": SCHEMA, "line": row.line, "id": row.name, "status": DONE, "prompt": row.request.prompt,
        "seed": row.request.seed, "frames": totals["frames"], "blocks": totals["blocks"],
        "blocks_by_source": totals["blocks_by_source"], "made_in_s": totals["seconds"],
    }  # fmt: skip


def waiting(rows: Iterable[Row], folder: Folder, made_with: dict[str, str]) -> Iterator[tuple[Row, Told | None]]:
    """Every row with what is told of it already: it is done, or it cannot be made. None: it waits to be made."""
    for row in rows:
        yield row, row_failed(row, row.error) if row.error else folder.done(row.name, row.mark(made_with))


class FarMaker:
    """A maker for workers of a cluster, which take and give batches of one column: rows as `packed` made them, and what
    is told of each as JSON. `root` is a folder that all machines see under this name."""

    def __init__(self, models: Models, root: str) -> None:
        self._make = Maker(models, Folder(Path(root)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What is told of each row; that there are no models, where they cannot be opened."""
        try:
            told = [self._make(pickle.loads(row)) for row in batch["row"]]
        except ValueError as error:
            told = [{NO_MODELS: str(error)}] * len(batch["row"])
        return {"told": [json.dumps(entry) for entry in told]}


def packed(row: Row) -> bytes:
    """A row as it travels to a worker."""
    return pickle.dumps(row)
