"""The frame reward: how far a single frame is a faithful, clean picture of a prompt.

Knows: a small network of convolutions whose picture cells and the prompt's tokens look at each other, and the
directory it is kept in. Does not know: where token embeddings come from (a callable), how it was trained, who asks.
It plays the part that ImageReward (2304.05977) plays in speculative video generation: it sees one frame at a time, so
it is blind to motion.

Legend: N frames, B videos, T frames of a video, C channels, H height, W width, L tokens, D width; v_BTCHW in [-1, 1].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.rewards import parts
from arvid.rewards.parts import Look, Residual

Read = Callable[[list[str]], Tensor]
"""Prompts to token embeddings [B, L, D], zero beyond each prompt's last token."""
NEVER = -100.0
"""Stands for minus infinity where a maximum is taken."""
REMEMBERED = 8
"""How many prompts' embeddings are kept."""


@dataclass(frozen=True)
class FrameRewardConfig:
    """Frames are judged at `size` x `size`; `widths` of the maps at 1/2, 1/4 and 1/8 of it, `blocks` residual blocks
    on each; in each of `rounds` the cells of the last map look at the tokens and, but for the last, tokens at cells.
    Beside that, what the picture shows and what the prompt says are compared concept by concept."""

    size: int = 64
    text_width: int = 128
    widths: tuple[int, int, int] = (32, 64, 96)
    blocks: tuple[int, int, int] = (0, 1, 1)
    rounds: int = 2
    heads: int = 3
    concepts: int = 96


