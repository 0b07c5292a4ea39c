"""Fragmented MP4: an init segment, then one fragment per block, each decodable after the init segment alone.

Knows: H.264, the boxes of ISO BMFF (ISO/IEC 14496-12: ftyp, moov; moof with mfhd and tfdt, mdat). Does not know:
sessions, clients, when a fragment is wanted.

Every block gets an encoder of its own, so a fragment begins with a key frame and depends on nothing before it: a stream
may go on from any block in any version. The place of a fragment in time is written into its box.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from torch import Tensor

from arvid.video import enlarge, to_bytes

TICKS = 1000
"""Ticks of the media clock per frame."""
OPTIONS = {
    "preset": "ultrafast", "tune": "zerolatency", "g": "100000", "sc_threshold": "0", "x264-params": "cabac=1",
}  # fmt: skip
"""The least work for a frame; CABAC takes back more bytes than it costs time."""
SEPARATE = {"movflags": "empty_moov+default_base_moof+frag_keyframe+skip_trailer"}
BT709 = 1


class Fragmenter:
    """Fragments of frames of a size, enlarged `scale` times. Safe for use by several threads; every call stands alone.

    Raises ValueError for an odd side after enlarging.
    """

    def __init__(self, fps: int, size: tuple[int, int], scale: int = 1, crf: int = 18) -> None:
        self.fps, self.width, self.height, self._scale = fps, size[0] * scale, size[1] * scale, scale
        if self.width % 2 or self.height % 2:
            raise ValueError(f"{self.width}x{self.height} has an odd side; give an even scale")
        self._options = {**OPTIONS, "crf": str(crf)}
        grey = self._encoded(torch.zeros(1, 3, size[1], size[0]))
        self.init = b"".join(box for name, box in boxes(grey) if name in (b"ftyp", b"moov"))

    @property
    def codec(self) -> str:
        """The kind of the stream, as a browser wants to hear it."""
        place = self.init.index(b"avcC") + 5
        return f'video/mp4; codecs="avc1.{self.init[place : place + 3].hex()}"'

    def fragment(self, v_TCHW: Tensor, first: int, number: int) -> bytes:
        """A fragment of frames in [-1, 1] whose first one is frame `first` of the stream; `number` counts from 1."""
        parts = [bytearray(box) for name, box in boxes(self._encoded(v_TCHW)) if name in (b"moof", b"mdat")]
        _write(parts[0], b"mfhd", number)
        _write(parts[0], b"tfdt", first * TICKS)
        return b"".join(parts)

    def _encoded(self, v_TCHW: Tensor) -> bytes:
        """A whole fragmented file of the frames."""
        out = io.BytesIO()
        options = {**SEPARATE, "video_track_timescale": str(self.fps * TICKS)}
        with av.open(out, "w", format="mp4", options=options) as file:
            stream = file.add_stream("libx264", rate=Fraction(self.fps), options=self._options)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            context = stream.codec_context
            context.thread_count = 1
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = int(av.video.reformatter.ColorRange.MPEG)
            for picture_HWC in to_bytes(v_TCHW):
                file.mux(stream.encode(_yuv(enlarge(picture_HWC, self._scale))))
            file.mux(stream.encode(None))
        return out.getvalue()


def _yuv(picture_HWC: np.ndarray) -> av.VideoFrame:
    reformatter = av.video.reformatter
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), format="rgb24").reformat(
        format="yuv420p", src_color_range=reformatter.ColorRange.JPEG, dst_color_range=reformatter.ColorRange.MPEG,
        src_colorspace=reformatter.Colorspace.ITU709, dst_colorspace=reformatter.Colorspace.ITU709,
    )  # fmt: skip


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of a file, one after the other: name, and everything with its header."""
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place : place + size]
        place += size


def _write(moof: bytearray, name: bytes, value: int) -> None:
    """Set the one number of a full box inside `moof`: 32 bits, or 64 in version 1."""
    place = moof.index(name) + 4
    width = 8 if moof[place] == 1 else 4
    moof[place + 4 : place + 4 + width] = value.to_bytes(width, "big")
