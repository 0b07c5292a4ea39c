"""Layers that visit the device: the same numbers, never more of them at once than was said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from arvid.layers.quantise import plain_parts, quantise
from arvid.models.offload import TEXT, Layer, Offload, _weights, offload
from arvid.models.pinned import ALIGNED, pinned
from arvid.models.wan.transformer import CausalWan
from arvid.types import Condition
from oracles import tiny_wan
from oracles.dense_wan import CFG
from oracles.tiny_wan import flow

LAYERS = 5
CPU = torch.device("cpu")
model = partial(tiny_wan.model, layers=LAYERS)


class Cuda:
    """What CUDA is told about main memory: (address, bytes) that are pinned now, and how often it was waited for."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self.waited = self.code = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if not self.code:
            self.pinned[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0

    def wait(self, device: torch.device) -> None:
        self.waited += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    found = Cuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)
    monkeypatch.setattr(torch.cuda, "synchronize", found.wait)
    return found


def computing(made: CausalWan, running: Offload) -> list[tuple[int, int]]:
    """(layer, layers on the device) at every moment that a layer computes, and a check that it computes there."""
    seen: list[tuple[int, int]] = []
    places = {id(weight) for place in running._places for weight in place.weights}

    def look(number: int) -> Any:
        def hook(ffn: nn.Module, given: Any) -> None:
            used = [weight for name, weight in made.blocks[number].named_parameters() if "cross_attn.k" not in name]
            there = [id(weight) in places for weight in used]
            assert sum(there) == len(running.layers[number].where) and len(there) - sum(there) == 3
            seen.append((number, running.resident))

        return hook

    for number, block in enumerate(made.blocks):
        block.ffn.register_forward_pre_hook(look(number))
    return seen


@pytest.mark.parametrize("ahead", [1, 2, 3, LAYERS, LAYERS + 3])
def test_the_same_flow_with_at_most_so_many_layers_on_the_device(ahead: int) -> None:
    plain, resting = model(), model()
    running = offload(resting, CPU, ahead)
    seen = computing(resting, running)
    for _ in range(3):
        torch.testing.assert_close(flow(resting), flow(plain), rtol=0, atol=0)
    assert [number for number, _ in seen] == 3 * list(range(LAYERS))
    assert running.most == max(there for _, there in seen) == min(ahead, LAYERS)


def test_the_next_layers_are_there_before_they_are_needed() -> None:
    made = model()
    running = offload(made, CPU, 3)
    fetched: list[set[int]] = []
    made.blocks[3].ffn.register_forward_pre_hook(
        lambda ffn, given: fetched.append({n for n, layer in enumerate(running.layers) if layer.place is not None})
    )
    flow(made)
    assert fetched == [{3, 4, 0}], "behind the last layer come the first ones of the next pass"


def test_the_hosts_copy_is_never_written_and_the_state_dict_is_whole() -> None:
    plain, resting = model(), model()
    offload(resting, CPU, 2)
    flow(resting)
    expected = plain.state_dict()
    assert resting.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in resting.state_dict().items())


def test_another_prompt_is_read_with_weights_that_come_for_it() -> None:
    plain, resting = model(), model()
    offload(resting, CPU, 2)
    for number in range(3):
        text = torch.randn(1, CFG["text_len"], CFG["text_dim"], generator=torch.Generator().manual_seed(number))
        condition = Condition("", text)
        torch.testing.assert_close(flow(resting, condition), flow(plain, replace(condition)), rtol=0, atol=0)


def test_a_pass_that_broke_off_leaves_nothing_behind() -> None:
    plain, resting = model(), model()
    running = offload(resting, CPU, 2)
    broken = resting.blocks[2].ffn.register_forward_pre_hook(_break)
    with pytest.raises(InterruptedError):
        flow(resting)
    broken.remove()
    torch.testing.assert_close(flow(resting), flow(plain), rtol=0, atol=0)
    assert running.most == 2


def _break(ffn: nn.Module, given: Any) -> None:
    raise InterruptedError


