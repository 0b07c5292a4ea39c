"""Assembly and the Python face: a family and a request in, blocks out as they are decided.

Knows: which parts make a rollout and how they are put together. Does not know: argv, jobs, sockets, files of video.
CLI, server and benchmarks assemble nothing themselves: they call `Pipeline.session`, `Pipeline.stream` or
`Pipeline.generate`, each of which is a consumer of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from arvid import spec
from arvid.caches.policies import POLICIES, remember
from arvid.caches.policy import Policy
from arvid.caches.positions import POSITIONS
from arvid.models.family import Card, load_autoencoder, load_transformer, read_card
from arvid.models.placement import Placement, bare
from arvid.models.tae import SPACE_STRIDE, TIME_STRIDE
from arvid.models.text import TextEncoder
from arvid.models.wan.transformer import CausalWan
from arvid.request import Request as Request
from arvid.rewards.frame import FrameReward
from arvid.rewards.judges import judges_of
from arvid.rollout.devices import settled
from arvid.rollout.flow import FlowWalker, together
from arvid.rollout.guard import GUARDS, Guard, Off
from arvid.rollout.judging import Routing, chooser
from arvid.rollout.reach import Reach
from arvid.rollout.replay import Timed
from arvid.rollout.routers import ROUTERS, Target
from arvid.rollout.session import KEPT, Crew, JudgeOf, Session, Wire
from arvid.rollout.specs import FRAME, Spec
from arvid.rollout.speculate import Speculator
from arvid.rollout.stage import Clock, Stage
from arvid.rollout.state import Snapshot
from arvid.rollout.steered import Hands, Steered
from arvid.rollout.timeline import Change, Director, place, spread, whole
from arvid.samplers.grids import SHIFT, few_step
from arvid.samplers.noise import NOISES
from arvid.samplers.plans import sequential, validate
from arvid.samplers.steps import STEPS
from arvid.samplers.timetable import Timetable
from arvid.types import Act, Block, BlockReward, Decoder, Denoiser, Listener, Noise, Past, Plan, Reward, Span
from arvid.worlds import stories

EMBEDDED = Path(__file__).parent / "weights" / "embedded"
"""The family that ships with the package."""
POSITIONS_AS_TRAINED = "absolute"
SELDOM = ("timeline", "guard", "positions", "noise")
"""Fields of a request that reports name where they were asked for."""
WAITING = 4
"""Training lengths of decided frames that may wait for a past that cannot say which of them it will need."""


@runtime_checkable
class Encoder(Protocol):
    """The other half of an autoencoder."""

    def encode(self, v_BTCHW: Tensor) -> Tensor:
        """Latents of a clip of 1 + 4 n frames in [-1, 1]."""
        ...


class Text(Protocol):
    """What makes embeddings of prompts."""

    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, D] of prompts, zero beyond each prompt."""
        ...


@dataclass(frozen=True, eq=False)
class Family:
    """The parts of a pair that work together, and their card. `judges` score whole blocks, by the name that a router
    gives them; `acts` reads the story that a prompt tells."""

    card: Card
    target: Denoiser
    drafter: Denoiser | None
    decoder: Decoder
    text: Text
    reward: Reward | None
    device: torch.device
    judges: Mapping[str, BlockReward] = field(default_factory=dict)
    acts: Callable[[str], tuple[Act, ...]] = whole


@dataclass(frozen=True, eq=False)
class Result:
    """A finished video: frames v_BTCHW in [-1, 1], latents z_BTCHW, the blocks, and seconds of wall-clock."""

    frames_BTCHW: Tensor
    latents_BTCHW: Tensor
    blocks: tuple[Block, ...]
    seconds: float


def load(directory: Path | str = EMBEDDED, device: str = "cpu") -> Family:
    """A family from its directory, with the judges of blocks that lie in its folders (see `rewards.judges`).
    Raises ValueError for missing, damaged or foreign files, and a device that is not there."""
    directory, where = Path(directory), Placement(device).home
    card = read_card(directory)
    text = TextEncoder.load(directory / "text").to(where)
    drafter = load_transformer(directory, card, "drafter", where) if "drafter" in card.parts else None
    reward = FrameReward.load(directory / "reward", text.encode).to(where) if "reward" in card.parts else None
    codec = load_autoencoder(directory, card, where)
    return Family(
        card, load_transformer(directory, card, "target", where), drafter, codec, text, reward, where,
        judges_of(directory, codec.encode, where), stories.acts if card.world == "shapes" else whole,
    )  # fmt: skip


