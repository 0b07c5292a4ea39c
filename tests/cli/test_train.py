"""`arvid train`: which stages run, in which order, with which sizes, and what is shown. The recipe is a toy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

from arvid.cli import train
from arvid.train.workers import Workers

Type = Callable[..., Any]
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Sizes:
    """Two stages that take steps, one that counts clips, one that takes nothing; two more sizes."""

    text_steps: int = 10
    target_steps: int = 20
    latents: int = 30
    part: float = 0.5
    start: str = ""


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, Sizes]]:
    """What the stages of a recipe named `toy` were called with."""
    calls: list[tuple[str, Path, Sizes]] = []

    def stage(name: str) -> Callable[[Path, Sizes, Report], None]:
        def run(runs: Path, sizes: Sizes, report: Report) -> None:
            calls.append((name, runs, sizes))
            if name == "pack":
                raise KeyboardInterrupt
            report({"clips" if name == "latents" else "step": 5, "loss": 0.25})

        return run

    recipe = ModuleType("toy_recipe")
    recipe.__dict__.update(Sizes=Sizes, STAGES={name: stage(name) for name in ("text", "latents", "target", "pack")})
    monkeypatch.setitem(sys.modules, "toy_recipe", recipe)
    monkeypatch.setitem(train.RECIPES, "toy", "toy_recipe")
    return calls


def test_chosen_stages_run_in_the_order_given(arvid: Type, done: list[Any], tmp_path: Path) -> None:
    result = arvid("train", "toy", "--stage", "target", "--stage", "text", "--steps", 7)
    assert result.exit_code == 0, result.output
    assert done == [(name, Path("runs").absolute(), Sizes(7, 7)) for name in ("target", "text")]
    assert result.stderr.splitlines() == [
        "target: begun", "target: 5/7  loss 0.25", "target: done", "text: begun", "text: 5/7  loss 0.25", "text: done",
    ]  # fmt: skip
    assert (tmp_path / "runs").is_dir()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_that_has_nothing_left_to_do_says_so(
    arvid: Type, done: list[Any], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(Console, "is_terminal", terminal)
    monkeypatch.setitem(sys.modules["toy_recipe"].STAGES, "target", lambda runs, sizes, report: None)
    result = arvid("train", "toy", "--stage", "target", "--steps", 7)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1].endswith("target: done before; more than 7 is --steps or --set")


def test_a_device_is_for_the_stages_that_can_be_there(arvid: Type, done: list[Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name, said in (
        ("cuda", "device 'cuda' asked for; torch sees 0 GPUs; use cpu"),
        ("tpu", "unknown device 'tpu'"),
    ):
        result = arvid("train", "toy", "--stage", "text", "--device", name)
        assert result.exit_code == 2 and said in result.stderr
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(sys.modules["toy_recipe"], "PLACED", ("target",), raising=False)
    result = arvid("train", "toy", "--stage", "text", "--device", "cuda")
    assert result.exit_code == 2
    assert "--device asks for cuda, but stage text of 'toy' is not for that; these can: target" in result.stderr
    assert done == []


def test_sizes_are_set_in_the_type_they_have(arvid: Type, done: list[Any]) -> None:
    words = ("--set", "latents=4", "--set", "part=0.25", "--set", "start=a=b", "--steps", 7)
    result = arvid("train", "toy", "--stage", "text", *words)
    assert result.exit_code == 0, result.output
    assert done == [("text", Path("runs").absolute(), Sizes(7, 20, 4, 0.25, "a=b"))]


def test_all_stages_by_default_and_an_interrupt(arvid: Type, done: list[Any]) -> None:
    result = arvid("train", "toy", "--runs", "elsewhere")
    assert result.exit_code == 130
    assert [name for name, _, _ in done] == ["text", "latents", "target", "pack"]
    assert "latents: 5/30  loss 0.25" in result.stderr
    assert result.stderr.splitlines()[-2:] == ["pack: stopped; the same command goes on from here", "interrupted"]


def test_quiet_says_nothing(arvid: Type, done: list[Any]) -> None:
    result = arvid("train", "toy", "--stage", "text", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cathedral"], "unknown recipe 'cathedral'; known: embedded, distill, feedback, resampling, judges"),
        (["toy", "--stage", "dance"], "recipe 'toy' has no stage 'dance'; its stages: text, latents, target, pack"),
        (["toy", "--stage", "latents", "--steps", "3"], "stage latents takes none; these do: target, text"),
        (
            ["toy", "--set", "depth=3"],
            "--set 'depth=3'; give NAME=VALUE with one of: text_steps, target",
        ),
        (["toy", "--set", "latents"], "--set 'latents'; give NAME=VALUE"),
        (["toy", "--set", "latents=many"], "--set 'latents=many'; latents is a whole number, 30 by default"),
        (["toy", "--set", "latents=-4"], "--set 'latents=-4'; latents is at least 0, 30 by default"),
        (["toy", "--set", "text_steps=0"], "--set 'text_steps=0'; text_steps is at least 1"),
        (["toy", "--set", "part=half"], "--set 'part=half'; part is a number, 0.5 by default"),
        (["toy", "--runs", __file__], "test_train.py is a file; name a folder"),
        (["toy", "--runs", "a/b"], "a does not exist"),
    ],
)
def test_wrong_input_starts_nothing(arvid: Type, done: list[Any], tmp_path: Path, words: list[str], said: str) -> None:
    result = arvid("train", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert done == []
    assert list(tmp_path.iterdir()) == []


RECIPE = """
import sys
from dataclasses import dataclass

