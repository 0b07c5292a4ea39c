"""The recipe of the embedded family: every shipped weight from a seed, stage by stage.

Knows: which world, sizes, steps and seeds make the family, and in which order (text, autoencoder, latents, target,
drafter, reward, pack). Does not know: losses (train/), networks (models/), how a run is shown (cli/).
Every stage reads and writes below one runs directory, resumes after a kill, and ends with its part as safetensors.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arvid.caches.window import Window
from arvid.models.family import Card, load_autoencoder
from arvid.models.tae import TIME_STRIDE, TAEConfig, TinyAutoencoder
from arvid.models.text import TextEncoder
from arvid.models.wan.growth import deepen
from arvid.models.wan.presets import EMBEDDED_DRAFTER, EMBEDDED_TARGET
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rewards.frame import FrameReward
from arvid.train.autoencoder import Decoding, LabelledClips, Probe, Reconstruction, psnr
from arvid.train.flow import FlowBatch
from arvid.train.guidance import GuidedForcing
from arvid.train.reading import CellReader, ReadForcing, Told, ToldBatch
from arvid.train.reward import Faithfulness, PairBatch, Pairs
from arvid.train.text import Captions, Reader, Reading, accuracy, vocabulary
from arvid.train.trainer import TrainConfig, train
from arvid.worlds import captions, shapes
from arvid.worlds.grammar import SHAPES, SIZES, THING_COLOURS
from arvid.worlds.labels import Labels, label

Report = Callable[[dict[str, float]], None]
CPU = torch.device("cpu")
FRAMES, PIXEL_FRAMES, BLOCK, WINDOW = 21, 81, 3, 9
LEVELS = (1, 2, 2)
"""Levels of the grammar the pair is trained on: one third one thing, two thirds two things."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. The card of the shipped weights says how many of these steps they had."""

    text_steps: int = 1700
    clips: int = 2400
    vae_steps: int = 1500
    decoder_steps: int = 2000
    latents: int = 7000
    target_steps: int = 2300
    drafter_steps: int = 1400
    reward_steps: int = 1800
    batch: int = 4


# ---------------------------------------------------------------- data


def clip(job: tuple[int, bool, tuple[int, ...]], frames: int = PIXEL_FRAMES) -> tuple[str, np.ndarray]:
    """Prompt and first frames of the clip with a number, from the training or the held-out part."""
    number, held_out, levels = job
    prompt = captions.sample(random.Random(f"{number}-{held_out}"), levels, held_out).prompt
    return prompt, shapes.render(prompt, number, frames)


def labelled(job: tuple[int, bool, tuple[int, ...]]) -> tuple[np.ndarray, Labels]:
    """Frames and labels of the clip with a number."""
    prompt, frames = clip(job)
    return frames, label(prompt, job[0], PIXEL_FRAMES)


