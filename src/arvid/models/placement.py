"""Where the parts of a run stand: one device for each role, and the borders between devices.

Knows: roles, the string they are placed by, how latents, conditions and frames cross from one device to another.
Does not know: which models play the roles, what fits where (models/planning.py), what runs at the same time
(models/running.py).

The target's device is home: noise, latents and conditions live there. A model's past stays with the model, frames stay
where they were decoded, and a decoder's state stays with the decoder: what crosses a border is small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from arvid.types import (
    BlockReward,
    Candidate,
    Condition,
    Decoder,
    DecoderState,
    Denoiser,
    Estimate,
    Reward,
    Span,
    View,
)

CONDITIONS_KEPT = 4
"""Conditions that are kept on the other side of a border: a model knows a prompt again by the object."""
KINDS = ("cpu", "cuda", "meta")
"""Devices that models run on, and the one without data. Others (mps) lack float64, in which noise levels and positions
become angles."""


@dataclass(frozen=True)
class Placement:
    """The device of each role by name; an empty one stands where the target does.

    Raises ValueError for a name that is no device, and for a GPU that is not there.
    """

    target: str = "cpu"
    drafter: str = ""
    vae: str = ""
    reward: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        for role in ROLES:
            name = getattr(self, role)
            if name or role == "target":
                _there(role, name)

    @classmethod
    def parse(cls, text: str, default: str = "cpu") -> Placement:
        """The placement written as `target=cuda:0,vae=cuda:1`, or as one device for everything; roles that are not
        named stand where the target does, and the target on `default`.

        Raises ValueError for an unknown role, one that is named twice, and what the class refuses.
        """
        named: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            role, equals, device = part.partition("=")
            if not equals:
                role, device = "target", part
            if role not in ROLES:
                raise ValueError(f"unknown role {role!r} in the placement {text!r}; known: {', '.join(ROLES)}")
            if role in named:
                raise ValueError(f"{role} is placed twice, on {named[role]} and on {device}; name it once")
            _there(role, device)
            named[role] = device
        return cls(**{"target": default, **named})

    def of(self, role: str) -> torch.device:
        """The device of a role. Raises ValueError for an unknown one."""
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; known: {', '.join(ROLES)}")
        return torch.device(getattr(self, role) or self.target)

    @property
    def home(self) -> torch.device:
        """Where latents live."""
        return self.of("target")


ROLES = tuple(Placement.__dataclass_fields__)


def _there(role: str, name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"{role} is placed on {name!r}, which is no device; use cpu, cuda or cuda:NUMBER, like {role}=cuda:0"
        ) from error
    if device.type not in KINDS:
        raise ValueError(f"{role} is placed on {name}, where no model runs; use cpu, cuda or cuda:NUMBER")
    seen = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise ValueError(f"{role} is placed on {name}, and torch sees {seen} GPUs; place it on one of them or on cpu")


# ---------------------------------------------------------------- borders


class PlacedDenoiser:
    """A model on a device of its own (see `arvid.types.Denoiser`): takes and gives latents at home. Its keys and values
    stay with it."""

    def __init__(self, inner: Denoiser, device: torch.device, home: torch.device) -> None:
        self.inner, self._device, self._home = inner, device, home
        self._conditions: OrderedDict[int, tuple[Condition, Condition]] = OrderedDict()

    def __call__(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        """Flow of the frames of `span`, at home."""
        there = self._condition(condition)
        made = self.inner(z_BTCHW.to(self._device), sigma_BT.to(self._device), there, view, span)
        return replace(made, flow_BTCHW=made.flow_BTCHW.to(self._home))

    def _condition(self, condition: Condition) -> Condition:
        """The same object for the same condition."""
        held = self._conditions.get(id(condition))
        if held is None or held[0] is not condition:
            held = (condition, _moved(condition, self._device))
            self._conditions[id(condition)] = held
            if len(self._conditions) > CONDITIONS_KEPT:
                self._conditions.popitem(last=False)
        return held[1]


class PlacedDecoder:
    """A decoder on a device of its own (see `arvid.types.Decoder`): frames and state stay there."""

    def __init__(self, inner: Decoder, device: torch.device) -> None:
        self.inner, self._device = inner, device

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Pixels of the next latents, and the state after them."""
        return self.inner.decode(z_BTCHW.to(self._device), state)


