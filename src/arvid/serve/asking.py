"""How a request becomes a job: checked, its files in place, then accepted, in this order.

Knows: what each way of asking means for the engine, whose video may be used, what is too much. Does not know: HTTP, how
bodies are read, how a video is made.

A job is accepted when its row is in the database; its folder is complete before that.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

from arvid.pipeline import Pipeline, Request
from arvid.serve import bounds
from arvid.serve.house import House
from arvid.serve.keys import Caller
from arvid.serve.logs import say
from arvid.serve.making import CLIP, LATENTS, PICTURE, REPORT, VIDEO, Asked, keep_latents
from arvid.serve.place import whole
from arvid.serve.protocol import Create, Edit, Extend, Extras, Picture, Remix
from arvid.serve.refusals import LIMITED, Refused, missing
from arvid.serve.store import COMPLETED, Job, new_id, now
from arvid.video import upright

SECONDS = 4.0
"""Length of a video when nobody says so."""
COMFORTABLE = 512
"""Small frames are enlarged by a whole number until their smaller side comes near this many pixels."""
LARGEST_START = 4
"""How many times larger than a video may be what it begins with."""
DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Asking:
    """Somebody asks: the server, who it is, and the mark of a request that may come twice."""

    house: House
    caller: Caller
    repeat: str | None = None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline. Raises Refused when it is not there yet."""
        return self.house.engine.ready()


@dataclass(frozen=True)
class Wish:
    """A job before it is accepted: what is made, what is told about it, and how its folder is filled."""

    kind: str
    asked: Asked
    seconds: float
    source: str | None = None
    fill: Callable[[Path], None] = lambda folder: None


# ---------------------------------------------------------------- four ways of asking


def create(asking: Asking, body: Create, upload: bytes | None) -> Job:
    """A video of a prompt, perhaps with a picture to begin with."""
    house, pipeline = asking.house, asking.pipeline
    if body.model is not None and body.model not in house.models:
        known = ", ".join(house.models)
        raise Refused(f"model {body.model!r}; loaded: {known}", code="model_not_found", param="model")
    seconds = SECONDS if body.seconds is None else body.seconds
    request = _request(asking, body.arvid, Request("", seconds), body.prompt)
    picture = upload if upload is not None else _referred(body.input_reference)
    start, fill = "", Wish.fill
    if picture is not None:
        start, fill = PICTURE, _picture(picture, pipeline.family.card.size, house.limits.block.side)
    asked = Asked(request, start, _scale(body.size, pipeline, house.limits.block.side))
    return _accept(asking, Wish("create", asked, seconds, None, fill), given=1 if start else 0)


def remix(asking: Asking, source: str, body: Remix) -> Job:
    """The video `source` once more with another prompt."""
    job, folder = _finished(asking, source)
    old = _asked(job)
    request = _request(asking, body.arvid, old.request, body.prompt)

    def fill(new: Path) -> None:
        if old.start:
            _link(folder / old.start, new / old.start)

    wish = Wish("remix", replace(old, request=request), float(job.seconds), source, fill)
    return _accept(asking, wish, given=1 if old.start else 0)


def extend(asking: Asking, body: Extend, upload: bytes | None) -> Job:
    """A video, `seconds` longer: a finished one from its last latents, another from its last frames."""
    if upload is not None:
        return _behind_clip(asking, Wished("extend", body.prompt, body.arvid, body.seconds), Clip(upload))
    job, folder = _finished(asking, _source(body))
    old = _asked(job)
    if old.start == CLIP:
        wished = Wished("extend", body.prompt, body.arvid, body.seconds)
        return _behind_clip(asking, wished, _clip_of(job, folder))
    request = _request(asking, body.arvid, replace(old.request, seconds=body.seconds), body.prompt)
    total, frames = float(job.seconds) + body.seconds, _blocks(folder)[-1][1]
    asked = Asked(request, LATENTS, old.scale)
    wish = Wish("extend", asked, total, job.id, lambda new: _copy_latents(folder, None, new))
    return _accept(asking, wish, given=frames)


