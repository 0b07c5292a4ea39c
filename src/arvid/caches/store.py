"""The past: what was committed, and which of it a block may read.

Knows: keys (unrotated) and values per frame, a policy that names the visible frames, snapshots, bytes.
Does not know: how keys are made or rotated, noise levels, what a block looks like.

Every commit is an immutable entry per frame, so a snapshot is a tuple of references and costs no copy. A policy is a
promise in frames: `visible(committed, start)` names what a block that begins at `start` may read. It must be
forgetful in one direction only: what a block may not read, no later block may read.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from arvid.types import Memory, Rotate, Span

Frames = dict[int, Memory]
"""Memory of single frames by frame index, in order of commit; entries are never changed in place."""


class Policy(Protocol):
    """Which committed frames a block may read."""

    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        """Of `committed` frames before `start`, those on view for the block that begins there, in order."""
        ...


class StoreView:
    """A view of some frames of the past (see `arvid.types.View`)."""

    def __init__(self, frames: Frames, rules: tuple[tuple[int, frozenset[int]], ...]) -> None:
        self._entries = frames
        self._rules = rules
        self._read: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the frames on view."""
        return tuple(self._entries)

    def read(self, layer: int, rotate: Rotate) -> tuple[Tensor, Tensor] | None:
        """Rotated keys and values [B, L, H, D] of a layer; gathered and rotated at the first pass of a block only."""
        if not self._entries:
            return None
        if layer not in self._read:
            keys = torch.cat([memory[layer][0] for memory in self._entries.values()], 1)
            values = torch.cat([memory[layer][1] for memory in self._entries.values()], 1)
            self._read[layer] = (rotate(keys, self.frames), values)
        return self._read[layer]

    def mask(self, frames: tuple[int, ...]) -> Tensor | None:
        """None for a single block (it sees all that is on view and itself); else which frame sees which."""
        if len(self._rules) == 1:
            return None
        keys = self.frames + frames
        starts = [start for start, _ in self._rules]
        rows = []
        for frame in frames:
            block = max(i for i, start in enumerate(starts) if start <= frame)
            end = starts[block + 1] if block + 1 < len(starts) else frames[-1] + 1
            seen = self._rules[block][1]
            rows.append([key in seen or starts[block] <= key < end for key in keys])
        return torch.tensor(rows)


class Store:
    """One model's past under a policy (see `arvid.types.Past`). `block` is the number of frames of a block."""

    def __init__(self, policy: Policy, block: int) -> None:
        self._policy = policy
        self._block = block
        self._frames: Frames = {}

    def view(self, span: Span) -> StoreView:
        """What the frames of `span` may read."""
        known = tuple(frame for frame in self._frames if frame < span.start)
        rules = []
        for start in range(span.start, span.stop, self._block):
            committed = known + tuple(range(span.start, start))
            rules.append((start, frozenset(self._policy.visible(committed, start))))
        seen = frozenset().union(*(frames for _, frames in rules))
        return StoreView({f: m for f, m in self._frames.items() if f < span.start and f in seen}, tuple(rules))

    def commit(self, span: Span, memory: Memory) -> None:
        """Remember the frames of `span` and forget what no later block may read. What was committed after
        `span.start` goes: it was made on a past that no longer holds. Keys and values are copied, so that a frame on
        hold does not keep the tensors of a whole pass alive.

        Raises ValueError when the tokens do not divide by the frames of the span.
        """
        tokens = memory[0][0].shape[1]
        if tokens % len(span):
            raise ValueError(f"{tokens} tokens do not divide into the {len(span)} frames of {span}; pass whole frames")
        each = tokens // len(span)
        frames = {frame: entry for frame, entry in self._frames.items() if frame < span.start}
        for place, frame in enumerate(range(span.start, span.stop)):
            part = slice(place * each, (place + 1) * each)
            frames[frame] = tuple((k[:, part].clone(), v[:, part].clone()) for k, v in memory)
        kept = frozenset(self._policy.visible(tuple(frames), span.stop))
        self._frames = {frame: entry for frame, entry in frames.items() if frame in kept}

    def snapshot(self) -> Frames:
        """The entries as they stand."""
        return dict(self._frames)

    def restore(self, snapshot: Frames) -> None:
        """Go back to a snapshot."""
        self._frames = dict(snapshot)

    @property
    def bytes(self) -> int:
        """Bytes of the keys and values on hold."""
        return sum(
            tensor.numel() * tensor.element_size()
            for memory in self._frames.values()
            for pair in memory
            for tensor in pair
        )
