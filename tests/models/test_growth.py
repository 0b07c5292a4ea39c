"""A deepened transformer computes what the shallow one computes, and can learn to compute more."""

import pytest
import torch

from arvid.caches.full import Full
from arvid.caches.store import Store
from arvid.models.wan.growth import deepen
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.types import Condition, Span

SHALLOW = WanConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=2, text_dim=8, text_len=4, in_dim=4, out_dim=4)


def flow(model: CausalWan) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 2, 4, 4, 4, generator=generator)
    text = Condition("", torch.randn(1, 4, 8, generator=generator))
    span = Span(0, 2)
    return model(z, torch.full((1, 2), 0.5), text, Store(Full(), 2).view(span), span).flow_BTCHW


def trained() -> CausalWan:
    model = CausalWan(SHALLOW)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_a_deeper_model_computes_the_same(layers: int) -> None:
    shallow = trained()
    config = WanConfig(**{**SHALLOW.__dict__, "num_layers": layers})
    deep = CausalWan(config)
    deep.load_state_dict(deepen(shallow.state_dict(), config))
    torch.testing.assert_close(flow(deep), flow(shallow), atol=1e-5, rtol=1e-5)


def test_new_blocks_receive_gradient() -> None:
    config = WanConfig(**{**SHALLOW.__dict__, "num_layers": 3})
    deep = CausalWan(config)
    deep.load_state_dict(deepen(trained().state_dict(), config))
    flow(deep).square().mean().backward()
    quiet = [n for n, p in deep.named_parameters() if n.endswith("o.weight") and not p.grad.abs().sum()]
    assert not quiet


def test_growing_down_is_refused() -> None:
    with pytest.raises(ValueError, match="2 blocks to grow to 1"):
        deepen(trained().state_dict(), WanConfig(**{**SHALLOW.__dict__, "num_layers": 1}))
