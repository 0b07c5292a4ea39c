"""The table of the speculation benchmark: one row per policy, and what the rows say about the bar.

Knows: which number a column holds, which policy a row is compared with, what the bar is. Does not know: how the
videos were made or marked, how a table is shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from arvid.evals.speculation import TARGET, BlockRun, Video, option_of, router_of
from arvid.evals.statistics import Interval, PairedBootstrap

DRAFT, FIRST, RANDOM = "draft", "first", "random"
KEPT = frozenset({DRAFT, "verified"})
"""Sources of a block that is a draft, or the target's view of one that was good enough."""
BARS = ((1.9, 0.98), (2.4, 0.957))
"""(speed-up, retention) that one policy shall reach together."""
BASELINES = frozenset({TARGET, DRAFT, FIRST, RANDOM})
"""Routers whose rows cannot show that a bar is reached: they neither judge nor mend nor plan."""

Row = dict[str, Any]
ByPolicy = dict[str, list[Video]]


def rows(videos: Sequence[Video]) -> list[Row]:
    """One row per policy, in the order in which they first appear.

    Raises ValueError when there is no video by `target` or policies differ in the videos they made.
    """
    made = _by_policy(videos)
    if TARGET not in made:
        raise ValueError(f"no video by {TARGET!r} among {len(videos)} videos; every number is relative to it")
    rounds = [(video.prompt, video.seed) for video in made[TARGET]]
    for policy, some in made.items():
        if [(video.prompt, video.seed) for video in some] != rounds:
            raise ValueError(f"{policy!r} made {len(some)} videos, {TARGET!r} {len(rounds)}; keep complete rounds only")
    bootstrap = PairedBootstrap([prompt for prompt, _ in rounds])
    found = [_row(policy, some, made[TARGET], bootstrap) for policy, some in made.items()]
    for row in found:
        _compare(row, found, made, bootstrap)
    return found


def _by_policy(videos: Sequence[Video]) -> ByPolicy:
    """Videos by policy, in the order they were made."""
    made: ByPolicy = {}
    for video in videos:
        made.setdefault(video.policy, []).append(video)
    return made


