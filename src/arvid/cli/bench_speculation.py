"""One run of `arvid bench speculation`, from options to report.

Knows: how a pipeline is handed to the benchmark as a callable, how a quick run is fitted into its time, the terminal.
Does not know: arguments (`cli.bench`), the protocol and the statistics (`arvid.evals`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from arvid.cli import families
from arvid.cli.places import stdout
from arvid.cli.report import conditions, head
from arvid.evals import speculation, summary, timing
from arvid.evals.speculation import BlockRun, Calibration, Run, Video, Work
from arvid.pipeline import Pipeline, Request

QUICK_SECONDS = 90.0
"""Of the two minutes of a quick run: what is left for making and marking when starting and writing are paid."""
CALIBRATION_PROMPTS, QUICK_CALIBRATION_PROMPTS = 16, 2
WIDTH = 128
"""Columns of the table where no terminal says how many there are."""

errors = Console(stderr=True)


@dataclass(frozen=True)
class Wanted:
    """The options of a run; no policies means those of the benchmark."""

    prompts: int
    seeds: int
    seconds: float
    policies: tuple[str, ...]
    levels: tuple[int, ...]
    quick: bool


# ---------------------------------------------------------------- the maker


class PipelineMaker:
    """Makes the videos of a benchmark with a pipeline (see `arvid.evals.speculation.Maker`)."""

    def __init__(self, pipeline: Pipeline, seconds: float) -> None:
        self.pipeline, self.seconds = pipeline, seconds

    def __call__(self, policy: str, prompt: str, seed: int, blocks: int = 0) -> Run:
        """One video, timed from the request to the last frame in main memory."""
        made, shown = [], []
        request = Request(prompt, self.seconds, seed, router=policy)
        busy, begin = time.process_time(), time.perf_counter()
        last = begin
        for block in self.pipeline.stream(request):
            shown.append(block.frames_BTCHW.cpu())
            now = time.perf_counter()
            told = (block.source, block.verdict.score, block.passes, block.seconds, block.frames_BTCHW.shape[1])
            made.append(BlockRun(now - last, *told))
            last = now
            if len(made) == blocks:
                break
        busy = time.process_time() - busy
        frames = ((torch.cat(shown, 1)[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Run(frames.movedim(1, -1).contiguous().numpy(), tuple(made), last - begin, busy)


def _timed(blocks: Sequence[BlockRun]) -> tuple[timing.BlockTime, ...]:
    """Blocks as the timing record wants them; what is not decoding is denoising."""
    came = accumulate(block.seconds for block in blocks)
    decode = [block.stages.get(timing.DECODE, 0.0) for block in blocks]
    return tuple(
        timing.BlockTime(block.frames, block.seconds - pixels, pixels, arrived=arrived)
        for block, pixels, arrived in zip(blocks, decode, came, strict=True)
    )


# ---------------------------------------------------------------- one run


class Bench:
    """One run from options to report. `begin` is when the command began (time.monotonic)."""

    def __init__(self, pipeline: Pipeline, wanted: Wanted, begin: float) -> None:
        self.pipeline, self.wanted = pipeline, wanted
        self.until = begin + QUICK_SECONDS if wanted.quick else float("inf")
        self.make = PipelineMaker(pipeline, wanted.seconds)
        self.policies = self._checked(wanted.policies)
        self.test = speculation.draw_prompts(wanted.prompts, wanted.levels, "test")
        others = QUICK_CALIBRATION_PROMPTS if wanted.quick else CALIBRATION_PROMPTS
        self.others = speculation.draw_prompts(others, wanted.levels, "calibration", self.test)
        self.calibration: Calibration | None = None
        self.interrupted = False
        self.warm_up_s = 0.0

    def _checked(self, named: tuple[str, ...]) -> tuple[str, ...]:
        """The policies of the run, each known to be possible with this family."""
        family = self.pipeline.family
        if family.drafter is None:
            raise ValueError(f"family {family.card.name!r} has no drafter; speculation cannot be measured with it")
        usual = speculation.QUICK_POLICIES if self.wanted.quick else speculation.DEFAULT_POLICIES
        chosen = named or self._able(usual)
        for policy in speculation.resolve(speculation.sampled(chosen), None):
            families.check(self.pipeline, Request(self._example(), self.wanted.seconds, router=policy))
        return tuple(dict.fromkeys((speculation.TARGET, *chosen)))

    def _able(self, policies: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the benchmark's own policies that the family has the parts and the steps for."""
        family, able = self.pipeline.family, policies
        if family.reward is None:
            able = tuple(policy for policy in policies if speculation.router_of(policy) not in speculation.SCORING)
            errors.print(f"{family.card.name} has no reward model: {len(policies) - len(able)} policies are left out")
        _, plan = self.pipeline.check(Request(self._example(), self.wanted.seconds, router=speculation.TARGET))
        steps = len(plan[-1].sigmas) - 1
        fitting = tuple(policy for policy in able if int(speculation.option_of(policy, "repair") or 0) <= steps)
        if len(fitting) < len(able):
            errors.print(f"{family.card.name} walks {steps} steps: {len(able) - len(fitting)} policies are left out")
        return fitting

    def _example(self) -> str:
        return speculation.draw_prompts(1, self.wanted.levels, "example")[0]

    def run(self) -> tuple[dict[str, Any], list[Video]]:
        """The report and the videos of its complete rounds; no videos when it was stopped before the first."""
        videos: list[Video] = []
        policies: tuple[str, ...] = ()
        with _progress() as progress:
            try:
                policies = self._prepare(progress)
                work = Work(policies, self.test, self.wanted.seeds)
                task = progress.add_task("videos", total=len(policies) * len(work.rounds))
                for video in speculation.measure(self.make, work, until=self.until):
                    videos.append(video)
                    progress.update(task, advance=1, description=f"{video.policy} {video.score:.2f}", refresh=True)
            except KeyboardInterrupt:
                self.interrupted = True
        videos = speculation.complete(videos, policies)
        return self._report(policies, videos) if videos else {}, videos

    def _prepare(self, progress: Progress) -> tuple[str, ...]:
        """Fit a quick run into its time, find the thresholds, warm up; the policies that will be measured."""
        prompt, chosen = self.others[0], self.policies
        if self.wanted.quick:
            self.make(speculation.TARGET, prompt, 0, speculation.WARM_BLOCKS)
            trial = time.monotonic()
            next(speculation.measure(self.make, Work((speculation.TARGET,), (prompt,))))
            took = time.monotonic() - trial
            scored = len(speculation.scorers(chosen)) * len(self.others)
            left = self.until - time.monotonic() - scored * took
            fitting, self.make.seconds = speculation.fit(left, took, self.wanted.seconds, chosen)
            chosen = chosen if self.wanted.policies else fitting
        if speculation.scorers(chosen):
            task = progress.add_task("calibrating", total=None)
            progress.refresh()
            self.calibration = speculation.calibrate(self.make, self.others, chosen)
            progress.remove_task(task)
        resolved = speculation.resolve(chosen, self.calibration)
        task = progress.add_task("warming up", total=len(resolved))
        begin = time.perf_counter()
        for _ in speculation.warm_up(self.make, resolved, prompt):
            progress.update(task, advance=1, refresh=True)
        self.warm_up_s = time.perf_counter() - begin
        return resolved

    def _speed(self, policy: str, videos: list[Video]) -> dict[str, Any]:
        """The timing records of a policy's videos in one (docs/evaluation.md)."""
        card = self.pipeline.family.card
        return timing.pooled([
            timing.record(_timed(video.blocks), conditions(Request(video.prompt, seed=video.seed, router=policy), card))
            for video in videos if video.policy == policy
        ])  # fmt: skip

    def _report(self, policies: Sequence[str], videos: list[Video]) -> dict[str, Any]:
        found = [{**row, "speed": self._speed(row["policy"], videos)} for row in summary.rows(videos)]
        card, calibration = self.pipeline.family.card, self.calibration
        about = head("bench speculation", str(self.pipeline.family.device))
        where = {**about.pop("machine"), "date": about.pop("date"), "command": about.pop("command")}
        drafts = calibration.scores if calibration else {}
        scores = {name: [round(score, 6) for score in some] for name, some in drafts.items()}
        return {
            **about,
            "machine": where,
            "config": {
                "benchmark": "speculation",
                "model": card.name,
                "world": "shapes",
                "levels": list(self.wanted.levels),
                "seconds": self.make.seconds,
                "prompts": len({video.prompt for video in videos}),
                "seeds": max(row["seeds"] for row in found),
                "policies": list(policies),
                "asked": {"prompts": self.wanted.prompts, "seeds": self.wanted.seeds, "seconds": self.wanted.seconds,
                          "policies": list(self.policies)},
                "calibration_prompts": list(calibration.prompts) if calibration else [],
                "calibration_scores": scores.get(speculation.ACCEPT_ALL, []),
                "calibrations": scores,
                "warm_up_s": round(self.warm_up_s, 4),
                "quick": self.wanted.quick,
                "interrupted": self.interrupted,
            },
            "rows": found,
            "claims": summary.claims(found),
            "videos": [
                {"policy": v.policy, "prompt": v.prompt, "seed": v.seed, "score": round(v.score, 6),
                 "seconds": round(v.seconds, 6), "cpu_seconds": round(v.cpu_seconds, 6)}
                for v in videos
            ],
        }  # fmt: skip


