"""Rows of a batch: lines of JSON that ask for one video each.

Knows: the fields of a row and what they mean, what is wrong with a line, the name of its video. Does not know: how a
video is made, what has been made before (cli/folder.py).

    {"prompt": "a small red circle moves right", "seconds": 2, "seed": 3}
    {"id": "blue", "timeline": [{"at": 0, "prompt": "a blue square"}, {"at": 2, "prompt": "a green star"}]}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arvid.cli.keeping import Start, start_of
from arvid.cli.options import size_of
from arvid.pipeline import Request
from arvid.rollout import timeline

TEXT, NUMBER, COUNT = "text", "a number", "a whole number"
FIELDS: dict[str, tuple[str, ...]] = {
    "prompt": (TEXT,), "id": (TEXT,), "seconds": (NUMBER,), "seed": (COUNT,), "router": (TEXT,), "memory": (TEXT,),
    "positions": (TEXT,), "noise": (TEXT,), "guard": (TEXT,), "size": (TEXT,), "scale": (COUNT,), "image": (TEXT,),
    "continue": (TEXT,), "timeline": (TEXT, "a list"),
}  # fmt: skip
"""What a row may say. `memory` is what `--memory` is, `image` and `continue` name files."""
KINDS: dict[str, tuple[type, ...]] = {TEXT: (str,), NUMBER: (int, float), COUNT: (int,), "a list": (list,)}
HALF = re.compile("[\ud800-\udfff]")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Row:
    """A line (counted from 1) as it was understood: the name of its video, what is asked for and what that begins with,
    how often frames are enlarged; or what is wrong with it."""

    line: int
    name: str
    request: Request | None = None
    start: Start | None = None
    scale: int = 0
    error: str = ""

    def mark(self, made_with: Mapping[str, str]) -> str:
        """The same for two rows that ask for the same video of the same models."""
        told = {"request": asdict(self.request) if self.request else None, "start": self.start and asdict(self.start)}
        plain = {**told, "scale": self.scale, **made_with}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def read_rows(text: str, beside: Path, defaults: Mapping[str, Any]) -> list[Row]:
    """The rows of a text, one for each line that is not empty; a line that is wrong is a row with an error. `defaults`
    holds fields that a line may leave out; files are looked for from the folder `beside`. Raises ValueError when there
    are no rows."""
    rows: list[Row] = []
    used: dict[str, int] = {}
    for line, found in enumerate(text.split("\n"), 1):
        if not found.strip():
            continue
        row = _row(line, found, beside, defaults)
        if not row.error and row.name in used:
            row = Row(line, f"{line:06d}", error=f"id {row.name!r} is that of line {used[row.name]}; give it another")
        used.setdefault(row.name, line)
        rows.append(row)
    if not rows:
        raise ValueError('no rows; write one JSON object per line, like {"prompt": "a small red circle"}')
    return rows


def _row(line: int, text: str, beside: Path, defaults: Mapping[str, Any]) -> Row:
    name = f"{line:06d}"
    try:
        found = _object(text)
        name = str(found.pop("id", name))
        if not ID.fullmatch(name):
            raise ValueError(f"id {name!r} cannot name a file; use letters, digits, dots, dashes and underscores")
        return _understood(line, name, {**defaults, **found}, beside)
    except (ValueError, OverflowError, RecursionError) as error:
        name = name if ID.fullmatch(name) else f"{line:06d}"
        return Row(line, name, error=" ".join(str(error).split()))


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"is no JSON ({error}); write one object per line") from error
    if not isinstance(found, dict):
        raise ValueError(f"is {type(found).__name__}, not an object; write " + '{"prompt": "..."}')
    for name, value in found.items():
        if name not in FIELDS:
            raise ValueError(f"unknown field {name!r}; known: {', '.join(FIELDS)}")
        if not _fits(value, FIELDS[name]):
            raise ValueError(f"{name} is {value!r}; expected {' or '.join(FIELDS[name])}")
    if HALF.search(json.dumps(found, ensure_ascii=False)):
        raise ValueError("holds half of a surrogate pair, which no file can hold; leave it out")
    return found


def _fits(value: Any, kinds: tuple[str, ...]) -> bool:
    return not isinstance(value, bool) and any(isinstance(value, KINDS[kind]) for kind in kinds)


def _understood(line: int, name: str, found: dict[str, Any], beside: Path) -> Row:
    entries = _entries(found.get("timeline", []), beside)
    prompt = found.get("prompt", "")
    if not prompt and entries and entries[0].at == 0:
        prompt = entries[0].prompt
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what the video shows, or begin the timeline at 0")
    request = Request(
        prompt.strip(), float(found.get("seconds", 5.0)), found.get("seed", 0), found.get("router", ""),
        found.get("memory", ""), size_of(found.get("size", "")), entries, found.get("guard", ""),
        found.get("positions", ""), found.get("noise", ""),
    )  # fmt: skip
    image, clip = (str(beside / found[kind]) if found.get(kind) else "" for kind in ("image", "continue"))
    scale = found.get("scale", 0)
    if scale < 0:
        raise ValueError(f"scale is {scale}; give 0 (as fits) or more")
    if not 0 <= request.seed < 2**63:
        raise ValueError(f"seed is {request.seed}; give 0 to 2**63 - 1")
    return Row(line, name, request, start_of(image, clip), scale)


def _entries(found: Any, beside: Path) -> tuple[timeline.Entry, ...]:
    if isinstance(found, str):
        return timeline.read(beside / found) if found else ()
    return timeline.parse(found) if found else ()
