"""The recipe of a pair of one's own: from a folder of videos with captions to a family directory.

Knows: how videos are cut into clips, where captions stand, which family lends autoencoder and text encoder, sizes and
rates. Does not know: losses (train/), networks (models/), what the videos show.

`latents` reads `videos` and writes one part per video into `runs/latents`, in the layout of the embedded recipe, with
the facts it was made from; parts that are still true are skipped, so a killed run goes on, a grown folder is read
further, and a video or caption that was mended is made again. `target` and `drafter` train on them, `pack` puts
`runs/family` together. There are no labels of what stands where, so nothing but the flow is learned.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arvid import spec
from arvid.caches.policies import POLICIES
from arvid.evals.clips import opened, videos_in
from arvid.models.family import Card, load_autoencoder, read_card, transformer_config
from arvid.models.tae import TIME_STRIDE, TinyAutoencoder
from arvid.models.text import TextEncoder
from arvid.recipes.embedded import UNJUDGED, Report
from arvid.recipes.transformers import RATE, Rows, begun, flow_settings, keep, lent, seal, sizes_of
from arvid.train.flow import FlowBatch, TeacherForcing
from arvid.train.trainer import train
from arvid.video import frames_of

CPU = torch.device("cpu")
LENDER = "lender"
CAPTIONS = "captions.jsonl"
"""Captions of a folder, one JSON object per line: `file` (as it lies in the folder) and `caption`."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the folder of videos, the family that lends autoencoder and text encoder (a directory, or
    `embedded`), steps, clips of a batch, first blocks cut from every clip, the learning rate, and the name of the new
    family."""

    videos: str = "videos"
    family: str = "embedded"
    target_steps: int = 2000
    drafter_steps: int = 1200
    batch: int = 4
    firsts: int = 4
    rate: float = RATE
    name: str = "own"


# ---------------------------------------------------------------- latents


def latents(runs: Path, sizes: Sizes, report: Report) -> None:
    """Latents and text embeddings of a folder of videos. Raises ValueError for a directory that holds other parts, and,
    when all others are done, that names the videos that could not be used and why."""
    folder, lender = Path(sizes.videos), lent(sizes.family)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; point --set videos=DIR at a folder of mp4 files")
    paths = videos_in([folder])
    said = captions(folder, paths)
    card = read_card(lender)
    vae, text = load_autoencoder(lender, card, CPU), TextEncoder.load(lender / "text")
    directory = runs / "latents"
    directory.mkdir(parents=True, exist_ok=True)
    lends = mark(lender)
    parts = {path: directory / f"{path.name}.safetensors" for path in paths}
    check_others(directory, set(parts.values()), lends)
    failed, clips = [], 0
    for path, part in parts.items():
        at = path.stat()
        facts = {
            "video": f"{at.st_size} bytes of {at.st_mtime_ns}", "caption": said[path], LENDER: lends,
            "firsts": str(sizes.firsts),
        }  # fmt: skip
        if facts_of(part) != facts:
            part.unlink(missing_ok=True)  # what is trained reads all parts, and this one is not true any more
            try:
                made = encoded(path, said[path], card, vae, text, sizes.firsts)
            except ValueError as error:
                failed.append(f"{path}: {error}")
                continue
            whole = part.with_suffix(".part")
            save_file(made, whole, facts)
            whole.rename(part)
            clips += len(made["latents"])
            report({"clips": float(clips), "unknown_words": float(len(text.unknown(said[path])))})
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(paths)} videos cannot be used, the others are done; mend or remove them:\n  "
            + "\n  ".join(failed)
        )


def mark(lender: Path) -> str:
    """What tells the autoencoder and the text encoder of a family from others: a digest of their files."""
    seen = hashlib.sha256()
    for path in (lender / "vae.safetensors", *sorted(file for file in (lender / "text").rglob("*") if file.is_file())):
        seen.update(path.read_bytes())
    return seen.hexdigest()


def facts_of(part: Path) -> dict[str, str]:
    """What a part was made from; nothing, if there is none or it does not say."""
    if not part.is_file():
        return {}
    try:
        with safe_open(part, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def check_others(directory: Path, own: set[Path], lends: str) -> None:
    """Raises ValueError for parts of no video in the folder that another family or another recipe made: what is trained
    reads all parts. (Parts of videos that are gone stay.)"""
    others = [part for part in sorted(directory.glob("*.safetensors")) if part not in own]
    odd = [part.name for part in others if facts_of(part).get(LENDER) != lends]
    if odd:
        raise ValueError(
            f"{directory} holds {len(odd)} parts that this family's autoencoder and text encoder did not make "
            f"({', '.join(odd[:3])}); give another --runs, or remove them"
        )


def captions(folder: Path, paths: list[Path]) -> dict[Path, str]:
    """The caption of every video: of `captions.jsonl`, or of a .txt file of its name beside it.

    Raises ValueError for a line that is no caption and for videos without one.
    """
    listed: dict[Path, str] = {}
    table = folder / CAPTIONS
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                listed[folder / str(row["file"])] = str(row["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{table}, line {number}: {line[:80]!r} is no caption; write {{"file": "a.mp4", "caption": "..."}}'
            ) from error
    found = {path: listed.get(path) or _beside(path) for path in paths}
    bare = [path.name for path, caption in found.items() if not caption]
    if bare:
        raise ValueError(
            f"{len(bare)} videos without a caption: {', '.join(bare[:10])}; add lines to {table}, or a .txt file of "
            "the same name beside each"
        )
    return found


def _beside(path: Path) -> str:
    note = path.with_suffix(".txt")
    return " ".join(note.read_text(encoding="utf-8").split()) if note.is_file() else ""


@torch.inference_mode()
def encoded(
    path: Path, caption: str, card: Card, vae: TinyAutoencoder, text: TextEncoder, firsts: int
) -> dict[str, Tensor]:
    """One part: latents and text of the clips of a video, and of `firsts` first blocks cut from each; fp16.

    Raises ValueError for a video that cannot be read or is shorter than a clip.
    """
    short = TIME_STRIDE * (card.block - 1) + 1
    z: list[Tensor] = []
    first: list[Tensor] = []
    for clip_THWC in clips_of(path, card):
        v_TCHW = torch.from_numpy(clip_THWC).movedim(-1, 1).float() / 127.5 - 1
        starts = np.linspace(0, len(v_TCHW) - short, firsts).round().astype(int)
        z.append(vae.encode(v_TCHW[None]))
        first += [vae.encode(v_TCHW[None, start : start + short]) for start in starts]
    if not z:
        needed = TIME_STRIDE * (card.trained_frames - 1) + 1
        raise ValueError(f"shorter than a clip; at least {needed} frames at {card.fps} a second are needed")
    said = text.encode([caption])
    made = {
        "latents": torch.cat(z), "text": said.expand(len(z), -1, -1),
        "first": torch.cat(first), "first_text": said.expand(len(first), -1, -1),
    }  # fmt: skip
    return {name: value.to(torch.float16).contiguous() for name, value in made.items()}


def clips_of(path: Path, card: Card) -> Iterator[np.ndarray]:
    """Clips [T, H, W, 3] uint8 of a video one after the other, in the family's length, rate and size: the middle of
    every frame in the family's shape, and for each of its times the nearest frame before. What is left over at the end
    is not used. Raises ValueError for a video that cannot be read."""
    length, ratio = TIME_STRIDE * (card.trained_frames - 1) + 1, opened(path).fps / card.fps
    clip: list[np.ndarray] = []
    taken = 0
    for number, picture_HWC in enumerate(frames_of(path)):
        small: np.ndarray | None = None
        while int(taken * ratio + 1e-6) == number:
            small = fitted(picture_HWC, card.size) if small is None else small
            clip.append(small)
            taken += 1
            if len(clip) == length:
                yield np.stack(clip)
                clip = []


def fitted(picture_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture in the shape of `size` (width, height), scaled to it."""
    high, wide = picture_HWC.shape[:2]
    scale = min(wide / size[0], high / size[1])
    left, top = (wide - scale * size[0]) / 2, (high - scale * size[1]) / 2
    box = (left, top, left + scale * size[0], top + scale * size[1])
    return np.asarray(Image.fromarray(picture_HWC).resize(size, Image.Resampling.BOX, box=box))


