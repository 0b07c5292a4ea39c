"""The trainer: killed and resumed is bit-equal to never stopped, and its schedule is what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arvid.train.trainer import TrainConfig, train

CONFIG = TrainConfig(steps=13, learning_rate=0.05, warmup=3, save_every=4, log_every=5, average=0.9)


class Net(nn.Module):
    """A matrix, a vector, a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(5, 8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x_BD)))


def source(step: int) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(step))


def objective(net: Net) -> Callable[[Tensor, torch.Generator], dict[str, Tensor]]:
    """Depends on the batch and on the generator, so that both must be right after a resume."""

    def loss(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(6, 2, generator=generator)
        error = (net(batch) - batch[:, :2] - 0.1 * noise).square().mean()
        return {"loss": error, "noise": noise.mean()}

    return loss


def dying(step_of_death: int) -> Callable[[int], Tensor]:
    def deadly(step: int) -> Tensor:
        if step == step_of_death:
            raise KeyboardInterrupt
        return source(step)

    return deadly


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, muon="inner")], ids=["adamw", "muon"])
def test_killed_and_resumed_is_never_stopped(tmp_path: Path, config: TrainConfig) -> None:
    """Killed before the first checkpoint, between two, right after one, and once more when all is done."""
    whole = Net()
    average = train(whole, objective(whole), source, config, tmp_path / "whole")
    for death in (2, 7, 8, 11):
        net = Net()
        with pytest.raises(KeyboardInterrupt):
            train(net, objective(net), dying(death), config, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoint.part").write_bytes(b"a save that was cut off")
    for _ in range(2):
        net = Net()
        again = train(net, objective(net), source, config, tmp_path / "parts")
        assert same(net.state_dict(), whole.state_dict())
        assert same(again, average)
    last = [row for row in log(tmp_path / "parts") if row["step"] == 13][-1]
    assert {key: last[key] for key in ("loss", "noise", "norm")} == {
        key: log(tmp_path / "whole")[-1][key] for key in ("loss", "noise", "norm")
    }


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, muon="inner")], ids=["adamw", "muon"])
def test_a_run_goes_on_where_the_weights_are(tmp_path: Path, config: TrainConfig) -> None:
    """Begun on the CPU, gone on with on another device: whatever is left behind cannot be computed with."""
    config = replace(config, log_every=100)  # numbers of the meta device cannot be read
    net = Net()
    with pytest.raises(KeyboardInterrupt):
        train(net, objective(net), dying(5), config, tmp_path)
    moved, steps = Net().to("meta"), []

    def source(step: int) -> Tensor:
        steps.append(step)
        return dying(7)(step).to("meta")

    def loss(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(6, 2, generator=generator).to("meta")
        return {"loss": (moved(batch) - batch[:, :2] - noise).square().mean()}

    with pytest.raises(KeyboardInterrupt):
        train(moved, loss, source, config, tmp_path)
    assert steps == [4, 5, 6, 7]
    average = train(moved, loss, source, replace(config, steps=4), tmp_path)
    assert {value.device.type for value in average.values()} == {"meta"}


def test_a_checkpoint_of_a_gpu_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose every tensor says that it was on a GPU."""
    net, again = Net(), Net()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        average = train(net, objective(net), source, CONFIG, tmp_path)
    told: set[str] = set()
    torch.load(tmp_path / "checkpoint.pt", lambda storage, place: told.add(place) or storage, weights_only=True)
    assert told == {"cuda:0"}
    assert same(train(again, objective(again), source, CONFIG, tmp_path), average)
    assert same(again.state_dict(), net.state_dict())


def test_looking_at_held_out_numbers_changes_nothing(tmp_path: Path) -> None:
    plain, watched = Net(), Net()
    train(plain, objective(plain), source, CONFIG, tmp_path / "plain")
    seen: list[dict[str, Tensor]] = []

    def held(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert torch.is_inference_mode_enabled()
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"held": float(len(seen))}

    average = train(watched, objective(watched), source, CONFIG, tmp_path / "watched", held)
    assert same(plain.state_dict(), watched.state_dict())
    assert watched.training
    assert same(seen[-1], average)
    assert not same(seen[-1], watched.state_dict())
    assert [row for row in log(tmp_path / "watched") if "held" in row] == [
        {"step": step, "held": held} for step, held in ((4, 1.0), (8, 2.0), (12, 3.0), (13, 4.0))
    ]


def test_held_out_numbers_that_fail_leave_the_weights_alone(tmp_path: Path) -> None:
    net, plain = Net(), Net()

    def held(model: nn.Module) -> dict[str, float]:
        raise RuntimeError("no prompts")

    with pytest.raises(RuntimeError, match="no prompts"):
        train(net, objective(net), source, CONFIG, tmp_path / "net", held)
    with pytest.raises(KeyboardInterrupt):
        train(plain, objective(plain), dying(4), CONFIG, tmp_path / "plain")
    assert same(net.state_dict(), plain.state_dict())


def test_the_average_follows_the_weights_with_a_growing_memory(tmp_path: Path) -> None:
    """a <- keep a + (1 - keep) w after every step; keep grows as (1 + n) / (10 + n) to its limit."""
    net, seen = Net(), []
    start = {name: value.detach().double().clone() for name, value in net.named_parameters()}

    def watch(step: int) -> Tensor:
        seen.append({name: value.detach().double().clone() for name, value in net.named_parameters()})
        return source(step)

    average = train(net, objective(net), watch, replace(CONFIG, average=0.3), tmp_path)
    seen.append({name: value.detach().double().clone() for name, value in net.named_parameters()})
    for name, expected in start.items():
        for step, weights in enumerate(seen[1:]):
            keep = min(0.3, (1 + step) / (10 + step))
            expected = keep * expected + (1 - keep) * weights[name]
        torch.testing.assert_close(average[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = TrainConfig(steps=100, learning_rate=2.0, warmup=10)
    assert [config.rate(step) for step in (0, 4)] == pytest.approx(
        [2 * 0.1, 2 * 0.5 * (1 + math.cos(0.04 * math.pi)) / 2], rel=1e-3
    )
    assert config.rate(50) == pytest.approx(1.0)
    assert 0 < config.rate(99) < 1e-3
    assert TrainConfig(steps=10, warmup=0).rate(0) == 1e-3


def test_matrices_decay_and_vectors_do_not(tmp_path: Path) -> None:
    """Without gradients only decay moves a weight: each step multiplies it by 1 - rate * decay."""
    net = Net()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}

    def nothing(batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": 0 * sum(p.sum() for p in net.parameters())}

    config = replace(CONFIG, weight_decay=0.5)
    train(net, nothing, source, config, tmp_path)
    shrunk = math.prod(1 - config.rate(step) * 0.5 for step in range(13))
    for name, value in net.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] * (shrunk if name.endswith("weight") else 1.0))


def test_rows_are_logged_and_reported(tmp_path: Path) -> None:
    net, rows = Net(), []
    train(net, objective(net), source, CONFIG, tmp_path, report=rows.append)
    assert [row["step"] for row in rows] == [5, 10, 13]
    assert rows == log(tmp_path)
    assert set(rows[0]) == {"step", "loss", "noise", "norm", "seconds_per_step"}


def test_it_learns(tmp_path: Path) -> None:
    net = Net()
    rows: list[dict[str, float]] = []
    train(net, objective(net), source, replace(CONFIG, steps=200, log_every=1), tmp_path, report=rows.append)
    assert sum(row["loss"] for row in rows[-20:]) < 0.1 * sum(row["loss"] for row in rows[:20])
