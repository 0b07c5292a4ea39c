"""Where time goes inside a piece of work: a Chrome trace, and the operators that took most of it.

Knows: how torch's profiler is asked, which of its numbers add up. Does not know: what the work is, which part of it is
worth changing.

The trace opens in chrome://tracing and in ui.perfetto.dev. Profiling slows work down, many small operators most: its
shares tell where to look, its seconds are not a benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

TOP = 12
"""Operators that are named."""
PRODUCTS = (
    "addmm", "::mm", "bmm", "linear", "matmul", "conv", "scaled_dot_product", "gemm", "nvjet", "cutlass", "xmma",
    "flash", "fmha", "cudnn",
)  # fmt: skip
"""Words in the names of operators and kernels that do the arithmetic a model is made of."""
DEVICES = {"cpu": ("CPU", "self_cpu_time_total"), "cuda": ("CUDA", "self_device_time_total")}
"""Whose rows of the profiler count, and which of their numbers."""


@dataclass(frozen=True)
class Operator:
    """One kind of operator or kernel: its own seconds (those of what it calls not counted), its calls, and its share of
    all own seconds."""

    name: str
    seconds: float
    calls: int
    share: float


@dataclass(frozen=True)
class Profile:
    """Seconds of all operators, the share of them that is arithmetic (products, convolutions, attention), and the
    operators that took most. `on` says whose seconds they are: cuda (kernels) or cpu."""

    on: str
    seconds: float
    arithmetic: float
    operators: tuple[Operator, ...]

    def plain(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


def profiled(work: Callable[[], object], trace: Path | None = None, top: int = TOP) -> Profile:
    """Do `work` once under the profiler; the trace is written to `trace`, whole or not at all. Where there is a GPU its
    kernels are counted, else the operators of the CPU."""
    gpu = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=kinds) as seen:
        work()
        if gpu:
            torch.cuda.synchronize()
    if trace is not None:
        part = trace.with_name(f".{trace.name}.{os.getpid()}.part.json")
        try:
            seen.export_chrome_trace(str(part))
            part.replace(trace)
        finally:
            part.unlink(missing_ok=True)
    return summary(seen.key_averages(), "cuda" if gpu else "cpu", top)


def summary(averages: Iterable[Any], on: str, top: int = TOP) -> Profile:
    """What the profiler's averages say. Raises ValueError when nothing was seen."""
    kind, own = DEVICES[on]
    # An operator of the CPU is listed with the time of its kernels, and the kernels are listed too: one of them counts.
    seen = [row for row in averages if row.device_type.name == kind and not row.is_user_annotation]
    rows = [(str(row.key), float(getattr(row, own)) / 1e6, int(row.count)) for row in seen]
    rows = sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
    total = sum(seconds for _, seconds, _ in rows)
    if not rows:
        raise ValueError(f"the profiler saw no operator on {on}; give it work that runs there")
    products = sum(seconds for name, seconds, _ in rows if any(word in name.lower() for word in PRODUCTS))
    named = tuple(Operator(name, round(seconds, 6), calls, round(seconds / total, 4)) for name, seconds, calls in rows)
    return Profile(on, round(total, 6), round(products / total, 4), named[:top])
