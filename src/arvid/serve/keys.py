"""Who may use the server: secrets, their hashes, how often somebody asks.

Knows: what a secret looks like, that only its hash is kept, a bucket of requests per key. Does not know: HTTP, what is
asked for.

A secret has 256 random bits, so one round of SHA-256 is enough: there is nothing to guess that a slow hash would slow.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from arvid.serve.limits import Allowance
from arvid.serve.refusals import FORBIDDEN, LIMITED, Refused
from arvid.serve.store import Key, Store, new_id, now

PREFIX = "arvid-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """Who asks: the id of a key (empty: anybody, where no key is needed), and what may be asked for."""

    owner: str
    allowance: Allowance


def hashed(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def make_key(store: Store, name: str, allowance: Allowance) -> str:
    """The secret of a new key; it is shown once. Raises ValueError for a name that is taken or not plain."""
    if not NAME.fullmatch(name):
        raise ValueError(f"the name {name!r}: write up to 64 letters, digits, dots, dashes and underscores")
    secret = PREFIX + secrets.token_urlsafe(32)
    told = {"requests": allowance.requests, "jobs": allowance.jobs, "sessions": allowance.sessions}
    store.add_key(
        Key(
            id=new_id("key"),
            name=name,
            hash=hashed(secret),
            begins=secret[: len(PREFIX) + 4],
            created_at=now(),
            **told,
        )
    )
    return secret


class Bucket:
    """As many requests a minute as allowed, the first minute's at once."""

    def __init__(self, requests: int, at: float) -> None:
        self._rate, self._full = requests / 60, float(requests)
        self._left, self._at = float(requests), at

    def take(self, at: float) -> float:
        """Take one at second `at`: 0, or the seconds until there will be one."""
        self._left = min(self._full, self._left + (at - self._at) * self._rate)
        self._at = at
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class Gate:
    """Tells callers apart and keeps them to their rate. With `locked` only keys are let in; else anybody without a key
    is, as one caller with the allowance `anybody`."""

    def __init__(
        self, store: Store, locked: bool, anybody: Allowance, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._locked, self._anybody, self._clock = store, locked, anybody, clock
        self._buckets: dict[tuple[str, int], Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, secret: str) -> Caller:
        """The caller with a secret (empty: none). Raises Refused for an unknown one and for too many requests."""
        caller = self._caller(secret)
        if caller.allowance.requests:
            with self._lock:
                at, name = self._clock(), (caller.owner, caller.allowance.requests)
                wait = self._buckets.setdefault(name, Bucket(caller.allowance.requests, at)).take(at)
            if wait:
                raise Refused(
                    f"more than {caller.allowance.requests} requests a minute; try again in {wait:.0f} s",
                    429, LIMITED, "rate_limit_exceeded", after=wait,
                )  # fmt: skip
        return caller

    def _caller(self, secret: str) -> Caller:
        if not secret and not self._locked:
            return Caller("", self._anybody)
        key = self._store.key_of(hashed(secret)) if secret else None
        if key is not None:
            return Caller(key.id, Allowance(key.requests, key.jobs, key.sessions))
        if not self._locked:
            return Caller("", self._anybody)
        told = "unknown key" if secret else "no key"
        raise Refused(f"{told}; send one as `Authorization: Bearer {PREFIX}...`", 401, FORBIDDEN, "invalid_api_key")
