"""The recipe of the embedded family: every shipped weight from a seed, stage by stage.

Knows: which world, sizes, steps and seeds make the family, and in which order (text, autoencoder, latents, target,
drafter, reward, pack). Does not know: losses (train/), networks (models/), how a run is shown (cli/).
Every stage reads and writes below one runs directory, resumes after a kill, and ends with its part as safetensors.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arvid.caches.window import Window
from arvid.models.family import Card, load_autoencoder
from arvid.models.tae import TIME_STRIDE, TAEConfig, TinyAutoencoder
from arvid.models.text import TextEncoder
from arvid.models.wan.presets import EMBEDDED_DRAFTER, EMBEDDED_TARGET
from arvid.models.wan.transformer import WanConfig
from arvid.recipes.transformers import (
    RATE,
    Encoded,
    begun,
    flow_settings,
    held_numbers,
    in_parts,
    keep,
    seal,
    sizes_of,
    weights_of,
)
from arvid.recipes.world import BLOCK, PIXEL_FRAMES, changing, clips, labelled_clips, labels, scene, to_pixels
from arvid.rewards.frame import FrameReward
from arvid.rewards.judges import JUDGES, MARKING, REMARKING
from arvid.train.asking import classes
from arvid.train.autoencoder import Decoding, EncodedClips, LabelledClips, Probe, Reconstruction, psnr
from arvid.train.drafting import DraftForcing
from arvid.train.guidance import GuidedForcing
from arvid.train.placing import here
from arvid.train.reading import CellReader, ReadForcing, Told
from arvid.train.reward import Faithfulness, PairBatch, Pairs, Seeing, Sights, cell_reader
from arvid.train.text import Captions, Reader, Reading, accuracy, vocabulary
from arvid.train.trainer import TrainConfig, train
from arvid.worlds import shapes
from arvid.worlds.grammar import SHAPES, SIZES, THING_COLOURS, parse

Report = Callable[[dict[str, float]], None]
CPU = torch.device("cpu")
FRAMES, WINDOW = 21, 9
WINDOWS = (6, WINDOW, WINDOW, 12, 18)
"""Frames of the past on view in training, one of them a step; 18 is all there is."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `rate` is the learning rate of the transformers."""

    text_steps: int = 1700
    clips: int = 2400
    vae_steps: int = 3000
    decoder_steps: int = 16000
    latents: int = 7000
    target_steps: int = 3500
    drafter_steps: int = 4000
    reward_steps: int = 1800
    batch: int = 4
    rate: float = RATE


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
        self.clips = labelled_clips(count, levels)
        self.batch, self.stills = batch, stills

    def __call__(self, step: int) -> LabelledClips:
        rng = np.random.default_rng([7, step])
        return replace(self.cut(rng, self.batch, 9), stills=self.cut(rng, self.stills, 1))

    def cut(self, rng: np.random.Generator, count: int, frames: int) -> LabelledClips:
        """`count` windows of `frames` frames anywhere in the clips."""
        which, starts = rng.integers(0, len(self.clips), count), rng.integers(0, PIXEL_FRAMES - frames + 1, count)
        cuts = [(*self.clips[i], slice(s, s + frames)) for i, s in zip(which, starts, strict=True)]
        ends = [slice(every.start, every.stop, TIME_STRIDE) for _, _, every in cuts]
        here = [(found, at) for (_, found, _), at in zip(cuts, ends, strict=True)]
        classes = [np.stack([found.shape_TYX[at], found.size_TYX[at]], -1) for found, at in here]
        paces, offsets = [found.velocity_TYX2[at] for found, at in here], [found.offset_TYX2[at] for found, at in here]
        told = Told(
            torch.from_numpy(np.stack(classes)), torch.from_numpy(np.stack(paces)).float(),
            torch.from_numpy(np.stack(offsets)).float(), torch.ones(count, len(classes[0])).bool(),
        )  # fmt: skip
        things = torch.from_numpy(np.stack([found.things_THW[every] for _, found, every in cuts]))
        return LabelledClips(to_pixels(np.stack([film[every] for film, _, every in cuts])), told, things)


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

    probed = probed.to(here())
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
        part = part.to(here())
        with torch.autocast(part.device.type, torch.bfloat16):
            again, _ = model.decode_raw(model.encode_raw(part))
        errors.append((again.float().clamp(-1, 1) - part).square().mean())
    return float(psnr(torch.stack(errors).mean()))


@torch.inference_mode()
def measure_latents(model: TinyAutoencoder, v_BTCHW: Tensor) -> None:
    """Set the per-channel mean and deviation that normalise latents."""
    with torch.autocast(here().type, torch.bfloat16):
        z = torch.cat([model.encode_raw(part.to(here())).float() for part in v_BTCHW.split(8)])
    model.latent_mean.copy_(z.mean((0, 1, 3, 4)))
    model.latent_std.copy_(z.std((0, 1, 3, 4)))


