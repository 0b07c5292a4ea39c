"""A family of random weights on disk, small enough that a command makes a video with it in a second.

Knows: the layout of a family directory. Does not know: what any weight means.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from arvid.models.family import stating
from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.text import TextEncoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rewards.frame import FrameReward, FrameRewardConfig
from arvid.worlds.grammar import EXAMPLE

WORDS = {*EXAMPLE.split(), "circle", "square", "star", "green", "yellow", "large", "small"}
TARGET = WanConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, text_len=24, freq_dim=32)
DRAFTER = replace(TARGET, dim=16, ffn_dim=32, num_layers=1)
VAE = TAEConfig(16, (4, 4, 8), (4, 4, 8), (1, 1, 1), (1, 1, 1))
REWARD = FrameRewardConfig(text_width=16)


def write(
    directory: Path, name: str = "embedded-toy", drafter: WanConfig | None = DRAFTER, reward: bool = True
) -> Path:
    """Write a family of 64x64 pixels, blocks of 3 latent frames and 2 steps; same arguments, same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        directory.mkdir(parents=True, exist_ok=True)
        parts: dict[str, object] = {"vae": asdict(VAE)}
        _keep(TinyAutoencoder(VAE), directory / "vae.safetensors")
        for part, config in (("target", TARGET), ("drafter", drafter)):
            if config is not None:
                parts[part] = asdict(config)
                model = CausalWan(config)
                # It starts at zero, and drafter and target would make the same video.
                nn.init.normal_(model.head.head.weight, std=0.1)
                _keep(model, directory / f"{part}.safetensors", stating(config))
        text = TextEncoder.build(WORDS, length=TARGET.text_len, width=TARGET.text_dim, layers=1, heads=2)
        text.save(directory / "text")
        if reward:
            parts["reward"] = {}
            FrameReward(text.encode, REWARD).save(directory / "reward")
    card = {
        "name": name, "world": "shapes", "block": 3, "trained_frames": 21, "size": [64, 64], "fps": 16, "steps": 2,
        "step": "euler", "past": "window:frames=9", "router": "first" if drafter else "target", "parts": parts,
    }  # fmt: skip
    (directory / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return directory


def _keep(model: nn.Module, path: Path, told: dict[str, str] | None = None) -> None:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, told)