class Pipeline:
    """Makes videos with one family. Not safe for use by two threads at once."""

    def __init__(self, family: Family) -> None:
        self.family = family

    @classmethod
    def embedded(cls, device: str = "cpu") -> Pipeline:
        """The family that ships with the package."""
        return cls(load(EMBEDDED, device))

    def check(self, request: Request, given: int = 0) -> tuple[Spec, Plan]:
        """The router and the plan of a request, behind `given` latent frames. Raises ValueError naming what cannot be
        done and what can."""
        card = self.family.card
        if request.size is not None and request.size != card.size:
            raise ValueError(
                f"size {request.size[0]}x{request.size[1]} asked for; {card.name} makes {card.size[0]}x{card.size[1]}"
            )
        if not 0 < request.seconds <= 86400:
            raise ValueError(f"{request.seconds} seconds asked for; give more than 0 and at most 86400 (a day)")
        router = self._router(request)
        spec.build(request.guard or "off", GUARDS, "guard").check_router(router)
        self._noise(request)
        sigmas = self._levels(router.steps)
        router.check_repair(len(sigmas) - 1)
        first, frames = self._opening(router), self.latent_frames(request.seconds, given)
        plan = sequential(frames, card.block, sigmas, first, router.ahead)
        if given:
            known = sequential(given, card.block, sigmas)
            moved = ((move, Span(move.span.start + given, move.span.stop + given)) for move in plan)
            plan = known + tuple(replace(move, index=move.index + len(known), span=span) for move, span in moved)
            validate(plan)
        self.changes(request, plan, given)
        policy = self.policy(request, router)
        for model in map(bare, self._writers(router).values()):
            if isinstance(model, CausalWan):
                policy.check_files(model.config.num_layers, model.config.num_heads, model.config.dim)
        return router, plan

    @staticmethod
    def _noise(request: Request) -> Callable[[int], Noise]:
        return spec.build(request.noise or "white", NOISES, "noise")

    def policy(self, request: Request, router: Spec) -> Policy:
        """What decides which frames of a request's past stay. Raises ValueError where there can be no such past."""
        return self._past(request, router)[0]

    def _past(self, request: Request, router: Spec) -> tuple[Policy, Past]:
        """A policy and an empty past under it. Raises ValueError where they, the positions and the moves of the router
        cannot be together."""
        card = self.family.card
        policy = spec.build(request.past or card.past, POLICIES, "past")
        positions = spec.build(request.positions or POSITIONS_AS_TRAINED, POSITIONS, "positions")
        return policy, remember(policy, card.block, positions, card.block * router.ahead)

    def _writers(self, router: Spec) -> dict[str, Denoiser]:
        """The models that remember what a router has made, by role."""
        drafter = self.family.drafter if router.asks_drafter else None
        return {"target": self.family.target} | ({} if drafter is None else {"drafter": drafter})

    def _levels(self, steps: int) -> tuple[float, ...]:
        """The levels of a walk of so many passes; 0: the family's own."""
        own = self.family.card.steps
        if isinstance(own, int):
            return few_step(steps or own)
        return few_step(steps, own.shift) if steps else Timetable(own.shift).levels(own.timesteps)

    def _opening(self, router: Spec) -> tuple[float, ...]:
        """The levels of what opens a video or a scene; empty: those of every other block."""
        return self._levels(router.first_steps) if router.first_steps else ()

    def _router(self, request: Request) -> Spec:
        """Raises ValueError when the family lacks what a router uses."""
        family, name = self.family, request.router or self.family.card.router
        router = spec.build(name, ROUTERS, "router")
        if family.drafter is None and router.asks_drafter:
            raise ValueError(f"router {name!r} needs a drafter, {family.card.name} has none; use target")
        if FRAME in router.asks and family.reward is None:
            raise ValueError(
                f"router {name!r} scores frames, but {family.card.name} has no reward model; use target, first, "
                "stride:k= or refine:levels="
            )
        unknown = [judge for judge in router.asks if judge not in (FRAME, *family.judges)]
        if unknown:
            known = ", ".join(sorted(family.judges)) or "none"
            raise ValueError(f"router {name!r} asks the judge {unknown[0]!r}; {family.card.name} has {known}")
        if router.ahead > 1 and {*router.asks} - {FRAME}:
            raise ValueError(
                f"router {name!r} drafts {router.ahead} blocks ahead and asks a judge that sees one; leave ahead out, "
                "or judge by=frame"
            )
        if router.first_best > 1 and not self.chooses:
            raise ValueError(
                f"router {name!r} chooses among {router.first_best} first blocks, but {family.card.name} has no judge "
                "of blocks that reads latents; leave first_best out"
            )
        return router

    @property
    def chooses(self) -> bool:
        """Whether the family has judges who can choose among several first blocks."""
        return chooser(self.family.judges, Clock()) is not None

    def changes(self, request: Request, plan: Plan, given: int = 0) -> tuple[Change, ...]:
        """Where in a plan the prompts of a request begin; without a timeline the acts of its prompt share the video.
        Raises ValueError for a timeline or a story that does not fit."""
        behind = _frames(given)
        seconds = [(_frames(move.span.start) - behind) / self.family.card.fps for move in plan]
        acts = () if request.timeline else self.family.acts(request.prompt)
        if len(acts) < 2:
            return place(request.timeline, request.prompt, plan, seconds, request.seconds)
        mine = [second for second in seconds if second >= 0]
        return place(spread(acts, mine, request.seconds), "", plan, seconds, request.seconds)

    def latent_frames(self, seconds: float, given: int = 0) -> int:
        """Latent frames to be made for `seconds`: the first of a video stands for one pixel frame, each later one for
        four."""
        return max(1, round(seconds * self.family.card.fps / TIME_STRIDE) + (0 if given else 1))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""
        width, height = self.family.card.size
        return int(self.family.card.parts["target"].get("in_dim", 16)), height // SPACE_STRIDE, width // SPACE_STRIDE

    @torch.inference_mode()
    def encode(self, frames_THWC: np.ndarray) -> Tensor:
        """Latents z_BTCHW of the end of a clip (uint8), as much of it as the family was trained on: what a video may
        begin with. Raises ValueError for frames of another size and a family that cannot encode."""
        family, (width, height) = self.family, self.family.card.size
        if not isinstance(family.decoder, Encoder):
            raise ValueError(
                f"{family.card.name} has a decoder and no encoder; it cannot begin with an image or a clip"
            )
        if frames_THWC.ndim != 4 or frames_THWC.shape[1:] != (height, width, 3) or not len(frames_THWC):
            raise ValueError(f"frames {list(frames_THWC.shape)}; expected [T, {height}, {width}, 3], at least one")
        steps = min((len(frames_THWC) - 1) // TIME_STRIDE, family.card.trained_frames - 1)
        clip = torch.tensor(frames_THWC[-1 - TIME_STRIDE * steps :], device=family.device)
        return family.decoder.encode((clip.movedim(-1, 1).float() / 127.5 - 1)[None]).float()

    @torch.inference_mode()
    def session(
        self, request: Request, listeners: tuple[Listener, ...] = (), given: Tensor | None = None, keep: int = KEPT
    ) -> Session:
        """A video in the making, block by block and open to directions. It begins with the latents `given` (see
        `encode`; on any device), whose blocks are the first to come, and `keep` blocks can be taken back at once.
        Raises ValueError when the request cannot be met."""
        family, wire, card = self.family, Wire(listeners), self.family.card
        clock = Clock(settled((family.target, family.drafter, family.decoder, family.reward)))
        if given is not None and (given.shape[0] != 1 or tuple(given.shape[2:]) != self.latent_shape):
            raise ValueError(f"given latents {list(given.shape)}; expected [1, T, {str(self.latent_shape)[1:-1]}]")
        given = None if given is None else given.to(family.device, torch.float32)
        frames = 0 if given is None else given.shape[1]
        router, plan = self.check(request, frames)
        director = Director(self.changes(request, plan, frames), self._embedded, card.block)
        hands = self._hands(request, router, clock, card.spread(plan[-1].span.stop))
        steered = Steered(hands, director, card.trained_frames, given, wire.on)
        judge: JudgeOf = Routing(router, family.reward, clock, family.judges)
        limits = spec.build(request.guard or "off", GUARDS, "guard")
        if not isinstance(limits, Off):
            judge = Guard(judge, limits, steered.order, wire.on, clock)
        stage = Stage(family.decoder, clock, (wire,))
        crew = Crew(steered, judge, director, stage, self._noise(request), wire)
        return Session(plan, crew, request.seed, {**asdict(request), "model": card.name}, keep)

    def resume(self, snapshot: Snapshot, listeners: tuple[Listener, ...] = (), keep: int = KEPT) -> Session:
        """A session that goes on from a snapshot of another, read from a file or not, bit for bit as that one would.
        Raises ValueError for a snapshot of another family."""
        asked = dict(snapshot.request)
        if (model := asked.pop("model")) != self.family.card.name:
            raise ValueError(f"a state of the family {model}, this one is {self.family.card.name}; use that one")
        session = self.session(Request.of(asked), listeners, snapshot.given, keep)
        session.restore(session.brought(snapshot))
        return session

    def stream(
        self, request: Request, listeners: tuple[Listener, ...] = (), given: Tensor | None = None
    ) -> Iterator[Block]:
        """Blocks of a video, each as soon as it is decided. Raises ValueError before the first block when the request
        cannot be met."""
        yield from self.session(request, listeners, given, keep=1)

    def _embedded(self, prompt: str) -> Tensor:
        return self.family.text.encode([prompt]).to(self.family.device)

    def _hands(self, request: Request, router: Spec, clock: Clock, temperature: float) -> Hands:
        """Target, drafter and speculation between them. A router that never asks the target is never overruled."""
        card, shape, choose = self.family.card, (1, *self.latent_shape), chooser(self.family.judges, clock)
        made = {
            role: self._walker(role, model, self._past(request, router), clock)
            for role, model in self._writers(router).items()
        }
        target, drafter = made["target"], made.get("drafter")
        common = target, drafter, shape, clock, request.seed, shift_of(card), choose, card.block, temperature
        always = Target(
            commit=router.commit, level=router.commit_level, first_best=router.first_best, first_look=router.first_look,
            temperature=router.temperature,
        )  # fmt: skip
        routed = Speculator(router, *common)
        alone = Speculator(always, *common) if router.asks_target else routed
        waits = WAITING * card.trained_frames if target.past.listens else 0
        return Hands(routed, alone, tuple(made.values()), router.commit_level, waits, self._opening(router))

    def _walker(self, name: str, denoiser: Denoiser, remembered: tuple[Policy, Past], clock: Clock) -> FlowWalker:
        card, model, (policy, past) = self.family.card, bare(denoiser), remembered
        reach = Reach(policy, model.config.num_layers) if isinstance(model, CausalWan) and policy.whole else None
        if not isinstance(card.steps, int):
            denoiser = Timed(denoiser, card.steps.timesteps, Timetable(card.steps.shift))
        kind = self.family.device.type
        return FlowWalker(name, denoiser, past, STEPS[card.step], clock, reach, kind == "cpu", together(kind))

    def generate(self, request: Request, listeners: tuple[Listener, ...] = ()) -> Result:
        """A whole video: the stream, consumed."""
        begin = time.perf_counter()
        blocks = tuple(self.stream(request, listeners))
        seconds = time.perf_counter() - begin
        frames = torch.cat([block.frames_BTCHW for block in blocks], 1)
        return Result(frames, torch.cat([block.latents_BTCHW for block in blocks], 1), blocks, seconds)


def shift_of(card: Card) -> float:
    """The shift of the noise levels that a family walks."""
    return SHIFT if isinstance(card.steps, int) else card.steps.shift


def describe(block: Block) -> dict[str, object]:
    """A block as plain data for reports: what it is, who made it, score, decision, seconds and passes."""
    return {
        "block": block.move.index,
        "latent_frames": [block.move.span.start, block.move.span.stop],
        "frames": block.frames_BTCHW.shape[1],
        "source": block.source,
        "opens": block.opens,
        "score": block.verdict.score,
        "frames_scored": block.verdict.frames_scored,
        "seconds": {name: round(value, 5) for name, value in block.seconds.items()},
        "passes": block.passes,
    }


def described(request: Request, card: Card) -> dict[str, object]:
    """A request and the card's defaults as plain data for reports; what is listed in SELDOM where asked for."""
    told = {**asdict(request), "router": request.router or card.router, "past": request.past or card.past,
            "size": list(request.size or card.size), "model": card.name}  # fmt: skip
    return {name: value for name, value in told.items() if value or name not in SELDOM}


def _frames(latent_frames: int) -> int:
    """Pixel frames that the first latent frames of a video stand for."""
    return 1 + TIME_STRIDE * (latent_frames - 1) if latent_frames else 0
