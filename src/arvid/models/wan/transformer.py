"""The causal Wan transformer: flow of a block of latent frames, given noise levels, text and a view of the past.

Knows: the architecture of Wan 2.1 as causal models use it (Self-Forcing, CausVid, Krea). Does not know: which past is
kept (it reads a View and returns the keys and values a Past may keep, unrotated), nor schedules or steps.
Parameter names are those of the original weights, so that a checkpoint needs no translation.

Legend: B batch, T frames, C latent channels, H W latent sides, P tokens per frame, L = T P tokens, D width,
N heads, E head size. Every frame has a noise level of its own; modulation is applied per frame, not per token.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from arvid.layers.attention import attend
from arvid.layers.norms import RMSNorm, plain_norm
from arvid.layers.rope import angles, angles_at, rotate
from arvid.models.wan.cells import CellConfig, CellConvolutions, in_patches
from arvid.types import Condition, Estimate, Placed, Places, Seen, Span, View

TRAIN_STEPS = 1000
CONTEXTS_KEPT = 4


@dataclass(frozen=True)
class WanConfig(CellConfig):
    """Sizes of a causal Wan transformer, in the words of the original constructor; and what Wan has not, convolutions
    over cells on either side of it."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    text_dim: int = 4096
    text_len: int = 512
    in_dim: int = 16
    out_dim: int = 16
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(
                f"width {self.dim} does not give {self.num_heads} heads of even size; choose a multiple of 2 x heads"
            )
        if self.patch_size[0] != 1:
            raise ValueError(f"patch {self.patch_size} joins {self.patch_size[0]} frames; a causal model needs 1")


EPS = 1e-6


class Projections(nn.Module):
    """What both attentions have: projections, and norms of queries and keys over the full width."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, EPS)
        self.norm_k = RMSNorm(config.dim, EPS)


class SelfAttention(Projections):
    """Attention of a block's tokens to the past on view and to themselves."""

    def ask(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, L, N, E] of a block's tokens, not rotated."""
        split = (self.heads, -1)
        q = self.norm_q(self.q(x_BLD)).unflatten(-1, split)
        k = self.norm_k(self.k(x_BLD)).unflatten(-1, split)
        return q, k, self.v(x_BLD).unflatten(-1, split)

    def look(self, q_BLNE: Tensor, k_BLNE: Tensor, v_BLNE: Tensor, layer: int, reading: Reading) -> Tensor:
        """What the tokens find in the past on view and among themselves [B, L, D]."""
        keys, values = rotate(k_BLNE, reading.angles_LE), v_BLNE
        past = reading.view.read(layer, Ask(reading, layer, q_BLNE, (k_BLNE, v_BLNE)))
        seen = None if past is None else Seen(*past)
        if seen is not None:
            keys, values = torch.cat([seen.keys, keys], 1), torch.cat([seen.values, v_BLNE], 1)
        mask = reading.mask(seen, q_BLNE.dtype)
        return attend(rotate(q_BLNE, reading.angles_LE), keys, values, mask).flatten(2)