def clips(count: int, held_out: bool, levels: tuple[int, ...], start: int = 0) -> tuple[list[str], np.ndarray]:
    """`count` prompts and their frames [count, 81, 64, 64, 3] uint8, rendered on all cores."""
    jobs = [(number, held_out, levels) for number in range(start, start + count)]
    with ProcessPoolExecutor() as pool:
        made = list(pool.map(clip, jobs, chunksize=32))
    return [prompt for prompt, _ in made], np.stack([frames for _, frames in made])


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] -> fp32 [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


# ---------------------------------------------------------------- stages


def text(runs: Path, sizes: Sizes, report: Report) -> None:
    """The text encoder: learns to say what a caption describes; its embeddings are then frozen."""
    torch.manual_seed(0)
    encoder = TextEncoder.build(vocabulary())
    reader = Reader(encoder.train(), encoder.width)
    unknown = encoder.tokenizer.unk_token_id
    held = Captions(encoder.tokens, unknown, 128, (1, 2), held_out=True)
    config = TrainConfig(sizes.text_steps, learning_rate=2e-3, average=0.998, save_every=300, log_every=50)
    source = Captions(encoder.tokens, unknown, 64)
    average = train(
        reader, Reading(reader), source, config, runs / "text" / "train", lambda _: accuracy(reader, held, 4), report
    )
    reader.load_state_dict(average)
    encoder.save(runs / "text" / "encoder")


class Windows:
    """Windows of nine frames, and single frames, of rendered and labelled clips: a pure function of the step."""

    def __init__(self, count: int, levels: tuple[int, ...], batch: int, stills: int) -> None:
        jobs = [(number, False, levels) for number in range(count)]
        with ProcessPoolExecutor() as pool:
            self.clips = list(pool.map(labelled, jobs, chunksize=32))
        self.batch, self.stills = batch, stills

    def __call__(self, step: int) -> LabelledClips:
        rng = np.random.default_rng([7, step])
        return replace(self.cut(rng, self.batch, 9), stills=self.cut(rng, self.stills, 1))

    def cut(self, rng: np.random.Generator, count: int, frames: int) -> LabelledClips:
        """`count` windows of `frames` frames anywhere in the clips."""
        which, starts = rng.integers(0, len(self.clips), count), rng.integers(0, PIXEL_FRAMES - frames + 1, count)
        cuts = [(*self.clips[i], slice(s, s + frames)) for i, s in zip(which, starts, strict=True)]
        ends = [slice(every.start, every.stop, TIME_STRIDE) for _, _, every in cuts]
        return LabelledClips(
            to_pixels(np.stack([film[every] for film, _, every in cuts])),
            torch.from_numpy(np.stack([row[1].shape_TYX[at] for row, at in zip(cuts, ends, strict=True)])).long(),
            torch.from_numpy(np.stack([row[1].size_TYX[at] for row, at in zip(cuts, ends, strict=True)])).long(),
            torch.from_numpy(np.stack([row[1].velocity_TYX2[at] for row, at in zip(cuts, ends, strict=True)])).float(),
            torch.from_numpy(np.stack([found.things_THW[every] for _, found, every in cuts])),
        )


def autoencoder(runs: Path, sizes: Sizes, report: Report) -> None:
    """The autoencoder, on windows of nine frames of clips of all levels; then the statistics of its latents."""
    source = Windows(sizes.clips, (1, 2, 2, 3, 4), 10, 60)
    _, held = clips(48, True, (1, 2, 2, 3, 4))
    torch.manual_seed(0)
    model = TinyAutoencoder().channels_last().train()
    start = runs / "vae" / "start.safetensors"
    if start.exists():
        model.load_state_dict(load_file(start))
    probed = nn.ModuleDict({"vae": model, "probe": Probe(TAEConfig().latent_channels, len(SHAPES), len(SIZES))})
    probe = runs / "vae" / "probe.safetensors"
    if probe.exists():
        probed["probe"].load_state_dict(load_file(probe))
    config = TrainConfig(
        sizes.vae_steps, learning_rate=1.5e-3, average=0.995, weight_decay=0.0, save_every=100, muon="convolve"
    )
    held_pixels = to_pixels(held)

    def numbers(_: object) -> dict[str, float]:
        return {"held_psnr": reconstruction_psnr(model, held_pixels)}

    objective = Reconstruction(model, cast(Probe, probed["probe"]))
    average = train(probed, objective, source, config, runs / "vae", numbers, report)
    probed.load_state_dict(average)
    measure_latents(model.eval(), to_pixels(np.stack([frames for frames, _ in source.clips[:256]])))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, runs / "vae" / "vae.safetensors")


@torch.inference_mode()
def reconstruction_psnr(model: TinyAutoencoder, v_BTCHW: Tensor) -> float:
    """PSNR in dB of encoding and decoding, over all pixels of all clips."""
    errors = []
    for part in v_BTCHW.split(8):
        with torch.autocast("cpu", torch.bfloat16):
            again, _ = model.decode_raw(model.encode_raw(part))
        errors.append((again.float().clamp(-1, 1) - part).square().mean())
    return float(psnr(torch.stack(errors).mean()))


