"""Convolutions beside a transformer's patches: where cells go, what they cost, and that they can be without effect."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from arvid.models.wan.cells import CellConvolutions
from arvid.models.wan.growth import deepen
from arvid.models.wan.presets import flops_per_token
from arvid.models.wan.transformer import CausalWan, WanConfig

PLAIN = WanConfig(dim=12, ffn_dim=24, num_heads=2, num_layers=2, text_dim=8, text_len=4, in_dim=5, out_dim=3)
CELLS = replace(PLAIN, cell_width=6, cell_blocks=2)


class Alone:
    """A view of nothing in which all see all."""

    frames = ()

    def read(self, layer: int, rotate: object) -> None:
        return None

    def mask(self, frames: tuple[int, ...]) -> None:
        return None


def made(patch: tuple[int, int] = (2, 3)) -> CellConvolutions:
    torch.manual_seed(0)
    return CellConvolutions(5, 3, 12, patch, 6, 1)


def test_tokens_are_patches_of_the_maps_and_go_back_to_them() -> None:
    """Against torch's own unfolding and folding of patches, on cells that are not square."""
    cells = made()
    z, sigma, time, tokens = (
        torch.randn(2, 3, 5, 4, 9),
        torch.rand(2, 3),
        torch.randn(2, 3, 12),
        torch.randn(2, 3, 6, 12),
    )
    with torch.no_grad():
        shown, maps = cells.before(z, sigma, time)
        patches = F.unfold(maps, (2, 3), stride=(2, 3)).transpose(1, 2)
        torch.testing.assert_close(shown.flatten(0, 1), cells.show(patches))
        told = cells.tell(F.layer_norm(tokens, (12,))).flatten(0, 1).transpose(1, 2)
        wide = F.fold(told, (4, 9), (2, 3), stride=(2, 3))
        flow = cells.leave(F.silu(cells.behind_blocks(maps + wide)))
        torch.testing.assert_close(cells.behind(maps, tokens).flatten(0, 1), flow)


def test_they_know_level_and_place() -> None:
    """The same latents in another place of the picture, or at another level, look different; so do they not to a
    convolution alone."""
    cells, z, time = made(), torch.zeros(1, 1, 5, 20, 30), torch.zeros(1, 1, 12)
    with torch.no_grad():
        _, maps = cells.before(z, torch.full((1, 1), 0.3), time)
        _, other = cells.before(z, torch.full((1, 1), 0.8), time)
    assert (maps[..., 8, 10] - maps[..., 8, 20]).abs().max() > 1e-3
    assert (maps[..., 8, 10] - maps[..., 12, 10]).abs().max() > 1e-3
    assert (maps - other).abs().max() > 1e-3


def flow_of(model: CausalWan) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    z, text = torch.randn(2, 3, 5, 4, 6, generator=generator), torch.randn(2, 4, 8, generator=generator)
    return model.flow(z, torch.full((2, 3), 0.7), model.read_text(text), Alone(), (0, 1, 2)).flow_BTCHW


def test_a_transformer_begins_as_it_was_without_them_and_learns_them() -> None:
    """Weights of a transformer without convolutions go on in one with them, bit by bit; and every weight of the
    convolutions has a gradient after a few steps."""
    plain = CausalWan(PLAIN)
    plain.initialise(torch.Generator().manual_seed(1))
    torch.nn.init.normal_(plain.head.head.weight, generator=torch.Generator().manual_seed(2))
    model = CausalWan(CELLS)
    model.initialise(torch.Generator().manual_seed(4))
    model.load_state_dict(deepen(plain.state_dict(), CELLS))
    with torch.no_grad():
        assert torch.equal(flow_of(model), flow_of(plain))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        flow_of(model).square().mean().backward()
        optimiser.step()
    still = [name for name, p in model.named_parameters() if name.startswith("cells.") and not p.grad.abs().max() > 0]
    assert still == []


def counted(config: WanConfig) -> int:
    """What a pass over two frames of 4x6 cells costs, by torch."""
    model = CausalWan(config)
    z, text = torch.randn(1, 2, 5, 4, 6), model.read_text(torch.randn(1, 4, 8))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.flow(z, torch.full((1, 2), 0.7), text, Alone(), (0, 1))
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [CELLS, replace(CELLS, patch_size=(1, 1, 2), cell_blocks=1)])
def test_what_they_cost(config: WanConfig) -> None:
    """Ours is torch's own count; the level's way in, once a frame, is left out."""
    without = replace(config, cell_width=0)
    tokens = 2 * 4 * 6 // (config.patch_size[1] * config.patch_size[2])
    ours = tokens * (flops_per_token(config, tokens) - flops_per_token(without, tokens))
    assert counted(config) - counted(without) - 2 * 2 * config.dim * config.cell_width == ours