# ---------------------------------------------------------------- the pair


class Batches:
    """Whole clips and `firsts` first blocks for each, by step: a pure function of it."""

    def __init__(self, runs: Path, batch: int, firsts: int) -> None:
        self.rows, self.batch, self.firsts = Rows.of(runs), batch, firsts

    def __call__(self, step: int) -> FlowBatch:
        """The batch of a step."""
        rng, rows = np.random.default_rng([29, step]), self.rows
        whole = torch.from_numpy(rng.integers(0, len(rows.latents_NTCHW), self.batch))
        more = torch.from_numpy(rng.integers(0, len(rows.first_NTCHW), self.firsts * self.batch))
        return rows.batch(whole, more, rng)


def target(runs: Path, sizes: Sizes, report: Report) -> None:
    """The target."""
    flow(runs, "target", sizes, sizes.target_steps, report)


def drafter(runs: Path, sizes: Sizes, report: Report) -> None:
    """The drafter: same data, same objective, a fraction of the size."""
    flow(runs, "drafter", sizes, sizes.drafter_steps, report)


def flow(runs: Path, name: str, sizes: Sizes, steps: int, report: Report) -> None:
    """A transformer of the lender's sizes by teacher forcing; from `start.safetensors` in its folder if there is one,
    else from nothing."""
    card = read_card(lent(sizes.family))
    if name not in card.parts:
        raise ValueError(
            f"family {card.name!r} has no {name} whose sizes this one could have; `--stage pack` makes a family without"
        )
    model = begun(transformer_config(card, name), runs / name)
    policy = spec.build(card.past, POLICIES, "past")
    objective = TeacherForcing(model, card.trained_frames, card.block, policy)
    batches = Batches(runs, sizes.batch, sizes.firsts)
    average = train(model, objective, batches, flow_settings(steps, sizes.rate), runs / name, None, report)
    keep(average, model.config, runs / name)


