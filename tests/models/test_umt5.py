"""UMT5 from Wan's own names: against the encoder written out plainly, and against transformers' own forward."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from arvid.models.text import TextEncoder, word_tokenizer
from arvid.models.umt5 import EncodeOnce, Visiting, WanTextEncoder, clean, xxl

WORDS = "a red ball rolls over the blue carpet while cat's don't look & it".split()
HEADS, WIDTH, LAYERS, LENGTH = 2, 12, 2, 10
PROMPTS = ["a red ball", "The cat rolls over the blue carpet while a red ball rolls over it", ""]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("google") / "umt5"
    word_tokenizer(WORDS, LENGTH).save_pretrained(str(path))
    return path


@pytest.fixture
def reference(tokenizer: Path) -> UMT5EncoderModel:
    """A tiny encoder of transformers with weights large enough that every one of them matters."""
    torch.manual_seed(3)
    size = len(word_tokenizer(WORDS, LENGTH))
    config = UMT5Config(
        vocab_size=size, d_model=WIDTH, d_kv=5, d_ff=16, num_layers=LAYERS, num_heads=HEADS, dropout_rate=0.0,
        relative_attention_num_buckets=8, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = UMT5EncoderModel(config).eval().requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    return model


def original(model: UMT5EncoderModel) -> dict[str, Tensor]:
    """The weights as the original file names them, written by hand."""
    state = model.state_dict()
    found = {"token_embedding.weight": state["shared.weight"], "norm.weight": state["encoder.final_layer_norm.weight"]}
    for n in range(LAYERS):
        attention, feed = f"encoder.block.{n}.layer.0.", f"encoder.block.{n}.layer.1."
        for letter in "qkvo":
            found[f"blocks.{n}.attn.{letter}.weight"] = state[f"{attention}SelfAttention.{letter}.weight"]
        found[f"blocks.{n}.pos_embedding.embedding.weight"] = state[
            f"{attention}SelfAttention.relative_attention_bias.weight"
        ]
        found[f"blocks.{n}.norm1.weight"] = state[f"{attention}layer_norm.weight"]
        found[f"blocks.{n}.norm2.weight"] = state[f"{feed}layer_norm.weight"]
        found[f"blocks.{n}.ffn.gate.0.weight"] = state[f"{feed}DenseReluDense.wi_0.weight"]
        found[f"blocks.{n}.ffn.fc1.weight"] = state[f"{feed}DenseReluDense.wi_1.weight"]
        found[f"blocks.{n}.ffn.fc2.weight"] = state[f"{feed}DenseReluDense.wo.weight"]
    return {name: value.clone() for name, value in found.items()}


def plain(w: dict[str, Tensor], ids: list[int]) -> Tensor:
    """The encoder as its authors describe it, for one prompt without padding, from the original names alone: gated
    GELU, no scaling of scores, a table of relative positions in every layer."""

    def norm(x: Tensor, name: str) -> Tensor:
        return w[name] * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def bucket(distance: int) -> int:
        half = 8 // 2
        side, distance, exact = (half if distance > 0 else 0), abs(distance), half // 2
        if distance < exact:
            return side + distance
        far = exact + int(math.log(distance / exact) / math.log(128 / exact) * (half - exact))
        return side + min(far, half - 1)

    x = w["token_embedding.weight"][ids]
    count = len(ids)
    for n in range(LAYERS):
        h = norm(x, f"blocks.{n}.norm1.weight")
        q, k, v = ((h @ w[f"blocks.{n}.attn.{letter}.weight"].T).view(count, HEADS, -1) for letter in "qkv")
        table = w[f"blocks.{n}.pos_embedding.embedding.weight"]
        seen = torch.empty(count, HEADS, q.shape[-1])
        for head in range(HEADS):
            bias = torch.tensor([[table[bucket(j - i), head] for j in range(count)] for i in range(count)])
            seen[:, head] = (q[:, head] @ k[:, head].T + bias).softmax(-1) @ v[:, head]
        x = x + seen.flatten(1) @ w[f"blocks.{n}.attn.o.weight"].T
        h = norm(x, f"blocks.{n}.norm2.weight")
        gate = F.gelu(h @ w[f"blocks.{n}.ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (h @ w[f"blocks.{n}.ffn.fc1.weight"].T)) @ w[f"blocks.{n}.ffn.fc2.weight"].T
    return norm(x, "norm.weight")


def test_original_weights_give_what_the_plain_encoder_gives(reference: UMT5EncoderModel, tokenizer: Path) -> None:
    weights = original(reference)
    found = WanTextEncoder.from_weights(weights, tokenizer, LENGTH).encode(PROMPTS)
    for row, prompt in zip(found, PROMPTS, strict=True):
        ids = word_tokenizer(WORDS, LENGTH)(prompt, truncation=True)["input_ids"]
        torch.testing.assert_close(row[: len(ids)], plain(weights, ids), rtol=1e-5, atol=1e-5)
        assert row[: len(ids)].abs().sum(-1).min() > 0
        assert (row[len(ids) :] == 0).all()


def test_original_names_and_a_transformers_directory_are_the_same_encoder(
    reference: UMT5EncoderModel, tokenizer: Path, tmp_path: Path
) -> None:
    reference.save_pretrained(tmp_path)
    one = WanTextEncoder.load(tmp_path, LENGTH, tokenizer)
    other = WanTextEncoder.from_weights(original(reference), tokenizer, LENGTH)
    ids, mask = other.tokens(PROMPTS)
    expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    assert isinstance(one, WanTextEncoder)
    assert torch.equal(one.encode(PROMPTS), other.encode(PROMPTS))
    torch.testing.assert_close(other.encode(PROMPTS), expected, rtol=1e-6, atol=1e-6)


def test_names_go_there_and_back(reference: UMT5EncoderModel, tokenizer: Path) -> None:
    weights = original(reference)
    back = WanTextEncoder.from_weights(weights, tokenizer).to_original()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_the_original_file_brings_its_tokenizer(reference: UMT5EncoderModel, tmp_path: Path) -> None:
    word_tokenizer(WORDS, LENGTH).save_pretrained(str(tmp_path / "google" / "umt5-xxl"))
    torch.save(original(reference), tmp_path / "encoder.pth")
    encoder = WanTextEncoder.load(tmp_path / "encoder.pth")
    assert encoder.encode(["a ball"]).shape == (1, 512, WIDTH)
    with pytest.raises(ValueError, match="no weights at"):
        WanTextEncoder.load(tmp_path / "nowhere.pth")


def test_weights_are_taken_over_without_a_copy(reference: UMT5EncoderModel, tokenizer: Path) -> None:
    weights = {name: value.bfloat16() for name, value in original(reference).items()}
    encoder = WanTextEncoder.from_weights(weights, tokenizer, LENGTH)
    places = {value.data_ptr() for value in weights.values()}
    assert {p.data_ptr() for p in encoder.model.parameters()} == places
    assert encoder.model.dtype == torch.bfloat16
    assert encoder.encode(["a ball"]).dtype == torch.float32


def test_the_published_encoder_has_its_published_size() -> None:
    with torch.device("meta"):
        model = UMT5EncoderModel(xxl())
    count = sum(value.numel() for name, value in model.state_dict().items() if not name.startswith("encoder.embed"))
    layer = 4 * 4096 * 4096 + 3 * 4096 * 10240 + 32 * 64 + 2 * 4096
    assert count == 256384 * 4096 + 24 * layer + 4096


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("a  red \n\t ball ", "a red ball"),
        ("\u201ca cat\u2019s ball\u201d", '"a cat\'s ball"'),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("caf\u00c3\u00a9 \ufb01re", "caf\u00e9 fire"),
        ("\u3000a ball\u00a0rolls", "a ball rolls"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(said: str, meant: str) -> None:
    assert clean(said) == meant
    assert clean(meant) == meant


def test_cleaning_reaches_the_tokens(reference: UMT5EncoderModel, tokenizer: Path) -> None:
    encoder = WanTextEncoder.from_weights(original(reference), tokenizer, LENGTH)
    tidy, wild = encoder.encode(["a cat's ball"]), encoder.encode(["  a&#32;cat\u2019s \n ball"])
    assert torch.equal(tidy, wild)


def test_wrong_weights_are_refused_with_their_names(reference: UMT5EncoderModel, tokenizer: Path) -> None:
    weights = original(reference)
    weights["stranger"] = weights.pop("blocks.1.attn.o.weight")
    weights["norm.weight"] = torch.zeros(WIDTH + 1)
    with pytest.raises(ValueError) as found:
        WanTextEncoder.from_weights(weights, tokenizer)
    said = str(found.value)
    assert "1 missing ['blocks.1.attn.o.weight'], 1 surplus ['stranger']" in said
    assert "norm.weight [13] for [12]" in said
    assert "\n" not in said
    with pytest.raises(ValueError, match=r"token_embedding.weight.* missing among 1; pass the text encoder"):
        WanTextEncoder.from_weights({"patch_embedding.weight": torch.zeros(1)}, tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer.json is missing; pass the folder google/umt5-xxl"):
        WanTextEncoder.from_weights(original(reference), tokenizer / "nowhere")


def test_prompts_are_encoded_once_and_the_encoder_leaves() -> None:
    import gc
    import weakref

    trace: list[weakref.ref[TextEncoder]] = []

    def load() -> TextEncoder:
        encoder = TextEncoder.build(WORDS, length=LENGTH, width=8, layers=1, heads=2)
        trace.append(weakref.ref(encoder))
        return encoder

    once = EncodeOnce(load)
    first = once.encode(["a red ball", "a cat"])
    gc.collect()
    assert len(trace) == 1 and trace[0]() is None
    again = once.encode(["a cat", "a red ball", "a cat"])
    assert len(trace) == 1
    assert torch.equal(again, first[[1, 0, 1]])
    torch.testing.assert_close(first, load().encode(["a red ball", "a cat"]))
    once.encode(["the carpet"])
    assert len(trace) == 3
    with pytest.raises(ValueError, match="0 prompts"):
        once.encode([])


def test_a_visiting_encoder_rests_where_it_rested() -> None:
    encoder = TextEncoder.build(WORDS, length=LENGTH, width=8, layers=1, heads=2)
    before = {name: value.data_ptr() for name, value in encoder.state_dict().items()}
    expected = encoder.encode(["a red ball"])
    assert torch.equal(Visiting(encoder, torch.device("cpu")).encode(["a red ball"]), expected)
    # No data on this device: the visit fails half-way, and the weights are at rest again.
    with pytest.raises((NotImplementedError, RuntimeError)):
        Visiting(encoder, torch.device("meta")).encode(["a red ball"]).sum().item()
    assert {name: value.data_ptr() for name, value in encoder.state_dict().items()} == before
    assert torch.equal(encoder.encode(["a red ball"]), expected)
