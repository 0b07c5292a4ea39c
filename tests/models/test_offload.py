"""Layers that visit the device: the same numbers, never more of them at once than was said."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from arvid.layers.quantise import quantise
from arvid.models.offload import Offload, offload
from arvid.models.wan.transformer import CausalWan
from arvid.types import Condition
from oracles import tiny_wan
from oracles.dense_wan import CFG
from oracles.tiny_wan import flow

LAYERS = 5
CPU = torch.device("cpu")
model = partial(tiny_wan.model, layers=LAYERS)


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


@pytest.mark.filterwarnings("ignore")
def test_rounded_layers_rest_and_visit_as_well() -> None:
    pytest.importorskip("torchao")
    plain = model(torch.bfloat16, 96)
    quantise(plain, "int8")
    resting = copy.deepcopy(plain)
    offload(resting, CPU, 2)
    torch.testing.assert_close(flow(resting), flow(plain), rtol=0, atol=0)


def test_what_cannot_be_offloaded_is_said() -> None:
    with pytest.raises(ValueError, match="0 layers on cpu at once; at least 1"):
        offload(model(), CPU, 0)
    with pytest.raises(ValueError, match="weights are on meta; load the model on the cpu"):
        offload(model().to("meta"), CPU)
