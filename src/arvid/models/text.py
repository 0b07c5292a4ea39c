"""Prompts to token embeddings: a tokenizer, a UMT5 encoder and a fixed number of tokens.

Knows: how a prompt becomes x_BLD with zeros beyond its last token, and the directory it is kept in. Does not know:
what the words mean, who reads the embeddings. The same class holds the big encoder of the Wan models (a transformers
directory) and the tiny word-level one that `TextEncoder.build` makes.

Legend: B prompts, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
PUNCTUATION = (",", ".", ";", ":", "!", "?", "(", ")")
LONGEST = 4096
"""A tokenizer that claims more tokens than this states no length at all (transformers writes 1e30 for 'unset')."""


class TextEncoder(nn.Module):
    """A tokenizer and a UMT5 encoder. Prompts of more than `length` tokens lose their tail, as in the Wan models."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model: UMT5EncoderModel, length: int) -> None:
        super().__init__()
        if not 1 <= length <= LONGEST:
            raise ValueError(f"a text length of {length} tokens; expected 1 to {LONGEST}: pass length=")
        self.tokenizer = tokenizer
        self.model = model
        self.length = length

    @classmethod
    def build(
        cls, words: Iterable[str], length: int = 64, width: int = 128, layers: int = 3, heads: int = 4, seed: int = 0
    ) -> TextEncoder:
        """A fresh encoder over a vocabulary of lower-case `words`; same arguments, same weights.

        Raises ValueError when there are no words or `width` is not a multiple of `heads`.
        """
        tokenizer = word_tokenizer(words, length)
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads; choose a multiple of {heads}")
        config = UMT5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // heads,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=heads,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = UMT5EncoderModel(config)
        return cls(tokenizer, model.eval(), length)

    @classmethod
    def load(
        cls,
        directory: Path,
        length: int | None = None,
        tokenizer: Path | None = None,
        dtype: torch.dtype | None = None,
    ) -> TextEncoder:
        """Read what `save` or transformers wrote: config.json, safetensors weights and tokenizer.json.

        `tokenizer` is the tokenizer's directory where it is a separate one (the Wan layout); `length` overrides the
        length the tokenizer states. Weights become `dtype` one by one, and keep the type they are stored in without.
        Raises ValueError when a file is missing or damaged.
        """
        directory = Path(directory)
        place = Path(tokenizer or directory)
        for path in (directory / "config.json", place / "tokenizer.json"):
            if not path.is_file():
                raise ValueError(f"no text encoder in {directory}: {path} is missing; save one there or fetch it again")
        if not any(directory.glob("model*.safetensors")):
            raise ValueError(
                f"no text encoder in {directory}: no model*.safetensors; weights are read from safetensors"
            )
        try:
            words = PreTrainedTokenizerFast.from_pretrained(str(place), local_files_only=True)
            model, found = UMT5EncoderModel.from_pretrained(
                str(directory), local_files_only=True, use_safetensors=True, dtype=dtype or "auto",
                output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the text encoder in {directory} is damaged ({_line(error)}); fetch it again") from error
        if found["missing_keys"] or found["mismatched_keys"]:
            wrong = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
            raise ValueError(
                f"the text encoder in {directory} lacks {len(wrong)} weights, first {wrong[0]}; fetch it again"
            )
        return cls(words, model.eval(), length or int(words.model_max_length))

    def save(self, directory: Path) -> None:
        """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json (it holds the length)."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.tokenizer.model_max_length = self.length
        self.tokenizer.save_pretrained(str(directory))
        self.model.save_pretrained(str(directory))

    @property
    def width(self) -> int:
        """D, channels of a token embedding."""
        return int(self.model.config.d_model)

    def tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token numbers [B, L] int64 and their mask [B, L] int64, 1 up to and with the end token."""
        held = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return held["input_ids"], held["attention_mask"]

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Embeddings x_BLD fp32, zero where the mask is."""
        x_BLD: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return x_BLD.float() * mask_BL[..., None]

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, D] fp32 of prompts, zero beyond each prompt's end token, on the weights' device.

        Raises ValueError when there are no prompts.
        """
        if not prompts:
            raise ValueError("0 prompts to encode; pass at least one")
        ids_BL, mask_BL = self.tokens(prompts)
        x_BLD: Tensor = self(ids_BL.to(self.model.device), mask_BL.to(self.model.device))
        return x_BLD

    def unknown(self, prompt: str) -> list[str]:
        """Words of a prompt that the vocabulary lacks, as written, each once; the encoder sees one same token."""
        held = self.tokenizer(prompt, return_offsets_mapping=True, truncation=False)
        spans = zip(held["input_ids"], held["offset_mapping"], strict=True)
        found = [prompt[start:stop] for token, (start, stop) in spans if token == self.tokenizer.unk_token_id]
        return list(dict.fromkeys(found))


def word_tokenizer(words: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole lower-case words: hyphens part words, apostrophes vanish, punctuation stands alone.

    Raises ValueError when there are no words.
    """
    listed = sorted({word.lower() for word in words} - {*PUNCTUATION})
    if not listed:
        raise ValueError("0 words for a tokenizer; pass the vocabulary")
    vocabulary = {word: number for number, word in enumerate((PAD, END, UNKNOWN, *PUNCTUATION, *listed))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("-", " "),
            normalizers.Replace("'", ""),
            normalizers.Replace("\u2019", ""),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=length,
        padding_side="right",
    )


def _line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
