"""Video in files and pictures: mp4 written block by block or in parts, contact sheets, two videos side by side.

Knows: encoders, pixels, colours and captions. Does not know: models, prompts' meaning, how a block was decided (it is
told who made each frame). Nothing half-written ever bears a final name.

Legend: T frames, C channels, H height, W width; v_TCHW in [-1, 1]; frames_THWC and picture_HWC are uint8 RGB.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

BT709 = 1
"""The number H.264 gives to ITU-R BT.709, for the matrix, the primaries and the transfer."""


def to_bytes(v_TCHW: Tensor) -> np.ndarray:
    """Pixels v_TCHW in [-1, 1] as frames_THWC uint8.

    Raises ValueError for other than four axes and three channels.
    """
    if v_TCHW.ndim != 4 or v_TCHW.shape[1] != 3:
        raise ValueError(f"frames of shape {[*v_TCHW.shape]}; expected [T, 3, H, W] in [-1, 1]")
    scaled = ((v_TCHW.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.byte().movedim(1, -1).contiguous().cpu().numpy()


def enlarge(frames_THWC: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel as a square of `scale` x `scale` (nearest neighbour): small frames stay as they are, only larger."""
    return frames_THWC.repeat(scale, -3).repeat(scale, -2)


class VideoWriter:
    """An H.264 mp4 (yuv420p, BT.709, index at the front) of frames that come block by block.

        with VideoWriter(path, 16, 64, 64, scale=8) as film:
            film.append(v_TCHW)

    It is written beside its place and moved there when it is closed. Whatever ends the `with` block, an interrupt
    included, the frames so far become a valid file; without any frame no file appears. `width` and `height` are those
    of the frames that are appended, `scale` enlarges them. `frames` counts them.

    Raises ValueError for no folder, and enlarged frames with a side that is odd (yuv420p halves it) or above 16384.
    """

    def __init__(self, path: Path, fps: float, width: int, height: int, scale: int = 1, crf: int = 12) -> None:
        self.path, self.frames = Path(path), 0
        self._width, self._height, self._scale = width, height, scale
        if scale < 1 or width < 1 or height < 1 or not fps > 0 or max(width, height) * scale > 16384:
            raise ValueError(f"{width}x{height} enlarged {scale} times at {fps} fps; sides: 1 to 16384, fps above 0")
        if (width * scale) % 2 or (height * scale) % 2:
            raise ValueError(
                f"{width * scale}x{height * scale} has an odd side, yuv420p needs even ones; give an even scale"
            )
        if not self.path.absolute().parent.is_dir():
            raise ValueError(f"folder {self.path.absolute().parent} does not exist; make it first")
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._crf = crf

    def __enter__(self) -> VideoWriter:
        self._file = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        stream = self._file.add_stream("libx264", rate=self._rate, options={"crf": str(self._crf), "preset": "fast"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = self._width * self._scale, self._height * self._scale
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = int(ColorRange.MPEG)
        self._stream = stream
        return self

    def append(self, v_TCHW: Tensor) -> None:
        """Add frames in [-1, 1]. Raises ValueError when they are not of the writer's size."""
        self.append_bytes(to_bytes(v_TCHW))

    def append_bytes(self, frames_THWC: np.ndarray) -> None:
        """Add uint8 RGB frames. Raises ValueError when they are not of the writer's size."""
        if frames_THWC.shape[1:] != (self._height, self._width, 3):
            raise ValueError(
                f"frames of shape {[*frames_THWC.shape]} for a video of {self._width}x{self._height}; "
                f"expected [T, {self._height}, {self._width}, 3]"
            )
        for picture_HWC in frames_THWC:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(enlarge(picture_HWC, self._scale)), format="rgb24")
            self._file.mux(self._stream.encode(_to_yuv(rgb)))
            self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.frames:
                self._file.mux(self._stream.encode(None))
            self._file.close()
            if self.frames:
                os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)


def _to_yuv(rgb: av.VideoFrame) -> av.VideoFrame:
    return rgb.reformat(
        format="yuv420p", src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
        src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709,
    )  # fmt: skip


