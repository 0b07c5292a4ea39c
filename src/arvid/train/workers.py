"""Several processes that train one model: each walks batches of its own, and all step by the mean of the gradients.

Knows: how many workers there are and which one this is, how they find each other, how they agree on weights and on
gradients, how those of one machine are begun and ended. Does not know: models, objectives, batches, schedules.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

HOME = "127.0.0.1"
GLANCE = 0.2
"""Seconds between two looks at workers that have not come yet."""


@dataclass(frozen=True)
class Workers:
    """This process, number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Workers:
        """This process among those it was joined to; one worker where it was joined to none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

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
        with self._all():
            dist.all_reduce(whole)
        for gradient, mean in zip(each, whole.split([gradient.numel() for gradient in each]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors [count, ...] of all workers, which have one shape. Raises ConnectionError when one is gone."""
        if self.count == 1:
            return tensor[None]
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._all():
            dist.all_gather(found, tensor)
        return torch.stack(found)

    @contextmanager
    def _all(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(
                f"one of {self.count} workers is gone; the same command goes on from the last checkpoint"
            ) from error


@contextmanager
def hired(count: int, work: Callable[..., None], *given: Any) -> Iterator[None]:
    """Within it this process leads, and `count` - 1 new ones on this machine do `work(*given)`, which must be what
    `spawn` can hand over; they end with it, whatever happens. Raises ConnectionError when one ends before it has
    come."""
    if count == 1:
        yield
        return
    with socket.socket() as free:
        free.bind((HOME, 0))
        place = f"tcp://{HOME}:{free.getsockname()[1]}"
    new = get_context("spawn")
    here = [new.Event() for _ in range(1, count)]
    others = [
        new.Process(target=_work, args=(come, place, rank, count, work, given), daemon=True)
        for rank, come in enumerate(here, 1)
    ]
    for other in others:
        other.start()
    try:
        for come, other in zip(here, others, strict=True):
            while not come.wait(GLANCE):
                if not other.is_alive():
                    raise ConnectionError(
                        f"one of {count} workers ended with code {other.exitcode} before it began; its own error is "
                        "above, or the machine had no memory for it: give fewer --workers"
                    )
        join(place, 0, count)
        yield
        meet()
        for other in others:
            other.join()
    finally:
        for other in others:
            other.terminate()
            other.join()
        leave()


def join(place: str = "env://", rank: int = -1, count: int = -1) -> None:
    """Wait for the others at a place; by default as `torchrun` has told this process. Tensors on the CPU go by gloo,
    those of accelerators by nccl."""
    dist.init_process_group(init_method=place, rank=rank, world_size=count)


def meet() -> None:
    """Wait until all are here. Who leaves while others still talk may take them down."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Be alone again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _work(come: Event, place: str, rank: int, count: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    # Who leads hears Ctrl-C and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    come.set()  # who leads would wait half an hour for one that never joins
    join(place, rank, count)
    with suppress(Exception):  # who leads meets the same and says so, or finds this one gone
        work(*given)
        meet()
    leave()
