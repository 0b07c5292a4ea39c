"""ImageReward under its published names: against the network written out plainly, and its preparation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from arvid.rewards.clip import centre_crop, whole_frame
from arvid.rewards.image_reward import ImageReward, ImageRewardConfig

WORDS = ["[PAD]", "[CLS]", "[SEP]", *"a red blue ball star rolls over the carpet".split()]
WIDE, DEEP, HEADS = 12, 2, 3
TEXT, TEXT_HEADS = 8, 2
CONFIG = ImageRewardConfig(
    side=8, patch=4, vision=(WIDE, DEEP, HEADS), text=(TEXT, DEEP, TEXT_HEADS), words=len(WORDS), places=40,
    head=(("0", 10), ("2", 7), ("4", 5), ("6", 3), ("7", 1)),
)  # fmt: skip
PROMPT = "a red ball rolls"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words between a first and a last token, padded, as BERT has it."""
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    path = tmp_path_factory.mktemp("bert")
    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    fast.save_pretrained(str(path))
    return path


def checkpoint() -> dict[str, Tensor]:
    """Random weights under the published names, and what the file holds beside them."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    found: dict[str, Tensor] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = drawn(outputs, inputs), drawn(outputs)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + drawn(width), drawn(width)

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    found[f"{vision}.cls_token"] = drawn(1, 1, WIDE)
    found[f"{vision}.pos_embed"] = drawn(1, 5, WIDE)
    found[f"{vision}.patch_embed.proj.weight"] = drawn(WIDE, 3, 4, 4)
    found[f"{vision}.patch_embed.proj.bias"] = drawn(WIDE)
    for n in range(DEEP):
        block = f"{vision}.blocks.{n}"
        norm(f"{block}.norm1", WIDE)
        linear(f"{block}.attn.qkv", WIDE, 3 * WIDE)
        linear(f"{block}.attn.proj", WIDE, WIDE)
        norm(f"{block}.norm2", WIDE)
        linear(f"{block}.mlp.fc1", WIDE, 4 * WIDE)
        linear(f"{block}.mlp.fc2", 4 * WIDE, WIDE)
    norm(f"{vision}.norm", WIDE)
    found[f"{text}.embeddings.word_embeddings.weight"] = drawn(len(WORDS), TEXT)
    found[f"{text}.embeddings.position_embeddings.weight"] = drawn(40, TEXT)
    found[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    norm(f"{text}.embeddings.LayerNorm", TEXT)
    for n in range(DEEP):
        block = f"{text}.encoder.layer.{n}"
        for kind, width in (("attention", TEXT), ("crossattention", WIDE)):
            linear(f"{block}.{kind}.self.query", TEXT, TEXT)
            linear(f"{block}.{kind}.self.key", width, TEXT)
            linear(f"{block}.{kind}.self.value", width, TEXT)
            linear(f"{block}.{kind}.output.dense", TEXT, TEXT)
            norm(f"{block}.{kind}.output.LayerNorm", TEXT)
        linear(f"{block}.intermediate.dense", TEXT, 4 * TEXT)
        linear(f"{block}.output.dense", 4 * TEXT, TEXT)
        norm(f"{block}.output.LayerNorm", TEXT)
    for name, inputs, outputs in (("0", TEXT, 10), ("2", 10, 7), ("4", 7, 5), ("6", 5, 3), ("7", 3, 1)):
        linear(f"mlp.layers.{name}", inputs, outputs)
    linear("blip.vision_proj", WIDE, 6)
    linear("blip.text_proj", TEXT, 6)
    return found


def plain(w: dict[str, Tensor], x_CHW: Tensor, ids: list[int]) -> float:
    """The score of one prepared frame and the tokens of a prompt without padding, from the published names alone."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        size = q.shape[-1] // heads
        parts = [slice(n * size, (n + 1) * size) for n in range(heads)]
        return torch.cat([(q[:, p] @ k[:, p].T / size**0.5).softmax(-1) @ v[:, p] for p in parts], -1)

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    kernel = w[f"{vision}.patch_embed.proj.weight"]
    patches = [x_CHW[:, r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]
    x = torch.stack([(kernel * patch).sum((1, 2, 3)) for patch in patches]) + w[f"{vision}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{vision}.cls_token"][0], x]) + w[f"{vision}.pos_embed"][0]
    for n in range(DEEP):
        block = f"{vision}.blocks.{n}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, HEADS), f"{block}.attn.proj")
        h = F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
        x = x + linear(h, f"{block}.mlp.fc2")
    seen = norm(x, f"{vision}.norm", 1e-6)
    y = w[f"{text}.embeddings.word_embeddings.weight"][ids]
    y = y + w[f"{text}.embeddings.position_embeddings.weight"][: len(ids)]
    y = norm(y, f"{text}.embeddings.LayerNorm", 1e-12)
    for n in range(DEEP):
        block = f"{text}.encoder.layer.{n}"
        for kind in ("attention", "crossattention"):
            source = y if kind == "attention" else seen
            q = linear(y, f"{block}.{kind}.self.query")
            k, v = linear(source, f"{block}.{kind}.self.key"), linear(source, f"{block}.{kind}.self.value")
            found = linear(attend(q, k, v, TEXT_HEADS), f"{block}.{kind}.output.dense")
            y = norm(y + found, f"{block}.{kind}.output.LayerNorm", 1e-12)
        h = linear(F.gelu(linear(y, f"{block}.intermediate.dense")), f"{block}.output.dense")
        y = norm(y + h, f"{block}.output.LayerNorm", 1e-12)
    score = y[0]
    for name in "02467":
        score = linear(score, f"mlp.layers.{name}")
    return float((score[0] - 0.16717362830052426) / 1.0333394966054072)


def frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def scorer(tokenizer: Path) -> ImageReward:
    return ImageReward.from_weights(checkpoint(), tokenizer, CONFIG)


@pytest.mark.parametrize("prompt", [PROMPT, "the star", "a " * 60 + "red"])
def test_a_batch_of_frames_scores_like_the_plain_network_frame_by_frame(scorer: ImageReward, prompt: str) -> None:
    v = frames(2, 3, 3, 12, 17)
    words = [WORDS.index(word) for word in prompt.split()]
    ids = [1, *words[:33], 2]  # 35 tokens in all
    expected = [[plain(checkpoint(), centre_crop(x[None], 8)[0], ids) for x in video] for video in v]
    found = scorer.score(v, prompt)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32 and found.std() > 1e-3


def test_batch_is_one_by_one_and_both_sides_matter(scorer: ImageReward) -> None:
    v = frames(2, 3, 3, 16, 12)
    single = [[scorer.score(v[b : b + 1, t : t + 1], PROMPT).item() for t in range(3)] for b in range(2)]
    torch.testing.assert_close(scorer.score(v, PROMPT), torch.tensor(single), atol=1e-5, rtol=0)
    assert (scorer.score(v, PROMPT) - scorer.score(v, "a blue star")).abs().min() > 1e-4


def test_the_published_crop_sees_the_middle_and_the_other_all(tokenizer: Path) -> None:
    v = frames(1, 1, 3, 24, 40)
    changed = v.clone()
    changed[..., :2] = -1.0  # the left edge, outside the middle 24 columns
    middle = ImageReward.from_weights(checkpoint(), tokenizer, CONFIG)
    whole = ImageReward.from_weights(checkpoint(), tokenizer, CONFIG, whole_frame)
    assert torch.equal(middle.score(v, PROMPT), middle.score(changed, PROMPT))
    assert not torch.equal(whole.score(v, PROMPT), whole.score(changed, PROMPT))


def test_weights_keep_their_type_and_scores_are_single_precision(tokenizer: Path) -> None:
    held = {name: value.bfloat16() if value.is_floating_point() else value for name, value in checkpoint().items()}
    scorer = ImageReward.from_weights(held, tokenizer, CONFIG)
    assert {p.dtype for p in scorer.parameters()} == {torch.bfloat16}
    assert scorer.score(frames(1, 2, 3, 8, 8), PROMPT).dtype == torch.float32
    assert not scorer.training and not any(p.requires_grad for p in scorer.parameters())


def test_the_published_size() -> None:
    """ViT-L/16, BERT-base with cross-attention to 1024 channels, five linear layers, counted by hand."""
    with torch.device("meta"):
        count = sum(p.numel() for p in ImageReward(None).parameters())
    vision = 24 * (12 * 1024**2 + 13 * 1024) + 197 * 1024 + 1024 + 768 * 1024 + 1024 + 2 * 1024
    layer = 4 * (768**2 + 768) + 2 * (768**2 + 768) + 2 * (1024 * 768 + 768) + 8 * 768**2 + 5 * 768 + 6 * 768
    text = 12 * layer + (30524 + 512) * 768 + 2 * 768
    head = sum(a * b + b for a, b in ((768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)))
    assert count == vision + text + head


def test_other_weights_are_refused_with_their_names(tokenizer: Path, tmp_path: Path) -> None:
    weights = checkpoint()
    weights["mlp.layers.8.weight"] = weights.pop("mlp.layers.7.weight")
    with pytest.raises(ValueError, match=r"1 missing \['head.7.weight'\], 1 surplus \['head.8.weight'\]") as found:
        ImageReward.from_weights(weights, tokenizer, CONFIG)
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"frames of shape \[3, 8, 8\] to score"):
        ImageReward.from_weights(checkpoint(), tokenizer, CONFIG).score(frames(3, 8, 8), PROMPT)
    with pytest.raises(ValueError, match="no tokenizer in"):
        ImageReward.from_weights(checkpoint(), tmp_path / "nowhere", CONFIG)
