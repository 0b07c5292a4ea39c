"""The engine's benchmark: its baseline makes the same video, its rows add up, its report says what was timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from arvid.caches.store import Store
from arvid.caches.window import Window
from arvid.cli import bench_engine, engine_cases
from arvid.cli.bench_engine import SHARES, Wanted, compared, forced, planned
from arvid.cli.engine_cases import Case, Lap, Setting
from arvid.cli.main import app
from arvid.evals.plain_loop import PlainLoop
from arvid.evals.profiling import profiled, summary
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rollout.flow import FlowWalker
from arvid.rollout.stage import Clock
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.types import Condition
from oracles.dense_wan import CFG, weights

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", [6, 9, 7])
@torch.no_grad()
def test_the_plain_loop_and_the_engine_make_the_same_video(window: int) -> None:
    frames, sigmas = 18, few_step(3)
    model = CausalWan(WanConfig(**CFG))
    model.load_state_dict(weights(CFG))
    model.eval()
    noise = SeededNoise(5)
    shape = (1, 3, CFG["in_dim"], 8, 6)
    text = torch.randn(1, CFG["text_len"], CFG["text_dim"], generator=torch.Generator().manual_seed(2))
    loop = PlainLoop(model.state_dict(), model.settings, window, (8, 6))
    initial = torch.cat([noise.draw(number, 0, shape) for number in range(frames // 3)], 1)
    plain = list(loop.blocks(initial, lambda block, step: noise.draw(block, step, shape), text, sigmas[:-1]))
    walker = FlowWalker("target", model, Store(Window(window - 3), 3), STEPS["renoise"], Clock())
    condition = Condition("", text)
    for move, expected in zip(sequential(frames, 3, sigmas), plain, strict=True):
        made = walker.walk(move, noise.draw(move.index, 0, shape), move.sigmas, condition, noise).block_BTCHW
        walker.remember(move, made, condition)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert loop.bytes == 2 * 2 * window * 12 * CFG["dim"] * 4


def test_a_run_leaves_rows_that_add_up_and_a_trace(tmp_path: Path) -> None:
    report, trace = tmp_path / "engine.json", tmp_path / "trace.json"
    result = CliRunner().invoke(
        app,
        ["bench", "engine", "--model", "toy", "--window", "6", "--how", "plain", "--how", "eager", "--how", "offloaded",
         "--quick", "--blocks", "3", "--device", "cpu", "--note", "only a test", "--seed", "3",
         "--json", str(report), "--profile", str(trace)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(report.read_text())
    assert (told["schema"], told["kind"], told["config"]["note"]) == (1, "bench engine", "only a test")
    assert (told["config"]["steps"], told["config"]["windows"], told["config"]["seed"]) == (4, [6], 3)
    assert [row["how"] for row in told["rows"]] == ["plain", "eager", "offloaded"]
    for row in told["rows"]:
        assert row["blocks"] == 4
        assert row["speed"]["frames"] == 9 + 3 * 12
        assert row["speed"]["conditions"]["window"] == "6 frames"
        assert row["bytes"]["weights"] == 2 * row["parameters"]
        seconds, fps = row["seconds_per_block"], row["fps"]
        assert fps["with_decode"] == pytest.approx(12 / seconds["all"], rel=1e-3)
        assert fps["denoise"] == pytest.approx(12 / (seconds["all"] - seconds["decode"]), rel=1e-3)
    assert told["rows"][0]["times_plain"] == {"denoise": 1, "with_decode": 1, "received": 1}
    one = told["rows"][1]["bytes"]["past"] // 3
    assert told["rows"][0]["bytes"]["past"] == 6 * one, "three frames of past, and six in sight"
    assert [row["drafts"] for row in told["speculation"]] == [0, 4, 7, 8, 4, 7, 8]
    assert told["speculation"][0]["speedup"] == 1
    for row in told["speculation"]:
        assert row["speed"]["frames"] == 9 + 8 * 12 and row["speed"]["conditions"]["router"] == row["router"]
        seconds = row["speed"]["seconds"]
        assert seconds["denoise"] + seconds["decode"] == pytest.approx(row["seconds"], abs=1e-3)
    assert told["profile"]["trace"] == "trace.json"
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert any(event["name"] == "aten::addmm" and event["dur"] > 0 for event in spans)


def test_the_stages_of_a_block_add_up_and_medians_are_of_the_last_blocks() -> None:
    told = engine_cases._stages({"target": 9.0, "pass": 5.0, "commit": 1.0, "decode": 2.0}, 10.0)
    assert told == {"pass": 5.0, "commit": 1.0, "decode": 2.0, "rest": 2.0, "all": 10.0}
    laps = [Lap({"all": seconds}, 0.0, 12) for seconds in (9.0, 1.0, 2.0, 4.0)]
    assert engine_cases.steady(laps, 3) == {"all": 2.0}


@pytest.mark.parametrize("share", SHARES)
def test_forced_shares_are_exact_where_they_can_be(share: float) -> None:
    p, seed, kept = forced(share, 36)
    assert sum(kept) == pytest.approx(36 * share, abs=0.01)
    assert not kept[0]
    assert 0 <= p <= 1 and forced(share, 36) == (p, seed, kept)


def test_what_a_run_does_depends_on_the_device() -> None:
    gpu, cpu = planned(Wanted(), torch.device("cuda")), planned(Wanted(), CPU)
    assert gpu.setting.pixels == (832, 480) and cpu.setting.pixels == (64, 64)
    assert {case.model for case in gpu.cases} == {"wan-1.3b", "wan-14b"}
    assert {case.window for case in (*gpu.cases, *cpu.cases)} == {21, 12}
    assert gpu.pair == ("wan-14b", "wan-1.3b")
    assert {case.how for case in cpu.cases} >= {"plain", "eager", "compiled", "int8", "packed"}
    assert {case.how for case in gpu.cases} >= {"plain", "eager", "compiled", "fp8-dynamic", "overlapped"}
    assert planned(Wanted(models=("toy",), blocks=3), CPU).setting.measured == 3


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (("wan-2b", 21, "eager"), "unknown size 'wan-2b'; known: wan-1.3b"),
        (("toy", 7, "eager"), "a window of 7 frames; give a multiple of 3, at least 6"),
        (("toy", 6, "eager+packed"), r"unknown way to run \['eager'\]; known: plain, eager, compiled"),
        (("toy", 6, "swift"), r"unknown way to run \['swift'\]"),
    ],
)
def test_a_wrong_case_says_so(case: tuple[Any, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Case(*case)


def test_compiling_stands_apart_from_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(took: Iterator[float], work: Callable[[], object]) -> float:
        work()
        return next(took)

    prepared: list[tuple[str, ...]] = []
    monkeypatch.setattr(engine_cases, "prepare", lambda engine, words: prepared.append(words) or engine)
    told = {}
    for how in ("compiled", "packed"):
        took = iter((9.0, 2.0))
        monkeypatch.setattr(bench_engine, "_seconds", partial(timed, took))
        row = bench_engine.rows_of([Case("toy", 6, how)], Setting(CPU, (64, 64), measured=1))[0]
        told[how] = row["speed"]["apart"]
    assert prepared == [("compiled",), ("packed",)]
    assert told["compiled"]["compile_s"] == 7.0 and told["packed"]["compile_s"] is None
    assert told["packed"]["warm_up_s"] > 0


def test_a_row_that_this_machine_cannot_do_says_why_and_stops_nothing() -> None:
    setting = Setting(CPU, (64, 64), measured=1)
    rows = bench_engine.rows_of([Case("toy", 6, "overlapped"), Case("toy", 6, "eager")], setting)
    assert rows[0]["error"] == "cpu has no streams to decode beside the next block; leave overlapped out"
    assert rows[1]["blocks"] == 2
    assert [row["times_plain"] for row in compared(rows)] == [None, None]


def test_a_profile_counts_own_seconds_once(tmp_path: Path) -> None:
    def row(key: str, device: str, cpu: float, gpu: float) -> Any:
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(
            key=key,
            device_type=kind,
            is_user_annotation=False,
            self_cpu_time_total=cpu,
            self_device_time_total=gpu,
            count=2,
        )

    rows = [row("aten::mm", "CPU", 1e6, 6e6), row("sm90_gemm", "CUDA", 0, 6e6), row("add_kernel", "CUDA", 0, 2e6)]
    found = summary(rows, "cuda")
    assert (found.seconds, found.arithmetic) == (8.0, 0.75)
    assert [one.share for one in found.operators] == [0.75, 0.25]
    with pytest.raises(ValueError, match="saw no operator on cpu"):
        summary([], "cpu")
    a = torch.rand(64, 64)
    names = [one.name for one in profiled(lambda: (a @ a).sum(), tmp_path / "t.json").operators]
    assert "aten::mm" in names and (tmp_path / "t.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
