"""The recipe of the embedded family, every stage in its order with next to no steps: what a stage leaves is what the
next one needs, and the family it packs makes videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arvid.pipeline import Pipeline, Request, load
from arvid.recipes.embedded import PART, STAGES, Sizes


@pytest.mark.slow
def test_every_stage_leaves_what_the_next_one_needs(tmp_path: Path) -> None:
    sizes = Sizes(
        text_steps=2, clips=24, vae_steps=1, decoder_steps=1, latents=PART, target_steps=1, drafter_steps=1,
        reward_steps=3, batch=1,
    )  # fmt: skip
    for stage in STAGES.values():
        stage(tmp_path, sizes, lambda numbers: None)
    family = load(tmp_path / "family")
    result = Pipeline(family).generate(Request("a red circle on a blue background", seconds=1.0, seed=0))
    assert torch.isfinite(result.frames_BTCHW).all()
    assert result.frames_BTCHW.shape[-2:] == (64, 64)
