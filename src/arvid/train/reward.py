"""Training the frame reward: frames of the shapes world against prompts, right ones, wrong ones and flawed ones.

Knows: which pairs make a batch, what is asked of the reward, the numbers it is judged by. Does not know: how wrong and
flawed frames are drawn (`train.pictures`), the autoencoder and the text encoder (passed in), nor the oracle, which must
stay an outsider.

Half of the frames go through the autoencoder when there is one, and half of those have their latents disturbed first,
as drafted blocks fail that way. Whether a picture fits a prompt is an exclusive-or that is learned very slowly from yes
and no alone, so the reward's concepts are taught to name what the picture shows and what the prompt says. Shapes are
not learned even so; a linear reader that must tell what stands in every cell teaches them. `Seeing` is that alone.

Legend: B pairs, T frames, C channels, H height, W width, L tokens, D width, K names; pixels v_BTCHW in [-1, 1].
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from arvid.rewards.frame import FrameReward, Read
from arvid.train.pictures import (
    CHANGES,
    FLAWS,
    NAMES,
    SOUND,
    Flaw,
    change,
    draw,
    fidelity,
    look,
    mapped,
    named,
    pixels,
    take_at,
)
from arvid.train.reading import CellReader, Told
from arvid.worlds import captions, grammar, shapes
from arvid.worlds.shapes import Take

LEVELS = (1, 1, 1, 2, 2, 2, 2, 3, 4)
"""Levels of the captions, each drawn equally often."""
FILM = 81
"""Frames of the film a moment is taken from."""
CLIP = 9
"""Neighbouring frames that go through the autoencoder together: three latent frames."""
WRONG = (*CHANGES, "other")
DRAWN = (*CHANGES, "shape", "size")
"""The changes, the hard ones twice as often."""
LATENT_FLAWS = ("latent noise", "latent time", "latent mix", "latent shrunk")
NAMING = 4.0
"""Weight of the naming loss."""
CELLS = 10.0
"""Within it, the weight of single cells, most of which show no thing, against that of whole frames."""
READING = 2.0
"""Weight of the reading loss."""
UNKNOWN = -100
"""Stands for a class that is not known; cross-entropy passes over it."""


class Codec(Protocol):
    """The autoencoder, as far as it matters here."""

    def encode(self, v_BTCHW: Tensor) -> Tensor:
        """Latents of unit variance of whole clips."""
        ...

    def decode(self, z_BTCHW: Tensor) -> tuple[Tensor, object]:
        """Frames in [-1, 1] of whole clips."""
        ...


class PairBatch(NamedTuple):
    """Frames [B, 3, 64, 64] in [-1, 1], embeddings [B, L, D] of the prompts they are shown with, targets [B] in
    [0, 1], which of NAMES the frame's 64 cells show [B, 64, K] (-1: hard to say) and the prompt says [B, K], and what
    each pair is: clean, decoded, other (prompt), or one of the changes and flaws."""

    v_BCHW: Tensor
    text_BLD: Tensor
    target_B: Tensor
    shown_BLK: Tensor
    told_BK: Tensor
    kinds: tuple[str, ...]


class SightBatch(NamedTuple):
    """Frames [B, 3, 64, 64] in [-1, 1] and which of NAMES their cells show [B, 64, K], as in PairBatch."""

    v_BCHW: Tensor
    shown_BLK: Tensor


class Example(NamedTuple):
    """One frame [3, 64, 64] of a batch, see PairBatch."""

    v_CHW: Tensor
    target: Tensor
    shown: np.ndarray
    kind: str


KINDS = (grammar.SHAPES, grammar.THING_COLOURS, grammar.SIZES)
"""What is read of a cell: the first of NAMES, kind by kind."""
UNSURE = np.full((64, len(NAMES)), -1, np.float32)


# ---------------------------------------------------------------- batches


class Sights:
    """Batches of sound drawings without prompts, a pure function of (seed, step): four frames of each story, its
    things of any shape and size.

    Raises ValueError for a batch that is not a multiple of 4.
    """

    def __init__(self, batch: int = 64, seed: int = 0) -> None:
        if batch % 4 or batch < 4:
            raise ValueError(f"a batch of {batch} drawings; expected a multiple of 4, as every story gives four frames")
        self.batch, self.seed = batch, seed

    def __call__(self, step: int) -> SightBatch:
        """The batch of a step."""
        rng = random.Random(f"sights/{self.seed}/{step}")
        frames, shown = [], []
        for _ in range(self.batch // 4):
            film = shapes.takes(captions.sample(rng, LEVELS).prompt, rng.getrandbits(30), FILM)
            for time in rng.sample(range(FILM), 4):
                take = change(change(take_at(film, time), "shape", rng), "size", rng)
                frames.append(draw([take], time))
                shown.append(mapped(take, time))
        return SightBatch(pixels(frames), torch.from_numpy(np.stack(shown)))


class Pairs:
    """Batches of frames and prompts, a pure function of (seed, step). Every prompt comes with four frames of its
    story; `read` embeds prompts, `codec` (None: draw only) is the autoencoder, in evaluation mode.

    Raises ValueError for a batch that is not a multiple of 8.
    """

    def __init__(
        self, read: Read, codec: Codec | None = None, batch: int = 64, seed: int = 0, held_out: bool = False
    ) -> None:
        if batch % 8 or batch < 8:
            raise ValueError(f"a batch of {batch} pairs; expected a multiple of 8, as every prompt gets four frames")
        self.read, self.codec, self.batch, self.seed, self.held_out = read, codec, batch, seed, held_out

    def __call__(self, step: int) -> PairBatch:
        """The batch of a step."""
        rng = random.Random(f"reward/{self.seed}/{self.held_out}/{step}")
        count = self.batch // 4
        told = [captions.sample(rng, LEVELS, self.held_out).prompt for _ in range(count)]
        films = [shapes.takes(prompt, rng.getrandbits(30), FILM) for prompt in told]
        drawn = count // 2 if self.codec else count
        rows = self._drawn(films[:drawn], rng)
        if self.codec:
            rows += self._decoded(self.codec, films[drawn:], rng)
        whose = torch.arange(count).repeat_interleave(4)
        for place, row in enumerate(rows):
            if row.kind == "other":
                whose[place] = self._stranger(films, place // 4, rng)
        said_BK = torch.tensor([named({look(take) for take in film}) for film in films])
        return PairBatch(
            torch.stack([row.v_CHW for row in rows]),
            self.read(told)[whose],
            torch.stack([row.target for row in rows]),
            torch.from_numpy(np.stack([row.shown for row in rows])),
            said_BK[whose],
            tuple(row.kind for row in rows),
        )

    def _stranger(self, films: list[list[Take]], own: int, rng: random.Random) -> int:
        """A prompt of the batch that none of the frames of film `own` would do for."""
        looks = {look(take) for take in films[own]}
        others = [n for n, film in enumerate(films) if n != own and looks.isdisjoint(look(take) for take in film)]
        return rng.choice(others) if others else (own + 1) % len(films)

    def _kind(self, rng: random.Random, clean: float = 0.45) -> str:
        """What the next picture shall be, clean with the given probability."""
        if rng.random() < clean:
            return "clean"
        kinds = rng.choice((DRAWN, DRAWN, ("other",), FLAWS, FLAWS))
        return rng.choice(kinds)

    def _plan(self, film: list[Take], time: int, kind: str, rng: random.Random) -> tuple[list[Take], Flaw]:
        """The film to draw from, and the flaw to draw with, for a picture of this kind at this time."""
        if kind in FLAWS:
            return film, Flaw(kind, rng.uniform(0.03, 1.0), rng.getrandbits(30))
        if kind not in CHANGES:
            return film, SOUND
        take, looks = take_at(film, time), {look(take) for take in film}
        wrong = change(take, kind, rng)
        while look(wrong) in looks:
            wrong = change(take, rng.choice(CHANGES), rng)
        return [wrong], SOUND

    def _drawn(self, films: list[list[Take]], rng: random.Random) -> list[Example]:
        """Four frames of each film as drawn."""
        frames, truths, kinds, shown = [], [], [], []
        for film in films:
            for _ in range(4):
                time, kind = rng.randrange(FILM), self._kind(rng)
                wrong, flaw = self._plan(film, time, kind, rng)
                frames.append(draw(wrong, time, flaw))
                truths.append(draw(film, time) if flaw.kind else frames[-1])
                shown.append(UNSURE if flaw.kind else mapped(take_at(wrong, time), time))
                kinds.append(kind)
        v_NCHW = pixels(frames)
        rows = zip(v_NCHW, _targets(v_NCHW, truths, kinds), shown, kinds, strict=True)
        return [Example(*row) for row in rows]

    @torch.no_grad()
    def _decoded(self, codec: Codec, films: list[list[Take]], rng: random.Random) -> list[Example]:
        """Four frames of each film as decoded: two from its latents, two from the same latents disturbed."""
        frames, truths, kinds, shown = [], [], [], []
        for film in films:
            take = take_at(film, rng.randrange(FILM))
            start = rng.randrange(take.start, max(take.start + 1, take.stop - CLIP))
            times = [min(start + t, take.stop - 1) for t in range(CLIP)]
            kind = self._kind(rng, clean=0.65)
            wrong, flaw = self._plan(film, start, kind, rng)
            frames += [draw(wrong, time, flaw) for time in times]
            truths += [draw(film, time) for time in times] if flaw.kind else frames[-CLIP:]
            shown.append([UNSURE if flaw.kind else mapped(take_at(wrong, time), time) for time in times])
            kinds.append("decoded" if kind == "clean" else kind)
        v_BTCHW = pixels(frames).unflatten(0, (-1, CLIP))
        z_BTCHW = codec.encode(v_BTCHW)
        ways = [rng.choice(LATENT_FLAWS) for _ in films]
        bad = torch.stack([_disturb(z_BTCHW, n, way, rng) for n, way in enumerate(ways)])
        whole_BTCHW, spoilt_BTCHW = codec.decode(z_BTCHW)[0].float(), codec.decode(bad)[0].float()
        drawn_BT = _targets(v_BTCHW.flatten(0, 1), truths, kinds).unflatten(0, (-1, CLIP))
        kept_BT = fidelity(spoilt_BTCHW.flatten(0, 1), whole_BTCHW.flatten(0, 1)).unflatten(0, (-1, CLIP))
        rows = []
        for n, (kind, way) in enumerate(zip(kinds, ways, strict=True)):
            picks = rng.sample(range(CLIP), 4)
            rows += [Example(whole_BTCHW[n, t], drawn_BT[n, t], shown[n][t], kind) for t in picks[:2]]
            kind = way if kind == "decoded" else kind
            rows += [Example(spoilt_BTCHW[n, t], drawn_BT[n, t] * kept_BT[n, t], UNSURE, kind) for t in picks[2:]]
        return rows


def _targets(v_NCHW: Tensor, truths: list[np.ndarray], kinds: list[str]) -> Tensor:
    """Targets of drawings: nothing for a wrong one, what is kept of the truth for a right one. Each of the kinds
    stands for equally many drawings."""
    wrong = torch.tensor([kind in WRONG for kind in kinds]).repeat_interleave(len(truths) // len(kinds))
    return torch.where(wrong, 0.0, fidelity(v_NCHW, pixels(truths)))


def _disturb(z_BTCHW: Tensor, index: int, way: str, rng: random.Random) -> Tensor:
    """Latents [T, C, H, W] of clip `index`, disturbed everywhere or in one soft spot, by a random amount."""
    z_TCHW = z_BTCHW[index]
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    amount = torch.full(z_TCHW.shape[-2:], rng.uniform(0.05, 0.9 if way == "latent noise" else 0.6))
    if rng.random() < 0.5:
        rows, columns = (torch.arange(side) - rng.uniform(0, side - 1) for side in amount.shape)
        amount = amount * torch.exp(-(rows[:, None].square() + columns.square()) / (2 * rng.uniform(1, 3) ** 2))
    if way == "latent noise":
        aim = torch.randn(z_TCHW.shape, generator=generator)
    elif way == "latent time":
        aim = z_TCHW.roll(rng.choice((1, 2)), 0)
    elif way == "latent mix":
        aim = z_BTCHW[(index + 1) % len(z_BTCHW)]
    else:
        aim = torch.zeros_like(z_TCHW)
    return z_TCHW + amount * (aim - z_TCHW)


# ---------------------------------------------------------------- objective


def cell_reader(model: FrameReward) -> CellReader:
    """A reader of the model's cells: shape, colour, size."""
    return CellReader(model.config.widths[-1], (1, 1), tuple(len(names) + 1 for names in KINDS))


