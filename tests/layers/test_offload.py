"""Offloaded layers give what resting ones give, two at a time, and rest again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from arvid.layers.offload import Offload
from arvid.models.umt5 import Visiting

CPU = torch.device("cpu")


class Watched(nn.Module):
    """A layer that notes which layers are there when it computes, and whether it computes with its resting weights."""

    def __init__(self, log: list[tuple[int, ...]], width: int = 5) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("shift", torch.ones(width))
        self.resting = self.linear.weight.data_ptr()
        self.log, self.offload = log, None

    def forward(self, x: Tensor) -> Tensor:
        if self.offload is not None:
            self.log.append(self.offload.visiting)
            assert self.linear.weight.data_ptr() != self.resting
        return torch.tanh(self.linear(x)) + self.shift


def stack(count: int) -> tuple[nn.Sequential, list[tuple[int, ...]]]:
    log: list[tuple[int, ...]] = []
    return nn.Sequential(*(Watched(log) for _ in range(count))).requires_grad_(False), log


@pytest.mark.parametrize("count", [1, 2, 5])
def test_offloaded_is_resident_with_two_layers_at_a_time(count: int) -> None:
    model, log = stack(count)
    x = torch.randn(3, 5)
    expected, before = model(x), [held.data_ptr() for held in (*model.parameters(), *model.buffers())]
    offload = Offload(list(model), CPU)
    for layer in model:
        layer.offload = offload
    with torch.inference_mode():
        found = [model(x), model(x)]
    assert all(torch.equal(each, expected) for each in found)
    assert log == [tuple(sorted({n, (n + 1) % count})) for _ in range(2) for n in range(count)]
    offload.remove()
    assert offload.visiting == ()
    assert [held.data_ptr() for held in (*model.parameters(), *model.buffers())] == before
    for layer in model:
        layer.offload = None
    assert torch.equal(model(x), expected)


def test_a_layer_that_fails_goes_back_to_rest() -> None:
    model, _ = stack(3)
    before = [p.data_ptr() for p in model.parameters()]
    offload = Offload(list(model), CPU)
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 4))
    offload.remove()
    assert [p.data_ptr() for p in model.parameters()] == before


def test_weights_visit_within_inference_too() -> None:
    from arvid.models.text import TextEncoder

    encoder = TextEncoder.build(["a", "ball"], length=4, width=8, layers=1, heads=2)
    expected = encoder.encode(["a ball"])
    with torch.inference_mode():
        assert torch.equal(Visiting(encoder, CPU).encode(["a ball"]), expected)
    assert torch.equal(encoder.encode(["a ball"]), expected)
