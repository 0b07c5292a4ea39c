"""Several workers, one run: what two learn from two halves of a batch is what one learns from the whole."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from arvid.train.trainer import TrainConfig, train
from arvid.train.workers import Workers, hired, join, leave, meet

CONFIG = TrainConfig(steps=7, learning_rate=0.05, warmup=2, save_every=3, log_every=7, average=0.9, muon="inner")
COUNT = 2


class Net(nn.Module):
    """A matrix and a vector; `seed` says how they begin."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.outer = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x_BD)))


def half(number: int) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(number))


def both(step: int) -> Tensor:
    return torch.cat([half(COUNT * step + number) for number in range(COUNT)])


def trained(directory: Path, source: object = both, seed: int = 0, noise: float = 0.0, death: int = -1) -> Net:
    """A net after a run in `directory`; its loss depends on the generator by `noise`."""
    net = Net(seed)

    def loss(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = noise * torch.randn(len(batch), 2, generator=generator)
        return {"loss": (net(batch) - batch[:, :2] - drawn).square().mean()}

    def deadly(number: int) -> Tensor:
        if number // COUNT == death:
            raise KeyboardInterrupt
        return source(number)  # type: ignore[operator]

    try:
        average = train(net, loss, deadly, CONFIG, directory)
    except (KeyboardInterrupt, ConnectionError):  # or the other one was quicker to die
        return net
    torch.save([net.state_dict(), average], directory / f"end-{Workers.here().rank}.pt")
    return net


def alone() -> None:
    """What every worker of these tests does; its directory is the first word, the rest says how."""
    directory, noise, death = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    # They begin with other weights, and agree on the leader's.
    join()
    try:
        trained(directory, half, seed=Workers.here().rank, noise=noise, death=death)
    except ValueError as error:
        (directory / "refused").write_text(str(error), encoding="utf-8")
    if death >= 0:
        os._exit(0)  # killed: nothing is put away
    meet()
    leave()
    # One that outlives the group may drop a tensor while Python ends, which ends the process as a crash.
    threads, limit = Path("/proc/self/task"), time.monotonic() + 30
    while threads.exists() and len(list(threads.iterdir())) > 1:
        assert time.monotonic() < limit, "threads of the group are left"
        time.sleep(0.01)


def run(
    directory: Path, noise: float = 0.0, death: int = -1, count: int = COUNT, elsewhere: Path | None = None
) -> list[list[dict[str, Tensor]]]:
    """The ends of a run by `count` processes; all but the first may have another directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    places = [directory, *[elsewhere or directory] * (count - 1)]
    words = [[sys.executable, __file__, str(place), str(noise), str(death)] for place in places]
    started = [subprocess.Popen(words[rank], env={**os.environ, **own, "RANK": str(rank)}) for rank in range(count)]
    assert [process.wait(120) for process in started] == [0] * count
    ends = [directory / f"end-{rank}.pt" for rank in range(count)]
    return [torch.load(path, weights_only=True) for path in ends if path.exists()]


def test_two_workers_are_one_with_both_halves(tmp_path: Path) -> None:
    whole = trained(tmp_path / "one")
    ends = run(tmp_path / "two")
    assert len(ends) == COUNT
    for weights, average in ends:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(average[name], ends[0][1][name]) for name in average)
    rows = (tmp_path / "two" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1, "the leader reports for all"


def test_killed_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    """With noise that every worker draws for itself."""
    ends = run(tmp_path / "whole", noise=0.5)
    assert run(tmp_path / "parts", noise=0.5, death=5) == []
    again = run(tmp_path / "parts", noise=0.5)
    for one, other in zip(ends, again, strict=True):
        for kind, same in zip(one, other, strict=True):
            assert all(torch.equal(kind[name], same[name]) for name in kind)


def test_what_workers_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "two")
    with pytest.raises(ValueError, match="saved by 2 workers, this run has 1; go on with 2"):
        trained(tmp_path / "two")

    class Keeps:
        def state(self) -> dict[str, object]:
            return {}

        def restore(self, state: dict[str, object]) -> None: ...

        def __call__(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            raise AssertionError("never asked")

    monkeypatch.setattr(Workers, "here", classmethod(lambda cls: cls(1, 2)))
    with pytest.raises(ValueError, match="2 workers, but Keeps keeps a state of its own"):
        train(Net(), Keeps(), half, CONFIG, tmp_path / "kept")


def test_machines_without_a_shared_folder_are_refused(tmp_path: Path) -> None:
    """Only the leader's machine has the checkpoint: the others would begin anew, and all step by gradients of
    different weights."""
    here, there = tmp_path / "here", tmp_path / "there"
    assert run(here, death=5, elsewhere=there) == []
    assert (here / "checkpoint.pt").exists() and not (there / "checkpoint.pt").exists()
    assert run(here, elsewhere=there) == []
    for directory in (here, there):
        said = (directory / "refused").read_text(encoding="utf-8")
        assert said == (
            f"workers found checkpoints of different steps in {directory}: 3, 0 (0: none); "
            "the folder of runs must be one that all machines see"
        )


FAILING = """
import torch

from arvid.train.workers import Workers


def wrong_input(): raise FileNotFoundError("no clips here")


def fault(): raise RuntimeError("a fault of ours")


def agree(seen):
    try:
        Workers.here().agree([torch.zeros(3)])
    except Exception as error:
        seen.write_text(f"{isinstance(error, ConnectionError)} {error}")
        raise
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What new processes can import and fail at."""
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("failing", None)
    return importlib.import_module("failing")


@pytest.mark.parametrize(
    ("work", "said", "traced"),
    [("wrong_input", "FileNotFoundError: no clips here", False), ("fault", "RuntimeError: a fault of ours", True)],
)
def test_the_own_error_of_a_worker_is_heard(
    failing: ModuleType, capfd: pytest.CaptureFixture[str], work: str, said: str, traced: bool
) -> None:
    """By who leads, in one line, wherever it meets that the worker is gone: in an exchange, or at the end."""
    expected = rf"one of 2 workers is gone; .* last checkpoint \(worker 1 ended with {said}\)$"
    with pytest.raises(ConnectionError, match=expected), hired(2, getattr(failing, work)):
        if not traced:
            Workers.here().gather(torch.zeros(1))
    assert Workers.here() == Workers()
    assert ("Traceback" in capfd.readouterr().err) == traced, "a fault of ours keeps its traceback"


def test_who_is_left_alone_while_they_agree_hears_of_it(
    failing: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The leader goes; the other one's error follows from that and is not told as one of its own."""
    with hired(2, failing.agree, tmp_path / "seen"):
        leave()
    seen = (tmp_path / "seen").read_text(encoding="utf-8")
    assert seen.startswith("True one of 2 workers is gone; the same command goes on from the last checkpoint (")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("worker", "kind", "present", "told", "index"),
    [
        (Workers(0, 1), "cuda", 2, "", 0),
        (Workers(0, 1), "cuda:1", 2, "", 1),
        (Workers(1, 2), "cuda", 2, "", 1),
        (Workers(1, 2), "cuda", 1, "0", 0),  # a machine each
        (Workers(13, 16), "cuda", 8, "5", 5),
        (Workers(2, 3), "cuda", 1, "2", 0),  # each is shown its own GPU only
    ],
)
def test_every_worker_of_a_machine_has_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, worker: Workers, kind: str, present: int, told: str, index: int
) -> None:
    gpus(monkeypatch, present, told)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert worker.device(kind) == torch.device("cuda", index)
    assert chosen == [index]
    assert worker.device("cpu") == torch.device("cpu")
    assert chosen == [index], "a run on the CPU takes no GPU"


