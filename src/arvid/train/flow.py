"""Causal flow matching by teacher forcing: every block learns to leave noise, given the true past.

Knows: which clean frames a block may read in training, which noise levels are drawn, the loss; and, for the other
methods of this room, how a model computes with half-precision copies of weights. Does not know: architectures,
prompts' words, pixels. Source: Causal Forcing (2602.02214, stage 1); past noise after Diffusion Forcing (2407.01392).

The clean frames go through the model once; their keys and values are the past that every noisy block then reads
through a `View`, as in generation, so training and inference are one computation. Gradients flow through the past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from arvid.caches.store import Policy, Store
from arvid.types import Estimate, Memory, Rotate, Span, View

Context = tuple[tuple[Tensor, Tensor], ...]
T = TypeVar("T")


class FlowModel(Protocol):
    """What this objective trains: a causal model with its text entrance, weights in fp32."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights."""
        ...

    def read_text(self, text_BSD: Tensor) -> Context:
        """Text keys and values per layer."""
        ...

    def flow(
        self, z_BTCHW: Tensor, sigma_BT: Tensor, context: Context, view: View, frames: tuple[int, ...]
    ) -> Estimate:
        """Flow of frames at any positions."""
        ...


@dataclass(frozen=True)
class FlowBatch:
    """Normalised latents [B, T, C, H, W] and text embeddings [B, S, D]; `first` holds of other
    clips the first block alone [N, block, C, H, W] and its text [N, S, D]. Frames before `begins_B` are past alone: the
    text does not tell of them, and nothing learns to make them."""

    latents_BTCHW: Tensor
    text_BSD: Tensor
    first: tuple[Tensor, Tensor] | None = None
    begins_B: Tensor | None = None

    def learned(self, error_BT: Tensor) -> Tensor:
        """The mean error of frames that are learned."""
        if self.begins_B is None:
            return error_BT.mean()
        told_BT = torch.arange(error_BT.shape[1], device=error_BT.device) >= self.begins_B[:, None]
        return (error_BT * told_BT).sum() / told_BT.sum()


class GatheredView:
    """The clean frames that several blocks of every clip may read, block by block along the batch. Only distances
    between frames matter to the model, so all blocks of a group stand at the same positions."""

    def __init__(self, memory: Memory, pasts: list[tuple[int, ...]], total: int) -> None:
        self._memory, self._pasts, self._total = memory, pasts, total
        self.frames = pasts[0]

    def read(self, layer: int, rotate: Rotate) -> tuple[Tensor, Tensor] | None:
        """Rotated keys and values [B * blocks, L, H, D] of the frames on view."""
        if not self.frames:
            return None
        keys, values = (self._gather(tensor) for tensor in self._memory[layer])
        return rotate(keys, self.frames), values

    def mask(self, frames: tuple[int, ...]) -> None:
        """A block sees all that is on view and itself."""
        return None

    def _gather(self, x_BLHD: Tensor) -> Tensor:
        each = x_BLHD.unflatten(1, (self._total, -1))
        return torch.stack([each[:, list(past)].flatten(1, 2) for past in self._pasts], 1).flatten(0, 1)


def groups(frames: int, block: int, policy: Policy) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Blocks (first frame, frames on view) that see the same distances, so that they can share a pass."""
    found: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for start in range(0, frames, block):
        past = policy.visible(tuple(range(start)), start)
        key = (min(block, frames - start), *(start - frame for frame in past))
        found.setdefault(key, []).append((start, past))
    return list(found.values())


class _Lent(nn.Module):
    """Where a computation runs while the model holds other weights."""

    def __init__(self, model: FlowModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def halved(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """bf16 copies of named weights, as inference computes; gradients reach the originals."""
    return {name: value.to(torch.bfloat16) for name, value in weights}


def lend(model: FlowModel, weights: dict[str, Tensor], compute: Callable[[], T]) -> T:
    """What `compute` gives while `model` holds `weights`; its own are back afterwards. `model` is an `nn.Module`."""
    found: T = functional_call(_Lent(model), {f"model.{name}": value for name, value in weights.items()}, (compute,))
    return found


def joint(model: FlowModel, mixed_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor, view: View) -> Tensor:
    """Flow [B, T, C, H, W] of all frames in one pass, each seeing what the mask of `view` lets it see."""
    places = tuple(range(mixed_BTCHW.shape[1]))
    return model.flow(mixed_BTCHW, sigma_BT, model.read_text(text_BSD), view, places).flow_BTCHW


def noised(z_BTCHW: Tensor, noise_BTCHW: Tensor, sigma_BT: Tensor) -> Tensor:
    """x_sigma of every frame at a level of its own."""
    return z_BTCHW + sigma_BT[:, :, None, None, None] * (noise_BTCHW - z_BTCHW)


def noise_like(z_BTCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape and on the device of `z_BTCHW`, drawn on the CPU."""
    return torch.randn(z_BTCHW.shape, generator=generator).to(z_BTCHW.device)


