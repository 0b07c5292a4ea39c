"""What a long run has measured so far, on disk, so that a killed run goes on.

Knows: a file of lines, one measurement each, behind a first line that says what they were made with. Does not know:
what is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Measurements by key. With a path they are written as they come, and those of an earlier run are there from the
    beginning; `made_with` is plain data that must be equal for them to count. Use it as a context.

    Raises ValueError for a file that was made with something else, or is no journal.
    """

    def __init__(self, path: Path | None, made_with: dict[str, Any]) -> None:
        self.path = path
        self._held: dict[str, Any] = {}
        lines = path.read_bytes().split(b"\n") if path is not None and path.is_file() else []
        whole = lines[:-1]
        if whole:
            self._read(whole, made_with)
        self._file = None
        if path is not None:
            self._file = path.open("r+b" if lines else "w+b")
            # A line that was being written when the run was killed goes.
            self._file.truncate(sum(len(line) + 1 for line in whole))
            self._file.seek(0, 2)
            if not whole:
                self._write({"made_with": made_with})

    def _read(self, lines: list[bytes], made_with: dict[str, Any]) -> None:
        try:
            entries = [json.loads(line) for line in lines]
            found = entries[0]["made_with"]
            self._held = {entry["key"]: entry["value"] for entry in entries[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is no journal of a run ({error}); remove it, or name another file"
            ) from error
        bent = sorted(name for name in {*found, *made_with} if found.get(name) != made_with.get(name))
        if bent:
            name = bent[0]
            raise ValueError(
                f"{self.path} was made with {name} {found.get(name)!r}, now it is {made_with.get(name)!r}; remove it "
                "to begin anew, or name another file"
            )

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __getitem__(self, key: str) -> Any:
        return self._held[key]

    def __len__(self) -> int:
        return len(self._held)

    def add(self, key: str, value: Any) -> None:
        """Keep a measurement; it is on disk when this returns."""
        self._held[key] = value
        self._write({"key": key, "value": value})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            self._file.flush()