def standing(shown_BLK: Tensor) -> Told:
    """What stands in every cell, from which of NAMES it shows: UNKNOWN where that is hard to say or two things meet."""
    side = math.isqrt(shown_BLK.shape[1])
    found = []
    for names in shown_BLK[..., : sum(map(len, KINDS))].split([len(names) for names in KINDS], -1):
        sure = (names >= 0).all(-1) & (names.sum(-1) <= 1)
        found.append(torch.where(names.amax(-1) > 0, names.argmax(-1) + 1, 0).masked_fill(~sure, UNKNOWN))
    classes_BTYXK = torch.stack(found, -1).unflatten(1, (1, side, side))
    known_BT = (classes_BTYXK != UNKNOWN).flatten(2).any(-1)
    still = torch.zeros(*classes_BTYXK.shape[:-1], 2)
    return Told(classes_BTYXK, still, still, known_BT)


class Seeing:
    """What every cell shows, alone: the reader's loss and that of the names.

    Raises ValueError when the reward has fewer concepts than there are names.
    """

    def __init__(self, model: FrameReward, reader: CellReader) -> None:
        if model.config.concepts < len(NAMES):
            raise ValueError(f"a reward of {model.config.concepts} concepts; expected at least {len(NAMES)}")
        self.model, self.reader = model, reader

    def __call__(self, batch: SightBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss and its parts in nats, and the share of shapes read right; `generator` is not drawn from."""
        with torch.autocast("cpu", torch.bfloat16):
            cells_BLD = self.model.cells(batch.v_BCHW)
            seen_BLK = self.model.concepts(cells_BLD)
        return self.loss(cells_BLD, seen_BLK, batch.shown_BLK)

    def loss(self, cells_BLD: Tensor, seen_BLK: Tensor, shown_BLK: Tensor) -> dict[str, Tensor]:
        """The same, of cells and the logits of what they show."""
        seen_BLK = seen_BLK[..., : len(NAMES)].float()
        seen = CELLS * _entropy(seen_BLK, shown_BLK) + _entropy(seen_BLK.amax(1), shown_BLK.amax(1))
        read, right = self.reader.loss(cells_BLD[:, None], standing(shown_BLK))
        return {"loss": READING * read + NAMING * seen, "read": read.detach(), "seen": seen.detach(), "shapes": right}


class Faithfulness:
    """Cross-entropy between the reward's probability and the graded target, NAMING times that of the names, which are
    the first of the reward's concepts, and READING times that of the reader.

    Raises ValueError when the reward has fewer concepts than there are names.
    """

    def __init__(self, model: FrameReward, reader: CellReader) -> None:
        self.model, self.seeing = model, Seeing(model, reader)

    def __call__(self, batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss, its parts in nats and the share of pairs on the right side of 1/2; `generator` is not drawn
        from."""
        # The fused attention's gradient is several times slower on so few keys.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            cells_BLD = self.model.cells(batch.v_BCHW)
            logits, seen_BLK, said_BK = self.model.judge(cells_BLD, batch.text_BLD)
        fit = F.binary_cross_entropy_with_logits(logits.float(), batch.target_B)
        said = F.binary_cross_entropy_with_logits(said_BK[:, : len(NAMES)].float(), batch.told_BK)
        seeing = self.seeing.loss(cells_BLD, seen_BLK, batch.shown_BLK)
        right = ((logits > 0) == (batch.target_B > 0.5)).float().mean()
        parts = {"fit": fit.detach(), "said": said.detach(), "right": right}
        return {**seeing, **parts, "loss": fit + NAMING * said + seeing["loss"]}


def _entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy where `wanted` is known (not below 0)."""
    known = (wanted >= 0).float()
    total = F.binary_cross_entropy_with_logits(logits, wanted.clamp(min=0), known, reduction="sum")
    return total / known.sum().clamp(min=1)


@torch.no_grad()
def measure(model: nn.Module, source: Callable[[int], PairBatch], batches: int) -> dict[str, float]:
    """Numbers over `batches` batches. `auc KIND`: the chance that a sound frame (clean or decoded) outscores a frame
    of that kind with a target below 1/2; `auc`: any kind; `calibration error`: the mean distance of probability and
    target over ten bins of probability, weighted by their size."""
    rows = [source(step) for step in range(batches)]
    score_N = torch.cat([torch.sigmoid(model(row.v_BCHW, row.text_BLD)) for row in rows])
    target_N = torch.cat([row.target_B for row in rows])
    kinds = np.array([kind for row in rows for kind in row.kinds])
    bad, sound = target_N < 0.5, torch.from_numpy(np.isin(kinds, ("clean", "decoded")))
    bins = [(score_N * 10).long().clamp(max=9) == n for n in range(10)]
    error = sum(float((score_N[inside] - target_N[inside]).sum().abs()) for inside in bins) / len(score_N)
    result = {"calibration error": error, "auc": _auc(score_N[sound], score_N[bad])}
    for kind in sorted({*kinds} - {"clean", "decoded"}):
        of_kind = score_N[bad & torch.from_numpy(kinds == kind)]
        if len(of_kind):
            result[f"auc {kind}"] = _auc(score_N[sound], of_kind)
    return result


def _auc(good_N: Tensor, bad_M: Tensor) -> float:
    """The chance that one of the good scores is above one of the bad ones; ties count half."""
    gap_NM = good_N[:, None] - bad_M
    return float(((gap_NM > 0).float() + 0.5 * (gap_NM == 0).float()).mean())
