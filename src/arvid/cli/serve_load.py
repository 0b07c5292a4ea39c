"""Viewers of live sessions and people who wait for jobs, as `arvid bench serve` plays them.

Knows: the API of a server (docs/serving.md), how a viewer behaves: plays what it has, waits when it has nothing, asks
for changes, goes back. Does not know: how the server does it, what the numbers mean for anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

PROMPTS = (
    "a large red circle moves right", "a small blue square moves left", "a large green star drifts up",
    "a small yellow triangle moves down",
)  # fmt: skip
TICK = 0.25
"""Seconds between two words of a viewer about its playhead."""
LOOK = 1.0
"""Seconds between two looks at the server's memory and at the jobs."""
SPARE = 120.0
"""A session is asked for so much longer than it is watched: time in which somebody went back is watched twice."""
LARGEST_MESSAGE = 2**28
UNFINISHED, NOT_FOUND = ("queued", "in_progress"), 404
Told = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A load: `sessions` viewers and `jobs` unfinished videos of `job_seconds` for `seconds`; each viewer says
    something every `every` seconds. `router` is asked for where it is not empty; where it is and `scores` says that the
    family has a judge, viewers turn the threshold as well."""

    sessions: int
    jobs: int
    seconds: float
    every: float = 5.0
    job_seconds: float = 2.0
    router: str = ""
    scores: bool = False

    @property
    def extras(self) -> Told:
        """What is asked for beyond a prompt."""
        return {"router": self.router} if self.router else {}


class Unanswered(ValueError):
    """A request that was not answered as asked; `status` is 0 where there was no answer at all."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """A server by its address, with a key or without (empty)."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url, self.key = url.rstrip("/"), key

    def read(self, path: str, body: Any = None, method: str | None = None) -> bytes:
        """What the server answers. Raises Unanswered for a refusal, and when there is no server."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("content-type", "application/json")
        if self.key:
            request.add_header("authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")[:300]
            raise Unanswered(f"{self.url}{path} answers {error.code}: {told}", error.code) from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise Unanswered(f"no server at {self.url} ({reason}); start one with arvid serve") from error

    async def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The object that the server answers with, without holding up anybody else."""
        return json.loads(await asyncio.to_thread(self.read, path, body, method))


# ---------------------------------------------------------------- a viewer


class Screen:
    """What a viewer sees: seconds of video against seconds of its own clock (`at`, of any monotonic clock).

    A block is due when all before it has been shown. One that comes later is a missed deadline, and the picture stands
    still meanwhile. After a step back the picture waits for the first block that comes; that is what was asked for.
    """

    def __init__(self) -> None:
        self.there = 0.0
        self.missed, self.waited = 0, 0.0
        self._shown, self._at = 0.0, 0.0
        self._runs = False

    def second(self, at: float) -> float:
        """The playhead."""
        return min(self._shown + at - self._at, self.there) if self._runs else self._shown

    def block(self, second: float, seconds: float, at: float) -> None:
        """The block that is shown at `second` has come."""
        due = self._at + second - self._shown
        if not self._runs:
            self._runs, self._shown, self._at = True, second, at
        elif at > due:
            self.missed, self.waited = self.missed + 1, self.waited + at - due
            self._shown, self._at = second, at
        self.there = second + seconds

    def flush(self, second: float, at: float) -> None:
        """What is shown from `second` on will become another."""
        if (shown := self.second(at)) > second:
            self._runs, shown = False, second
        self._shown, self._at, self.there = shown, at, min(self.there, second)


@dataclass
class Receipt:
    """A control and its receipt: `seconds` between them, `came` blocks of the session that came in between, and how
    many blocks after the next one that was expected shows it first (None for a control that leads elsewhere)."""

    control: str
    seconds: float
    came: int
    after: int | None


