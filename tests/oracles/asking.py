"""A layer of a pass without a model: random queries, keys that are not turned, and a note of where they would stand.

Knows: what a view may be asked. Does not know: any policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from arvid.caches.store import Store
from arvid.types import Memory, Past, Seen, Span

BLOCK, LAYERS, HEADS, SIZE, GRID = 3, 2, 2, 4, (4, 4)
TOKENS = GRID[0] * GRID[1]


@dataclass
class Plain:
    """An `Asking` that leaves keys as they are; `stood` holds the positions of frames or the places of tokens."""

    queries_BLHD: Tensor
    pair: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(1, 1, HEADS, SIZE),) * 2)
    grid: tuple[int, int] = GRID
    level: float = 0.0
    stood: list[Tensor] = field(default_factory=list)

    def __call__(self, keys_BLHD: Tensor, positions: tuple[float, ...]) -> Tensor:
        self.stood.append(torch.tensor(positions))
        return keys_BLHD

    def at(self, keys_BLHD: Tensor, places_L3: Tensor) -> Tensor:
        self.stood.append(places_L3)
        return keys_BLHD


def memory(seed: int, frames: int = BLOCK, layers: int = LAYERS, heads: int = HEADS, tokens: int = TOKENS) -> Memory:
    """Random keys and values of some frames."""
    draw = torch.randn(layers, 2, 1, frames * tokens, heads, SIZE, generator=torch.Generator().manual_seed(seed))
    return tuple((k, v) for k, v in draw)


def asks(seed: int, pairs: Memory, level: float = 0.0) -> list[Plain]:
    """What the layers of a pass over a block bring."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return [Plain(torch.randn(pair[0].shape, generator=generator), pair, level=level) for pair in pairs]


def advance(past: Past, start: int, blocks: int, seen: bool = True) -> None:
    """Commit random blocks, each after a pass has read its view."""
    for first in range(start, start + blocks * BLOCK, BLOCK):
        span, pairs = Span(first, first + BLOCK), memory(first)
        view = past.view(span)
        for layer, ask in enumerate(asks(first, pairs)):
            if seen:
                view.read(layer, ask)
        past.commit(span, pairs)


def read(store: Store, start: int, layer: int = 0, seed: int = 0) -> tuple[Seen | None, Plain]:
    """What a layer of the block at `start` reads, and what it asked."""
    ask = asks(seed, memory(start))[layer]
    return store.view(Span(start, start + BLOCK)).read(layer, ask), ask
