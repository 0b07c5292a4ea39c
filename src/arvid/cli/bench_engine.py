"""One run of `arvid bench engine`, from options to report.

Knows: which rows a run has, how a row becomes numbers, the terminal. Does not know: arguments (`cli.bench`), how a
video is made and timed (`cli.engine_cases`).
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from arvid.cli import engine_cases as cases
from arvid.cli.engine_cases import BLOCK, SIZES, Case, Engine, Lap, Setting
from arvid.cli.report import head
from arvid.evals.plain_loop import PlainLoop
from arvid.evals.profiling import profiled
from arvid.evals.timing import BlockTime, Conditions, record
from arvid.rollout.routers import ROUTERS, RewardRouter
from arvid.rollout.specs import DRAFT, Spec
from arvid.rollout.stage import Clock

FPS = 16
SHARES = (0.0, 0.5, 0.75, 0.889)
"""Drafts that are kept, of all blocks; with a first block by the target, 8 of 9 is the most of a short video."""
SPECULATED, SPECULATED_QUICK = 36, 9
"""Blocks of a video with forced acceptance: with 36 every share is exact."""
WARM = 2
"""Blocks that do not count before a video that does."""
COMPILING = frozenset({"compiled", "graphs"})
"""Ways to run that compile something at the first block."""
SOFT = (ValueError, RuntimeError, NotImplementedError, ImportError)
"""What a way to run may fail with on a machine that cannot do it: the row says so, and the others go on."""

errors = Console(stderr=True)
Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The options of a run; empty ones mean what the device is for. `pair` is (target, drafter)."""

    models: tuple[str, ...] = ()
    windows: tuple[int, ...] = ()
    ways: tuple[str, ...] = ()
    blocks: int = 0
    seed: int = 0
    quick: bool = False
    speculation: bool = True
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What is run, in which setting."""

    setting: Setting
    cases: tuple[Case, ...]
    pair: tuple[str, str]


def planned(wanted: Wanted, device: torch.device) -> Plan:
    """The rows of a run: published sizes at 832x480 on a GPU, tiny ones on a CPU. Raises ValueError for what is
    unknown."""
    gpu = device.type == "cuda"
    models = wanted.models or (("wan-1.3b", "wan-14b") if gpu else ("embedded-target",))
    windows = wanted.windows or ((21, 12) if gpu or not wanted.quick else (6,))
    ways = wanted.ways or _ways(gpu, wanted.quick)
    real = any(model.startswith(cases.PUBLISHED) for model in models)
    pair = ("wan-14b", "wan-1.3b") if real else ("embedded-target", "embedded-drafter")
    if "toy" in models:
        pair = ("toy", "toy")
    measured = wanted.blocks or (2 if wanted.quick else 6)
    setting = Setting(device, (832, 480) if real else (64, 64), seed=wanted.seed, measured=measured)
    rows = tuple(Case(model, window, how) for model in models for window in windows for how in ways)
    return Plan(setting, rows, pair)


def _ways(gpu: bool, quick: bool) -> tuple[str, ...]:
    if not gpu:
        return ("plain", "eager", "packed") if quick else ("plain", "eager", "packed", "compiled", "int8", "offloaded")
    best = "compiled+fp8-dynamic+overlapped"
    if quick:
        return ("plain", "eager", best)
    return ("plain", "eager", "compiled", "graphs", "int8-dynamic", "fp8-dynamic", "overlapped", best, f"{best}+taehv")


# ---------------------------------------------------------------- rows


@dataclass(eq=False)
class Started:
    """A case that is ready to run: its laps to come, what is known of it, and what there is to ask when it is done."""

    case: Case
    about: Row
    laps: Iterator[Lap]
    past: Callable[[], int]
    arrivals: Callable[[], list[float]] | None = None
    done: list[Lap] = field(default_factory=list)
    error: str = ""

    def lap(self) -> None:
        """One block more; an error ends the case and is kept."""
        try:
            if not self.error:
                self.done.append(next(self.laps))
        except SOFT as error:
            self.error = _line(error)


def start(case: Case, setting: Setting) -> Started:
    """Build what a case runs and warm it up."""
    blocks = case.window // BLOCK - 1 + setting.measured
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setting.device)
    begin = time.perf_counter()
    model = cases.network(case.model, setting)
    decoder = cases.decoder_of(case.model, setting, tiny="taehv" in case.words)
    about: Row = {"parameters": sum(weight.numel() for weight in model.parameters())}
    if case.how == "plain":
        loops = [PlainLoop(model.state_dict(), model.settings, case.window, setting.sides) for _ in range(2)]
        list(cases.plain_laps(loops[0], decoder, setting, WARM, model.config))
        laps = cases.plain_laps(loops[1], decoder, setting, blocks, model.config)
        started = Started(case, about, laps, lambda: loops[1].bytes)
    else:
        engine = Engine(setting, case.window, model, decoder)
        engine = cases.prepare(engine, () if case.how == "eager" else case.words)
        warm = _seconds(lambda: list(cases.engine_laps(engine, WARM)))
        if COMPILING & {*case.words}:
            # What the first warm-up takes longer than a second one is compiling.
            about["compile_s"] = round(max(0.0, warm - _seconds(lambda: list(cases.engine_laps(engine, WARM)))), 4)
        started = Started(case, about, cases.engine_laps(engine, blocks), lambda: engine.past_bytes)
        if setting.device.type == "cuda":
            started.arrivals = partial(cases.arrivals, engine, blocks, "overlapped" in case.words)
    took = time.perf_counter() - begin - about.get("compile_s", 0.0)
    about |= {"warm_up_s": round(took, 4), "weights": cases.weight_bytes(model)}
    return started


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def rows_of(group: Sequence[Case], setting: Setting) -> list[Row]:
    """Rows of cases of one model and window. On a CPU they make their blocks in turns, so that whatever else the
    machine does meets all alike; on a GPU, which holds one at a time, they come one after the other."""
    rows: list[Row] = []
    for some in [group] if setting.device.type == "cpu" else [[case] for case in group]:
        started = [_started(case, setting) for case in some]
        for _ in range(group[0].window // BLOCK - 1 + setting.measured):
            for one in started:
                one.lap()
        rows += [_row(one, setting) for one in started]
        del started
        _clear(setting)
    return rows


def _started(case: Case, setting: Setting) -> Started:
    errors.print(f"{case.model}, window {case.window}: {case.how}", highlight=False)
    try:
        return start(case, setting)
    except SOFT as error:
        return Started(case, {}, iter(()), int, error=_line(error))


def _row(started: Started, setting: Setting) -> Row:
    case, about, laps = started.case, started.about, started.done
    named = {"model": case.model, "window": case.window, "how": case.how}
    if started.error:
        errors.print(f"  not measured, {case.how}: {started.error}", highlight=False, markup=False)
        return {**named, "error": started.error}
    came = started.arrivals() if started.arrivals else list(accumulate(lap.wall for lap in laps))
    seconds = cases.steady(laps, setting.measured)
    last = laps[-setting.measured :]
    frames = last[-1].frames
    apart = {"warm_up_s": about["warm_up_s"], "compile_s": about.get("compile_s")}
    about = {**named, "parameters": about["parameters"], "blocks": len(laps)}
    before = came[-setting.measured - 1] if len(came) > setting.measured else 0.0
    return {
        **about,
        "seconds_per_block": {name: round(value, 6) for name, value in seconds.items()},
        "fps": {
            "denoise": round(frames / (seconds["all"] - seconds["decode"]), 3),
            "with_decode": round(frames / seconds["all"], 3),
            "received": round(sum(lap.frames for lap in last) / (came[-1] - before), 3),
        },
        "first_frame_s": round(came[0], 6),
        "bytes": {
            "weights": started.about["weights"], "past": started.past(), "peak": cases.peak_bytes(setting),
        },
        "speed": record(_timed(laps, came), _conditions(case.model, case.window, "target", setting), **apart),
    }  # fmt: skip


def _timed(laps: Sequence[Lap], came: Iterable[float]) -> list[BlockTime]:
    """Laps as the timing record wants them; decoding is told apart, everything else is denoising."""
    decode = [lap.seconds.get("decode", 0.0) for lap in laps]
    return [
        BlockTime(lap.frames, lap.seconds["all"] - pixels, pixels, arrived=arrived)
        for lap, pixels, arrived in zip(laps, decode, came, strict=True)
    ]


def _conditions(model: str, window: int, router: str, setting: Setting) -> Conditions:
    """The machine is that of the report's head."""
    return Conditions(model, None, setting.steps, f"{window} frames", router, *setting.pixels, FPS, setting.seed)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _clear(setting: Setting) -> None:
    gc.collect()
    torch.compiler.reset()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def forced(share: float, blocks: int) -> tuple[float, int, list[bool]]:
    """The `p` of the router `random` and the first seed with which it drafts exactly round(share x blocks) of `blocks`
    blocks (never the first), and which those are."""
    drafts = min(round(share * blocks), blocks - 1)
    p = drafts / (blocks - 1)
    router = ROUTERS["random"](p=p)
    seed = 0
    while sum(router.pick(index, seed) == DRAFT for index in range(blocks)) != drafts:
        seed += 1
    return p, seed, [router.pick(index, seed) == DRAFT for index in range(blocks)]