def pack(runs: Path, sizes: Sizes, report: Report) -> None:
    """Put the family together in `runs/family`: the lender's autoencoder and text encoder, the new pair, a card."""
    lender, out = lent(sizes.family), runs / "family"
    card = read_card(lender)
    parts = [part for part in ("target", "drafter") if (runs / part / "model.safetensors").is_file()]
    if "target" not in parts:
        raise ValueError(f"no target in {runs / 'target'}; train it by `arvid train own_videos --stage target`")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(lender / "text", out / "text", dirs_exist_ok=True)
    shutil.copyfile(lender / "vae.safetensors", out / "vae.safetensors")
    for part in parts:
        shutil.copyfile(runs / part / "model.safetensors", out / f"{part}.safetensors")
    made = {"vae": card.parts["vae"]}
    made |= {part: asdict(sizes_of(runs / part / "model.safetensors", card, part)) for part in parts}
    # The lender's judges read what its world shows, and its router may ask them.
    router = UNJUDGED if "drafter" in parts else "target"
    # What narrower noise is worth was measured on the lender; other videos may have more than one way to go on.
    told = replace(card, name=sizes.name, world="", router=router, parts=made, temperature=1.0)
    seal(out, told, report)


STAGES: dict[str, Callable[[Path, Sizes, Report], None]] = {
    "latents": latents,
    "target": target,
    "drafter": drafter,
    "pack": pack,
}
"""Stages in the order in which they need each other."""
SHARED = ("target", "drafter")
"""Stages that several workers may train together."""
PLACED = ("target", "drafter")
"""Stages that train on the device that was asked for."""
