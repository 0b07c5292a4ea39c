"""Sizes of the Wan family: the published ones and the embedded pair.

Knows: sizes and what a pass costs. Does not know: weights, files, schedules.
"""

from __future__ import annotations

import math

from arvid.models.wan.cells import FACTS
from arvid.models.wan.transformer import WanConfig

WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
EMBEDDED_TARGET = WanConfig(
    dim=256, ffn_dim=1024, num_heads=4, num_layers=12, text_dim=128, text_len=64, cell_width=96, cell_blocks=3
)
EMBEDDED_DRAFTER = WanConfig(
    dim=192, ffn_dim=768, num_heads=3, num_layers=3, text_dim=128, text_len=64, cell_width=32, cell_blocks=1
)

PRESETS = {
    "wan-1.3b": WAN_1_3B,
    "wan-14b": WAN_14B,
    "embedded-target": EMBEDDED_TARGET,
    "embedded-drafter": EMBEDDED_DRAFTER,
}


def flops_per_token(config: WanConfig, keys: int) -> int:
    """Multiply-adds times two of one transformer pass per query token that reads `keys` tokens, text keys cached; its
    convolutions over cells included."""
    linear = 4 * config.dim**2 + 2 * config.dim**2 + 2 * config.dim * config.ffn_dim
    attention = 2 * config.dim * (keys + config.text_len)
    return 2 * config.num_layers * (linear + attention) + 2 * math.prod(config.patch_size) * _per_cell(config)


def _per_cell(config: WanConfig) -> int:
    """Multiply-adds of the convolutions over cells for one cell: 3x3 in, within and out, and a row of each of the two
    matrices between cells and tokens."""
    width = config.cell_width
    inside = 2 * config.cell_blocks * 2 * width
    return width * (9 * (config.in_dim + FACTS + inside + config.out_dim) + 2 * config.dim)
