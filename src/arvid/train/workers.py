"""Several processes that train one model: each walks batches of its own, gradients are averaged, all take the same step.

Knows: how many workers there are and which one this is (as `torchrun` says by RANK and WORLD_SIZE), how they agree on
weights and on gradients, how those of one machine are begun and ended. Does not know: models, objectives, batches,
schedules.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

HOME = "127.0.0.1"


@dataclass(frozen=True)
class Workers:
    """This process, number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Workers:
        """What the environment says; one worker where it says nothing. Joins the others, waiting for them if need be."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group()  # gloo for what lies on the CPU, nccl on accelerators
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this one writes and reports for all."""
        return self.rank == 0

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Every worker has the leader's values afterwards."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Every worker has the mean of all workers' gradients afterwards, in one exchange. Raises ConnectionError when
        another one is gone."""
        if self.count == 1:
            return
        each = list(gradients)
        whole = torch.cat([gradient.flatten() for gradient in each]).div_(self.count)
        try:
            dist.all_reduce(whole)
        except RuntimeError as error:
            raise ConnectionError(
                f"one of {self.count} workers is gone; the same command goes on from the last checkpoint"
            ) from error
        for gradient, mean in zip(each, whole.split([gradient.numel() for gradient in each]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def hired(count: int, work: Callable[..., None], *given: Any) -> Iterator[None]:
    """Within it this process leads and `count` - 1 new ones do `work(*given)`, which `spawn` must be able to hand over;
    they end with it, whatever happens. Several machines are joined by `torchrun`, which says the same to each."""
    if count == 1:
        yield
        return
    with socket.socket() as free:
        free.bind((HOME, 0))
        place = {"WORLD_SIZE": str(count), "MASTER_ADDR": HOME, "MASTER_PORT": str(free.getsockname()[1])}
    new = get_context("spawn")
    others = [new.Process(target=_work, args=(place, rank, work, given), daemon=True) for rank in range(1, count)]
    os.environ.update(place, RANK="0")
    for other in others:
        other.start()
    try:
        yield
        for other in others:
            other.join()
    finally:
        for other in others:
            other.terminate()
            other.join()
        for name in (*place, "RANK"):
            del os.environ[name]
        if dist.is_initialized():
            dist.destroy_process_group()


def _work(place: dict[str, str], rank: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    # Who leads hears Ctrl-C and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(place, RANK=str(rank))
    work(*given)
