"""The JSON report of a run (docs/report.md) and the recorder that gathers it.

Knows: what is worth writing down about blocks, and the machine. Does not know: how it is shown, where it is kept.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer

from arvid import spec
from arvid.cli.options import version
from arvid.cli.places import write
from arvid.evals import timing
from arvid.models.family import Card
from arvid.pipeline import Request, describe, described
from arvid.rollout.routers import ROUTERS
from arvid.types import Block

SCHEMA = 1
STOPPED = 130
"""Exit code of a run that Ctrl-C ended."""
Row = dict[str, Any]


def outcome(row: Row) -> str:
    """What became of a block: `accepted` (a draft that was judged), `drafted` (a draft nobody judged), `redone` (the
    target made it again), `verified` (a draft the target looked at and let pass), `refined`, `repaired`, or `target`
    (no draft was made)."""
    if row["source"] == "draft":
        return "drafted" if row["score"] is None else "accepted"
    if row["source"] == "target":
        return "redone" if row["rejected"] else "target"
    return str(row["source"])


class Recorder:
    """Remembers a rollout as plain rows, without tensors. A `Listener`, and a wrapper of the stream of blocks.

    `seconds` is the time spent inside the stream (not in what its consumer does with a block), `first_frame_s` the
    part of it before the first block was out. A row has its own part of both (`took_s`, `kept_s`) and the second at
    which the block was handed over (`arrived_s`). `device` is where the frames were.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.first_frame_s: float | None = None
        self.interrupted = False
        self.device = "cpu"
        self._rejected: list[dict[str, Any]] = []

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Keep what was rejected: a block knows its score, not how often and as what it was sent back."""
        if event == "begun":
            self._rejected = []
        elif event == "rejected":
            self._rejected.append(dict(payload))

    def watch(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass blocks on, and write down each of them."""
        already = self.rows[-1].get("arrived_s", self.seconds) if self.rows else 0.0
        asked = time.perf_counter()
        while True:
            begin = time.perf_counter()
            try:
                block = next(blocks, None)
            finally:
                took = time.perf_counter() - begin
                self.seconds += took
            if block is None:
                return
            if self.first_frame_s is None:
                self.first_frame_s = self.seconds
            self.device = str(block.frames_BTCHW.device)
            row = {**describe(block), "rejected": self._rejected, "took_s": round(took, 5)}
            out = time.perf_counter()
            self.rows.append({**row, "outcome": outcome(row), "arrived_s": round(already + out - asked, 5)})
            yield block
            self.rows[-1]["kept_s"] = round(time.perf_counter() - out, 5)

    def totals(self) -> Row:
        """Sums and rates over all blocks (docs/report.md)."""
        rows = self.rows
        frames = sum(row["frames"] for row in rows)
        kept = sum(row["source"] in ("draft", "verified") for row in rows)
        scored_kept = sum(row["outcome"] in ("accepted", "verified") for row in rows)
        scored = scored_kept + sum(any(draft["score"] is not None for draft in row["rejected"]) for row in rows)
        passes: Counter[str] = Counter()
        stages: Counter[str] = Counter()
        for row in rows:
            passes.update(row["passes"])
            stages.update(row["seconds"])
        return {
            "seconds": round(self.seconds, 5),
            "frames": frames,
            "fps": round(frames / self.seconds, 3) if self.seconds else None,
            "first_frame_s": None if self.first_frame_s is None else round(self.first_frame_s, 5),
            "blocks": len(rows),
            "blocks_by_source": dict(Counter(row["source"] for row in rows)),
            "blocks_by_outcome": dict(Counter(row["outcome"] for row in rows)),
            "accept_rate": round(kept / len(rows), 4) if rows else None,
            "accept_rate_scored": round(scored_kept / scored, 4) if scored else None,
            "passes": dict(passes),
            "stage_seconds": {name: round(value, 5) for name, value in stages.items()},
        }


def run_of(request: Request, card: Card, recorder: Recorder, drafter: str = "") -> Row:
    """What was asked for and what came of it: config, blocks, totals, speed, interrupted. `drafter` is the directory
    that was named for it, if one was."""
    return {
        "config": {
            **described(request, card),
            "drafter": drafter or None,
            "world": card.world or None,
            "fps": card.fps,
        },
        "blocks": recorder.rows,
        "totals": recorder.totals(),
        "speed": speed_of(request, card, recorder.rows, recorder.device),
        "interrupted": recorder.interrupted,
    }


def conditions(request: Request, card: Card, machine: Row | None = None) -> timing.Conditions:
    """Under which the blocks of a request are timed; the machine is that of the report's head where it is left out."""
    router, (width, height) = request.router or card.router, request.size or card.size
    own = card.steps if isinstance(card.steps, int) else len(card.steps.timesteps)
    steps = spec.build(router, ROUTERS, "router").steps or own
    past = request.past or card.past
    return timing.Conditions(card.name, machine, steps, past, router, width, height, card.fps, request.seed)


def speed_of(request: Request, card: Card, rows: Sequence[Row], device: str) -> Row | None:
    """The timing record of the rows of a recorder (docs/evaluation.md), None of nothing. No warm-up was made, so none
    stands beside it: the first block pays for what the first one costs more."""
    if not rows:
        return None
    return timing.record(timing.blocks_of(rows), conditions(request, card, machine(device)))


def head(kind: str, device: str) -> Row:
    """What every report starts with: schema, kind, version, command, date, machine."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "arvid": version(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(device),
    }


def machine(device: str) -> Row:
    """The machine in words: platform, processor, cores, threads, versions, device."""
    where = torch.device(device)
    return {
        "platform": platform.platform(terse=True),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def as_json(report: Row) -> str:
    """A report as indented JSON; numbers that are not finite become null."""
    return json.dumps(_finite(report), indent=2, ensure_ascii=False) + "\n"


def write_report(report: Row, path: Path) -> None:
    """A report as indented JSON, whole or not at all."""
    write(path, as_json(report))


def leave(report: Row, files: Iterable[tuple[Path | None, Callable[[Row], str]]], show: Callable[[Row], None]) -> None:
    """The end of a benchmark: its files, each where a place was named for it, and what is shown on stdout. Raises
    typer.Exit when the run was interrupted."""
    for path, render in files:
        if path:
            write(path, render(report))
    show(report)
    if report["config"]["interrupted"]:
        raise typer.Exit(STOPPED)


def nothing(before: str) -> NoReturn:
    """The end of a benchmark that was interrupted before there was anything to report. Raises typer.Exit."""
    typer.echo(f"interrupted before {before}; nothing to report", err=True)
    raise typer.Exit(STOPPED)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
