"""How far back a block can be felt: what a walker has to keep of blocks that its past has not seen yet.

Knows: a policy's promise in frames, the number of layers through which an older frame can act on a younger one.
Does not know: keys, values, who made a block.

A block reads the frames its policy shows. The keys of those frames were made by looking at what they saw in turn, and
so on; but the keys of layer 0 are made without looking at all. So through L layers a frame acts on blocks at most L
views away, and what lies further back can be forgotten before it was ever written, without any effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arvid.caches.store import Policy
from arvid.types import Span


@dataclass(frozen=True)
class Reach:
    """How far back a model of `layers` layers feels under a policy. One that does not judge a frame by its index alone
    is found out by what it shows of fewer frames, and then everything is kept."""

    policy: Policy
    layers: int

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"a model of {self.layers} layers; give the number of layers that look at the past")

    def felt(self, spans: Sequence[Span], start: int) -> list[bool]:
        """Which of the blocks `spans` (in order, all before `start`) act on a block that begins at `start`."""
        frames = tuple(frame for span in spans for frame in range(span.start, span.stop))
        shown = edge = set(self.policy.visible(frames, start))
        felt: list[bool] = [False] * len(spans)
        for _ in range(self.layers):
            new = [
                place
                for place, span in enumerate(spans)
                if not felt[place] and not edge.isdisjoint(range(span.start, span.stop))
            ]
            for place in new:
                felt[place] = True
            if not new or all(felt):
                break
            older = ((spans[place].start, frames[: frames.index(spans[place].start)]) for place in new)
            edge = {frame for begin, before in older for frame in self.policy.visible(before, begin)}
        kept = tuple(f for span, on in zip(spans, felt, strict=True) if on for f in range(span.start, span.stop))
        return felt if set(self.policy.visible(kept, start)) == shown else [True] * len(spans)
