"""Text encoders and autoencoders on disk: told by what is in them, found beside a transformer, loaded when wanted.

Knows: the layouts in which they are published (the original files, transformers' and diffusers' directories, TAEHV),
the folders in which they lie beside a transformer, their sizes from names and shapes. Does not know: rewards, what the
parts make together.

Files are told by the names of their tensors, directories by their config.json; neither by its own name. Folders have
names by convention: `tokenizer` and `google/umt5-xxl` hold the tokenizer, `wan_models` lies beside `checkpoints`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import UMT5Config

from arvid.models.checkpoints.files import NAMED, Entry, containers, locate, open_file
from arvid.models.taehv import TAEHV, TAEHVConfig
from arvid.models.taehv import config_of as taehv_config
from arvid.models.umt5 import NEEDED, TOKENIZER, WanTextEncoder
from arvid.models.umt5 import config_of as umt5_config
from arvid.models.wan.vae import WanAutoencoder, settings_of

WAN_MODELS = "wan_models"
TOKENIZERS = (Path("."), TOKENIZER, Path("tokenizer"), Path("..") / TOKENIZER, Path("..") / "tokenizer")
"""Where the tokenizer lies, seen from the folder of the text encoder."""
VAE_SIGNS = ("encoder.conv1.weight", "conv2.weight", "decoder.head.2.weight")
TINY_SIGNS = ("decoder.1.weight", "decoder.3.conv.0.weight")


@dataclass(frozen=True, eq=False)
class TextAt:
    """A UMT5 encoder that is somewhere, not loaded: its file or directory, that of its tokenizer, its sizes."""

    path: Path
    tokenizer: Path
    config: UMT5Config

    def load(self, length: int, device: torch.device) -> WanTextEncoder:
        """The encoder for prompts of `length` tokens, in bf16, as its authors run it: a folder of transformers may hold
        it in fp32, twice as large."""
        return WanTextEncoder.load(self.path, length, self.tokenizer, torch.bfloat16).to(device)


@dataclass(frozen=True, eq=False)
class VaeAt:
    """A decoder of Wan 2.1's latents that is somewhere, not loaded: Wan's own by diffusers' settings, or the tiny one
    (TAEHV), which has no encoder."""

    path: Path
    sizes: Mapping[str, Any] | TAEHVConfig

    @property
    def tiny(self) -> bool:
        """Whether it is the tiny one."""
        return isinstance(self.sizes, TAEHVConfig)

    @property
    def channels(self) -> int:
        """Channels of the latents it reads."""
        return self.sizes.latent_channels if isinstance(self.sizes, TAEHVConfig) else int(self.sizes.get("z_dim", 16))

    def build(self) -> nn.Module:
        """A model of the same sizes with weights of its own."""
        return TAEHV(self.sizes) if isinstance(self.sizes, TAEHVConfig) else WanAutoencoder.build(self.sizes)

    def load(self, device: torch.device, dtype: torch.dtype) -> WanAutoencoder | TAEHV:
        """The decoder, ready to run."""
        found: WanAutoencoder | TAEHV = TAEHV.load(self.path) if self.tiny else WanAutoencoder.load(self.path)
        return found.to(device, dtype)


Found = tuple[TextAt | None, VaeAt | None]


def around(path: Path) -> list[Path]:
    """Folders in which the parts of the transformer at a path may lie: its own and those in it, then the folder of base
    models that Self-Forcing's layout has beside its checkpoints."""
    here = path if path.is_dir() else path.parent
    found = [here, *_folders(here)]
    for models in (here / WAN_MODELS, here.parent / WAN_MODELS):
        found += [models, *_folders(models)]
    return list(dict.fromkeys(folder for folder in found if folder.is_dir()))


def look_in(folders: Sequence[Path]) -> Found:
    """The first text encoder with a tokenizer and the first autoencoder in some folders. Wan's own autoencoder goes
    before a tiny one; damaged files are passed over."""
    text: TextAt | None = None
    vae: VaeAt | None = None
    for place in (place for folder in folders for place in (folder, *containers(folder))):
        try:
            text = text or _text(place)
            if vae is None or vae.tiny:
                vae = _vae(place) or vae
        except (ValueError, OSError):
            continue
        if text is not None and vae is not None and not vae.tiny:
            break
    return text, vae


