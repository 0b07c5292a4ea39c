"""What every route needs, and who is asking.

Knows: where the parts of a server are kept while it runs, how a caller shows a key, which pages of other hosts may ask.
Does not know: what is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from fastapi import Request
from starlette.requests import HTTPConnection

from arvid.serve.engine import Engine
from arvid.serve.keys import Caller, Gate
from arvid.serve.limits import Limits
from arvid.serve.metrics import Metrics
from arvid.serve.place import Place
from arvid.serve.refusals import FORBIDDEN, Refused
from arvid.serve.store import Store


@dataclass(frozen=True)
class House:
    """The parts of a server. `origins` are pages of other hosts that may ask, `hosts` the names it goes by (none: any),
    `models` and `drafters` what clients may call what is loaded."""

    engine: Engine
    store: Store
    place: Place
    gate: Gate
    metrics: Metrics
    limits: Limits
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    drafters: tuple[str, ...] = ()


def house_of(connection: HTTPConnection) -> House:
    """The server that answers."""
    house = connection.app.state.house
    assert isinstance(house, House)
    return house


def secret_of(headers: Mapping[str, str]) -> str:
    """The key in a header; empty when there is none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def caller_of(request: Request) -> Caller:
    """Who asks. Raises Refused for somebody unknown and for too many requests."""
    caller = house_of(request).gate.admit(secret_of(request.headers))
    request.state.owner = caller.owner
    return caller


def check_origin(headers: Mapping[str, str], origins: tuple[str, ...], hosts: tuple[str, ...]) -> None:
    """Raises Refused for a request that a page of another host has made in somebody's browser, and for one to a host
    that is not ours (a name of somebody else that leads here)."""
    host = headers.get("host", "")
    if hosts and _split(f"//{host}").hostname not in hosts:
        raise Refused(f"this server is not {host!r}; it goes by {', '.join(hosts)}", 403, FORBIDDEN, "wrong_host")
    origin = headers.get("origin")
    if origin is not None and origin not in origins and (_split(origin).netloc or None) != host:
        raise Refused(f"pages of {origin!r} may not use this server", 403, FORBIDDEN, "wrong_origin")


def _split(address: str) -> SplitResult:
    """The parts of an address; none of what is no address, such as http://[."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
