"""What the people who run a server ask it, what it has loaded, and the page.

Knows: health, readiness, numbers, names. Does not know: jobs, sessions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from arvid.serve.house import caller_of, house_of
from arvid.serve.keys import Caller
from arvid.serve.metrics import CONTENT_TYPE
from arvid.serve.refusals import OURS, Refused, missing

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
Who = Annotated[Caller, Depends(caller_of)]

router = APIRouter(tags=["operations"])


class Told(BaseModel):
    """How the server is."""

    status: str


class Model(BaseModel):
    """What is loaded; `arvid` tells what it makes."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "arvid"
    arvid: dict[str, Any]


class Models(BaseModel):
    """All that is loaded."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/healthz")
def healthy(request: Request) -> Told:
    """Whether the server runs at all."""
    engine = house_of(request).engine
    if engine.failure is not None:
        raise Refused("the engine has failed; see the log", 503, OURS, "failed")
    return Told(status="ok")


@router.get("/readyz")
def ready(request: Request) -> Told:
    """Whether it can make videos now."""
    engine = house_of(request).engine
    engine.ready()
    if not engine.warm:
        raise Refused("the model is warming up; try again soon", 503, OURS, "not_ready", after=5)
    return Told(status="ready")


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(house_of(request).metrics.text(), media_type=CONTENT_TYPE)


@router.get("/v1/models")
def models(request: Request, caller: Who) -> Models:
    """What is loaded."""
    house = house_of(request)
    card = house.engine.ready().family.card
    told = {
        "size": list(card.size), "fps": card.fps, "router": card.router, "memory": card.past,
        "drafter": "drafter" in card.parts or house.drafters != (), "reward": "reward" in card.parts,
        "seconds": house.limits.seconds, "live_seconds": house.limits.live_seconds,
    }  # fmt: skip
    return Models(data=[Model(id=card.name, arvid=told)])


@router.get("/", include_in_schema=False)
def index() -> FileResponse:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}", include_in_schema=False)
def part(name: str) -> FileResponse:
    """A part of the page."""
    if name not in {path.name for path in PAGE.iterdir()}:
        raise missing("file")
    return _file(name)


def _file(name: str) -> FileResponse:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    return FileResponse(PAGE / name, media_type=KINDS[Path(name).suffix], headers=headers)
