"""ImageReward-v1.0: how far people would like a picture as an answer to a prompt, read from its own checkpoint.

Knows: the network (BLIP's ViT-L/16 and BERT-base that looks at the picture, then five linear layers), the names of its
weights, its preparation of frames and prompts, its standardisation. Does not know: motion (a frame is scored alone),
where the file comes from. ImageReward: 2304.05977; BLIP: 2201.12086. Scores of people's pictures have mean 0 and
deviation 1; those of frames of generated video lie between about -2.3 and 2 (SDVG, 2604.17397).

Legend: N frames, B videos, T frames of a video, C channels, H height, W width, L tokens, D width; v_BTCHW in [-1, 1].
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from arvid.rewards.clip import Prepare, centre_crop, frames_of, take, tokenizer_of

WHAT = "ImageReward-v1.0 (ImageReward.pt)"
TOKENS = 35
"""Prompts lose what is beyond."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores of the training set."""

PUBLISHED = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^(vision\..*)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)
"""From the names of the checkpoint to ours, in this order."""
_ASIDE = re.compile(r"^blip\.(?!visual_encoder\.|text_encoder\.)|\.position_ids$")
"""What the checkpoint holds and the score does not need: heads of BLIP's own training, and counted positions."""


@dataclass(frozen=True)
class ImageRewardConfig:
    """Sizes; feed-forward layers are four times as wide. `head` lists the widths of the linear layers between the text
    width and the score, and the names they have in the checkpoint (dropout stands between them)."""

    side: int = 224
    patch: int = 16
    vision: tuple[int, int, int] = (1024, 24, 16)
    text: tuple[int, int, int] = (768, 12, 12)
    words: int = 30524
    places: int = 512
    head: tuple[tuple[str, int], ...] = (("0", 1024), ("2", 128), ("4", 64), ("6", 16), ("7", 1))


class ImageReward(nn.Module):
    """A `Reward` (see `arvid.types`). Widths, layers and heads of both towers are in the configuration."""

    def __init__(self, tokenizer: Any, config: ImageRewardConfig | None = None, prepare: Prepare = centre_crop) -> None:
        super().__init__()
        self.config, self.prepare, self._tokenizer = config or ImageRewardConfig(), prepare, tokenizer
        self.vision = BlipVisionModel(_vision(self.config))
        self.text = BlipTextModel(_text(self.config), add_pooling_layer=False)
        self.head = _head(self.config)

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        tokenizer: Path,
        config: ImageRewardConfig | None = None,
        prepare: Prepare = centre_crop,
    ) -> ImageReward:
        """The scorer over a checkpoint's weights, which it takes over in their type; `tokenizer` is a transformers
        directory with the tokenizer of bert-base-uncased. `prepare` may be `whole_frame` of rewards/clip.py.

        Raises ValueError when weights are missing, surplus or misshapen, or there is no tokenizer.
        """
        words = tokenizer_of(tokenizer)
        with torch.device("meta"):
            model = cls(words, config, prepare)
        take(model, dict(renamed(weights)), WHAT)
        return model.eval().requires_grad_(False)

    def forward(self, x_NCHW: Tensor, ids_1L: Tensor, mask_1L: Tensor) -> Tensor:
        """Standardised scores [N] fp32 of prepared frames against the tokens of one prompt."""
        count = len(x_NCHW)
        seen_NMD = self.vision(pixel_values=x_NCHW).last_hidden_state
        said_NLD = self.text(
            input_ids=ids_1L.expand(count, -1), attention_mask=mask_1L.expand(count, -1), encoder_hidden_states=seen_NMD
        ).last_hidden_state
        raw_N1: Tensor = self.head(said_NLD[:, 0])
        return (raw_N1[:, 0].float() - MEAN) / STD

    @torch.no_grad()
    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """Scores [B, T] fp32 of frames against a prompt; all frames are one batch.

        Raises ValueError unless frames have five axes and three channels.
        """
        v_NCHW = frames_of(v_BTCHW)
        weight: Tensor = next(self.head.parameters())
        x_NCHW = self.prepare(v_NCHW.to(weight.device), self.config.side).to(weight.dtype)
        held = self._tokenizer(
            [prompt], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(weight.device)
        scores_N: Tensor = self(x_NCHW, held["input_ids"], held["attention_mask"])
        return scores_N.unflatten(0, (v_BTCHW.shape[0], -1))


def renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights of the checkpoint under our names, without those the score does not need."""
    for name, value in weights.items():
        if not _ASIDE.search(name):
            for pattern, replacement in PUBLISHED:
                name = re.sub(pattern, replacement, name)
            yield name, value


def _vision(config: ImageRewardConfig) -> BlipVisionConfig:
    width, layers, heads = config.vision
    return BlipVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        image_size=config.side, patch_size=config.patch, layer_norm_eps=1e-6,
    )  # fmt: skip


def _text(config: ImageRewardConfig) -> BlipTextConfig:
    width, layers, heads = config.text
    return BlipTextConfig(
        vocab_size=config.words, hidden_size=width, encoder_hidden_size=config.vision[0], intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=config.places,
        bos_token_id=None, eos_token_id=None, sep_token_id=None,
    )  # fmt: skip


def _head(config: ImageRewardConfig) -> nn.Sequential:
    inputs = [config.text[0], *(width for _, width in config.head[:-1])]
    layers = [(name, nn.Linear(wide, width)) for wide, (name, width) in zip(inputs, config.head, strict=True)]
    return nn.Sequential(OrderedDict[str, nn.Module](layers))
