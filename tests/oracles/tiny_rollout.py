"""A tiny causal model with sharp attention, rolled out block by block over a store.

Knows: the walker and the store of the engine. Does not know: what any policy should do.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from arvid.caches.store import Store
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rollout.flow import FlowWalker
from arvid.rollout.stage import Clock
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.types import Condition

BLOCK, CHANNELS, SIDE, HEADS, LAYERS = 3, 4, 8, 2, 2
GRID = (SIDE // 2, SIDE // 2)
SIGMAS = few_step(2)
CONDITION = Condition("words", torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(7)))


@cache
def model(layers: int = LAYERS, heads: int = HEADS, head_size: int = 12) -> CausalWan:
    """Random weights, attention sharp enough that it matters who is seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = heads * head_size
        config = WanConfig(
            dim=width, ffn_dim=2 * width, num_heads=heads, num_layers=layers, text_dim=8, text_len=5,
            in_dim=CHANNELS, out_dim=CHANNELS, freq_dim=16,
        )  # fmt: skip
        made = CausalWan(config)
    with torch.no_grad():
        for block in made.blocks:
            block.self_attn.norm_q.weight.mul_(3)
            block.self_attn.o.weight.mul_(3)
    return made.eval().requires_grad_(False)


@torch.no_grad()
def roll(
    store: Store,
    blocks: int = 5,
    disturbed: int = -1,
    network: CausalWan | None = None,
    condition: Condition = CONDITION,
) -> Tensor:
    """Latents [1, T, C, H, W] of a rollout; the block `disturbed` starts from other noise."""
    walker = FlowWalker("target", network or model(), store, STEPS["euler"], Clock())
    done = []
    for move in sequential(blocks * BLOCK, BLOCK, SIGMAS):
        noise = SeededNoise(4 if move.index == disturbed else 3)
        x = noise.draw(move.index, 0, (1, BLOCK, CHANNELS, SIDE, SIDE))
        made = walker.walk(move, x, move.sigmas, condition, noise).block_BTCHW
        walker.remember(move, made, condition)
        done.append(made)
    return torch.cat(done, 1)