@runtime_checkable
class _Encoder(Protocol):
    def encode(self, v_BTCHW: Tensor) -> Tensor: ...


class PlacedAutoencoder(PlacedDecoder):
    """A decoder that has its encoder with it."""

    def __init__(self, inner: Decoder, encoder: _Encoder, device: torch.device, home: torch.device) -> None:
        super().__init__(inner, device)
        self._encoder, self._home = encoder, home

    def encode(self, v_BTCHW: Tensor) -> Tensor:
        """Latents of a clip, at home."""
        return self._encoder.encode(v_BTCHW.to(self._device)).to(self._home)


class PlacedReward:
    """A scorer of frames on a device of its own (see `arvid.types.Reward`)."""

    def __init__(self, inner: Reward, device: torch.device) -> None:
        self.inner, self._device = inner, device

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """Scores of frames, on the scorer's device."""
        return self.inner.score(v_BTCHW.to(self._device), prompt)


class PlacedJudge:
    """A judge of blocks on a device of its own (see `arvid.types.BlockReward`)."""

    def __init__(self, inner: BlockReward, device: torch.device) -> None:
        self.inner, self._device = inner, device

    @property
    def lookback(self) -> int:
        """How many frames before a block it looks at."""
        return self.inner.lookback

    def score_block(self, candidate: Candidate) -> Tensor:
        """Scores of a block, on the judge's device."""
        device = self._device
        before, frames_before = candidate.before_BTCHW, candidate.frames_before_BTCHW
        return self.inner.score_block(
            Candidate(
                candidate.block_BTCHW.to(device),
                None if before is None else before.to(device),
                lambda: candidate.frames().to(device),
                None if frames_before is None else frames_before.to(device),
                _moved(candidate.condition, device),
            )
        )


def _moved(condition: Condition, device: torch.device) -> Condition:
    return replace(condition, text_BLD=condition.text_BLD.to(device))


def bare(denoiser: Denoiser) -> Denoiser:
    """The model behind a border, or the model itself."""
    return denoiser.inner if isinstance(denoiser, PlacedDenoiser) else denoiser


# ---------------------------------------------------------------- a family


class Family(Protocol):
    """What is placed: `arvid.pipeline.Family`, seen from here."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def target(self) -> Denoiser: ...
    @property
    def drafter(self) -> Denoiser | None: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def reward(self) -> Reward | None: ...
    @property
    def judges(self) -> Mapping[str, BlockReward]: ...
    @property
    def text(self) -> Any: ...


Parts = TypeVar("Parts", bound=Family)


def placed(family: Parts, placement: Placement) -> Parts:
    """The family with every part on its device, modules moved in place, and borders where tensors have to cross."""
    move(family, placement, ROLES)
    return bordered(family, placement)


def move(family: Family, placement: Placement, roles: Sequence[str]) -> None:
    """Move the modules that play some roles, in place."""
    parts: dict[str, tuple[object, ...]] = {
        "target": (family.target,),
        "drafter": (family.drafter,),
        "vae": (family.decoder,),
        "reward": (family.reward, *family.judges.values()),
        "text": (family.text,),
    }
    for role in roles:
        for part in parts[role]:
            if isinstance(part, nn.Module):
                part.to(placement.of(role))


def bordered(family: Parts, placement: Placement) -> Parts:
    """A family whose parts stand where the placement says, with borders where tensors have to cross. Where all parts
    stand together there is no border and nothing is wrapped."""
    home, pixels, scores = placement.home, placement.of("vae"), placement.of("reward")
    drafter, reward = family.drafter, family.reward
    if drafter is not None and placement.of("drafter") != home:
        drafter = PlacedDenoiser(drafter, placement.of("drafter"), home)
    if reward is not None and scores != pixels:
        reward = PlacedReward(reward, scores)
    judges = family.judges
    if scores != pixels or scores != home:
        judges = {name: PlacedJudge(judge, scores) for name, judge in judges.items()}
    decoder = family.decoder if pixels == home else _bordered(family.decoder, pixels, home)
    return replace(family, drafter=drafter, decoder=decoder, reward=reward, judges=judges, device=home)


def _bordered(decoder: Decoder, device: torch.device, home: torch.device) -> Decoder:
    if isinstance(decoder, _Encoder):
        return PlacedAutoencoder(cast(Decoder, decoder), decoder, device, home)
    return PlacedDecoder(decoder, device)
