"""What is known about a video besides its frames: the report its maker left beside it, prompts and borders that a user
gives.

Knows: reports of `arvid generate` (docs/report.md: x.json beside x.mp4), files of prompts. Does not know: metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from arvid.evals import timing
from arvid.evals.clips import Clip, opened
from arvid.evals.suites import Suite


def described(path: Path) -> Clip:
    """A video with what the report beside it says: prompt, seed, where blocks begin, how long it took.

    Raises ValueError when the video cannot be read. A file beside it that is no report of it is passed over.
    """
    clip = opened(path)
    report = _report(path)
    if report is None:
        return clip
    config, rows = report["config"], report["blocks"]
    borders = list(accumulate(row["frames"] for row in rows))
    return replace(clip, prompt=config["prompt"], seed=config["seed"], starts=tuple(borders[:-1]), speed=_speed(report))


def _report(path: Path) -> Mapping[str, Any] | None:
    try:
        held = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        mine = held["kind"] == "generate" and Path(held["outputs"]["video"]).name == path.name
        complete = {"prompt", "seed"} <= held["config"].keys() and isinstance(held["blocks"], list)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return held if mine and complete else None


def _speed(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The timing record of a report; made of its blocks where it has none."""
    if report.get("speed"):
        return dict(report["speed"])
    config, blocks = report["config"], timing.blocks_of(report["blocks"])
    if not blocks:
        return None
    width, height = config.get("size") or (0, 0)
    conditions = timing.Conditions(
        config.get("model", ""), report.get("machine"), config.get("steps"), config.get("past", ""),
        config.get("router", ""), width, height, config.get("fps") or 0.0, config.get("seed"),
    )  # fmt: skip
    return timing.record(blocks, conditions)


def with_blocks(clip: Clip, lengths: Sequence[int], frames: int = 100_000) -> Clip:
    """A clip whose blocks have the lengths given; the last length repeats. Raises ValueError for a length below 1."""
    if not lengths or min(lengths) < 1:
        raise ValueError(f"blocks of {list(lengths)} frames; expected lengths from 1, such as 12 or 9+12")
    borders = [*accumulate(lengths)]
    borders += range(borders[-1] + lengths[-1], frames, lengths[-1])
    return replace(clip, starts=tuple(borders))


def blocks_of(clip: Clip, frames: int) -> list[int]:
    """The lengths of the blocks of a clip of so many frames, as `with_blocks` takes them: the last one repeats, and the
    end of the clip may cut it. Empty: not known."""
    if not clip.starts:
        return []
    borders = [0, *(start for start in clip.starts if start < frames), frames]
    found = [after - before for before, after in pairwise(borders)]
    if len(found) > 1 and found[-1] <= found[-2]:
        found.pop()
    while len(found) > 1 and found[-1] == found[-2]:
        found.pop()
    return found


def read_prompts(path: Path) -> dict[str, str] | list[str]:
    """Prompts by the name of the video (a JSON object of names or paths to prompts, as VBench takes it), or in the
    order of the videos (a text file, one per line). Raises ValueError when the file is neither."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        held = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the prompts in {path} ({error}); give one per line, or JSON") from error
    if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
        raise ValueError(f'{path} is no JSON object of file names and prompts; write {{"a.mp4": "a red ball"}}')
    return {Path(name).stem: prompt for name, prompt in held.items()}


def with_prompts(paths: Sequence[Path], prompts: Mapping[str, str] | Sequence[str]) -> dict[Path, str]:
    """The prompt of each video. Raises ValueError when there are not as many prompts in a row as videos."""
    if isinstance(prompts, Mapping):
        return {path: prompts[path.stem] for path in paths if path.stem in prompts}
    if len(prompts) != len(paths):
        raise ValueError(f"{len(prompts)} prompts for {len(paths)} videos; give one per video, sorted by name, or JSON")
    return dict(zip(paths, prompts, strict=True))


def of_suite(clip: Clip, suite: Suite) -> Clip:
    """A clip with the prompt and seed of the case it bears the name of, if it bears one."""
    case = next((case for case in suite.cases if case.name == clip.name), None)
    return clip if case is None else replace(clip, prompt=case.prompt, seed=case.seed)
