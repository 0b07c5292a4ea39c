"""Blocks on their way from a session to whoever keeps them: in main memory, and with the events that belong to them.

Knows: that decoding may go on beside the next block, and then a block is handed out one block late. Does not know:
files, displays, what the events say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from arvid.models.running import AsideDecoder, held_back
from arvid.pipeline import Family
from arvid.types import Block, Listener


class Delivery:
    """Hands blocks on, `late` blocks after they were made, and tells `listeners` of each what happened while it was
    made. Is a `Listener` itself (see `arvid.types`)."""

    def __init__(self, listeners: tuple[Listener, ...], late: int = 0) -> None:
        self._told, self._late = listeners, late
        self._waiting: deque[list[tuple[str, dict[str, Any]]]] = deque()

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Who is to listen to the session."""
        return (self,) if self._late else self._told

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Keep what happens until its block is handed on."""
        if event == "begun":
            self._waiting.append([])
        self._waiting[-1].append((event, payload))

    def blocks(self, made: Iterable[Block]) -> Iterator[Block]:
        """The blocks with their frames in main memory: what had to be waited for was waited for in here."""
        for block in held_back(made, self._late):
            frames = block.frames_BTCHW.cpu()
            for event, payload in self._waiting.popleft() if self._waiting else ():
                for listener in self._told:
                    listener.on(event, payload)
            yield replace(block, frames_BTCHW=frames)


def lateness(family: Family, saved: bool) -> int:
    """Blocks that are to be under way when one is handed out: 1 where decoding has a stream of its own. A state that is
    `saved` is that of the last block, so nothing may be under way then."""
    return int(isinstance(family.decoder, AsideDecoder) and not saved)
