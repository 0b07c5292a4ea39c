"""Assembly and the Python face: a family and a request in, blocks out as they are decided.

Knows: which parts make a rollout and how they are put together. Does not know: argv, jobs, sockets, files of video.
CLI, server and benchmarks assemble nothing themselves: they call `Pipeline.stream` or `Pipeline.generate`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from arvid import spec
from arvid.caches.policies import POLICIES
from arvid.caches.store import Store
from arvid.models.family import Card, load_autoencoder, load_transformer, read_card
from arvid.models.tae import SPACE_STRIDE, TIME_STRIDE
from arvid.models.text import TextEncoder
from arvid.rewards.frame import FrameReward
from arvid.rollout.flow import FlowWalker
from arvid.rollout.loop import rollout
from arvid.rollout.routers import ROUTERS, Cascade, Quantile, RewardRouter, Routing, Spec, Target
from arvid.rollout.speculate import Speculator
from arvid.rollout.stage import Clock, Stage
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.types import Block, Condition, Decoder, Denoiser, Listener, Plan, Reward, Span

EMBEDDED = Path(__file__).parent / "weights" / "embedded"
"""The family that ships with the package."""


@dataclass(frozen=True)
class Request:
    """What is asked for: a prompt, its length, a seed, and how to make it. `router` and `past` are spec strings (empty:
    the family's own); `size` is (width, height) in pixels (None: the family's own)."""

    prompt: str
    seconds: float = 5.0
    seed: int = 0
    router: str = ""
    past: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Family:
    """The parts of a pair that work together, and their card."""

    card: Card
    target: Denoiser
    drafter: Denoiser | None
    decoder: Decoder
    text: TextEncoder
    reward: Reward | None
    device: torch.device


@dataclass(frozen=True, eq=False)
class Result:
    """A finished video: frames v_BTCHW in [-1, 1], latents z_BTCHW, the blocks, and seconds of wall-clock."""

    frames_BTCHW: Tensor
    latents_BTCHW: Tensor
    blocks: tuple[Block, ...]
    seconds: float


class Constant:
    """One prompt from the first block to the last (see `arvid.types.Conditioner`)."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def at(self, span: Span) -> Condition:
        """The same condition everywhere."""
        return self._condition


def load(directory: Path = EMBEDDED, device: str = "cpu") -> Family:
    """A family from its directory. Raises ValueError for missing, damaged or foreign files."""
    where, card = torch.device(device), read_card(directory)
    text = TextEncoder.load(directory / "text").to(where)
    drafter = load_transformer(directory, card, "drafter", where) if "drafter" in card.parts else None
    reward = FrameReward.load(directory / "reward", text.encode).to(where) if "reward" in card.parts else None
    return Family(
        card, load_transformer(directory, card, "target", where), drafter,
        load_autoencoder(directory, card, where), text, reward, where,
    )  # fmt: skip


class Pipeline:
    """Makes videos with one family. Not safe for use by two threads at once."""

    def __init__(self, family: Family) -> None:
        self.family = family

    @classmethod
    def embedded(cls, device: str = "cpu") -> Pipeline:
        """The family that ships with the package."""
        return cls(load(EMBEDDED, device))

    def check(self, request: Request) -> tuple[Spec, Plan]:
        """The router and the plan of a request. Raises ValueError naming what cannot be done and what can."""
        card = self.family.card
        if not request.prompt.strip():
            raise ValueError("the prompt is empty; say what the video shows")
        if request.size is not None and request.size != card.size:
            raise ValueError(
                f"size {request.size[0]}x{request.size[1]} asked for; {card.name} makes {card.size[0]}x{card.size[1]}"
            )
        if not 0 < request.seconds <= 86400:
            raise ValueError(f"{request.seconds} seconds asked for; give more than 0 and at most 86400 (a day)")
        router = spec.build(request.router or card.router, ROUTERS, "router")
        spec.build(request.past or card.past, POLICIES, "past")
        name = request.router or card.router
        if self.family.drafter is None and not isinstance(router, Target):
            raise ValueError(f"router {name!r} needs a drafter, {card.name} has none; use target")
        if self.family.reward is None and isinstance(router, (RewardRouter, Quantile, Cascade)):
            raise ValueError(
                f"router {name!r} scores frames, but {card.name} has no reward model; use target, first, stride:k= or "
                "refine:levels="
            )
        sigmas = few_step(router.steps or card.steps)
        first = few_step(router.first_steps) if router.first_steps else None
        return router, sequential(self.latent_frames(request.seconds), card.block, sigmas, first)

    def latent_frames(self, seconds: float) -> int:
        """Latent frames that cover `seconds`: the first stands for one pixel frame, each later one for four."""
        return max(1, round(seconds * self.family.card.fps / TIME_STRIDE) + 1)

    @torch.inference_mode()
    def stream(self, request: Request, listeners: tuple[Listener, ...] = ()) -> Iterator[Block]:
        """Blocks of a video, each as soon as it is decided. Raises ValueError before the first block when the request
        cannot be met."""
        router, plan = self.check(request)
        family, clock = self.family, Clock()
        width, height = family.card.size
        shape = (1, self._channels, height // SPACE_STRIDE, width // SPACE_STRIDE)
        target = self._walker("target", family.target, request, clock)
        drafter = self._walker("drafter", family.drafter, request, clock) if family.drafter else None
        proposer = Speculator(router, target, drafter, shape, clock, request.seed)
        condition = Condition(request.prompt, family.text.encode([request.prompt]).to(family.device))
        stage = Stage(family.decoder, clock, listeners)
        judge = Routing(router, family.reward, clock)
        yield from rollout(plan, proposer, judge, Constant(condition), SeededNoise(request.seed), stage)

    @property
    def _channels(self) -> int:
        return int(self.family.card.parts["target"].get("in_dim", 16))

    def _walker(self, name: str, denoiser: Denoiser, request: Request, clock: Clock) -> FlowWalker:
        card = self.family.card
        past = Store(spec.build(request.past or card.past, POLICIES, "past"), card.block)
        return FlowWalker(name, denoiser, past, STEPS[card.step], clock)

    def generate(self, request: Request, listeners: tuple[Listener, ...] = ()) -> Result:
        """A whole video: the stream, consumed."""
        begin = time.perf_counter()
        blocks = tuple(self.stream(request, listeners))
        seconds = time.perf_counter() - begin
        frames = torch.cat([block.frames_BTCHW for block in blocks], 1)
        return Result(frames, torch.cat([block.latents_BTCHW for block in blocks], 1), blocks, seconds)


def describe(block: Block) -> dict[str, object]:
    """A block as plain data for reports: index, frames, who made it, score, decision, seconds and passes."""
    return {
        "block": block.move.index,
        "latent_frames": [block.move.span.start, block.move.span.stop],
        "frames": block.frames_BTCHW.shape[1],
        "source": block.source,
        "score": block.verdict.score,
        "frames_scored": block.verdict.frames_scored,
        "seconds": {name: round(value, 5) for name, value in block.seconds.items()},
        "passes": block.passes,
    }


def described(request: Request, card: Card) -> dict[str, object]:
    """A request and the card's defaults as plain data for reports."""
    return {**asdict(request), "router": request.router or card.router, "past": request.past or card.past,
            "size": list(request.size or card.size), "model": card.name}  # fmt: skip
