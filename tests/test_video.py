"""Files of video and pictures of frames, read back by other means than they were written with."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from arvid.video import (
    MAKERS,
    Album,
    Reel,
    Strip,
    VideoWriter,
    contact_sheet,
    read_picture,
    read_video,
    side_by_side,
    to_bytes,
)  # fmt: skip
from oracles import films

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 210), (230, 220, 60))


def plain(colours: tuple[tuple[int, int, int], ...], size: int = 64) -> Tensor:
    """One frame of each colour, v_TCHW."""
    return (torch.tensor(colours).float() / 127.5 - 1)[:, :, None, None].expand(-1, -1, size, size)


def boxes(path: Path) -> list[str]:
    """Names of the outermost boxes of an mp4, in order (ISO 14496-12)."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += length if length != 1 else struct.unpack(">Q", data[at + 8 : at + 16])[0]
    return names


def test_a_video_is_h264_with_its_index_at_the_front(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 16, 64, 48) as film:
        for _ in range(3):
            film.append(torch.zeros(5, 3, 48, 64))
        assert not path.exists()
    assert film.frames == 15
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]
    names = boxes(path)
    assert names.index("moov") < names.index("mdat")
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 64, 48)
        assert stream.average_rate == 16
        assert sum(1 for _ in file.decode(video=0)) == 15


@pytest.mark.parametrize("scale", [1, 4])
def test_colours_and_order_survive(tmp_path: Path, scale: int) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 16, 64, 64, scale) as film:
        for frame in plain(COLOURS).split(1):
            film.append(frame)
    frames = read_video(path)
    assert frames.shape == (4, 64 * scale, 64 * scale, 3)
    assert np.abs(frames.astype(int) - np.array(COLOURS)[:, None, None]).max() <= 6


def test_enlarging_keeps_edges_sharp(tmp_path: Path) -> None:
    v = -torch.ones(2, 3, 8, 8)
    v[:, :, :, 4:] = 1
    with VideoWriter(tmp_path / "a.mp4", 16, 8, 8, 8) as film:
        film.append(v)
    frames = read_video(tmp_path / "a.mp4")
    assert frames[:, :, :31].max() < 16
    assert frames[:, :, 33:].min() > 239


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_holds_the_frames_so_far(tmp_path: Path, fault: type[BaseException]) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(fault), VideoWriter(path, 16, 64, 64) as film:
        film.append(plain(COLOURS))
        raise fault
    assert len(read_video(path)) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_without_frames_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 16, 64, 64):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.mp4").write_bytes(b"old")
    with VideoWriter(tmp_path / "a.mp4", 16, 64, 64):
        pass
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="65x64 has an odd side"):
        VideoWriter(tmp_path / "a.mp4", 16, 65, 64)
    VideoWriter(tmp_path / "a.mp4", 16, 65, 64, 2)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        VideoWriter(tmp_path / "nowhere" / "a.mp4", 16, 64, 64)
    with pytest.raises(ValueError, match="64x64 enlarged 0 times"):
        VideoWriter(tmp_path / "a.mp4", 16, 64, 64, 0)
    with VideoWriter(tmp_path / "a.mp4", 16, 64, 64) as film:
        with pytest.raises(ValueError, match=r"expected .T, 64, 64, 3."):
            film.append(torch.zeros(1, 3, 64, 32))
        with pytest.raises(ValueError, match=r"expected .T, 3, H, W."):
            film.append(torch.zeros(3, 64, 64))
    assert list(tmp_path.iterdir()) == []


STORED = "ABCD"
"""Corners of a picture, clockwise from the upper left."""


def cornered(path: Path) -> Path:
    """A video of 96x64 with a colour in each quarter: A red, B green, C blue, D yellow."""
    picture = np.zeros((64, 96, 3), np.uint8)
    for corner, colour in zip(STORED, COLOURS, strict=True):
        top, left = 32 * (corner in "CD"), 48 * (corner in "BC")
        picture[top : top + 32, left : left + 48] = colour
    return films.write(path, np.stack([picture] * 3))


