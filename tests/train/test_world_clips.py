"""Clips of the shapes world for training: what is told of a clip whose prompt changes, and what a batch holds of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arvid.recipes import embedded, transformers
from arvid.recipes.transformers import Encoded
from arvid.recipes.world import changing, film, labelled, labels, scene
from arvid.worlds import captions, oracle, shapes
from arvid.worlds.grammar import parse

TAKES = [changing(number) for number in range(30)]


def test_what_is_told_is_true_of_the_second_act_and_not_of_the_first() -> None:
    second, first = [], []
    for take in TAKES[:8]:
        assert take.begins is not None
        film, begin = take.render(), take.begins[1]
        second.append(oracle.judge(film[begin:], take.told).alignment)
        first.append(oracle.judge(film[:begin], take.told).alignment)
    assert np.mean(second) > 0.9
    assert np.mean(first) < 0.6


def test_a_change_begins_with_a_block_and_stays_in_the_training_part() -> None:
    for take in TAKES:
        assert take.learned % 3 == 0
        assert 3 <= take.learned <= 15
        # Latent t > 0 shows pixel frames 4 t - 3 to 4 t.
        assert take.begins == (0, 4 * take.learned - 3)
        assert not captions.is_held_out(parse(take.told).scene)
        assert len(parse(take.told).acts) == 1
    assert {take.learned for take in TAKES} == {3, 6, 9, 12, 15}
    assert scene(5).learned == 0


def test_a_story_is_a_clip_of_its_own_like_any_other() -> None:
    stories = (film(number, False, (4,)) for number in range(20))
    take = next(take for take in stories if len(parse(take.prompt).acts) > 1)
    frames, found = labelled((take.seed, False, (4,)))
    assert np.array_equal(frames, shapes.render(take.prompt, take.seed))
    assert found.things_THW.any((1, 2)).all()
    assert take.learned == 0


def test_clips_of_one_scene_are_of_all_levels() -> None:
    told = [parse(scene(number).told) for number in range(60)]
    assert {len(story.acts) for story in told} == {1}
    assert {story.level for story in told} == {1, 2, 3, 4}
    assert not any(captions.is_held_out(story.scene) for story in told)


def test_changes_are_new_scenes_and_events() -> None:
    kinds = {type(parse(take.prompt).acts[1]) for take in TAKES}
    assert len(kinds) == 2


def test_a_batch_says_from_where_its_clips_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows hold their own numbers, so that a batch tells which of them it drew."""
    (tmp_path / "latents").mkdir()
    cells = {f"{kind}_classes": torch.zeros(4, 21, 8, 8, 3, dtype=torch.uint8) for kind in ("latents", "changed")}
    cells["first_classes"] = torch.zeros(4, 3, 8, 8, 3, dtype=torch.uint8)
    for way in ("velocity", "offset"):
        cells |= {f"{kind}_{way}": torch.zeros(4, 21, 8, 8, 2) for kind in ("latents", "changed")}
        cells[f"first_{way}"] = torch.zeros(4, 3, 8, 8, 2)
    number = torch.arange(4.0)[:, None, None, None, None]
    made = {
        "latents": number.expand(-1, 21, 1, 1, 1), "text": torch.ones(4, 2, 2),
        "changed": 10 + number.expand(-1, 21, 1, 1, 1), "changed_text": torch.ones(4, 2, 2),
        "changed_from": torch.tensor([3, 6, 9, 12]),
        "first": number.expand(-1, 3, 1, 1, 1), "first_text": torch.ones(4, 2, 2), **cells,
    }  # fmt: skip
    save_file({name: value.contiguous() for name, value in made.items()}, tmp_path / "latents" / "0000.safetensors")
    source = Encoded(tmp_path, 200)
    assert not len(source.held.latents_BTCHW), "four clips are too few to keep any apart"
    batch = source(0).clips
    rows, begins = batch.latents_BTCHW[:, 0, 0, 0, 0], batch.begins_B
    assert begins is not None
    assert torch.equal(begins, torch.where(rows < 10, 0, 3 * (rows - 9)).long())
    assert float((rows >= 10).float().mean()) == pytest.approx(transformers.CHANGED, abs=0.08)
    assert torch.equal(source(0).clips.latents_BTCHW, batch.latents_BTCHW)


def test_what_is_held_is_in_no_batch(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    counts = {"latents": (40, 21), "changed": (8, 21), "first": (1600, 3)}
    made = {
        kind: (100 * place + torch.arange(float(count)))[:, None, None, None, None].expand(-1, frames, 1, 1, 1)
        for place, (kind, (count, frames)) in enumerate(counts.items(), 1)
    }
    for kind, (count, frames) in counts.items():
        made[f"{kind}_classes"] = torch.zeros(count, frames, 1, 1, 3, dtype=torch.uint8)
        made |= {f"{kind}_{way}": torch.zeros(count, frames, 1, 1, 2) for way in ("velocity", "offset")}
        made["text" if kind == "latents" else f"{kind}_text"] = torch.ones(count, 2, 2)
    made["changed_from"] = torch.full((8,), 3)
    save_file({name: value.contiguous() for name, value in made.items()}, tmp_path / "latents" / "0000.safetensors")
    source = Encoded(tmp_path, 50)
    assert source.held.first is not None
    apart = {*source.held.latents_BTCHW[:, 0, 0, 0, 0].tolist()}, {*source.held.first[0][:, 0, 0, 0, 0].tolist()}
    assert apart == ({*range(135, 140)}, {*range(300 + 1600 - 128, 300 + 1600)})
    seen: tuple[set[float], set[float]] = set(), set()
    for step in range(20):
        clips = source(step).clips
        assert clips.first is not None
        seen[0].update(clips.latents_BTCHW[:, 0, 0, 0, 0].tolist())
        seen[1].update(clips.first[0][:, 0, 0, 0, 0].tolist())
    assert seen[0] == {*range(100, 135), *range(200, 208)}
    assert seen[1] <= {*range(300, 300 + 1600 - 128)}
    assert len(seen[1]) > 1400


def test_labels_of_a_change_follow_it() -> None:
    take = next(take for take in TAKES if not isinstance(parse(take.prompt).acts[1], tuple))
    classes = labels([take], 81)["classes"][0]
    scenes = [act for act in parse(take.prompt).acts if not isinstance(act, tuple)]
    colours = [{1 + embedded.THING_COLOURS.index(thing.colour) for thing in scene.things} for scene in scenes]
    before, after = classes[: take.learned, ..., 2], classes[take.learned :, ..., 2]
    assert set(before.unique().tolist()) - {0} <= colours[0]
    assert set(after.unique().tolist()) - {0} <= colours[1]