class FrameReward(nn.Module):
    """Scores frames against prompts. `read` gives the embeddings of prompts; it is no part of the weights."""

    def __init__(self, read: Read, config: FrameRewardConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrameRewardConfig()
        self.read = read
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self.stem = _stem(self.config)
        width, cells = self.config.widths[-1], (self.config.size // 8) ** 2
        generator = torch.Generator().manual_seed(0)
        self.places_LD = nn.Parameter(torch.empty(cells, width).uniform_(-0.04, 0.04, generator=generator))
        self.cell = nn.LayerNorm(width)
        self.word = nn.Sequential(nn.Linear(self.config.text_width, width), nn.LayerNorm(width))
        heads, rounds = self.config.heads, self.config.rounds
        self.to_words = nn.ModuleList(Look(width, heads) for _ in range(rounds))
        self.to_cells = nn.ModuleList(Look(width, heads) for _ in range(rounds - 1))
        self.around = nn.ModuleList(Residual(width) for _ in range(rounds))
        self.think = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(rounds - 1)
        )
        self.concepts = nn.Linear(width, self.config.concepts)
        self.norm = nn.LayerNorm(3 * width)
        gaps = 2 * self.config.concepts + 2
        self.head = nn.Sequential(nn.Linear(3 * width + gaps, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, v_NCHW: Tensor, text_NLD: Tensor) -> Tensor:
        """Logits [N] fp32 of frames of size `config.size` against embeddings [N or 1, L, D], zero where there is no
        token. sigmoid(logit) is the probability that the frame is faithful and clean."""
        return self.judge(self.cells(v_NCHW), text_NLD)[0]

    def cells(self, v_NCHW: Tensor) -> Tensor:
        """What the cells of frames show [N, L, D], rows of cells from the top."""
        x_NCHW = self.stem(v_NCHW.contiguous(memory_format=torch.channels_last))
        x_NLD: Tensor = self.cell(x_NCHW.flatten(2).transpose(1, 2))
        return x_NLD

    def judge(self, x_NLD: Tensor, text_NLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of cells, and the logits of the concepts that every cell shows [N, L, K] and that any token of the
        prompts says [N or 1, K]."""
        y_NMD = self.word(text_NLD.to(self.places_LD.dtype))
        told_NM = (text_NLD != 0).any(-1)
        seen_NLK = self.concepts(x_NLD)
        said_NK = self.concepts(y_NMD).masked_fill(~told_NM[..., None], NEVER).amax(1)
        gap_NK = _gaps(seen_NLK.amax(1).sigmoid(), said_NK.sigmoid())
        logits: Tensor = self.head(torch.cat([self._compare(x_NLD, y_NMD, told_NM), gap_NK], -1))
        return logits[:, 0].float(), seen_NLK, said_NK

    def _compare(self, x_NLD: Tensor, y_NMD: Tensor, told_NM: Tensor) -> Tensor:
        """Cells and tokens look at each other: what stands out [N, 3 D]. `told_NM` is False where there is no token."""
        mask_NM = None if bool(told_NM.all()) else told_NM
        side = self.config.size // 8
        x_NLD = x_NLD + self.places_LD
        for turn, (look, around) in enumerate(zip(self.to_words, self.around, strict=True)):
            x_NLD = look(x_NLD, y_NMD, mask_NM)
            x_NLD = around(x_NLD.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
            if turn < len(self.to_cells):
                y_NMD = self.to_cells[turn](y_NMD.expand(len(x_NLD), -1, -1), x_NLD, None)
                y_NMD = y_NMD + self.think[turn](y_NMD)
        words_ND = y_NMD.masked_fill(~told_NM[..., None], NEVER).amax(1).expand(len(x_NLD), -1)
        return self.norm(torch.cat([x_NLD.amax(1), x_NLD.mean(1), words_ND], -1))

    @torch.no_grad()
    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """Probabilities [B, T] fp32 in [0, 1] that frames in [-1, 1] are faithful, clean pictures of `prompt`. All
        frames are one batch; frames of another size are resized first.

        Raises ValueError unless `v_BTCHW` has five axes and three channels.
        """
        if v_BTCHW.ndim != 5 or v_BTCHW.shape[2] != 3:
            raise ValueError(f"frames of shape {[*v_BTCHW.shape]} to score; expected [B, T, 3, H, W]")
        size = self.config.size
        v_NCHW = v_BTCHW.flatten(0, 1)
        if v_NCHW.shape[-2:] != (size, size):
            v_NCHW = F.interpolate(v_NCHW.float(), (size, size), mode="bilinear", antialias=True)
        v_NCHW = v_NCHW.to(self.places_LD.device, self.places_LD.dtype)
        return torch.sigmoid(self(v_NCHW, self._text(prompt))).unflatten(0, (v_BTCHW.shape[0], -1))

    def _text(self, prompt: str) -> Tensor:
        """Embedding [1, L, D] of a prompt, cut after its last token."""
        if prompt not in self._texts:
            text_BLD = self.read([prompt]).detach()
            told = (text_BLD[0] != 0).any(-1)
            length = int(told.nonzero().max()) + 1 if bool(told.any()) else 1
            self._texts[prompt] = text_BLD[:, :length].to(self.places_LD.device, self.places_LD.dtype)
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        self._texts.move_to_end(prompt)
        return self._texts[prompt].to(self.places_LD.device, self.places_LD.dtype)

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        parts.save(self, self.config, directory)

    @classmethod
    def load(cls, directory: Path, read: Read) -> FrameReward:
        """Read what `save` wrote, ready to score, in the type the weights are stored in.

        Raises ValueError when a file is missing or damaged, or the weights are those of another configuration.
        """
        model = parts.load("frame reward", lambda raw: cls(read, FrameRewardConfig(**raw)), directory)
        for stage in model.modules():
            if isinstance(stage, nn.Conv2d):
                stage.weight.data = stage.weight.data.contiguous(memory_format=torch.channels_last)
        return model


def _gaps(seen_NK: Tensor, said_NK: Tensor) -> Tensor:
    """How far each concept is seen and not said, and said and not seen; then the widest gap of either way, so that
    what is learned of one concept holds for the rare ones [N, 2 K + 2]."""
    more_NK, less_NK = seen_NK * (1 - said_NK), said_NK * (1 - seen_NK)
    return torch.cat([more_NK, less_NK, more_NK.amax(-1, keepdim=True), less_NK.amax(-1, keepdim=True)], -1)


def _stem(config: FrameRewardConfig) -> nn.Sequential:
    """Three strided convolutions with residual blocks between them: [N, 3, H, W] -> [N, D, H / 8, W / 8]."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, blocks in zip(config.widths, config.blocks, strict=True):
        layers += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.ReLU()]
        layers += [Residual(width) for _ in range(blocks)]
        inputs = width
    stem = nn.Sequential(*layers)
    for part in stem.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return stem
