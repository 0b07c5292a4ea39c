"""Merging weights for pasts that merge, trained on a frozen family, and the profile of its heads.

Knows: which past a family's target should be led to by its merged one (the full one), clips of the shapes world, sizes
and rates. Does not know: how tokens are merged (`caches/merging`), optimisers (`train/trainer`).

Each of `pack`, `coarse` and `conv` begins as the average. A training step writes a true clip into a merged past and
into the full one; the weights learn that the flow of the next noisy block is the same behind both. Nothing of the model
changes. The published compressors are other ones (PackForcing, 2603.25730, has one on latents; SoulX-LiveAct,
2603.11746, trains its convolution with the model; FAR, 2503.19325, has a patch embedding for coarse frames); what is
theirs is where merging happens, not these weights.

    RUNS/compressors/clips.safetensors    latents and texts
    RUNS/compressors/pack.safetensors     what `weights=` of a past takes; coarse, conv
    RUNS/compressors/heads.json           what `profile=` of headwise takes
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arvid.caches.coarse import Coarse
from arvid.caches.convolved import Convolved
from arvid.caches.full import Full
from arvid.caches.merging import Merge
from arvid.caches.packed import Pack
from arvid.caches.policy import Policy
from arvid.caches.positions import Relative, Rephased
from arvid.caches.profile import Profiling, write_profile
from arvid.caches.store import Store
from arvid.models.family import Card, fill, read_card, transformer_config
from arvid.models.wan.transformer import CausalWan
from arvid.pipeline import EMBEDDED, Encoder, Family, load
from arvid.samplers.grids import few_step
from arvid.train.flow import Context, noise_like
from arvid.train.trainer import TrainConfig, train
from arvid.types import Positions, Span
from arvid.worlds import captions, shapes

FOLDER = "compressors"
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Sizes:
    """How much of everything: clips to train on and held-out ones, steps, clips of a step, clips of the profile."""

    clips: int = 64
    held: int = 4
    pack_steps: int = 200
    coarse_steps: int = 200
    conv_steps: int = 200
    batch: int = 2
    profiled: int = 8


@dataclass(frozen=True)
class Kind:
    """A past that merges: the number of tokens it makes one, the past with such weights, and where frames stand."""

    group: int
    past: Callable[[Merge], Policy]
    positions: Positions


KINDS: dict[str, Kind] = {
    "pack": Kind(12, lambda weights: Pack(frames=9, sink=3, recent=3, weights=weights), Rephased()),
    "coarse": Kind(4, lambda weights: Coarse(frames=9, fine=6, weights=weights), Relative()),
    "conv": Kind(4, lambda weights: Convolved(frames=9, sink=3, ratio=4, weights=weights), Rephased()),
}
"""The sizes of a group do not depend on a budget, so weights serve all of them."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Clean latents z_BTCHW and texts [B, S, D]."""

    z_BTCHW: Tensor
    text_BSD: Tensor

    def some(self, chosen: Tensor, frames: int) -> Clips:
        """The beginnings of some clips."""
        return Clips(self.z_BTCHW[chosen, :frames], self.text_BSD[chosen])


# ---------------------------------------------------------------- what is learned


def write(model: CausalWan, stores: Sequence[Store], clips: Clips, block: int) -> Context:
    """Write all blocks of clips but the last into pasts, in one causal pass without gradients (merging carries them).
    Nothing was written before, so the keys are the same for all. What the prompts are to the model."""
    start = clips.z_BTCHW.shape[1] - block
    past = Span(0, start)
    with torch.no_grad():
        context = model.read_text(clips.text_BSD)
        clean_BT = torch.zeros(len(clips.z_BTCHW), start)
        views = [store.view(past) for store in stores]
        memory = model.flow(clips.z_BTCHW[:, :start], clean_BT, context, views[0], tuple(range(start))).memory
    for store in stores:
        store.commit(past, memory)
    return context


