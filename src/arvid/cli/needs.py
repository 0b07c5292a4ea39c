"""What the parts of a run need of memory: each part's own code, run without data.

Knows: which parts a model has by its name, its family directory or its checkpoint, the order in which a rollout uses
them and what it holds meanwhile. Does not know: machines, ways to make a run fit (models/planning.py), arguments.

The last block of a video is looked at, where the past is longest. A transformer is measured as the walker drives it:
the block before is still at hand, what is pending is written first, then two passes are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, UMT5Config, UMT5EncoderModel

from arvid import spec
from arvid.caches.policies import POLICIES
from arvid.caches.store import Policy, Store
from arvid.families import Found, RewardAt, Source, directory_of, is_checkpoint, survey
from arvid.models.checkpoints.reading import open_checkpoint
from arvid.models.family import CARD, Card, read_card, transformer_config
from arvid.models.planning import META, Ledger, Need, by_layers, need
from arvid.models.tae import SPACE_STRIDE, TIME_STRIDE, TAEConfig, TinyAutoencoder
from arvid.models.umt5 import xxl
from arvid.models.wan.presets import PRESETS
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.models.wan.vae import WanAutoencoder
from arvid.rewards.clip import ClipScore
from arvid.rewards.frame import FrameReward, FrameRewardConfig
from arvid.rewards.hps import vit_h_14
from arvid.rewards.image_reward import ImageReward
from arvid.rollout.flow import TOGETHER, FlowWalker
from arvid.rollout.routers import ROUTERS, Target
from arvid.rollout.specs import Spec
from arvid.rollout.stage import Clock
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.types import Condition, Move, Plan, Span

DTYPE = torch.bfloat16
WAN_CARD = Card("wan", 3, 21, (832, 480), 16, 4, "renoise", "window:frames=18", "reward:tau=-0.7")
"""How the published causal models are run: blocks of 3 latent frames, 480p, 21 frames in sight with the block's own."""
WIDE, SHORT = 5120, "window:frames=3"
"""Models of 14 B (Krea Realtime) are run on 3 frames of past, and so is a pair with one of them."""
LEVELS = (1.0, 0.5, 0.0)
"""Two passes: the second is made while what the first left is still there, and a third would add nothing."""

Run = Callable[[Any, Ledger], tuple[int, int]]


@dataclass(frozen=True)
class Parts:
    """A model's parts: sizes of its transformers, and the others as what makes and what runs them; `card` says how it
    is run."""

    card: Card
    target: WanConfig
    drafter: WanConfig | None
    text: tuple[Callable[[], nn.Module], Run]
    decoder: Callable[[], nn.Module]
    reward: tuple[Callable[[], nn.Module], Run] | None


@dataclass(frozen=True)
class Ask:
    """What is to be made: pixels (width, height), seconds, and spec strings of the past and the router (empty: the
    card's)."""

    size: tuple[int, int] | None = None
    seconds: float = 5.0
    past: str = ""
    router: str = ""


def parts_of(model: str, drafter: str = "", source: Source | None = None) -> Parts:
    """The parts of a model: `embedded`, a family directory, a published size (wan-1.3b, wan-14b), or a checkpoint of a
    Wan transformer, of which `source` may say more; `drafter` likewise. What does not lie beside a checkpoint is taken
    to be of the published size. Raises ValueError for a name that is none of them."""
    directory = directory_of(model)
    if (directory / CARD).is_file():
        found = _of_family(directory)
        return replace(found, drafter=_size(drafter, "drafter")) if drafter else found
    if model not in PRESETS and is_checkpoint(model):
        own = drafter if is_checkpoint(drafter) else ""
        found = parts_as_found(survey(replace(source or Source(model), drafter=own)))
        return replace(found, drafter=_size(drafter, "drafter")) if drafter and not own else found
    target = _size(model, "target")
    small = _size(drafter, "drafter") if drafter else None
    past = SHORT if target.dim >= WIDE else WAN_CARD.past
    return Parts(
        replace(WAN_CARD, name=model, router=WAN_CARD.router if drafter else "target", past=past), target, small,
        (lambda: UMT5EncoderModel(xxl()), _read(PRESETS["wan-1.3b"].text_len)),
        lambda: WanAutoencoder.build({}),
        (lambda: ImageReward(None), _look) if small else None,
    )  # fmt: skip


def parts_as_found(found: Found) -> Parts:
    """The parts of a checkpoint and of what lies beside it; what is missing is of the published size."""
    config, drafter = found.target.config, found.drafter
    text = found.text.config if found.text else xxl()
    vae = found.vae.build if found.vae else lambda: WanAutoencoder.build({})
    return Parts(
        found.card, config, drafter.config if drafter else None,
        (lambda: UMT5EncoderModel(text), _read(config.text_len)), vae, _scorer(found.reward) if found.reward else None,
    )  # fmt: skip