@dataclass
class Seen:
    """What one viewer got: seconds to the first frame, frames, missed deadlines, receipts, and what went wrong."""

    first: float | None = None
    frames: int = 0
    missed: int = 0
    waited: float = 0.0
    receipts: list[Receipt] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Viewer:
    """Watches one session from `begin` for some seconds and directs it now and then."""

    def __init__(self, api: Api, wanted: Wanted, number: int) -> None:
        self._api, self._wanted, self._number = api, wanted, number
        self.seen, self._screen = Seen(), Screen()
        self._asked: dict[str, tuple[str, float, int, int]] = {}
        self._marks, self._fps, self._came, self._next = 0, 0.0, 0, 0
        self._coming: Told | None = None
        self._begin = 0.0

    async def watch(self) -> Seen:
        """Until the time is over or something went wrong."""
        try:
            await self._connected()
        except (WebSocketException, OSError, ValueError, KeyError) as error:
            self.seen.errors.append(f"viewer {self._number}: {str(error) or type(error).__name__}")
        if self._asked and not self.seen.errors:
            self.seen.errors.append(f"viewer {self._number}: {len(self._asked)} controls without a receipt")
        self.seen.missed, self.seen.waited = self._screen.missed, self._screen.waited
        return self.seen

    async def _connected(self) -> None:
        address = self._api.url.replace("http", "ws", 1) + "/v1/live"
        async with connect(address, max_size=LARGEST_MESSAGE, open_timeout=60) as socket:
            self._begin = time.monotonic()
            start = {"type": "session.start", "key": self._api.key, "prompt": PROMPTS[self._number % len(PROMPTS)]}
            extras = {"seed": self._number, **self._wanted.extras}
            await socket.send(json.dumps({**start, "seconds": self._wanted.seconds + SPARE, "arvid": extras}))
            speaking = asyncio.create_task(self._speak(socket))
            reading = asyncio.create_task(self._read(socket))
            try:
                await asyncio.wait((speaking, reading), return_when=asyncio.FIRST_COMPLETED)
                for task in (speaking, reading):
                    if task.done():
                        task.result()
                if not reading.done():
                    await self._last_receipts(reading)
                    await socket.send(json.dumps({"type": "stop"}))
            finally:
                for task in (speaking, reading):
                    task.cancel()
                await asyncio.gather(speaking, reading, return_exceptions=True)

    async def _last_receipts(self, reading: asyncio.Task[None]) -> None:
        for _ in range(100):
            if not self._asked or reading.done():
                return
            await asyncio.sleep(0.1)

    async def _speak(self, socket: Any) -> None:
        """Tell where the playhead is, and ask for something else now and then."""
        changed = time.monotonic() + self._number * self._wanted.every / max(1, self._wanted.sessions)
        while (now := time.monotonic()) < self._begin + self._wanted.seconds:
            if self.seen.first is not None:
                await socket.send(json.dumps({"type": "ack", "second": self._screen.second(now)}))
                if now - changed >= self._wanted.every:
                    changed = now
                    await self._direct(socket)
            await asyncio.sleep(TICK)

    async def _direct(self, socket: Any) -> None:
        """The next control in turn."""
        self._marks += 1
        mark, prompt = str(self._marks), PROMPTS[(self._number + self._marks) % len(PROMPTS)]
        block = max(0, self._next - 4)
        turns: list[Told] = [
            {"type": "prompt", "prompt": prompt}, {"type": "prompt", "prompt": prompt, "now": True},
            {"type": "branch", "block": block, "seed": self._marks}, {"type": "rewind", "block": block},
        ]  # fmt: skip
        if self._wanted.scores and not self._wanted.router:
            turns.append({"type": "knob", "tau": 0.2 + 0.1 * (self._marks % 4)})
        told = turns[(self._marks - 1) % len(turns)]
        straight = told["type"] in ("prompt", "knob") and not told.get("now")
        self._asked[mark] = (str(told["type"]), time.monotonic(), self._came, self._next if straight else -1)
        await socket.send(json.dumps({**told, "id": mark}))

    async def _read(self, socket: Any) -> None:
        """Take what comes; returns when the session is over."""
        async for message in socket:
            now = time.monotonic()
            if not isinstance(message, str):
                self._bytes(now)
                continue
            told = json.loads(message)
            kind = told["type"]
            if kind in ("video.init", "video.block"):
                self._coming = told
            elif kind == "session.created":
                self._fps = told["fps"]
            elif kind == "video.flush":
                self._screen.flush(told["second"], now)
                self._next = min(self._next, told["block"])
            elif kind == "control.receipt":
                self._receipt(told, now)
            elif kind in ("error", "session.closing", "session.taken"):
                why = told.get("why") or told.get("error", {}).get("message") or kind
                self.seen.errors.append(f"viewer {self._number}: {why}")
                return
        self.seen.errors.append(f"viewer {self._number}: the server closed the connection")

    def _bytes(self, now: float) -> None:
        told, self._coming = self._coming, None
        if told is None or told["type"] != "video.block":
            return
        if self.seen.first is None:
            self.seen.first = now - self._begin
        if told["block"] != self._next:
            self.seen.errors.append(f"viewer {self._number}: block {told['block']} where {self._next} comes next")
        self._next, self._came = told["block"] + 1, self._came + 1
        self.seen.frames += round(told["seconds"] * self._fps)
        self._screen.block(told["second"], told["seconds"], now)

    def _receipt(self, told: Told, now: float) -> None:
        control, since, came, expected = self._asked.pop(told["id"])
        after = None if expected < 0 else told["block"] - expected
        self.seen.receipts.append(Receipt(control, now - since, self._came - came, after))


