"""The folder of a batch: one video and one report per row, and a manifest of all of them.

Knows: names of files, when a row is done, how the manifest is written. Does not know: how a video is made.

    NAME.mp4            the video of a row
    reports/NAME.json   its report; its `row` says that the row is done, and of what. Written last
    manifest.jsonl      what became of every row so far, one JSON object per line, in the order of the lines
    lock                held by the run that writes here

A row is done when its report says so and its video is there. So a kill at any moment loses the rows in work and no
other, whoever made them; the manifest is gathered from the reports and never read. Every file appears whole.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from arvid.cli.places import Places, folder_for, whole
from arvid.cli.report import write_report

Told = dict[str, Any]
SCHEMA = 1
DONE, FAILED = "done", "failed"
MANIFEST, REPORTS, LOCK = "manifest.jsonl", "reports", "lock"
EVERY_SECONDS = 1.0
"""The manifest is written anew no more often: it grows with the batch."""


class Folder:
    """See the module. Use it as a context while rows are made. Raises ValueError when nothing can be written there."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        folder_for(self.root, "-o")
        for path in (self.root, self.root / REPORTS):
            path.mkdir(exist_ok=True)
        self._told: dict[int, Told] = {}
        self._written = float("-inf")
        self._lock: IO[str] | None = None

    def __enter__(self) -> Folder:
        """Keep others out. Raises ValueError when another run is in."""
        import fcntl

        self._lock = (self.root / LOCK).open("a+", encoding="ascii")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ValueError(f"another batch writes into {self.root}; wait for it, or give another -o") from error
        for left in [*self.root.glob(".*.part"), *(self.root / REPORTS).glob(".*.part")]:
            left.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._write()
        finally:
            if self._lock is not None:
                self._lock.close()

    def places(self, name: str) -> Places:
        """The files of a row."""
        return Places(self.root / f"{name}.mp4", self.root / REPORTS / f"{name}.json")

    def done(self, name: str, mark: str) -> Told | None:
        """What is told of a row that is done; None when it is not, or something else was asked for then."""
        places = self.places(name)
        assert places.report is not None
        try:
            told = json.loads(places.report.read_text(encoding="utf-8"))["row"]
            return dict(told) if told["mark"] == mark and places.video.is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, name: str) -> None:
        """A row is made anew: what is left of another one by this name goes."""
        places = self.places(name)
        for path in (places.report, places.video):
            assert path is not None
            path.unlink(missing_ok=True)

    def settle(self, name: str, told: Told) -> None:
        """A row is done: its report says so."""
        places = self.places(name)
        assert places.report is not None
        report = json.loads(places.report.read_text(encoding="utf-8"))
        write_report({**report, "row": told}, places.report)

    def note(self, told: Told) -> None:
        """Put a row into the manifest."""
        self._told[told["line"]] = told
        if time.monotonic() - self._written >= EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        lines = [json.dumps(told, ensure_ascii=False) for _, told in sorted(self._told.items())]
        with whole(self.root / MANIFEST) as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._written = time.monotonic()
