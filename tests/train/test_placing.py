"""Where a run trains: objectives keep to the device of their model, and batches get there whole.

The other device is torch's `meta`, which has shapes and refuses the company of CPU tensors, but holds no numbers: what
is shown is where tensors are, not what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as config

from arvid.caches.window import Window
from arvid.models.tae import TinyAutoencoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rewards.reading import Asking, BlockReader
from arvid.samplers.grids import few_step
from arvid.train.asking import asked, meaning
from arvid.train.autoencoder import Decoding, EncodedClips, LabelledClips, Probe, Reconstruction
from arvid.train.consistency import Consistency
from arvid.train.diffusion_forcing import DiffusionForcing
from arvid.train.distribution_matching import DistributionMatching, ScoreIdentity
from arvid.train.drafting import DraftForcing
from arvid.train.feedback import Feedback, FeedbackBatch
from arvid.train.flow import FlowBatch, TeacherForcing
from arvid.train.guidance import GuidedForcing
from arvid.train.placing import here, moved, settle
from arvid.train.reading import CellReader, ReadForcing, Told, ToldBatch
from arvid.train.resampling import ResampledForcing
from arvid.train.scores import CausalScore
from arvid.train.self_forcing import LAST, Horizon, SelfForcing

CONFIG = WanConfig(16, 32, 2, 2, 8, 5, 2, 2, 16, cell_width=8, cell_blocks=1)
META = torch.device("meta")
WINDOW = Window(6)


def model() -> CausalWan:
    return CausalWan(CONFIG).to(META)


def clips() -> FlowBatch:
    whole, first = (
        (torch.randn(2, 6, 2, 4, 4), torch.randn(2, 5, 8)),
        (torch.randn(3, 3, 2, 4, 4), torch.randn(3, 5, 8)),
    )
    return moved(FlowBatch(*whole, first, torch.zeros(2, dtype=torch.long)), META)


def told(count: int, frames: int, cells: int, sorts: int = 2) -> Told:
    ways = [torch.zeros(count, frames, cells, cells, 2) for _ in range(2)]
    kinds = torch.zeros(count, frames, cells, cells, sorts, dtype=torch.long)
    return Told(kinds, *ways, torch.ones(count, frames, dtype=torch.bool))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def distilled() -> Tensor:
    score = CausalScore(model(), 6, 3, WINDOW)
    return Consistency(model(), score, 6, 3, WINDOW, few_step(2))(clips(), generator())["loss"]


def matched(kind: Callable[..., Any]) -> Tensor:
    roll = SelfForcing(model(), WINDOW, Horizon(6, 12, 3, lead=3), (2, 4, 4), few_step(2))
    text = torch.randn(2, 5, 8, device=META)
    loss = kind(CausalScore(model(), 6, 3, WINDOW), CausalScore(model(), 6, 3, WINDOW))
    found: Tensor = loss(roll(text, generator()), text, generator())["loss"]
    return found


def reconstructed() -> Tensor:
    batch = LabelledClips(torch.randn(1, 9, 3, 64, 64), told(1, 3, 8), torch.ones(1, 9, 64, 64, dtype=torch.bool))
    objective = Reconstruction(TinyAutoencoder().to(META), Probe(16, 5, 3).to(META))
    return objective(moved(batch, META), generator())["loss"]


def decoded() -> Tensor:
    frames = torch.randn(1, 9, 3, 64, 64), torch.ones(1, 9, 64, 64, dtype=torch.bool)
    batch = EncodedClips(torch.randn(1, 3, 16, 8, 8), *frames)
    return Decoding(TinyAutoencoder().to(META))(moved(batch, META), generator())["loss"]


def read() -> Tensor:
    net, reader = model(), CellReader(16, (2, 2), (6, 4, 8)).to(META)
    batch = moved(ToldBatch(clips(), told(2, 6, 4, 3), told(3, 3, 4, 3)), META)
    return ReadForcing(GuidedForcing(net, 6, 3, WINDOW), reader, net.blocks[1])(batch, generator())["loss"]


def fed() -> Tensor:
    net, seen = model(), BlockReader(2, 3, meaning().seen).to(META)
    first = SelfForcing(net, WINDOW, Horizon(3, 3, 3), (2, 4, 4), few_step(4), deep=2, part=LAST)
    scenes = asked(torch.zeros(2, 3, 6, dtype=torch.long))
    batch = moved(FeedbackBatch(torch.randn(2, 5, 8), scenes, clips()), META)
    anchor = GuidedForcing(net, 6, 3, WINDOW)
    return Feedback(first, lambda z_NTCHW: z_NTCHW, Asking(seen), 3, anchor)(batch, generator())["loss"]


LOSSES: dict[str, Callable[[], Tensor]] = {
    "teacher forcing": lambda: TeacherForcing(model(), 6, 3, WINDOW)(clips(), generator())["loss"],
    "guided": lambda: GuidedForcing(model(), 6, 3, WINDOW)(clips(), generator())["loss"],
    "drafting": lambda: DraftForcing(model(), 6, 3, WINDOW)(clips(), generator())["loss"],
    "diffusion forcing": lambda: DiffusionForcing(model(), 6, 3, WINDOW)(clips(), generator())["loss"],
    "resampled": lambda: ResampledForcing(model(), model(), 6, 3, WINDOW)(clips(), generator())["loss"],
    "consistency": distilled,
    "distribution matching": lambda: matched(DistributionMatching),
    "score identity": lambda: matched(ScoreIdentity),
    "reading": read,
    "feedback": fed,
    "autoencoder": reconstructed,
    "decoder": decoded,
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_stays_where_its_model_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def autocast(kind: str, _: torch.dtype) -> AbstractContextManager[None]:
        asked.append(kind)  # torch has none for meta
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    # How many of a mask hold is a number, and meta has none: all of them, then.
    with config.patch(meta_nonzero_assume_all_nonzero=True):
        loss = LOSSES[name]()
    assert loss.device == META
    loss.backward()
    assert {*asked} <= {"meta"}


class Pair(NamedTuple):
    one: Tensor
    other: str


@dataclass(frozen=True)
class Batch:
    inner: Pair
    more: list[dict[str, Tensor | None]]
    parts: tuple[Tensor, ...]


def test_a_batch_moves_whole() -> None:
    x = torch.zeros(2)
    found = moved(Batch(Pair(x, "kept"), [{"a": x, "b": None}], (x, x)), META)
    places = [found.inner.one, found.more[0]["a"], *found.parts]
    assert all(isinstance(tensor, Tensor) and tensor.device == META for tensor in places)
    assert found.inner.other == "kept" and found.more[0]["b"] is None
    assert isinstance(found.inner, Pair) and moved(7, META) == 7


def test_a_process_settles_once_for_all() -> None:
    assert here() == torch.device("cpu")
    settle(META)
    try:
        assert nn.Linear(2, 2).to(here()).weight.device == META
    finally:
        settle(torch.device("cpu"))