class CrossAttention(Projections):
    """Attention of a block's tokens to the text, whose keys and values are made once per prompt."""

    def read_text(self, text_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, N, E] of an embedded prompt."""
        split = (self.heads, -1)
        return self.norm_k(self.k(text_BSD)).unflatten(-1, split), self.v(text_BSD).unflatten(-1, split)

    def forward(self, x_BLD: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """Output [B, L, D]."""
        q = self.norm_q(self.q(x_BLD)).unflatten(-1, (self.heads, -1))
        return self.o(attend(q, *text).flatten(2))


class WanBlock(nn.Module):
    """Modulated self-attention, text cross-attention, modulated feed-forward."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.cross_attn = CrossAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, EPS)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / math.sqrt(config.dim))

    def forward(
        self, x_BTPD: Tensor, time_BT6D: Tensor, text: tuple[Tensor, Tensor], layer: int, reading: Reading
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The residual stream (fp32) and what the past would need of these frames."""
        q, k, v = self.enter(x_BTPD, time_BT6D)
        return self.leave(x_BTPD, self.self_attn.look(q, k, v, layer, reading), time_BT6D, text), (k, v)

    def enter(self, x_BTPD: Tensor, time_BT6D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, L, N, E]. Tensors in, tensors out, of the same shapes for every block."""
        shift, scale = (self.modulation[:, :2] + time_BT6D[:, :, :2].float()).unsqueeze(3).unbind(2)
        h = torch.addcmul(shift, plain_norm(x_BTPD, EPS), 1 + scale).to(self.self_attn.q.weight.dtype)
        return self.self_attn.ask(h.flatten(1, 2))

    def leave(self, x_BTPD: Tensor, found_BLD: Tensor, time_BT6D: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """The residual stream behind both attentions and the feed-forward, given what self-attention found."""
        dtype, frames = found_BLD.dtype, x_BTPD.shape[1]
        gate1, shift, scale, gate2 = (self.modulation[:, 2:] + time_BT6D[:, :, 2:].float()).unsqueeze(3).unbind(2)
        y = self.self_attn.o(found_BLD).unflatten(1, (frames, -1))
        x_BTPD = torch.addcmul(x_BTPD, y.float(), gate1)
        h = nn.functional.layer_norm(x_BTPD, x_BTPD.shape[-1:], self.norm3.weight.float(), self.norm3.bias.float(), EPS)
        x_BTPD = x_BTPD + self.cross_attn(h.to(dtype).flatten(1, 2), text).unflatten(1, (frames, -1))
        h = torch.addcmul(shift, plain_norm(x_BTPD, EPS), 1 + scale).to(dtype)
        return torch.addcmul(x_BTPD, self.ffn(h).float(), gate2)


class Head(nn.Module):
    """Modulated projection of tokens to patches of flow."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / math.sqrt(config.dim))

    def forward(self, x_BTPD: Tensor, time_BTD: Tensor) -> Tensor:
        """[B, T, P, patch values]."""
        shift, scale = (self.modulation + time_BTD.float().unsqueeze(2)).unsqueeze(3).unbind(2)
        return self.head((plain_norm(x_BTPD, EPS) * (1 + scale) + shift).to(self.head.weight.dtype))


class Reading:
    """What the attention layers of one pass share: the view, where the frames of the pass stand, who sees whom."""

    def __init__(
        self, view: View, frames: tuple[int, ...], grid: tuple[int, int], head_size: int, sigma_BT: Tensor,
        context: Context,
    ) -> None:  # fmt: skip
        self.view, self.grid, self.context = view, grid, context
        self._head_size, self._sigma_BT = head_size, sigma_BT
        places = view.places(frames) if isinstance(view, Placed) else Places((), frames)
        self._stretch, device = places.stretch, sigma_BT.device
        self.angles_LE = angles(places.own, *grid, head_size, device, places.stretch)
        mask = view.mask(frames)
        self._tokens = grid[0] * grid[1]
        self._mask_LM = None if mask is None else self._per_token(mask.to(device))
        self._decay_LL: Tensor | None = None
        if places.decay:
            own = torch.tensor(places.own, device=device)
            self._decay_LL = self._per_token(-places.decay * (own[:, None] - own).abs().float())

    @cached_property
    def level(self) -> float:
        """Noise level of the first frame."""
        return float(self._sigma_BT[0, 0])

    def turn(self, keys_BLHD: Tensor, positions: tuple[float, ...]) -> Tensor:
        """Keys of whole frames, rotated to positions in time."""
        return rotate(keys_BLHD, angles(positions, *self.grid, self._head_size, keys_BLHD.device, self._stretch))

    def turn_tokens(self, keys_BLHD: Tensor, places_L3: Tensor) -> Tensor:
        """Keys of tokens anywhere, rotated."""
        return rotate(keys_BLHD, angles_at(places_L3.to(keys_BLHD.device), self._head_size, self._stretch))

    def mask(self, seen: Seen | None, dtype: torch.dtype) -> Tensor | None:
        """Who may look where, over the keys of the past and of the pass: None, boolean [L, M], or what is added to the
        logits [heads or 1, L, M] in `dtype`."""
        past = 0 if seen is None else seen.keys.shape[1]
        mask = self._mask_LM
        if mask is not None and mask.shape[1] < past + mask.shape[0]:
            mask = nn.functional.pad(mask, (past, 0), value=True)
        bias = None if seen is None else seen.bias
        if bias is None and self._decay_LL is None:
            return mask
        length = self.angles_LE.shape[0]
        if bias is None:
            bias = torch.zeros(1, 1, past, device=self._sigma_BT.device)
        left = (bias if bias.shape[1] == 1 else bias.repeat_interleave(self._tokens, 1)).expand(-1, length, -1)
        own = bias.new_zeros(length, length) if self._decay_LL is None else self._decay_LL
        whole = torch.cat([left, own.expand(len(left), -1, -1)], 2)
        return (whole if mask is None else whole.masked_fill(~mask, -math.inf)).to(dtype)

    def _per_token(self, frames_FF: Tensor) -> Tensor:
        return frames_FF.repeat_interleave(self._tokens, 0).repeat_interleave(self._tokens, 1)


class Ask:
    """One layer of one pass as it asks a view (see `arvid.types.Asking`)."""

    def __init__(self, reading: Reading, layer: int, queries_BLHD: Tensor, pair: tuple[Tensor, Tensor]) -> None:
        self._reading = reading
        self.queries_BLHD, self.pair, self.text, self.grid = queries_BLHD, pair, reading.context[layer], reading.grid

    @property
    def level(self) -> float:
        """Noise level of the first frame of the pass; reading it waits for the device."""
        return self._reading.level

    def __call__(self, keys_BLHD: Tensor, positions: tuple[float, ...]) -> Tensor:
        """Keys of whole frames, rotated."""
        return self._reading.turn(keys_BLHD, positions)

    def at(self, keys_BLHD: Tensor, places_L3: Tensor) -> Tensor:
        """Keys of single tokens, rotated."""
        return self._reading.turn_tokens(keys_BLHD, places_L3)


Context = tuple[tuple[Tensor, Tensor], ...]
"""Text keys and values per layer."""


class CausalWan(nn.Module):
    """A `Denoiser` (see `arvid.types`)."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(WanBlock(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.cells = _cells(config)
        self._contexts: OrderedDict[int, tuple[Condition, Context]] = OrderedDict()

    @property
    def settings(self) -> dict[str, object]:
        """The configuration as plain data, enough to build the model again."""
        return asdict(self.config)

    @property
    def parameters_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters())

    def initialise(self, generator: torch.Generator) -> None:
        """Weights for training from nothing: Xavier matrices, gates and output near zero."""
        for name, p in self.named_parameters():
            if name.endswith("modulation"):
                nn.init.normal_(p, 0.0, self.config.dim**-0.5, generator=generator)
            elif p.ndim >= 2:
                rows = torch.empty(len(p), p[0].numel())  # a filter bank need not lie in memory as one matrix
                p.data.copy_(nn.init.xavier_uniform_(rows, generator=generator).view(p.shape))
            elif "norm" not in name:
                nn.init.zeros_(p)
        nn.init.zeros_(self.head.head.weight)
        if self.cells is not None:
            self.cells.silence()

    def read_text(self, text_BSD: Tensor) -> Context:
        """Cross-attention keys and values of an embedded prompt [B, S, text_dim], one pair per layer.

        Raises ValueError when the embedding's width is not the model's text width.
        """
        if text_BSD.shape[-1] != self.config.text_dim:
            raise ValueError(
                f"text embedding has width {text_BSD.shape[-1]}, this model expects {self.config.text_dim}; "
                "use the text encoder the model was trained with"
            )
        text = self.text_embedding(text_BSD.to(_dtype(self.text_embedding)))
        return tuple(block.cross_attn.read_text(text) for block in self._blocks())

    def _blocks(self) -> list[WanBlock]:
        return [block for block in self.blocks if isinstance(block, WanBlock)]

    def context(self, condition: Condition) -> Context:
        """`read_text` of a condition, kept for the last few prompts while the weights stay as they are; never kept
        where gradients flow (a graph is walked back once)."""
        if torch.is_grad_enabled():
            return self.read_text(condition.text_BLD)
        held = self._contexts.get(id(condition))
        if held is None or held[0] is not condition:
            held = (condition, self.read_text(condition.text_BLD))
            self._contexts[id(condition)] = held
            if len(self._contexts) > CONTEXTS_KEPT:
                self._contexts.popitem(last=False)
        return held[1]

    def train(self, mode: bool = True) -> CausalWan:
        """Switch between training and evaluation; text keys of older weights are forgotten."""
        self._contexts.clear()
        return super().train(mode)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch; text keys of older weights are forgotten."""
        self._contexts.clear()
        return super().load_state_dict(state_dict, strict, assign)

    def __call__(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        """Flow and memory of the frames of `span` (see `arvid.types.Denoiser`)."""
        return self.flow(z_BTCHW, sigma_BT, self.context(condition), view, tuple(range(span.start, span.stop)))

    def flow(
        self, z_BTCHW: Tensor, sigma_BT: Tensor, context: Context, view: View, frames: tuple[int, ...]
    ) -> Estimate:
        """Flow of frames at any positions (training lays clean and noisy copies of the same positions side by side).

        Raises ValueError when the latents' channels or sides do not fit the model.
        """
        _, pw_h, pw_w = self.config.patch_size
        channels, height, width = z_BTCHW.shape[2:]
        if channels != self.config.in_dim or height % pw_h or width % pw_w:
            raise ValueError(
                f"latents are {channels} x {height} x {width}; this model takes {self.config.in_dim} channels and "
                f"sides that are multiples of {pw_h} x {pw_w}"
            )
        grid = (height // pw_h, width // pw_w)
        x_BTPD = self._patches(z_BTCHW)
        reading = Reading(view, frames, grid, self.config.dim // self.config.num_heads, sigma_BT, context)
        time_BTD = self._time(sigma_BT)
        time_BT6D = self.time_projection(time_BTD).unflatten(-1, (6, -1))
        if self.cells is not None:
            more_BTPD, maps_NCHW = self.cells.before(z_BTCHW, sigma_BT, time_BTD)
            x_BTPD = x_BTPD + more_BTPD
        memory: list[tuple[Tensor, Tensor]] = []
        for layer, (block, text) in enumerate(zip(self._blocks(), context, strict=True)):
            x_BTPD, kept = block(x_BTPD, time_BT6D, text, layer, reading)
            memory.append(kept)
        flow_BTCHW = self._image(self.head(x_BTPD, time_BTD), grid)
        if self.cells is not None:
            flow_BTCHW = flow_BTCHW + self.cells.behind(maps_NCHW, x_BTPD)
        return Estimate(flow_BTCHW, tuple(memory))

    def _time(self, sigma_BT: Tensor) -> Tensor:
        half = self.config.freq_dim // 2
        rate = torch.exp(-math.log(10000.0) * torch.arange(half, device=sigma_BT.device, dtype=torch.float64) / half)
        angle = TRAIN_STEPS * sigma_BT.double()[..., None] * rate
        wave = torch.cat([angle.cos(), angle.sin()], -1).to(_dtype(self.time_embedding))
        return self.time_embedding(wave)

    def _patches(self, z_BTCHW: Tensor) -> Tensor:
        """The patch embedding as one matrix product: a strided 3D convolution is slow on a CPU."""
        flat = in_patches(z_BTCHW, self.config.patch_size[1:])
        weight = self.patch_embedding.weight
        return nn.functional.linear(flat.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias).float()

    def _image(self, out_BTPO: Tensor, grid: tuple[int, int]) -> Tensor:
        _, ph, pw = self.config.patch_size
        batch, frames = out_BTPO.shape[:2]
        cells = out_BTPO.float().view(batch, frames, *grid, ph, pw, self.config.out_dim)
        return cells.permute(0, 1, 6, 2, 4, 3, 5).reshape(
            batch, frames, self.config.out_dim, grid[0] * ph, grid[1] * pw
        )


def _cells(config: WanConfig) -> CellConvolutions | None:
    """The convolutions beside the transformer, where the configuration has any."""
    if not config.cell_width:
        return None
    return CellConvolutions(
        config.in_dim, config.out_dim, config.dim, config.patch_size[1:], config.cell_width, config.cell_blocks
    )


def _dtype(layers: nn.Module) -> torch.dtype:
    """The dtype of a stack's weights."""
    return next(layers.parameters()).dtype