class Cuts:
    """Three latent frames, encoded by `model`, of `batch` out of `count` clips of all levels, and what they show: a
    pure function of the step."""

    def __init__(self, model: TinyAutoencoder, count: int, batch: int = 12) -> None:
        self.batch, made = batch, labelled_clips(count, (1, 2, 2, 3, 4), 50000)
        self.films, self.things = [film for film, _ in made], [found.things_THW for _, found in made]
        with torch.inference_mode(), torch.autocast(here().type, torch.bfloat16):
            self.encoded = [model.encode(to_pixels(film[None]).to(here()))[0].float().cpu() for film in self.films]

    def __call__(self, step: int) -> EncodedClips:
        rng = np.random.default_rng([13, step])
        which, starts = rng.integers(0, len(self.films), self.batch), rng.integers(0, FRAMES - 2, self.batch)
        places = list(zip(which, starts, strict=True))
        # A stream that starts at latent s shows the last frame of that latent, pixel frame 4 s, and what follows.
        pixels = np.stack([self.films[i][4 * s : 4 * s + 9] for i, s in places])
        things = np.stack([self.things[i][4 * s : 4 * s + 9] for i, s in places])
        latents = torch.stack([self.encoded[i][s : s + 3] for i, s in places])
        return EncodedClips(latents, to_pixels(pixels), torch.from_numpy(things))


def decoder(runs: Path, sizes: Sizes, report: Report) -> None:
    """The decoder alone, longer: the encoder stays as it is, so the latents that transformers learn stay valid."""
    model = TinyAutoencoder().channels_last()
    model.load_state_dict(load_file(runs / "vae" / "vae.safetensors"))
    model = model.to(here())
    source = Cuts(model, sizes.clips)
    _, held = clips(32, True, (1, 2, 2), 900)
    held_pixels = to_pixels(held)
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


PART, FIRSTS, CHANGING = 50, 300, 20
"""A part of the latents: so many whole clips, so many other clips' first blocks alone, and whole clips whose prompt
changes on the way."""
GUIDANCE = 2.0
"""Scale of the guidance that first blocks learn."""
_MODELS: dict[str, tuple[TinyAutoencoder, TextEncoder]] = {}


def encoded(job: tuple[str, int]) -> dict[str, Tensor]:
    """One part, in the layout of `recipes.transformers`: whole clips, first blocks, and whole clips whose prompt
    changes (`changed`, `changed_text`, and `changed_from`: the first latent frame that shows what the text says); and
    what stands in their cells (see `world.labels`), as `latents_classes`, `latents_velocity` and so on; `first_things`
    is what first blocks were asked to show (see `train.asking.classes`). One thread: parts are made side by side."""
    runs, part = Path(job[0]), job[1]
    torch.set_num_threads(1)
    if job[0] not in _MODELS:
        _MODELS[job[0]] = (load_autoencoder(runs / "vae", CARD, CPU), TextEncoder.load(runs / "text" / "encoder"))
    model, encoder = _MODELS[job[0]]
    whole, first, changed = (
        [take(start + part * count + number) for number in range(count)]
        for take, start, count in ((scene, 100000, PART), (scene, 1000000, FIRSTS), (changing, 2000000, CHANGING))
    )
    made = {
        "changed_from": torch.tensor([take.learned for take in changed]),
        "first_things": classes([parse(take.told).scene for take in first]),
    }
    short = TIME_STRIDE * (BLOCK - 1) + 1
    kinds = (
        ("latents", "text", whole, PIXEL_FRAMES), ("first", "first_text", first, short),
        ("changed", "changed_text", changed, PIXEL_FRAMES),
    )  # fmt: skip
    for name, words, takes, frames in kinds:
        films = [take.render(frames) for take in takes]
        made |= {f"{name}_{what}": x for what, x in labels(takes, frames).items()}
        with torch.inference_mode():
            z = [model.encode(to_pixels(np.stack(films[i : i + 10]))) for i in range(0, len(films), 10)]
            text = [encoder.encode([take.told for take in takes[i : i + 50]]) for i in range(0, len(takes), 50)]
        made[name], made[words] = torch.cat(z).to(torch.float16), torch.cat(text).to(torch.float16)
    return made


