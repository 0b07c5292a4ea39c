"""The server put together: routes, errors in one shape, the description of the API, beginning and end.

Knows: which parts there are. Does not know: what any of them does.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from arvid.pipeline import Pipeline
from arvid.serve import bodies, lives, operations, sockets, videos
from arvid.serve.engine import Engine
from arvid.serve.front import Front, refusal
from arvid.serve.house import House
from arvid.serve.keys import Gate
from arvid.serve.limits import Allowance, Limits
from arvid.serve.metrics import Metrics, device_memory
from arvid.serve.place import Place
from arvid.serve.protocol import Character, Create, Edit, Extend, Remix
from arvid.serve.refusals import OURS, Refused
from arvid.serve.store import DatabaseError, Store, unusable

LONGEST_MESSAGE = 64 * 1024
"""Bytes of a message that comes over a socket."""
FAREWELL_SECONDS, LOOK_SECONDS = 2.0, 0.02
"""How long viewers may take to hear that the server ends, and between two looks whether all have."""
ABOUT = "Videos as jobs, in the shape of OpenAI's Videos API, and live sessions over a WebSocket (docs/serving.md)."


@dataclass(frozen=True)
class Settings:
    """How a server is set up: how its pipeline is opened, where its data are (`database` empty: there too), whether a
    key is needed, what anybody without one may ask for, and names: of pages that may ask, of this host, of what is
    loaded."""

    open_pipeline: Callable[[], Pipeline]
    place: Place
    database: str = ""
    locked: bool = False
    limits: Limits = field(default_factory=Limits)
    anybody: Allowance = field(default_factory=Allowance)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    models: tuple[str, ...] = ("embedded",)
    drafters: tuple[str, ...] = ()


Make = Callable[[Store, Place, Limits, Metrics], Engine]
"""What makes the engine of a server."""


def build(settings: Settings, make: Make | None = None) -> House:
    """The parts of a server; `make` is for an engine other than the plain one. Raises ValueError when the database
    cannot be used, or is not that of the place."""
    store, metrics = Store(settings.database or settings.place.database, settings.place.name), Metrics()
    try:
        settings.place.belong(store.name, store.ids())
    except DatabaseError as error:
        raise unusable(error) from error
    engine = (make or partial(Engine, settings.open_pipeline))(store, settings.place, settings.limits, metrics)
    metrics.gauge("arvid_device_memory_bytes", "Tensors on GPUs of this process.", device_memory)
    return House(
        engine, store, settings.place, Gate(store, settings.locked, settings.anybody), metrics, settings.limits,
        settings.origins, settings.hosts, settings.models, settings.drafters,
    )  # fmt: skip


def create_app(house: House) -> FastAPI:
    """The application. It starts the engine when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(house.engine.start)
        yield
        await run_in_threadpool(house.engine.stop)
        house.store.close()

    app = FastAPI(title="arvid", description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.house = house
    for part in (videos.router, lives.router, operations.router, sockets.router):
        app.include_router(part)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DatabaseError, _database)
    if house.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(house.origins), allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "idempotency-key"], expose_headers=["x-request-id"],
        )  # fmt: skip
    app.add_middleware(Front, house=house)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return refusal(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return refusal(Refused(f"{param or 'the request'}: {first['msg']}", code="invalid_value", param=param))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = refusal(Refused(str(error.detail), error.status_code))
    answer.headers.update(error.headers or {})
    return answer


async def _database(request: Request, error: Exception) -> JSONResponse:
    return refusal(Refused("the database does not answer; try again soon", 503, OURS, "not_ready", after=5))


def _described(app: FastAPI) -> dict[str, Any]:
    """The description of the API, made once: our errors in place of the framework's."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version="1", description=ABOUT, routes=app.routes)
        parts = told.setdefault("components", {}).setdefault("schemas", {})
        parts.update(bodies.definitions([Create, Remix, Extend, Edit, Character]))
        for name in ("HTTPValidationError", "ValidationError"):
            parts.pop(name, None)
        parts["Refusal"] = {"type": "object", "required": ["error"], "properties": {"error": REFUSAL}}
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
        told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        told["security"] = [{}, {"key": []}]
        for methods in told["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                for status in ("4XX", "5XX"):
                    operation["responses"][status] = {"description": "Refused", "content": content}
        app.openapi_schema = told
    return app.openapi_schema


_TEXT = {"type": ["string", "null"]}
REFUSAL = {
    "type": "object",
    "required": ["message", "type", "param", "code"],
    "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": _TEXT, "code": _TEXT},
}
"""The form of an error."""


class Server(uvicorn.Server):
    """A server that takes nothing new once it was told to end, and ends when its engine fails."""

    def __init__(self, house: House, host: str, port: int, patience: int = 30) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(house), host=host, port=port, ws="websockets-sansio", ws_max_size=LONGEST_MESSAGE,
                ws_per_message_deflate=False, access_log=False, log_config=None, lifespan="on", server_header=False,
                timeout_graceful_shutdown=patience,
                # Named, since uvicorn takes others by itself where some package has installed them.
                http="h11", loop="asyncio",
            )
        )  # fmt: skip
        self._house = house
        house.engine.on_failure = self._stop

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: nothing new is taken, viewers are told, and then all connections are closed."""
        engine = self._house.engine
        lives, end = list(engine.lives.values()), time.monotonic() + FAREWELL_SECONDS
        engine.drain()
        while any(live.on_change is not None for live in lives) and time.monotonic() < end:
            await asyncio.sleep(LOOK_SECONDS)
        await super().shutdown(sockets)
