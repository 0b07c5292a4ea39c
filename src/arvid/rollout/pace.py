"""How much mending a frame rate allows.

Knows: seconds and frames of the blocks so far. Does not know: scores, thresholds, who made a block.
"""

from __future__ import annotations

from statistics import median

from arvid.rollout.stage import Pace


def affordable(pace: Pace, fps: float, horizon: float) -> float:
    """The share of drafts, in [0, 1], that can be mended while `fps` pixel frames a second are held.

    A block is due in its own playing time, and in a part 1 / horizon of what the blocks behind the first are ahead (or
    behind, so that less is left); no more than `horizon` playing times are ever carried over, so that a slow start is
    forgotten. What drafting costs is what the recent blocks took without the target, before the first of them the
    seconds of this one so far. What mending costs is the target's time in those it mended, or else in the first block.
    """
    if pace.first is None:
        return 0.0
    last = pace.recent[-1] if pace.recent else pace.first
    playing = last.frames / fps
    ahead = pace.frames / fps - pace.seconds
    due = playing + min(max(ahead, -horizon * playing), horizon * playing) / horizon
    drafting = median([lap.seconds - lap.target for lap in pace.recent] or [pace.spent])
    mending = median([lap.target for lap in pace.recent if lap.target > 0] or [pace.first.target])
    if mending <= 0:
        return 1.0 if due > drafting else 0.0
    return min(max((due - drafting) / mending, 0.0), 1.0)
