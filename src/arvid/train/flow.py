"""Causal flow matching by teacher forcing: every block learns to leave noise, given the true past.

Knows: how a clip is laid out as [clean | noisy] frames, who sees whom, which noise levels are drawn.
Does not know: architectures, prompts' words, pixels. Source: Causal Forcing (2602.02214, stage 1); past noise after
Diffusion Forcing (2407.01392).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from arvid.caches.store import Policy
from arvid.types import Estimate, Rotate, View


class FlowModel(Protocol):
    """What this objective trains: a causal model with its text entrance."""

    def read_text(self, text_BSD: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Text keys and values per layer."""
        ...

    def flow(
        self,
        z_BTCHW: Tensor,
        sigma_BT: Tensor,
        context: tuple[tuple[Tensor, Tensor], ...],
        view: View,
        frames: tuple[int, ...],
    ) -> Estimate:
        """Flow of frames at any positions."""
        ...


@dataclass(frozen=True)
class FlowBatch:
    """Normalised latents [B, T, C, H, W] and text embeddings [B, S, D]."""

    latents_BTCHW: Tensor
    text_BSD: Tensor


class DenseView:
    """No past, a given mask: everything is in the pass itself."""

    def __init__(self, mask_TT: Tensor) -> None:
        self._mask_TT = mask_TT

    @property
    def frames(self) -> tuple[int, ...]:
        """No stored frames."""
        return ()

    def read(self, layer: int, rotate: Rotate) -> None:
        """Nothing to read."""
        return None

    def mask(self, frames: tuple[int, ...]) -> Tensor:
        """The mask it was made with."""
        return self._mask_TT


def teacher_mask(frames: int, block: int, policy: Policy) -> Tensor:
    """Boolean [2 frames, 2 frames] for the layout [clean | noisy]: a clean block sees the clean past on view and
    itself, a noisy block sees the same clean past and itself."""
    mask = torch.zeros(2 * frames, 2 * frames, dtype=torch.bool)
    for start in range(0, frames, block):
        own = slice(start, min(start + block, frames))
        noisy = slice(frames + own.start, frames + own.stop)
        past = list(policy.visible(tuple(range(start)), start))
        mask[own, past] = True
        mask[noisy, past] = True
        mask[own, own] = True
        mask[noisy, noisy] = True
    return mask


class TeacherForcing:
    """Flow matching with one noise level per block. A share `noisy_past` of the clips gets a noised past, each block
    at its own level up to `past_level`, which the model is told; so the past may later be committed at any level.
    A share `rough_past` of pasts is disturbed without being told, at up to `rough_level`: the small errors of its own
    making that a long rollout feeds back.
    """

    def __init__(
        self, model: FlowModel, frames: int, block: int, policy: Policy, shift: float = 3.0,
        noisy_past: float = 0.3, past_level: float = 0.85, rough_past: float = 0.5, rough_level: float = 0.12,
    ) -> None:  # fmt: skip
        self.model, self.frames, self.block, self.shift = model, frames, block, shift
        self.noisy_past, self.past_level = noisy_past, past_level
        self.rough_past, self.rough_level = rough_past, rough_level
        self.view = DenseView(teacher_mask(frames, block, policy))
        self.places = tuple(range(frames)) * 2

    def __call__(self, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the flow over all blocks, and of the first block alone (as it starts from nothing)."""
        z_BTCHW = batch.latents_BTCHW
        size, frames = z_BTCHW.shape[:2]
        past, past_sigma = self._past(z_BTCHW, generator)
        sigma_BT = self._levels(size, generator)
        noise = torch.randn(z_BTCHW.shape, generator=generator)
        mixed = z_BTCHW + sigma_BT[:, :, None, None, None] * (noise - z_BTCHW)
        with torch.autocast("cpu", torch.bfloat16):
            context = self.model.read_text(batch.text_BSD)
            estimate = self.model.flow(
                torch.cat([past, mixed], 1), torch.cat([past_sigma, sigma_BT], 1), context, self.view, self.places
            )
        error_BT = (estimate.flow_BTCHW[:, frames:] - (noise - z_BTCHW)).square().mean((2, 3, 4))
        return {"loss": error_BT.mean(), "first": error_BT[:, : self.block].mean().detach()}

    def _levels(self, size: int, generator: torch.Generator) -> Tensor:
        """One level per block, logit-normal in tau then shifted, spread over its frames."""
        blocks = -(-self.frames // self.block)
        tau = torch.sigmoid(torch.randn(size, blocks, generator=generator) * 1.2)
        sigma = self.shift * tau / (1 + (self.shift - 1) * tau)
        return self._spread(sigma)

    def _past(self, z_BTCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = z_BTCHW.shape[0]
        blocks = -(-self.frames // self.block)
        told = torch.rand(size, 1, generator=generator) < self.noisy_past
        sigma = self._spread(torch.rand(size, blocks, generator=generator) * self.past_level * told)
        rough = (torch.rand(size, 1, generator=generator) < self.rough_past) & ~told
        hidden = self._spread(torch.rand(size, blocks, generator=generator) * self.rough_level * rough)
        noise = torch.randn(z_BTCHW.shape, generator=generator)
        level = (sigma + hidden)[:, :, None, None, None]
        return z_BTCHW + level * (noise - z_BTCHW), sigma

    def _spread(self, values_BN: Tensor) -> Tensor:
        return values_BN.repeat_interleave(self.block, 1)[:, : self.frames]


