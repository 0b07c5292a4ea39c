"""The nouns and the Protocols every room speaks in.

Knows: the form of a value (spans, moves, proposals, verdicts, blocks, events) and the five seams as Protocols (plan,
past, proposal, judgement, commit). Does not know: any model, policy, schedule or file; imports nothing of ours.

Legend: B batch, T latent frames, C channels, H height, W width, L tokens, D width, heads in k_BLHD; latents z_BTCHW,
pixels v_BTCHW in [-1, 1]. Noise level sigma in [0, 1], 1 is noise (docs/conventions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Act:
    """A part of what a prompt tells: the prompt that holds while it runs, and whether it begins a scene that sees
    nothing before it."""

    prompt: str
    cut: bool = False


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
Rotate = Callable[[Tensor, tuple[float, ...]], Tensor]
"""(keys [B, L, H, D] of whole frames, temporal positions of those frames) -> rotated keys."""


class Asking(Protocol):
    """One layer of one pass, as it asks a view: it rotates keys (it is a `Rotate`) and tells what the layer brings."""

    queries_BLHD: Tensor
    """Queries of the block, not rotated."""
    pair: tuple[Tensor, Tensor]
    """Keys (not rotated) and values of the block [B, L, H, D]."""
    text: tuple[Tensor, Tensor]
    """Keys and values of the prompt [B, S, H, D]."""
    grid: tuple[int, int]
    """Rows and columns of tokens of a frame."""

    @property
    def level(self) -> float:
        """Noise level of the first frame of the pass."""
        ...

    def __call__(self, keys_BLHD: Tensor, positions: tuple[float, ...]) -> Tensor:
        """Keys of whole frames, rotated."""
        ...

    def at(self, keys_BLHD: Tensor, places_L3: Tensor) -> Tensor:
        """Keys of single tokens, rotated to their (time, row, column)."""
        ...


class Seen(NamedTuple):
    """What a layer reads: rotated keys and values [B, L, H, D], and what is added to the logits of these keys, fp32
    [heads or 1, frames of the pass or 1, L] (None: nothing)."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


class View(Protocol):
    """What the frames of one span may read of the past. Made once per block, read at every pass; never written."""

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the past frames on view, in storage order."""
        ...

    def read(self, layer: int, rotate: Rotate) -> Seen | tuple[Tensor, Tensor] | None:
        """Rotated keys and values [B, L, H, D] of a layer, None when there is nothing; rotated once per view. A model
        hands an `Asking` over."""
        ...

    def mask(self, frames: tuple[int, ...]) -> Tensor | None:
        """Boolean [len(frames), len(self.frames) + len(frames)], True where a frame may look; None: everywhere. With
        len(frames) columns it is about the pass itself, and everybody sees all of the past."""
        ...


class Stretch(NamedTuple):
    """Slower turning in time: a pair of channels that turns less than `low` times within `trained` frames turns
    `scale` times slower, one that turns more than `high` times as ever, those between in proportion."""

    scale: float
    trained: float
    low: float
    high: float


@dataclass(frozen=True)
class Places:
    """Where frames stand in time for one block: the pieces of the past, and the frames of the pass. `decay` is taken
    off a logit per frame of distance."""

    past: tuple[float, ...]
    own: tuple[float, ...]
    stretch: Stretch | None = None
    decay: float = 0.0


class Positions(Protocol):
    """Answers where frames stand in time. Keys are stored unrotated, so every block may answer anew."""

    @property
    def fixed(self) -> bool:
        """Whether a frame stands at the same place whatever reads it and whatever stands beside it."""
        ...

    def place(self, past: tuple[tuple[float, float], ...], own: tuple[int, ...]) -> Places:
        """`past` holds the (first frame, length in frames) of every piece on view, in order of time, `own` the frames
        of the pass. Where a block stands may not depend on which pieces are chosen."""
        ...


@runtime_checkable
class Placed(Protocol):
    """A view that says where frames stand. One that does not stands where its frames do."""

    def places(self, frames: tuple[int, ...]) -> Places:
        """Positions of the past on view and of the frames of a pass."""
        ...


class Past(Protocol):
    """One model's memory of what was committed."""

    def view(self, span: Span) -> View:
        """What `span` may read. A span of several blocks gets a view whose mask keeps the blocks causal."""
        ...

    def commit(self, span: Span, memory: Memory) -> None:
        """Write the keys and values of `span`; committing a span again overwrites it."""
        ...

    def keep(self, frames: frozenset[int]) -> None:
        """Forget all frames but these, at once and without a pass."""
        ...

    def hear(self, start: int, about: tuple[str, ...]) -> None:
        """What the blocks from `start` on are to show, by name, for a past that keeps identities."""
        ...

    def cut(self, starts: frozenset[int]) -> None:
        """For the blocks that begin at `starts` alone, and for no others, the past stands much further back in time."""
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

    @property
    def listens(self) -> bool:
        """Whether a commit takes more than keys and values: what the passes over the last view of the span told that
        view (queries, levels). Then only what these very passes brought can be committed."""
        ...

    def together(self, span: Span) -> bool:
        """Whether the blocks of `span` stand in one pass where each would stand alone. Each then reads exactly what it
        would read alone, unless the past listens: such a one chooses for all of them at once."""
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


