"""Replay a recorded rollout of a causal Wan, to compare arvid with the code that the weights came from.

    python examples/replay_wan.py IN.safetensors -o OUT.safetensors [--window FRAMES] [--device cuda] [--dtype bfloat16]

IN holds `w:<original name>` for every weight, `context` [L, text_dim], `noise` [B, T, C, H, W], `renoise`
[blocks, steps - 1, B, 3, C, H, W], `timesteps` [steps] on the scale of 1000, and in its metadata `cfg`: the original
constructor's arguments as a Python literal. OUT gets `latents` [B, T, C, H, W]. docs/checkpoints.md has the details.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arvid.cli.places import whole
from arvid.models.checkpoints.reading import settings_of, wan_from_state
from arvid.models.wan.transformer import WanConfig
from arvid.rollout.replay import Recording, replay

WEIGHT = "w:"
SHIFT = 5.0


def main() -> None:
    """Read the recording, replay it, write the latents; wrong input is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="Replay a recorded rollout of a causal Wan.")
    parser.add_argument("recording", type=Path, metavar="IN.safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors")
    parser.add_argument("--window", type=int, metavar="FRAMES", help="frames a block looks at, its own among them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    asked = parser.parse_args()
    try:
        latents = run(asked.recording, asked.window, asked.device, getattr(torch, asked.dtype))
        with whole(asked.output.absolute()) as part:
            save_file({"latents": latents.contiguous()}, part)
    except (ValueError, OSError, SafetensorError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


def run(path: Path, window: int | None, device: str, dtype: torch.dtype) -> Tensor:
    """Latents of the recording in a file. Raises ValueError for what is missing or does not fit."""
    with safe_open(path, framework="pt", device="cpu") as file:
        names = list(file.keys())
        lost = [name for name in ("context", "noise", "renoise", "timesteps") if name not in names]
        said = (file.metadata() or {}).get("cfg")
        if lost or said is None:
            raise ValueError(
                f"{path} lacks {[*lost, *([] if said else ['cfg in its metadata'])]}; see docs/checkpoints.md"
            )
        config = read_config(said)
        state = {name[len(WEIGHT) :]: file.get_tensor(name) for name in names if name.startswith(WEIGHT)}
        model = wan_from_state(state, config, device, dtype)
        held = {name: file.get_tensor(name) for name in ("context", "noise", "renoise", "timesteps")}
    recording = Recording(
        held["noise"],
        held["renoise"],
        padded(held["context"], config.text_len)[None].to(device),
        tuple(held["timesteps"].double().tolist()),
        SHIFT,
    )
    return replay(model, recording, window).cpu()


def read_config(text: str) -> WanConfig:
    """The original constructor's arguments. Raises ValueError when they are no literal dictionary."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"cfg is no Python literal ({error}); write a dictionary of numbers") from error
    if not isinstance(found, dict):
        raise ValueError(f"cfg is a {type(found).__name__}; write a dictionary of the constructor's arguments")
    return settings_of(found)


def padded(context_LD: Tensor, length: int) -> Tensor:
    """An embedded prompt [length, D], zero beyond its end. Raises ValueError when it is longer than the model reads."""
    if context_LD.ndim != 2 or context_LD.shape[0] > length:
        raise ValueError(f"context {list(context_LD.shape)}; expected [at most {length}, text_dim]")
    return torch.nn.functional.pad(context_LD, (0, 0, 0, length - context_LD.shape[0]))


if __name__ == "__main__":
    main()
