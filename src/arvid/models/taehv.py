"""TAEHV, the public tiny autoencoder of Wan 2.1's latents, as a fast streaming decoder for previews and for scoring.

Knows: the layout and the names of its checkpoint (taew2_1), its squashing of latents and its pixel range.
Does not know: how its memory blocks work (models/tae.py, whose layers it is made of), who looks at its frames. It
decodes the latents the transformer makes as they are: no statistics are applied (Ollin Boer Bohan,
github.com/madebyollin/taehv).

Legend: B batch, T frames, C channels, H height, W width; pixels v_BTCHW in [-1, 1]; latents z_BTCHW of unit variance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.models.names import Rules, rename, take, tensors_of
from arvid.models.tae import SPACE_STRIDE, TIME_STRIDE, Grow, MemoryBlock, _Stack
from arvid.types import DecoderState

WHAT = "a TAEHV decoder of Wan 2.1's latents (taew2_1)"
SQUASH = 3.0
"""Latents are bent softly into [-3, 3]."""

_MEMORY = re.compile(r"^decoder\.(\d+)\.conv\.0\.weight$")
_GROWTH = re.compile(r"^decoder\.(\d+)\.conv\.weight$")


@dataclass(frozen=True)
class TAEHVConfig:
    """From the latent end: channels of the maps, memory blocks per stage, frames made of one per stage; `patch` is the
    side of the pixels that one cell of the last map stands for."""

    latent_channels: int = 16
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    blocks: tuple[int, int, int] = (3, 3, 3)
    growth: tuple[int, int, int] = (1, 2, 2)
    patch: int = 1

    def __post_init__(self) -> None:
        time, space = math.prod(self.growth), 2 ** len(self.blocks) * self.patch
        if (time, space) != (TIME_STRIDE, SPACE_STRIDE) or not set(self.growth) <= {1, 2}:
            raise ValueError(
                f"a TAEHV decoder that grows time {self.growth} and space {space} times is not one of Wan 2.1's "
                f"latents: expected 4 in all and {SPACE_STRIDE}; pass taew2_1"
            )


class _Squash(nn.Module):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.tanh(x_NCHW / SQUASH) * SQUASH


class _Same(nn.Module):
    """Stands where a stage does not grow in time: a 1x1 convolution under the name a growing one has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.split = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.split(x_NCHW)
        return y_NCHW


ORIGINAL: Rules = (
    (r"^layers\.", "decoder."),
    (r"\.convolve\.", ".conv."),
    (r"\.split\.", ".conv."),
)
"""From our names to those of the checkpoint."""


class TAEHV(nn.Module):
    """A `Decoder` (see `arvid.types`): block 0 of three latent frames gives 9 frames, every later one 12."""

    def __init__(self, config: TAEHVConfig | None = None) -> None:
        super().__init__()
        self.config = config or TAEHVConfig()
        self.decoder = _decoder(self.config)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> TAEHV:
        """The decoder over a checkpoint's weights, which it takes over without a copy and in their type; its encoder is
        left aside. In eval mode, without gradients. Raises ValueError for weights of another layout."""
        mine = {name: value for name, value in weights.items() if name.startswith("decoder.")}
        with torch.device("meta"):
            model = cls(config_of(mine))
        take(model.decoder, mine, {own: rename(own, ORIGINAL) for own in model.decoder.state_dict()}, WHAT)
        return model.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> TAEHV:
        """The decoder of a published file (taew2_1.pth or .safetensors). Raises ValueError for any other."""
        return cls.from_weights(tensors_of(Path(path)))

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Frames [B, F, 3, 8 H, 8 W] in [-1, 1] of the next latent frames and the state after them.

        F is 4 T, or 4 T - 3 when `state` is None, which starts a stream. States are values. Raises ValueError for no
        latent frames and for another number of channels than the model has.
        """
        batch, frames, channels = z_BTCHW.shape[:3]
        if not frames or channels != self.config.latent_channels:
            raise ValueError(
                f"cannot decode {frames} latent frames of {channels} channels; expected at least 1 frame of "
                f"{self.config.latent_channels} channels: pass latents as [B, T, C, H, W]"
            )
        x_NCHW = z_BTCHW.to(next(self.parameters()).dtype).flatten(0, 1)
        x_NCHW, memories = self.decoder(x_NCHW, frames, state)
        v_BTCHW = F.pixel_shuffle(x_NCHW, self.config.patch).unflatten(0, (batch, -1))
        if state is None:
            v_BTCHW = v_BTCHW[:, TIME_STRIDE - 1 :]
        return v_BTCHW.clamp(0, 1) * 2 - 1, tuple(memory.clone() for memory in memories)


def config_of(weights: Mapping[str, Tensor]) -> TAEHVConfig:
    """The configuration that the decoder's weights of a checkpoint describe. Raises ValueError for another layout."""
    memories = sorted(int(found[1]) for name in weights if (found := _MEMORY.match(name)))
    growths = sorted(int(found[1]) for name in weights if (found := _GROWTH.match(name)))
    if len(growths) != 3 or "decoder.1.weight" not in weights:
        raise ValueError(
            f"not the weights of {WHAT}: {len(growths)} stages among {len(weights)} decoder weights, expected 3; pass "
            "the checkpoint as it was published"
        )
    stages = [
        [place for place in memories if low < place < high]
        for low, high in zip([0, *growths[:-1]], growths, strict=True)
    ]
    maps = [weights[f"decoder.{place}.conv.weight"] for place in growths]
    last = weights.get(f"decoder.{growths[-1] + 3}.weight")
    if last is None:
        raise ValueError(f"not the weights of {WHAT}: decoder.{growths[-1] + 3}.weight missing; pass the whole file")
    a, b, c = (tensor.shape[1] for tensor in maps)
    return TAEHVConfig(
        weights["decoder.1.weight"].shape[1],
        (a, b, c, last.shape[1]),
        (len(stages[0]), len(stages[1]), len(stages[2])),
        (maps[0].shape[0] // a, maps[1].shape[0] // b, maps[2].shape[0] // c),
        math.isqrt(last.shape[0] // 3),
    )


def _decoder(config: TAEHVConfig) -> _Stack:
    layers: list[nn.Module] = [
        _Squash(), nn.Conv2d(config.latent_channels, config.widths[0], 3, padding=1), nn.ReLU(),
    ]  # fmt: skip
    for stage, (blocks, growth) in enumerate(zip(config.blocks, config.growth, strict=True)):
        width, following = config.widths[stage], config.widths[stage + 1]
        layers += [MemoryBlock(width) for _ in range(blocks)]
        layers += [nn.Upsample(scale_factor=2), Grow(width) if growth == 2 else _Same(width)]
        layers += [nn.Conv2d(width, following, 3, padding=1, bias=False)]
    return _Stack([*layers, nn.ReLU(), nn.Conv2d(config.widths[-1], 3 * config.patch**2, 3, padding=1)])
