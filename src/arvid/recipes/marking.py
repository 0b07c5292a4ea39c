"""The recipe of the judges that mark: blocks of a whole family, marked by the oracle, and a network for either look.

Knows: how blocks to learn from are drawn, kept and shown, sizes, rates, which prompts are kept apart. Does not know:
numbers and networks (rewards/marking.py), the objective (train/marking.py), how blocks are made (cli/drafting).

`marked` makes parts of blocks for prompts of the training part with the family that `arvid train embedded --stage pack`
leaves in `runs/family`: the target's own and drafts of the drafter. `marking` writes `runs/marking_judge/model/`, shown
their latents, and `runs/remarking_judge/model/`, shown those of their frames. Pack again behind it. Marks are of the
shapes world's oracle; nothing here needs more of it than a number in [0, 1] for a block and for each of its attributes.

    runs/marked/*.safetensors   `own` and `seen` [N, T, C, h, w] fp16, `things` [N, K, fields] (see `train.asking`),
                                `marks` [N], `attributes` [N, A], `number` [N] of the prompt
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from arvid.cli.drafting import Asked, shown
from arvid.evals.judging import Judged
from arvid.models.tae import TinyAutoencoder
from arvid.pipeline import Family, Pipeline, load
from arvid.recipes.embedded import Report
from arvid.recipes.transformers import in_parts
from arvid.recipes.world import scene
from arvid.rewards.judges import MARKING, REMARKING
from arvid.rewards.marking import Evidence, MarkingJudge, MarkingJudgeConfig, evidence
from arvid.rewards.reading import ReadingJudge
from arvid.rewards.rereading import Encode, seen
from arvid.train.asking import asked, classes
from arvid.train.marking import MarkedBlocks, Marking
from arvid.train.trainer import TrainConfig, train
from arvid.worlds import captions
from arvid.worlds.grammar import parse
from arvid.worlds.oracle import ALIGNMENT, QUALITY

FROM, PART, SECONDS, GOOD = 7000000, 40, 5.0, 0.5
"""Number of the first prompt, prompts of a part, seconds of their videos, and the mark from which a block is good."""
DRAFT_STEPS = (0, 0, 0, 0, 0, 2, 1)
"""Passes of drafts, one of these a prompt; 0: the family's own."""
SIMPLE = 0.75
"""Share of the prompts that have one or two things and a still camera; the others are of all levels."""
APART = 0.1
"""Share of the prompts that nothing is learned from."""
BATCH = 256
_FAMILIES: dict[str, Pipeline] = {}


def told(number: int) -> str:
    """The prompt with a number, of the training part and of one scene."""
    rng = random.Random(f"judge-{number}")
    if rng.random() >= SIMPLE:
        return scene(number).told
    return captions.sample(rng, (1, 2)).prompt


def part(job: tuple[str, int]) -> dict[str, Tensor]:
    """The marked blocks of one part. One thread: parts are made side by side."""
    runs, start = Path(job[0]), FROM + job[1] * PART
    torch.set_num_threads(1)
    if job[0] not in _FAMILIES:
        _FAMILIES[job[0]] = Pipeline(load(runs / "family"))
    pipeline, rows = _FAMILIES[job[0]], []
    encode = encoder(pipeline.family)
    for number in range(start, start + PART):
        prompt, steps = told(number), random.Random(f"steps-{number}").choice(DRAFT_STEPS)
        things = classes([parse(prompt).scene])[0]
        for candidate, mark in shown(pipeline, Asked(1, (1,), SECONDS, steps, (), GOOD), prompt, number):
            again = seen(candidate, encode)
            attributes = torch.tensor([mark.attributes[name] for name in (*ALIGNMENT, *QUALITY)])
            rows.append((
                candidate.block_BTCHW[0].half(), again.block_BTCHW[0].half(), things, torch.tensor(mark.score),
                attributes, torch.tensor(number),
            ))  # fmt: skip
    names = ("own", "seen", "things", "marks", "attributes", "number")
    columns = (torch.stack(column).contiguous() for column in zip(*rows, strict=True))
    return dict(zip(names, columns, strict=True))


