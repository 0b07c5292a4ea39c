"""A family on disk: a directory with a card, the weights of its parts, and nothing executable.

Knows: which files a family has and what its card says. Does not know: rewards, routing, how parts work together.

    card.json            world, sizes, steps, past, proportions (`Card`)
    target.safetensors   drafter.safetensors   vae.safetensors
                         (transformers that were trained here say their own sizes: `stated`)
    text/                tokenizer and text encoder
    reward/              frame reward; NAME_judge/ judges of whole blocks (`rewards.judges`), if any
                         (read by the pipeline)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from arvid.models.running import pack, packable
from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.wan.transformer import CausalWan, WanConfig

CARD = "card.json"
SIZES = "arvid.sizes"
"""Under this name the metadata of a transformer's weights hold its sizes as JSON."""


@dataclass(frozen=True)
class Listed:
    """Passes as the authors of a family list them: falling timesteps on the scale of 1000, as the network is told them.
    Their noise levels are those of the nearest entries of the table at `shift` (`arvid.samplers.timetable`)."""

    timesteps: tuple[float, ...]
    shift: float = 5.0


@dataclass(frozen=True)
class Origin:
    """What a family is called, and the procedural world it was trained on (`shapes`; empty: none that is known). Cards
    written before there was a word for the world have none."""

    name: str
    world: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Card(Origin):
    """What a family is and how it wants to be run: latent frames per block and in training, pixel size, frames per
    second, passes (their number, or a list of timesteps) and their step rule, cache policy, router, the constructor
    arguments of its parts, and the temperature of noise behind a past in videos of at most the trained length."""

    block: int
    trained_frames: int
    size: tuple[int, int]
    fps: int
    steps: int | Listed
    step: str
    past: str
    router: str
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    temperature: float = 1.0

    def spread(self, frames: int) -> float:
        """How wide the noise is that blocks behind a past are made from, as a share of training's, in a video of so
        many latent frames. In longer ones it is all of it: with narrow noise what they lose stays lost."""
        return self.temperature if frames <= self.trained_frames else 1.0


def read_card(directory: Path) -> Card:
    """The card of a family. Raises ValueError when it is missing or not a card."""
    path = directory / CARD
    if not path.is_file():
        raise ValueError(f"no model family in {directory}: card.json is missing; point --model at a family directory")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        width, height = found.pop("size")
        if isinstance(listed := found.get("steps"), dict):
            found["steps"] = Listed(tuple(map(float, listed["timesteps"])), float(listed["shift"]))
        return _checked(Card(size=(int(width), int(height)), **found))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a family card ({error}); fetch the family again") from error


def _checked(card: Card) -> Card:
    """The card. Raises ValueError for values that cannot be."""
    counts = {"block": card.block, "trained_frames": card.trained_frames, "fps": card.fps}
    counts |= {"steps": card.steps} if not isinstance(card.steps, Listed) else {}
    counts |= {"width": card.size[0], "height": card.size[1]}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
    for name in ("name", "world", "step", "past", "router"):
        if not isinstance(getattr(card, name), str):
            raise ValueError(f"{name} is {getattr(card, name)!r}, expected text")
    if (
        isinstance(card.temperature, bool)
        or not isinstance(card.temperature, int | float)
        or not 0 < card.temperature <= 1
    ):
        raise ValueError(f"temperature is {card.temperature!r}, expected a number above 0 and at most 1")
    if not isinstance(card.parts, dict) or not all(isinstance(part, dict) for part in card.parts.values()):
        raise ValueError("parts is no table of tables")
    return card


def fill(model: nn.Module, path: Path) -> None:
    """Load safetensors weights into a model, strictly.

    Raises ValueError when the file is missing, damaged or of another model, with the first differing names.
    """
    if not path.is_file():
        raise ValueError(f"weights missing: {path}; fetch the family again")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); fetch the family again") from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != given:
        missing, surplus = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
        bent = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
        raise ValueError(
            f"{path} holds other weights than the card describes: missing {missing[:10]}, surplus {surplus[:10]}, "
            f"of another shape {bent[:10]}; use the card that came with the file"
        )
    model.load_state_dict(weights)


def _tupled(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where our configurations have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def transformer_config(card: Card, part: str) -> WanConfig:
    """Sizes of the transformer `part` (target or drafter)."""
    return WanConfig(**_tupled(card.parts[part]))


def stating(config: WanConfig) -> dict[str, str]:
    """Metadata that say the sizes of a transformer, for the file of its weights."""
    return {"format": "pt", SIZES: json.dumps(asdict(config))}


def stated(path: Path) -> WanConfig | None:
    """The sizes that a file of weights says its transformer has; None where it does not say.

    Raises ValueError when the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(SIZES)
        return None if told is None else WanConfig(**_tupled(json.loads(told)))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); train or fetch it again") from error


def load_transformer(directory: Path, card: Card, part: str, device: torch.device) -> CausalWan:
    """The transformer `part` (target or drafter) in bf16, ready to run; on a CPU with packed weights, which are as fast
    as they get there and not to be changed."""
    model = CausalWan(transformer_config(card, part))
    fill(model, directory / f"{part}.safetensors")
    model = model.to(device, torch.bfloat16).eval().requires_grad_(False)
    if packable(model):
        pack(model)
    return model


def load_autoencoder(directory: Path, card: Card, device: torch.device) -> TinyAutoencoder:
    """The autoencoder in bf16 and channels-last, ready to run."""
    model = TinyAutoencoder(TAEConfig(**_tupled(card.parts["vae"])))
    fill(model, directory / "vae.safetensors")
    return model.to(device, torch.bfloat16).channels_last().eval().requires_grad_(False)
