"""Weights of 8 bits: half the bytes, nearly the same numbers, and clear words where it cannot be done."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from arvid.layers.quantise import quantise


def test_unknown_schemes_and_a_missing_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown kind of quantisation 'int3'; known: int8, int8-dynamic, fp8, fp8-dynamic"):
        quantise(nn.Linear(2, 2), "int3")
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"needs torchao; install arvid\[quantise\]"):
        quantise(nn.Linear(2, 2), "int8")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is an extra")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "fp8"])
def test_half_the_bytes_and_nearly_the_same_numbers(scheme: str) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64)).bfloat16().requires_grad_(False)
    x = torch.randn(7, 64).bfloat16()
    expected = model(x).float()
    norm = model[1].weight.clone()
    assert quantise(model, scheme) is model
    with torch.inference_mode():
        found = model(x)
    assert found.dtype == torch.bfloat16
    assert 0 < (found.float() - expected).norm() / expected.norm() < 0.05
    assert torch.equal(model[1].weight, norm)
    inner = model[0].weight
    held = [getattr(inner, name) for name in ("qdata", "scale")]
    assert sum(part.nbytes for part in held) < 0.6 * 2 * inner.numel()


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is an extra")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it may well be possible")
@pytest.mark.filterwarnings("ignore")
def test_what_the_machine_lacks_is_told() -> None:
    with pytest.raises(ValueError, match=r"'fp8-dynamic' is not possible here .*; use int8"):
        quantise(nn.Linear(64, 64).bfloat16(), "fp8-dynamic")
