"""Answers that are worth keeping: what is slow to load is loaded once, also when several threads ask at a time.

Knows: locks, which arguments were answered. Does not know: what is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from threading import Lock
from typing import ParamSpec, TypeVar

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


def once(most: int) -> Callable[[Callable[Asked, Answer]], Callable[Asked, Answer]]:
    """Decorates a function of hashable arguments: it runs once for each of them, and the `most` answers asked for last
    are kept. What it raises is kept by nobody: the next one who asks runs it again."""

    def keeping(load: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
        # The cache of Python alone does not wait for a call that is under way: every thread would load its own copy.
        lock = Lock()
        kept: Callable[..., Answer] = lru_cache(maxsize=most)(load)

        @wraps(load)
        def asked(*args: Asked.args, **options: Asked.kwargs) -> Answer:
            with lock:
                return kept(*args, **options)

        return asked

    return keeping
