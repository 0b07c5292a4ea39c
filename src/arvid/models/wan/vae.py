"""The autoencoder of Wan 2.1 behind the streaming decoder's interface.

Knows: how to drive diffusers' AutoencoderKLWan one latent frame at a time with a state that is a value, the statistics
that normalise its latents, the directory it is read from, and the names of its weights in the original file
(Wan2.1_VAE.pth). Does not know: flow matching, prompts, blocks. The first latent frame stands for one pixel frame,
every later one for four: blocks of 3 latents give 9, then 12, 12, ... frames.

Legend: B batch, T frames, C channels, H height, W width; pixels v_BTCHW in [-1, 1]; latents z_BTCHW of unit variance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError
from torch import Tensor, nn

from arvid.models.names import Rules, rename, take, tensors_of
from arvid.types import DecoderState

TIME_STRIDE = 4
SPACE_STRIDE = 8
LONGEST_CAUSE = 240
WEIGHTS = "diffusion_pytorch_model.safetensors"

WHAT = "a Wan 2.1 autoencoder under its original names (Wan2.1_VAE.pth)"

ORIGINAL: Rules = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
)
"""From the names of diffusers to those of the original file, but for the decoder's `up_blocks`: diffusers numbers them
by level, the original from first to last."""
_UP_BLOCK = re.compile(r"\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")

_REPEAT = "Rep"
"""What diffusers leaves in the slot of a temporal upsampler that has seen one frame, and so far only repeats."""


class WanAutoencoder(nn.Module):
    """Encoder, decoder and the published per-channel statistics, over a diffusers model of the 2.1 kind.

    The state of a stream holds one tensor per causal convolution of the decoder: its last two inputs
    [B, C, 1 or 2, H, W], in the order in which the decoder meets them. A tensor without elements marks a temporal
    upsampler that has seen the first latent frame only. Tensors are replaced, never written to, so keeping an old
    state costs no copy. Slicing and tiling of the diffusers model are honoured by `encode`, not by `decode`.
    """

    def __init__(self, model: AutoencoderKLWan) -> None:
        """Wrap a diffusers model; raises ValueError when it is not built like Wan 2.1's (2.2 is another kind)."""
        super().__init__()
        _check(model.config)
        self.model = model
        self.latent_mean: Tensor
        self.latent_std: Tensor
        # Not in the state dict: they belong to the configuration, where diffusers keeps them.
        self.register_buffer("latent_mean", torch.tensor(model.config["latents_mean"]), persistent=False)
        self.register_buffer("latent_std", torch.tensor(model.config["latents_std"]), persistent=False)

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> WanAutoencoder:
        """A fresh model from diffusers' settings (a config.json as data; {} is the published size), random weights.

        Raises ValueError for an unknown setting, or settings that are not of Wan 2.1's kind.
        """
        plain = {name: value for name, value in settings.items() if not name.startswith("_")}
        try:
            _check(plain)
            model = AutoencoderKLWan(**plain)
        except TypeError as error:
            raise ValueError(
                f"settings diffusers does not take ({_line(error)}); use those of a config.json"
            ) from error
        return cls(model).eval()

    @classmethod
    def load(cls, directory: Path) -> WanAutoencoder:
        """Read a diffusers directory (config.json and safetensors weights, the `vae` folder of a Wan 2.1 pipeline), in
        fp32, or the original file (Wan2.1_VAE.pth), in the type of its weights.

        In eval mode, without gradients; nothing is fetched. Raises ValueError when a file is missing or damaged, or
        holds another model.
        """
        directory = Path(directory)
        if directory.is_file():
            return cls.from_weights(tensors_of(directory))
        _find(directory)
        try:
            # low_cpu_mem_usage asks for a package that is not a dependency.
            model, found = AutoencoderKLWan.from_pretrained(
                str(directory),
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the autoencoder in {directory} is damaged ({_line(error)}); fetch it again") from error
        missing, surplus = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
        if missing or surplus:
            raise ValueError(
                f"the autoencoder in {directory} holds other weights than its config.json describes: {len(missing)} "
                f"missing {missing[:3]}, {len(surplus)} surplus {surplus[:3]}; fetch both files again"
            )
        return cls(model).eval().requires_grad_(False)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> WanAutoencoder:
        """A model over weights under their original names, which it takes over without a copy and in their type.

        Sizes follow from the shapes, the statistics of latents are the published ones. In eval mode, without
        gradients. Raises ValueError when weights are missing, surplus or misshapen.
        """
        settings = settings_of(weights)
        with torch.device("meta"):
            model = AutoencoderKLWan(**settings)
        names = original_names(model.state_dict(), settings["num_res_blocks"])
        take(model, weights, names, WHAT)
        return cls(model).eval().requires_grad_(False)

    def to_original(self) -> dict[str, Tensor]:
        """The weights under their original names."""
        held = self.model.state_dict()
        names = original_names(held, self.model.config["num_res_blocks"])
        return {names[own]: value for own, value in held.items()}

    def encode(self, v_BTCHW: Tensor) -> Tensor:
        """Normalised latents [B, 1 + (T - 1) / 4, C, H / 8, W / 8] of a whole clip, the mode of their distribution.

        Raises ValueError unless T is 1 + 4n and both sides are multiples of 8.
        """
        _, frames, _, height, width = v_BTCHW.shape
        if (frames - 1) % TIME_STRIDE or height % SPACE_STRIDE or width % SPACE_STRIDE or not height * width:
            raise ValueError(
                f"cannot encode {frames} frames of {width}x{height}: frames must be 1 + a multiple of {TIME_STRIDE}, "
                f"sides multiples of {SPACE_STRIDE}; trim or pad the clip"
            )
        v_BCTHW = v_BTCHW.to(self.model.dtype).transpose(1, 2)
        z_BTCHW: Tensor = self.model.encode(v_BCTHW).latent_dist.mode().transpose(1, 2)
        return (z_BTCHW - self._row(self.latent_mean)) / self._row(self.latent_std)

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Frames [B, F, 3, 8 H, 8 W] in [-1, 1] of the next latent frames and the state after them.

        F is 4 T, or 4 T - 3 when `state` is None, which starts a stream. States are values: one may be used any number
        of times. Raises ValueError for no latent frames, for another number of channels than the model has, and for
        a state of another batch or size.
        """
        self._fits(z_BTCHW, state)
        z_BTCHW = z_BTCHW.to(self.model.dtype) * self._row(self.latent_std) + self._row(self.latent_mean)
        x_BCTHW = self.model.post_quant_conv(z_BTCHW.transpose(1, 2))
        pieces: list[Tensor] = []
        for x_BC1HW in x_BCTHW.split(1, 2):
            v_BCTHW, state = self._advance(x_BC1HW, state)
            pieces.append(v_BCTHW.transpose(1, 2))
        assert state is not None  # _fits has seen at least one frame
        return torch.cat(pieces, 1).clamp(-1, 1), state

    def _advance(self, x_BC1HW: Tensor, state: DecoderState | None) -> tuple[Tensor, DecoderState]:
        """One latent frame through the decoder: 1 or 4 pixel frames [B, 3, F, H, W], and the state after it.

        The decoder replaces the slots of the list it is given and leaves their tensors alone; the list is made here.
        """
        if state is None:
            # More slots than the decoder takes (1x1 and 2D-only layers take none); the unused tail is cut off below.
            cache: list[Any] = [None] * sum(isinstance(part, nn.Conv3d) for part in self.model.decoder.modules())
        else:
            cache = [held if held.numel() else _REPEAT for held in state]
        used = [0]
        v_BCTHW = self.model.decoder(x_BC1HW, feat_cache=cache, feat_idx=used)
        kept = tuple(x_BC1HW.new_empty(0) if isinstance(held, str) else held for held in cache[: used[0]])
        return v_BCTHW, kept

    def _fits(self, z_BTCHW: Tensor, state: DecoderState | None) -> None:
        batch, frames, channels, height, width = z_BTCHW.shape
        expected = len(self.latent_mean)
        if not frames or channels != expected:
            raise ValueError(
                f"cannot decode {frames} latent frames of {channels} channels; expected at least 1 frame of {expected} "
                f"channels: pass latents of this autoencoder's kind as [B, T, C, H, W]"
            )
        if state is None:
            return
        # The first slot holds the latents themselves, as they enter the first convolution.
        held = (state[0].shape[0], *state[0].shape[3:]) if state and state[0].ndim == 5 else ()
        if held != (batch, height, width):
            raise ValueError(
                f"the state of a stream of (batch, height, width) {held} cannot go on with latents of "
                f"{(batch, height, width)}; pass the state this decoder gave for the same stream, or None to start one"
            )

    def _row(self, values_C: Tensor) -> Tensor:
        return values_C.to(self.model.dtype).view(1, 1, -1, 1, 1)


def original_names(names: Iterable[str], res_blocks: int) -> dict[str, str]:
    """For each name of diffusers the original one; `res_blocks` is the number of residual blocks a level has."""
    per_level = res_blocks + 2  # the decoder has one block more than the encoder, and then its upsampler

    def place(found: re.Match[str]) -> str:
        within = res_blocks + 1 if found[2] == "upsamplers" else int(found[3])
        return f".upsamples.{int(found[1]) * per_level + within}."

    return {name: rename(_UP_BLOCK.sub(place, name), ORIGINAL) for name in names}


def settings_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Diffusers' settings as the shapes of original weights describe them.

    Raises ValueError when the names are not those of the original file.
    """
    needed = ("encoder.conv1.weight", "conv2.weight", "decoder.head.2.weight")
    if lacking := [name for name in needed if name not in weights]:
        raise ValueError(f"not the weights of {WHAT}: {lacking} missing among {len(weights)}; pass the autoencoder")
    # Four levels of residual blocks with a shrinking layer between each two.
    places = {name.split(".")[2] for name in weights if name.startswith("encoder.downsamples.")}
    return {
        "base_dim": weights["encoder.conv1.weight"].shape[0],
        "z_dim": weights["conv2.weight"].shape[0],
        "num_res_blocks": max(1, (len(places) - 3) // 4),
    }


def _check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless settings describe an autoencoder of Wan 2.1's kind; absent ones are the published."""
    if settings.get("is_residual") or settings.get("patch_size") not in (None, 1):
        raise ValueError(
            f"an autoencoder with is_residual {settings.get('is_residual')} and patch_size "
            f"{settings.get('patch_size')} is of Wan 2.2's kind; expected Wan 2.1's: False and None"
        )
    time = 2 ** sum(map(bool, settings.get("temperal_downsample", (False, True, True))))
    space = 2 ** (len(settings.get("dim_mult", (1, 2, 4, 4))) - 1)
    if (time, space) != (TIME_STRIDE, SPACE_STRIDE):
        raise ValueError(
            f"an autoencoder that shrinks time {time} and space {space} times; expected {TIME_STRIDE} and "
            f"{SPACE_STRIDE}: set temperal_downsample to 2 True of 3 and dim_mult to 4 numbers"
        )
    channels = settings.get("z_dim", 16)
    for name in ("latents_mean", "latents_std"):
        if (count := len(settings.get(name, range(16)))) != channels:
            raise ValueError(f"{name} has {count} values for {channels} latent channels; give one per channel")


def _find(directory: Path) -> None:
    """Raise ValueError unless a directory has the files of a diffusers AutoencoderKLWan in safetensors."""
    config = directory / "config.json"
    if not config.is_file():
        raise ValueError(
            f"no autoencoder in {directory}: {config} is missing; pass the `vae` folder of a Wan 2.1 pipeline in "
            f"diffusers' layout"
        )
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the autoencoder in {directory} is damaged: {config} is no JSON; fetch it again") from error
    kind = settings.get("_class_name") if isinstance(settings, dict) else None
    if kind != AutoencoderKLWan.__name__:
        raise ValueError(f"{config} describes {kind}, expected {AutoencoderKLWan.__name__}; pass its `vae` folder")
    try:
        _check(settings)
    except TypeError as error:
        raise ValueError(f"the autoencoder in {directory} is damaged ({_line(error)}); fetch it again") from error
    if not (directory / WEIGHTS).is_file() and not (directory / f"{WEIGHTS}.index.json").is_file():
        raise ValueError(
            f"no autoencoder in {directory}: {WEIGHTS} is missing; weights are read from safetensors only, fetch or "
            f"convert them"
        )


def _line(error: Exception) -> str:
    """The start of an error's text in one line: torch names the mismatched weights below its first."""
    return " ".join(str(error).split())[:LONGEST_CAUSE] or type(error).__name__
