"""A live session over a WebSocket: fragments out, controls in.

Knows: the order of messages, who is woken when. Does not know: how blocks are made, what a control does.

One task reads, one writes. The writer takes fragments from the session's record when they are due, so that the network
sets the pace; of everything else at most `ROOM` messages wait, and while they do nothing is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from arvid.pipeline import Request
from arvid.serve.bodies import wrong
from arvid.serve.house import House, check_origin, house_of, secret_of
from arvid.serve.keys import Caller
from arvid.serve.live import Live
from arvid.serve.logs import say
from arvid.serve.protocol import MESSAGES, Ack, Pause, Ping, Play, Seek, Start, Stop
from arvid.serve.record import Piece
from arvid.serve.refusals import Refused, missing

ROOM = 64
HELLO_SECONDS, LAST_SECONDS, FAREWELL_SECONDS = 20.0, 2.0, 10.0
"""How long the first message is waited for, what is still to be done when one side has ended, and a viewer who reads
slowly, or not at all, when the session has."""
REFUSED, TAKEN, GOING = 1008, 4001, 1001
"""Reasons to close: not allowed, somebody else watches this session, the server or the session ends."""

router = APIRouter()


@router.websocket("/v1/live")
async def live(socket: WebSocket) -> None:
    """Begin or rejoin a live session, and direct it."""
    house = house_of(socket)
    try:
        check_origin(socket.headers, house.origins, house.hosts)
    except Refused:
        await socket.close(REFUSED)
        return
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await Viewer(house, socket).watch()


class Viewer:
    """One connection."""

    def __init__(self, house: House, socket: WebSocket) -> None:
        self._house, self._socket = house, socket
        self._out: deque[dict[str, Any]] = deque()
        self._due, self._room, self._over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._cursor, self._version, self._seeks = 0, 0, 0
        self._live: Live | None = None

    async def watch(self) -> None:
        """Until one side has enough."""
        try:
            live = self._live = await self._begin()
        except Refused as error:
            await self._send({"type": "error", "id": "", **error.body})
            await self._socket.close(REFUSED)
            return
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(self._look, live)

        previous, live.on_change = live.on_change, changed
        self._mine = changed
        if previous is not None:
            previous()
        self._look(live)  # it may have ended before anybody could be told
        self._house.engine.nudge()
        writing, reading = asyncio.create_task(self._write(live)), asyncio.create_task(self._read(live))
        leaving = asyncio.create_task(self._farewell())
        tasks = (writing, reading)
        try:
            await asyncio.wait((*tasks, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and writing.exception() is not None:
                await asyncio.wait([reading], timeout=LAST_SECONDS)  # a `stop` may lie before the end of the connection
            elif reading.done() and reading.exception() is None:
                await asyncio.wait([writing], timeout=LAST_SECONDS)  # it tells that the session is over
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in (*tasks, leaving):
                task.cancel()
            await asyncio.gather(*tasks, leaving, return_exceptions=True)
            if live.on_change is changed:
                live.on_change = None
            live.heard()

    def _look(self, live: Live) -> None:
        """Something has changed."""
        self._due.set()
        if live.failed or live.closed or live.on_change is not self._mine:
            self._over.set()

    async def _farewell(self) -> None:
        """As long as it may take to tell that the session is over. Who reads nothing would never hear of it."""
        await self._over.wait()
        await asyncio.sleep(FAREWELL_SECONDS)

    # ------------------------------------------------------------ beginning

    async def _begin(self) -> Live:
        """The session that the first message asks for. Raises Refused."""
        try:
            text = await asyncio.wait_for(self._text(), HELLO_SECONDS)
        except asyncio.TimeoutError as error:
            raise Refused(f"no session.start within {HELLO_SECONDS:g} s") from error
        start = _parsed(text)
        if not isinstance(start, Start):
            raise Refused("the first message must be a session.start")
        secret = start.key or secret_of(self._socket.headers)
        caller = await asyncio.to_thread(self._house.gate.admit, secret)
        found = self._rejoined(start, caller) if start.session else await self._opened(start, caller)
        found.heard()
        found.lead = start.lead
        found.take_cut()
        self._version, self._cursor = found.record.version, found.seek(start.at)
        await self._greet(found, start)
        return found

    def _rejoined(self, start: Start, caller: Caller) -> Live:
        found = self._house.engine.lives.get(start.session)
        if found is None or found.owner != caller.owner:
            raise missing("live session")
        return found

    async def _opened(self, start: Start, caller: Caller) -> Live:
        house, limits = self._house, self._house.limits
        pipeline = house.engine.ready()
        card = pipeline.family.card
        seconds = limits.live_seconds if start.seconds is None else start.seconds
        if not 0 < seconds <= limits.live_seconds:
            raise Refused(f"{seconds:g} seconds; at most {limits.live_seconds:g}", param="seconds")
        if len(start.prompt) > limits.prompt:
            raise Refused(f"a prompt of {len(start.prompt)} letters; at most {limits.prompt}", param="prompt")
        try:
            plain = Request(start.prompt, seconds, router=card.router)
            request = start.arvid.onto(plain, card.router, house.drafters)
            most = caller.allowance.sessions
            opened = house.engine.call(lambda: house.engine.open_live(caller.owner, most, request, start.lead))
            return await asyncio.wrap_future(opened)
        except ValueError as error:
            raise Refused(str(error), code="invalid_value") from error

    async def _greet(self, found: Live, start: Start) -> None:
        fragments = found.fragments
        pieces = [_told(piece) for piece in found.record.pieces]
        await self._send({
            "type": "session.created", "id": start.id, "session": found.name, "mime": fragments.codec,
            "fps": fragments.fps, "width": fragments.width, "height": fragments.height, "lead": found.lead,
            "version": self._version, "paused": found.paused, "seconds": found.seconds, "blocks": pieces,
        })  # fmt: skip
        await self._send({"type": "video.init", "size": len(fragments.init)})
        await self._socket.send_bytes(fragments.init)

    # ------------------------------------------------------------ writing

    async def _write(self, live: Live) -> None:
        ended = False
        while True:
            self._due.clear()
            while self._out:
                await self._send(self._out.popleft())
            self._room.set()
            if live.on_change is not self._mine:
                await self._end({"type": "session.taken"}, TAKEN)
                return
            if live.failed or live.closed:
                told = {"type": "session.closing", "why": live.closed or live.failed}
                await self._end(told, GOING)
                return
            if (cut := live.take_cut()) is not None:
                self._cursor, self._version, ended = min(self._cursor, cut), live.record.version, False
                second = live.second_of(cut)
                await self._send({"type": "video.flush", "block": cut, "second": second, "version": self._version})
            if await self._next(live):
                continue
            if live.done and not ended and self._cursor == live.blocks:
                ended = True
                await self._send({"type": "video.done"})
            if not self._out:
                await self._due.wait()

    async def _next(self, live: Live) -> bool:
        """Send the next fragment, if it is there and due."""
        found = live.record.read(self._cursor)
        if found is None:
            return False
        version, piece, data = found
        if version != self._version or piece.second >= live.playhead + live.lead:
            return False
        seeks = self._seeks
        await self._send({"type": "video.block", "version": version, "size": len(data), **_told(piece)})
        await self._socket.send_bytes(data)
        if self._seeks == seeks:  # else the viewer went elsewhere while the connection was slow, perhaps to this block
            self._cursor += 1
            live.has_sent(piece.end, version)
        return True

    async def _end(self, told: dict[str, Any], code: int) -> None:
        await self._send(told)
        await self._socket.close(code)

    async def _send(self, told: dict[str, Any]) -> None:
        await self._socket.send_text(json.dumps(told))

    # ------------------------------------------------------------ reading

    async def _read(self, live: Live) -> None:
        while True:
            while len(self._out) >= ROOM:
                self._room.clear()
                await self._room.wait()
            text = ""
            try:
                text = await self._text()
                live.heard()
                message = _parsed(text)
                if isinstance(message, Stop):
                    await asyncio.wrap_future(self._house.engine.call(lambda: self._stop(live)))
                    return
                answer = await self._answer(live, message)
            except Refused as error:
                answer = {"type": "error", "id": _id_of(text), **error.body}
            if answer is not None:
                self._out.append(answer)
            self._due.set()

    def _stop(self, live: Live) -> None:
        self._house.engine.close_live(live, "stopped")

    async def _answer(self, live: Live, message: Any) -> dict[str, Any] | None:
        """Do what a message asks for; what is answered. Raises Refused when it cannot be done."""
        engine = self._house.engine
        if isinstance(message, Ack):
            live.ack(message.second)
            engine.nudge()
            return None
        if isinstance(message, Ping):
            return {"type": "pong", "id": message.id}
        if isinstance(message, Start):
            raise Refused("the session has begun; open another connection for another one")
        begin = time.monotonic()
        try:
            if isinstance(message, (Seek, Pause, Play)):
                receipt = live.apply(message)
                if isinstance(message, Seek):
                    self._cursor, self._seeks = receipt["block"], self._seeks + 1
                engine.nudge()
            else:
                receipt = await asyncio.wrap_future(engine.call(lambda: live.apply(message)))
        except ValueError as error:
            raise Refused(str(error), code="invalid_value") from error
        self._house.metrics.receipt.observe(time.monotonic() - begin)
        say("control", session=live.name, control=receipt["control"], block=receipt["block"])
        return receipt

    async def _text(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        text = message.get("text")
        if text is None:
            raise Refused("a binary message; send JSON as text")
        return str(text)


def _parsed(text: str) -> Any:
    """The message in a text. Raises Refused."""
    try:
        return MESSAGES.validate_json(text)
    except ValidationError as error:
        raise wrong(error) from error


def _id_of(text: str) -> str:
    """The id of a message that was wrong otherwise."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict) and isinstance(found.get("id"), str):
            return str(found["id"])[:100]
    return ""


def _told(piece: Piece) -> dict[str, Any]:
    return {"block": piece.block, "second": piece.second, "seconds": piece.seconds, **piece.told}
