"""The text encoder against transformers' own classes, and its file against itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from arvid.models.text import TextEncoder

WORDS = (
    "a", "the", "red", "blue", "ball", "square", "moves", "left", "right", "while", "medium", "sized", "counter",
    "clockwise", "does", "not", "doesnt",
)  # fmt: skip
PROMPTS = ["a red ball moves left", "the blue square moves right while a red ball moves left", "ball"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.build(WORDS, length=16, width=32, layers=2)


def test_tokens_read_back_as_the_prompt(encoder: TextEncoder) -> None:
    ids_BL, mask_BL = encoder.tokens(["A Red ball, moves LEFT."])
    assert ids_BL.shape == (1, 16)
    assert int(mask_BL.sum()) == 8
    said = encoder.tokenizer.convert_ids_to_tokens(ids_BL[0].tolist())
    assert said == ["a", "red", "ball", ",", "moves", "left", ".", "</s>"] + ["<pad>"] * 8


def test_hyphens_part_and_apostrophes_vanish(encoder: TextEncoder) -> None:
    said = encoder.tokenizer.tokenize("medium-sized counter-clockwise doesn't doesn\u2019t")
    assert said == ["medium", "sized", "counter", "clockwise", "doesnt", "doesnt"]


def test_unknown_words_are_listed_once_as_written(encoder: TextEncoder) -> None:
    assert encoder.unknown("a red Dragon moves left while the Dragon sleeps") == ["Dragon", "sleeps"]
    assert encoder.unknown("a red ball") == []
    assert encoder.unknown("red " * 40 + "zebra") == ["zebra"]


def test_zero_beyond_the_prompt_and_nowhere_else(encoder: TextEncoder) -> None:
    x_BLD = encoder.encode(PROMPTS)
    assert x_BLD.shape == (3, 16, encoder.width)
    assert x_BLD.dtype == torch.float32
    for x_LD, prompt in zip(x_BLD, PROMPTS, strict=True):
        count = len(prompt.split()) + 1
        assert (x_LD[count:] == 0).all()
        assert (x_LD[:count].abs().sum(-1) > 0).all()


def test_a_long_prompt_keeps_its_head_and_the_end_token(encoder: TextEncoder) -> None:
    ids_BL, mask_BL = encoder.tokens(["red " * 50])
    assert ids_BL.shape == (1, 16)
    assert int(mask_BL.sum()) == 16
    assert ids_BL[0, -1] == encoder.tokenizer.eos_token_id


def test_encoding_is_deterministic(encoder: TextEncoder) -> None:
    assert torch.equal(encoder.encode(PROMPTS), encoder.encode(PROMPTS))
    again = TextEncoder.build(reversed(WORDS), length=16, width=32, layers=2)
    assert torch.equal(encoder.encode(PROMPTS), again.encode(PROMPTS))
    other = TextEncoder.build(WORDS, length=16, width=32, layers=2, seed=1)
    assert not torch.equal(encoder.encode(PROMPTS), other.encode(PROMPTS))


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TextEncoder.build(WORDS, width=8, layers=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_equals_one_by_one(encoder: TextEncoder) -> None:
    alone = torch.cat([encoder.encode([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(encoder.encode(PROMPTS), alone, rtol=1e-5, atol=1e-6)


def test_padding_does_not_change_the_embeddings(encoder: TextEncoder) -> None:
    longer = TextEncoder(encoder.tokenizer, encoder.model, 24)
    torch.testing.assert_close(longer.encode(PROMPTS)[:, :16], encoder.encode(PROMPTS), rtol=1e-5, atol=1e-6)


def test_saved_and_loaded_is_bit_equal(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "text")
    names = {path.name for path in (tmp_path / "text").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    loaded = TextEncoder.load(tmp_path / "text")
    assert (loaded.length, loaded.width) == (16, 32)
    assert torch.equal(loaded.encode(PROMPTS), encoder.encode(PROMPTS))
    assert loaded.unknown("a red dragon") == ["dragon"]
    assert TextEncoder.load(tmp_path / "text", length=20).encode(PROMPTS).shape[1] == 20


def test_equals_the_forward_of_transformers(encoder: TextEncoder, tmp_path: Path) -> None:
    """The same directory read by transformers' own classes, one unpadded prompt at a time."""
    encoder.save(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    model = UMT5EncoderModel.from_pretrained(str(tmp_path)).eval()
    for prompt in PROMPTS:
        held = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            expected_BLD = model(input_ids=held["input_ids"]).last_hidden_state
        got_BLD = encoder.encode([prompt])[:, : expected_BLD.shape[1]]
        torch.testing.assert_close(got_BLD, expected_BLD, rtol=1e-5, atol=1e-5)


def test_tokenizer_and_weights_may_lie_apart(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.model.save_pretrained(str(tmp_path / "text_encoder"))
    encoder.tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    loaded = TextEncoder.load(tmp_path / "text_encoder", length=16, tokenizer=tmp_path / "tokenizer")
    assert torch.equal(loaded.encode(PROMPTS), encoder.encode(PROMPTS))


def test_half_weights_give_whole_embeddings(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    UMT5EncoderModel.from_pretrained(str(tmp_path), dtype=torch.bfloat16).save_pretrained(str(tmp_path))
    loaded = TextEncoder.load(tmp_path)
    assert loaded.model.dtype == torch.bfloat16
    x_BLD = loaded.encode(PROMPTS)
    assert x_BLD.dtype == torch.float32
    torch.testing.assert_close(x_BLD, encoder.encode(PROMPTS), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(encoder: TextEncoder, tmp_path: Path, name: str) -> None:
    encoder.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=rf"no text encoder in .*{name.split('.')[-1]}"):
        TextEncoder.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_reported_in_one_line(encoder: TextEncoder, tmp_path: Path, name: str) -> None:
    encoder.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged") as found:
        TextEncoder.load(tmp_path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("key", "value"), [("num_layers", 3), ("d_ff", 96)])
def test_weights_that_do_not_fit_the_config_are_refused(
    encoder: TextEncoder, tmp_path: Path, key: str, value: int
) -> None:
    encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ValueError, match="text encoder in"):
        TextEncoder.load(tmp_path)


def test_wrong_input_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="0 prompts"):
        encoder.encode([])
    with pytest.raises(ValueError, match="0 words"):
        TextEncoder.build([])
    with pytest.raises(ValueError, match="30 does not divide into 4"):
        TextEncoder.build(WORDS, width=30)
    with pytest.raises(ValueError, match="length of 0"):
        TextEncoder.build(WORDS, length=0)