def flow(model: CausalWan, store: Store, context: Context, x_BTCHW: Tensor, sigma: float, start: int) -> Tensor:
    """Flow of the block at `start`, given as noise x_BTCHW at level `sigma`, behind a past."""
    batch, block = x_BTCHW.shape[:2]
    frames = tuple(range(start, start + block))
    levels_BT = torch.full((batch, block), sigma)
    return model.flow(x_BTCHW, levels_BT, context, store.view(Span(start, start + block)), frames).flow_BTCHW


@dataclass(frozen=True, eq=False)
class Compressing:
    """The objective of merging weights: the squared difference of flows behind the merged and the full past."""

    model: CausalWan
    kind: Kind
    merge: Merge
    block: int
    levels: tuple[float, ...]

    def __call__(self, clips: Clips, generator: torch.Generator) -> dict[str, Tensor]:
        """Of clips, at a level and with noise drawn from the generator."""
        place = int(torch.randint(len(self.levels), (), generator=generator))
        last = clips.z_BTCHW[:, -self.block :]
        noise = noise_like(last, generator)
        return {"loss": self.distance(clips, noise, self.levels[place])}

    def distance(self, clips: Clips, noise_BTCHW: Tensor, sigma: float) -> Tensor:
        """Mean square of the difference."""
        start = clips.z_BTCHW.shape[1] - self.block
        x_BTCHW = (1 - sigma) * clips.z_BTCHW[:, start:] + sigma * noise_BTCHW
        merged = Store(self.kind.past(self.merge), self.block, self.kind.positions)
        full = Store(Full(), self.block)
        context = write(self.model, (merged, full), clips, self.block)
        with torch.no_grad():
            wanted = flow(self.model, full, context, x_BTCHW, sigma, start)
        return nn.functional.mse_loss(flow(self.model, merged, context, x_BTCHW, sigma, start), wanted)


def held_out(compressing: Compressing, clips: Clips) -> dict[str, float]:
    """Mean distance on whole held-out clips, over the levels, with the same noise each time: by the average, and by the
    weights as they are."""
    last = clips.z_BTCHW[:, -compressing.block :]
    noise = noise_like(last, torch.Generator().manual_seed(1))
    found = {}
    for name, merge in (("average", Merge(*_sizes(compressing))), ("trained", compressing.merge)):
        one = Compressing(compressing.model, compressing.kind, merge, compressing.block, compressing.levels)
        with torch.no_grad():
            found[name] = float(np.mean([float(one.distance(clips, noise, sigma)) for sigma in one.levels]))
    return found


def _sizes(compressing: Compressing) -> tuple[int, int, int]:
    layers, _, group, channels = compressing.merge.weight.shape
    return layers, group, channels


# ---------------------------------------------------------------- stages


def make_clips(runs: Path, sizes: Sizes, report: Report) -> None:
    """Render clips of the training part and of the held-out part of the world, and encode them."""
    path = runs / FOLDER / "clips.safetensors"
    if path.is_file():
        return
    family = load(EMBEDDED)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = 1 + 4 * (family.card.trained_frames - 1)
    found: dict[str, list[Tensor]] = {"train": [], "train_text": [], "held": [], "held_text": []}
    for part, count in (("train", sizes.clips), ("held", sizes.held)):
        rng = random.Random(f"compressors/{part}")
        for number in range(count):
            prompt = captions.sample(rng, (1, 2), held_out=part == "held").prompt
            z_BTCHW, text_BSD = _encoded(family, shapes.render(prompt, number, frames), prompt)
            found[part].append(z_BTCHW)
            found[f"{part}_text"].append(text_BSD)
            report({"clips": len(found["train"]) + len(found["held"])})
    save_file({name: torch.cat(tensors).contiguous() for name, tensors in found.items()}, path)