def speculation(plan: Plan, window: int, quick: bool) -> list[Row]:
    """Rows of forced acceptance: the router `random`, which drafts what will be kept and nothing else, and the router
    `reward`, which drafts and scores every block and is told what to say. The first row is the target alone."""
    setting, (target, drafter) = plan.setting, plan.pair
    blocks = SPECULATED_QUICK if quick else SPECULATED
    pair = cases.network(target, setting), cases.network(drafter, setting)
    decoder, reward = cases.decoder_of(target, setting), cases.reward_of(target, setting)
    rows: list[Row] = []
    videos: list[Iterator[Lap]] = []
    for name, share in [("random", share) for share in SHARES] + [("reward", share) for share in SHARES if share]:
        p, seed, kept = forced(share, blocks)
        spec: Spec = ROUTERS["random"](p=p) if name == "random" else RewardRouter(tau=0.0)
        engine = Engine(setting, window, pair[0], decoder, pair[1], cases.Forced(reward, kept[1:]))
        warm = replace(engine, reward=cases.Forced(reward, [True] * WARM))
        list(warm.video(WARM, Clock(), spec, seed))
        videos.append(cases.engine_laps(engine, blocks, spec, seed))
        rows.append({
            "target": target, "drafter": drafter, "window": window, "forced": share,
            "router": f"random:p={p:.4f}" if name == "random" else "reward, told what to say", "seed": seed,
            "blocks": blocks,
        })  # fmt: skip
    if setting.device.type == "cpu":
        made = [list(laps) for laps in zip(*zip(*videos, strict=True), strict=True)]
    else:
        made = [list(video) for video in videos]
    return [_speculated(row, laps, made[0], setting) for row, laps in zip(rows, made, strict=True)]


