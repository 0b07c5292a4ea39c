"""Plans: which blocks, in which order, through which noise levels. A plan is data, made before the loop.

Knows: spans, levels, order. Does not know: models, pasts, who makes a block.
"""

from __future__ import annotations

from arvid.types import Move, Plan, Span


def sequential(
    frames: int, block: int, sigmas: tuple[float, ...], first: tuple[float, ...] | None = None, ahead: int = 1
) -> Plan:
    """Block after block, each through all levels before the next begins (Self-Forcing). `first` replaces the levels
    of block 0 (Causal Forcing++ gives it more steps). With `ahead`, every move behind block 0 is so many blocks. A
    last, shorter move covers what is left.

    Raises ValueError for no frames, an empty block, or levels that do not fall from above 0 to 0.
    """
    if frames < 1 or block < 1 or ahead < 1:
        raise ValueError(f"cannot plan {frames} frames in blocks of {block}, {ahead} at a time; all must be at least 1")
    starts = (0, *range(block, frames, ahead * block))
    plan = tuple(
        Move(index, Span(start, min(stop, frames)), first if first and index == 0 else sigmas)
        for index, (start, stop) in enumerate(zip(starts, (*starts[1:], frames), strict=True))
    )
    validate(plan)
    return plan


def validate(plan: Plan) -> None:
    """Every block's levels fall strictly and end at 0; spans follow each other without gap or overlap.

    Raises ValueError naming the first move that breaks a rule.
    """
    end = 0
    for move in plan:
        falls = all(a > b for a, b in zip(move.sigmas, move.sigmas[1:], strict=False))
        if len(move.sigmas) < 2 or not falls or move.sigmas[-1] != 0 or move.sigmas[0] > 1:
            raise ValueError(f"block {move.index}: levels {move.sigmas} must fall strictly from at most 1 to 0")
        if move.span.start != end or len(move.span) < 1:
            raise ValueError(f"block {move.index}: {move.span} does not follow frame {end}")
        end = move.span.stop
