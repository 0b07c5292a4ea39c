"""arvid: one engine for autoregressive video generation. It streams, steers and speculates.

Knows: the public names and the rooms they live in; loads them when they are asked for.
Does not know: how anything works.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arvid.pipeline import Family, Pipeline, Request, Result, load
    from arvid.rollout.timeline import Entry
    from arvid.types import Block, Condition, Move, Proposal, Span, Verdict

_ROOMS = {
    "Block": "types", "Condition": "types", "Move": "types", "Proposal": "types", "Span": "types", "Verdict": "types",
    "Family": "pipeline", "Pipeline": "pipeline", "Request": "pipeline", "Result": "pipeline", "load": "pipeline",
    "Entry": "rollout.timeline",
}  # fmt: skip

__all__ = [
    "Block",
    "Condition",
    "Entry",
    "Family",
    "Move",
    "Pipeline",
    "Proposal",
    "Request",
    "Result",
    "Span",
    "Verdict",
    "load",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its room (torch takes seconds to import; the command line's help should not wait)."""
    if name not in _ROOMS:
        raise AttributeError(f"arvid has no name {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"arvid.{_ROOMS[name]}"), name)
