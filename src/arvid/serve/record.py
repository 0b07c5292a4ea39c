"""What a live session has made: fragments in a file, and an index of them that can be cut back.

Knows: where each block's fragment lies and when it is shown. Does not know: what is in a fragment, who wants it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Piece:
    """The fragment of a block: the second at which it begins and how long it lasts, its bytes in the file, and what is
    told about it."""

    block: int
    second: float
    seconds: float
    place: int
    size: int
    told: dict[str, Any]

    @property
    def end(self) -> float:
        """The second at which it ends."""
        return self.second + self.seconds


class Record:
    """Pieces in order, block 0 first. Safe for use by several threads: one that writes and others that read.

    Its size on disk is that of the longest version of the video, however often somebody went back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w+b")
        self._lock = threading.Lock()
        self._pieces: list[Piece] = []
        self.version = 0

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of them."""
        with self._lock:
            return tuple(self._pieces)

    @property
    def end(self) -> float:
        """The second up to which there is something."""
        with self._lock:
            return self._pieces[-1].end if self._pieces else 0.0

    def add(self, block: int, second: float, seconds: float, data: bytes, told: dict[str, Any]) -> None:
        """Write the next block. Raises ValueError when another one would be next."""
        with self._lock:
            if block != len(self._pieces):
                raise ValueError(f"block {block} for a record of {len(self._pieces)} blocks; write the next one")
            place = self._pieces[-1].place + self._pieces[-1].size if self._pieces else 0
            os.pwrite(self._file.fileno(), data, place)
            self._pieces.append(Piece(block, second, seconds, place, len(data), told))

    def read(self, block: int) -> tuple[int, Piece, bytes] | None:
        """The version, and a block in it; None when there is no such block now."""
        with self._lock:
            if block >= len(self._pieces):
                return None
            piece = self._pieces[block]
            return self.version, piece, os.pread(self._file.fileno(), piece.size, piece.place)

    def cut(self, block: int) -> None:
        """Forget a block and all behind it: from there on it is another version."""
        with self._lock:
            place = self._pieces[block].place if block < len(self._pieces) else None
            del self._pieces[block:]
            self.version += 1
            if place is not None:
                os.ftruncate(self._file.fileno(), place)

    def at(self, second: float) -> int:
        """The block that is shown at a second; the next one to come when that is beyond the end."""
        with self._lock:
            return sum(piece.end <= second + 1e-6 for piece in self._pieces)

    def close(self) -> None:
        """Remove the file."""
        with self._lock:
            self._file.close()
            self._pieces.clear()
        self.path.unlink(missing_ok=True)
