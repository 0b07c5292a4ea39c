"""Numbers about a running server, for Prometheus.

Knows: names, labels and buckets. Does not know: who measures, what a good number is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from arvid.types import Block

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
JOB, LIVE = "job", "live"

__all__ = ["CONTENT_TYPE", "JOB", "LIVE", "Metrics"]


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        kind = ("kind",)
        self.blocks = Counter("arvid_blocks", "Blocks made.", ("kind", "source"), registry=self.registry)
        self.frames = Counter("arvid_frames", "Frames made.", kind, registry=self.registry)
        self.judged = Counter("arvid_drafts_judged", "Drafts that got a score.", ("kept",), registry=self.registry)
        self.block = Histogram("arvid_block_seconds", "Making one block.", kind, buckets=SHORT, registry=self.registry)
        self.first = Histogram(
            "arvid_first_frame_seconds", "From being asked (live) or begun (job) to the first frame.", kind,
            buckets=LONG, registry=self.registry,
        )  # fmt: skip
        self.receipt = Histogram(
            "arvid_control_receipt_seconds", "From a control to its receipt.", buckets=SHORT, registry=self.registry
        )
        self.jobs = Counter("arvid_jobs_ended", "Jobs that ended.", ("status",), registry=self.registry)
        self.requests = Counter(
            "arvid_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.answer = Histogram(
            "arvid_request_seconds", "Answering a request.", ("route",), buckets=SHORT, registry=self.registry
        )

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A number that is read when it is asked for."""
        Gauge(name, about, registry=self.registry).set_function(read)

    def made(self, kind: str, block: Block, seconds: float) -> None:
        """A block was made."""
        self.blocks.labels(kind, block.source).inc()
        self.frames.labels(kind).inc(block.frames_BTCHW.shape[1])
        self.block.labels(kind).observe(seconds)
        if block.verdict.score is not None:
            self.judged.labels("yes" if block.source in ("draft", "verified") else "no").inc()

    def text(self) -> bytes:
        """All numbers as Prometheus reads them."""
        return generate_latest(self.registry)


def device_memory() -> float:
    """Bytes of tensors on GPUs."""
    return float(sum(torch.cuda.memory_allocated(device) for device in range(torch.cuda.device_count())))