@dataclass(frozen=True, eq=False)
class Candidate:
    """A block as a judge of whole blocks may look at it: its latents and those of the block before (None: it is the
    first), its pixels on demand (decoded once), the last frames before it, and what it was asked to show."""

    block_BTCHW: Tensor
    before_BTCHW: Tensor | None
    frames: Callable[[], Tensor]
    frames_before_BTCHW: Tensor | None
    condition: Condition


class BlockReward(Protocol):
    """One score per block, so that motion and seams count."""

    @property
    def lookback(self) -> int:
        """How many frames before a block it looks at, with the block's own; 0 when it never looks at pixels."""
        ...

    def score_block(self, candidate: Candidate) -> Tensor:
        """[B] scores in [0, 1]; higher is better."""
        ...


# ---------------------------------------------------------------- proposal, judgement, block


@dataclass(frozen=True, eq=False)
class Proposal:
    """A candidate for a block: the clean latents, the latents at every level of the walk (trajectory[i] is at
    sigmas[i]), who made it, how many passes it took, and the memory of its last pass (empty: there is none that the
    past of who made it can commit). One that was sent back carries the `verdict` that says so; one that `opens` a scene
    has nothing of what was before in it."""

    block_BTCHW: Tensor
    trajectory: tuple[Tensor, ...] = ()
    source: str = "target"
    passes: int = 0
    memory: Memory = ()
    verdict: Verdict | None = None
    opens: bool = False


@dataclass(frozen=True)
class Verdict:
    """A judgement: `decision` is accept, redo (all of the remedy that was agreed on) or repair (its first pass is
    enough); `score` the number it rests on (None when none was made); `frames_scored` how many frames it took."""

    decision: str
    score: float | None = None
    frames_scored: int = 0


@dataclass(frozen=True, eq=False)
class Block:
    """A finished block as it leaves the loop. `seconds` holds wall-clock per stage (draft, score, target, decode,
    commit) and `passes` model passes by name (drafter, target, target_commit, ...); `opens`: it begins a new scene."""

    move: Move
    latents_BTCHW: Tensor
    frames_BTCHW: Tensor
    source: str
    verdict: Verdict
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    opens: bool = False


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
        """An event and what its payload holds; in the order in which those of a block come:

        - begun: block. Everything up to the next one is about this block.
        - changed (a change of the prompt is applied): block, prompt, how, live.
        - guard (a guard has looked at a candidate): block, decision, worst, and the numbers by name.
        - rejected (a candidate is sent back): source, score, decision.
        - done: block, source, score, frames_BTCHW.
        """
        ...
