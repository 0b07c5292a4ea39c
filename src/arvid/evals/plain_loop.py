"""A rollout the way public scripts write it: the baseline an engine is measured against in the same run.

Knows: a causal Wan by the original names of its weights, a list of dicts as its cache, a loop over blocks and steps.
Does not know: arvid. It shares no code with the engine, so it judges its numbers as well as its speed.

It follows what Self-Forcing's inference does, with its habits: keys are turned and written into the cache at every
pass; the window moves by shifting the cache; positions are turned in complex128; the text goes through its embedding at
every pass, and through the layers' keys once; everything else is in the type of the weights; after the steps one more
pass, of the clean block at level 0, overwrites the block's keys.

Legend: B batch, T frames, C channels, H height, W width, L tokens, D width, N heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIONS = 1024
EPS = 1e-6


class PlainLoop:
    """The network and its cache. `settings` has the original constructor's names; `window` counts frames in sight, the
    block's own among them; `sides` are height and width of the latents."""

    def __init__(
        self, weights: Mapping[str, Tensor], settings: Mapping[str, Any], window: int, sides: tuple[int, int]
    ) -> None:
        self.w, self.layers, self.heads = weights, int(settings["num_layers"]), int(settings["num_heads"])
        self.width, self.waves = int(settings["dim"]), int(settings["freq_dim"])
        self.grid = (sides[0] // 2, sides[1] // 2)
        first = weights["patch_embedding.weight"]
        self.device, self.dtype = first.device, first.dtype
        size = self.width // self.heads
        room = (1, window * self.grid[0] * self.grid[1], self.heads, size)
        self.cache: list[dict[str, Any]] = [
            {"k": first.new_zeros(room), "v": first.new_zeros(room), "end": 0, "filled": 0} for _ in range(self.layers)
        ]
        self.text_cache: list[dict[str, Tensor]] = [{} for _ in range(self.layers)]
        self.turns = _turns(size, self.device)

    @property
    def bytes(self) -> int:
        """Bytes of the cache."""
        return sum(int(held[part].nbytes) for held in self.cache for part in ("k", "v"))

    # ------------------------------------------------------------ the loop

    @torch.no_grad()
    def blocks(
        self, noise_BTCHW: Tensor, renoise: Callable[[int, int], Tensor], text_BLD: Tensor, sigmas: Sequence[float],
        block: int = 3,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Clean latents [1, block, C, H, W], block by block, of noise [1, T, C, H, W]. `renoise(number, step)` gives
        what is mixed in before the pass `step` (from 1); `sigmas` fall from 1, the last is that of the last pass."""
        for number, start in enumerate(range(0, noise_BTCHW.shape[1], block)):
            x = noise_BTCHW[:, start : start + block]
            x0 = x
            for step, sigma in enumerate(sigmas):
                if step:
                    x = (1 - sigma) * x0 + sigma * renoise(number, step)
                x0 = x - sigma * self.flow(x, sigma, text_BLD, start)
            yield x0
            self.flow(x0, 0.0, text_BLD, start)

    # ------------------------------------------------------------ the network

    def flow(self, x_BTCHW: Tensor, sigma: float, text_BLD: Tensor, start: int) -> Tensor:
        """Flow of a block whose first frame is `start`, which also writes its keys into the cache."""
        x = F.conv3d(
            x_BTCHW.transpose(1, 2).to(self.dtype), self.w["patch_embedding.weight"], self.w["patch_embedding.bias"],
            stride=(1, 2, 2),
        )  # fmt: skip
        frames = x.shape[2]
        x = x.flatten(2).transpose(1, 2)
        steps = torch.full((1, frames), 1000 * sigma, device=self.device)
        e = self._lin("time_embedding.2", F.silu(self._lin("time_embedding.0", self._wave(steps))))
        e0 = self._lin("time_projection.1", F.silu(e)).unflatten(2, (6, self.width))
        text = F.gelu(self._lin("text_embedding.0", text_BLD.to(self.dtype)), approximate="tanh")
        text = self._lin("text_embedding.2", text)
        for layer in range(self.layers):
            x = self._layer(layer, x, e0, text, start)
        a, b = (self.w["head.modulation"].unsqueeze(1) + e.unsqueeze(2)).chunk(2, 2)
        y = _norm(x).unflatten(1, (frames, -1)) * (1 + b) + a
        y = self._lin("head.head", y).unflatten(2, self.grid).unflatten(-1, (2, 2, -1))
        return torch.einsum("btyxhwc->btcyhxw", y).flatten(5).flatten(3, 4).float()

    def _layer(self, layer: int, x: Tensor, e0: Tensor, text: Tensor, start: int) -> Tensor:
        name, frames = f"blocks.{layer}", e0.shape[1]
        e = (self.w[f"{name}.modulation"].unsqueeze(1) + e0).chunk(6, 2)
        y = (_norm(x).unflatten(1, (frames, -1)) * (1 + e[1]) + e[0]).flatten(1, 2)
        y = self._self_attention(layer, y, frames, start)
        x = x + (y.unflatten(1, (frames, -1)) * e[2]).flatten(1, 2)
        y = F.layer_norm(
            x.float(), (self.width,), self.w[f"{name}.norm3.weight"].float(), self.w[f"{name}.norm3.bias"].float(), EPS
        ).type_as(x)
        x = x + self._cross_attention(layer, y, text)
        y = (_norm(x).unflatten(1, (frames, -1)) * (1 + e[4]) + e[3]).flatten(1, 2)
        y = self._lin(f"{name}.ffn.2", F.gelu(self._lin(f"{name}.ffn.0", y), approximate="tanh"))
        return x + (y.unflatten(1, (frames, -1)) * e[5]).flatten(1, 2)

    def _self_attention(self, layer: int, x: Tensor, frames: int, start: int) -> Tensor:
        name, cache = f"blocks.{layer}.self_attn", self.cache[layer]
        q, k = (self._split(self._rms(f"{name}.norm_{p}", self._lin(f"{name}.{p}", x))) for p in "qk")
        v = self._split(self._lin(f"{name}.v", x))
        q, k = self._turned(q, frames, start), self._turned(k, frames, start)
        count, room = k.shape[1], cache["k"].shape[1]
        end = (start + frames) * self.grid[0] * self.grid[1]
        filled = cache["filled"] + end - cache["end"]
        if (over := filled - room) > 0:
            for part in ("k", "v"):
                cache[part][:, : room - count] = cache[part][:, over : over + room - count].clone()
            filled = room
        cache["k"][:, filled - count : filled], cache["v"][:, filled - count : filled] = k, v
        cache["end"], cache["filled"] = end, filled
        return self._lin(f"{name}.o", _attend(q, cache["k"][:, :filled], cache["v"][:, :filled]))

    def _cross_attention(self, layer: int, x: Tensor, text: Tensor) -> Tensor:
        name, cache = f"blocks.{layer}.cross_attn", self.text_cache[layer]
        q = self._split(self._rms(f"{name}.norm_q", self._lin(f"{name}.q", x)))
        if not cache:
            cache["k"] = self._split(self._rms(f"{name}.norm_k", self._lin(f"{name}.k", text)))
            cache["v"] = self._split(self._lin(f"{name}.v", text))
        return self._lin(f"{name}.o", _attend(q, cache["k"], cache["v"]))

    # ------------------------------------------------------------ parts

    def _lin(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def _rms(self, name: str, x: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)).type_as(x) * self.w[f"{name}.weight"]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _wave(self, steps: Tensor) -> Tensor:
        half = self.waves // 2
        rate = torch.arange(half, dtype=torch.float64, device=self.device) / half
        angle = steps.double()[..., None] * torch.pow(10000.0, -rate)
        return torch.cat([torch.cos(angle), torch.sin(angle)], -1).to(self.dtype)

    def _turned(self, x: Tensor, frames: int, start: int) -> Tensor:
        rows, columns = self.grid
        time, row, column = self.turns
        each = torch.cat(
            [
                time[start : start + frames].view(frames, 1, 1, -1).expand(frames, rows, columns, -1),
                row[:rows].view(1, rows, 1, -1).expand(frames, rows, columns, -1),
                column[:columns].view(1, 1, columns, -1).expand(frames, rows, columns, -1),
            ],
            -1,
        ).reshape(frames * rows * columns, 1, -1)
        pairs = torch.view_as_complex(x.to(torch.float64).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * each).flatten(3).type_as(x)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS).type_as(x)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (
        F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        .transpose(1, 2)
        .flatten(2)
    )


def _turns(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Unit complex128 numbers [positions, pairs] of time, row and column."""
    side = 2 * (size // 6)
    found = []
    for width in (size - 2 * side, side, side):
        rate = torch.pow(10000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.outer(torch.arange(POSITIONS, dtype=torch.float64), rate)
        found.append(torch.polar(torch.ones_like(angle), angle).to(device))
    return found[0], found[1], found[2]
