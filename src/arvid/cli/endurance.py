"""One very long video: does a block take the same time, and the process the same memory, after thousands of blocks?

Knows: the resident size of this process, slopes over blocks. Does not know: arguments, what the video shows.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from arvid.cli.report import Row
from arvid.evals.memory import Cell, Shape
from arvid.evals.memory_rows import slope_of
from arvid.pipeline import Pipeline, Request
from arvid.rollout.state import bytes_of

SETTLING = 40
"""Blocks that are not counted: caches of kernels, of positions and of texts fill up."""
LEAST = 10
"""Blocks behind them that a slope needs."""
POINTS = 200
"""Most points of a curve in the report."""


class Asking(Protocol):
    """What turns a competitor into a request."""

    pipeline: Pipeline
    shape: Shape

    def request(self, cell: Cell, prompt: str, seed: int, latents: int) -> Request:
        """A request for so many latent frames."""
        ...


def endure(make: Asking, cell: Cell, prompt: str, blocks: int, said: Callable[[int], None]) -> Row | None:
    """A video of `blocks` blocks, of which nothing is kept: milliseconds per block and bytes of the process, their
    slopes per block with 95 % intervals (Theil and Sen), and curves of both. `said` hears of every block. Ctrl-C ends
    it at the last block; None when that is too early for a slope.

    Raises ValueError for fewer blocks than a slope needs.
    """
    if blocks < SETTLING + LEAST:
        raise ValueError(f"{blocks} blocks asked for; a slope needs at least {SETTLING + LEAST}")
    session = make.pipeline.session(make.request(cell, prompt, 0, blocks * make.shape.block), keep=1)
    taken: list[float] = []
    held: list[int] = []
    try:
        for number in range(blocks):
            begin = time.perf_counter()
            next(session)
            taken.append(1000 * (time.perf_counter() - begin))
            held.append(resident_bytes())
            said(number + 1)
    except KeyboardInterrupt:
        taken = taken[: len(held)]
    if len(taken) < SETTLING + LEAST:
        return None
    places = np.arange(SETTLING, len(taken))
    pace, weight = slope_of(places, taken[SETTLING:]), slope_of(places, held[SETTLING:])
    return {
        "policy": cell.policy, "positions": cell.positions, "past": cell.past, "router": cell.router,
        "budget_frames": cell.budget or None, "blocks": len(taken), "asked": blocks, "counted_from": SETTLING,
        "bytes": bytes_of(session.snapshot().parts), "ms_per_block": round(float(np.median(taken[SETTLING:])), 4),
        "ms_slope_per_block": round(pace[0], 8), "ms_slope_ci95": [round(pace[1], 8), round(pace[2], 8)],
        "process_bytes": int(np.median(held[SETTLING:])), "process_bytes_first": held[SETTLING],
        "process_bytes_last": held[-1], "process_slope_bytes_per_block": round(weight[0], 3),
        "process_slope_ci95": [round(weight[1], 3), round(weight[2], 3)],
        "curve_ms": thinned(taken), "curve_process_bytes": thinned(held),
    }  # fmt: skip


def thinned(values: list[float] | list[int]) -> list[float]:
    """Medians of at most POINTS equal parts."""
    parts = np.array_split(np.asarray(values, float), min(POINTS, len(values)))
    return [round(float(np.median(part)), 3) for part in parts]


def resident_bytes() -> int:
    """Resident size of this process; its largest so far where the system does not tell the present one."""
    told = Path("/proc/self/statm")
    if told.is_file():
        return int(told.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