# ---------------------------------------------------------------- what leaves


def as_text(report: dict[str, Any]) -> str:
    """The report as JSON: readable above, one video a line below."""
    above = json.dumps({**report, "videos": []}, indent=1, allow_nan=False)
    lines = ",\n  ".join(json.dumps(video, allow_nan=False) for video in report["videos"])
    return above.removesuffix('"videos": []\n}') + f'"videos": [\n  {lines}\n ]\n}}\n'


def _progress() -> Progress:
    """Refreshed by hand, between videos: no thread of its own disturbs what is timed."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=errors, auto_refresh=False,
    )  # fmt: skip


def show(report: dict[str, Any]) -> None:
    """The table and the claims on stdout."""
    console = stdout(WIDTH)
    config = report["config"]
    table = Table(
        title=f"{config['model']}: {config['prompts']} prompts, {config['seeds']} seeds, {config['seconds']} s"
    )
    table.add_column("policy", no_wrap=True)
    for name in ("speed-up", "score", "retention", "95 %", "kept", "s/video", "target", "drafter"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["rows"]:
        table.add_row(row["policy"], f"{row['speedup']:.2f}", *_cells(row))
    console.print(table)
    for claim in report["claims"]:
        said = "reached" if claim["reached"] else "not reached"
        shown = f" ({claim['policy']})" if claim["policy"] else ""
        console.print(f"{said}: {claim['claim']}{shown}", markup=False, highlight=False, soft_wrap=True)


def _cells(row: dict[str, Any]) -> Iterable[str]:
    ends = row["retention_ci95"]
    yield f"{row['quality']:.3f}"
    yield "-" if row["retention"] is None else f"{row['retention']:.3f}"
    yield f"{ends[0]:.3f}-{ends[1]:.3f}" if ends else "-"
    yield "-" if row["accept_rate"] is None else f"{row['accept_rate']:.2f}"
    yield f"{row['seconds_per_video']:.2f}"
    yield f"{row['target_calls']:.1f}"
    yield f"{row['drafter_calls']:.1f}"