class Rounded(torch.Tensor):
    """A weight of two tensors, as torchao makes them: whole numbers, and a scale per row."""

    numbers: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, scales: Tensor) -> Rounded:
        made: Rounded = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, dtype=scales.dtype, device=numbers.device
        )
        made.numbers, made.scales = numbers, scales
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scales"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> Rounded:
        return cls(inner["numbers"], inner["scales"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(*(function(part) for part in (given[0].numbers, given[0].scales)))
        given, named = tree_map_only(cls, lambda weight: weight.numbers * weight.scales, (given, named or {}))
        return function(*given, **named)


def rounded() -> CausalWan:
    """A model whose linear layers have weights of two tensors."""
    made = model()
    for name, part in made.named_modules():
        if isinstance(part, nn.Linear) and name.startswith("blocks."):
            scales = part.weight.abs().amax(1, keepdim=True) / 127
            numbers = (part.weight / scales).round().to(torch.int8)
            part.weight = nn.Parameter(Rounded(numbers, scales), requires_grad=False)
    return made


def by_torchao() -> CausalWan:
    pytest.importorskip("torchao")
    made = model(torch.bfloat16, 96)
    quantise(made, "int8")
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [rounded, by_torchao], ids=lambda make: make.__name__)
def test_rounded_layers_rest_and_visit_as_well(make: Callable[[], CausalWan]) -> None:
    """In inference mode, as a video is made: prompts are read there, with weights that come for them."""
    plain, resting = make(), make()
    running = offload(resting, CPU, 2)
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(flow(resting), flow(plain), rtol=0, atol=0)
    assert not any(weight.is_inference() for layer in running.layers for weight in layer.rest)


def test_what_rests_is_pinned_at_its_own_size(cuda: Cuda) -> None:
    """For a GPU; torch's own pinned memory would take a power of two for every tensor."""
    made = rounded()
    layer = Layer(_weights(made.blocks[0], TEXT), torch.device("cuda"))
    parts = [part for weight in layer.rest for part in plain_parts(weight)]
    assert len(cuda.pinned) == 1, "one piece a layer"
    ((address, size),) = cuda.pinned.items()
    assert all(address <= part.data_ptr() and part.data_ptr() + part.nbytes <= address + size for part in parts)
    assert size - sum(part.nbytes for part in parts) < ALIGNED * len(parts)
    torch.testing.assert_close(flow(made), flow(rounded()), rtol=0, atol=0)


def test_pinned_memory_holds_the_same_and_goes_with_the_last_tensor(cuda: Cuda) -> None:
    draw = torch.Generator().manual_seed(0)
    held = [
        torch.randn(300, 7, generator=draw), torch.randn(5, 11, generator=draw).bfloat16().T, torch.tensor(3.5),
        torch.arange(13, dtype=torch.int8), torch.randn(4, 4, generator=draw).to(torch.float8_e4m3fn),
        torch.randn(6, 6, generator=draw)[:, ::2],
    ]  # fmt: skip
    with torch.inference_mode():
        found = pinned(held, torch.device("cuda"))
    for one, other in zip(found, held, strict=True):
        assert (one.dtype, one.is_inference(), one.data_ptr() % ALIGNED) == (other.dtype, False, 0)
        assert torch.equal(one.float(), other.float())
    assert found[1].stride() == held[1].stride()
    last = found[3].view(torch.uint8)
    assert len(cuda.pinned) == 1
    del found, one
    assert len(cuda.pinned) == 1 and last.tolist() == list(range(13))
    del last
    assert cuda.pinned == {} and cuda.waited == 1, "no page goes while a copy may be under way"
    assert pinned([], torch.device("cuda")) == []


def test_memory_that_cannot_be_pinned_is_said(cuda: Cuda) -> None:
    cuda.code = 2
    said = (
        r"^4\d+ bytes of main memory could not be pinned for cuda \(CUDA error 2\); free some, or leave --offload out$"
    )
    with pytest.raises(ValueError, match=said):
        pinned([torch.zeros(1000)], torch.device("cuda"))
    assert cuda.pinned == {}


def test_what_cannot_be_offloaded_is_said() -> None:
    with pytest.raises(ValueError, match="0 layers on cpu at once; at least 1"):
        offload(model(), CPU, 0)
    with pytest.raises(ValueError, match="weights are on meta; load the model on the cpu"):
        offload(model().to("meta"), CPU)
