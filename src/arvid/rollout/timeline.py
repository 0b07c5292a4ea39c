"""What is asked for when: prompts by the second, the block each change falls on, and the condition of every block.

Knows: entries and their file (YAML or JSON), block boundaries, how one embedding passes into the next. Does not know:
pasts (rollout/steered.py re-runs and forgets), text encoders (it is handed one), frame rates.

    - at: 0
      prompt: a small red circle moves right
    - at: 4
      prompt: a small blue square moves right
      how: recache

Ways to change: `recache` runs the frames on view again under the new prompt (LongLive, 2509.22622), `keep` changes the
text alone, `flush` keeps the first and the last frame of the past and `jump` moves all of it far back in time for one
block (the KV flush and the RoPE cut of Infinity-RoPE, 2511.20649), `soft` passes from one embedding to the other over
`blocks` blocks (IAMFlow, 2605.18733), `cut` begins a scene that sees nothing before it.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from arvid.types import Act, Condition, Plan, Span

RECACHE, KEEP, FLUSH, SOFT, CUT, JUMP = "recache", "keep", "flush", "soft", "cut", "jump"
WAYS = (CUT, FLUSH, JUMP, KEEP, RECACHE, SOFT)
TEXTS_KEPT = 8
LONGEST = 5
"""Blocks of a soft change between prompts that have nothing in common (IAMFlow, 2605.18733: 3 to 15 frames)."""


@dataclass(frozen=True)
class Entry:
    """From second `at` on the video shows `prompt`; `how` names the way there, `blocks` how long a soft one takes (0: 1
    to LONGEST, the longer the farther apart the prompts' embeddings are).

    Raises ValueError for an empty prompt, an unknown way, and numbers below 0.
    """

    at: float
    prompt: str
    how: str = RECACHE
    blocks: int = 3

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError(f"the prompt at {self.at:g} s is empty; say what the video shows from there")
        if self.how not in WAYS:
            raise ValueError(f"unknown transition {self.how!r} at {self.at:g} s; known: {', '.join(WAYS)}")
        if not (math.isfinite(self.at) and self.at >= 0):
            raise ValueError(f"a change at {self.at:g} s; it must come at 0 s or later")
        if self.blocks < 0:
            raise ValueError(
                f"blocks={self.blocks} at {self.at:g} s; a soft transition takes at least 1 block (0: as many as the "
                "prompts are apart)"
            )


@dataclass(frozen=True)
class Change:
    """An entry that found its place: it holds from latent frame `frame` on, where block `block` begins. `live` tells a
    change that was asked for while the video was being made from one of a timeline."""

    frame: int
    block: int
    prompt: str
    how: str
    blocks: int = 3
    live: bool = False

    def weight(self, step: int) -> float:
        """How much of its embedding the `step`-th block from here shows: all at once, or for a soft change a cosine
        ramp with `blocks` blocks strictly between the old embedding and the new one."""
        if self.how != SOFT or step >= self.blocks:
            return 1.0
        return (1 - math.cos(math.pi * (step + 1) / (self.blocks + 1))) / 2


# ---------------------------------------------------------------- the file


def read(path: Path) -> tuple[Entry, ...]:
    """The entries of a timeline file (.json, else YAML).

    Raises ValueError when it is missing, is neither, or holds anything but entries in the order of their seconds.
    """
    if not path.is_file():
        raise ValueError(f"no timeline {path}; give a YAML or JSON file with a list of entries (at, prompt, how)")
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); write YAML or JSON") from error
    return parse(found, str(path))


def parse(found: Any, name: str = "the timeline") -> tuple[Entry, ...]:
    """Entries from plain data: a list of mappings with `at`, `prompt` and perhaps `how` and `blocks`.

    Raises ValueError naming the entry that is wrong.
    """
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name} holds no list of entries; write for example: - {{at: 4, prompt: a blue square}}")
    entries = tuple(_entry(item, f"entry {number} of {name}") for number, item in enumerate(found, 1))
    _check_order(entries, name)
    return entries


def _check_order(entries: Sequence[Entry], name: str = "the timeline") -> None:
    for number, (earlier, later) in enumerate(pairwise(entries), 2):
        if later.at <= earlier.at:
            raise ValueError(
                f"entry {number} of {name} is at {later.at:g} s, the one before at {earlier.at:g} s; sort them by "
                "`at`, no two at one second"
            )


KINDS: dict[str, tuple[type, ...]] = {"at": (int, float), "prompt": (str,), "how": (str,), "blocks": (int,)}


def _entry(item: Any, where: str) -> Entry:
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {item!r}; write at, prompt and how as `name: value`")
    known = [field.name for field in fields(Entry)]
    if strange := [str(key) for key in item if key not in known]:
        raise ValueError(f"{where} has {', '.join(strange)}; known: {', '.join(known)}")
    if missing := [name for name in ("at", "prompt") if name not in item]:
        raise ValueError(f"{where} lacks {' and '.join(missing)}; an entry needs at (seconds) and prompt")
    for name, value in item.items():
        if not isinstance(value, KINDS[name]) or isinstance(value, bool):
            wanted = "text" if KINDS[name] == (str,) else "a number" if float in KINDS[name] else "a whole number"
            raise ValueError(f"{where}: {name} is {value!r}; expected {wanted}")
    try:
        return Entry(**item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


# ---------------------------------------------------------------- the place of a change


def place(
    entries: Sequence[Entry], prompt: str, plan: Plan, seconds: Sequence[float], length: float
) -> tuple[Change, ...]:
    """The changes of a plan, the first of them what it begins with. `seconds` says when each move begins to be seen,
    `length` is the whole video's. A change is applied by the first block that begins at its second or later.

    Raises ValueError for entries that are not in the order of their seconds, a beginning without or with two prompts, a
    change at or beyond the end or after the last block began, and two changes that fall on one block.
    """
    _check_order(entries)
    opening = [entry.prompt for entry in entries if entry.at == 0] or [prompt]
    if prompt.strip() and opening[0] != prompt:
        raise ValueError(f"prompt {prompt!r} and a timeline that begins with {opening[0]!r}; give one of them")
    if not opening[0].strip():
        raise ValueError("the prompt is empty; say what the video shows, or give a timeline with an entry at 0 s")
    changes = [Change(plan[0].span.start, plan[0].index, opening[0], KEEP)]
    for entry in entries:
        if entry.at == 0:
            continue
        if entry.at >= length:
            raise ValueError(
                f"a change at {entry.at:g} s lies beyond the end of a video of {length:g} s; make it longer"
            )
        at = next((i for i, second in enumerate(seconds) if second >= entry.at - 1e-6), None)
        if at is None:
            raise ValueError(
                f"a change at {entry.at:g} s comes after the last block began ({seconds[-1]:g} s); move it or make the "
                "video longer"
            )
        change = Change(plan[at].span.start, plan[at].index, entry.prompt, entry.how, entry.blocks)
        if change.frame <= changes[-1].frame:
            raise ValueError(
                f"the change at {entry.at:g} s falls on block {change.block}, as the one before does; leave at least a "
                "block between them"
            )
        changes.append(change)
    return tuple(changes)


def whole(prompt: str) -> tuple[Act, ...]:
    """How a prompt is read where nothing is known of stories: as one act."""
    return (Act(prompt),)


def spread(acts: Sequence[Act], seconds: Sequence[float], length: float) -> tuple[Entry, ...]:
    """The timeline of acts that share a video of `length` seconds equally. Each begins with the move that is seen
    (`seconds`) nearest to its time: a new scene by a cut, anything else by RECACHE.

    Raises ValueError for more acts than moves.
    """
    if len(acts) > len(seconds):
        raise ValueError(
            f"the prompt tells of {len(acts)} acts, the video has room for {len(seconds)} "
            f"({length:g} s in moves of whole blocks); make it longer, or tell fewer"
        )
    at, entries = 0, [Entry(0, acts[0].prompt)]
    for number, act in enumerate(acts[1:], 1):
        free = range(at + 1, len(seconds) - len(acts) + number + 1)
        at = min(free, key=lambda move: abs(seconds[move] - length * number / len(acts)))
        entries.append(Entry(seconds[at], act.prompt, CUT if act.cut else RECACHE))
    return tuple(entries)


# ---------------------------------------------------------------- the condition of a block

Memo = tuple[Change, int, Condition] | None


class Director:
    """The `Conditioner` of a rollout: the prompt in force at a block, the same object while nothing changes.

    `script` holds the changes, the first of them from the beginning; one that was asked for live overrides that of a
    timeline at the same frame. `encode` embeds a prompt [1, L, D]; `block` is the number of latent frames a step of a
    soft change lasts.
    """

    def __init__(self, script: tuple[Change, ...], encode: Callable[[str], Tensor], block: int) -> None:
        self.script = script
        self._encode, self._block = encode, block
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._now: Memo = None
        self._found: tuple[Sequence[Change], Tensor | None] = ((), None)

    def at(self, span: Span) -> Condition:
        """The condition of the block that begins where `span` does."""
        changes, number = self._until(span.start)
        change = changes[number]
        steps = self._soft(changes, number) if change.how == SOFT else 0
        step = min(self._step(change, span.start), steps)
        if self._now is None or self._now[:2] != (change, step):
            condition = Condition(change.prompt, self._text(changes, number, span.start))
            self._now = (change, step, condition)
        return self._now[2]

    def begins(self, frame: int) -> Change | None:
        """The change that is applied where latent frame `frame` begins; never the first, which changes nothing."""
        changes, number = self._until(frame)
        return changes[number] if number and changes[number].frame == frame else None

    def until(self, frame: int) -> list[Change]:
        """The changes that have been in force up to a frame, in order."""
        changes, number = self._until(frame)
        return changes[: number + 1]

    def add(self, change: Change) -> None:
        """Ask for something else from a frame on; it replaces what was asked for live at the same frame."""
        asked = (change.frame, change.live)
        self.script = (*(other for other in self.script if (other.frame, other.live) != asked), change)

    def snapshot(self) -> Memo:
        """The condition at hand, as a value that `restore` brings back: blocks that wait to be written hold it, and
        must find the same object in use. The script is not part of it."""
        return self._now

    def restore(self, snapshot: Memo) -> None:
        """Go back to a snapshot."""
        self._now = snapshot

    def _until(self, frame: int) -> tuple[list[Change], int]:
        """The changes in order, and the place of the one in force at a frame."""
        ordered = sorted(self.script, key=lambda change: (change.frame, change.live))
        changes = list({change.frame: change for change in ordered}.values())
        return changes, max((place for place, change in enumerate(changes) if change.frame <= frame), default=0)

    def _step(self, change: Change, frame: int) -> int:
        return max(0, frame - change.frame) // self._block

    def _text(self, changes: list[Change], number: int, frame: int) -> Tensor:
        """The embedding that change `number` has reached at `frame`; a change that interrupts a soft one goes on from
        where that one stood."""
        weight = self._weight(changes, number, frame)
        if weight == 1:
            return self._embedded(changes[number].prompt)
        return torch.lerp(self._before(changes, number), self._embedded(changes[number].prompt), weight)

    def _weight(self, changes: list[Change], number: int, frame: int) -> float:
        """How much of the embedding of change `number` there is at `frame`."""
        change, steps = changes[number], self._soft(changes, number)
        return replace(change, blocks=steps).weight(self._step(change, frame)) if number else 1.0

    def _before(self, changes: list[Change], number: int) -> Tensor:
        """The embedding that change `number` found where it began. The last answer is kept with the changes it rests
        on, so that in a chain in which each change interrupts the one before only one is new."""
        known, found = self._found
        first = number
        while not (first + 1 == len(known) and list(known) == changes[: first + 1]):
            if self._weight(changes, first - 1, changes[first].frame) == 1:
                found = self._embedded(changes[first - 1].prompt)
                break
            first -= 1
        assert found is not None
        for place in range(first, number):
            new, weight = self._embedded(changes[place].prompt), self._weight(changes, place, changes[place + 1].frame)
            found = torch.lerp(found, new, weight)
        self._found = tuple(changes[: number + 1]), found
        return found

    def _soft(self, changes: list[Change], number: int) -> int:
        """How many blocks a change takes if it is soft: as many as were asked for, or by the angle between the means of
        the two prompts' embeddings."""
        change = changes[number]
        if change.how != SOFT or change.blocks or not number:
            return change.blocks
        old, new = (self._embedded(changes[place].prompt).float().sum(1) for place in (number - 1, number))
        apart = 1 - float(torch.nn.functional.cosine_similarity(old, new).mean())
        return 1 + round(min(1.0, max(0.0, apart)) * (LONGEST - 1))

    def _embedded(self, prompt: str) -> Tensor:
        if prompt not in self._texts:
            self._texts[prompt] = self._encode(prompt)
            if len(self._texts) > TEXTS_KEPT:
                self._texts.popitem(last=False)
        return self._texts[prompt]
