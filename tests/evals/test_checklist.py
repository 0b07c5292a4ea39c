"""The checklist: a tiny LLaVA of random weights against the library's own `generate`, and the sum of weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from arvid.evals import checklist
from arvid.evals.clips import Clip, opened, pictures_of
from arvid.evals.metric import measure
from oracles import films

QUESTIONS = ["Is there a cat ?", "Is it blue ?", "Does it move ?", "Does it show [[prompt]] ?", "Is it sharp ?"]
PROMPT = "a red ball"
WORDS = ["<unk>", "<pad>", "<image>", "USER:", "ASSISTANT:", "yes", "no", *" ".join(QUESTIONS).split(), *PROMPT.split(),
         "Answer", "with", "or", "."]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole vision-language model on disk."""
    torch.manual_seed(0)
    names = {word: number for number, word in enumerate(dict.fromkeys(WORDS))}
    inner = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        pictures, words, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16),
        text_config=transformers.LlamaConfig(
            **sizes, vocab_size=len(names), pad_token_id=1, bos_token_id=None, eos_token_id=None
        ),
        image_token_index=names["<image>"],
    )  # fmt: skip
    place = tmp_path_factory.mktemp("vlm")
    made = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        # At the usual scale every question would get the same answer.
        for name, weight in made.named_parameters():
            if "norm" not in name:
                weight.normal_()
    made.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """A video of 40 frames: three of them at one per second."""
    return replace(opened(films.write(tmp_path / "a.mp4", films.moving(frames=40))), prompt=PROMPT)


def test_answers_are_those_of_the_librarys_generate(model: Path, clip: Clip, tmp_path: Path) -> None:
    weights = [0.5, -0.25, 1.5, 2.0, 0.75]
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(QUESTIONS), encoding="utf-8")
    (tmp_path / "weights.json").write_text(json.dumps(weights), encoding="utf-8")
    processor = transformers.AutoProcessor.from_pretrained(model)
    network = transformers.LlavaForConditionalGeneration.from_pretrained(model).eval()
    allowed = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    images = [Image.fromarray(picture) for picture in [*pictures_of(clip.path)][::16]]
    answers = []
    for question in QUESTIONS:
        asked = f"{question.replace('[[prompt]]', PROMPT)} Answer with yes or no."
        text = "USER: " + "<image> " * len(images) + asked + " ASSISTANT:"
        inputs = processor(images=images, text=text, return_tensors="pt")
        told = network.generate(
            **inputs, max_new_tokens=1, do_sample=False, prefix_allowed_tokens_fn=lambda batch, ids: allowed
        )
        answers.append(1.0 if told[0, -1] == allowed[0] else -1.0)
    assert len(set(answers)) == 2
    metric = checklist.Checklist(str(model), str(path), str(tmp_path / "weights.json"))
    found = measure(clip, [metric])["checklist"]
    assert [*found.parts.values()] == answers and [*found.parts] == QUESTIONS
    assert found.value == pytest.approx(np.mean(np.array(answers) * weights))


def test_questions_carry_weights_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("0.5\tIs it sharp?\n\nIs it red?\n", encoding="utf-8")
    assert checklist.read_questions(path) == (
        checklist.Question("Is it sharp?", 0.5), checklist.Question("Is it red?"),
    )  # fmt: skip


def test_wrong_checklists_are_named(model: Path, clip: Clip, tmp_path: Path) -> None:
    path, weights = tmp_path / "questions.txt", tmp_path / "weights.json"
    with pytest.raises(ValueError, match="cannot read the checklist"):
        checklist.read_questions(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no question"):
        checklist.read_questions(path)
    path.write_text("heavy\tIs it sharp?\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'heavy' is no weight"):
        checklist.read_questions(path)
    path.write_text("Does it show [[prompt]] ?\n", encoding="utf-8")
    weights.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold 1 weights"):
        checklist.read_questions(path, weights)
    metric = checklist.Checklist(str(model), str(path))
    assert "ask about it" in measure(replace(clip, prompt=""), [metric])["checklist"].note
    nowhere = checklist.Checklist(str(tmp_path), str(path))
    assert "no vision-language model" in measure(clip, [nowhere])["checklist"].note