class Reel:
    """A video in parts that are whole files in a folder, so that a process that is killed loses the open one only. Use
    it as a context, like a `VideoWriter`; `parts` names the closed ones. Raises ValueError as `VideoWriter` does."""

    def __init__(self, folder: Path, parts: Sequence[str], fps: float, size: tuple[int, int], scale: int = 1) -> None:
        self.folder, self.parts = folder, list(parts)
        self._make = partial(VideoWriter, fps=fps, width=size[0], height=size[1], scale=scale)
        self._film: VideoWriter | None = None
        self._make(folder / "part.mp4")

    def __enter__(self) -> Reel:
        return self

    def append(self, v_TCHW: Tensor) -> None:
        """Add frames in [-1, 1]. Raises ValueError when they are not of the reel's size."""
        self.append_bytes(to_bytes(v_TCHW))

    def append_bytes(self, frames_THWC: np.ndarray) -> None:
        """Add uint8 RGB frames. Raises ValueError when they are not of the reel's size."""
        if self._film is None:
            self._film = self._make(self.folder / f"part-{len(self.parts):06d}.mp4").__enter__()
        self._film.append_bytes(frames_THWC)

    def cut(self) -> None:
        """Close the part that is open."""
        if self._film is not None:
            self._film.__exit__(None, None, None)
            self.parts += [self._film.path.name] if self._film.frames else []
            self._film = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def join(self, path: Path) -> None:
        """One video of all closed parts, packet by packet, without encoding anything again. Packets come in the order
        of decoding; how far that runs ahead of showing differs from part to part, so the largest lead holds for all."""
        part, paths = path.with_name(f".{path.name}.{os.getpid()}.part"), [self.folder / name for name in self.parts]
        lead, count = max(map(_lead, paths), default=0), 0
        try:
            with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as out:
                stream: VideoStream | None = None
                for closed in paths:
                    with av.open(str(closed)) as file:
                        stream = stream or out.add_stream_from_template(file.streams.video[0])
                        count = _copied(file, out, stream, count, lead)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _lead(path: Path) -> int:
    """How long before its own showing the first packet of a file is decoded."""
    with av.open(str(path)) as file:
        return -(next(file.demux(file.streams.video[0])).dts or 0)


def _copied(file: InputContainer, out: OutputContainer, stream: VideoStream, count: int, lead: int) -> int:
    """Put the packets of a part behind the `count` packets that are there; how many there are then."""
    begin = count
    for packet in file.demux(file.streams.video[0]):
        if packet.pts is None or packet.duration is None:
            continue  # the empty one that ends a file
        packet.pts, packet.dts = packet.pts + begin * packet.duration, count * packet.duration - lead
        packet.stream, count = stream, count + 1
        out.mux(packet)
    return count


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """Frames of a video file one by one, uint8 [H, W, 3]. Raises ValueError when it is missing, damaged or empty."""
    found = 0
    try:
        with av.open(str(path)) as file:
            for frame in file.decode(video=0):
                found += 1
                yield frame.to_ndarray(format="rgb24", src_colorspace=frame.colorspace)
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error}); give an mp4") from error
    if not found:
        raise ValueError(f"{path} holds no frames; give a whole video")


def read_video(path: Path) -> np.ndarray:
    """All frames of a video file, uint8 [T, H, W, 3]. Raises ValueError as `frames_of` does."""
    return np.stack(list(frames_of(path)))


def read_picture(path: Path, width: int, height: int) -> np.ndarray:
    """A picture as one frame, uint8 [1, H, W, 3]. Raises ValueError when it is missing, damaged or of another shape."""
    try:
        with Image.open(path) as picture:
            found = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); give a PNG or JPEG") from error
    return fitted(found, width, height, str(path))[None]