def text_called(name: str) -> TextAt:
    """The text encoder called `name`: a file, a directory, or one on the Hugging Face hub (see `files.locate`).

    Raises ValueError when there is none, or it has no tokenizer.
    """
    path = locate(name)
    _fetch_tokenizer(name, path)
    if (config := _encoder(path)) is not None:
        if (tokenizer := _tokenizer(path)) is None:
            raise ValueError(
                f"no tokenizer for {path}: tokenizer.json is neither there nor in google/umt5-xxl or tokenizer beside "
                "it; fetch the folder google/umt5-xxl of the model it came with"
            )
        return TextAt(path, tokenizer, config)
    found = look_in([path, *_folders(path)] if path.is_dir() else [])[0]
    if found is None:
        raise ValueError(
            f"{name} is no UMT5 encoder{_shown(path)}; give models_t5_umt5-xxl-enc-bf16.pth with its tokenizer in "
            "google/umt5-xxl beside it, or the text_encoder folder of a Wan model in diffusers' layout"
        )
    return found


def vae_called(name: str) -> VaeAt:
    """The autoencoder called `name`, likewise. Raises ValueError when there is none."""
    path = locate(name)
    found = _vae(path) or look_in([path, *_folders(path)] if path.is_dir() else [])[1]
    if found is None:
        raise ValueError(
            f"{name} is no autoencoder of Wan 2.1{_shown(path)}; give Wan2.1_VAE.pth, the vae folder of a Wan model in "
            "diffusers' layout, or taew2_1"
        )
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _text(path: Path) -> TextAt | None:
    """A text encoder at a path; one without a tokenizer is none."""
    config = _encoder(path)
    tokenizer = None if config is None else _tokenizer(path)
    return None if config is None or tokenizer is None else TextAt(path, tokenizer, config)


def _encoder(path: Path) -> UMT5Config | None:
    """Sizes of the text encoder at a path."""
    if path.is_dir():
        known = _config(path).get("model_type") == "umt5" and any(path.glob("model*.safetensors"))
        return UMT5Config.from_pretrained(str(path), local_files_only=True) if known else None
    shapes = open_file(path).entries
    return umt5_config(_as_tensors(shapes)) if set(NEEDED) <= shapes.keys() else None


def _tokenizer(path: Path) -> Path | None:
    folder = path if path.is_dir() else path.parent
    places = (folder / inside for inside in TOKENIZERS)
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)


def _vae(path: Path) -> VaeAt | None:
    if path.is_dir():
        told = _config(path)
        if told.get("_class_name") != "AutoencoderKLWan":
            return None
        return VaeAt(path, told)
    shapes = open_file(path).entries
    if set(VAE_SIGNS) <= shapes.keys():
        return VaeAt(path, settings_of(_as_tensors(shapes)))
    if set(TINY_SIGNS) <= shapes.keys():
        return VaeAt(path, taehv_config(_as_tensors({n: e for n, e in shapes.items() if n.startswith("decoder.")})))
    if any(name.startswith("decoder.mid_block.") for name in shapes):
        return _vae(path.parent)
    return None


def _as_tensors(entries: Mapping[str, Entry]) -> Mapping[str, Tensor]:
    """Tensors of these shapes, without data."""
    return {name: torch.empty(entry.shape, device="meta") for name, entry in entries.items()}


def _config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; empty when there is none that can be read."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _fetch_tokenizer(name: str, path: Path) -> None:
    """A text encoder on the hub is fetched without its tokenizer, which lies elsewhere in the repository."""
    if Path(name).expanduser().exists() or _tokenizer(path) is not None:
        return
    repository = "/".join(name.split("/")[:2])
    for inside in (TOKENIZER.as_posix(), "tokenizer"):
        with suppress(ValueError):
            locate(f"{repository}/{inside}")
            return


def _shown(path: Path) -> str:
    """What a file has instead, in words."""
    if path.is_dir():
        return ""
    names = sorted(open_file(path).entries)
    return f" ({len(names)} tensors: {', '.join(names[: NAMED // 3])})"
