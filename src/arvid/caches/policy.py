"""What a policy of the past is: the one mechanism behind every way to keep, drop, merge and choose.

Knows: when a policy is asked and what it may answer. Does not know: any policy, how keys and values are stored or
rotated.

The store keeps pieces (`arvid.caches.pieces`) in order of time and asks its policy per block, never per step:

- `keep`, when a block is committed: the past with the new frames in, the past that stays out. It may drop pieces and
  put others in their place: packed, merged or thinned. This is the only place where anything is forgotten.
- `note`, right before, for every new frame: numbers to choose by later, such as a mean key.
- `look`, when a layer reads a view for the first time: which of the kept pieces this layer looks at, and with which
  heads. The queries of the block are at hand. Nothing is changed by looking.

A policy that speaks of whole frames says only which are `visible`, and the rest follows: `keep` drops the others, every
layer looks at what is left, and several blocks can be written in one masked pass. A policy that looks at content sets
`whole = False`; several blocks in one pass then share the choice made for the first of them. Whatever a policy drops,
no later block may read: that keeps the past bounded and a rollout independent of what follows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from arvid.caches.pieces import Piece, Pieces
from arvid.types import Asking, Memory, Span

Look = tuple[Piece, Tensor | None]
"""A piece, and which heads look at it (boolean [H], None: all)."""


@dataclass(frozen=True)
class Moment:
    """When a policy is asked: the block that begins at `start` comes next, frames from `newest` on have just been
    committed, frames have `grid` rows and columns of tokens ((0, 0): nobody has said), and the blocks that come are to
    show `about`."""

    start: int
    grid: tuple[int, int] = (0, 0)
    about: tuple[str, ...] = ()
    newest: int = 0


class Told:
    """What the last pass over a span has told: the queries of each layer, summed over the tokens of each frame
    [B, T, H, D], and the keys of the prompt at layer 0, their mean [B, H, D]. Empty where nobody has read."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.grid = (0, 0)
        self.queries: dict[int, Tensor] = {}
        self.text: Tensor | None = None

    def hear(self, layer: int, ask: Asking) -> None:
        """Take down what a layer brings."""
        self.grid = ask.grid
        self.queries[layer] = ask.queries_BLHD.unflatten(1, (len(self.span), -1)).sum(2)
        if layer == 0:
            self.text = ask.text[0].mean(1)


class Policy(ABC):
    """What is kept of the past and what of it a block may read."""

    whole = True
    """Pieces are whole frames, and all layers and heads see the same ones."""
    per_level = False
    """Every noise level has a past of its own (`arvid.caches.per_level`)."""
    reader = ""
    """Who reads prompts for it (see `arvid.rollout.entities.reader_of`)."""

    @property
    def room(self) -> int:
        """The most whole frames it keeps; 0 where it cannot say."""
        return 0

    @property
    def reach(self) -> int | None:
        """How many frames before a block the oldest one begins that it may read; None where nothing bounds that, as
        with a sink, or nobody has counted."""
        return None

    def check_files(self, layers: int, heads: int, channels: int) -> None:
        """Read the files that it names. Raises ValueError for one that cannot be read, or is not for a model of so many
        layers and heads, with so many channels in all heads together."""
        return

    @abstractmethod
    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        """Of `committed` frames before `start`, those that the block that begins there may read in any form, in order.
        What is hidden from a block is hidden from all later ones."""

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """The past that later blocks may read, given the past with the newest block in it. Pieces that are made here
        own their tensors."""
        frames = tuple(frame for piece in past for frame in piece.frames)
        kept = frozenset(self.visible(frames, moment.start))
        return tuple(piece for piece in past if kept.issuperset(piece.frames))

    def note(self, frame: Memory, told: Told, place: int) -> tuple[Tensor, ...]:
        """What to write down about a new frame, the one at `place` of its pass."""
        return ()

    def look(self, layer: int, past: Pieces, moment: Moment, ask: Asking) -> Sequence[Look]:
        """What a layer looks at, in order of time."""
        return [(piece, None) for piece in past]


class ByContent(Policy):
    """A policy that looks at keys and queries, or changes them: any frame may be on view in some form."""

    whole = False

    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        """All frames before `start`."""
        return tuple(frame for frame in committed if frame < start)

    @abstractmethod
    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """See `Policy.keep`."""