@torch.no_grad()
def _encoded(family: Family, frames_THWC: np.ndarray, prompt: str) -> tuple[Tensor, Tensor]:
    if not isinstance(family.decoder, Encoder):
        raise ValueError(f"the decoder of {family.card.name} cannot encode; take a family that can")
    v_BTCHW = torch.from_numpy(frames_THWC).movedim(-1, 1).float()[None] / 127.5 - 1
    return family.decoder.encode(v_BTCHW).float(), family.text.encode([prompt]).float()


def compress(name: str) -> Callable[[Path, Sizes, Report], None]:
    """The stage that trains the weights of one kind."""

    def stage(runs: Path, sizes: Sizes, report: Report) -> None:
        told = load_file(clips_of(runs))
        card, model = frozen(EMBEDDED)
        block = card.block
        kind, config = KINDS[name], model.config
        merge = Merge(config.num_layers, kind.group, config.dim)
        levels = few_step(4)[:-1]
        objective = Compressing(model, kind, merge, block, levels)
        clips = Clips(told["train"], told["train_text"])
        held = Clips(told["held"], told["held_text"])

        def source(step: int) -> Clips:
            rng = np.random.default_rng([23, step])
            chosen = torch.from_numpy(rng.integers(0, len(clips.z_BTCHW), sizes.batch))
            # Behind nine frames something is merged by every kind.
            return clips.some(chosen, block * int(rng.integers(5, clips.z_BTCHW.shape[1] // block + 1)))

        settings = TrainConfig(
            getattr(sizes, f"{name}_steps"), learning_rate=3e-3, warmup=20, weight_decay=0.0, average=0.98,
            save_every=100,
        )  # fmt: skip
        weights = train(
            merge, objective, source, settings, runs / FOLDER / name, lambda _: held_out(objective, held), report
        )
        save_file({"weight": weights["weight"].contiguous()}, runs / FOLDER / f"{name}.safetensors")

    return stage


@torch.no_grad()
def heads(runs: Path, sizes: Sizes, report: Report) -> None:
    """Which heads of the target look at the last frames alone, over clips that are written block by block."""
    told = load_file(clips_of(runs))
    card, model = frozen(EMBEDDED)
    block, profiling = card.block, Profiling()
    for number in range(min(sizes.profiled, len(told["train"]))):
        store, context = Store(profiling, block), model.read_text(told["train_text"][number : number + 1])
        z_BTCHW = told["train"][number : number + 1]
        for start in range(0, z_BTCHW.shape[1], block):
            span = Span(start, min(start + block, z_BTCHW.shape[1]))
            frames = tuple(range(span.start, span.stop))
            clean_BT = torch.zeros(1, len(span))
            part = z_BTCHW[:, span.start : span.stop]
            store.commit(span, model.flow(part, clean_BT, context, store.view(span), frames).memory)
        report({"clips": number + 1})
    static = profiling.static()
    write_profile(static, runs / FOLDER / "heads.json")
    report({"static": sum(map(len, static)), "heads": len(static) * model.config.num_heads})


def clips_of(runs: Path) -> Path:
    """The clips. Raises ValueError when they were not made."""
    path = runs / FOLDER / "clips.safetensors"
    if not path.is_file():
        raise ValueError(f"no clips in {path.parent}; make them by `arvid train compressors --stage clips`")
    return path


def frozen(directory: Path) -> tuple[Card, CausalWan]:
    """The card and the target of a family in fp32, which learns nothing; what a family runs with is half as exact and
    lets no gradient through. Raises ValueError for missing or damaged files."""
    card = read_card(directory)
    model = CausalWan(transformer_config(card, "target"))
    fill(model, directory / "target.safetensors")
    return card, model.eval().requires_grad_(False)


STAGES: Mapping[str, Callable[[Path, Sizes, Report], None]] = {
    "clips": make_clips,
    **{name: compress(name) for name in KINDS},
    "heads": heads,
}
"""Stages in the order in which they need each other."""