# ---------------------------------------------------------------- jobs and memory


@dataclass
class Kept:
    """Jobs: how many were accepted, what became of them, seconds from asking to completion, frames, and errors."""

    accepted: int = 0
    states: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    frames: int = 0
    errors: list[str] = field(default_factory=list)


class Jobs:
    """Keeps a number of jobs unfinished; every one that is finished is downloaded, checked and deleted."""

    def __init__(self, api: Api, wanted: Wanted) -> None:
        self._api, self._wanted = api, wanted
        self.kept = Kept()
        self._waiting: dict[str, float] = {}

    async def keep(self, end: float) -> None:
        """Until second `end` of the monotonic clock."""
        while time.monotonic() < end:
            try:
                await self._look()
                while len(self._waiting) < self._wanted.jobs:
                    await self._submit()
            except Unanswered as error:
                self.kept.errors.append(str(error))
            await asyncio.sleep(max(0.0, min(LOOK, end - time.monotonic())))

    async def finish(self, patience: float) -> None:
        """Wait for what is left; what does not end is lost."""
        end = time.monotonic() + patience
        while self._waiting and time.monotonic() < end:
            with contextlib.suppress(Unanswered):
                await self._look()
            await asyncio.sleep(0.2)
        for name in self._waiting:
            self.kept.states["lost"] += 1
            self.kept.errors.append(f"{name} did not end within {patience:g} s")

    async def _submit(self) -> None:
        prompt = PROMPTS[self.kept.accepted % len(PROMPTS)]
        body = {"prompt": prompt, "seconds": self._wanted.job_seconds, "arvid": self._wanted.extras}
        name = (await self._api.ask("/v1/videos", body))["id"]
        self.kept.accepted += 1
        self._waiting[name] = time.monotonic()

    async def _look(self) -> None:
        """The oldest jobs are done first, so looking stops at the first one that is not."""
        for name in list(self._waiting):
            try:
                video = await self._api.ask(f"/v1/videos/{name}")
            except Unanswered as error:
                if error.status != NOT_FOUND:
                    raise
                self.kept.states["lost"] += 1
                self.kept.errors.append(str(error))
            else:
                if video["status"] in UNFINISHED:
                    return
                await self._put_away(video)
            del self._waiting[name]

    async def _put_away(self, video: Told) -> None:
        self.kept.states[video["status"]] += 1
        if video["status"] == "completed":
            self.kept.took.append(time.monotonic() - self._waiting[video["id"]])
            self.kept.frames += video["arvid"]["made"]["frames"]
            data = await asyncio.to_thread(self._api.read, f"/v1/videos/{video['id']}/content")
            if b"ftyp" not in data[:16] or b"moov" not in data:
                self.kept.errors.append(f"{video['id']} is no whole MP4")
        else:
            self.kept.errors.append(f"{video['id']}: {video['error']}")
        await self._api.ask(f"/v1/videos/{video['id']}", method="DELETE")


async def look(api: Api, memory: list[tuple[float, float]], begin: float) -> None:
    """Note the server's memory (seconds since `begin`, bytes) until cancelled."""
    while True:
        with contextlib.suppress(Unanswered):
            text = (await asyncio.to_thread(api.read, "/metrics")).decode()
            for line in text.splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    memory.append((round(time.monotonic() - begin, 2), float(line.split()[1])))
        await asyncio.sleep(LOOK)


@dataclass
class Ran:
    """A load that was: what viewers saw, what became of jobs, and the server's memory by second."""

    seconds: float
    seen: Sequence[Seen]
    jobs: Kept
    memory: list[tuple[float, float]]


async def run(api: Api, wanted: Wanted) -> Ran:
    """Put a load on a server. What goes wrong is part of the answer."""
    begin, memory = time.monotonic(), list[tuple[float, float]]()
    jobs = Jobs(api, wanted)
    watching = asyncio.create_task(look(api, memory, begin))
    try:
        keeping = asyncio.create_task(jobs.keep(begin + wanted.seconds))
        seen = await asyncio.gather(*(Viewer(api, wanted, number).watch() for number in range(wanted.sessions)))
        await keeping
        took = time.monotonic() - begin
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await jobs.finish(60 + wanted.seconds)
    return Ran(took, seen, jobs.kept, memory)
