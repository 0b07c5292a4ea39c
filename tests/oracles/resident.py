"""Predicted and resident memory of whole runs with random weights, one JSON line per size.

Knows: where Linux tells the most memory a process ever had, and how that is reset. Does not know: how the prediction is
made. Every size runs in a process of its own, twice: the first time the libraries make their kernels.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
from dataclasses import asdict

import torch
from torch import nn
from transformers import UMT5EncoderModel

from arvid.cli.needs import Ask, Parts, needs_of
from arvid.models.family import Card
from arvid.models.planning import Ledger, most
from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.text import TextEncoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.pipeline import Family, Pipeline, Request

SECONDS = 1.5
TEXT = {"text_dim": 16, "text_len": 24}
SIZES = (
    ((256, 192), 6, WanConfig(dim=512, ffn_dim=2048, num_heads=8, num_layers=6, **TEXT),
     TAEConfig(16, (16, 32, 64), (16, 32, 64), (1, 1, 1), (1, 1, 1))),
    ((192, 192), 6, WanConfig(dim=768, ffn_dim=3072, num_heads=12, num_layers=6, **TEXT),
     TAEConfig(16, (16, 32, 64), (16, 32, 64), (1, 1, 1), (1, 1, 1))),
    ((256, 256), 3, WanConfig(dim=640, ffn_dim=2560, num_heads=10, num_layers=4, **TEXT),
     TAEConfig(16, (32, 64, 64), (32, 64, 64), (1, 1, 1), (1, 1, 1))),
)  # fmt: skip
"""Pixels, frames of past, transformer, autoencoder."""


def told(name: str) -> int:
    """Bytes of a line of the process's status."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def settle() -> int:
    """Give back what can be given back, start the peak anew; bytes resident now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return told("VmRSS")


def filled(module: nn.Module) -> nn.Module:
    """The module in bf16 with small random weights, made in place."""
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    for held in (*module.parameters(), *module.buffers()):
        held.uniform_(-0.02, 0.02)
    return module


def run(card: Card, config: WanConfig, vae: TAEConfig, text: TextEncoder) -> None:
    """Weights, and a video of them."""
    with torch.device("meta"):
        target, decoder = CausalWan(config).bfloat16(), TinyAutoencoder(vae).bfloat16()
    filled(target), filled(decoder)
    decoder.channels_last()
    family = Family(card, target, None, decoder, text, None, torch.device("cpu"))
    for _ in Pipeline(family).stream(Request("a red ball", SECONDS)):
        pass


def nothing(encoder: object, ledger: Ledger) -> tuple[int, int]:
    """The tiny text encoder was there before."""
    return 0, 0


def compare(size: tuple[int, int], frames: int, config: WanConfig, vae: TAEConfig) -> dict[str, int]:
    """Bytes predicted and measured."""
    text = TextEncoder.build(["a", "red", "ball"], length=TEXT["text_len"], width=TEXT["text_dim"], layers=1, heads=2)
    parts = {"target": asdict(config), "vae": asdict(vae)}
    card = Card("toy", 3, 21, size, 16, 2, "euler", f"window:frames={frames}", "target", parts)
    parts_ = Parts(
        card, config, None, (lambda: UMT5EncoderModel(text.model.config), nothing), lambda: TinyAutoencoder(vae), None
    )
    needs = [need for need in needs_of(parts_, Ask(seconds=SECONDS)) if need.role != "text"]
    predicted = most(needs, {need.role: "cpu" for need in needs})["cpu"]
    run(card, config, vae, text)
    before = settle()
    run(card, config, vae, text)
    return {"predicted": predicted, "measured": told("VmHWM") - before}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for arguments in SIZES:
        child = os.fork()
        if not child:
            print(json.dumps(compare(*arguments)), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
