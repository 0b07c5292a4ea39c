"""Video and pictures in files: mp4 written block by block or in parts, any video and picture read.

Knows: encoders, decoders, pixels, which way up a frame is shown. Does not know: what is on them, models. Nothing
half-written ever bears a final name.

Legend: T frames, C channels, H height, W width; v_TCHW in [-1, 1]; frames_THWC and picture_HWC are uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image
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


# ---------------------------------------------------------------- reading


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """An open video file and its first stream of pictures. Whatever goes wrong with the file, inside too, is a
    ValueError."""
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            if stream.codec_context is None or not stream.width:
                raise IndexError("no picture in it")
            yield file, stream
    except (av.error.FFmpegError, OSError, IndexError) as error:
        why = str(getattr(error, "strerror", "") or error).strip().splitlines()[0]
        raise ValueError(f"{path} cannot be read as a video ({why}); make or fetch it again") from error


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """Frames of a video file one by one, uint8 [H, W, 3], each as `upright` shows it. Raises ValueError when the file
    is missing, damaged or empty."""
    empty = True
    with open_video(path) as (file, stream):
        for frame in file.decode(stream):
            empty = False
            yield upright(frame)
    if empty:
        raise ValueError(f"{path} holds 0 frames, expected at least 1; make or fetch it again")


def upright(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as a player shows it, uint8 [H, W, 3]. Cameras store what they see, and beside it a display
    matrix that says how it was held: the frame is turned by quarters and mirrored as that asks."""
    picture_HWC = frame.to_ndarray(format="rgb24", src_colorspace=frame.colorspace)
    try:
        beside: Any = frame.side_data
        matrix = beside.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV lists none of a frame's side data when it knows one kind of them not; the angle it tells all the same.
        return np.ascontiguousarray(np.rot90(picture_HWC, round(frame.rotation / 90)))
    if matrix is None:
        return picture_HWC
    # ISO 14496-12: what is stored at (x, y), y downwards, is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5)
    lies = abs(b) > abs(a)
    across, down = (c, b) if lies else (a, d)
    shown_HWC = picture_HWC.swapaxes(0, 1) if lies else picture_HWC
    return np.ascontiguousarray(shown_HWC[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


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
