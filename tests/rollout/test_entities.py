"""Who is in a prompt, against sentences whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from arvid.rollout.entities import Asked, Entity, Rules, language_model, names
from arvid.worlds.grammar import EXAMPLE


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


def test_a_model_of_transformers_completes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "dog": 2, "</s>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    wrapped.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, eos_token_id=3,
        pad_token_id=3, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    complete = language_model(tmp_path, tokens=3)
    assert complete("a dog") == complete("a dog")
    assert len(complete("a dog").split()) <= 3
    with pytest.raises(ValueError, match="holds no causal language model"):
        language_model(tmp_path / "nowhere")