def shifted(tau: Tensor, shift: float) -> Tensor:
    """The shift of flow matching (docs/conventions.md)."""
    return shift * tau / (1 + (shift - 1) * tau)


def spread(values_BN: Tensor, block: int, frames: int) -> Tensor:
    """Values of blocks as values of frames [B, T]."""
    return values_BN.repeat_interleave(block, 1)[:, :frames]


@dataclass(frozen=True)
class Drawn:
    """First blocks made noisy: mixed and noise [N, T, C, H, W], levels [N, T]."""

    mixed_NTCHW: Tensor
    noise_NTCHW: Tensor
    sigma_NT: Tensor

    @classmethod
    def of(cls, z_NTCHW: Tensor, shift: float, generator: torch.Generator) -> Drawn:
        """At levels spread evenly over the batch."""
        size, frames = z_NTCHW.shape[:2]
        tau = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        sigma_NT = shifted(tau, shift)[:, None].expand(-1, frames).to(z_NTCHW.device)
        noise = noise_like(z_NTCHW, generator)
        return cls(noised(z_NTCHW, noise, sigma_NT), noise, sigma_NT)

    def flow(self, model: FlowModel, text_NSD: Tensor) -> Tensor:
        """The model's flow of them, which see nothing but themselves, with the weights it then holds."""
        return joint(model, self.mixed_NTCHW, self.sigma_NT, text_NSD, GatheredView((), [()], 0))