def _speculated(row: Row, laps: list[Lap], alone: list[Lap], setting: Setting) -> Row:
    seconds, base = (sum(lap.seconds["all"] for lap in some) for some in (laps, alone))
    drafts = sum(lap.source == DRAFT for lap in laps)
    stages: Counter[str] = Counter()
    for lap in laps:
        stages.update({name: value for name, value in lap.seconds.items() if name != "all"})
    return {
        **row, "drafts": drafts, "accept_rate": round(drafts / len(laps), 4), "seconds": round(seconds, 4),
        "stage_seconds": {name: round(value, 4) for name, value in stages.items()},
        "fps": round(sum(lap.frames for lap in laps) / seconds, 3), "speedup": round(base / seconds, 3),
        "speed": record(
            _timed(laps, accumulate(lap.wall for lap in laps)),
            _conditions(f"{row['target']}, {row['drafter']}", row["window"], row["router"], setting),
        ),
    }  # fmt: skip


# ---------------------------------------------------------------- one run


class Bench:
    """One run from options to report. Rows that fail on this machine say why and do not stop the others."""

    def __init__(self, wanted: Wanted, device: torch.device) -> None:
        self.wanted, self.plan = wanted, planned(wanted, device)
        self.rows: list[Row] = []
        self.speculation: list[Row] = []
        self.interrupted = False

    @torch.inference_mode()
    def run(self, trace: Path | None = None) -> Row:
        """The report."""
        load = os.getloadavg()
        profile = None
        try:
            for group in _groups(self.plan.cases):
                self.rows += rows_of(group, self.plan.setting)
            if self.wanted.speculation:
                errors.print("forced acceptance", highlight=False)
                window = self.plan.cases[0].window
                self.speculation = speculation(self.plan, window, self.wanted.quick)
            if trace:
                errors.print(f"profile to {trace}", highlight=False)
                profile = self._profile(trace)
        except KeyboardInterrupt:
            self.interrupted = True
        return {**self._report(load), "profile": profile}

    def _profile(self, trace: Path) -> Row:
        """One block of the first model, with a full window, under the profiler."""
        case, setting = self.plan.cases[0], self.plan.setting
        decoder = cases.decoder_of(case.model, setting)
        engine = Engine(setting, case.window, cases.network(case.model, setting), decoder)
        stream = engine.video(case.window // BLOCK + WARM, Clock())
        for _ in range(case.window // BLOCK + WARM - 1):
            next(stream).frames_BTCHW.cpu()
        found = profiled(lambda: next(stream).frames_BTCHW.cpu(), trace)
        return {"model": case.model, "window": case.window, "how": "eager", "trace": trace.name, **found.plain()}

    def _report(self, load: tuple[float, float, float]) -> Row:
        setting = self.plan.setting
        about = head("bench engine", str(setting.device))
        about["machine"] = {**about["machine"], "load_1m": [round(load[0], 2), round(os.getloadavg()[0], 2)]}
        return {
            **about,
            "config": {
                "benchmark": "engine",
                "size": list(setting.pixels),
                "dtype": str(setting.dtype).removeprefix("torch."),
                "steps": setting.steps,
                "block": BLOCK,
                "windows": sorted({case.window for case in self.plan.cases}),
                "models": {case.model: _sizes(case.model) for case in self.plan.cases},
                "measured_blocks": setting.measured,
                "seed": setting.seed,
                "weights": "random",
                "clock": setting.clock,
                "quick": self.wanted.quick,
                "interrupted": self.interrupted,
                "note": self.wanted.note,
            },
            "rows": compared(self.rows),
            "speculation": self.speculation,
        }


def _groups(rows: Sequence[Case]) -> list[list[Case]]:
    """Cases by model and window, in their order."""
    found: dict[tuple[str, int], list[Case]] = {}
    for case in rows:
        found.setdefault((case.model, case.window), []).append(case)
    return list(found.values())


def _sizes(model: str) -> Row:
    config = SIZES[model]
    return {"dim": config.dim, "ffn_dim": config.ffn_dim, "heads": config.num_heads, "layers": config.num_layers}


def compared(rows: list[Row]) -> list[Row]:
    """Rows with their rates as multiples of the plain loop's of the same model and window."""
    plain = {(row["model"], row["window"]): row["fps"] for row in rows if row["how"] == "plain" and "fps" in row}
    found = []
    for row in rows:
        base = plain.get((row["model"], row["window"]))
        times = {name: round(row["fps"][name] / base[name], 3) for name in base} if base and "fps" in row else None
        found.append({**row, "times_plain": times})
    return found
