"""A bank of identities: old frames of those whom the prompt names are brought back.

Knows: which names a frame shows and which are wanted, how well a frame answers the prompt it was made under.
Does not know: prompts, how names are found in them (`arvid.rollout.entities`, which is told who the `reader` is),
models. After IAMFlow (2605.18733),
without its vision model: the score is that of the text alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arvid.caches.pieces import Piece, Pieces
from arvid.caches.policy import ByContent, Look, Moment, Told
from arvid.caches.route import mean_keys
from arvid.types import Asking, Memory


@dataclass(frozen=True)
class Bank(ByContent):
    """At most `frames` latent frames on view: the first `sink`, the `recent` last ones, and from the bank frames that
    together show as many of the wanted names as possible (greedy cover, ties by score, filled up by score). The best
    frame of each block that leaves the recent ones goes into the bank, which holds `bank` frames: over that, the worst
    goes whose names other frames show too. Of sink and bank every head reads the `top` frames with the highest
    product of mean key and mean query. Published: sink=3, recent=6, top=3, bank=6. `reader` is the directory of a
    transformers language model that finds names in prompts; without one they are found by rules."""

    frames: int = 9
    sink: int = 2
    recent: int = 5
    bank: int = 6
    top: int = 4
    reader: str = ""

    def __post_init__(self) -> None:
        if self.reader and not (Path(self.reader) / "config.json").is_file():
            raise ValueError(f"reader {self.reader} holds no config.json; give a transformers directory, or none")
        if self.sink < 0 or self.recent < 1 or self.brought < 1 or self.bank < self.brought or self.top < 1:
            raise ValueError(
                f"{self.frames} frames with sink {self.sink} and {self.recent} recent from a bank of {self.bank}, top "
                f"{self.top}; needs sink + recent < frames, bank >= frames - sink - recent and top >= 1"
            )

    @property
    def brought(self) -> int:
        """Frames of the bank on view."""
        return self.frames - self.sink - self.recent

    @property
    def room(self) -> int:
        """Everything it keeps."""
        return self.sink + self.bank + self.recent

    def note(self, frame: Memory, told: Told, place: int) -> tuple[Tensor, ...]:
        """Mean keys per layer, and the score: the product of the prompt's and the frame's mean keys at layer 0."""
        keys = mean_keys(frame)
        return (*keys, keys[0].new_zeros(()) if told.text is None else (told.text * keys[0]).float().sum(-1).mean())

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """The best of what leaves the recent frames goes into the bank."""
        sink, older, recent = self._split(past, moment)
        left = [piece for piece in older if piece.frames[0] >= moment.newest - self.recent]
        bank = [piece for piece in older if piece.frames[0] < moment.newest - self.recent]
        bank += [max(left, key=score)] if left else []
        while len(bank) > self.bank:
            shown = Counter(name for piece in bank for name in piece.about)
            spare = [piece for piece in bank if all(shown[name] > 1 for name in piece.about)]
            bank.remove(min(spare or bank, key=score))
        return (*sink, *sorted(bank, key=lambda piece: piece.frames), *recent)

    def look(self, layer: int, past: Pieces, moment: Moment, ask: Asking) -> Sequence[Look]:
        """Sink and what covers the wanted names, the best of them for each head, and the recent frames."""
        sink, bank, recent = self._split(past, moment)
        found = sorted([*sink, *cover(bank, moment.about, self.brought)], key=lambda piece: piece.frames)
        if len(found) <= self.top:
            return [(piece, None) for piece in (*found, *recent)]
        keys_NHD = torch.stack([piece.notes[layer] for piece in found]).float().mean(1)
        score_NH = (keys_NHD * ask.queries_BLHD.float().mean((0, 1))).sum(-1)
        heads_NH = torch.zeros_like(score_NH, dtype=torch.bool).scatter(0, score_NH.topk(self.top, 0).indices, True)
        return [*zip(found, heads_NH, strict=True), *((piece, None) for piece in recent)]

    def _split(self, past: Pieces, moment: Moment) -> tuple[Pieces, Pieces, Pieces]:
        sink = sum(piece.frames[0] < self.sink for piece in past)
        recent = sum(piece.frames[0] >= max(self.sink, moment.start - self.recent) for piece in past)
        return past[:sink], past[sink : len(past) - recent], past[len(past) - recent :]


def score(piece: Piece) -> float:
    """How well the piece answers the prompt it was made under."""
    return float(piece.notes[-1])


def cover(bank: Sequence[Piece], wanted: Iterable[str], count: int) -> list[Piece]:
    """At most `count` pieces: first greedily those that show most of the wanted names not yet shown, then by score."""
    missing, left, found = set(wanted), list(bank), list[Piece]()
    while left and len(found) < count:
        found.append(max(left, key=lambda piece: (len(missing.intersection(piece.about)), score(piece))))
        missing -= set(found[-1].about)
        left.remove(found[-1])
    return found
