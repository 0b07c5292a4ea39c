"""The routes of live sessions that need no socket: what there is, download, end.

Knows: paths, whose session it is. Does not know: how a session is directed (serve/sockets.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from arvid.serve.house import caller_of, house_of
from arvid.serve.keys import Caller
from arvid.serve.live import Live
from arvid.serve.refusals import missing

Who = Annotated[Caller, Depends(caller_of)]

router = APIRouter(prefix="/v1/live", tags=["live sessions"])


class Session(BaseModel):
    """A live session: seconds made, where its viewer is, how far ahead it may be."""

    id: str
    object: Literal["live"] = "live"
    seconds: float
    playhead: float
    lead: float
    paused: bool
    watched: bool


class Sessions(BaseModel):
    """Yours."""

    object: Literal["list"] = "list"
    data: list[Session]


class Ended(BaseModel):
    """A live session that is no more."""

    id: str
    object: Literal["live.deleted"] = "live.deleted"
    deleted: Literal[True] = True


def _shown(live: Live) -> Session:
    watched = live.on_change is not None
    return Session(
        id=live.name, seconds=live.record.end, playhead=live.playhead, lead=live.lead, paused=live.paused,
        watched=watched,
    )  # fmt: skip


@router.get("")
def listed(request: Request, caller: Who) -> Sessions:
    """Your live sessions."""
    lives = list(house_of(request).engine.lives.values())
    return Sessions(data=[_shown(live) for live in lives if live.owner == caller.owner])


@router.get("/{session_id}")
def retrieve(session_id: str, request: Request, caller: Who) -> Session:
    """A live session."""
    return _shown(_mine(request, caller, session_id))


@router.get("/{session_id}/content", response_class=StreamingResponse)
def content(session_id: str, request: Request, caller: Who) -> StreamingResponse:
    """What a live session has made so far, as one MP4."""
    live = _mine(request, caller, session_id)
    headers = {"content-disposition": f'inline; filename="{live.name}.mp4"'}
    return StreamingResponse(_film(live), media_type="video/mp4", headers=headers)


def _film(live: Live) -> Iterator[bytes]:
    """The init segment and all fragments of the present version, up to where it becomes another."""
    yield live.fragments.init
    version = live.record.version
    for block in range(len(live.record)):
        found = live.record.read(block)
        if found is None or found[0] != version:
            return
        yield found[2]


@router.delete("/{session_id}")
def end(session_id: str, request: Request, caller: Who) -> Ended:
    """End a live session."""
    live, engine = _mine(request, caller, session_id), house_of(request).engine
    engine.call(lambda: engine.close_live(live, "deleted"))
    return Ended(id=live.name)


def _mine(request: Request, caller: Caller, session_id: str) -> Live:
    found = house_of(request).engine.lives.get(session_id)
    if found is None or found.owner != caller.owner:
        raise missing("live session")
    return found
