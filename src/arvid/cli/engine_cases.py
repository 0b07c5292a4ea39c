"""What `arvid bench engine` measures: models of random weights that run in one way or another through the one loop.

Knows: published and tiny sizes, how a network is made to run (compiled, packed, quantised, offloaded, beside the main
stream), what is timed. Does not know: arguments, which rows a run has, what is done with a row (`cli.bench_engine`).

A row is a video from random weights with a random embedding of a prompt: time does not depend on what is shown, and the
text encoder, which works once per prompt, is not part of it. The past is filled first, and then blocks are timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor
from transformers import BatchEncoding

from arvid.caches.store import Store
from arvid.caches.window import Window
from arvid.evals.plain_loop import PlainLoop
from arvid.layers.quantise import KINDS, plain_parts, quantise
from arvid.models.offload import offload
from arvid.models.running import aside, compile_blocks, held_back, pack
from arvid.models.tae import SPACE_STRIDE, TinyAutoencoder
from arvid.models.taehv import TAEHV
from arvid.models.wan.presets import EMBEDDED_DRAFTER, EMBEDDED_TARGET, WAN_1_3B, WAN_14B
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.models.wan.vae import WanAutoencoder
from arvid.rewards.frame import FrameReward
from arvid.rewards.image_reward import TOKENS, ImageReward
from arvid.rollout.flow import FlowWalker
from arvid.rollout.judging import Routing
from arvid.rollout.loop import rollout
from arvid.rollout.reach import Reach
from arvid.rollout.routers import Target
from arvid.rollout.specs import Spec
from arvid.rollout.speculate import Speculator
from arvid.rollout.stage import Clock, Stage
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.types import Block, Condition, Decoder, Denoiser, Estimate, Reward, Span, View

BLOCK = 3
SIZES = {
    "wan-1.3b": WAN_1_3B, "wan-14b": WAN_14B, "embedded-drafter": EMBEDDED_DRAFTER, "embedded-target": EMBEDDED_TARGET,
    "toy": WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, text_len=8, freq_dim=32),
}  # fmt: skip
PUBLISHED = "wan-"
WORDS = ("compiled", "graphs", "packed", *KINDS, "offloaded", "overlapped", "taehv")
"""What may be said of a run, joined by +; `plain` and `eager` stand alone."""


@dataclass(frozen=True)
class Setting:
    """What all rows of a run share. `pixels` is (width, height); `measured` blocks are timed, behind those that fill
    the past."""

    device: torch.device
    pixels: tuple[int, int]
    steps: int = 4
    seed: int = 0
    measured: int = 6
    dtype: torch.dtype = torch.bfloat16

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.pixels[1] // SPACE_STRIDE, self.pixels[0] // SPACE_STRIDE

    @property
    def clock(self) -> str:
        """`processor` on a CPU with one thread: its seconds are those of the wall on a machine that does nothing else.
        Otherwise `wall`, with the device waited for at every reading."""
        return "processor" if self.device.type == "cpu" and torch.get_num_threads() == 1 else "wall"

    def now(self) -> float:
        """Seconds of the clock."""
        if self.clock == "processor":
            return time.process_time()
        self.settle()
        return time.perf_counter()

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Case:
    """A model by name, frames in sight with the block's own, and words that say how it runs."""

    model: str
    window: int
    how: str

    def __post_init__(self) -> None:
        if self.model not in SIZES:
            raise ValueError(f"unknown size {self.model!r}; known: {', '.join(SIZES)}")
        if self.window < 2 * BLOCK or self.window % BLOCK:
            raise ValueError(f"a window of {self.window} frames; give a multiple of {BLOCK}, at least {2 * BLOCK}")
        if self.how not in ("plain", "eager") and (unknown := set(self.words) - set(WORDS)):
            raise ValueError(f"unknown way to run {sorted(unknown)}; known: plain, eager, {', '.join(WORDS)}")

    @property
    def words(self) -> tuple[str, ...]:
        """How it runs, word by word."""
        return tuple(self.how.split("+"))


# ---------------------------------------------------------------- parts


