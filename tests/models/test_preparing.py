"""How transformers are brought to run, what a placement does to a family, and what a family directory may hold besides:
the numbers stay, and every way is refused where it cannot be gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import arvid.families as families
import arvid.models.preparing as preparing
from arvid.caches.full import Full
from arvid.caches.store import Store
from arvid.cli.delivering import Delivery, lateness
from arvid.families import open_packaged, overlapped
from arvid.models.family import Listed, read_card
from arvid.models.placement import Placement, bordered, move
from arvid.models.preparing import How, prepare
from arvid.models.running import AsideAutoencoder, AsideDecoder, PackedLinear, pack, packable, unpack
from arvid.models.wan.transformer import CausalWan
from arvid.pipeline import Family, Pipeline, Request, load
from arvid.rewards.block import BlockJudge, BlockJudgeConfig
from arvid.rewards.latent import LatentJudge, LatentJudgeConfig
from arvid.rollout.flow import TOGETHER, FlowWalker
from arvid.rollout.stage import Clock
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.samplers.timetable import Timetable
from oracles import tiny_rollout, toy_family

CPU = torch.device("cpu")
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_family.write(tmp_path_factory.mktemp("families") / "toy")


def made(family: Family, router: str = "first", seconds: float = 2) -> torch.Tensor:
    return Pipeline(family).generate(Request(PROMPT, seconds, 3, router)).latents_BTCHW


# ---------------------------------------------------------------- one transformer


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU packs nothing")
def test_packing_is_taken_back_on_the_same_weights() -> None:
    model = tiny_rollout.model.__wrapped__().bfloat16()
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    count = pack(model)
    assert unpack(model) == count > 0
    assert unpack(model) == 0
    assert not any(isinstance(part, PackedLinear) for part in model.modules())
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == before
    assert packable(model) and not model.training


def test_what_is_changed_on_its_way_is_read_to_the_cpu() -> None:
    there = torch.device("meta")
    assert How().begins_on("target", there) == How(compiled=True).begins_on("target", there) == there
    assert How("int8").begins_on("drafter", there) == CPU
    assert How(offload=("target",)).begins_on("target", there) == CPU
    assert How(offload=("target",)).begins_on("drafter", there) == there


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: How("int4"), "'int4'; known: int8, int8-dynamic, fp8, fp8-dynamic"),
        (lambda: How(offload=("reward",)), "layers of 'reward' cannot be offloaded; known: target, drafter"),
        (lambda: How(offload=("drafter",), compiled=True), "layers of drafter shall rest on the CPU and be compiled"),
        (
            lambda: How("fp8-dynamic", ("target",)),
            "rounded there to fp8-dynamic, which only a GPU can: give --quantise fp8",
        ),
    ],
)
def test_what_does_not_go_together(made: Callable[[], How], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


def test_a_model_is_rounded_where_it_computes_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """At no time is more than one unrounded block away from the CPU; the meta device stands for a GPU."""
    model, seen = tiny_rollout.model.__wrapped__(3), []

    def noting(model: nn.Module, kind: str, within: str) -> int:
        seen.append([name for name, weight in model.named_parameters() if weight.device.type == "meta"])
        for name, part in model.named_modules():
            if isinstance(part, nn.Linear) and name.startswith(within):
                part.weight = nn.Parameter(part.weight.to(torch.float8_e4m3fn), requires_grad=False)
        return 1

    monkeypatch.setattr(preparing, "quantise", noting)
    prepare(model, "target", torch.device("meta"), How("fp8"))
    blocks = [{name.split(".")[1] for name in names} for names in seen]
    assert blocks == [{"0"}, {"0", "1"}, {"0", "1", "2"}]
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert model.head.head.weight.dtype == torch.float32


def test_blocks_written_one_by_one_leave_what_one_pass_leaves() -> None:
    """What a GPU does: more passes, no mask, and keys of one block at a time."""
    noise, shape = SeededNoise(3), (1, tiny_rollout.BLOCK, tiny_rollout.CHANNELS, tiny_rollout.SIDE, tiny_rollout.SIDE)
    moves = sequential(4 * tiny_rollout.BLOCK, tiny_rollout.BLOCK, tiny_rollout.SIGMAS)
    found = {}
    for together in (TOGETHER, 1):
        spans: list[int] = []

        def watched(z: torch.Tensor, *rest: Any, spans: list[int] = spans) -> Any:
            spans.append(z.shape[1])
            return tiny_rollout.model()(z, *rest)

        past = Store(Full(), tiny_rollout.BLOCK)
        walker = FlowWalker("target", watched, past, STEPS["euler"], Clock(), together=together)
        for done in moves[:3]:
            walker.remember(done, noise.draw(done.index, 0, shape), tiny_rollout.CONDITION)
        with torch.no_grad():
            last = walker.walk(moves[3], noise.draw(3, 0, shape), moves[3].sigmas, tiny_rollout.CONDITION, noise)
        found[together] = last.block_BTCHW
        assert spans == ([9, 3, 3] if together == TOGETHER else [3, 3, 3, 3, 3])
    torch.testing.assert_close(found[TOGETHER], found[1], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- a family


def test_every_way_to_run_a_family_makes_the_same_video(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU under another name is another place: there is a border, and what crosses it is the same."""
    expected = made(load(toy))
    assert torch.equal(made(open_packaged(toy)), expected)
    assert torch.equal(made(open_packaged(toy, str(toy))), expected)
    apart = open_packaged(toy, placement=Placement("cpu", "cpu:0", "cpu:0", "cpu:0", "cpu:0"))
    assert not isinstance(apart.drafter, CausalWan)
    assert torch.equal(made(apart), expected)
    torch.testing.assert_close(made(open_packaged(toy, how=How(offload=("target", "drafter")))), expected)
    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    torch.testing.assert_close(made(open_packaged(toy, how=How(compiled=True))), expected)