def first_blocks(
    model: FlowModel, z_NTCHW: Tensor, text_NSD: Tensor, shift: float, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the flow of first blocks. Called with the weights that the model then holds."""
    drawn = Drawn.of(z_NTCHW, shift, generator)
    return (drawn.flow(model, text_NSD) - (drawn.noise_NTCHW - z_NTCHW)).square().mean()


class Passes:
    """The passes of one training step by teacher forcing, with the weights the model holds."""

    def __init__(self, model: FlowModel, frames: int, block: int, policy: Policy) -> None:
        self.model, self.frames, self.block = model, frames, block
        # The view of an empty store: nothing to read, and the mask that keeps the blocks of the span causal.
        self.view = Store(policy, block).view(Span(0, frames))
        self.groups = groups(frames, block, policy)

    def __call__(
        self, past_BTCHW: Tensor, past_sigma_BT: Tensor, mixed_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor
    ) -> Tensor:
        """Flow [B, T, C, H, W] of the noisy frames, each block reading the clean frames before it."""
        context = self.model.read_text(text_BSD)
        clean = self.model.flow(past_BTCHW, past_sigma_BT, context, self.view, tuple(range(self.frames)))
        flow_BTCHW = torch.empty_like(mixed_BTCHW)
        for group in self.groups:
            starts, pasts = [start for start, _ in group], [past for _, past in group]
            length = min(self.block, self.frames - starts[0])
            view = GatheredView(clean.memory, pasts, self.frames)
            x, sigma = (
                torch.stack([tensor[:, s : s + length] for s in starts], 1).flatten(0, 1)
                for tensor in (mixed_BTCHW, sigma_BT)
            )
            wide = tuple((k.repeat_interleave(len(starts), 0), v.repeat_interleave(len(starts), 0)) for k, v in context)
            places = tuple(range(starts[0], starts[0] + length))
            found = self.model.flow(x, sigma, wide, view, places).flow_BTCHW.unflatten(0, (-1, len(starts)))
            for index, start in enumerate(starts):
                flow_BTCHW[:, start : start + length] = found[:, index]
        return flow_BTCHW


class TeacherForcing:
    """Flow matching with one noise level per block.

    Every step draws one of its policies, so that a model learns to read pasts of several lengths. A share
    `noisy_past` of the clips gets a noised past, each block at its own level up to `past_level`, which the model is
    told; so the past may later be committed at any level. A share `rough_past` of the other pasts is disturbed
    without being told, at up to `rough_level`: the small errors of its own making that a long rollout feeds back.
    Text matters most where there is no past to continue, and a clip has one first block among many: first blocks of
    other clips, where a batch has them, are added with weight `first_weight`.
    """

    def __init__(
        self, model: FlowModel, frames: int, block: int, policy: Policy, *others: Policy, shift: float = 5.0,
        noisy_past: float = 0.3, past_level: float = 0.85, rough_past: float = 0.5, rough_level: float = 0.12,
        first_weight: float = 1.0,
    ) -> None:  # fmt: skip
        self.model, self.frames, self.block, self.shift = model, frames, block, shift
        self.noisy_past, self.past_level = noisy_past, past_level
        self.rough_past, self.rough_level = rough_past, rough_level
        self.first_weight = first_weight
        self._choices = [Passes(model, frames, block, policy) for policy in (policy, *others)]
        self.passes = self._choices[0]

    def __call__(self, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the flow over all blocks that are learned, and of the first block alone (as it starts
        from nothing)."""
        self.draw_view(generator)
        weights = halved(self.model.named_parameters())
        error_BT, _, _ = self.walk(batch, *self._past(batch, generator), weights, generator)
        every, first = batch.learned(error_BT), error_BT[:, : self.block].mean()
        loss = every
        if batch.first is not None:
            z_NTCHW, text_NSD = batch.first
            first = lend(self.model, weights, lambda: self.firsts(z_NTCHW, text_NSD, generator))
            loss = loss + self.first_weight * first
        return {"loss": loss, "all": every.detach(), "first": first.detach()}

    def draw_view(self, generator: torch.Generator) -> None:
        """Take one of the policies for what follows."""
        if len(self._choices) > 1:
            self.passes = self._choices[int(torch.randint(len(self._choices), (), generator=generator))]

    def walk(
        self, batch: FlowBatch, past_BTCHW: Tensor, told_BT: Tensor, weights: dict[str, Tensor],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """The mean squared error of the flow of every frame [B, T], given a past and the levels it is told; the clean
        latents that frames were estimated to be, without a gradient; and the levels these were estimated from."""
        z_BTCHW = batch.latents_BTCHW
        sigma_BT = self._levels(z_BTCHW.shape[0], generator).to(z_BTCHW.device)
        noise = noise_like(z_BTCHW, generator)
        mixed = noised(z_BTCHW, noise, sigma_BT)
        flow = lend(self.model, weights, lambda: self.passes(past_BTCHW, told_BT, mixed, sigma_BT, batch.text_BSD))
        estimate = mixed - sigma_BT[:, :, None, None, None] * flow.detach().to(mixed.dtype)
        return (flow - (noise - z_BTCHW)).square().mean((2, 3, 4)), estimate, sigma_BT

    def firsts(self, z_NTCHW: Tensor, text_NSD: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of first blocks of other clips, with the weights the model then holds."""
        return first_blocks(self.model, z_NTCHW, text_NSD, self.shift, generator)

    @property
    def blocks(self) -> int:
        """Number of blocks of a clip, the last of which may be shorter."""
        return -(-self.frames // self.block)

    def _levels(self, size: int, generator: torch.Generator) -> Tensor:
        """One level per block: tau uniform, one block of a clip in each of equal parts of [0, 1], then shifted."""
        part = torch.rand(size, self.blocks, generator=generator).argsort(1)
        tau = (part + torch.rand(size, self.blocks, generator=generator)) / self.blocks
        return self._spread(shifted(tau, self.shift))

    def _past(self, batch: FlowBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The past as the model sees it, and the levels it is told."""
        z_BTCHW = batch.latents_BTCHW
        size, blocks = z_BTCHW.shape[0], self.blocks
        told = torch.rand(size, 1, generator=generator) < self.noisy_past
        sigma = self._spread(torch.rand(size, blocks, generator=generator) * self.past_level * told)
        rough = (torch.rand(size, 1, generator=generator) < self.rough_past) & ~told
        hidden = self._spread(torch.rand(size, blocks, generator=generator) * self.rough_level * rough)
        noise = noise_like(z_BTCHW, generator)
        return noised(z_BTCHW, noise, (sigma + hidden).to(z_BTCHW.device)), sigma.to(z_BTCHW.device)

    def _spread(self, values_BN: Tensor) -> Tensor:
        return spread(values_BN, self.block, self.frames)
