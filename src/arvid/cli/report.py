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
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from arvid.cli.options import version
from arvid.cli.places import whole
from arvid.models.family import Card
from arvid.pipeline import Request, describe, described
from arvid.types import Block

SCHEMA = 1
WORLDS = {"embedded": "shapes"}
"""The world a family was trained on, by the first word of its name."""
Row = dict[str, Any]


def world_of(card: Card) -> str | None:
    """The procedural world of a family, None for a family of the wide world."""
    return WORLDS.get(card.name.split("-")[0])


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
    part of it before the first block was out.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.first_frame_s: float | None = None
        self.interrupted = False
        self._rejected: list[dict[str, Any]] = []

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Keep what was rejected: a block knows its score, not how often and as what it was sent back."""
        if event == "begun":
            self._rejected = []
        elif event == "rejected":
            self._rejected.append(dict(payload))

    def watch(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass blocks on, and write down each of them."""
        while True:
            begin = time.perf_counter()
            try:
                block = next(blocks, None)
            finally:
                self.seconds += time.perf_counter() - begin
            if block is None:
                return
            if self.first_frame_s is None:
                self.first_frame_s = self.seconds
            row = {**describe(block), "rejected": self._rejected}
            self.rows.append({**row, "outcome": outcome(row)})
            yield block

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
    """What was asked for and what came of it: config, blocks, totals, interrupted. `drafter` is the directory that was
    named for it, if one was."""
    return {
        "config": {**described(request, card), "drafter": drafter or None, "world": world_of(card), "fps": card.fps},
        "blocks": recorder.rows,
        "totals": recorder.totals(),
        "interrupted": recorder.interrupted,
    }


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


def write_report(report: Row, path: Path) -> None:
    """A report as indented JSON, whole or not at all; numbers that are not finite become null."""
    with whole(path) as part:
        part.write_text(json.dumps(_finite(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