def marked(runs: Path, prompts: int, report: Report) -> None:
    """Marked blocks for `prompts` prompts, in parts that are skipped when they exist. Raises ValueError for a family
    that has no drafter, or an autoencoder that is not of this package's kind."""
    encoder(load(runs / "family"))
    for number in in_parts(part, runs, "marked", -(-prompts // PART)):
        report({"prompts": float((number + 1) * PART)})


def encoder(family: Family) -> Encode:
    """How the frames of a family become latents again. Raises ValueError for one whose blocks cannot be marked."""
    if family.drafter is None or not isinstance(family.decoder, TinyAutoencoder):
        raise ValueError(f"family {family.card.name!r} lacks a drafter or an encoder; marked blocks need both")
    return family.decoder.encode


class Blocks:
    """Marked blocks by step: a pure function of it."""

    def __init__(self, rows: MarkedBlocks) -> None:
        self.rows = rows

    def __call__(self, step: int) -> MarkedBlocks:
        """The batch of a step."""
        return self.rows[torch.from_numpy(np.random.default_rng([37, step]).integers(0, len(self.rows), BATCH))]


def marking(runs: Path, steps: int, report: Report) -> None:
    """Both judges. Raises ValueError without marked blocks or a reading judge."""
    reading = ReadingJudge.load(runs / "reading_judge" / "model")
    paths = sorted((runs / "marked").glob("*.safetensors"))
    if not paths:
        raise ValueError(f"no marked blocks in {runs / 'marked'}; make them by `arvid train judges --stage marked`")
    parts = [load_file(path) for path in paths]
    rows = {name: torch.cat([made[name] for made in parts]) for name in parts[0]}
    for name, look in ((MARKING, "own"), (REMARKING, "seen")):
        learned(reading, rows, look, steps, runs / f"{name}_judge", report)


def learned(
    reading: ReadingJudge, rows: dict[str, Tensor], look: str, steps: int, directory: Path, report: Report
) -> None:
    """One judge; what it says of the last prompts, kept apart, goes into the log."""
    numbers = rows["number"].unique()
    apart_N = rows["number"] >= numbers[-max(1, round(APART * len(numbers)))]
    blocks = MarkedBlocks(listened(reading, rows[look], rows["things"]), rows["marks"], rows["attributes"].clamp(0, 1))
    learn, held = blocks[(~apart_N).nonzero()[:, 0]], blocks[apart_N.nonzero()[:, 0]]
    owners = [str(int(number)) for number in rows["number"][apart_N]]
    torch.manual_seed(0)
    things, scene_of, _ = blocks.shown
    fields = reading.config.meaning.fields
    config = MarkingJudgeConfig(fields, things.shape[-1], scene_of.shape[-1], rows["attributes"].shape[-1])
    judge = MarkingJudge(config, reading)
    judge.measure(learn.shown)

    def worth(_: nn.Module) -> dict[str, float]:
        found = Judged(judge(held.shown)[0].sigmoid().tolist(), held.mark_N.tolist(), owners)
        return {"held_auc": found.auc(GOOD).value or 0.0, "held_calibration": found.calibration_error().value or 0.0}

    settings = TrainConfig(
        steps, 1e-3, warmup=50, average=0.995, weight_decay=0.1, save_every=steps, log_every=max(1, steps // 8)
    )
    judge.load_state_dict(train(judge, Marking(judge), Blocks(learn), settings, directory, worth, report))
    judge.save(directory / "model")


@torch.no_grad()
def listened(reading: ReadingJudge, z_NTCHW: Tensor, things_NKF: Tensor, at_once: int = 512) -> Evidence:
    """What the reading judge says of blocks of as many frames as it reads at a time."""
    wanted, weight = asked(things_NKF), reading.cells.stem.weight
    found = [
        evidence(reading.cells(z_NTCHW[rows].to(weight)), wanted[rows])
        for rows in torch.arange(len(z_NTCHW)).split(at_once)
    ]
    things, scenes = (torch.cat(column) for column in zip(*(each[:2] for each in found), strict=True))
    return Evidence(things, scenes, wanted)