def _row(policy: str, videos: list[Video], target: list[Video], bootstrap: PairedBootstrap) -> Row:
    seconds, baseline = [v.seconds for v in videos], [v.seconds for v in target]
    speedup = bootstrap.ratio(baseline, seconds)
    cpu = bootstrap.ratio([v.cpu_seconds for v in target], [v.cpu_seconds for v in videos])
    retention = bootstrap.ratio([v.score for v in videos], [v.score for v in target])
    blocks = [block for video in videos for block in video.blocks]
    scored = [block for block in blocks if block.score is not None]
    times = [block.seconds for block in blocks]
    tau = float(option_of(policy, "tau") or "nan")
    return {
        "policy": policy,
        "tau": tau if math.isfinite(tau) else None,
        "prompts": len({v.prompt for v in videos}),
        "seeds": max(Counter(v.prompt for v in videos).values()),
        "speedup": _short(speedup.value),
        "quality": _short(float(np.mean([v.score for v in videos]))),
        "retention": _short(retention.value),
        "retention_ci95": retention.ci95,
        "accept_rate": _share(blocks),
        "accept_rate_scored": _share(scored),
        "first_frame_s": _short(float(np.mean([v.blocks[0].seconds for v in videos]))),
        "p50_block_s": _short(float(np.quantile(times, 0.5))),
        "p95_block_s": _short(float(np.quantile(times, 0.95))),
        "target_calls": _passes(blocks, ("target", "target_commit"), len(videos)),
        "drafter_calls": _passes(blocks, ("drafter", "drafter_commit"), len(videos)),
        "target_commits": _passes(blocks, ("target_commit",), len(videos)),
        "drafter_commits": _passes(blocks, ("drafter_commit",), len(videos)),
        "speedup_ci95": speedup.ci95,
        "speedup_median": _short(float(np.median(np.array(baseline) / np.array(seconds)))),
        "speedup_cpu": _short(cpu.value),
        "seconds_per_video": _short(float(np.mean(seconds))),
        "stage_seconds": _mean_of([block.stages for block in blocks], len(videos)),
        "sources": dict(sorted(Counter(block.source for block in blocks).items())),
        "attributes": _mean_of([v.world.attributes for v in videos], len(videos)),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _share(blocks: list[BlockRun]) -> float | None:
    """The fraction of blocks that stayed drafts, seen by nobody or passed by a judge; None of none."""
    return _short(sum(block.source in KEPT for block in blocks) / len(blocks)) if blocks else None


def _passes(blocks: list[BlockRun], names: tuple[str, ...], videos: int) -> float | None:
    """Model passes of these names per video."""
    return _short(sum(block.passes.get(name, 0) for block in blocks for name in names) / videos)


def _mean_of(parts: Sequence[dict[str, float]], count: int) -> dict[str, float]:
    """Sums of each key over `parts`, divided by `count`."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: round(sum(part.get(name, 0.0) for part in parts) / count, 6) for name in names}


# ---------------------------------------------------------------- comparisons


def is_rival(policy: str) -> bool:
    """Whether a policy is the target alone made cheaper (fewer passes, no clean commits)."""
    return router_of(policy) == TARGET and policy != TARGET


def _rival(row: Row, found: list[Row]) -> str | None:
    """The fastest cheaper target that is at most as fast as a row; the target itself when there is none."""
    slower = [other for other in found if is_rival(other["policy"]) and other["speedup"] <= row["speedup"]]
    return str(max(slower, key=lambda other: other["speedup"])["policy"]) if slower else TARGET


def _compare(row: Row, found: list[Row], made: ByPolicy, bootstrap: PairedBootstrap) -> None:
    """Add the paired differences in world score to `first` and to the rival."""
    scores = {policy: [v.score for v in videos] for policy, videos in made.items()}
    own = scores[row["policy"]]
    rival = None if router_of(row["policy"]) == TARGET else _rival(row, found)
    other = None if row["policy"] == FIRST or FIRST not in scores else FIRST
    to_first = bootstrap.difference(own, scores[other]) if other else Interval(None)
    to_rival = bootstrap.difference(own, scores[rival]) if rival else Interval(None)
    row["diff_to_first"], row["diff_to_first_ci95"] = _short(to_first.value), to_first.ci95
    row["rival"], row["rival_diff"], row["rival_diff_ci95"] = rival, _short(to_rival.value), to_rival.ci95
    chance = _chance(row, found, scores)
    to_chance = Interval(None) if chance is None else bootstrap.difference(own, chance)
    row["diff_to_random"], row["diff_to_random_ci95"] = _short(to_chance.value), to_chance.ci95


def _chance(row: Row, found: list[Row], scores: dict[str, list[float]]) -> list[float] | None:
    """What drafts kept by chance would have scored, video by video, if as many were kept as by a row: on the line
    between the two random rows that keep a little less and a little more. None where there are none."""
    known = sorted(
        (other["accept_rate"], other["policy"]) for other in found
        if router_of(other["policy"]) == RANDOM and other["accept_rate"] is not None
    )  # fmt: skip
    share = row["accept_rate"]
    if share is None or router_of(row["policy"]) == RANDOM:
        return None
    for (low, fewer), (high, more) in pairwise(known):
        if low <= share <= high and high > low:
            weight = (share - low) / (high - low)
            pairs = zip(scores[fewer], scores[more], strict=True)
            return [(1 - weight) * less + weight * further for less, further in pairs]
    return None


# ---------------------------------------------------------------- what the rows say


def claims(found: Sequence[Row]) -> list[Row]:
    """The statements of the bar, each with whether a row reaches it and the row that shows it, or comes nearest."""
    ours = [row for row in found if router_of(row["policy"]) not in BASELINES]
    return [*(_bar_claim(ours, speed, kept) for speed, kept in BARS), *_better_claims(found, ours)]


def _bar_claim(ours: list[Row], speed: float, kept: float) -> Row:
    reach = [row for row in ours if row["speedup"] >= speed and (row["retention"] or 0.0) >= kept]
    near = max(ours, key=lambda row: min(row["speedup"] / speed, (row["retention"] or 0.0) / kept), default=None)
    shown = max(reach, key=lambda row: row["retention"]) if reach else near
    sure = bool(reach) and any(row["retention_ci95"] and row["retention_ci95"][0] >= kept for row in reach)
    text = f"at least {speed}x at {100 * kept:g} % of the target's world score or more"
    return {**_claim(text, bool(reach), shown), "beyond_interval": sure}


def _better_claims(found: Sequence[Row], ours: list[Row]) -> list[Row]:
    """Better than `first`, than chance, than cheaper targets; "at its speed" means equally fast or faster."""
    first = next((row for row in found if row["policy"] == FIRST), None)

    def above_first(row: Row) -> bool:
        return row["diff_to_first_ci95"] is not None and row["diff_to_first_ci95"][0] > 0

    def as_fast_as_first(row: Row) -> bool:
        return first is not None and row["speedup"] >= first["speedup"]

    def above_rival(row: Row) -> bool:
        return row["rival"] != TARGET and _beats_rivals(row, found)

    to_first, to_rival = "diff_to_first", "rival_diff"
    tests: list[tuple[str, str, Callable[[Row], bool]]] = [
        ("better than first beyond its interval, at any speed", to_first, above_first),
        ("better than first beyond its interval, at its speed", to_first,
         lambda row: above_first(row) and as_fast_as_first(row)),
        ("better than the target with fewer steps beyond its interval, at its speed", to_rival, above_rival),
        ("better than first at any speed and than the target with fewer steps at its speed, beyond the intervals",
         to_rival, lambda row: above_first(row) and above_rival(row)),
        ("better than first and than the target with fewer steps, both at their speed, beyond the intervals",
         to_rival, lambda row: above_first(row) and above_rival(row) and as_fast_as_first(row)),
        ("better than random at equal acceptance, beyond its interval", "diff_to_random",
         lambda row: row["diff_to_random_ci95"] is not None and row["diff_to_random_ci95"][0] > 0),
    ]  # fmt: skip
    result = []
    for text, column, test in tests:
        reach = [row for row in ours if test(row)]
        result.append(_claim(text, bool(reach), _highest(reach or ours, column)))
    return result


def _highest(some: Sequence[Row], column: str) -> Row | None:
    """The row with the highest value in a column, rows without one left out."""
    return max((row for row in some if row[column] is not None), key=lambda row: float(row[column]), default=None)


def _beats_rivals(row: Row, found: Sequence[Row]) -> bool:
    """Above its rival beyond the interval, and no faster cheaper target scores as much: else the rival was the wrong
    one to look at."""
    if row["rival_diff_ci95"] is None or row["rival_diff_ci95"][0] <= 0:
        return False
    faster = [other for other in found if is_rival(other["policy"]) and other["speedup"] > row["speedup"]]
    return all(other["quality"] < row["quality"] for other in faster)


def _claim(text: str, reached: bool, row: Row | None) -> Row:
    """A claim with the numbers of the row it rests on."""
    keys = (
        "policy",
        "speedup",
        "retention",
        "retention_ci95",
        "diff_to_first_ci95",
        "diff_to_random_ci95",
        "rival",
        "rival_diff_ci95",
    )
    return {"claim": text, "reached": reached, **{key: row[key] if row else None for key in keys}}


def front(found: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in both speed-up and quality, slowest first."""
    best, kept = -1.0, []
    for row in sorted(found, key=lambda row: (-row["speedup"], -row["quality"])):
        if row["quality"] > best:
            best = row["quality"]
            kept.append(row)
    return kept[::-1]
