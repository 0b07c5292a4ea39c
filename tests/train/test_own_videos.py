"""From a folder of videos to a family: what is cut out of them, what is skipped and named, that the pair loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arvid.models.family import load_autoencoder, read_card
from arvid.models.text import TextEncoder
from arvid.pipeline import EMBEDDED, Pipeline, Request, load
from arvid.recipes.own_videos import CPU, STAGES, Sizes, captions, clips_of, fitted
from arvid.video import VideoWriter, frames_of, read_video
from oracles import toy_family


def film(path: Path, frames: int, fps: float = 16, width: int = 64, height: int = 64) -> Path:
    """A video whose frames are told apart by their brightness."""
    with VideoWriter(path, fps, width, height) as writer:
        for number in range(frames):
            writer.append_bytes(np.full((1, height, width, 3), 20 + number % 200, np.uint8))
    return path


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return toy_family.write(tmp_path / "lender")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos that can be used, one that is short, one that is none; captions in both forms."""
    place = tmp_path / "videos"
    place.mkdir()
    film(place / "a.mp4", 165)
    film(place / "b.mp4", 81, width=96)
    film(place / "short.mp4", 40)
    (place / "torn.mp4").write_bytes(b"no video")
    rows = [{"file": name, "caption": "a red circle"} for name in ("a.mp4", "torn.mp4", "short.mp4")]
    (place / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (place / "b.txt").write_text("a blue\nsquare moves\n")
    return place


@pytest.fixture
def sizes(folder: Path, family: Path) -> Sizes:
    return Sizes(str(folder), str(family), 1, 1, batch=1, firsts=2, name="mine")


def test_videos_become_parts_and_the_rest_is_named(tmp_path: Path, folder: Path, family: Path, sizes: Sizes) -> None:
    rows: list[dict[str, float]] = []
    with pytest.raises(ValueError, match="2 of 4 videos cannot be used, the others are done") as refused:
        STAGES["latents"](tmp_path / "runs", sizes, rows.append)
    assert "short.mp4: shorter than a clip; at least 81 frames at 16 a second" in str(refused.value)
    assert "torn.mp4" in str(refused.value)
    parts = sorted((tmp_path / "runs" / "latents").iterdir())
    assert [part.name for part in parts] == ["a.mp4.safetensors", "b.mp4.safetensors"]
    # `a` holds two clips and three frames that are left over.
    held = load_file(parts[0])
    assert {name: tuple(value.shape) for name, value in held.items()} == {
        "latents": (2, 21, 16, 8, 8), "text": (2, 24, 16), "first": (4, 3, 16, 8, 8), "first_text": (4, 24, 16),
    }  # fmt: skip
    assert {value.dtype for value in held.values()} == {torch.float16}
    vae = load_autoencoder(family, read_card(family), CPU)
    pixels = torch.from_numpy(read_video(folder / "a.mp4")).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(held["latents"][1], vae.encode(pixels[None, 81:162])[0].half())
        torch.testing.assert_close(held["first"][1], vae.encode(pixels[None, 72:81])[0].half())
    said = TextEncoder.load(family / "text").encode(["a blue square moves"])[0].half()
    torch.testing.assert_close(load_file(parts[1])["text"][0], said)
    # Nothing is made twice, and what is mended is made now.
    before = [part.stat().st_mtime_ns for part in parts]
    film(folder / "short.mp4", 81)
    (folder / "torn.mp4").unlink()
    rows.clear()
    STAGES["latents"](tmp_path / "runs", sizes, rows.append)
    assert [part.stat().st_mtime_ns for part in parts] == before
    assert [row["clips"] for row in rows] == [1.0]


def test_what_was_made_trains_a_pair_that_makes_videos(tmp_path: Path, folder: Path, sizes: Sizes) -> None:
    for name in ("short", "torn", "b"):
        (folder / f"{name}.mp4").unlink()
    runs = tmp_path / "runs"
    with pytest.raises(ValueError, match=r"no target in .*; train it by `arvid train own_videos --stage target`"):
        STAGES["pack"](runs, sizes, lambda row: None)
    for stage in STAGES.values():
        stage(runs, sizes, lambda row: None)
    pipeline = Pipeline(load(runs / "family"))
    assert (pipeline.family.card.name, pipeline.family.reward) == ("mine", None)
    assert pipeline.family.card.world == "", "it never saw the lender's world"
    assert pipeline.family.card.temperature == 1, "the lender's was measured on the lender's weights"
    made = pipeline.generate(Request("a red circle", 0.5))
    assert made.frames_BTCHW.shape[2:] == (3, 64, 64)
    trained = load_file(runs / "family" / "target.safetensors")
    assert all(value.dtype == torch.bfloat16 for value in trained.values())


def test_what_has_changed_is_made_again_and_what_another_made_is_refused(
    tmp_path: Path, folder: Path, sizes: Sizes
) -> None:
    for name in ("short", "torn"):
        (folder / f"{name}.mp4").unlink()
    runs, rows = tmp_path / "runs", list[dict[str, float]]()
    (folder / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "a red circle"}')
    STAGES["latents"](runs, sizes, rows.append)
    a, b = (runs / "latents" / f"{name}.mp4.safetensors" for name in "ab")
    first, before = load_file(a), b.stat().st_mtime_ns
    (folder / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "a small star"}')
    STAGES["latents"](runs, sizes, rows.append)
    assert not torch.equal(load_file(a)["text"], first["text"])
    assert torch.equal(load_file(a)["latents"], first["latents"])
    assert b.stat().st_mtime_ns == before, "nothing about it has changed"
    film(folder / "b.mp4", 162, width=96)
    STAGES["latents"](runs, replace(sizes, firsts=3), rows.append)
    assert [len(load_file(part)[name]) for part in (a, b) for name in ("latents", "first")] == [2, 6, 2, 6]
    (folder / "a.mp4").write_bytes(b"torn")
    with pytest.raises(ValueError, match="1 of 2 videos cannot be used"):
        STAGES["latents"](runs, sizes, rows.append)
    assert not a.exists(), "what it was made from is not so any more"
    for path in folder.glob("*.mp4"):
        path.unlink()
    film(folder / "c.mp4", 81)
    (folder / "c.txt").write_text("a star")
    STAGES["latents"](runs, sizes, rows.append)
    assert b.is_file(), "a part stays when its video is gone"
    other = toy_family.write(tmp_path / "other")
    vae = load_file(other / "vae.safetensors")
    save_file({name: value + 1 for name, value in vae.items()}, other / "vae.safetensors")
    with pytest.raises(ValueError, match=r"holds 1 parts that this family's .* did not make \(b\.mp4\.safetensors\)"):
        STAGES["latents"](runs, replace(sizes, family=str(other)), rows.append)


def test_a_pair_of_the_shipped_familys_sizes_runs_as_it_was_packed(tmp_path: Path) -> None:
    runs, sizes = tmp_path / "runs", Sizes(name="mine")
    for part in ("target", "drafter"):
        (runs / part).mkdir(parents=True)
        shutil.copy(EMBEDDED / f"{part}.safetensors", runs / part / "model.safetensors")
    STAGES["pack"](runs, sizes, lambda row: None)
    made = Pipeline(load(runs / "family")).generate(Request("a red circle", 0.5))
    assert made.frames_BTCHW.shape[2:] == (3, 64, 64)


def test_weights_that_do_not_say_their_sizes_have_the_lenders(tmp_path: Path, family: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "target").mkdir(parents=True)
    save_file(load_file(family / "target.safetensors"), runs / "target" / "model.safetensors")
    STAGES["pack"](runs, Sizes(family=str(family)), lambda row: None)
    assert load(runs / "family").card.parts["target"]["dim"] == toy_family.TARGET.dim


def test_a_lender_without_a_drafter_is_named(tmp_path: Path) -> None:
    lender = toy_family.write(tmp_path / "lender", drafter=None)
    with pytest.raises(ValueError, match=r"family 'embedded-toy' has no drafter whose sizes this one could have"):
        STAGES["drafter"](tmp_path, Sizes(family=str(lender)), print)


def test_a_faster_video_gives_every_second_frame_and_a_slower_one_each_twice(tmp_path: Path, family: Path) -> None:
    card = replace(read_card(family), trained_frames=3)
    fast, slow = film(tmp_path / "fast.mp4", 36, fps=32), film(tmp_path / "slow.mp4", 9, fps=8)
    shown = np.stack(list(frames_of(fast)))
    [first, second] = clips_of(fast, card)
    assert np.array_equal(np.concatenate([first, second]), shown[::2])
    shown = np.stack(list(frames_of(slow)))
    [first, second] = clips_of(slow, card)
    assert np.array_equal(np.concatenate([first, second]), shown.repeat(2, 0)[:18])


def test_the_middle_is_kept_in_the_familys_shape() -> None:
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 200
    assert np.array_equal(fitted(picture, (16, 16)), np.full((16, 16, 3), 200, np.uint8))
    assert fitted(picture, (64, 32)) is not None and np.array_equal(fitted(picture, (64, 32)), picture)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a red circle", "line 1: 'a red circle' is no caption"),
        ('{"file": "a.mp4"}', "is no caption"),
        ('{"file": "other.mp4", "caption": "x"}', "1 videos without a caption: a.mp4"),
    ],
)
def test_captions_that_are_none_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "captions.jsonl").write_text(line)
    with pytest.raises(ValueError, match=said):
        captions(tmp_path, [tmp_path / "a.mp4"])


def test_a_folder_that_is_none_is_named(tmp_path: Path, family: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*nowhere; point --set videos=DIR"):
        STAGES["latents"](tmp_path, Sizes(str(tmp_path / "nowhere"), str(family)), print)