def _scorer(found: RewardAt) -> tuple[Callable[[], nn.Module], Run]:
    """What makes and what runs a reward."""
    if found.kind == "image-reward":
        return (lambda: ImageReward(None)), _look
    sizes = vit_h_14() if found.kind == "hps" else CLIPConfig.from_pretrained(str(found.path), local_files_only=True)
    return (lambda: ClipScore(CLIPModel(sizes), None)), _see


def _size(name: str, part: str) -> WanConfig:
    """Sizes of the transformer called `name`, in its role `part`."""
    if name in PRESETS:
        return PRESETS[name]
    directory = directory_of(name)
    if (directory / CARD).is_file():
        card = read_card(directory)
        if part not in card.parts:
            raise ValueError(f"{directory} has no {part}; its parts: {', '.join(sorted(card.parts))}")
        return transformer_config(card, part)
    if not Path(name).exists() and "/" not in name:
        raise ValueError(f"unknown model {name!r}; known: embedded, {', '.join(sorted(PRESETS))}, or a path")
    return open_checkpoint(name).config


def _of_family(directory: Path) -> Parts:
    card = read_card(directory)
    target = transformer_config(card, "target")
    vae = _settings(card.parts["vae"])
    reward = None
    if "reward" in card.parts:
        told = json.loads((directory / "reward" / "config.json").read_text(encoding="utf-8"))
        config = FrameRewardConfig(**_settings(told))
        reward = (lambda: FrameReward(_nothing, config), _glance)
    text = UMT5Config.from_pretrained(str(directory / "text"), local_files_only=True)
    drafter = transformer_config(card, "drafter") if "drafter" in card.parts else None
    return Parts(
        card, target, drafter, (lambda: UMT5EncoderModel(text), _read(target.text_len)),
        lambda: TinyAutoencoder(TAEConfig(**vae)), reward,
    )  # fmt: skip


def _settings(plain: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where our configurations have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}


