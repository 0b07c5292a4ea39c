"""The rows of the benchmark of the past: marks of videos become numbers with intervals, and claims about them.

Knows: means over prompts, slopes over blocks and over windows, what is compared with what. Does not know: how anything
was made or marked (`evals.memory`), who reads the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from arvid.evals.memory import FULL, RULES, SINK, Cell, Shape
from arvid.evals.metric import rise
from arvid.evals.statistics import Interval, PairedBootstrap

Row = dict[str, Any]
Marks = Mapping[str, Any]
RETAINED, ADOPTED = 0.95, 0.9
"""What the claims ask for: share of the score at 1x that is left, share of switches that are adopted."""
NOTHING = 0.0005
"""A rise of time per block by less than this share of it per block counts as none: 1 % over twenty blocks."""


def rows(
    cells: Sequence[Cell],
    prompts: Sequence[str],
    videos: Mapping[str, Sequence[Marks]],
    returns: Mapping[str, Sequence[float | None]],
    horizons: Sequence[int],
    shape: Shape,
) -> list[Row]:
    """A row per competitor and horizon; `videos` holds the marks of each competitor in the order of the prompts,
    `returns` how alike each scene was that came back."""
    bootstrap = PairedBootstrap(prompts)
    found = []
    for cell in cells:
        for horizon in horizons:
            found.append(_row(cell, videos[cell.key], returns.get(cell.key, ()), horizon, shape, bootstrap))
    for row in found:
        rival = _rival(found, row, shape)
        gap = bootstrap.difference(row["scores"], rival["scores"]) if rival and rival is not row else None
        row["over_sink"] = None if gap is None else _short(gap.value)
        row["over_sink_ci95"] = None if gap is None else gap.ci95
    return found


def _rival(found: Sequence[Row], row: Row, shape: Shape) -> Row | None:
    """The plain window with its sink at the same budget and horizon: at its own positions if it was measured there,
    with the cleanest past that was."""
    own = RULES[SINK].positions.format(trained=shape.trained)
    same = [
        other
        for other in found
        if other["policy"] == SINK
        and (other["budget_frames"], other["horizon"]) == (row["budget_frames"], row["horizon"])
    ]
    return min(same, key=lambda other: (other["positions"] != own, other["past_level"]), default=None)


def _row(
    cell: Cell, videos: Sequence[Marks], returns: Sequence[float | None], horizon: int, shape: Shape,
    bootstrap: PairedBootstrap,
) -> Row:  # fmt: skip
    blocks = horizon * shape.blocks
    scores = [float(np.mean(video["scores"][:horizon])) for video in videos]
    first = [video["scores"][0] for video in videos]
    world, kept = _mean(bootstrap, scores), bootstrap.ratio(scores, first)
    falls = [rise(video["scores"][:horizon]) / (horizon - 1) for video in videos] if horizon > 1 else []
    fall = _mean(bootstrap, falls) if falls else Interval(None)
    gaps = [video["difference"] for video in videos if video["difference"] is not None]
    back = [value for value in returns if value is not None]
    signals = [video["signals"][str(horizon)] for video in videos]
    return {
        "policy": cell.policy, "positions": cell.positions, "past": cell.past, "router": cell.router,
        "past_level": cell.level, "control": RULES[cell.policy.partition("+")[0]].control,
        "budget_frames": cell.budget or None, "horizon": horizon, "blocks": blocks, "prompts": len(videos),
        "max_diff_to_full": max(gaps, default=None),
        "bytes": max(int(video["bytes"][str(horizon)]) for video in videos),
        **timing([video["seconds"][:blocks] for video in videos], filled(cell, shape)),
        "world_score": _short(world.value), "world_score_ci95": world.ci95,
        "last_window_score": _short(float(np.mean([video["scores"][horizon - 1] for video in videos]))),
        "kept": _short(kept.value), "kept_ci95": kept.ci95,
        "score_slope": _short(fall.value), "score_slope_ci95": fall.ci95,
        "chunk_discontinuity": _average(signals, "seams"), "motion": _average(signals, "motion"),
        "drift": _average(signals, "drift"),
        "identity_return": _short(float(np.mean(back))) if back else None, "identity_scenes": len(back),
        "scores": [round(score, 6) for score in scores],
        "window_scores": [
            round(float(np.mean([video["scores"][w] for video in videos])), 6) for w in range(horizon)
        ],
    }  # fmt: skip


def filled(cell: Cell, shape: Shape) -> int:
    """The first block before which the past cannot grow any more; 1 for one without a limit."""
    return -(-cell.budget // shape.block) + 1


def timing(seconds: Sequence[Sequence[float]], first: int) -> Row:
    """Milliseconds per block, by the median from block `first` on, and how they rise per block: the slope of Theil and
    Sen over all videos, each taken off its own median, with its 95 % interval (Sen 1968). None where fewer than 6
    blocks are left."""
    part = [np.asarray(one[first:]) * 1000 for one in seconds]
    pooled = np.concatenate(part) if part else np.zeros(0)
    if not len(pooled):
        return {"ms_per_block": None, "ms_slope_per_block": None, "ms_slope_ci95": None}
    told = {"ms_per_block": _short(float(np.median(pooled)), 4)}
    if len(part[0]) < 6:
        return {**told, "ms_slope_per_block": None, "ms_slope_ci95": None}
    places = np.concatenate([np.arange(len(one)) for one in part])
    heights = np.concatenate([one - np.median(one) for one in part])
    slope, low, high = slope_of(places, heights)
    return {**told, "ms_slope_per_block": _short(slope, 6), "ms_slope_ci95": [round(low, 6), round(high, 6)]}


def slope_of(places: ArrayLike, heights: ArrayLike) -> tuple[float, float, float]:
    """The slope of Theil and Sen and its 95 % interval."""
    found = stats.theilslopes(np.asarray(heights, float), np.asarray(places, float), 0.95)
    return float(found.slope), float(found.low_slope), float(found.high_slope)


def _mean(bootstrap: PairedBootstrap, values: Sequence[float]) -> Interval:
    return bootstrap.difference(values, [0.0] * len(values))


def _average(signals: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    told = [value for one in signals if (value := one[name]) is not None]
    return _short(float(np.mean(told))) if told else None


def _short(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)


# ---------------------------------------------------------------- switching


def switching(trials: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row per competitor and way; a trial has `policy`, `past`, `positions`, `how`, `kind` (other or turned) and what
    was measured."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for trial in trials:
        groups.setdefault((trial["past"], trial["positions"], trial["how"]), []).append(trial)
    return [_switch(some) for some in groups.values()]


def _switch(trials: Sequence[Mapping[str, Any]]) -> Row:
    one = trials[0]
    other = [trial for trial in trials if trial["kind"] == "other"]
    same = [trial["identity"] for trial in trials if trial["kind"] == "turned" and trial["identity"] is not None]
    told = {
        "adopted": [float(trial["adopted"]) for trial in other],
        "adherence": [trial["adherence"] for trial in other],
        "identity_kept": same,
        "seam": [trial["seam"] for trial in trials],
        "continuity": [trial["continuity"] for trial in trials],
        "continuity_same_thing": [trial["continuity"] for trial in trials if trial["kind"] == "turned"],
        "ms_switch_block": [1000 * trial["seconds"] for trial in trials],
    }
    return {
        **{name: one[name] for name in ("how", "policy", "positions", "past")}, "trials": len(other),
        **{name: _short(float(np.mean(values))) if values else None for name, values in told.items()},
    }  # fmt: skip


# ---------------------------------------------------------------- claims


def claims(found: Sequence[Row], switches: Sequence[Row]) -> list[Row]:
    """Statements with `reached`, and the numbers they rest on."""
    if not found:
        return []
    longest = max(row["horizon"] for row in found)
    far = [row for row in found if row["horizon"] == longest]
    free = [row for row in far if not row["control"] and "+" not in row["policy"]]
    return [*_best(free, longest), *_controls(far, free, longest), *_time(far), *_adopts(switches)]


def _best(free: Sequence[Row], longest: int) -> list[Row]:
    if not free or longest == 1:
        return []
    best = max(free, key=lambda row: row["world_score"])
    ends = best["over_sink_ci95"]
    return [
        {
            "claim": f"at {longest}x the best training-free policy keeps {RETAINED:.0%} of its score at 1x",
            "reached": best["kept"] is not None and best["kept"] >= RETAINED, **_named(best),
            "numbers": {"kept": best["kept"], "kept_ci95": best["kept_ci95"], "world_score": best["world_score"]},
        },
        {
            "claim": f"at {longest}x it beats the plain window with its sink beyond the confidence interval",
            "reached": bool(ends and ends[0] > 0), **_named(best),
            "numbers": {"over_sink": best["over_sink"], "over_sink_ci95": ends},
        },
    ]  # fmt: skip


def _controls(far: Sequence[Row], free: Sequence[Row], longest: int) -> list[Row]:
    told = []
    for name in ("window", "random"):
        mine = [row for row in far if row["policy"] == name]
        if mine and free:
            top = max(mine, key=lambda row: row["world_score"])
            best = max(free, key=lambda row: row["world_score"])
            told.append({
                "claim": f"at {longest}x {name} at its best is below the best policy",
                "reached": top["world_score"] < best["world_score"], **_named(top),
                "numbers": {"world_score": top["world_score"], "best": best["world_score"]},
            })  # fmt: skip
    return told


def _time(far: Sequence[Row]) -> list[Row]:
    bounded = [row for row in far if row["budget_frames"] and row["ms_slope_ci95"]]
    if not bounded:
        return []
    worst = max(bounded, key=lambda row: row["ms_slope_per_block"] / row["ms_per_block"])
    flat = all(
        row["ms_slope_ci95"][0] <= 0 or row["ms_slope_per_block"] < NOTHING * row["ms_per_block"] for row in bounded
    )
    return [
        {
            "claim": "time per block does not rise where the past is bounded", "reached": flat, **_named(worst),
            "numbers": {name: worst[name] for name in ("ms_per_block", "ms_slope_per_block", "ms_slope_ci95")},
        }
    ]  # fmt: skip


def _adopts(switches: Sequence[Row]) -> list[Row]:
    return [
        {
            "claim": f"switching by recache shows the new prompt within two blocks in {ADOPTED:.0%} of trials",
            "reached": row["adopted"] is not None and row["adopted"] >= ADOPTED,
            "policy": row["policy"], "positions": row["positions"], "budget_frames": None, "past_level": None,
            "numbers": {name: row[name] for name in ("adopted", "trials", "identity_kept")},
        }
        for row in switches
        if row["how"] == "recache"
    ]  # fmt: skip


def _named(row: Row) -> Row:
    return {name: row[name] for name in ("policy", "positions", "budget_frames", "past_level")}


def full_and_best(found: Sequence[Row]) -> list[Row]:
    """Rows worth a curve: the longest horizon, one per policy (its best budget, positions and noise of the past)."""
    longest = max((row["horizon"] for row in found), default=0)
    best: dict[str, Row] = {}
    for row in (row for row in found if row["horizon"] == longest):
        if row["policy"] not in best or row["world_score"] > best[row["policy"]]["world_score"]:
            best[row["policy"]] = row
    return sorted(best.values(), key=lambda row: (row["policy"] != FULL, -row["world_score"]))
