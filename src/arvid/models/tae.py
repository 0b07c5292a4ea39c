"""A light causal autoencoder of TAEHV's kind: 2D convolutions with one frame of temporal memory.

Knows: how a clip becomes latents (8x smaller in space, 4x in time) and back, whole or as a stream.
Does not know: flow matching, prompts, blocks. The first latent frame stands for one pixel frame (the encoder sees it
four times, the decoder drops three), every later one for four: 81 pixel frames are 21 latent frames.

Legend: B batch, T frames, C channels, H height, W width; pixels v_BTCHW in [-1, 1]; latents z_BTCHW of unit variance.
Layout after TAEHV (Ollin Boer Bohan, github.com/madebyollin/taehv), with pixel shuffle at the image end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_STRIDE = 4
SPACE_STRIDE = 8


@dataclass(frozen=True)
class TAEConfig:
    """Widths from the image end (4x4 pixels per cell edge 2) to the latent end; `blocks` memory blocks per stage."""

    latent_channels: int = 16
    encoder_widths: tuple[int, int, int] = (32, 64, 128)
    decoder_widths: tuple[int, int, int] = (32, 64, 128)
    encoder_blocks: tuple[int, int, int] = (1, 1, 2)
    decoder_blocks: tuple[int, int, int] = (1, 3, 1)


DecoderState = tuple[Tensor, ...]
"""What a decoder remembers: one feature map [B, C, H, W] per memory block and the count of latent frames seen."""


class MemoryBlock(nn.Module):
    """A residual block that also sees the previous frame's input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x_NCHW: Tensor, frames: int, memory_BCHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frames in (N = B * frames, frames of one clip adjacent), frames and the last input out."""
        count, width, *sides = x_NCHW.shape
        both = torch.empty(
            (count, 2 * width, *sides), dtype=x_NCHW.dtype, device=x_NCHW.device, memory_format=torch.channels_last
        )
        both[:, :width] = x_NCHW
        both[1:, width:] = x_NCHW[:-1]
        both[::frames, width:] = 0.0 if memory_BCHW is None else memory_BCHW
        y = F.relu(self.convolve(both) + x_NCHW)
        return y, x_NCHW[frames - 1 :: frames]


class Shrink(nn.Module):
    """Half the frames: two neighbours become one by a 1x1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] -> [N / 2, C, H, W]."""
        pairs_N2HWC = x_NCHW.permute(0, 2, 3, 1).unflatten(0, (-1, 2))
        return self.mix(pairs_N2HWC.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2))


class Grow(nn.Module):
    """Twice the frames: one becomes two by a 1x1 convolution. It goes before growing in space, which it commutes with:
    a quarter of the work."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.split = nn.Conv2d(width, 2 * width, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] -> [2 N, C, H, W]."""
        y_NHW2C = self.split(x_NCHW).permute(0, 2, 3, 1).unflatten(-1, (2, -1))
        # Channels-last before and after: a reshape of the channels themselves would lay every pixel out anew.
        return y_NHW2C.permute(0, 3, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)


class Rise(nn.Sequential):
    """Twice the height and the width: a 1x1 convolution whose channels become 2x2 cells (sub-pixel convolution,
    1609.05158). A ninth of the work of a 3x3 convolution of nearest neighbours, and no larger map in between; the
    memory block behind it looks at the neighbours."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Conv2d(width, 4 * out, 1), nn.PixelShuffle(2))


class _Stack(nn.Module):
    """Layers in order; memory blocks read and return the stream's state."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_NCHW: Tensor, frames: int, state: DecoderState | None) -> tuple[Tensor, DecoderState]:
        memories: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, MemoryBlock):
                x_NCHW, last = layer(x_NCHW, frames, state[len(memories)] if state else None)
                memories.append(last)
            else:
                count = x_NCHW.shape[0]
                x_NCHW = layer(x_NCHW)
                frames = frames * x_NCHW.shape[0] // count
        return x_NCHW, tuple(memories)


def _encoder(config: TAEConfig) -> _Stack:
    (w0, w1, w2), (b0, b1, b2) = config.encoder_widths, config.encoder_blocks
    return _Stack([
        nn.PixelUnshuffle(2), nn.Conv2d(12, w0, 3, padding=1), nn.ReLU(),
        *(MemoryBlock(w0) for _ in range(b0)),
        Shrink(w0), nn.Conv2d(w0, w1, 3, stride=2, padding=1),
        *(MemoryBlock(w1) for _ in range(b1)),
        Shrink(w1), nn.Conv2d(w1, w2, 3, stride=2, padding=1),
        *(MemoryBlock(w2) for _ in range(b2)),
        nn.Conv2d(w2, config.latent_channels, 3, padding=1),
    ])  # fmt: skip


