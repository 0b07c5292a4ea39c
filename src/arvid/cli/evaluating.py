"""One run of `arvid eval`, from paths to the report.

Knows: in which order videos are described, measured and counted, what is kept of an earlier run, what is saved on the
way. Does not know: arguments (`cli.eval`), metrics (`arvid.evals`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from arvid import spec
from arvid.cli.places import write
from arvid.cli.report import head, write_report
from arvid.evals import beside, compare, gallery, run, vbench
from arvid.evals.clips import Clip, videos_in
from arvid.evals.metric import Metric
from arvid.evals.suites import Suite

SAVED_EVERY = 25
"""Clips after which an unfinished report is written, so that little is lost."""
KEYS = ("name", "protocol", "totals")
KEYS_OF_CLIPS = ("name", "path", "prompt", "seed", "values", "curves")
"""What a report and its clips have to hold to be read again."""
errors = Console(stderr=True)
Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What is measured: the metrics, the suite (None: just videos), other suites' runs, what else is known of the
    videos (a file of prompts, lengths of blocks), and how: at a time, taken up, on which device, under which name."""

    metrics: list[Metric]
    suite: Suite | None
    vbench: tuple[str, ...]
    prompts: Path | None
    blocks: tuple[int, ...]
    jobs: int
    resume: bool
    device: str
    name: str
    report: Path | None


class Evaluation:
    """One run over videos, from paths to the report."""

    def __init__(self, videos: Sequence[Path], wanted: Wanted, quiet: bool) -> None:
        self.wanted, self.quiet = wanted, quiet
        self.paths = videos_in(videos)
        self.failures: list[Row] = []
        self.rows: dict[str, Row] = {}
        self._prompts = self._read_prompts()
        self._suites = [spec.build(text, vbench.SUITES, "vbench") for text in wanted.vbench]

    def run(self) -> Row:
        """Measure everything; an interrupt leaves what was finished."""
        # Videos are read side by side; a second level of threads inside each would only get in the way.
        cv2.setNumThreads(1)
        dimensions: list[Any] = []
        interrupted = False
        earlier = self._earlier()
        with progress_bar(self.quiet) as progress:
            task = progress.add_task("measuring", total=len(self.paths))
            try:
                clips = self._clips(earlier, progress, task)
                for outcome in run.evaluate(clips, self.wanted.metrics, self.wanted.jobs):
                    if outcome.error:
                        self._fail(outcome.clip.path, outcome.error)
                    else:
                        self.rows[str(outcome.clip.path)] = run.row_of(outcome)
                    progress.update(task, advance=1, description=f"measuring {outcome.clip.name[:40]}")
                    if self.wanted.report and len(self.rows) % SAVED_EVERY == 0:
                        leave(self._report([], True), self.wanted.report, None)
                if self._suites and self.wanted.report:
                    leave(self._report([], True), self.wanted.report, None)
                dimensions = self._others()
            except KeyboardInterrupt:
                interrupted = True
        self._note_missing()
        return self._report(dimensions, interrupted)

    def _clips(self, earlier: dict[str, Row], progress: Progress, task: Any) -> Iterator[Clip]:
        """The clips that are still to be read; files that are none become failures."""
        for path in self.paths:
            try:
                clip = self._told(beside.described(path))
            except ValueError as error:
                self._fail(path, str(error))
                progress.update(task, advance=1)
                continue
            row = earlier.get(str(path))
            if row is not None and run.is_current(row, clip) and run.take_up(row, self.wanted.metrics):
                self.rows[str(path)] = row
                progress.update(task, advance=1)
                continue
            yield clip

    def _told(self, clip: Clip) -> Clip:
        """A clip with what the options say about it."""
        if self.wanted.suite is not None:
            clip = beside.of_suite(clip, self.wanted.suite)
        if clip.path in self._prompts:
            clip = replace(clip, prompt=self._prompts[clip.path])
        return beside.with_blocks(clip, self.wanted.blocks) if self.wanted.blocks else clip

    def _read_prompts(self) -> dict[Path, str]:
        if self.wanted.prompts is None:
            return {}
        return beside.with_prompts(self.paths, beside.read_prompts(self.wanted.prompts))

    def _earlier(self) -> dict[str, Row]:
        """The rows of the report that is taken up. Raises ValueError when it measured something else."""
        path = self.wanted.report
        if not self.wanted.resume or path is None or not path.is_file():
            return {}
        held = read_report(path)
        if held["protocol"]["metrics"] != json.loads(json.dumps(run.protocol(self.wanted.metrics)["metrics"])):
            raise ValueError(f"{path} was made with other metrics or options; leave --resume out to measure again")
        return {row["path"]: row for row in held["clips"]}

    def _others(self) -> list[Any]:
        """What the suites of other people say."""
        found = []
        read = [Path(path) for path in self.rows]
        for suite in self._suites:
            if self.wanted.report is not None:
                found += suite.judge(read, self.wanted.report.with_name(f"{self.wanted.report.stem}-vbench"))
            else:
                with tempfile.TemporaryDirectory() as folder:
                    found += suite.judge(read, Path(folder))
        run.with_suite([*self.rows.values()], found)
        return found

    def _fail(self, path: Path, error: str) -> None:
        self.failures.append({"path": str(path), "error": error.removeprefix(f"{path} ")})

    def _note_missing(self) -> None:
        """Cases of the suite that have no video are failures, too."""
        if self.wanted.suite is not None:
            there = {path.stem for path in self.paths}
            for case in self.wanted.suite.cases:
                if case.name not in there:
                    self._fail(Path(f"{case.name}.mp4"), "the suite asks for it, and it is not there")

    def _report(self, dimensions: list[Any], interrupted: bool) -> Row:
        order = [str(path) for path in self.paths]
        rows = [self.rows[path] for path in order if path in self.rows]
        suite, metrics = self.wanted.suite, self.wanted.metrics
        return {
            **head(run.KIND, self.wanted.device),
            "name": self.wanted.name,
            "protocol": run.protocol(metrics, suite.protocol if suite else "", dimensions),
            "totals": run.totals(rows, metrics, dimensions),
            "speed": run.speed_of(rows),
            "notes": run.notes(rows),
            "failures": self.failures,
            "interrupted": interrupted,
            "clips": rows,
        }


def progress_bar(quiet: bool) -> Progress:
    """A bar on stderr; none when quiet."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=errors, disable=quiet,
    )  # fmt: skip


# ---------------------------------------------------------------- reports


def read_report(path: Path) -> Row:
    """A report of `arvid eval`. Raises ValueError when the file is none."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["kind"] != "eval" or not isinstance(held["clips"], list):
            raise KeyError("clips")
        lacking = [name for name in KEYS if name not in held]
        lacking += [name for row in held["clips"] for name in KEYS_OF_CLIPS if name not in row]
        if lacking:
            raise KeyError(lacking[0])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report of arvid eval ({error}); give what its --json wrote") from error
    return dict(held)


def leave(report: Row, json_file: Path | None, html_file: Path | None) -> None:
    """Write the report and the page, each whole."""

    if json_file:
        write_report(report, json_file)
    if html_file and report["clips"]:
        names = [report["name"]]
        text = gallery.render([report], names, compare.compare([report], names), lambda row: Path(row["path"]))
        write(html_file, text)
