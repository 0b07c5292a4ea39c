"""HPSv2: CLIP ViT-H/14 tuned to what people prefer, read from its own checkpoint.

Knows: the names of open_clip's weights, the published size and preparation. Does not know: how cosines are made
(rewards/clip.py), where the file comes from. HPSv2: 2306.09341; a score is the plain cosine, about 0.2 to 0.3.

The published preparation resizes tensors, where antialiasing depends on the version of its library; here, as in the
later versions, it is on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from arvid.rewards.clip import Cosine, Prepare, letterbox, take, tokenizer_of

WHAT = "HPSv2 (HPS_v2_compressed.pt or HPS_v2.1_compressed.pt)"

OPEN_CLIP = (
    (r"^(?:state_dict/)?(?:module\.)?", ""),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.in_proj_", ".self_attn.in_proj."),
    (r"\.attn\.", ".self_attn."),
)
"""From the names of open_clip to those of transformers, in this order; the joined projection of queries, keys and
values is parted afterwards, and the two matrices into the shared space are turned round."""
_TURNED = ("visual_projection.weight", "text_projection.weight")


def vit_h_14() -> CLIPConfig:
    """The published size."""
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14, "hidden_act": "gelu"}  # fmt: skip
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "gelu"}  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024)


def renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights of open_clip under the names and in the form of transformers."""
    for name, value in weights.items():
        for pattern, replacement in OPEN_CLIP:
            name = re.sub(pattern, replacement, name)
        if ".in_proj." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                yield name.replace(".in_proj.", f".{letter}_proj."), part
        else:
            yield name, value.T if name in _TURNED else value


class HPSv2(Cosine):
    """A `Reward` (see `arvid.types`)."""

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        tokenizer: Path,
        config: CLIPConfig | None = None,
        prepare: Prepare = letterbox,
    ) -> HPSv2:
        """The scorer over a checkpoint's weights, which it takes over in their type; `tokenizer` is a transformers
        directory with CLIP's tokenizer, `config` the sizes (None: the published).

        Raises ValueError when weights are missing, surplus or misshapen, or there is no tokenizer.
        """
        words = tokenizer_of(tokenizer)
        with torch.device("meta"):
            model = CLIPModel(config or vit_h_14())
        take(model, dict(renamed(weights)), WHAT)
        return cls(model.eval().requires_grad_(False), words, prepare)

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """Scores [B, T] fp32 in [-1, 1] of frames against a prompt."""
        return self.cosine(v_BTCHW, prompt)
