"""The text encoder's training: targets against scenes written out by hand, sources, one tiny run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from arvid.models.text import TextEncoder
from arvid.train.text import (
    ABSENT,
    SCENE_FIELDS,
    SYNONYMS,
    THING_FIELDS,
    Captions,
    Reader,
    Reading,
    accuracy,
    inflections,
    reword,
    targets,
    vocabulary,
)
from arvid.train.trainer import TrainConfig, train
from arvid.worlds import captions, grammar


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.build(vocabulary(), width=32, layers=1)


def test_inflections() -> None:
    assert inflections("glide") == ("glide", "glides", "gliding")
    assert inflections("run") == ("run", "runs", "running")
    assert inflections("go") == ("go", "goes", "going")
    assert inflections("vanish") == ("vanish", "vanishes", "vanishing")


def test_every_word_of_the_captions_is_known_and_nothing_is_cut(encoder: TextEncoder) -> None:
    rng = random.Random(3)
    for number in range(2000):
        prompt = captions.sample(rng, (1, 2, 3, 4), held_out=bool(number % 2)).prompt
        assert encoder.unknown(prompt) == []
        assert len(encoder.tokenizer(prompt)["input_ids"]) <= encoder.length
    for word in (*SYNONYMS, *(other for others in SYNONYMS.values() for other in others), grammar.EXAMPLE):
        assert encoder.unknown(word) == []


def test_targets_of_a_scene() -> None:
    prompt = "a small red ball moves left fast and a star orbits clockwise on a gradient from white to navy"
    rows, scene = targets(grammar.parse(prompt).scene)
    named = [
        None if row[0] == ABSENT else [names[number] for names, number in zip(THING_FIELDS.values(), row, strict=True)]
        for row in rows
    ]
    assert named == [
        ["circle", "red", "small", "move", "left", "fast"],
        ["star", "green", "medium", "orbit", "clockwise", "medium"],
        None,
    ]
    said = [names[number] for names, number in zip(SCENE_FIELDS.values(), scene, strict=True)]
    assert said == ["gradient", "white", "navy", "", "", "2"]


def test_most_rewordings_mean_the_same() -> None:
    """The parser, which knows nothing of rewording, reads the same scene."""
    rng = random.Random(0)
    same = 0
    for _ in range(400):
        caption = captions.sample(rng, (1, 2))
        same += grammar.parse(reword(caption.prompt, rng)).scene == caption.acts[0]
    assert same > 0.95 * 400


def test_a_batch_is_a_pure_function_of_its_step(encoder: TextEncoder) -> None:
    first, again = (Captions(encoder.tokens, 2, batch=8)(7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = Captions(encoder.tokens, 2, batch=8)(11)
    assert first.ids_BL.shape != other.ids_BL.shape or not torch.equal(first.ids_BL, other.ids_BL)


def test_nouns_point_at_the_word_of_the_shape(encoder: TextEncoder) -> None:
    for held_out in (True, False):
        batch = Captions(encoder.tokens, -1, batch=64, levels=(3,), held_out=held_out)(0)
        for ids_L, noun_K, things_KF in zip(batch.ids_BL, batch.noun_BK, batch.things_BKF, strict=True):
            for place, thing in zip(noun_K.tolist(), things_KF.tolist(), strict=True):
                if thing[0] == ABSENT:
                    assert place == 0
                elif ids_L[place] != -1:
                    word = grammar.stem(encoder.tokenizer.convert_ids_to_tokens([int(ids_L[place])])[0])
                    assert word in grammar.SHAPE_WORDS[grammar.SHAPES[thing[0]]]


def test_only_training_batches_lose_words(encoder: TextEncoder) -> None:
    unknown = encoder.tokenizer.unk_token_id
    trained = Captions(encoder.tokens, unknown, batch=256)(0)
    share = (trained.ids_BL == unknown).sum() / trained.mask_BL.sum()
    assert 0.01 < share < 0.03
    assert not (trained.ids_BL[trained.mask_BL == 0] == unknown).any()
    assert not (Captions(encoder.tokens, unknown, batch=256, held_out=True)(0).ids_BL == unknown).any()


def test_a_short_training_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder.build(vocabulary(), width=32, layers=1)
    reader = Reader(encoder, encoder.width)
    source = Captions(encoder.tokens, encoder.tokenizer.unk_token_id, batch=32, levels=(1,))
    held = Captions(encoder.tokens, encoder.tokenizer.unk_token_id, batch=64, levels=(1,), held_out=True)
    before = accuracy(reader, held, 1)
    rows: list[dict[str, float]] = []
    config = TrainConfig(60, learning_rate=1e-2, warmup=10, average=0.9, save_every=60, log_every=10)
    train(reader, Reading(reader), source, config, tmp_path, report=rows.append)
    after = accuracy(reader, held, 1)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert after["fields"] > before["fields"] + 0.3
    assert set(after) == {*THING_FIELDS, *SCENE_FIELDS, *(f"noun {name}" for name in THING_FIELDS), "fields", "prompts"}