import torch
from torch import nn

from arvid.train.trainer import TrainConfig, train
from arvid.train.workers import Workers


@dataclass(frozen=True)
class Sizes:
    target_steps: int = 4


def target(runs, sizes, report):
    net = nn.Linear(3, 2)

    def loss(batch, generator):
        return {"loss": net(batch).square().mean()}

    def source(number):
        if (runs / "fail").exists() and Workers.here().rank == 1 and number > 2:
            raise RuntimeError("gone")
        (runs / f"batch-{number}").touch()
        return torch.full((1, 3), float(number))

    train(net, loss, source, TrainConfig(sizes.target_steps, log_every=1), runs / "target", None, report)
    (runs / f"worker-{Workers.here().rank}-of-{Workers.here().count}-{torch.get_num_threads()}").touch()


def pack(runs, sizes, report):
    (runs / "packed").touch()


STAGES = {"target": target, "pack": pack}
SHARED = ("target",)
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that other processes can import as well; where its runs are."""
    (tmp_path / "shared_recipe.py").write_text(RECIPE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(train.RECIPES, "shared", "shared_recipe")
    return tmp_path / "runs"


def test_workers_share_the_batches_and_one_speaks(arvid: Type, shared: Path) -> None:
    words = ("train", "shared", "--stage", "target", "--workers", 2, "--threads", 1)
    result = arvid(*words)
    assert result.exit_code == 0, result.output
    made = {path.name for path in shared.iterdir()}
    assert {f"batch-{number}" for number in range(8)} | {"worker-0-of-2-1", "worker-1-of-2-1"} <= made
    assert sum(line.startswith("target: 4/4") for line in result.stderr.splitlines()) == 1
    assert Workers.here() == Workers(0, 1), "what comes next is alone again"


def test_a_worker_that_is_gone_ends_the_run_in_a_line(arvid: Type, shared: Path) -> None:
    shared.mkdir()
    (shared / "fail").touch()
    result = arvid("train", "shared", "--stage", "target", "--workers", 2, "--threads", 1)
    assert result.exit_code != 0
    assert "one of 2 workers is gone; the same command goes on from the last checkpoint" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_stage_that_workers_cannot_share_is_refused(arvid: Type, shared: Path, done: list[Any]) -> None:
    for words, said in (
        (("shared",), "asks for several workers, but stage pack of 'shared' is not for that; these can: target"),
        (("toy", "--stage", "text"), "stage text of 'toy' is not for that; none of its stages can"),
    ):
        result = arvid("train", *words, "--workers", 2)
        assert result.exit_code == 2
        assert said in result.stderr
    assert not shared.exists()
    assert done == []