def fitted(picture_HWC: np.ndarray, width: int, height: int, name: str) -> np.ndarray:
    """A picture brought to another size by the mean of what falls on each point. Raises ValueError when it is of
    another shape by more than a point of the new size, as something would be cut off or bent."""
    high, wide = picture_HWC.shape[:2]
    if abs(wide * height - high * width) > max(wide, high):
        raise ValueError(f"{name} is {wide}x{high}, the video {width}x{height}; cut it to that shape first")
    return np.asarray(Image.fromarray(picture_HWC).resize((width, height), Image.Resampling.BOX))


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Maker:
    """How frames of one source are marked."""

    letter: str
    colour: str
    words: str


MAKERS = {
    "target": Maker("T", "#5b8def", "target"),
    "draft": Maker("D", "#4cc38a", "drafter"),
    "refined": Maker("R", "#f2b84b", "drafted, refined by the target"),
    "repaired": Maker("M", "#c77dff", "drafted, repaired by the target"),
    "verified": Maker("V", "#3fb8c4", "drafted, seen by the target"),
    "given": Maker("G", "#b7a58a", "given to begin with"),
}
"""Marks by `Block.source`."""
OTHER = Maker("?", "#8a8f98", "another maker")
PAPER, INK, FAINT = "#14161b", "#eceef2", "#9aa0ab"


@dataclass(frozen=True, eq=False)
class Strip:
    """Frames [T, H, W, 3] uint8 with a label, the second each is shown at, and who made it (`Block.source`)."""

    frames_THWC: np.ndarray
    label: str = ""
    seconds: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()


class Album:
    """Collects the frames of a stream for a picture and keeps at most 2 x `least` of them, evenly spaced, so that a
    day of video needs no more memory than a minute."""

    def __init__(self, fps: float, least: int = 256) -> None:
        self._fps, self._least, self._stride, self._seen = fps, least, 1, 0
        self._kept: list[tuple[np.ndarray, float, str]] = []

    def add(self, v_TCHW: Tensor, source: str) -> None:
        """The frames of a block and who made it."""
        for picture_HWC in to_bytes(v_TCHW):
            if self._seen % self._stride == 0:
                self._kept.append((picture_HWC.copy(), self._seen / self._fps, source))
            self._seen += 1
            if len(self._kept) >= 2 * self._least:
                self._kept, self._stride = self._kept[::2], self._stride * 2

    def strip(self, label: str = "") -> Strip:
        """What was kept. Raises ValueError when nothing was added."""
        if not self._kept:
            raise ValueError("0 frames in the album; add a block first")
        pictures, seconds, sources = zip(*self._kept, strict=True)
        return Strip(np.stack(pictures), label, seconds, sources)