def _decoder(config: TAEConfig) -> _Stack:
    (w0, w1, w2), (b0, b1, b2) = config.decoder_widths, config.decoder_blocks
    return _Stack([
        nn.Conv2d(config.latent_channels, w2, 3, padding=1), nn.ReLU(),
        *(MemoryBlock(w2) for _ in range(b2)),
        Grow(w2), Rise(w2, w1),
        *(MemoryBlock(w1) for _ in range(b1)),
        Grow(w1), Rise(w1, w0),
        *(MemoryBlock(w0) for _ in range(b0)),
        nn.Conv2d(w0, 12, 3, padding=1), nn.PixelShuffle(2),
    ])  # fmt: skip


class TinyAutoencoder(nn.Module):
    """Encoder, decoder and the per-channel statistics that give latents zero mean and unit variance."""

    def __init__(self, config: TAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or TAEConfig()
        self.encoder = _encoder(self.config)
        self.decoder = _decoder(self.config)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(self.config.latent_channels))
        self.register_buffer("latent_std", torch.ones(self.config.latent_channels))

    @property
    def settings(self) -> dict[str, object]:
        """The configuration as plain data, enough to build the model again."""
        return asdict(self.config)

    def channels_last(self) -> TinyAutoencoder:
        """The same model with its convolutions laid out channels-last: on a CPU in bf16 many times faster."""
        for p in self.parameters():
            p.data = p.data.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p.data
        return self

    def encode(self, v_BTCHW: Tensor) -> Tensor:
        """Normalised latents [B, 1 + (T - 1) / 4, C, H / 8, W / 8] of a whole clip.

        Raises ValueError unless T is 1 + 4n and both sides are multiples of 8.
        """
        _, frames, _, height, width = v_BTCHW.shape
        if (frames - 1) % TIME_STRIDE or height % SPACE_STRIDE or width % SPACE_STRIDE:
            raise ValueError(
                f"cannot encode {frames} frames of {width}x{height}: frames must be 1 + a multiple of {TIME_STRIDE}, "
                f"sides multiples of {SPACE_STRIDE}; trim or pad the clip"
            )
        z_BTCHW = self.encode_raw(v_BTCHW)
        return (z_BTCHW - self._row(self.latent_mean, z_BTCHW)) / self._row(self.latent_std, z_BTCHW)

    def encode_raw(self, v_BTCHW: Tensor) -> Tensor:
        """Latents before normalisation (what training sees)."""
        v_BTCHW = v_BTCHW.to(self.latent_mean.dtype)
        padded = torch.cat([v_BTCHW[:, :1].expand(-1, TIME_STRIDE - 1, -1, -1, -1), v_BTCHW], 1)
        x_NCHW = padded.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        z_NCHW, _ = self.encoder(x_NCHW, padded.shape[1], None)
        return z_NCHW.unflatten(0, (v_BTCHW.shape[0], -1))

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Frames of the next latent frames and the state after them. `state` None starts a stream (its first latent
        frame gives one pixel frame); states are values and are never changed in place."""
        z_BTCHW = z_BTCHW.to(self.latent_mean.dtype)
        raw = z_BTCHW * self._row(self.latent_std, z_BTCHW) + self._row(self.latent_mean, z_BTCHW)
        return self.decode_raw(raw, state)

    def decode_raw(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """`decode` for latents before normalisation."""
        batch, frames = z_BTCHW.shape[:2]
        x_NCHW = z_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        v_NCHW, memories = self.decoder(x_NCHW, frames, state)
        v_BTCHW = v_NCHW.unflatten(0, (batch, -1))
        if state is None:
            v_BTCHW = v_BTCHW[:, TIME_STRIDE - 1 :]
        return v_BTCHW.clamp(-1, 1) if not self.training else v_BTCHW, memories

    @staticmethod
    def _row(values_C: Tensor, z_BTCHW: Tensor) -> Tensor:
        return values_C.to(z_BTCHW.dtype).view(1, 1, -1, 1, 1)