def latents(runs: Path, sizes: Sizes, report: Report) -> None:
    """Latents and text embeddings of training clips, in parts that are skipped when they exist."""
    for part in in_parts(encoded, runs, "latents", sizes.latents // PART):
        report({"clips": float((part + 1) * PART)})


def flow(
    runs: Path, name: str, config: WanConfig, steps: int, sizes: Sizes, report: Report,
    kind: type[GuidedForcing] = GuidedForcing,
) -> None:  # fmt: skip
    """A transformer by a kind of teacher forcing on the latents of `latents`."""
    data, model = Encoded(runs, sizes.batch), begun(config, runs / name)
    reader = reader_of(config).to(here())
    forcing = kind(model, FRAMES, BLOCK, *map(Window, WINDOWS), scale=GUIDANCE)
    objective = ReadForcing(forcing, reader, model.blocks[config.num_layers // 2])
    trained = nn.ModuleDict({"model": model, "reader": reader})

    held = held_numbers(forcing, data)
    average = train(trained, objective, data, flow_settings(steps, sizes.rate), runs / name, held, report)
    keep({k.removeprefix("model."): v for k, v in average.items() if k.startswith("model.")}, config, runs / name)


def reader_of(config: WanConfig) -> CellReader:
    """What tells from a transformer's middle which shape, size and colour stands in its cells; begins always alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CellReader(config.dim, config.patch_size[1:], (len(SHAPES) + 1, len(SIZES) + 1, len(THING_COLOURS) + 1))


def target(runs: Path, sizes: Sizes, report: Report) -> None:
    """The target."""
    flow(runs, "target", EMBEDDED_TARGET, sizes.target_steps, sizes, report)


def drafter(runs: Path, sizes: Sizes, report: Report) -> None:
    """The drafter: same data, a fraction of the size, and behind its own drafts."""
    flow(runs, "drafter", EMBEDDED_DRAFTER, sizes.drafter_steps, sizes, report, DraftForcing)


def reward(runs: Path, sizes: Sizes, report: Report) -> None:
    """The frame reward: first what the cells of drawn frames show; then whether frames fit prompts, as drawn and
    after the autoencoder. From `start.safetensors` in its folder if there is one, else from nothing."""
    encoder = TextEncoder.load(runs / "text" / "encoder")

    @torch.no_grad()
    def read(prompts: list[str]) -> Tensor:
        words, mask = encoder.tokens(prompts)
        longest = int(mask.sum(1).max())
        return cast(Tensor, encoder(words[:, :longest], mask[:, :longest]))

    drawn, decoded = Pairs(read, None, seed=0), Pairs(read, load_autoencoder(runs / "vae", CARD, CPU), seed=0)
    seeing = sizes.reward_steps // 3
    fitting = sizes.reward_steps - seeing

    def source(step: int) -> PairBatch:
        return drawn(step) if step < fitting * 3 // 5 else decoded(step)

    torch.manual_seed(0)
    model = FrameReward(read)
    start = runs / "reward" / "start.safetensors"
    if start.exists():
        model.load_state_dict({name: value.float() for name, value in load_file(start).items()})
    reader = cell_reader(model)
    trained = nn.ModuleDict({"model": model, "reader": reader})
    config = TrainConfig(seeing, 1.5e-3, warmup=30, average=0.98, muon="stem")
    seen = train(trained, Seeing(model, reader), Sights(), config, runs / "reward" / "seeing", None, report)
    trained.load_state_dict(seen)
    config = TrainConfig(fitting, 1.5e-3, average=0.995, muon="stem")
    average = train(trained, Faithfulness(model, reader), source, config, runs / "reward", None, report)
    trained.load_state_dict(average)
    model.to(torch.bfloat16).save(runs / "reward" / "model")


def pack(runs: Path, sizes: Sizes, report: Report) -> None:
    """Put the family together in `runs/family`, in the layout of `models.family`: bf16 weights and the card.
    Transformers that `recipes.feedback` has taught come first; without a judge of latents the router is UNJUDGED."""
    out = runs / "family"
    out.mkdir(parents=True, exist_ok=True)
    TextEncoder.load(runs / "text" / "encoder").save(out / "text")
    vae = load_file(runs / "decoder" / "vae.safetensors")
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in vae.items()}, out / "vae.safetensors")
    sized: dict[str, dict[str, Any]] = {}
    for part in ("target", "drafter"):
        fed = runs / f"{part}-feedback" / "model.safetensors"
        taken = fed if fed.is_file() else weights_of(runs, part)
        shutil.copyfile(taken, out / f"{part}.safetensors")
        sized[part] = asdict(sizes_of(taken, CARD, part))
    for name in ("reward", *(f"{judge}_judge" for judge in (*JUDGES, MARKING, REMARKING))):
        if (runs / name / "model").is_dir():
            shutil.copytree(runs / name / "model", out / name, dirs_exist_ok=True)
    judged = (out / "latent_judge").is_dir() or (out / "reading_judge").is_dir()
    card = replace(CARD, router=CARD.router if judged else UNJUDGED, parts=CARD.parts | sized)
    seal(out, card, report)


UNJUDGED = "refine:levels=0.7,draft_steps=1"
CARD = Card(
    name="embedded",
    world="shapes",
    block=BLOCK,
    trained_frames=FRAMES,
    size=(shapes.SIZE, shapes.SIZE),
    fps=shapes.FPS,
    steps=4,
    step="euler",
    past=f"window:frames={WINDOW}",
    router="refine:levels=0.7,draft_steps=1,commit=last,first_best=2,first_look=2",
    parts={
        "target": asdict(EMBEDDED_TARGET),
        "drafter": asdict(EMBEDDED_DRAFTER),
        "vae": asdict(TAEConfig()),
        "reward": {},
    },
    temperature=0.5,
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
SHARED = ("target", "drafter")
"""Stages that several workers may train together."""
PLACED = ("vae", "decoder", "target", "drafter")
"""Stages that train on the device that was asked for; all others stay on the CPU."""