def test_a_model_behind_a_border_still_forgets_what_nobody_feels(toy: Path) -> None:
    apart = Pipeline(open_packaged(toy, placement=Placement("cpu", "cpu:0")))
    drafter = apart.family.drafter
    assert drafter is not None
    request = Request(PROMPT)
    router, _ = apart.check(request)
    walker = apart._walker("drafter", drafter, apart._past(request, router), Clock())
    assert walker._reach is not None and walker._reach.layers == toy_family.DRAFTER.num_layers


def test_moving_leaves_out_what_is_not_named(toy: Path) -> None:
    family = load(toy)
    move(family, Placement("cpu", "meta", "meta", "meta"), ["drafter", "reward"])  # type: ignore[arg-type]
    devices = {name: {weight.device.type for weight in getattr(family, name).parameters()}
               for name in ("target", "drafter", "decoder", "reward")}  # fmt: skip
    assert devices == {"target": {"cpu"}, "drafter": {"meta"}, "decoder": {"cpu"}, "reward": {"meta"}}
    assert bordered(family, Placement()).decoder is family.decoder


def test_a_checkpoint_may_draft_for_a_family(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    path = tmp_path / "small" / "model.safetensors"
    path.write_bytes((toy / "drafter.safetensors").read_bytes())
    told = {"num_heads": toy_family.DRAFTER.num_heads, "text_len": toy_family.DRAFTER.text_len}
    (path.parent / "config.json").write_text(json.dumps(told))
    torch.testing.assert_close(made(open_packaged(toy, str(path))), made(load(toy)))
    path.write_bytes((toy / "target.safetensors").read_bytes())
    assert not torch.equal(made(open_packaged(toy, str(path))), made(load(toy)))


@pytest.fixture
def shifted(toy: Path, tmp_path: Path) -> Path:
    """The family with a list of timesteps, at a shift of 8."""
    card = json.loads((toy / "card.json").read_text())
    for file in toy.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "card.json").unlink()
    card["steps"] = {"timesteps": [1000, 757, 522], "shift": 8}
    (tmp_path / "card.json").write_text(json.dumps(card))
    return tmp_path


def told_to_networks(pipeline: Pipeline, router: str) -> list[float]:
    """The timesteps of all passes of a video of one block."""
    told: list[float] = []
    flow = CausalWan._time

    def noting(model: CausalWan, sigma_BT: torch.Tensor) -> torch.Tensor:
        told.append(float(1000 * sigma_BT[0, -1]))
        return flow(model, sigma_BT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalWan, "_time", noting)
        pipeline.generate(Request(PROMPT, 0.1, router=router))
    return told