@pytest.mark.parametrize(
    ("count", "kind", "present", "said"),
    [
        (1, "cuda", 0, "'cuda' asked for; torch sees 0 GPUs; use cpu"),
        (1, "cuda:2", 2, "'cuda:2' asked for; torch sees 2 GPUs"),
        (2, "cuda:1", 2, "'cuda:1' for 2 workers, but each needs a GPU of its own; use cuda"),
        (3, "cuda", 2, "3 workers, but torch sees 2 GPUs and each needs its own; give --workers 2, or"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, count: int, kind: str, present: int, said: str
) -> None:
    gpus(monkeypatch, present)
    with pytest.raises(ValueError, match=said):
        Workers(0, count).device(kind)


def gpus(monkeypatch: pytest.MonkeyPatch, present: int, told: str = "") -> None:
    """A machine with so many, and the number there that torchrun has told this process, if it began it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if told:
        monkeypatch.setenv("LOCAL_RANK", told)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")


@pytest.mark.parametrize(("seen", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_tensors_of_the_cpu_and_of_gpus_both_have_a_way(
    monkeypatch: pytest.MonkeyPatch, seen: bool, backend: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **how: asked.append(name))
    join()
    assert asked == [backend]


@pytest.mark.parametrize(("device", "first"), [("cpu", []), ("meta", ["all are here"])])
def test_who_exchanges_what_is_on_a_device_first_sees_that_all_are_here(
    monkeypatch: pytest.MonkeyPatch, device: str, first: list[str]
) -> None:
    """What exchanges for devices does not notice in time that one is gone."""
    done: list[str] = []
    monkeypatch.setattr(dist, "barrier", lambda: done.append("all are here"))
    for name in ("broadcast", "all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, lambda *tensors, name=name: done.append(name))
    pair, tensor = Workers(0, 2), torch.ones(3, device=device)
    pair.agree([tensor])
    pair.average([tensor])
    assert pair.gather(tensor).device == tensor.device
    assert done == [*first, "broadcast", *first, "all_reduce", *first, "all_gather"]


UNLOADABLE = """
import multiprocessing
if multiprocessing.current_process().name != "MainProcess":
    raise ImportError("no room")

def work() -> None: ...
"""


def test_who_leads_does_not_wait_for_one_that_ended_before_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that loads here and not in a new process; without a look at it, the wait is half an hour."""
    (tmp_path / "unloadable.py").write_text(UNLOADABLE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("unloadable").work
    led: list[int] = []
    with (
        pytest.raises(ConnectionError, match=r"one of 2 workers ended with code 1 before it began.*fewer --workers"),
        hired(2, work),
    ):
        led.append(1)
    assert not led and Workers.here() == Workers()


if __name__ == "__main__":
    alone()