@contextmanager
def _seeded(setting: Setting) -> Iterator[None]:
    """Weights that are made inside are made where they are used, in their type, and the same for the same seed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    try:
        with torch.random.fork_rng(devices=[setting.device] if setting.device.type == "cuda" else []):
            torch.manual_seed(setting.seed)
            with setting.device:
                yield
    finally:
        torch.set_default_dtype(before)


def network(name: str, setting: Setting) -> CausalWan:
    """A transformer of random weights."""
    with _seeded(setting):
        return CausalWan(SIZES[name]).eval().requires_grad_(False)


def decoder_of(name: str, setting: Setting, tiny: bool = False) -> Decoder:
    """The decoder that belongs to a model: Wan's own at the published sizes (`tiny`: TAEHV), else that of the embedded
    family."""
    if not name.startswith(PUBLISHED):
        model = TinyAutoencoder().to(setting.device, setting.dtype).channels_last()
        return model.eval().requires_grad_(False)
    with _seeded(setting):
        made = TAEHV() if tiny else WanAutoencoder.build({})
    made.to(setting.device, setting.dtype).eval().requires_grad_(False)
    return made


def reward_of(name: str, setting: Setting) -> Reward:
    """The scorer that belongs to a model: ImageReward at the published sizes, else the frame reward."""
    with _seeded(setting):
        if name.startswith(PUBLISHED):
            ids = torch.zeros(1, TOKENS, dtype=torch.int64)
            words = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            return ImageReward(lambda *texts, **options: words).eval().requires_grad_(False)
        text = torch.ones(1, 8, 128)
        return FrameReward(lambda prompts: text).to(setting.dtype).eval().requires_grad_(False)


class Forced:
    """A reward that costs what it costs and says what it is told to, draft by draft (see `arvid.types.Reward`)."""

    def __init__(self, inner: Reward, kept: Sequence[bool]) -> None:
        self._inner, self._kept = inner, iter(kept)

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """1 for a draft that is to be kept, -1 for one that is not."""
        made = self._inner.score(v_BTCHW, prompt)
        return torch.full_like(made, 1.0 if next(self._kept) else -1.0)


class Watched:
    """A model whose passes are timed: those that make something, and those that only remember."""

    def __init__(self, inner: Denoiser, clock: Clock) -> None:
        self._inner, self._clock = inner, clock

    def __call__(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        """As the model does (see `arvid.types.Denoiser`)."""
        with self._clock.measure("pass" if float(sigma_BT[0, 0]) else "commit"):
            return self._inner(z_BTCHW, sigma_BT, condition, view, span)


class Always:
    """One prompt for all blocks (see `arvid.types.Conditioner`)."""

    def __init__(self, config: WanConfig, setting: Setting) -> None:
        text = torch.linspace(-1, 1, config.text_len * config.text_dim, device=setting.device)
        self._condition = Condition("nothing in particular", text.view(1, config.text_len, config.text_dim))

    def at(self, span: Span) -> Condition:
        """The prompt."""
        return self._condition


# ---------------------------------------------------------------- a video


@dataclass(eq=False)
class Engine:
    """The engine with a target, perhaps a drafter and a reward, ready to make videos of random weights."""

    setting: Setting
    window: int
    target: CausalWan
    decoder: Decoder
    drafter: CausalWan | None = None
    reward: Reward | None = None
    kept: list[Store] = field(default_factory=list)

    def video(self, blocks: int, clock: Clock, spec: Spec | None = None, seed: int | None = None) -> Iterator[Block]:
        """Blocks of one video by the one loop; passes are timed one by one if the clock is that of the setting."""
        setting, config = self.setting, self.target.config
        seed, spec = setting.seed if seed is None else seed, spec or Target()
        self.kept = []
        target = self._walker("target", self.target, clock)
        drafter = None if self.drafter is None else self._walker("drafter", self.drafter, clock)
        shape = (1, config.in_dim, *setting.sides)
        return rollout(
            sequential(blocks * BLOCK, BLOCK, few_step(setting.steps)),
            Speculator(spec, target, drafter, shape, clock, seed),
            Routing(spec, self.reward, clock), Always(config, setting), SeededNoise(seed), Stage(self.decoder, clock),
        )  # fmt: skip

    @property
    def past_bytes(self) -> int:
        """Bytes of keys and values on hold after a video."""
        return sum(store.bytes for store in self.kept)

    def _walker(self, name: str, model: CausalWan, clock: Clock) -> FlowWalker:
        policy = Window(self.window - BLOCK)
        store = Store(policy, BLOCK)
        self.kept.append(store)
        denoiser = Watched(model, clock) if isinstance(clock, SettingClock) else model
        return FlowWalker(name, denoiser, store, STEPS["renoise"], clock, Reach(policy, model.config.num_layers))


class SettingClock(Clock):
    """The clock of a setting: it waits for the device, so that every second is counted where it was spent."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.now)