def edit(asking: Asking, body: Edit, upload: bytes | None) -> Job:
    """A video with another prompt from a block on (the second, when nobody says so)."""
    extras, fps = body.arvid, asking.pipeline.family.card.fps
    wished = Wished("edit", body.prompt, extras, None, max(1, round((extras.from_second or 0) * fps)))
    if extras.from_block is not None and (upload is not None or extras.from_second is not None):
        raise Refused("from_block goes with a video made here, and without from_second", param="arvid.from_block")
    if upload is not None:
        return _behind_clip(asking, wished, Clip(upload))
    job, folder = _finished(asking, _source(body))
    old, blocks = _asked(job), _blocks(folder)
    if old.start == CLIP:
        return _behind_clip(asking, wished, _clip_of(job, folder))
    block = 1 if extras.from_block is None else extras.from_block
    if extras.from_second is not None:
        block = sum(end / fps <= extras.from_second + 1e-6 for _, _, end in blocks)
    if not 0 <= block < len(blocks):
        raise Refused(f"block {block} of a video of {len(blocks)} blocks; count from 0", param="arvid.from_block")
    latents, shown = (blocks[block - 1][1], blocks[block - 1][2]) if block else (0, 0)
    seconds = (blocks[-1][2] - shown) / fps if block else float(job.seconds)
    request = _request(asking, extras, replace(old.request, seconds=seconds), body.prompt)
    asked = Asked(request, LATENTS if block else "", old.scale)
    wish = Wish("edit", asked, float(job.seconds), job.id, lambda new: _copy_latents(folder, latents, new))
    return _accept(asking, wish, given=latents)


@dataclass(frozen=True)
class Wished:
    """What is asked of a clip: `seconds` more of it, or (None) as long as it is, from frame `kept` on (0: the end)."""

    kind: str
    prompt: str
    extras: Extras
    seconds: float | None
    kept: int = 0


@dataclass(frozen=True)
class Clip:
    """A video as a file, the job that made it, and what was asked for then."""

    data: bytes
    source: str | None = None
    request: Request = field(default_factory=lambda: Request(""))


def _clip_of(job: Job, folder: Path) -> Clip:
    return Clip((folder / VIDEO).read_bytes(), job.id, _asked(job).request)


def _behind_clip(asking: Asking, wished: Wished, clip: Clip) -> Job:
    """A video that begins with another one."""
    card, limits = asking.pipeline.family.card, asking.house.limits
    frames = _clip_frames(clip.data, card.size, limits.block.side, limits.seconds * card.fps)
    if wished.kept >= frames:
        raise Refused(f"second {wished.kept / card.fps:g} of {frames / card.fps:g} seconds", param="arvid.from_second")
    left = (frames - wished.kept) / card.fps if wished.seconds is None else wished.seconds
    total = frames / card.fps + (wished.seconds or 0)
    request = _request(asking, wished.extras, replace(clip.request, seconds=left), wished.prompt)
    asked = Asked(request, CLIP, _scale(None, asking.pipeline, limits.block.side), wished.kept)
    return _accept(asking, Wish(wished.kind, asked, total, clip.source, _written(CLIP, clip.data)), given=1)


# ---------------------------------------------------------------- accepting


def _accept(asking: Asking, wish: Wish, given: int) -> Job:
    """Check, fill the folder, write the row. Raises Refused for too much and for what cannot be made."""
    house, pipeline, limits = asking.house, asking.pipeline, asking.house.limits
    if (again := house.store.repeated(asking.caller.owner, asking.repeat)) is not None:
        return again
    if not 0 < wish.seconds <= limits.seconds:
        raise Refused(f"{wish.seconds:g} seconds; ask for more than 0 and at most {limits.seconds:g}", param="seconds")
    if not wish.asked.request.prompt and not wish.asked.request.timeline:
        raise Refused("the prompt is empty; say what the video shows", param="prompt")
    try:
        bounds.check(pipeline, wish.asked.request, limits.block, given)
    except ValueError as error:
        raise Refused(str(error), code="invalid_value") from error
    check_room(house, asking.caller)
    width, height = (side * wish.asked.scale for side in pipeline.family.card.size)
    job = Job(
        id=new_id("video"), owner=asking.caller.owner, repeat=asking.repeat, kind=wish.kind, source=wish.source,
        model=pipeline.family.card.name, prompt=wish.asked.request.prompt, seconds=f"{wish.seconds:g}",
        size=f"{width}x{height}", asked=asdict(wish.asked), created_at=now(),
    )  # fmt: skip
    folder = house.place.video(job.id)
    folder.mkdir()
    try:
        wish.fill(folder)
        accepted, new = house.store.add(job)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not new:
        house.place.remove(folder)
    house.engine.wake()
    say("job accepted", job=accepted.id, kind=accepted.kind, owner=accepted.owner)
    return accepted


def check_room(house: House, caller: Caller) -> None:
    """Raises Refused when somebody has as many unfinished jobs as they may, or the server has."""
    mine = house.store.count(caller.owner)
    if mine >= caller.allowance.jobs or house.store.count() >= house.limits.queue:
        raise Refused(f"{mine} jobs of yours wait; let them finish first", 429, LIMITED, "queue_full", after=10)


def _request(asking: Asking, extras: Extras, request: Request, prompt: str) -> Request:
    """The request with a prompt and extras. A timeline belongs to the prompt it was given with."""
    most = asking.house.limits.prompt
    for text in (prompt, *(turn.prompt for turn in extras.timeline or ())):
        if len(text) > most:
            raise Refused(f"a prompt of {len(text)} letters; at most {most}", param="prompt")
    router = asking.pipeline.family.card.router
    try:
        return extras.onto(replace(request, prompt=prompt), router, asking.house.drafters)
    except ValueError as error:
        raise Refused(str(error), code="invalid_value", param="arvid") from error


