"""The registry of cache policies: a spec string in, a policy out.

Knows: names. Does not know: what a policy does, how a spec string is read.
"""

from __future__ import annotations

from collections.abc import Callable

from arvid.caches.full import Full
from arvid.caches.store import Policy
from arvid.caches.window import Window

POLICIES: dict[str, Callable[..., Policy]] = {"full": Full, "window": Window}
"""Name of a policy in a spec string (`window:frames=9,sink=3`) and what builds it."""
