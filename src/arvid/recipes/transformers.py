"""What the recipes of transformers share: rows of latents on disk, batches of them, a model to begin with, its weights.

Knows: how parts of training data are laid out, how batches are drawn, which weights a run starts from, the settings of
a run by flow matching. Does not know: where latents come from, losses (train/), networks beyond their weights.

    runs/latents/*.safetensors    `latents` [N, T, C, h, w] and `text` [N, S, D] of whole clips, `first` and
                                  `first_text` of first blocks alone, fp16; other rows as a recipe adds them
    runs/NAME/start.safetensors   where the run NAME begins, if it is there
    runs/NAME/model.safetensors   what it leaves
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arvid.models.family import CARD, Card, fill, read_card, stated, stating, transformer_config
from arvid.models.wan.growth import deepen
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.pipeline import EMBEDDED
from arvid.train.flow import FlowBatch
from arvid.train.placing import here, moved
from arvid.train.reading import Told, ToldBatch
from arvid.train.trainer import Held, Objective, TrainConfig
from arvid.train.workers import Workers

RATE = 6e-3
"""Learning rate of a transformer that begins from nothing; one that goes on from a start wants a fraction of it."""
UNTOLD = 0.1
"""Share of clips that are shown without their text, so that a model can be guided away from what it makes untold."""
LABELS = ("classes", "velocity", "offset")
"""What is known of cells, as `world.labels` names it."""
TOGETHER = 10
"""First blocks that go with every whole clip of a batch."""
CHANGED = 0.3
"""Share of whole clips whose prompt changes on the way."""
KINDS = ("target", "drafter")
"""Transformers: the first word of a directory's name."""
HELD_CLIPS, HELD_FIRSTS = 8, 128
"""The last clips and first blocks of all, that nothing is learned from; of less data no more than an eighth."""


def read(runs: Path, key: str, parts: int | None = None) -> Tensor:
    """One tensor of the parts that a stage `latents` left, or of the first `parts` of them; files without it are no
    such parts.

    Raises ValueError when there are none.
    """
    found: list[Tensor] = []
    for path in sorted((runs / "latents").glob("*.safetensors")):
        if len(found) == parts:
            break
        with safe_open(path, "pt") as file:
            if key in file.keys():  # noqa: SIM118 (no mapping)
                found.append(file.get_tensor(key))
    if not found:
        raise ValueError(f"no {key} in {runs / 'latents'}; make them by `arvid train embedded --stage latents`")
    return torch.cat(found)


def in_parts(make: Callable[[tuple[str, int]], dict[str, Tensor]], runs: Path, name: str, count: int) -> Iterator[int]:
    """Parts 0 to `count` - 1 of `runs/name`, made side by side on all cores by `make` (of `runs` and a number; what
    `spawn` can hand over). Those that exist are skipped; the number of each that was made, when it lies there whole."""
    directory = runs / name
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{number:04d}.safetensors" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for number, made in zip(missing, pool.map(make, ((str(runs), each) for each in missing)), strict=True):
            whole = paths[number].with_suffix(".part")
            save_file(made, whole)
            whole.rename(paths[number])
            yield number