def contact_sheet(strips: Sequence[Strip], path: Path, title: str = "", columns: int = 8, lines: int = 1) -> None:
    """A PNG of `columns` x `lines` evenly spaced frames per strip, enlarged to at least 128 pixels; below each one a
    bar in the colour of its maker, a letter and its second; the title on top, the colours explained at the bottom.

    Raises ValueError when there is nothing to show.
    """
    if not strips or any(len(strip.frames_THWC) == 0 for strip in strips):
        raise ValueError(f"{len(strips)} strips for a contact sheet, each needs at least one frame")
    rows = [row for strip in strips for row in _rows(strip, columns, lines)]
    high, wide = strips[0].frames_THWC.shape[1:3]
    scale = max(1, -(-128 // min(wide, high)))
    width = 2 * MARGIN + columns * (wide * scale + GAP) - GAP
    caption = _wrapped(title, 25, width - 2 * MARGIN)
    top = MARGIN + 34 * len(caption) + (10 if caption else 0)
    labels = [_wrapped(row.label, 18, width - 2 * MARGIN) for row in rows]
    height = top + sum(high * scale + FOOT + HEAD * len(label) for label in labels) + MARGIN + 24
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(caption):
        draw.text((MARGIN, MARGIN - 6 + 34 * number), line, INK, _font(25))
    for row, label in zip(rows, labels, strict=True):
        draw.text((MARGIN, top), "\n".join(label), INK, _font(18))
        top += HEAD * len(label)
        for column, picture_HWC in enumerate(row.frames_THWC):
            left = MARGIN + column * (wide * scale + GAP)
            sheet.paste(Image.fromarray(enlarge(picture_HWC, scale)), (left, top))
            _mark(draw, row, column, left, top + high * scale, wide * scale)
        top += high * scale + FOOT
    _legend(draw, [source for strip in strips for source in strip.sources], MARGIN, top + 4)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        sheet.save(part, format="PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


MARGIN, GAP, HEAD, FOOT = 28, 8, 30, 40


def _rows(strip: Strip, columns: int, lines: int) -> list[Strip]:
    """A strip as rows of at most `columns` frames; the label stays with the first."""
    count = min(columns * lines, len(strip.frames_THWC))
    chosen = sorted({round(number) for number in np.linspace(0, len(strip.frames_THWC) - 1, count)})
    parts = [chosen[start : start + columns] for start in range(0, len(chosen), columns)]
    return [
        Strip(
            strip.frames_THWC[part], "" if number else strip.label,
            tuple(strip.seconds[i] for i in part) if strip.seconds else (),
            tuple(strip.sources[i] for i in part) if strip.sources else (),
        )
        for number, part in enumerate(parts)
    ]  # fmt: skip


def _mark(draw: ImageDraw.ImageDraw, row: Strip, column: int, left: int, top: int, width: int) -> None:
    """The bar, the letter and the second below a frame."""
    if row.sources:
        maker = MAKERS.get(row.sources[column], OTHER)
        draw.rectangle((left, top + 3, left + width - 1, top + 8), maker.colour)
        draw.text((left, top + 12), maker.letter, maker.colour, _font(15))
    if row.seconds:
        draw.text((left + width, top + 13), f"{row.seconds[column]:.2f} s", FAINT, _font(13), anchor="ra")


def _legend(draw: ImageDraw.ImageDraw, sources: Sequence[str], left: float, top: float) -> None:
    for source in dict.fromkeys(sources):
        maker = MAKERS.get(source, OTHER)
        draw.rectangle((left, top + 3, left + 13, top + 16), maker.colour)
        text = f"{maker.letter}  {maker.words}"
        draw.text((left + 21, top), text, FAINT, _font(15))
        left += 21 + draw.textlength(text, _font(15)) + 32


def side_by_side(left: Strip, right: Strip, scale: int) -> Iterator[np.ndarray]:
    """Pictures [H, W, 3] uint8 of two videos next to each other, both sides even: labels above, and below each a line
    of time in the colours of its makers. The shorter one holds its last frame."""
    high, wide = left.frames_THWC.shape[1:3]
    width, top, gap = wide * scale, 46, 16
    size = (2 * (width + gap) + gap, top + high * scale + 34)
    plate = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
    for number in range(max(len(left.frames_THWC), len(right.frames_THWC))):
        picture = plate.copy()
        draw = ImageDraw.Draw(picture)
        for strip, x in ((left, gap), (right, width + 2 * gap)):
            at = min(number, len(strip.frames_THWC) - 1)
            draw.text((x, 13), strip.label, INK, _font(19))
            picture.paste(Image.fromarray(enlarge(strip.frames_THWC[at], scale)), (x, top))
            _timeline(draw, strip, at, x, top + high * scale + 10, width)
        yield np.asarray(picture)


def _timeline(draw: ImageDraw.ImageDraw, strip: Strip, at: int, left: int, top: int, width: int) -> None:
    """One segment per frame, bright once it was played."""
    count = len(strip.frames_THWC)
    for number in range(count):
        maker = MAKERS.get(strip.sources[number], OTHER) if strip.sources else OTHER
        start, stop = left + width * number // count, left + width * (number + 1) // count - 1
        high = 10 if number <= at else 3
        draw.rectangle((start, top + (10 - high) // 2, stop, top + (10 + high) // 2), maker.colour)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """A text in lines of about `width` pixels, at most three of them."""
    return textwrap.wrap(text, max(20, int(width / (0.47 * size))), max_lines=3, placeholder=" ...")
