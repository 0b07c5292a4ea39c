"""Several processes that train one model: each walks batches of its own, and all step by the mean of the gradients.

Knows: how many workers there are and which one this is, how they find each other, which device each has, how they
agree on weights and on gradients, how those of one machine are begun and ended. Does not know: models, objectives,
batches, schedules.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

HOME = "127.0.0.1"
GLANCE = 0.2
"""Seconds between two looks at workers that have not come yet."""
LONGEST = 2000
"""Letters of what a worker says of its error: nobody reads them before it has ended, and a pipe holds few."""


class Gone(ConnectionError):
    """Another worker ended before its time; `why` is what is known of it."""

    def __init__(self, count: int, why: str) -> None:
        line = " ".join(why.split())
        super().__init__(f"one of {count} workers is gone; the same command goes on from the last checkpoint ({line})")


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

    def device(self, kind: str) -> torch.device:
        """Where this worker trains, by the kind of device that was asked for. On `cpu` all of them do. Of `cuda`, every
        worker of a machine has one of its own: by the number `torchrun` gave it there (LOCAL_RANK), or else by its
        rank; what torch makes on `cuda` from then on is made on that one. Raises ValueError where torch sees no such
        GPU, where it sees fewer than workers that torchrun has not begun, and for several workers of one that is named
        (`cuda:1`)."""
        asked = torch.device(kind)
        if asked.type != "cuda":
            return asked
        present = torch.cuda.device_count()
        if (asked.index or 0) >= present:
            raise ValueError(f"device {kind!r} asked for; torch sees {present} GPUs; use cpu")
        if self.count == 1:
            own = asked.index or 0
        elif asked.index is not None:
            raise ValueError(f"device {kind!r} for {self.count} workers, but each needs a GPU of its own; use cuda")
        elif self.count > present and not dist.is_torchelastic_launched():
            raise ValueError(
                f"{self.count} workers, but torch sees {present} GPUs and each needs its own; give --workers "
                f"{present}, or begin those of several machines by torchrun"
            )
        else:  # where each process is shown its own GPU only, that is number 0 for all: hence the remainder
            own = dist.get_node_local_rank(self.rank) % present
        torch.cuda.set_device(own)
        return torch.device("cuda", own)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Every worker has the leader's values afterwards. Raises ConnectionError when one is gone."""
        if self.count == 1:
            return
        each = list(tensors)
        with self._all(each):
            for tensor in each:
                dist.broadcast(tensor, 0)

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Every worker has the mean of all workers' gradients afterwards, in one exchange. Raises ConnectionError when
        another one is gone."""
        if self.count == 1:
            return
        each = list(gradients)
        whole = torch.cat([gradient.flatten() for gradient in each]).div_(self.count)
        with self._all([whole]):
            dist.all_reduce(whole)
        for gradient, mean in zip(each, whole.split([gradient.numel() for gradient in each]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors [count, ...] of all workers, which have one shape. Raises ConnectionError when one is gone."""
        if self.count == 1:
            return tensor[None]
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._all([tensor]):
            dist.all_gather(found, tensor)
        return torch.stack(found)

    @contextmanager
    def _all(self, tensors: Iterable[Tensor] = ()) -> Iterator[None]:
        """Around what all do together with tensors. Raises Gone."""
        try:
            if any(tensor.device.type != "cpu" for tensor in tensors):
                # By sockets, which know at once of one that is gone; nccl waits ten minutes, and ends this process.
                dist.barrier()
            yield
        except RuntimeError as error:
            raise Gone(self.count, str(error)) from error


@contextmanager
def hired(count: int, work: Callable[..., None], *given: Any) -> Iterator[None]:
    """Within it this process leads, and `count` - 1 new ones on this machine do `work(*given)`, which must be what
    `spawn` can hand over; they end with it, whatever happens. Raises ConnectionError when one ends before it has
    come, or before its time: with its own error in the line, where it had one."""
    if count == 1:
        yield
        return
    with socket.socket() as free:
        free.bind((HOME, 0))
        place = f"tcp://{HOME}:{free.getsockname()[1]}"
    new = get_context("spawn")
    pipes = [new.Pipe(duplex=False) for _ in range(1, count)]
    others = [
        new.Process(target=_work, args=(say, place, rank, count, work, given), daemon=True)
        for rank, (_, say) in enumerate(pipes, 1)
    ]
    for other in others:
        other.start()
    try:
        for (hear, _), other in zip(pipes, others, strict=True):
            while not hear.poll(GLANCE):
                if not other.is_alive():
                    raise ConnectionError(
                        f"one of {count} workers ended with code {other.exitcode} before it began; its own error is "
                        "above, or the machine had no memory for it: give fewer --workers"
                    )
            hear.recv()
        with Workers(0, count)._all():  # one that fails at once is gone before all have met
            join(place, 0, count)
        yield
        meet()
        leave()  # before they have ended: who leaves nccl waits for those beside it
        for other in others:
            other.join()
    except Gone as error:
        said = [hear.recv() for hear, _ in pipes if hear.poll()]
        if not said:
            raise
        raise Gone(count, said[0]) from error
    finally:
        for other in others:
            other.terminate()
            other.join()
        if "nccl" not in _backend():  # who leaves nccl after an error waits for those who are gone
            leave()


def join(place: str = "env://", rank: int = -1, count: int = -1) -> None:
    """Wait for the others at a place; by default as `torchrun` has told this process. Tensors on the CPU go by gloo,
    those of GPUs by nccl."""
    # Its functions have the group as default that is there when they are first imported, as an optimiser's first step
    # does: kept so, its threads outlive `leave`, and one that still works ends the process that is about to end well.
    import_module("torch.distributed.nn.functional")
    # Both are named: left to itself, torch takes only the one of the GPUs where there are some.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=count)


def meet() -> None:
    """Wait until all are here. Who leaves while others still talk may take them down. Raises ConnectionError when one
    is gone."""
    if dist.is_initialized():
        with Workers.here()._all():
            dist.barrier()


def leave() -> None:
    """Be alone again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _backend() -> str:
    return str(dist.get_backend_config()) if dist.is_initialized() else ""


def _work(
    say: Connection, place: str, rank: int, count: int, work: Callable[..., None], given: tuple[Any, ...]
) -> None:
    # Who leads hears Ctrl-C and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    say.send("")  # who leads would wait half an hour for one that never joins
    try:
        with Workers(rank, count)._all():
            join(place, rank, count)
        work(*given)
        meet()
    except Gone:
        _end()  # who leads meets the same and says so, or has ended
    except Exception as error:
        if not isinstance(error, ValueError | OSError | EOFError):  # a fault of ours: the line would not find it
            traceback.print_exc()
        say.send(f"worker {rank} ended with {type(error).__name__}: {error}"[:LONGEST])
        _end()
    leave()


def _end() -> NoReturn:
    """End this process at once. The system closes its sockets, by which the others know; leaving in order would wait
    for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