def test_steps_of_a_card_may_be_a_list(shifted: Path) -> None:
    """The network is told the list, and walks down the levels of the table."""
    assert read_card(shifted).steps == Listed((1000.0, 757.0, 522.0), 8.0)
    pipeline = Pipeline(load(shifted))
    _, plan = pipeline.check(Request(PROMPT, 1))
    assert plan[0].sigmas == Timetable(8).levels([1000, 757, 522])
    _, plan = pipeline.check(Request(PROMPT, 1, router="target:steps=2,first_steps=1"))
    assert [move.sigmas for move in plan] == [(1, 0), (1, 8 / 9, 0)]
    assert told_to_networks(pipeline, "target") == [1000, 757, 522]


def test_drafts_of_so_many_passes_walk_the_familys_own_levels(shifted: Path) -> None:
    """sigma = 8 tau / (1 + 7 tau) at tau = 1, 2/3, 1/3."""
    told = told_to_networks(Pipeline(load(shifted)), "draft:draft_steps=3")
    assert told == pytest.approx([1000, 1000 * 16 / 17, 800], rel=1e-6)


def test_judges_of_blocks_come_with_their_family(toy: Path, tmp_path: Path) -> None:
    for file in toy.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert load(tmp_path).judges == {}
    LatentJudge(LatentJudgeConfig(text_width=16)).save(tmp_path / "latent_judge")
    BlockJudge(BlockJudgeConfig(text_width=16)).save(tmp_path / "block_judge")
    family = load(tmp_path)
    assert sorted(family.judges) == ["block", "latent"]
    for name in family.judges:
        blocks = Pipeline(family).generate(Request(PROMPT, 2, 3, f"reward:tau=2,by={name}")).blocks
        assert [block.verdict.score is None for block in blocks] == [True, False, False]
        assert blocks[1].source == "target"
    (tmp_path / "block_judge" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no block judge in .*config.json is missing"):
        load(tmp_path)


# ---------------------------------------------------------------- decoding beside the next block


class Now:
    """A lane that does its work at once."""

    def do(self, work: Callable[[], Any], reads: Any) -> tuple[Any, Any]:
        class Arrival:
            def wait(self, made: torch.Tensor) -> None: ...

            def fetch(self, made: torch.Tensor) -> torch.Tensor:
                return made

        return work(), Arrival()


def test_a_block_that_is_decoded_beside_the_next_comes_later_with_its_events(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(toy)
    with pytest.raises(ValueError, match="cpu has no streams to decode beside the next block; leave --overlap out"):
        overlapped(plain, Placement())
    monkeypatch.setattr(families, "aside", lambda decoder, reward, device: (AsideDecoder(decoder, Now()), reward))
    beside = overlapped(plain, Placement())
    assert (lateness(plain, False), lateness(beside, False), lateness(beside, True)) == (0, 1, 0)
    order: list[tuple[str, int]] = []

    class Heard:
        def on(self, event: str, payload: dict[str, Any]) -> None:
            if event in ("begun", "done"):
                order.append((event, payload["block"]))

    request = Request(PROMPT, 2, 3, "reward:tau=2")
    expected = list(Pipeline(plain).stream(request))
    for late in (0, 1):
        order.clear()
        delivery = Delivery((Heard(),), late)
        session = Pipeline(beside).session(request, delivery.listeners)
        blocks = []
        for block in delivery.blocks(session):
            order.append(("here", block.move.index))
            blocks.append(block)
            assert session.block == (None if block.move.index + late > 1 else block.move.index + 1 + late)
        assert order == [(what, n) for n in range(3) for what in ("begun", "done", "here")]
        assert all(torch.equal(a.frames_BTCHW, b.frames_BTCHW) for a, b in zip(blocks, expected, strict=True))
        assert {type(block.frames_BTCHW) for block in blocks} == {torch.Tensor}


def test_a_decoder_aside_keeps_its_encoder(toy: Path) -> None:
    family = load(toy)
    clip = torch.rand(1, 5, 3, 64, 64) * 2 - 1
    beside = AsideAutoencoder(family.decoder, family.decoder, Now())  # type: ignore[arg-type]
    assert torch.equal(beside.encode(clip), family.decoder.encode(clip))  # type: ignore[attr-defined]