def needs_of(parts: Parts, ask: Ask, together: int = TOGETHER) -> list[Need]:
    """What every part needs for a request, where up to `together` pending blocks are written in one pass (on a GPU each
    alone). Raises ValueError for a request that no plan can be made of."""
    width, height = ask.size or parts.card.size
    plan = plan_of(parts, ask)
    config = parts.target
    grid = [SPACE_STRIDE * side for side in (config.patch_size[2], config.patch_size[1])]
    if width % grid[0] or height % grid[1] or not width * height:
        raise ValueError(f"size {width}x{height}: sides must be multiples of {grid[0]} and {grid[1]}")
    shape = (1, parts.card.block, config.in_dim, height // SPACE_STRIDE, width // SPACE_STRIDE)
    policy = spec.build(ask.past or parts.card.past, POLICIES, "past")
    router = _router(parts, ask)
    wide = (1, max(len(move.span) for move in plan), *shape[2:])
    drafting = parts.drafter is not None and not isinstance(router, Target)
    together = min(together, max(1, len(plan) - 1)) if drafting else 1
    found = [_transformer("target", config, policy, plan, shape, together)]
    if parts.drafter is not None and drafting:
        found.append(_transformer("drafter", parts.drafter, policy, plan, shape, 1))
    found.append(need("text", *parts.text, DTYPE))
    found.append(need("decoder", parts.decoder, _decode(wide, 2 if drafting and parts.reward else 1), DTYPE))
    if parts.reward and drafting:
        make, run = parts.reward
        frames = (wide[1] * TIME_STRIDE, 3, height, width)
        found.append(need("reward", make, lambda module, ledger: run((module, frames), ledger), DTYPE))
    return found


def plan_of(parts: Parts, ask: Ask) -> Plan:
    """The moves of a request. Raises ValueError for no seconds."""
    if not 0 < ask.seconds <= 86400:
        raise ValueError(f"{ask.seconds} seconds asked for; give more than 0 and at most 86400 (a day)")
    frames = max(1, round(ask.seconds * parts.card.fps / TIME_STRIDE) + 1)
    return sequential(frames, parts.card.block, LEVELS, ahead=_router(parts, ask).ahead)


def _router(parts: Parts, ask: Ask) -> Spec:
    return spec.build(ask.router or parts.card.router, ROUTERS, "router")


class _Blank:
    """Noise without numbers."""

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """An empty tensor (see `arvid.types.Noise`)."""
        return torch.empty(shape, device=META)


def _transformer(
    role: str, config: WanConfig, policy: Policy, plan: Plan, shape: tuple[int, ...], together: int
) -> Need:
    """The need of a transformer that writes `together` pending blocks at once before it walks the last of `plan`."""

    def measure(layers: int) -> tuple[int, ...]:
        config = small(layers)
        one = need(role, lambda: CausalWan(config), lambda model, ledger: walk(model, config, ledger), DTYPE)
        return one.parameters, one.weights, one.kept, one.working

    def small(layers: int) -> WanConfig:
        return replace(config, num_layers=layers)

    def walk(model: CausalWan, config: WanConfig, ledger: Ledger) -> tuple[int, int]:
        last = plan[-1]
        moves = plan[-1 - together : -1] or (last,)
        past = Store(policy, shape[1])
        _fill(past, policy, moves[0].span.start, config, shape)
        walker = FlowWalker(role, model, past, STEPS["renoise"], Clock())
        condition = Condition("", torch.empty(1, config.text_len, config.text_dim, device=META))
        held: list[Any] = [walker.walk(moves[0], _noise(moves[0], shape), LEVELS, condition, _Blank())]
        for move in moves:
            walker.remember(move, _noise(move, shape), condition)
        held.append(walker.snapshot())  # a video can go back by one block, also in the middle of the next
        kept = ledger.mark()
        held.append(walker.walk(last, _noise(last, shape), LEVELS, condition, _Blank()))
        return kept, ledger.peak - kept

    parameters, weights, kept, working = by_layers(config.num_layers, measure)
    return Need(role, parameters, weights, kept, working, config.num_layers)


def _noise(move: Move, shape: tuple[int, ...]) -> Tensor:
    """Latents of the block of `move`."""
    return torch.empty(shape[0], len(move.span), *shape[2:], device=META)


def _fill(past: Store, policy: Policy, start: int, config: WanConfig, shape: tuple[int, ...]) -> None:
    """Commit what a block that begins at `start` may read."""
    tokens = shape[3] * shape[4] // (config.patch_size[1] * config.patch_size[2])
    for span in _runs(policy.visible(tuple(range(start)), start)):
        sides = (1, len(span) * tokens, config.num_heads, config.dim // config.num_heads)
        empty = torch.empty(sides, dtype=DTYPE, device=META)
        past.commit(span, tuple((empty, empty) for _ in range(config.num_layers)))


def _runs(frames: tuple[int, ...]) -> Iterator[Span]:
    """Frames as spans of neighbours."""
    start = 0
    for place in range(1, len(frames) + 1):
        if place == len(frames) or frames[place] != frames[place - 1] + 1:
            yield Span(frames[start], frames[place - 1] + 1)
            start = place


def _decode(shape: tuple[int, ...], candidates: int) -> Run:
    """Decoding of a block of which there are `candidates`; the frames of the block before and the state behind it are
    still at hand."""

    def run(decoder: Any, ledger: Ledger) -> tuple[int, int]:
        _, state = decoder.decode(torch.empty(1, 2, *shape[2:], device=META))
        before = decoder.decode(torch.empty(shape, device=META), state)
        del state
        kept = ledger.mark()
        held = [decoder.decode(torch.empty(shape, device=META), before[1]) for _ in range(candidates)]
        del held
        return kept, ledger.peak - kept

    return run


def _read(length: int) -> Run:
    """Encoding of a prompt."""

    def run(encoder: Any, ledger: Ledger) -> tuple[int, int]:
        # Without a mask: whether one is needed is decided by its values, and there are none.
        held = encoder(input_ids=torch.empty(1, length, dtype=torch.int64, device=META)).last_hidden_state
        embedding = held.float()
        del held
        return embedding.nbytes, ledger.peak - embedding.nbytes

    return run


def _look(given: tuple[ImageReward, tuple[int, ...]], ledger: Ledger) -> tuple[int, int]:
    """ImageReward's preparation of all frames of a block and its view of them; what the text does is small beside."""
    model, frames = given
    x_NCHW = model.prepare(torch.empty(frames, dtype=DTYPE, device=META), model.config.side).to(DTYPE)
    model.vision(pixel_values=x_NCHW)
    return 0, ledger.peak


def _see(given: tuple[ClipScore, tuple[int, ...]], ledger: Ledger) -> tuple[int, int]:
    """CLIP's preparation of all frames of a block and its view of them."""
    model, frames = given
    side = int(model.model.config.vision_config.image_size)
    x_NCHW = model.prepare(torch.empty(frames, dtype=DTYPE, device=META), side).to(DTYPE)
    model.model.vision_model(pixel_values=x_NCHW)
    return 0, ledger.peak


def _glance(given: tuple[FrameReward, tuple[int, ...]], ledger: Ledger) -> tuple[int, int]:
    """The frame reward's convolutions over all frames of a block, its largest tensors."""
    model, frames = given
    model.stem(torch.empty(frames[0], 3, model.config.size, model.config.size, dtype=DTYPE, device=META))
    return 0, ledger.peak


def _nothing(prompts: list[str]) -> Tensor:
    raise ValueError(f"{len(prompts)} prompts for a reward that is only measured")
