"""Replay: a rollout on recorded noise and timesteps, to compare with the code that somebody's weights came from.

Knows: how recorded noise answers (block, step), how timesteps become levels, how a window that counts the current block
becomes a past that does not. Does not know: any model (it drives a Denoiser), files, decoders: latents come back.

Every block starts from its slice of the noise and looks at each timestep once; between them the clean estimate is
noised afresh with the recorded tensor. The last clean estimate is the output, and one pass at timestep 0 writes it to
the past. Positions are absolute. After Self-Forcing (2506.08009, algorithm 2 without gradients).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arvid.caches.full import Full
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.rollout.flow import FlowWalker
from arvid.rollout.loop import rollout
from arvid.rollout.stage import Clock, Stage
from arvid.samplers.grids import SHIFT
from arvid.samplers.noise import INITIAL
from arvid.samplers.plans import sequential
from arvid.samplers.steps import renoise
from arvid.samplers.timetable import TRAIN_STEPS, Timetable
from arvid.types import (
    Condition,
    DecoderState,
    Denoiser,
    Estimate,
    Move,
    Noise,
    Plan,
    Proposal,
    Span,
    Verdict,
    View,
)


@dataclass(frozen=True, eq=False)
class Recording:
    """What a rollout depends on besides the model: initial noise [B, T, C, H, W]; re-noise [N, S - 1, B, F, C, H, W]
    of N blocks of F frames and S timesteps; the embedded prompt [1 or B, L, D], padded as the model was trained;
    falling timesteps in [0, 1000]; the shift of the table that they are looked up in.

    Raises ValueError when shapes do not fit each other.
    """

    noise_BTCHW: Tensor
    renoise_NSBFCHW: Tensor
    text_BLD: Tensor
    timesteps: tuple[float, ...]
    shift: float = SHIFT

    def __post_init__(self) -> None:
        found, noise = tuple(self.renoise_NSBFCHW.shape), tuple(self.noise_BTCHW.shape)
        if len(noise) != 5 or len(found) != 7 or not found[3]:
            raise ValueError(
                f"noise {list(noise)} and renoise {list(found)}; expected [B, T, C, H, W] and "
                "[blocks, steps - 1, B, frames, C, H, W]"
            )
        batch, frames, *sides = noise
        wanted = (frames // found[3], len(self.timesteps) - 1, batch, found[3], *sides)
        if found != wanted or frames % found[3]:
            raise ValueError(
                f"renoise {list(found)} does not fit noise {list(noise)} and {len(self.timesteps)} timesteps; expected "
                f"{list(wanted)}, and whole blocks of {found[3]} frames"
            )
        if self.text_BLD.ndim != 3 or self.text_BLD.shape[0] not in (1, batch):
            raise ValueError(f"text {list(self.text_BLD.shape)} for a batch of {batch}; expected [1 or {batch}, L, D]")

    @property
    def block(self) -> int:
        """Frames of a block."""
        return int(self.renoise_NSBFCHW.shape[3])


class Recorded:
    """Noise that was drawn before (see `arvid.types.Noise`)."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """fp32 of `shape`; raises ValueError for noise that is not in the recording."""
        recording = self._recording
        if step == INITIAL:
            start = block * recording.block
            found = recording.noise_BTCHW[:, start : start + recording.block]
        elif 0 < step < len(recording.timesteps):
            found = recording.renoise_NSBFCHW[block, step - 1]
        else:
            raise ValueError(f"step {step} of block {block} is not recorded; the recording ends at step "
                             f"{len(recording.timesteps) - 1}")  # fmt: skip
        if tuple(found.shape) != tuple(shape):
            raise ValueError(f"noise {list(shape)} asked for, {list(found.shape)} recorded; ask for whole blocks")
        return found.float()


class Timed:
    """A denoiser that is told the timestep of the list where the walk is at that timestep's level; at any other level
    it is told 1000 sigma, as always. Wraps a Denoiser and is one."""

    def __init__(self, denoiser: Denoiser, timesteps: tuple[float, ...], table: Timetable) -> None:
        self.inner = denoiser
        self._levels_S = torch.tensor(table.levels(timesteps)[:-1], dtype=torch.float64)
        self._told_S = torch.tensor(timesteps, dtype=torch.float64) / TRAIN_STEPS
        self._there = self._levels_S, self._told_S

    def __call__(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        """As the wrapped one; the levels arrive in fp64, so that 1000 sigma is the timestep to its last digit."""
        levels_S, told_S = self._beside(sigma_BT)
        here_BTS = sigma_BT[..., None] == levels_S
        told_BT = torch.where(here_BTS.any(-1), (here_BTS * told_S).sum(-1), sigma_BT.double())
        return self.inner(z_BTCHW, told_BT, condition, view, span)

    def _beside(self, sigma_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The levels as `sigma_BT` would hold them and what is told at each, where it is; moved once, since moving them
        in every pass would make the host wait for a GPU."""
        if (self._there[0].dtype, self._there[0].device) != (sigma_BT.dtype, sigma_BT.device):
            self._there = self._levels_S.to(sigma_BT), self._told_S.to(sigma_BT.device)
        return self._there


