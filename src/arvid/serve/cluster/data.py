"""Rows of a batch over the workers of a cluster: Ray Data.

Knows: how rows travel and what comes back. Does not know: what a row is, how it is made, where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray.data import ActorPoolStrategy, DataContext, from_items

from arvid.serve.cluster.options import Workers

PIECES = 2000
"""Rows travel in at most this many pieces; what is told of a piece comes back at its end."""


def spread(rows: Sequence[bytes], maker: Callable[..., Any], given: tuple[Any, ...], workers: Workers) -> Iterator[str]:
    """What `maker(*given)` tells of each row, in the order in which they end. Every worker has one maker, which takes a
    batch {"row": [...]} and gives {"told": [...]}; a worker that dies is replaced, and its rows are made again."""
    if not rows:
        return
    DataContext.get_current().enable_progress_bars = False
    pieces = from_items([{"row": row} for row in rows], override_num_blocks=min(len(rows), PIECES))
    told = pieces.map_batches(
        maker, batch_size=1, fn_constructor_args=given, num_cpus=workers.cpus, num_gpus=workers.gpus or None,
        compute=ActorPoolStrategy(size=min(workers.workers, len(rows))),
    )  # fmt: skip
    for row in told.iter_rows():
        yield str(row["told"])
