"""One past per noise level: at every step of its walk, a block reads what the blocks before left at that step.

Knows: at which level a pass looks, one store per level. Does not know: policies, models, plans. After the neighbour
forcing of SoulX-LiveAct (2603.11746): as many pasts as steps, and no pass of their own to write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor

from arvid.caches.store import Store
from arvid.caches.view import StoreView
from arvid.types import Asking, Memory, Places, Rotate, Seen, Span

Brought = dict[float, dict[int, tuple[Tensor, Tensor]]]
"""Keys and values of the last pass at each level, by layer."""


def nearest(levels: Iterable[float], level: float) -> float:
    """The one nearest to `level`."""
    return min(levels, key=lambda known: abs(known - level))


class LevelView:
    """Views of all levels; the pass says which one it reads, and what it brings is kept for the commit. `empty` is a
    view of nothing, for the beginning."""

    def __init__(self, views: dict[float, StoreView], empty: StoreView) -> None:
        self._views = views
        self._one = next(iter(views.values()), empty)
        self.brought: Brought = {}

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the frames on view, the same at every level."""
        return self._one.frames

    def places(self, frames: tuple[int, ...]) -> Places:
        """Positions, the same at every level (see `arvid.types.Placed`)."""
        for view in self._views.values():
            view.places(frames)
        return self._one.places(frames)

    def read(self, layer: int, rotate: Rotate) -> Seen | None:
        """What the blocks before left at this level, or at the nearest level there is."""
        ask = cast(Asking, rotate)
        self.brought.setdefault(ask.level, {})[layer] = ask.pair
        return self._views[nearest(self._views, ask.level)].read(layer, rotate) if self._views else None

    def mask(self, frames: tuple[int, ...]) -> Tensor | None:
        """See `StoreView.mask`."""
        return self._one.mask(frames)


class LevelStore:
    """A `Past` (see `arvid.types`) of one store per level; `store` makes an empty one."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self._stores: dict[float, Store] = {}
        self._told: tuple[Span, Brought] | None = None
        self._cuts, self._about = frozenset[int](), (0, tuple[str, ...]())

    def view(self, span: Span) -> LevelView:
        """What the frames of `span` may read at each level."""
        for store in self._stores.values():
            store.cut(self._cuts)
            store.hear(*self._about)
        view = LevelView({level: store.view(span) for level, store in self._stores.items()}, self._store().view(span))
        self._told = (span, view.brought)
        return view

    def commit(self, span: Span, memory: Memory) -> None:
        """Remember what each pass over `span` brought, at its level; a level that is new begins with the past of the
        nearest one, and levels at which no pass has looked go. Raises ValueError when no pass has read the view of
        `span`."""
        if self._told is None or self._told[0] != span or not self._told[1]:
            raise ValueError(f"no pass has read a view of {span}, so its levels are not known; commit what was walked")
        brought, self._told = self._told[1], None
        stores = {level: self._at(level) for level in brought}
        for level, layers in brought.items():
            stores[level].commit(span, tuple(layers[layer] for layer in range(len(memory))))
        self._stores = stores

    def _at(self, level: float) -> Store:
        """The store of a level, or a branch of the nearest one."""
        if level in self._stores or not self._stores:
            return self._stores.get(level) or self._store()
        branch = self._store()
        branch.restore(self._stores[nearest(self._stores, level)].snapshot())
        return branch

    def keep(self, frames: frozenset[int]) -> None:
        """See `Store.keep`."""
        for store in self._stores.values():
            store.keep(frames)

    def cut(self, starts: frozenset[int]) -> None:
        """See `Store.cut`."""
        self._cuts = starts

    def hear(self, start: int, about: tuple[str, ...]) -> None:
        """See `Store.hear`."""
        self._about = (start, about)

    def snapshot(self) -> dict[float, Any]:
        """Level by level."""
        return {level: store.snapshot() for level, store in self._stores.items()}

    def restore(self, snapshot: dict[float, Any]) -> None:
        """Go back to a snapshot."""
        self._stores, self._told = {level: self._store() for level in snapshot}, None
        for level, held in snapshot.items():
            self._stores[level].restore(held)

    @property
    def listens(self) -> bool:
        """Always: to the level of every pass, and to what it brings there."""
        return True

    def together(self, span: Span) -> bool:
        """See `Store.together`."""
        empty = self._store()
        empty.cut(self._cuts)
        return empty.together(span)

    @property
    def bytes(self) -> int:
        """Of all levels."""
        return sum(store.bytes for store in self._stores.values())
