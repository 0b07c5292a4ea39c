"""Models that run faster give the same tensors, tensors cross borders, and nobody waits too early or too late."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arvid.layers.quantise import KINDS, plain_parts, quantise
from arvid.models.placement import (
    PlacedAutoencoder,
    PlacedDecoder,
    PlacedDenoiser,
    PlacedJudge,
    PlacedReward,
    Placement,
    bare,
    placed,
)
from arvid.models.running import (
    AsideDecoder,
    AsideReward,
    Late,
    PackedLinear,
    aside,
    compile_blocks,
    held_back,
    pack,
    packable,
)
from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.wan.transformer import CausalWan
from arvid.pipeline import Pipeline, Request, load
from arvid.types import Candidate, Condition, Estimate, Span
from oracles import toy_family
from oracles.tiny_wan import SPAN, Nothing, asked, flow
from oracles.tiny_wan import model as tiny

CPU, META = torch.device("cpu"), torch.device("meta")


# ---------------------------------------------------------------- packed, compiled, quantised

able = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 arithmetic here")


@able
def test_packed_layers_give_the_same_numbers_under_the_same_names() -> None:
    plain = tiny(torch.bfloat16)
    packed = copy.deepcopy(plain)
    assert pack(packed) == 2 * 10
    assert sum(isinstance(part, PackedLinear) for part in packed.modules()) == 20
    assert type(packed.head.head) is nn.Linear
    assert packable(plain) and not packable(packed) and not packable(tiny())
    torch.testing.assert_close(flow(packed), flow(plain), rtol=0, atol=0)
    assert packed.state_dict().keys() == plain.state_dict().keys()


@able
def test_a_packed_model_that_moves_on_is_a_plain_one() -> None:
    plain = tiny(torch.bfloat16)
    packed = copy.deepcopy(plain)
    pack(packed)
    torch.testing.assert_close(flow(packed.float()), flow(plain.float()), rtol=0, atol=0)
    assert packed.to("meta").blocks[0].ffn[0].weight.is_meta


@able
def test_packing_says_what_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match=r"layers are torch.float32 on cpu; packed is what is torch.bfloat16 on a CPU"):
        pack(tiny())
    with pytest.raises(ValueError, match=r"torch\.bfloat16 on meta"):
        pack(tiny(torch.bfloat16).to("meta"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_same_flow() -> None:
    plain = tiny()
    compiled = copy.deepcopy(plain)
    assert compile_blocks(compiled) == 4
    torch.testing.assert_close(flow(compiled), flow(plain), rtol=1e-5, atol=1e-5)


def test_every_pass_of_target_and_drafter_finds_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other numbers of frames and of videos, target and drafter: more graphs than torch was told to make, each of a
    whole part; behind our own limit a pass is not compiled, and the video goes on."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, given: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part, mode, **options: real(part, backend=backend, **options))
    plain = [tiny(layers=2), tiny(width=24, layers=1)]
    with torch._dynamo.config.patch(cache_size_limit=2):
        compiled = copy.deepcopy(plain)
        assert [compile_blocks(one) for one in compiled] == [4, 2]
        for size in [(1, 1), (1, 3), (2, 3)]:
            for one, other in zip(compiled, plain, strict=True):
                torch.testing.assert_close(flow(one, size=size), flow(other, size=size))
        assert len(graphs) == 2 * 3 * 2, "the layers of a model share one"
        torch._dynamo.config.cache_size_limit = 1
        torch.testing.assert_close(flow(compiled[0], size=(1, 5)), flow(plain[0], size=(1, 5)))
        assert len(graphs) == 12
    torch._dynamo.reset()


BOUNDS = {"int8": 0.03, "int8-dynamic": 0.06, "fp8": 0.12}
"""Relative errors of the flow: a weight is off by 1/254 of the largest of its row (int8), 1/16 of itself (fp8)."""


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.filterwarnings("ignore")
def test_rounded_weights_stay_close_and_are_half_as_large(kind: str) -> None:
    pytest.importorskip("torchao")
    plain = tiny(torch.bfloat16, 96)
    rounded = copy.deepcopy(plain)
    assert quantise(rounded, kind) == 20
    error = (flow(rounded) - flow(plain)).norm() / flow(plain).norm()
    assert 0 < error < BOUNDS[kind]

    def bytes_of(model: CausalWan) -> int:
        return sum(part.nbytes for weight in model.blocks.parameters() for part in plain_parts(weight))

    assert bytes_of(rounded) < 0.6 * bytes_of(plain)
    assert torch.equal(rounded.head.head.weight, plain.head.head.weight)


def test_rounding_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"'int4'; known: {', '.join(KINDS)}"):
        quantise(tiny(), "int4")
    with pytest.raises(ValueError, match=r"no linear layer has a name that begins with 'blocks\.'"):
        quantise(nn.Sequential(nn.Linear(2, 2)), "int8")
    with pytest.raises(ValueError, match=r"8\.9 or later, the weights are on cpu; use fp8 or int8"):
        quantise(tiny(), "fp8-dynamic")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match=r"needs torchao, which is not installed: pip install 'arvid\[quantise\]'"):
        quantise(tiny(), "int8")


# ---------------------------------------------------------------- placed


def test_a_placement_is_written_by_role() -> None:
    found = Placement.parse("vae=cpu:0, text=meta")
    assert found == Placement("cpu", vae="cpu:0", text="meta")
    assert [str(found.of(role)) for role in ("target", "drafter", "vae", "reward", "text")] == [
        "cpu", "cpu", "cpu:0", "cpu", "meta"
    ]  # fmt: skip
    assert Placement.parse("meta") == Placement("meta")
    assert Placement.parse("", "meta").home == META


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "decoder=cpu",
            "unknown role 'decoder' in the placement 'decoder=cpu'; known: target, drafter, vae, reward, text",
        ),
        ("vae=cpu,vae=meta", "vae is placed twice, on cpu and on meta; name it once"),
        ("vae=gpu", "vae is placed on 'gpu', which is no device; use cpu, cuda or cuda:NUMBER, like vae=cuda:0"),
        ("vae=", "vae is placed on '', which is no device"),
        ("cuda:64", "target is placed on cuda:64, and torch sees"),
        ("vae=mps", "vae is placed on mps, where no model runs; use cpu, cuda or cuda:NUMBER"),
    ],
)
def test_a_wrong_placement_says_so_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        Placement.parse(text)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_family.write(tmp_path_factory.mktemp("placed") / "toy")


def test_a_family_behind_borders_makes_the_same_video(toy: Path) -> None:
    # cpu:0 is another name for the cpu: every tensor crosses, none changes.
    request = Request("a red circle moves right", 1.5, 3, router="reward:tau=0.5")
    family = load(toy)
    moved = placed(family, Placement.parse("target=cpu,drafter=cpu:0,vae=cpu:0,reward=cpu"))
    assert isinstance(moved.drafter, PlacedDenoiser)
    assert isinstance(moved.decoder, PlacedAutoencoder)
    assert isinstance(moved.reward, PlacedReward)
    assert bare(moved.drafter) is family.drafter
    before, after = Pipeline(family).generate(request), Pipeline(moved).generate(request)
    assert torch.equal(before.frames_BTCHW, after.frames_BTCHW)
    assert [block.source for block in before.blocks] == [block.source for block in after.blocks]


def test_parts_that_stand_together_are_not_wrapped(toy: Path) -> None:
    family = load(toy)
    together = placed(family, Placement())
    assert (together.target, together.drafter) == (family.target, family.drafter)
    assert (together.decoder, together.reward) == (family.decoder, family.reward)


def test_tensors_cross_to_the_model_and_back() -> None:
    seen: list[Any] = []

    def model(z: Tensor, sigma: Tensor, condition: Condition, view: Any, span: Span) -> Estimate:
        seen.append((z.device, sigma.device, condition))
        return Estimate(torch.zeros(z.shape), ((torch.zeros(1), torch.zeros(1)),))

    z, sigma, condition = asked()
    border = PlacedDenoiser(model, META, META)
    made = [border(z, sigma, condition, Nothing(), SPAN) for _ in range(2)]
    border(z, sigma, replace(condition), Nothing(), SPAN)
    assert {one[0] for one in seen} | {one[1] for one in seen} | {one[2].text_BLD.device for one in seen} == {META}
    assert made[0].flow_BTCHW.device == META
    assert made[0].memory[0][0].device == CPU, "keys stay with the model"
    assert seen[0][2] is seen[1][2], "a model knows a prompt again by the object"
    assert seen[0][2] is not seen[2][2]


def test_frames_and_latents_cross_to_decoder_and_judges() -> None:
    class Model:
        lookback = 2

        def decode(self, z: Tensor, state: Any = None) -> Any:
            return z, (z.device,)

        def encode(self, v: Tensor) -> Tensor:
            assert v.device == CPU
            return v

        def score(self, v: Tensor, prompt: str) -> Tensor:
            return v

        def score_block(self, candidate: Candidate) -> Tensor:
            held = (
                candidate.block_BTCHW,
                candidate.frames(),
                candidate.frames_before_BTCHW,
                candidate.condition.text_BLD,
            )
            assert {x.device for x in held if x is not None} == {META}
            assert candidate.before_BTCHW is None
            return candidate.block_BTCHW

    z, _, condition = asked()
    assert PlacedDecoder(Model(), META).decode(z)[1] == (META,)
    assert not hasattr(PlacedDecoder(Model(), META), "encode")
    assert PlacedAutoencoder(Model(), Model(), CPU, META).encode(z).device == META
    assert PlacedReward(Model(), META).score(z, "").device == META
    judge = PlacedJudge(Model(), META)
    assert judge.lookback == 2
    assert judge.score_block(Candidate(z, None, lambda: z, z, condition)).device == META


# ---------------------------------------------------------------- beside the main stream


class Slow:
    """A lane whose work is not seen before somebody has waited for it; it counts who waits, and who fetches."""

    def __init__(self) -> None:
        self.waited = self.fetched = 0

    def do(self, work: Callable[[], Any], reads: Sequence[Tensor]) -> tuple[Any, Any]:
        made = work()
        first = made[0] if isinstance(made, tuple) else made
        values = first.clone()
        first.fill_(torch.nan)

        class Arrival:
            def wait(_, tensor: Tensor) -> None:
                self.waited += 1
                tensor.copy_(values)

            def fetch(_, tensor: Tensor) -> Tensor:
                self.fetched += 1
                return values

        return made, Arrival()


def decoder() -> TinyAutoencoder:
    return TinyAutoencoder(TAEConfig(4, (4, 4, 8), (4, 4, 8), (1, 1, 1), (1, 1, 1))).eval().requires_grad_(False)


def test_the_form_of_late_frames_is_known_and_their_values_are_waited_for() -> None:
    lane, model = Slow(), decoder()
    z = torch.randn(1, 3, 4, 8, 8)
    expected, _ = model.decode(z)
    frames, state = AsideDecoder(model, lane).decode(z)
    assert isinstance(frames, Late)
    assert (frames.shape, frames.dtype, frames.device, frames.ndim, len(frames)) == (
        expected.shape, torch.float32, CPU, 5, 1
    )  # fmt: skip
    assert frames.shape[1] == frames.size(1) == 9
    assert lane.waited == 0
    assert not any(isinstance(held, Late) for held in state)
    assert torch.equal(frames.cpu(), expected)
    assert (lane.waited, lane.fetched) == (0, 1), "fetching waits for these frames alone"
    for used in (frames[:, 2:], torch.cat([frames[:, :1], expected], 1)[:, 1:], frames + 0):
        assert type(used) is Tensor
    assert (lane.waited, lane.fetched) == (3, 1)
    torch.testing.assert_close(frames.numpy(), expected.numpy(), rtol=0, atol=0)


def test_blocks_decoded_aside_and_held_back_are_those_of_a_plain_decoder() -> None:
    lane, model, log = Slow(), decoder(), []
    z = torch.randn(1, 9, 4, 8, 8)

    def stream(chosen: Any) -> Iterator[Tensor]:
        state = None
        for start in range(0, 9, 3):
            log.append(start)
            frames, state = chosen.decode(z[:, start : start + 3], state)
            yield frames

    plain = torch.cat(list(stream(model)), 1)
    log.clear()
    shown = []
    for frames in held_back(stream(AsideDecoder(model, lane))):
        shown.append(frames.clone())
        log.append(-len(shown))
    assert torch.equal(torch.cat(shown, 1), plain)
    assert log == [0, 3, -1, 6, -2, -3], "the next block is asked for before this one is looked at"


def test_scores_made_aside_are_waited_for() -> None:
    class Mean:
        def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
            return v_BTCHW.mean((2, 3, 4))

    lane = Slow()
    v = torch.rand(1, 4, 3, 8, 8)
    scores = AsideReward(Mean(), lane).score(v, "")
    assert lane.waited == 0
    assert float(scores[0].float().min()) == float(v.mean((2, 3, 4)).min())


def test_a_cpu_has_no_lanes() -> None:
    model, reward = decoder(), object()
    assert aside(model, reward, CPU) == (model, reward)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "length"), [(0, 3), (1, 3), (2, 3), (5, 3), (1, 0)])
def test_holding_back_loses_nothing(count: int, length: int) -> None:
    assert list(held_back(iter(range(length)), count)) == list(range(length))
