"""The routes of the Videos API: create, list, retrieve, download, delete, remix, extend, edit.

Knows: paths, the video object, files by variant. Does not know: how a job is accepted (serve/asking.py) or made.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from arvid.serve import asking, bodies, making
from arvid.serve.asking import Asking
from arvid.serve.house import caller_of, house_of
from arvid.serve.keys import Caller
from arvid.serve.protocol import Character, Create, Edit, Extend, Remix
from arvid.serve.refusals import Refused, missing
from arvid.serve.store import COMPLETED, FAILED, UNFINISHED, Job

VARIANTS = {
    "video": (making.VIDEO, "video/mp4"),
    "thumbnail": (making.THUMBNAIL, "image/webp"),
    "spritesheet": (making.SHEET, "image/jpeg"),
    "report": (making.REPORT, "application/json"),
    "latents": (making.SAMPLED, "application/octet-stream"),
}
"""Files of a finished video, the last two of them ours."""
POLL_MS = "500"
REPEAT = re.compile(r"[\x21-\x7e]{1,255}")
Who = Annotated[Caller, Depends(caller_of)]

router = APIRouter(prefix="/v1/videos", tags=["videos"])


class Error(BaseModel):
    """Why a video could not be made."""

    code: str
    message: str
    type: str | None = None


class Video(BaseModel):
    """A video that was asked for; times are Unix seconds."""

    model_config = ConfigDict(extra="forbid")
    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None = None
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None
    error: Error | None
    arvid: dict[str, Any]


class Page(BaseModel):
    """Some videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A video that is no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def shown(job: Job) -> Video:
    """The video object of a job."""
    request = job.asked.get("request", {})  # one that another version has written may lack something
    extras = {name: request.get(name) for name in ("seed", "router", "positions", "noise", "guard", "timeline")}
    return Video(
        id=job.id, model=job.model, status=job.status, progress=job.progress, created_at=job.created_at,  # type: ignore[arg-type]
        completed_at=job.completed_at, prompt=job.prompt, seconds=job.seconds, size=job.size,
        remixed_from_video_id=job.source if job.kind == "remix" else None,
        error=Error(**job.error) if job.error else None,
        arvid={**extras, "memory": request.get("past"), "kind": job.kind, "source": job.source, "made": job.report},
    )  # fmt: skip


async def _asking(request: Request, caller: Caller) -> Asking:
    repeat = request.headers.get("idempotency-key")
    if repeat is not None and not REPEAT.fullmatch(repeat):
        raise Refused("the idempotency-key has more than 255 letters, or blanks; send a short one")
    return Asking(house_of(request), caller, repeat)


@router.post("", openapi_extra=bodies.described(Create, "input_reference"))
async def create(request: Request, caller: Who) -> Video:
    """Ask for a video of a prompt."""
    body, upload = await bodies.read(request, Create, "input_reference")
    return shown(await run_in_threadpool(asking.create, await _asking(request, caller), body, upload))


@router.get("")
def listed(
    request: Request,
    caller: Who,
    after: Annotated[str | None, Query(description="The id of the last video of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Page:
    """Your videos, the latest first."""
    store = house_of(request).store
    start = None if after is None else store.get(after, caller.owner)
    if after is not None and start is None:
        raise missing("video")
    jobs, more = store.page(caller.owner, start, limit, order == "asc")
    found = [shown(job) for job in jobs]
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    return Page(data=found, first_id=first, last_id=last, has_more=more)


@router.post("/characters", openapi_extra=bodies.described(Character, "video"))
async def create_character(request: Request, caller: Who) -> Video:
    """Not served: a family has no characters of its own."""
    raise Refused("there are no characters here; describe them in the prompt", 404, code="not_supported")


@router.get("/characters/{character_id}")
def retrieve_character(character_id: str, caller: Who) -> Video:
    """Not served, as above."""
    raise Refused("there are no characters here; describe them in the prompt", 404, code="not_supported")


@router.post("/extensions", openapi_extra=bodies.described(Extend, "video"))
async def extend(request: Request, caller: Who) -> Video:
    """Ask for a video that goes on from the end of another."""
    body, upload = await bodies.read(request, Extend, "video")
    return shown(await run_in_threadpool(asking.extend, await _asking(request, caller), body, upload))


@router.post("/edits", openapi_extra=bodies.described(Edit, "video"))
async def edit(request: Request, caller: Who) -> Video:
    """Ask for a video once more from a block on, with another prompt."""
    body, upload = await bodies.read(request, Edit, "video")
    return shown(await run_in_threadpool(asking.edit, await _asking(request, caller), body, upload))


@router.get("/{video_id}")
def retrieve(video_id: str, request: Request, caller: Who) -> JSONResponse:
    """A video: how far it is."""
    job = _mine(request, caller, video_id)
    headers = {"openai-poll-after-ms": POLL_MS} if job.status in UNFINISHED else {}
    return JSONResponse(shown(job).model_dump(), headers=headers)


@router.get("/{video_id}/content", response_class=FileResponse)
def content(
    video_id: str,
    request: Request,
    caller: Who,
    variant: Literal["video", "thumbnail", "spritesheet", "report", "latents"] = "video",
) -> FileResponse:
    """A file of a finished video."""
    job = _mine(request, caller, video_id)
    if job.status != COMPLETED:
        raise Refused(f"video {job.id} is {job.status}; wait until it is completed", code="video_not_completed")
    name, kind = VARIANTS[variant]
    path = house_of(request).place.video(job.id) / name
    if not path.is_file():
        raise missing("file")
    filename = f"{job.id}{path.suffix}"
    return FileResponse(path, media_type=kind, filename=filename, content_disposition_type="inline")


@router.delete("/{video_id}")
def delete(video_id: str, request: Request, caller: Who) -> Deleted:
    """Delete a video and its files, finished or not."""
    job, house = _mine(request, caller, video_id), house_of(request)
    if not house.store.delete(job.id):
        raise missing("video")
    if job.status in UNFINISHED:
        house.engine.call(lambda: house.engine.drop(job.id))
    else:
        house.place.remove(house.place.video(job.id))
    return Deleted(id=job.id)


@router.post("/{video_id}/remix", openapi_extra=bodies.described(Remix))
async def remix(video_id: str, request: Request, caller: Who) -> Video:
    """Ask for a finished video once more, with another prompt and the same seed."""
    body, _ = await bodies.read(request, Remix)
    return shown(await run_in_threadpool(asking.remix, await _asking(request, caller), video_id, body))


@router.post("/{video_id}/retry")
def retry(video_id: str, request: Request, caller: Who) -> Video:
    """Have a failed video made from where it failed; what was sampled is not sampled again. (Ours.)"""
    job, house = _mine(request, caller, video_id), house_of(request)
    if job.status == FAILED:
        house.engine.ready()
        asking.check_room(house, caller)
        again = house.store.retry(job.id)
        job = _mine(request, caller, video_id)
        if again:
            house.engine.wake()
            return shown(job)
    raise Refused(f"video {job.id} is {job.status}; only failed ones are tried again", code="video_not_failed")


def _mine(request: Request, caller: Caller, video_id: str) -> Job:
    job = house_of(request).store.get(video_id, caller.owner)
    if job is None:
        raise missing("video")
    return job