def _scale(size: str | None, pipeline: Pipeline, most: int) -> int:
    """How often frames are enlarged to a size like 512x512."""
    width, height = pipeline.family.card.size
    if size is None:
        return max(1, min(COMFORTABLE // min(width, height), most // max(width, height)))
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    scale = int(found[1]) // width if found else 0
    if not found or scale < 1 or (int(found[1]), int(found[2])) != (scale * width, scale * height):
        raise Refused(f"size {size!r}; make it {width}x{height} or a whole multiple", param="size")
    if max(width, height) * scale > most:
        raise Refused(f"size {size}; at most {most} pixels a side", param="size")
    return scale


# ---------------------------------------------------------------- what a video begins with


def _finished(asking: Asking, source: str) -> tuple[Job, Path]:
    """Somebody's own finished video."""
    job = asking.house.store.get(source, asking.caller.owner)
    if job is None:
        raise missing("video")
    if job.status != COMPLETED:
        raise Refused(f"video {source} is {job.status}; wait until it is completed", code="video_not_completed")
    return job, asking.house.place.video(job.id)


def _asked(job: Job) -> Asked:
    """What was asked for then."""
    try:
        return Asked.of(job.asked)
    except ValueError as error:
        raise Refused(f"video {job.id}: {error}", code="invalid_value") from error


def _source(body: Extend | Edit) -> str:
    if body.video is None:
        raise Refused("no video; send a file, or the id of one of yours", param="video")
    return body.video.id


def _blocks(folder: Path) -> list[tuple[int, int, int]]:
    """Of each block of a finished video: its latent frames from and to, and the frames shown up to its end."""
    try:
        rows = json.loads((folder / REPORT).read_text(encoding="utf-8"))["blocks"]
    except OSError as error:
        raise Refused("this video is being deleted; use another", code="not_found") from error
    found, shown = [], 0
    for row in rows:
        shown += row["frames"]
        found.append((*row["latent_frames"], shown))
    return found


def _copy_latents(folder: Path, frames: int | None, new: Path) -> None:
    if frames != 0:
        keep_latents(folder, frames, new / LATENTS)


def _link(source: Path, new: Path) -> None:
    """The same file in another folder; finished files never change."""
    try:
        os.link(source, new)
    except OSError:
        shutil.copyfile(source, new)


def _written(name: str, data: bytes) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        with whole(folder / name) as part:
            part.write_bytes(data)

    return fill


def _referred(picture: Picture | None) -> bytes | None:
    if picture is None:
        return None
    url = picture.image_url or ""
    found = DATA_URL.match(url)
    if picture.file_id is not None or not found:
        raise Refused("input_reference is no file and no data: URL; nothing is fetched", param="input_reference")
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"input_reference is no base64 ({error})", param="input_reference") from error


def _picture(data: bytes, size: tuple[int, int], most: int) -> Callable[[Path], None]:
    """Keeps a picture as PNG. Raises Refused for what is none, of another shape, or too large to be opened."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            _check_sides("input_reference", *picture.size, most)
            _check_shape("input_reference", *picture.size, size)
            out = io.BytesIO()
            picture.convert("RGB").save(out, format="PNG")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"no picture ({error}); send PNG, JPEG or WebP", param="input_reference") from error
    return _written(PICTURE, out.getvalue())


def _clip_frames(data: bytes, size: tuple[int, int], side: int, most: float) -> int:
    """Frames of a clip. Raises Refused for what is none, of another shape, too large or too long.

    Only MP4 is read: other formats may name files and addresses that would be opened.
    """
    frames = 0
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as file:
            stream = file.streams.video[0]
            _check_sides("video", stream.width, stream.height, side)
            for frame in file.decode(stream):
                if not frames:
                    high, wide = upright(frame).shape[:2]
                    _check_shape("video", wide, high, size)
                frames += 1
                if frames > most:
                    raise Refused(f"a video of more than {most:g} frames; send a shorter one", param="video")
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise Refused(f"the video cannot be read ({error}); send an mp4", param="video") from error
    if not frames:
        raise Refused("the video holds no frames; send a whole one", param="video")
    return frames


def _check_sides(param: str, wide: int, high: int, most: int) -> None:
    if not 0 < max(wide, high) <= LARGEST_START * most:
        raise Refused(f"{wide}x{high} pixels; at most {LARGEST_START * most} a side", param=param)


def _check_shape(param: str, wide: int, high: int, size: tuple[int, int]) -> None:
    width, height = size
    if abs(wide * height - high * width) > max(wide, high):
        raise Refused(f"{wide}x{high} pixels; cut it to the shape of {width}x{height}", param=param)
