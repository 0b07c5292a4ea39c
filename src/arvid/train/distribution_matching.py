"""Matching distributions: what a student makes shall look to a critic as it looks to the teacher.

Knows: the two losses (DMD, SiD), the critic's own training, who steps when. Does not know: how the student makes
videos (a callable), architectures, what a score conditions on. Sources: DMD (2311.18828) and DMD2 (2405.14867,
several critic steps to one of the student), and SiD (2404.04057), all as Self-Forcing (2506.08009) has them.
Self-Forcing++ (2510.02283) noises windows of long rollouts anew, which is what happens here to any window.

Legend: x what the student made, x_sigma the same noised, r and f the clean estimates of x_sigma by the teacher (real)
and by the critic (fake), which is trained all along by flow matching on what the student makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from arvid.train.flow import noise_like, noised, shifted
from arvid.train.scores import Score

Roll = Callable[[Tensor, torch.Generator], Tensor]
"""(text_BSD, generator) -> clean latents [B, T, C, H, W] the student makes; with a gradient where gradients are on."""


@dataclass(frozen=True)
class Levels:
    """The law of noise levels at which teacher and critic are compared: uniform, shifted, kept within bounds."""

    shift: float = 5.0
    low: float = 0.02
    high: float = 0.98

    def draw(self, x_BTCHW: Tensor, generator: torch.Generator) -> Tensor:
        """One level per clip, for all its frames: sigma_BT."""
        batch, frames = x_BTCHW.shape[:2]
        sigma = shifted(torch.rand(batch, 1, generator=generator), self.shift).clamp(self.low, self.high)
        return sigma.expand(batch, frames).to(x_BTCHW.device)


class Loss(Protocol):
    """A loss of what the student made, by a critic."""

    @property
    def fake(self) -> nn.Module:
        """The critic, a `Score`."""
        ...

    @property
    def levels(self) -> Levels:
        """Where it is trained and asked."""
        ...

    def __call__(self, x_BTCHW: Tensor, text_BSD: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars; `loss` is differentiated."""
        ...


@dataclass(frozen=True, eq=False)
class DistributionMatching:
    """DMD: the gradient of x is (f - r) / mean |x - r|, the mean over a clip; the loss is half the mean square of x's
    distance to x minus that, held fixed. `real` is frozen and wrapped by `train.scores.Guided` if guidance is wanted
    (the field's weight is 3)."""

    real: Score
    fake: nn.Module
    levels: Levels = Levels()

    def __call__(self, x_BTCHW: Tensor, text_BSD: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss, and the mean distance of the two estimates (`gap`)."""
        with torch.no_grad():
            x = x_BTCHW.detach()
            sigma_BT = self.levels.draw(x, generator)
            mixed = noised(x, noise_like(x, generator), sigma_BT)
            real = _clean(self.real, x, mixed, sigma_BT, text_BSD)
            apart = _clean(self.fake, x, mixed, sigma_BT, text_BSD) - real
            step = torch.nan_to_num(apart / _size(x - real), nan=0.0, posinf=0.0, neginf=0.0)
            goal = x.double() - step.double()
        return {"loss": 0.5 * (x_BTCHW.double() - goal).square().mean(), "gap": apart.abs().mean()}


@dataclass(frozen=True, eq=False)
class ScoreIdentity:
    """SiD: mean of (r - f) ((r - x) - alpha (r - f)) over mean |x - r| of the clip, differentiated through x and
    through what the two networks make of x_sigma. The past that they read is a constant."""

    real: Score
    fake: nn.Module
    levels: Levels = Levels()
    alpha: float = 1.0

    def __call__(self, x_BTCHW: Tensor, text_BSD: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss, and the mean distance of the two estimates (`gap`)."""
        past = x_BTCHW.detach()
        sigma_BT = self.levels.draw(past, generator)
        mixed = noised(x_BTCHW, noise_like(past, generator), sigma_BT)
        real = _clean(self.real, past, mixed, sigma_BT, text_BSD)
        apart = (real - _clean(self.fake, past, mixed, sigma_BT, text_BSD)).double()
        product = apart * ((real - x_BTCHW).double() - self.alpha * apart)
        loss = torch.nan_to_num(product / _size(past - real.detach())).mean()
        return {"loss": loss, "gap": apart.detach().abs().mean()}


class Matching:
    """An objective in which student and critic take turns: before every step of the student, the critic follows it for
    as many steps as the batch has prompts for.

    A batch is text_RBSD: R - 1 rows of prompts for the critic, then one for the student; the field has R = 6. The
    critic and its optimiser are the objective's own and are saved with the run (see `train.trainer.Stateful`).
    """

    def __init__(self, roll: Roll, loss: Loss, learning_rate: float, clip: float = 1.0) -> None:
        self.roll, self.loss, self.critic, self.clip = roll, loss, loss.fake, clip
        self.optimiser = torch.optim.AdamW(
            self.critic.parameters(), learning_rate, betas=(0.0, 0.999), weight_decay=0.01
        )

    def __call__(self, text_RBSD: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The student's loss and the critic's last one. Raises ValueError when the critic has no prompts."""
        if len(text_RBSD) < 2:
            raise ValueError(
                f"a batch of {len(text_RBSD)} rows of prompts; at least 2 are needed, the last for the student"
            )
        *rounds, last = text_RBSD.unbind(0)
        # Frozen while the student learns: SiD differentiates through the critic, and nothing of that is the critic's.
        self.critic.requires_grad_(True)
        for text_BSD in rounds:
            error = self._follow(text_BSD, generator)
        self.critic.requires_grad_(False)
        return {**self.loss(self.roll(last, generator), last, generator), "critic": error}

    def _follow(self, text_BSD: Tensor, generator: torch.Generator) -> Tensor:
        """One step of flow matching of the critic on what the student makes now."""
        with torch.no_grad():
            x_BTCHW = self.roll(text_BSD, generator)
        sigma_BT = self.loss.levels.draw(x_BTCHW, generator)
        noise = noise_like(x_BTCHW, generator)
        with torch.enable_grad():
            flow_BTCHW = self.critic(x_BTCHW, noised(x_BTCHW, noise, sigma_BT), sigma_BT, text_BSD)
            error = (flow_BTCHW - (noise - x_BTCHW)).square().mean()
            error.backward()
        nn.utils.clip_grad_norm_(self.critic.parameters(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return error.detach()

    def state(self) -> dict[str, Any]:
        """The critic and its optimiser."""
        return {"critic": self.critic.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a critic and its optimiser again."""
        self.critic.load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])


def _clean(score: Callable[..., Tensor], past: Tensor, mixed: Tensor, sigma_BT: Tensor, text_BSD: Tensor) -> Tensor:
    """Clean estimate of noisy frames by a score."""
    return mixed - sigma_BT[:, :, None, None, None] * score(past, mixed, sigma_BT, text_BSD)


def _size(x_BTCHW: Tensor) -> Tensor:
    """Mean size of the numbers of every clip, [B, 1, 1, 1, 1]."""
    return x_BTCHW.abs().mean((1, 2, 3, 4), keepdim=True)