def prepare(engine: Engine, words: Sequence[str]) -> Engine:
    """Make the engine run in the ways named; ValueError says what this machine cannot do."""
    model, setting = engine.target, engine.setting
    for word in words:
        if word in KINDS:
            quantise(model, word)
        elif word in ("compiled", "graphs"):
            compile_blocks(model, "reduce-overhead" if word == "graphs" else "default")
        elif word == "packed":
            pack(model)
        elif word == "offloaded":
            offload(model.to("cpu"), setting.device)
    if "overlapped" in words:
        decoder, _ = aside(engine.decoder, None, setting.device)
        if decoder is engine.decoder:
            raise ValueError(f"{setting.device} has no streams to decode beside the next block; leave overlapped out")
        return replace(engine, decoder=decoder)
    return engine


# ---------------------------------------------------------------- what is timed


@dataclass(frozen=True)
class Lap:
    """One block: seconds by stage on the setting's clock, seconds of the wall until its frames were in main memory, how
    many they were, and who made it."""

    seconds: dict[str, float]
    wall: float
    frames: int
    source: str = "target"


def engine_laps(engine: Engine, blocks: int, spec: Spec | None = None, seed: int | None = None) -> Iterator[Lap]:
    """Time a video block by block and stage by stage. Nothing is counted between one lap and the next."""
    setting = engine.setting
    stream = engine.video(blocks, SettingClock(setting), spec, seed)
    for _ in range(blocks):
        before, begin = setting.now(), time.perf_counter()
        block = next(stream)
        frames = block.frames_BTCHW.cpu().shape[1]
        whole, wall = setting.now() - before, time.perf_counter() - begin
        yield Lap(_stages(block.seconds, whole), wall, frames, block.source)


def plain_laps(loop: PlainLoop, decoder: Decoder, setting: Setting, blocks: int, config: WanConfig) -> Iterator[Lap]:
    """Time a video by the plain loop, decoded block by block with the same decoder. The pass that cleans a block's keys
    comes with the block after it, as in the engine."""
    noise, sigmas = SeededNoise(setting.seed), few_step(setting.steps)[:-1]
    shape = (1, BLOCK, config.in_dim, *setting.sides)
    initial = torch.cat([noise.draw(number, 0, shape) for number in range(blocks)], 1).to(setting.device)
    text = Always(config, setting).at(Span(0, BLOCK)).text_BLD
    stream = loop.blocks(initial, lambda n, step: noise.draw(n, step, shape).to(setting.device), text, sigmas, BLOCK)
    state = None
    for _ in range(blocks):
        before, begin = setting.now(), time.perf_counter()
        z_BTCHW = next(stream)
        made = setting.now()
        shown, state = decoder.decode(z_BTCHW, state)
        frames = shown.cpu().shape[1]
        after = setting.now()
        stages = {"pass": made - before, "decode": after - made, "all": after - before}
        yield Lap(stages, time.perf_counter() - begin, frames)


def arrivals(engine: Engine, blocks: int, overlapped: bool) -> list[float]:
    """When the frames of every block are in main memory, with nothing that waits for the device in between."""
    engine.setting.settle()
    arrived, begin = [], time.perf_counter()
    stream = engine.video(blocks, Clock())
    for block in held_back(stream) if overlapped else stream:
        block.frames_BTCHW.cpu()
        arrived.append(time.perf_counter() - begin)
    return arrived


def _stages(told: dict[str, float], whole: float) -> dict[str, float]:
    """Seconds by stage that add up to the whole block: passes, commits, decoding, scoring, and the rest."""
    stages: tuple[str, ...] = ("pass", "commit", "decode", "score")
    named = {name: told[name] for name in stages if name in told}
    return {**named, "rest": whole - sum(named.values()), "all": whole}


def steady(laps: Sequence[Lap], measured: int) -> dict[str, float]:
    """Median seconds by stage of the last `measured` blocks."""
    last = [lap.seconds for lap in laps[-measured:]]
    return {name: median(one.get(name, 0.0) for one in last) for name in sorted({name for one in last for name in one})}


def weight_bytes(model: CausalWan) -> int:
    """Bytes of a network's weights, as they are stored."""
    return sum(part.nbytes for weight in model.parameters() for part in plain_parts(weight))


def peak_bytes(setting: Setting) -> int | None:
    """The most bytes that were in use on a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated(setting.device) if setting.device.type == "cuda" else None
