"""Who is in a prompt, against sentences whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from arvid.caches.pieces import Held, Piece
from arvid.pipeline import Pipeline, Request, load
from arvid.rollout import entities, state
from arvid.rollout.entities import Asked, Entity, Rules, language_model, names
from arvid.rollout.session import Session
from arvid.rollout.timeline import Entry
from arvid.worlds.grammar import EXAMPLE
from oracles import toy_family


def entity(text: str, newcomer: bool = False) -> Entity:
    *attributes, noun = text.split()
    return Entity(noun, frozenset(attributes), newcomer)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (EXAMPLE, [entity("small red circle"), entity("large blue square")]),
        ("A young woman in a red coat walks her old dog.", [entity("young woman"), entity("old dog")]),
        ("The man waves; another man, tall and thin, waits", [entity("man"), entity("man", True)]),
        ("a second small star", [entity("small star", True)]),
        ("three red-haired boys run", [entity("red-haired boy")]),
        ("a quiet street at night", []),
        ("", []),
    ],
)
def test_rules_find_nouns_and_what_is_said_of_them(prompt: str, expected: list[Entity]) -> None:
    assert list(Rules()(prompt)) == expected


def test_who_returns_keeps_the_name() -> None:
    told = names([
        "a small red circle moves right", "a large blue square stands still",
        "the circle is back, the square too", "another red circle, small, and the blue square",
    ])  # fmt: skip
    assert told[0] == ("red small circle",)
    assert told[1] == ("blue large square",)
    assert told[2] == ("red small circle", "blue large square")
    assert told[3] == ("red circle", "blue large square")


def test_a_taken_name_gets_a_number_and_two_of_a_prompt_are_two() -> None:
    assert names(["a red circle meets a red circle", "a new red circle"]) == [
        ("red circle", "red circle 2"), ("red circle 3",),
    ]  # fmt: skip


def test_what_contradicts_is_somebody_else() -> None:
    assert names(["a red circle", "a blue circle", "the circle", "a large red circle"]) == [
        ("red circle",), ("blue circle",), ("blue circle",), ("red circle",),
    ]  # fmt: skip


def test_earlier_names_do_not_depend_on_later_prompts() -> None:
    prompts = ["a red circle", "a man and the circle", "another man", "the man and a green star"]
    for count in range(len(prompts)):
        assert names(prompts[:count]) == names(prompts)[:count]


def test_a_language_model_is_asked_for_json() -> None:
    asked: list[str] = []

    def complete(text: str) -> str:
        asked.append(text)
        return 'Sure: [{"noun": "Man", "attributes": ["Tall"]}, {"noun": "dog", "new": true}] That is all.'

    assert Asked(complete)("a tall man and his dog") == (entity("tall man"), entity("dog", True))
    assert "a tall man and his dog" in asked[0]
    with pytest.raises(ValueError, match=r"answered 'no idea' for the prompt 'x'; expected a JSON list"):
        Asked(lambda text: "no idea")("x")
    with pytest.raises(ValueError, match="expected a JSON list"):
        Asked(lambda text: json.dumps([{"name": "man"}]))("x")


def write_model(directory: Path) -> None:
    """A language model of random weights that knows three words."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "dog": 2, "</s>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    wrapped.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, eos_token_id=3,
        pad_token_id=3, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)


def test_a_model_of_transformers_completes(tmp_path: Path) -> None:
    write_model(tmp_path)
    complete = language_model(tmp_path, tokens=3)
    assert complete("a dog") == complete("a dog")
    assert len(complete("a dog").split()) <= 3
    with pytest.raises(ValueError, match="holds no causal language model"):
        language_model(tmp_path / "nowhere")


# ---------------------------------------------------------------- from a timeline to a past

STORY = (
    Entry(0.0, "a small red circle moves right"),
    Entry(2.25, "a large blue square moves left", "soft"),
    Entry(4.5, "the circle is back", "keep"),
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(load(toy_family.write(tmp_path_factory.mktemp("families") / "toy")))


def pieces(value: Any) -> Iterator[Piece]:
    """Pieces of a past, wherever they are in a snapshot."""
    if isinstance(value, Held):
        yield value.piece
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from pieces(part)


def shown(toy: Pipeline, past: str) -> tuple[dict[int, tuple[str, ...]], Session]:
    """Whom each frame on hold shows, by the names its past was told, after each block of the story."""
    found: dict[int, tuple[str, ...]] = {}
    session = toy.session(Request("", 6.75, router="target", past=past, positions="relative", timeline=STORY), keep=3)
    for _ in session:
        found.update({piece.frames[0]: piece.about for piece in pieces(session.snapshot().parts)})
    return found, session


BANK = "bank:frames=6,sink=1,recent=3,bank=4,top=3"


def test_a_timeline_tells_the_bank_whom_its_frames_show(toy: Pipeline) -> None:
    """Who returns as "the circle" has the name that frames of the first scene bear, and one of them is still there."""
    found, session = shown(toy, BANK)
    red, blue = ("red small circle",), ("blue large square",)
    starts = [frame for frame in sorted(found) if frame and found[frame] != found[frame - 1]]
    assert [found[frame] for frame in (0, *starts)] == [red, blue, red]
    held = {piece.frames[0]: piece.about for piece in pieces(session.snapshot().parts)}
    banked = [frame for frame in held if 1 <= frame < max(held) - 2]
    assert any(frame < starts[0] for frame in banked) and any(held[frame] == blue for frame in banked)


def test_a_resumed_video_knows_everybody_by_name(toy: Pipeline, tmp_path: Path) -> None:
    request = Request("", 6.75, router="target", past=BANK, positions="relative", timeline=STORY)
    session = toy.session(request, keep=1)
    whole = []
    for block in session:
        whole.append(block.latents_BTCHW)
        if block.move.index == 4:
            state.save(session.snapshot(), tmp_path / "state.safetensors")
    held, _ = state.load(tmp_path / "state.safetensors")
    rest = [block.latents_BTCHW for block in toy.resume(held)]
    assert torch.equal(torch.cat(rest, 1), torch.cat(whole[5:], 1))


def test_a_language_model_reads_the_prompts_where_the_past_says_so(
    toy: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked: list[str] = []

    def of(directory: Path) -> Callable[[str], str]:
        assert directory == tmp_path

        def complete(text: str) -> str:
            asked.append(text)
            name = "villain" if "blue" in text else "hero"
            return json.dumps([{"noun": name, "attributes": ["masked"]}])

        return complete

    monkeypatch.setattr(entities, "language_model", of)
    found, _ = shown(toy, f"{BANK},reader={tmp_path}")
    assert set(found.values()) == {("masked hero",), ("masked villain",)}
    assert len(asked) == 3, "each prompt is read once"
    with pytest.raises(ValueError, match=r"reader nowhere holds no config\.json; give a transformers directory"):
        toy.check(Request("a", past="bank:reader=nowhere"))


def test_a_model_that_cannot_answer_is_one_line(toy: Pipeline, tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(ValueError, match="expected a JSON list of entities: use a model that follows instructions"):
        shown(toy, f"{BANK},reader={tmp_path}")
