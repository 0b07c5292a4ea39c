"""Guidance learned: a model whose one pass is what two passes with classifier-free guidance would be.

Knows: how far a target of first blocks is pushed, and in which direction. Does not know: networks, data, samplers.
Source: Diffusion Models without Classifier-free Guidance (2502.12154): the model's own estimates with and without the
text, held fixed, push the target apart. Where the target is v + p (v_told - v_untold), the fixed point is
v_untold + (v - v_untold) / (1 - p): guidance of scale s is learned with p = 1 - 1 / s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arvid.caches.store import Policy
from arvid.train.flow import Drawn, FlowModel, TeacherForcing


class GuidedForcing(TeacherForcing):
    """Teacher forcing whose first blocks of other clips learn guidance of a scale; later blocks, whose past tells them
    what to go on with, learn the plain flow."""

    def __init__(self, model: FlowModel, frames: int, block: int, *policies: Policy, scale: float = 2.0) -> None:
        """Raises ValueError for a scale below 1."""
        if scale < 1:
            raise ValueError(f"guidance of scale {scale}; give 1 (none) or more")
        super().__init__(model, frames, block, *policies)
        self.push = 1 - 1 / scale

    def firsts(self, z_NTCHW: Tensor, text_NSD: Tensor, generator: torch.Generator) -> Tensor:
        """Squared error to the pushed flow. Clips that are shown without their text are pushed nowhere."""
        drawn = Drawn.of(z_NTCHW, self.shift, generator)
        with torch.no_grad():
            untold = drawn.flow(self.model, torch.zeros_like(text_NSD))
        told = drawn.flow(self.model, text_NSD)
        target = drawn.noise_NTCHW - z_NTCHW + self.push * (told.detach() - untold)
        return (told - target).square().mean()
