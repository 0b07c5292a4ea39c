"""The block judge: how far a block of pixels moves and goes on as its prompt says, seam and all.

Knows: a small network over the frames of a block and the last ones before it, and the directory it is kept in.
Does not know: latents, how it was trained (`train.judges`), who asks. What the frame reward cannot see is its subject:
motion, and whether a block begins where the one before it ended.

Legend: B blocks, T frames, C channels, H height, W width, L tokens, D width; v_BTCHW in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.rewards import parts
from arvid.types import Candidate


@dataclass(frozen=True)
class BlockJudgeConfig:
    """Frames are judged at `size` x `size`: `frames` of the block, evenly spaced from its first to its last, and the
    last `lookback` before it. `widths` of the maps of one frame at 1/2, 1/4 and 1/8 of the size; the last is also that
    of all frames together, with `blocks` residual blocks and `rounds` in which the cells look at the words."""

    size: int = 64
    frames: int = 6
    lookback: int = 2
    text_width: int = 128
    widths: tuple[int, int, int] = (16, 32, 96)
    blocks: int = 2
    rounds: int = 2
    heads: int = 3


class BlockJudge(nn.Module):
    """Scores blocks (see `arvid.types.BlockReward`)."""

    def __init__(self, config: BlockJudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config or BlockJudgeConfig()
        layers: list[nn.Module] = []
        inputs = 4
        for width in self.config.widths:
            layers += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.ReLU()]
            inputs = width
        self.stem = nn.Sequential(*layers)
        width, seen = self.config.widths[-1], self.config.frames + self.config.lookback
        self.film = nn.Conv2d(seen * width, width, 3, padding=1)
        self.body = nn.Sequential(*(parts.Residual(width) for _ in range(self.config.blocks)))
        self.compared = parts.Compared(width, self.config.text_width, self.config.heads, self.config.rounds)

    @property
    def lookback(self) -> int:
        """Frames before a block that are looked at."""
        return self.config.lookback

    def forward(self, v_BTCHW: Tensor, before_BTCHW: Tensor | None, text_BLD: Tensor) -> Tensor:
        """Logits [B] fp32 of blocks of frames after the frames `before_BTCHW` (None: after nothing) against embeddings,
        zero where there is no token. sigmoid(logit) is the probability that the block is a true one.

        Raises ValueError unless frames have five axes and three channels.
        """
        if v_BTCHW.ndim != 5 or v_BTCHW.shape[2] != 3:
            raise ValueError(f"frames of shape {[*v_BTCHW.shape]} to judge; expected [B, T, 3, H, W]")
        chosen = torch.linspace(0, v_BTCHW.shape[1] - 1, self.config.frames, device=v_BTCHW.device).round().long()
        film = v_BTCHW[:, chosen]
        if before_BTCHW is not None and self.config.lookback:
            film = torch.cat([before_BTCHW[:, -self.config.lookback :], film], 1)
        film = F.pad(self._sized(film), (0, 0, 0, 0, 0, 1), value=1.0)  # one more channel tells frames from none
        missing = self.config.frames + self.config.lookback - film.shape[1]
        film = F.pad(film, (0, 0, 0, 0, 0, 0, missing, 0))
        maps = self.stem(film.flatten(0, 1)).unflatten(0, film.shape[:2]).flatten(1, 2)
        return self.compared(self.body(F.relu(self.film(maps))), text_BLD)

    def _sized(self, v_BTCHW: Tensor) -> Tensor:
        """Frames in the judge's size and type."""
        size, weight = (self.config.size, self.config.size), self.film.weight
        v_BTCHW = v_BTCHW.to(weight.device)
        if v_BTCHW.shape[-2:] != size:
            shrunk = F.interpolate(v_BTCHW.flatten(0, 1).float(), size, mode="bilinear", antialias=True)
            v_BTCHW = shrunk.unflatten(0, v_BTCHW.shape[:2])
        return v_BTCHW.to(weight.dtype)

    @torch.no_grad()
    def score_block(self, candidate: Candidate) -> Tensor:
        """Probabilities [B] fp32 in [0, 1] that a block is true to the frames before it and to its prompt."""
        text = candidate.condition.text_BLD.to(self.film.weight.device)
        return torch.sigmoid(self(candidate.frames(), candidate.frames_before_BTCHW, text))

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        parts.save(self, self.config, directory)

    @classmethod
    def load(cls, directory: Path) -> BlockJudge:
        """Read what `save` wrote. Raises ValueError when it is missing, damaged or of another configuration."""
        return parts.load("block judge", lambda raw: cls(BlockJudgeConfig(**raw)), directory)
