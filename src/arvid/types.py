"""The nouns and the Protocols every room speaks in.

Knows: the form of a value (spans, moves, proposals, verdicts, blocks, events) and the five seams as Protocols (plan,
past, proposal, judgement, commit). Does not know: any model, policy, schedule or file; imports nothing of ours.

Legend: B batch, T latent frames, C channels, H height, W width, L tokens, D width, heads in k_BLHD; latents z_BTCHW,
pixels v_BTCHW in [-1, 1]. Noise level sigma in [0, 1], 1 is noise (docs/conventions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

# ---------------------------------------------------------------- plan


@dataclass(frozen=True)
class Span:
    """What a block covers: latent frames [start, stop) of a video."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Move:
    """One transition of a plan: block `index` walks down `sigmas` (first is where it starts, the last is 0 when it
    ends clean), is written to the past at noise level `commit` (None: not at all) and leaves by the window if `emits`.
    """

    index: int
    span: Span
    sigmas: tuple[float, ...]
    commit: float | None = 0.0
    emits: bool = True

    @property
    def steps(self) -> int:
        """Number of model passes of the walk."""
        return len(self.sigmas) - 1


Plan = tuple[Move, ...]
"""Moves in the order they are made; made before the loop, printable, validated by `samplers.plans.validate`."""


# ---------------------------------------------------------------- condition and noise


@dataclass(frozen=True, eq=False)
class Condition:
    """What a block is asked to show: the prompt and its text embedding [B, L, D] (zero beyond the prompt)."""

    prompt: str
    text_BLD: Tensor


class Conditioner(Protocol):
    """Gives every block its condition; the same object while nothing changes."""

    def at(self, span: Span) -> Condition:
        """The condition of the block that covers `span`."""
        ...


class Noise(Protocol):
    """Every random number of a rollout, asked for by name, so that any block can be replayed alone."""

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal fp32 of `shape`, a pure function of (seed, block, step); step 0 is the initial noise."""
        ...


# ---------------------------------------------------------------- past

Memory = tuple[tuple[Tensor, Tensor], ...]
"""Per layer the unrotated keys and the values [B, L, H, D] of the frames of one model pass."""
Rotate = Callable[[Tensor, tuple[int, ...]], Tensor]
"""(keys [B, L, H, D] of whole frames, indices of those frames) -> rotated keys."""


class View(Protocol):
    """What the frames of one span may read of the past. Made once per block, read at every pass; never written."""

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the past frames on view, in storage order."""
        ...

    def read(self, layer: int, rotate: Rotate) -> tuple[Tensor, Tensor] | None:
        """Rotated keys and values [B, L, H, D] of a layer, None when there is nothing; rotated once per view."""
        ...

    def mask(self, frames: tuple[int, ...]) -> Tensor | None:
        """Boolean [len(frames), len(self.frames) + len(frames)], True where a frame may look; None: everywhere."""
        ...


class Past(Protocol):
    """One model's memory of what was committed."""

    def view(self, span: Span) -> View:
        """What `span` may read. A span of several blocks gets a view whose mask keeps the blocks causal."""
        ...

    def commit(self, span: Span, memory: Memory) -> None:
        """Write the keys and values of `span`; committing a span again overwrites it."""
        ...

    def snapshot(self) -> Any:
        """A value that `restore` brings back; costs no copy of keys and values."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes held by keys and values."""
        ...


# ---------------------------------------------------------------- models


@dataclass(frozen=True, eq=False)
class Estimate:
    """One model pass: flow v = noise - clean [B, T, C, H, W], and what the past would need of these frames."""

    flow_BTCHW: Tensor
    memory: Memory


class Denoiser(Protocol):
    """A causal video model, seen from the rollout."""

    def __call__(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        """Flow of the frames of `span` at noise levels `sigma_BT`, reading `view`. Writes nothing."""
        ...


DecoderState = tuple[Tensor, ...]


class Decoder(Protocol):
    """A streaming latent decoder. Its state is a value: keep the old one to go back."""

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Pixels [B, F, 3, H, W] in [-1, 1] of the next latents, and the state after them; None starts a stream."""
        ...


class Reward(Protocol):
    """One score per frame."""

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """[B, T] scores of frames against a prompt; higher is better, calibrated to [0, 1] where the model says so."""
        ...


# ---------------------------------------------------------------- proposal, judgement, block


@dataclass(frozen=True, eq=False)
class Proposal:
    """A candidate for a block: the clean latents, the latents at every level of the walk (trajectory[i] is at
    sigmas[i]), who made it, how many passes it took, and the memory of its last pass at level `memory_sigma`."""

    block_BTCHW: Tensor
    trajectory: tuple[Tensor, ...] = ()
    source: str = "target"
    passes: int = 0
    memory: Memory = ()
    memory_sigma: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """A judgement: `decision` is accept, repair or redo; `score` the number it rests on (None when none was made);
    `frames_scored` how many frames were looked at."""

    decision: str
    score: float | None = None
    frames_scored: int = 0


@dataclass(frozen=True, eq=False)
class Block:
    """A finished block as it leaves the loop. `seconds` holds wall-clock per stage (draft, score, target, decode,
    commit) and `passes` model passes by name (drafter, target, target_commit, ...)."""

    move: Move
    latents_BTCHW: Tensor
    frames_BTCHW: Tensor
    source: str
    verdict: Verdict
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)


class Proposer(Protocol):
    """Makes blocks. Reads its past, writes nothing until `commit`."""

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        """A candidate for the block of `move`; `rejected` is the one the judge has just sent back."""
        ...

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        """The block is decided: remember it."""
        ...


class Judge(Protocol):
    """Decides about candidates."""

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        """Judge a candidate; `frames()` decodes it (once) when pixels are needed."""
        ...


class Listener(Protocol):
    """Watches a rollout."""

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """`event` is begun, rejected or done; payload names the block and the numbers."""
        ...