@torch.inference_mode()
def measure_latents(model: TinyAutoencoder, v_BTCHW: Tensor) -> None:
    """Set the per-channel mean and deviation that normalise latents."""
    with torch.autocast("cpu", torch.bfloat16):
        z = torch.cat([model.encode_raw(part).float() for part in v_BTCHW.split(8)])
    model.latent_mean.copy_(z.mean((0, 1, 3, 4)))
    model.latent_std.copy_(z.std((0, 1, 3, 4)))


def decoder(runs: Path, sizes: Sizes, report: Report) -> None:
    """The decoder alone, longer: the encoder stays as it is, so the latents that transformers learn stay valid."""
    model = TinyAutoencoder().channels_last()
    model.load_state_dict(load_file(runs / "vae" / "vae.safetensors"))
    _, pool = clips(sizes.clips // 3, False, (1, 2, 2, 3, 4), 50000)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        parts = [model.encode_raw(to_pixels(part)) for part in np.array_split(pool, len(pool) // 8)]
    encoded = torch.cat(parts).float()
    _, held = clips(32, True, (1, 2, 2), 900)
    held_pixels = to_pixels(held)

    def source(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([13, step])
        which, starts = rng.integers(0, len(pool), 12), rng.integers(0, FRAMES - 2, 12)
        places = list(zip(which, starts, strict=True))
        # A stream that starts at latent s shows the last frame of that latent, pixel frame 4 s, and what follows.
        pixels = np.stack([pool[i, 4 * s : 4 * s + 9] for i, s in places])
        return torch.stack([encoded[i, s : s + 3] for i, s in places]), to_pixels(pixels)

    for p in model.encoder.parameters():
        p.requires_grad_(False)
    config = TrainConfig(
        sizes.decoder_steps, learning_rate=1.5e-3, average=0.995, weight_decay=0.0, save_every=100, muon="convolve"
    )
    average = train(
        model.train(), Decoding(model), source, config, runs / "decoder",
        lambda _: {"held_psnr": reconstruction_psnr(model, held_pixels)}, report,
    )  # fmt: skip
    save_file({k: v.contiguous() for k, v in average.items()}, runs / "decoder" / "vae.safetensors")


PART, FIRSTS = 50, 200
"""A part of the latents: so many whole clips, and so many other clips' first blocks alone."""
TOGETHER = 10
"""First blocks that go with every whole clip of a batch."""
GUIDANCE = 2.0
"""Scale of the guidance that first blocks learn."""
UNTOLD = 0.1
"""Share of clips that are shown without their text, so that a model can be guided away from what it makes untold."""
_MODELS: dict[str, tuple[TinyAutoencoder, TextEncoder]] = {}


def encoded(job: tuple[str, int]) -> dict[str, Tensor]:
    """One part: latents [50, 21, C, h, w] and text [50, 64, D] of whole clips, `first` [200, 3, C, h, w] and
    `first_text` of first blocks, fp16; and what stands in their cells (see `told`) as `latents_classes`,
    `latents_velocity`, `first_classes`, `first_velocity`. One thread: parts are made side by side."""
    runs, part = Path(job[0]), job[1]
    torch.set_num_threads(1)
    if job[0] not in _MODELS:
        _MODELS[job[0]] = (load_autoencoder(runs / "vae", CARD, CPU), TextEncoder.load(runs / "text" / "encoder"))
    model, encoder = _MODELS[job[0]]
    made: dict[str, Tensor] = {}
    kinds = (("latents", "text", PART, PIXEL_FRAMES), ("first", "first_text", FIRSTS, TIME_STRIDE * (BLOCK - 1) + 1))
    for name, words, count, frames in kinds:
        start = (100000 if name == "latents" else 1000000) + part * count
        jobs = [(number, False, LEVELS) for number in range(start, start + count)]
        rows = [clip(job, frames) for job in jobs]
        made |= {f"{name}_{what}": x for what, x in told(jobs, [row[0] for row in rows], frames).items()}
        with torch.inference_mode():
            z = [model.encode(to_pixels(np.stack([row[1] for row in rows[i : i + 10]]))) for i in range(0, count, 10)]
            text = [encoder.encode([row[0] for row in rows[i : i + 50]]) for i in range(0, count, 50)]
        made[name], made[words] = torch.cat(z).to(torch.float16), torch.cat(text).to(torch.float16)
    return made


def told(jobs: Sequence[tuple[int, bool, tuple[int, ...]]], prompts: list[str], frames: int) -> dict[str, Tensor]:
    """What stands in every cell of every latent frame of clips: `classes` [N, T, Y, X, 3] uint8 (shape, size, colour)
    and `velocity` [N, T, Y, X, 2] fp16."""
    found = [label(prompt, number, frames) for prompt, (number, _, _) in zip(prompts, jobs, strict=True)]
    classes = [np.stack([row.shape_TYX, row.size_TYX, row.colour_TYX], -1)[::TIME_STRIDE] for row in found]
    velocity = [row.velocity_TYX2[::TIME_STRIDE] for row in found]
    return {"classes": torch.from_numpy(np.stack(classes)), "velocity": torch.from_numpy(np.stack(velocity))}


def latents(runs: Path, sizes: Sizes, report: Report) -> None:
    """Latents and text embeddings of training clips, in parts that are skipped when they exist."""
    directory = runs / "latents"
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{part:04d}.safetensors" for part in range(sizes.latents // PART)]
    missing = [part for part, path in enumerate(paths) if not path.exists()]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for part, made in zip(missing, pool.map(encoded, ((str(runs), part) for part in missing)), strict=True):
            whole = paths[part].with_suffix(".part")
            save_file(made, whole)
            whole.rename(paths[part])
            report({"clips": float((part + 1) * PART)})


class Encoded:
    """The parts that `latents` made, in memory, and batches of them."""

    def __init__(self, directory: Path) -> None:
        parts = [load_file(path) for path in sorted(directory.glob("*.safetensors"))]
        self.rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def batch(self, step: int, size: int) -> ToldBatch:
        """`size` whole clips and TOGETHER times as many first blocks: a pure function of the step."""
        rng, rows = np.random.default_rng([11, step]), self.rows
        whole = torch.from_numpy(rng.integers(0, len(rows["latents"]), size))
        more = torch.from_numpy(rng.integers(0, len(rows["first"]), TOGETHER * size))
        said = torch.from_numpy(rng.random(size + len(more)) >= UNTOLD).float()[:, None, None]
        clips = FlowBatch(
            rows["latents"][whole].float(), rows["text"][whole].float() * said[:size],
            (rows["first"][more].float(), rows["first_text"][more].float() * said[size:]),
        )  # fmt: skip
        return ToldBatch(
            clips,
            Told(rows["latents_classes"][whole], rows["latents_velocity"][whole].float()),
            Told(rows["first_classes"][more], rows["first_velocity"][more].float()),
        )


def flow(runs: Path, name: str, config: WanConfig, steps: int, batch: int, rate: float, report: Report) -> None:
    """A transformer by teacher forcing on the latents of `latents`; from `start.safetensors` in its folder if there is
    one (weights of the same widths and at most as many blocks, to train them further), else from nothing."""
    data = Encoded(runs / "latents")
    model = CausalWan(config)
    model.initialise(torch.Generator().manual_seed(0))
    start = runs / name / "start.safetensors"
    if start.exists():
        model.load_state_dict(deepen({key: value.float() for key, value in load_file(start).items()}, config))
    reader = CellReader(config.dim, config.patch_size[1:], (len(SHAPES) + 1, len(SIZES) + 1, len(THING_COLOURS) + 1))
    forcing = GuidedForcing(model, FRAMES, BLOCK, Window(WINDOW), GUIDANCE)
    objective = ReadForcing(forcing, reader, model.blocks[config.num_layers // 2])
    settings = TrainConfig(
        steps, learning_rate=rate, warmup=100, average=0.997, weight_decay=0.02, save_every=100, muon="blocks."
    )
    trained = nn.ModuleDict({"model": model, "reader": reader})
    average = train(trained, objective, lambda step: data.batch(step, batch), settings, runs / name, None, report)
    weights = {key.removeprefix("model."): value for key, value in average.items() if key.startswith("model.")}
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}, runs / name / "model.safetensors")


def target(runs: Path, sizes: Sizes, report: Report) -> None:
    """The target."""
    flow(runs, "target", EMBEDDED_TARGET, sizes.target_steps, sizes.batch, 2e-3, report)


def drafter(runs: Path, sizes: Sizes, report: Report) -> None:
    """The drafter: same data, same objective, a fraction of the size."""
    flow(runs, "drafter", EMBEDDED_DRAFTER, sizes.drafter_steps, sizes.batch, 1.5e-3, report)


def reward(runs: Path, sizes: Sizes, report: Report) -> None:
    """The frame reward: first on drawn frames alone, then on frames that went through the autoencoder as well."""
    encoder = TextEncoder.load(runs / "text" / "encoder")

    @torch.no_grad()
    def read(prompts: list[str]) -> Tensor:
        words, mask = encoder.tokens(prompts)
        longest = int(mask.sum(1).max())
        return cast(Tensor, encoder(words[:, :longest], mask[:, :longest]))

    drawn, decoded = Pairs(read, None, seed=0), Pairs(read, load_autoencoder(runs / "vae", CARD, CPU), seed=0)

    def source(step: int) -> PairBatch:
        return drawn(step) if step < sizes.reward_steps * 2 // 3 else decoded(step)

    torch.manual_seed(0)
    model = FrameReward(read)
    config = TrainConfig(sizes.reward_steps, 1.5e-3, average=0.995)
    average = train(model, Faithfulness(model), source, config, runs / "reward", None, report)
    model.load_state_dict(average)
    model.to(torch.bfloat16).save(runs / "reward" / "model")


def pack(runs: Path, sizes: Sizes, report: Report) -> None:
    """Put the family together in `runs/family`, in the layout of `models.family`: bf16 weights and the card."""
    out = runs / "family"
    out.mkdir(parents=True, exist_ok=True)
    TextEncoder.load(runs / "text" / "encoder").save(out / "text")
    vae = load_file(runs / "decoder" / "vae.safetensors")
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in vae.items()}, out / "vae.safetensors")
    for part in ("target", "drafter"):
        shutil.copyfile(runs / part / "model.safetensors", out / f"{part}.safetensors")
    for name in ("reward", "latent_judge", "block_judge"):
        if (runs / name / "model").is_dir():
            shutil.copytree(runs / name / "model", out / name, dirs_exist_ok=True)
    (out / "card.json").write_text(json.dumps(asdict(CARD), indent=2) + "\n", encoding="utf-8")
    report({"bytes": float(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))})


CARD = Card(
    name="embedded",
    block=BLOCK,
    trained_frames=FRAMES,
    size=(shapes.SIZE, shapes.SIZE),
    fps=shapes.FPS,
    steps=4,
    step="euler",
    past=f"window:frames={WINDOW}",
    router="refine:levels=0.9,draft_steps=1",
    parts={
        "target": asdict(EMBEDDED_TARGET),
        "drafter": asdict(EMBEDDED_DRAFTER),
        "vae": asdict(TAEConfig()),
        "reward": {},
    },
)

Stage = Callable[[Path, Sizes, Report], None]
STAGES: dict[str, Stage] = {
    "text": text,
    "vae": autoencoder,
    "latents": latents,
    "decoder": decoder,
    "target": target,
    "drafter": drafter,
    "reward": reward,
    "pack": pack,
}
"""Stages in the order in which they need each other."""
