"""The registry of cache policies: a spec string in, a policy out, and the past that a policy lives in.

Knows: names. Does not know: what a policy does, how a spec string is read.
"""

from __future__ import annotations

from collections.abc import Callable

from arvid.caches.bank import Bank
from arvid.caches.coarse import Coarse
from arvid.caches.control import Chance
from arvid.caches.convolved import Convolved, Neighbour
from arvid.caches.deep import Deep
from arvid.caches.full import Full
from arvid.caches.headwise import Headwise
from arvid.caches.packed import Pack
from arvid.caches.per_level import LevelStore
from arvid.caches.policy import Policy
from arvid.caches.positions import Bounded
from arvid.caches.route import Route
from arvid.caches.sink import Sink
from arvid.caches.store import Store
from arvid.caches.window import Window
from arvid.types import Past, Positions

POLICIES: dict[str, Callable[..., Policy]] = {
    "bank": Bank,
    "coarse": Coarse,
    "conv": Convolved,
    "deep": Deep,
    "full": Full,
    "headwise": Headwise,
    "neighbour": Neighbour,
    "pack": Pack,
    "random": Chance,
    "route": Route,
    "sink": Sink,
    "window": Window,
}
"""Name of a policy in a spec string (`window:frames=9,sink=3`) and what builds it."""


def remember(policy: Policy, block: int, positions: Positions | None = None, longest: int = 0) -> Past:
    """An empty past under a policy: one store, or one per noise level where the policy asks for that. `longest` is the
    number of frames of the longest move, which may be several blocks in one pass (0: a move is a block).

    Raises ValueError for positions that have no room for such a move and what of the past it may read.
    """
    if isinstance(positions, Bounded):
        positions.check(policy.reach, longest or block)
    if policy.per_level:
        return LevelStore(lambda: Store(policy, block, positions))
    return Store(policy, block, positions)