class Clips:
    """Batches of whole clips from the latents of a runs directory: a pure function of the step."""

    def __init__(self, runs: Path, batch: int) -> None:
        self.z, self.words, self.batch = read(runs, "latents"), read(runs, "text"), batch

    def __call__(self, step: int) -> FlowBatch:
        """The batch of a step."""
        chosen = torch.from_numpy(np.random.default_rng([17, step]).integers(0, len(self.z), self.batch))
        return FlowBatch(self.z[chosen].float(), self.words[chosen].float())


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of clips: latents and text, and the batches they make together with first blocks of other clips."""

    latents_NTCHW: Tensor
    text_NSD: Tensor
    first_NTCHW: Tensor
    first_text_NSD: Tensor

    @classmethod
    def of(cls, runs: Path) -> Rows:
        """The rows of a runs directory. Raises ValueError when there are none."""
        return cls(*(read(runs, key) for key in ("latents", "text", "first", "first_text")))

    def batch(self, whole: Tensor, more: Tensor, rng: np.random.Generator) -> FlowBatch:
        """These clips and first blocks; a share UNTOLD of either without its text."""
        said = torch.from_numpy(rng.random(len(whole) + len(more)) >= UNTOLD).float()[:, None, None]
        return FlowBatch(
            self.latents_NTCHW[whole].float(), self.text_NSD[whole].float() * said[: len(whole)],
            (self.first_NTCHW[more].float(), self.first_text_NSD[more].float() * said[len(whole) :]),
        )  # fmt: skip


class Encoded:
    """The parts that `latents` made, in memory, and batches of them: a pure function of the step. Clips whose prompt
    changes stand behind the others. What is `held` is in no batch."""

    def __init__(self, runs: Path, batch: int, together: int = TOGETHER) -> None:
        rows, self.batch, self.together = Rows.of(runs), batch, together
        self.plain, changed = len(rows.latents_NTCHW), read(runs, "changed")
        self.rows = replace(
            rows, latents_NTCHW=torch.cat([rows.latents_NTCHW, changed]),
            text_NSD=torch.cat([rows.text_NSD, read(runs, "changed_text")]),
        )  # fmt: skip
        self.begins = torch.cat([torch.zeros(self.plain, dtype=torch.long), read(runs, "changed_from")])
        self.whole = [torch.cat([read(runs, f"{kind}_{what}") for kind in ("latents", "changed")]) for what in LABELS]
        self.first = [read(runs, f"first_{what}") for what in LABELS]
        self.clips = self.plain - min(HELD_CLIPS, self.plain // 8)
        self.firsts = len(rows.first_NTCHW) - min(HELD_FIRSTS, len(rows.first_NTCHW) // 8)

    def __call__(self, step: int) -> ToldBatch:
        """Whole clips and `together` times as many first blocks."""
        rng = np.random.default_rng([11, step])
        size, total = self.batch, len(self.begins)
        changed = rng.random(size) < CHANGED
        numbers = np.where(changed, rng.integers(self.plain, total, size), rng.integers(0, self.clips, size))
        whole = torch.from_numpy(numbers)
        more = torch.from_numpy(rng.integers(0, self.firsts, self.together * size))
        clips = replace(self.rows.batch(whole, more, rng), begins_B=self.begins[whole])
        return ToldBatch(clips, labels_of(self.whole, whole, self.begins[whole]), labels_of(self.first, more, 0 * more))

    @property
    def held(self) -> FlowBatch:
        """Whole clips and first blocks, told, that are in no batch; none where there is little data."""
        rows, whole, first = self.rows, slice(self.clips, self.plain), slice(self.firsts, None)
        return FlowBatch(
            rows.latents_NTCHW[whole].float(), rows.text_NSD[whole].float(),
            (rows.first_NTCHW[first].float(), rows.first_text_NSD[first].float()),
        )  # fmt: skip


def held_numbers(objective: Objective, data: Encoded) -> Held | None:
    """What an objective says of the rows that are held out, but the sum it learns from; None where there are none."""
    held = moved(data.held, here())
    if not len(held.latents_BTCHW):
        return None

    def numbers(_: nn.Module) -> dict[str, float]:
        found = objective(held, torch.Generator().manual_seed(1))
        return {f"held_{name}": float(value) for name, value in found.items() if name != "loss"}

    return numbers


def labels_of(rows: list[Tensor], chosen: Tensor, begins_B: Tensor) -> Told:
    """Labels of chosen rows, which are asked for from the frames `begins_B` on."""
    classes, velocity, offset = (row[chosen] for row in rows)
    return Told(classes, velocity.float(), offset.float(), torch.arange(classes.shape[1]) >= begins_B[:, None])


def kind_of(directory: str) -> str:
    """The transformer whose weights a directory holds: the first word of its name. Raises ValueError for others."""
    name = directory.partition("-")[0]
    if name not in KINDS:
        raise ValueError(f"start={directory!r} begins with neither of {', '.join(KINDS)}; name a folder in runs")
    return name


def trained(runs: Path, directory: str) -> CausalWan:
    """The transformer of a finished stage in fp32. Raises ValueError when its weights are missing."""
    kind, path = kind_of(directory), weights_of(runs, directory)
    # Weights that say nothing are older than the recipes that read them here, as the shipped ones are.
    model = CausalWan(sizes_of(path, read_card(EMBEDDED), kind))
    fill(model, path)
    return model.to(here())


def sizes_of(weights: Path, card: Card, kind: str) -> WanConfig:
    """The sizes of a transformer: what its weights say; of weights that say nothing, what a card does."""
    return stated(weights) or transformer_config(card, kind)


def weights_of(runs: Path, directory: str) -> Path:
    """Where the weights of a finished stage are. Raises ValueError when they are missing."""
    path = runs / directory / "model.safetensors"
    if not path.is_file():
        raise ValueError(
            f"weights missing: {path}; train them first (`arvid train embedded` makes target and drafter, `arvid train "
            "distill --stage consistency` what the other stages start from), or name another folder by --set start="
        )
    return path


def begun(config: WanConfig, directory: Path) -> CausalWan:
    """The transformer that a run in `directory` trains: from `start.safetensors` there (weights of the same widths and
    at most as many blocks, to train them further), else from nothing."""
    model = CausalWan(config)
    model.initialise(torch.Generator().manual_seed(0))
    start = directory / "start.safetensors"
    if start.exists():
        model.load_state_dict(deepen({key: value.float() for key, value in load_file(start).items()}, config))
    return model.to(here())


def flow_settings(steps: int, rate: float) -> TrainConfig:
    """Of a run by flow matching from a start or from nothing."""
    return TrainConfig(
        steps, learning_rate=rate, warmup=100, average=0.997, weight_decay=0.02, save_every=100, muon="blocks."
    )


def distil_settings(steps: int) -> TrainConfig:
    """Of a run that goes on from a trained transformer with another objective."""
    return TrainConfig(
        steps, learning_rate=4e-4, warmup=50, average=0.99, weight_decay=0.01, save_every=100, muon="blocks."
    )


def lent(family: str) -> Path:
    """The directory of a family that lends its parts: a path, or `embedded`."""
    return EMBEDDED if family == "embedded" else Path(family)


def seal(directory: Path, card: Card, report: Callable[[dict[str, float]], None]) -> None:
    """Write the card of a family whose parts are there, and tell how many bytes it has."""
    (directory / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    report({"bytes": float(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()))})


def keep(weights: dict[str, Tensor], config: WanConfig, directory: Path) -> None:
    """Write a transformer's weights in bf16, and its sizes with them; of several workers the first does."""
    if Workers.here().leads:
        half = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
        save_file(half, directory / "model.safetensors", stating(config))