class Constant:
    """One condition from the first block to the last (see `arvid.types.Conditioner`)."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def at(self, span: Span) -> Condition:
        """The same condition everywhere."""
        return self._condition


class Undecoded:
    """A decoder that leaves latents as they are (see `arvid.types.Decoder`)."""

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """The latents themselves, and no state."""
        return z_BTCHW, ()


class Alone:
    """One walker that makes every block and accepts what it made (see `arvid.types.Proposer` and `Judge`)."""

    def __init__(self, walker: FlowWalker, recording: Recording) -> None:
        self._walker, self._sides = walker, recording.noise_BTCHW.shape[2:]

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        """The block of `move`, from its noise."""
        shape = (condition.text_BLD.shape[0], len(move.span), *self._sides)
        x_BTCHW = noise.draw(move.index, INITIAL, shape).to(condition.text_BLD.device)
        return self._walker.walk(move, x_BTCHW, move.sigmas, condition, noise)

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        """Remember the block, unless the plan says that it is not to be."""
        if move.commit is not None:
            self._walker.remember(move, proposal.block_BTCHW, condition)

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        """Always accepts."""
        return Verdict("accept")


@torch.no_grad()
def replay(denoiser: Denoiser, recording: Recording, window: int | None = None) -> Tensor:
    """Latents [B, T, C, H, W] of a recorded rollout, on the device of the recording's text.

    `window` is the number of frames that a block may look at, its own among them (None: all). Raises ValueError when it
    is smaller than a block, or the timesteps are not a walk.
    """
    table, clock = Timetable(recording.shift), Clock()
    batch, frames = recording.noise_BTCHW.shape[:2]
    plan = sequential(frames, recording.block, table.levels(recording.timesteps))
    policy, plan = _narrowed(plan, recording.block, window)
    timed = Timed(denoiser, recording.timesteps, table)
    alone = Alone(FlowWalker("target", timed, Store(policy, recording.block), renoise, clock), recording)
    said = Constant(Condition("", recording.text_BLD.expand(batch, -1, -1)))
    blocks = rollout(plan, alone, alone, said, Recorded(recording), Stage(Undecoded(), clock))
    return torch.cat([block.latents_BTCHW for block in blocks], 1)


def _narrowed(plan: Plan, block: int, window: int | None) -> tuple[Policy, Plan]:
    """The past of a window that counts the current block. A window of one block remembers nothing."""
    if window is None:
        return Full(), plan
    if window < block:
        raise ValueError(f"a window of {window} frames is smaller than a block of {block}, which it counts; give more")
    if window == block:
        return Full(), tuple(replace(move, commit=None) for move in plan)
    return Window(window - block), plan
