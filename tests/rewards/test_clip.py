"""CLIP-score and HPSv2: against the towers written out plainly, transformers' own forward, and Pillow's resizing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from arvid.rewards.clip import MEAN, STD, ClipScore, centre_crop, letterbox, whole_frame
from arvid.rewards.hps import HPSv2, vit_h_14

WORDS = "a red blue ball star rolls over the carpet".split()
LONGEST, SIDE, PATCH = 7, 8, 4
VISION, TEXT, SPACE = (12, 2, 3), (8, 2, 2), 6  # (width, layers, heads)
END = len(WORDS) + 1
PROMPT = "a red ball rolls"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words between a start and an end token, as CLIP has it."""
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*WORDS, "<s>", "</s>"])}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", END - 1), ("</s>", END)]
    )
    path = tmp_path_factory.mktemp("clip")
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(str(path))
    return path


def tiny(act: str = "gelu") -> CLIPConfig:
    vision = {"hidden_size": VISION[0], "num_hidden_layers": VISION[1], "num_attention_heads": VISION[2],
              "intermediate_size": 4 * VISION[0], "image_size": SIDE, "patch_size": PATCH,
              "hidden_act": act}  # fmt: skip
    text = {"hidden_size": TEXT[0], "num_hidden_layers": TEXT[1], "num_attention_heads": TEXT[2],
            "intermediate_size": 4 * TEXT[0], "vocab_size": END + 1, "max_position_embeddings": LONGEST,
            "hidden_act": act, "bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=SPACE)


def checkpoint() -> dict[str, Tensor]:
    """Random weights under open_clip's names."""
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int, scale: float = 0.4) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    found = {"logit_scale": torch.tensor(4.6), "text_projection": drawn(TEXT[0], SPACE),
             "positional_embedding": drawn(LONGEST, TEXT[0]), "token_embedding.weight": drawn(END + 1, TEXT[0]),
             "visual.proj": drawn(VISION[0], SPACE), "visual.class_embedding": drawn(VISION[0]),
             "visual.positional_embedding": drawn((SIDE // PATCH) ** 2 + 1, VISION[0]),
             "visual.conv1.weight": drawn(VISION[0], 3, PATCH, PATCH)}  # fmt: skip

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + drawn(width), drawn(width)

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = drawn(outputs, inputs), drawn(outputs)

    for prefix, (width, layers, _) in (("visual.", VISION), ("", TEXT)):
        for n in range(layers):
            block = f"{prefix}transformer.resblocks.{n}"
            found[f"{block}.attn.in_proj_weight"] = drawn(3 * width, width)
            found[f"{block}.attn.in_proj_bias"] = drawn(3 * width)
            linear(f"{block}.attn.out_proj", width, width)
            linear(f"{block}.mlp.c_fc", width, 4 * width)
            linear(f"{block}.mlp.c_proj", 4 * width, width)
            norm(f"{block}.ln_1", width)
            norm(f"{block}.ln_2", width)
    for name, width in (("visual.ln_pre", VISION[0]), ("visual.ln_post", VISION[0]), ("ln_final", TEXT[0])):
        norm(name, width)
    return found


def plain(w: dict[str, Tensor], x_NCHW: Tensor, ids: list[int]) -> Tensor:
    """Cosines [N] of prepared frames and tokens, from the names of open_clip alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def tower(x: Tensor, prefix: str, layers: int, heads: int, causal: bool) -> Tensor:
        count = x.shape[1]
        mask = torch.full((count, count), float("-inf")).triu(1) if causal else None
        for n in range(layers):
            block = f"{prefix}transformer.resblocks.{n}"
            h = norm(x, f"{block}.ln_1").transpose(0, 1)
            seen, _ = F.multi_head_attention_forward(
                h, h, h, x.shape[-1], heads, w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"],
                None, None, False, 0.0, w[f"{block}.attn.out_proj.weight"], w[f"{block}.attn.out_proj.bias"],
                attn_mask=mask, need_weights=False,
            )  # fmt: skip
            x = x + seen.transpose(0, 1)
            h = F.gelu(F.linear(norm(x, f"{block}.ln_2"), w[f"{block}.mlp.c_fc.weight"], w[f"{block}.mlp.c_fc.bias"]))
            x = x + F.linear(h, w[f"{block}.mlp.c_proj.weight"], w[f"{block}.mlp.c_proj.bias"])
        return x

    x = F.conv2d(x_NCHW, w["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = tower(norm(x, "visual.ln_pre"), "visual.", VISION[1], VISION[2], causal=False)
    seen = norm(x[:, 0], "visual.ln_post") @ w["visual.proj"]
    y = w["token_embedding.weight"][ids][None] + w["positional_embedding"][: len(ids)]
    y = norm(tower(y, "", TEXT[1], TEXT[2], causal=True), "ln_final")
    said = y[0, ids.index(END)] @ w["text_projection"]
    return (seen / seen.norm(dim=-1, keepdim=True)) @ (said / said.norm())


def frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_hps_from_its_own_names_is_the_plain_network(tokenizer: Path) -> None:
    weights = checkpoint()
    scorer = HPSv2.from_weights(
        {f"state_dict/module.{name}": value for name, value in weights.items()}, tokenizer, tiny()
    )
    v = frames(2, 3, 3, 10, 13)
    for prompt, ids in (
        (PROMPT, [9, 0, 1, 3, 5, END]),
        ("a red ball rolls over the blue carpet", [9, 0, 1, 3, 5, 6, END]),
    ):
        expected = plain(weights, letterbox(v.flatten(0, 1), SIDE), ids).view(2, 3)
        found = scorer.score(v, prompt)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found.dtype == torch.float32 and found.std() > 1e-3


@pytest.fixture
def saved(tokenizer: Path, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = CLIPModel(tiny("quick_gelu")).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.4)
    model.save_pretrained(tmp_path)
    for part in tokenizer.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    return tmp_path


def test_clip_score_is_its_formula_over_transformers_own_forward(saved: Path) -> None:
    scorer, v = ClipScore.load(saved), frames(1, 6, 3, 9, 12)
    model = CLIPModel.from_pretrained(saved).eval()
    with torch.no_grad():
        ids = torch.tensor([[9, 0, 1, 3, 5, END]])
        out = model(input_ids=ids, pixel_values=centre_crop(v[0], SIDE))
    cosine = (out.image_embeds * out.text_embeds).sum(-1)
    expected = (100 * cosine).clamp(min=0) / 40
    torch.testing.assert_close(scorer.score(v, PROMPT)[0], expected, rtol=1e-5, atol=1e-5)
    assert (cosine < 0).any() and (cosine > 0).any(), "both sides of the formula are seen"


@pytest.mark.parametrize("kind", ["clip", "hps"])
def test_a_batch_scores_like_its_frames_one_by_one(kind: str, saved: Path, tokenizer: Path) -> None:
    scorer: Any = ClipScore.load(saved) if kind == "clip" else HPSv2.from_weights(checkpoint(), tokenizer, tiny())
    v = frames(2, 3, 3, 16, 12)
    single = [[scorer.score(v[b : b + 1, t : t + 1], PROMPT).item() for t in range(3)] for b in range(2)]
    torch.testing.assert_close(scorer.score(v, PROMPT), torch.tensor(single), atol=1e-5, rtol=0)
    assert not torch.equal(scorer.score(v, PROMPT), scorer.score(v, "a blue star"))
    assert torch.equal(scorer.score(v, PROMPT), scorer.score(v, PROMPT))


def by_pillow(v_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """A frame resized to (width, height) by Pillow, in [0, 1]."""
    pixels = ((v_CHW + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(numpy.asarray(picture).copy()).permute(2, 0, 1) / 255


def near(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding to 8 bits, which Pillow does before and after each of two passes."""
    gap = (found - expected).abs() * 255
    assert gap.max() < 4
    assert gap.mean() < 1


@pytest.mark.parametrize(("height", "width"), [(48, 83), (83, 48), (32, 32), (20, 21), (224, 301)])
def test_frames_are_prepared_as_pillow_would(height: int, width: int) -> None:
    v, side = frames(1, 3, height, width), 32
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def pixels(x_NCHW: Tensor) -> Tensor:
        assert x_NCHW.shape == (1, 3, side, side)
        return x_NCHW[0] * std + mean

    short = min(height, width)
    tall, wide = int(side * height / short), int(side * width / short)
    top, left = round((tall - side) / 2), round((wide - side) / 2)
    cut = by_pillow(v[0], (wide, tall))[:, top : top + side, left : left + side]
    near(pixels(centre_crop(v, side)), cut)
    near(pixels(whole_frame(v, side)), by_pillow(v[0], (side, side)))
    v = v / 2  # its published preparation knows no range: keep away from both ends of it
    boxed = pixels(letterbox(v, side))
    tall, wide = round(height * side / max(height, width)), round(width * side / max(height, width))
    top, left = (side - tall) // 2, (side - wide) // 2
    near(boxed[:, top : top + tall, left : left + wide], by_pillow(v[0], (wide, tall)))
    outside = torch.ones(side, side, dtype=torch.bool)
    outside[top : top + tall, left : left + wide] = False
    assert boxed[:, outside].abs().max() < 1e-6 if outside.any() else height == width


def test_the_published_sizes() -> None:
    """ViT-H/14 with its text tower has 986,109,441 weights (open_clip's listing says 986.11 M)."""
    with torch.device("meta"):
        count = sum(p.numel() for p in CLIPModel(vit_h_14()).parameters())
    assert round(count / 1e6, 2) == 986.11


def test_other_weights_and_folders_are_refused(saved: Path, tokenizer: Path, tmp_path: Path) -> None:
    weights = checkpoint()
    weights["stranger"] = weights.pop("visual.ln_post.bias")
    with pytest.raises(ValueError, match=r"1 missing \['vision_model.post_layernorm.bias'\], 1 surplus \['stranger'\]"):
        HPSv2.from_weights(weights, tokenizer, tiny())
    with pytest.raises(ValueError, match=r"no tokenizer in .*nowhere"):
        HPSv2.from_weights(checkpoint(), tmp_path / "nowhere", tiny())
    with pytest.raises(ValueError, match=r"no CLIP model in .*config\.json is missing"):
        ClipScore.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"frames of shape \[2, 3, 8, 8\] to score; expected \[B, T, 3, H, W\]"):
        ClipScore.load(saved).score(frames(2, 3, 8, 8), PROMPT)
    weight = saved / "model.safetensors"
    weight.write_bytes(weight.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged .*; fetch it again") as found:
        ClipScore.load(saved)
    assert "\n" not in str(found.value)