def corners(picture_HWC: np.ndarray) -> str:
    """The letters of a picture's quarters, clockwise from the upper left."""
    high, wide = picture_HWC.shape[:2]
    places = [(high // 4, wide // 4), (high // 4, -wide // 4), (-high // 4, -wide // 4), (-high // 4, wide // 4)]
    far = np.abs(np.array([picture_HWC[place] for place in places], int)[:, None] - COLOURS).sum(-1)
    return "".join(STORED[number] for number in far.argmin(1))


@pytest.mark.parametrize(
    ("turn", "seen"),
    [
        ("clockwise", "DABC"),
        ("upside down", "CDAB"),
        ("counterclockwise", "BCDA"),
        ("mirrored", "BADC"),
        ("flipped", "DCBA"),
        ("mirrored clockwise", "ADCB"),
        ("mirrored counterclockwise", "CBAD"),
    ],
)
def test_a_video_is_read_the_way_up_that_players_show(tmp_path: Path, turn: str, seen: str) -> None:
    path = cornered(tmp_path / "a.mp4")
    assert corners(read_video(path)[0]) == STORED
    frames = read_video(films.turned(path, films.TURNS[turn]))
    assert frames.shape == ((3, 96, 64, 3) if "clockwise" in turn else (3, 64, 96, 3))
    assert [corners(frame) for frame in frames] == [seen] * 3
    assert frames.flags.c_contiguous
    if "mirrored" not in turn and turn != "flipped":
        # OpenCV turns frames by itself, but knows of no mirrors.
        found, bgr_HWC = cv2.VideoCapture(str(path)).read()
        assert found and corners(bgr_HWC[..., ::-1]) == seen and bgr_HWC.shape == frames[0].shape


@pytest.mark.skipif(av.library_versions["libavcodec"][0] < 62, reason="FFmpeg before 8 does not tell what EXIF says")
def test_a_frame_is_turned_when_something_unknown_stands_beside_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with av.open(str(cornered(tmp_path / "a.mp4"))) as file:
        picture = next(file.decode(video=0)).to_image()
    picture.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as held:
        upright = np.asarray(ImageOps.exif_transpose(held))
    assert corners(upright) == "DABC"
    assert corners(read_video(tmp_path / "a.jpg")[0]) == "DABC"


@pytest.mark.parametrize("content", [None, b"", b"no video at all"])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video"):
        read_video(tmp_path / "a.mp4")


def test_bytes_are_the_nearest_of_256_levels() -> None:
    levels = np.arange(256, dtype=np.uint8)
    v = torch.from_numpy(levels.astype(np.float32) / 127.5 - 1).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert (to_bytes(v)[0, :, :, 1].ravel() == levels).all()
    assert to_bytes(torch.full((1, 3, 2, 2), 7.0)).max() == 255


def rgb(source: str) -> tuple[int, ...]:
    """The colour of a maker, as three numbers."""
    return tuple(bytes.fromhex(MAKERS[source].colour[1:]))


def runs(line: np.ndarray, wanted: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The colours of a row of pixels that are wanted, neighbours that are equal taken once."""
    found: list[tuple[int, ...]] = []
    before: tuple[int, ...] | None = None
    for pixel in map(tuple, line.tolist()):
        if pixel in wanted and pixel != before:
            found.append(pixel)
        before = pixel
    return found


def test_a_contact_sheet_shows_frames_in_order_and_who_made_them(tmp_path: Path) -> None:
    album = Album(16)
    makers = ("target", "draft", "refined", "repaired")
    for frame, source in zip(plain(COLOURS).split(1), makers, strict=True):
        album.add(frame.expand(12, -1, -1, -1), source)
    shown = album.strip(label="a label")
    contact_sheet([shown], tmp_path / "a.png", "a prompt", columns=4)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    pictures = {tuple(colour) for colour in COLOURS}
    assert sum(runs(line, pictures) == list(COLOURS) for line in sheet) == 128
    bars = [rgb(source) for source in makers]
    assert sum(runs(line, set(bars)) == bars for line in sheet) >= 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_sheet_of_two_strips_has_a_row_for_each(tmp_path: Path) -> None:
    strips = [Strip(to_bytes(plain(COLOURS[:2]))), Strip(to_bytes(plain(COLOURS[2:])))]
    contact_sheet(strips, tmp_path / "a.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    found = [row for line in sheet if (row := runs(line, {tuple(colour) for colour in COLOURS}))]
    assert found == [list(COLOURS[:2])] * 128 + [list(COLOURS[2:])] * 128


def test_a_long_label_goes_on_below_itself_and_pushes_frames_down(tmp_path: Path) -> None:
    words, frames, found = "a wide green square above that wanders ", to_bytes(plain(COLOURS)), {}
    for count in (1, 9):
        contact_sheet([Strip(frames, (words * count).strip())], tmp_path / "a.png")
        sheet = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        top = int(np.flatnonzero((sheet == COLOURS[0]).all(-1).any(1))[0])
        inked = (np.abs(sheet - sheet[0, 0]).max(-1) > 30)[:top]
        found[count] = (top, np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0)), sheet.shape)
    (top, lines, _, (high, wide, _)), (low, more, across, (higher, _, _)) = found[1], found[9]
    assert low > top and low - top == higher - high
    assert across[-1] <= wide - 28 and across[-1] > wide / 2
    # As many lines of ink as the label needs: rows without ink stand between them and above the frames.
    assert (np.diff(lines) > 1).sum() == 0 and (np.diff(more) > 1).sum() == 2 and more[-1] < low - 1


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 strips"):
        contact_sheet([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="0 frames in the album"):
        Album(16).strip()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_an_album_stays_small_and_even(count: int) -> None:
    album = Album(16, least=4)
    for number in range(count):
        album.add(torch.full((1, 3, 2, 2), number / 127.5 - 1), "draft")
    strip = album.strip()
    numbers = strip.frames_THWC[:, 0, 0, 0].astype(int)
    assert 1 <= len(numbers) <= 8
    assert numbers[0] == 0
    assert len(set(np.diff(numbers).tolist())) <= 1
    assert count < 4 or len(numbers) >= 4
    assert strip.seconds == tuple(number / 16 for number in numbers)


def test_two_videos_stand_side_by_side_and_the_shorter_one_waits() -> None:
    left, right = Strip(to_bytes(plain(COLOURS[:1], 16))), Strip(to_bytes(plain(COLOURS[1:3], 16)))
    pictures = list(side_by_side(left, right, 3))
    assert len(pictures) == 2
    assert all(picture.shape[0] % 2 == 0 and picture.shape[1] % 2 == 0 for picture in pictures)
    for picture, expected in zip(pictures, COLOURS[1:3], strict=True):
        rows = [row for line in picture if (row := runs(line, {tuple(colour) for colour in COLOURS}))]
        assert rows == [[COLOURS[0], expected]] * 48


# ---------------------------------------------------------------- parts, pictures


def test_the_parts_of_a_reel_become_one_video(tmp_path: Path) -> None:
    """Joined packet by packet: the frames of the parts, in their order, at an even pace."""
    clip = plain(COLOURS * 8)
    with Reel(tmp_path, [], 16, (64, 64)) as reel:
        for start, stop in ((0, 9), (9, 10), (10, 25)):
            reel.append(clip[start:stop])
            reel.cut()
        reel.append(clip[25:])
        assert reel.parts == [f"part-{number:06d}.mp4" for number in range(3)], "the open one is not yet a part"
    with Reel(tmp_path, reel.parts, 16, (64, 64)) as again:
        again.join(tmp_path / "a.mp4")
    frames = read_video(tmp_path / "a.mp4")
    assert np.array_equal(frames, np.concatenate([read_video(tmp_path / name) for name in reel.parts]))
    assert np.abs(frames.astype(int) - np.array(COLOURS * 8)[:, None, None]).max() <= 6
    names = boxes(tmp_path / "a.mp4")
    assert names.index("moov") < names.index("mdat")
    with av.open(str(tmp_path / "a.mp4")) as file:
        stamps = [float(frame.time) for frame in file.decode(video=0)]
    assert stamps == pytest.approx([number / 16 for number in range(32)], abs=1e-3)


def test_pictures_are_brought_to_the_size_of_the_video(tmp_path: Path) -> None:
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, ::2] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", 16, 8)
    assert found.shape == (1, 8, 16, 3)
    assert (found == 100).all(), "each point is the mean of what falls on it"
    assert np.array_equal(read_picture(tmp_path / "a.png", 64, 32)[0], wide)
    with pytest.raises(ValueError, match=r"a.png is 64x32, the video 64x64; cut it to that shape first"):
        read_picture(tmp_path / "a.png", 64, 64)
    with pytest.raises(ValueError, match=r"none.png cannot be read as a picture"):
        read_picture(tmp_path / "none.png", 64, 64)
