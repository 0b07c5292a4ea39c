"""A causal Wan written out from the description of the original, in fp64, without a cache: every pass is over the whole
video so far, under a mask. Names and shapes of the weights are stated here a second time.

Knows: the architecture, the table of levels, how a few-step rollout goes. Does not know: anything of arvid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 3
CFG: dict[str, Any] = {
    "dim": 48, "ffn_dim": 80, "freq_dim": 16, "text_dim": 12, "text_len": 7, "in_dim": 4, "out_dim": 4, "num_heads": 2,
    "num_layers": 2, "patch_size": (1, 2, 2),
}  # fmt: skip


def shapes(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight of the original by name."""
    dim, ffn = cfg["dim"], cfg["ffn_dim"]
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (rows, columns), (rows,)

    found["patch_embedding.weight"] = (dim, cfg["in_dim"], *cfg["patch_size"])
    found["patch_embedding.bias"] = (dim,)
    linear("text_embedding.0", dim, cfg["text_dim"])
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, cfg["freq_dim"])
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    for number in range(cfg["num_layers"]):
        block = f"blocks.{number}"
        found[f"{block}.modulation"] = (1, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{block}.{attention}.{part}", dim, dim)
            for norm in ("norm_q", "norm_k"):
                found[f"{block}.{attention}.{norm}.weight"] = (dim,)
        found[f"{block}.norm3.weight"] = found[f"{block}.norm3.bias"] = (dim,)
        linear(f"{block}.ffn.0", ffn, dim)
        linear(f"{block}.ffn.2", dim, ffn)
    found["head.modulation"] = (1, 2, dim)
    linear("head.head", math.prod(cfg["patch_size"]) * cfg["out_dim"], dim)
    return found


def weights(cfg: dict[str, Any] = CFG, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under which everything matters: sharp attention, gates and norms away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(cfg).items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("modulation"):
            value = value * 0.5
        elif "norm" in name:
            value = value * 0.2 + (2.0 if "norm_q" in name or "norm_k" in name else 1.0 if "weight" in name else 0.0)
        elif len(shape) > 1:
            value = value / math.prod(shape[1:]) ** 0.5
        found[name] = value.to(dtype)
    return found


def flow(
    w: dict[str, Tensor], cfg: dict[str, Any], z_BTCHW: Tensor, t_BT: Tensor, text_BLD: Tensor, sees: Tensor
) -> Tensor:
    """Flow of all frames; frame i looks at frame j where sees[i, j]."""
    w = {name: value.double() for name, value in w.items()}

    def lin(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    def rms(name: str, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[name]

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (cfg["num_heads"], -1)).transpose(1, 2)

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    batch, frames, _, height, width = z_BTCHW.shape
    x = F.conv3d(
        z_BTCHW.double().transpose(1, 2), w["patch_embedding.weight"], w["patch_embedding.bias"], cfg["patch_size"]
    )
    rows, columns = x.shape[3:]
    tokens = rows * columns
    x = x.flatten(2).transpose(1, 2)
    half = cfg["freq_dim"] // 2
    angle = t_BT.double()[..., None] / 10000 ** (torch.arange(half).double() / half)
    time = lin("time_embedding.2", F.silu(lin("time_embedding.0", torch.cat([angle.cos(), angle.sin()], -1))))
    six = lin("time_projection.1", F.silu(time)).unflatten(-1, (6, -1))
    text = lin("text_embedding.2", F.gelu(lin("text_embedding.0", text_BLD.double()), approximate="tanh"))
    turned = Rotation(frames, rows, columns, cfg["dim"] // cfg["num_heads"])
    mask = sees.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    for number in range(cfg["num_layers"]):
        b = f"blocks.{number}"
        e = (w[f"{b}.modulation"] + six).repeat_interleave(tokens, 1)
        y = norm(x) * (1 + e[:, :, 1]) + e[:, :, 0]
        q, k = (turned(heads(rms(f"{b}.self_attn.norm_{p}.weight", lin(f"{b}.self_attn.{p}", y)))) for p in "qk")
        y = lin(f"{b}.self_attn.o", attention(q, k, heads(lin(f"{b}.self_attn.v", y)), mask))
        x = x + y * e[:, :, 2]
        y = norm(x) * w[f"{b}.norm3.weight"] + w[f"{b}.norm3.bias"]
        q = heads(rms(f"{b}.cross_attn.norm_q.weight", lin(f"{b}.cross_attn.q", y)))
        k = heads(rms(f"{b}.cross_attn.norm_k.weight", lin(f"{b}.cross_attn.k", text)))
        x = x + lin(f"{b}.cross_attn.o", attention(q, k, heads(lin(f"{b}.cross_attn.v", text)), None))
        y = norm(x) * (1 + e[:, :, 4]) + e[:, :, 3]
        x = x + lin(f"{b}.ffn.2", F.gelu(lin(f"{b}.ffn.0", y), approximate="tanh")) * e[:, :, 5]
    e = (w["head.modulation"] + time[:, :, None]).repeat_interleave(tokens, 1)
    out = lin("head.head", norm(x) * (1 + e[:, :, 1]) + e[:, :, 0])
    out = out.view(batch, frames, rows, columns, *cfg["patch_size"][1:], cfg["out_dim"])
    return torch.einsum("btyxhwc->btcyhxw", out).reshape(batch, frames, cfg["out_dim"], height, width)


class Rotation:
    """Rotary positions on three axes, channel pairs next to each other, by sines and cosines."""

    def __init__(self, frames: int, rows: int, columns: int, head: int) -> None:
        angles = []
        for t in range(frames):
            for y in range(rows):
                for x in range(columns):
                    row: list[float] = []
                    side = 2 * (head // 6)
                    for place, width in ((t, head - 2 * side), (y, side), (x, side)):
                        row += [place / 10000 ** (i / width) for i in range(0, width, 2)]
                    angles.append(row)
        self.angles = torch.tensor(angles, dtype=torch.float64)

    def __call__(self, x_BHLE: Tensor) -> Tensor:
        even, odd = x_BHLE[..., 0::2], x_BHLE[..., 1::2]
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def sigma_of(timestep: float, shift: float) -> float:
    """Of the nearest entry of the table."""
    table = [shift * s / (1 + (shift - 1) * s) for s in (1 - i / 1000 for i in range(1000))]
    return table[min(range(1000), key=lambda i: abs(1000 * table[i] - timestep))]


def sight(frames: int, window: int) -> Tensor:
    """Frame i looks at the last `window` frames up to the end of its own block."""
    ends = [i // BLOCK * BLOCK + BLOCK for i in range(frames)]
    return torch.tensor([[ends[i] - window <= j < ends[i] for j in range(frames)] for i in range(frames)])


def roll(
    w: dict[str, Tensor], cfg: dict[str, Any], noise: Tensor, renoise: Tensor, context_LD: Tensor,
    timesteps: list[float], shift: float = 5.0, window: int = 10**6,
) -> Tensor:  # fmt: skip
    """Latents in fp64: clean frames at timestep 0, the block at its timestep, all in one pass."""
    batch, frames = noise.shape[:2]
    text = torch.zeros(batch, cfg["text_len"], cfg["text_dim"], dtype=torch.float64)
    text[:, : len(context_LD)] = context_LD.double()
    done = noise[:, :0].double()
    for start in range(0, frames, BLOCK):
        x = noise[:, start : start + BLOCK].double()
        for step, timestep in enumerate(timesteps):
            told = torch.cat([torch.zeros(batch, start), torch.full((batch, BLOCK), timestep, dtype=torch.float64)], 1)
            sees = sight(start + BLOCK, window)
            v = flow(w, cfg, torch.cat([done, x], 1), told, text, sees)[:, start:]
            x0 = x - sigma_of(timestep, shift) * v
            if step + 1 < len(timesteps):
                level = sigma_of(timesteps[step + 1], shift)
                x = (1 - level) * x0 + level * renoise[start // BLOCK, step].double()
        done = torch.cat([done, x0], 1)
    return done
