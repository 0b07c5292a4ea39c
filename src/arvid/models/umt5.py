"""UMT5 as the Wan models use it: the names of its original weights, the cleaning of prompts, an encoder that leaves.

Knows: how a state dict under the original names becomes transformers' UMT5EncoderModel, how Wan cleans a prompt before
it is tokenised, how the encoder's memory is given back once the prompts are encoded. Does not know: files of weights,
what the embeddings condition. Sizes follow from the shapes; the published one is UMT5-XXL (UniMax, 2304.09151: width
4096, 24 layers, 64 heads) at 512 tokens.

Legend: B prompts, L tokens, D width.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ftfy
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from arvid.models.names import Rules, rename, take, tensors_of
from arvid.models.text import TextEncoder

TEXT_LENGTH = 512
TOKENIZER = Path("google/umt5-xxl")
"""Where the tokenizer lies beside the original weights."""
WHAT = "a UMT5 encoder under Wan's names (models_t5_umt5-xxl-enc-bf16.pth)"
NEEDED = (
    "token_embedding.weight", "blocks.0.attn.q.weight", "blocks.0.ffn.fc1.weight",
    "blocks.0.pos_embedding.embedding.weight",
)  # fmt: skip

ORIGINAL: Rules = (
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.embed_tokens\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".pos_embedding.embedding."),
    (r"\.layer\.0\.SelfAttention\.", ".attn."),
    (r"\.layer\.0\.layer_norm\.", ".norm1."),
    (r"\.layer\.1\.layer_norm\.", ".norm2."),
    (r"\.layer\.1\.DenseReluDense\.wi_0\.", ".ffn.gate.0."),
    (r"\.layer\.1\.DenseReluDense\.wi_1\.", ".ffn.fc1."),
    (r"\.layer\.1\.DenseReluDense\.wo\.", ".ffn.fc2."),
)
"""From the names of transformers to those of the original file."""


def clean(prompt: str) -> str:
    """A prompt as Wan's tokenizer sees it: broken encodings and curly quotes mended, HTML entities resolved (twice),
    runs of white space made one space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def config_of(weights: Mapping[str, Tensor]) -> UMT5Config:
    """The configuration that the shapes of original weights describe. Raises ValueError when they are not UMT5's."""
    if lacking := [name for name in NEEDED if name not in weights]:
        raise ValueError(f"not the weights of {WHAT}: {lacking} missing among {len(weights)}; pass the text encoder")
    vocabulary, width = weights["token_embedding.weight"].shape
    buckets, heads = weights["blocks.0.pos_embedding.embedding.weight"].shape
    layers = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    return xxl(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=weights["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=weights["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=len(layers),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


def xxl(**sizes: Any) -> UMT5Config:
    """The configuration of UMT5-XXL, with other `sizes` where they are given (in transformers' words)."""
    published = {
        "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6, "dropout_rate": 0.0,
    }  # fmt: skip
    return UMT5Config(**{**published, **sizes})


class WanTextEncoder(TextEncoder):
    """A `TextEncoder` that cleans prompts as Wan does."""

    @classmethod
    def load(
        cls,
        directory: Path,
        length: int | None = TEXT_LENGTH,
        tokenizer: Path | None = None,
        dtype: torch.dtype | None = None,
    ) -> WanTextEncoder:
        """From a transformers directory (see `TextEncoder.load`), or from the original file; the tokenizer of the
        latter is the folder google/umt5-xxl beside it unless another is named.

        Weights become `dtype`; without one they keep their type, and those of the original file stay mapped. Raises
        ValueError for anything else.
        """
        path = Path(directory)
        if path.is_dir():
            read = super().load(path, length, tokenizer, dtype)
            return cls(read.tokenizer, read.model, read.length)
        found = cls.from_weights(tensors_of(path), tokenizer or path.parent / TOKENIZER, length or TEXT_LENGTH)
        return found if dtype is None else found.to(dtype)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], tokenizer: Path, length: int = TEXT_LENGTH) -> WanTextEncoder:
        """An encoder over original weights, which it takes over without a copy; `tokenizer` is the directory of its
        tokenizer.json (`google/umt5-xxl` in the original layout).

        Raises ValueError when weights are missing, surplus or misshapen, and when there is no tokenizer.
        """
        path = Path(tokenizer) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"no tokenizer in {tokenizer}: {path} is missing; pass the folder google/umt5-xxl")
        config = config_of(weights)
        with torch.device("meta"):
            model = UMT5EncoderModel(config)
        take(model, weights, {own: rename(own, ORIGINAL) for own in model.state_dict()}, WHAT)
        model.encoder.embed_tokens = model.shared  # one table under two names in transformers
        words = PreTrainedTokenizerFast.from_pretrained(str(tokenizer), local_files_only=True)
        return cls(words, model.eval().requires_grad_(False), length)

    def to_original(self) -> dict[str, Tensor]:
        """The weights under their original names."""
        return {rename(own, ORIGINAL): value for own, value in self.model.state_dict().items()}

    def tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """As in `TextEncoder`, of cleaned prompts."""
        return super().tokens([clean(prompt) for prompt in prompts])


class EncodeOnce:
    """Embeddings from an encoder that is in memory only while it encodes: it is loaded for prompts it has not met,
    and let go at once; what it said is kept on the CPU (4 MiB a prompt at 512 tokens of UMT5-XXL in bf16)."""

    def __init__(self, load: Callable[[], TextEncoder]) -> None:
        self._load = load
        self._known: dict[str, Tensor] = {}

    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, D] fp32 on the CPU (see `TextEncoder.encode`)."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            encoder = self._load()
            x_BLD = encoder.encode(new).to("cpu", encoder.model.dtype)
            self._known.update(zip(new, x_BLD, strict=True))
        if not prompts:
            raise ValueError("0 prompts to encode; pass at least one")
        return torch.stack([self._known[prompt] for prompt in prompts]).float()


class Visiting:
    """An encoder whose weights rest where they are (memory-mapped on the CPU, say) and visit `device` to encode."""

    def __init__(self, encoder: TextEncoder, device: torch.device) -> None:
        self._encoder, self._device = encoder, device

    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, D] on the device (see `TextEncoder.encode`)."""
        resting = [(held, held.data) for held in _tensors(self._encoder)]
        try:
            with torch.inference_mode(False):  # weights outlive the call, so they are no tensors of inference
                for held, data in resting:
                    held.data = data.to(self._device)
            return self._encoder.encode(prompts)
        finally:
            for held, data in resting:
                held.data = data


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
