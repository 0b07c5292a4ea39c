"""Fragments: together they are the film, each stands alone, and each knows its place in time."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import torch

from arvid.serve.fragments import Fragmenter, boxes
from arvid.video import to_bytes

FPS, SIZE, SCALE = 16, (64, 48), 2


def film() -> torch.Tensor:
    """21 frames of a square that moves over a grey ramp."""
    v = torch.linspace(-0.5, 0.5, SIZE[0]).expand(21, 3, SIZE[1], SIZE[0]).clone()
    for number in range(21):
        v[number, 0, 10:26, number : number + 16] = 0.9
    return v


def parts(fragmenter: Fragmenter) -> list[bytes]:
    """Blocks of 9 and 12 frames."""
    v = film()
    return [fragmenter.fragment(v[:9], 0, 1), fragmenter.fragment(v[9:], 9, 2)]


def decoded(data: bytes) -> tuple[np.ndarray, list[float]]:
    with av.open(io.BytesIO(data)) as file:
        found = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in file.decode(video=0)]
    return np.stack([picture for picture, _ in found]), [time for _, time in found if time is not None]


def test_the_fragments_behind_the_init_segment_are_the_film() -> None:
    fragmenter = Fragmenter(FPS, SIZE, SCALE)
    frames, times = decoded(fragmenter.init + b"".join(parts(fragmenter)))
    assert times == pytest.approx([number / FPS for number in range(21)])
    wanted = to_bytes(film()).repeat(SCALE, 1).repeat(SCALE, 2)
    assert frames.shape == wanted.shape
    assert np.abs(frames.astype(int) - wanted).mean() < 4


def test_every_fragment_stands_alone_and_knows_its_time() -> None:
    fragmenter = Fragmenter(FPS, SIZE)
    whole, _ = decoded(fragmenter.init + b"".join(parts(fragmenter)))
    alone, times = decoded(fragmenter.init + parts(fragmenter)[1])
    assert times == pytest.approx([number / FPS for number in range(9, 21)])
    assert (alone == whole[9:]).all()


def test_a_block_in_another_version_takes_the_place_of_the_first() -> None:
    fragmenter = Fragmenter(FPS, SIZE)
    first, other = parts(fragmenter)[0], fragmenter.fragment(-film()[9:], 9, 7)
    frames, times = decoded(fragmenter.init + first + other)
    assert len(frames) == 21 and times[9] == pytest.approx(9 / FPS)


def test_a_fragment_is_a_moof_and_its_mdat_and_the_codec_is_that_of_the_stream() -> None:
    fragmenter = Fragmenter(FPS, SIZE)
    assert [name for name, _ in boxes(fragmenter.init)] == [b"ftyp", b"moov"]
    assert [name for name, _ in boxes(parts(fragmenter)[0])] == [b"moof", b"mdat"]
    with av.open(io.BytesIO(fragmenter.init + parts(fragmenter)[0])) as file:
        context = file.streams.video[0].codec_context
        assert context.extradata is not None
        # avcC: version, profile, compatibility, level
        assert fragmenter.codec == f'video/mp4; codecs="avc1.{context.extradata[1:4].hex()}"'
        assert context.name == "h264"


def test_an_odd_side_is_refused() -> None:
    with pytest.raises(ValueError, match="63x64 has an odd side"):
        Fragmenter(FPS, (63, 64))
