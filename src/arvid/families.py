"""Families put together from checkpoints: a transformer as somebody has it, and the parts that lie beside it.

Knows: which parts a run needs, how a published family is run (its card), in which order parts are loaded so that the
most memory is that of the run. Does not know: argv, blocks, how any part is read (models/, rewards/).

First everything is found and checked by names and shapes (`survey`, `find`), then it is loaded (`open_family`). The
text encoder comes first and leaves again, when prompts are known; the transformers come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from arvid.models.beside import TextAt, VaeAt, around, look_in, text_called, vae_called
from arvid.models.checkpoints.families import misfits, published
from arvid.models.checkpoints.files import ENDINGS, INDEX, containers, locate, open_file
from arvid.models.checkpoints.reading import Checkpoint, load_wan, open_checkpoint
from arvid.models.family import CARD, Card, Listed, load_transformer, read_card, transformer_config
from arvid.models.names import tensors_of
from arvid.models.placement import ROLES, Placement, bordered, move, placed
from arvid.models.preparing import TRANSFORMERS, How, prepare
from arvid.models.running import aside
from arvid.models.tae import SPACE_STRIDE
from arvid.models.umt5 import EncodeOnce
from arvid.models.wan.transformer import CausalWan
from arvid.pipeline import EMBEDDED, Family, Text, load
from arvid.rewards.clip import ClipScore
from arvid.rewards.hps import HPSv2
from arvid.rewards.image_reward import ImageReward
from arvid.types import Reward

PUBLISHED_TAU = "reward:tau=-0.7"
"""SDVG (2604.17397): the worst frame's ImageReward of a draft that is kept."""
RANKED = "quantile:accept=0.7"
"""For scores without a published threshold."""
TOKENIZERS = ("bert-base-uncased", "tokenizer", ".")
"""Folders beside a reward's file in which its tokenizer may lie."""
WORDS = ("tokenizer.json", "vocab.txt", "vocab.json")
MUST_FIT = ("in_dim", "out_dim", "text_dim", "text_len")
TEXT_LOST = (
    "no text encoder (--text: models_t5_umt5-xxl-enc-bf16.pth with google/umt5-xxl beside it, or a text_encoder folder)"
)
VAE_LOST = "no autoencoder (--vae: Wan2.1_VAE.pth, a vae folder in diffusers' layout, or taew2_1)"


# ---------------------------------------------------------------- what is asked for, what is there


@dataclass(frozen=True)
class Source:
    """What a family is made of, by path or Hugging Face id: the target and perhaps a drafter; what the target's file
    does not say (`family`, attention `heads`), adapters to merge into it; text encoder, autoencoder and reward (empty:
    the first two are looked for beside the model); pixels (width, height; None: the family's own)."""

    model: str
    drafter: str = ""
    family: str = ""
    heads: int = 0
    loras: tuple[str, ...] = ()
    text: str = ""
    vae: str = ""
    reward: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class RewardAt:
    """A scorer of frames that is somewhere, not loaded: its kind (image-reward, hps or clip), its file or directory,
    and the directory of its tokenizer."""

    kind: str
    path: Path
    tokenizer: Path

    def load(self, device: torch.device, dtype: torch.dtype) -> Reward:
        """The scorer, ready to run."""
        if self.kind == "clip":
            return ClipScore.load(self.path).to(device, dtype)
        weights = tensors_of(self.path)
        if self.kind == "hps":
            return HPSv2.from_weights(weights, self.tokenizer).to(device, dtype)
        return ImageReward.from_weights(weights, self.tokenizer).to(device, dtype)


@dataclass(frozen=True, eq=False)
class Found:
    """What was found, checked by names and shapes; nothing is loaded."""

    card: Card
    target: Checkpoint
    drafter: Checkpoint | None
    text: TextAt | None
    vae: VaeAt | None
    reward: RewardAt | None

    @property
    def bytes(self) -> int:
        """Of all files that are loaded, as they lie there."""
        models = [entry.bytes for model in (self.target, self.drafter) if model for entry in model.entries.values()]
        return sum(models) + sum(bytes_at(part.path) for part in (self.text, self.vae, self.reward) if part)


def bytes_at(path: Path) -> int:
    """Bytes of a file of weights, or of all in a directory; an index of shards counts as its directory."""
    if path.name.endswith(INDEX):
        path = path.parent
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in ENDINGS]
    return sum(file.stat().st_size for file in files)


def survey(source: Source) -> Found:
    """What there is of a family. Raises ValueError when a transformer is missing, damaged or of another kind, when
    what an option names is not there, and when parts do not fit each other."""
    target = open_checkpoint(source.model, source.family, source.heads, source.loras)
    drafter = open_checkpoint(source.drafter) if source.drafter else None
    text = text_called(source.text) if source.text else None
    vae = vae_called(source.vae) if source.vae else None
    if text is None or vae is None:
        near = [folder for name in (source.model, source.drafter) if name for folder in around(locate(name))]
        beside = look_in(list(dict.fromkeys(near)))
        text, vae = text or beside[0], vae or beside[1]
    reward = reward_called(source.reward) if source.reward else None
    parts = Found(_card(source, target, drafter, reward), target, drafter, text, vae, reward)
    _check(parts)
    return parts


def find(source: Source) -> Found:
    """All that a run needs. Raises ValueError as `survey` does, for a file that may be of several families, for a model
    that is not causal, and when no text encoder or autoencoder is there."""
    parts = survey(source)
    name = parts.target.family
    if not published(name).causal:
        raise ValueError(
            f"{source.model} is of the family {name}, which sees the whole video in many guided steps; give a causal "
            "model, or say which family these weights are of (--family self-forcing)"
        )
    lost = [what for what, part in ((TEXT_LOST, parts.text), (VAE_LOST, parts.vae)) if part is None]
    if lost:
        folders = ", ".join(str(folder) for folder in around(locate(source.model))[:4])
        raise ValueError(f"{' and '.join(lost)} found in {folders}")
    return parts


def _card(source: Source, target: Checkpoint, drafter: Checkpoint | None, reward: RewardAt | None) -> Card:
    """How the pair is run: as the target's authors run it, and with a drafter by its reward where there is one."""
    name = target.families[0]
    facts = published(name)
    listed = Listed(facts.timesteps or published("self-forcing").timesteps, facts.shift)
    router = facts.router
    if drafter is not None:
        router = "first" if reward is None else PUBLISHED_TAU if reward.kind == "image-reward" else RANKED
    parts: dict[str, dict[str, Any]] = {"target": asdict(target.config), "vae": {}}
    parts |= {"drafter": asdict(drafter.config)} if drafter else {}
    parts |= {"reward": {"kind": reward.kind}} if reward else {}
    size = source.size or facts.size
    return Card(name, facts.block, facts.trained_frames, size, facts.fps, listed, "renoise", facts.past, router, parts)


def _check(parts: Found) -> None:
    """Raises ValueError when parts cannot work together."""
    config, (width, height) = parts.target.config, parts.card.size
    grid = [SPACE_STRIDE * side for side in (config.patch_size[2], config.patch_size[1])]
    if width % grid[0] or height % grid[1] or not width * height:
        raise ValueError(f"size {width}x{height}: sides must be multiples of {grid[0]} and {grid[1]}")
    if parts.drafter is not None and (bent := misfits(config, parts.drafter.config)):
        raise ValueError(
            f"the drafter {parts.drafter.name} does not fit {parts.target.name}: {'; '.join(bent)}; use another"
        )
    if parts.text is not None and parts.text.config.d_model != config.text_dim:
        raise ValueError(
            f"the text encoder {parts.text.path} is {parts.text.config.d_model} wide, {parts.target.name} reads "
            f"{config.text_dim}; give the one it was trained with (--text)"
        )
    if parts.vae is not None and parts.vae.channels != config.in_dim:
        raise ValueError(
            f"the autoencoder {parts.vae.path} has {parts.vae.channels} latent channels, {parts.target.name} makes "
            f"{config.in_dim}; give the one it was trained with (--vae)"
        )


# ---------------------------------------------------------------- rewards


def reward_called(name: str) -> RewardAt:
    """The scorer called `name`: the file of ImageReward-v1.0 or HPSv2, or a transformers directory of a CLIP model.

    Raises ValueError when it is none of them, or has no tokenizer.
    """
    path = locate(name)
    if path.is_dir() and (path / "config.json").is_file():
        return RewardAt("clip", path, path)
    for file in containers(path) if path.is_dir() else [path]:
        if kind := _kind(open_file(file).entries):
            return RewardAt(kind, file, _tokenizer(file))
    raise ValueError(
        f"{name} is no reward that is read; give ImageReward.pt, HPS_v2.1_compressed.pt, or a transformers directory "
        "of a CLIP model"
    )


def _kind(entries: Mapping[str, Any]) -> str:
    if any(name.startswith("blip.visual_encoder.") for name in entries):
        return "image-reward"
    return "hps" if any("visual.transformer.resblocks." in name for name in entries) else ""


def _tokenizer(file: Path) -> Path:
    for place in (file.parent / inside for inside in TOKENIZERS):
        if any((place / words).is_file() for words in WORDS):
            return place
    raise ValueError(
        f"no tokenizer for {file}: neither {file.parent / TOKENIZERS[0]} nor {file.parent / TOKENIZERS[1]} holds one; "
        "put that of bert-base-uncased (ImageReward) or of CLIP (HPSv2) there"
    )


# ---------------------------------------------------------------- loading


def open_family(
    parts: Found,
    placement: Placement | None = None,
    how: How | None = None,
    prompts: Sequence[str] = (),
    dtype: torch.dtype = torch.bfloat16,
) -> Family:
    """A family that is ready to run: every part on its device in `dtype` (the text encoder in bf16), transformers as
    `how` says. `prompts` are encoded at once, before anything else is loaded; others are when they come.

    Raises ValueError for damaged files.
    """
    placement, how = placement or Placement(), how or How()
    assert parts.text is not None and parts.vae is not None  # find has looked
    text = _text(parts.text, parts.target.config.text_len, placement.of("text"))
    if prompts:
        text.encode(list(prompts))
    decoder = parts.vae.load(placement.of("vae"), dtype)
    reward = parts.reward.load(placement.of("reward"), dtype) if parts.reward else None
    drafter = _transformer(parts.drafter, "drafter", placement, how, dtype) if parts.drafter else None
    target = _transformer(parts.target, "target", placement, how, dtype)
    family = Family(parts.card, target, drafter, decoder, text, reward, placement.home)
    return bordered(family, placement)


def _text(found: TextAt, length: int, device: torch.device) -> Text:
    return EncodeOnce(lambda: found.load(length, device))


def _transformer(found: Checkpoint, role: str, placement: Placement, how: How, dtype: torch.dtype) -> CausalWan:
    device = placement.of(role)
    model = load_wan(found, how.begins_on(role, device), dtype)
    prepare(model, role, device, how)
    return model


def open_packaged(
    directory: Path, drafter: str = "", placement: Placement | None = None, how: How | None = None
) -> Family:
    """The family of a directory with a card (see `pipeline.load`), with another drafter when one is named (a family
    directory or a checkpoint): every part on its device, transformers as `how` says.

    Raises ValueError for missing, damaged and foreign files, and a drafter that does not fit.
    """
    placement, how = placement or Placement(), how or How()
    try:
        family = load(directory, placement.target if how == How() else "cpu")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory / CARD} does not describe a family ({error}); fetch it again") from error
    if drafter:
        family = replace(family, drafter=_drafter_for(family, drafter))
    if how == How():
        return placed(family, placement)
    for role, model in zip(TRANSFORMERS, (family.target, family.drafter), strict=True):
        if isinstance(model, CausalWan):
            prepare(model, role, placement.of(role), how)
    move(family, placement, [role for role in ROLES if role not in TRANSFORMERS])
    return bordered(family, placement)


def overlapped(family: Family, placement: Placement) -> Family:
    """A family that decodes in a stream of its own, so that a block is decoded while the next one is made; a reward on
    the same device follows the decoder. Raises ValueError where there are no streams."""
    device = placement.of("vae")
    with_it = family.reward if placement.of("reward") == device else None
    decoder, reward = aside(family.decoder, with_it, device)
    if decoder is family.decoder:
        raise ValueError(f"{device} has no streams to decode beside the next block; leave --overlap out")
    return replace(family, decoder=decoder, reward=reward or family.reward)


def _drafter_for(family: Family, name: str) -> CausalWan:
    """The drafter called `name`: a checkpoint, or that of a family directory."""
    directory = directory_of(name)
    found = open_checkpoint(name) if is_checkpoint(name) else read_card(directory)
    if isinstance(found, Card) and "drafter" not in found.parts:
        raise ValueError(f"{directory} has no drafter; its parts: {', '.join(sorted(found.parts))}")
    given = transformer_config(found, "drafter") if isinstance(found, Card) else found.config
    wanted = transformer_config(family.card, "target")
    bent = [f"{size} {getattr(given, size)}, expected {getattr(wanted, size)}" for size in MUST_FIT
            if getattr(given, size) != getattr(wanted, size)]  # fmt: skip
    if bent:
        raise ValueError(f"the drafter of {directory} does not fit {family.card.name}: {'; '.join(bent)}; use another")
    if isinstance(found, Card):
        return load_transformer(directory, found, "drafter", family.device)
    return load_wan(found, family.device)


def directory_of(name: str) -> Path:
    """The directory of a family by name or path."""
    return EMBEDDED if name == "embedded" else Path(name)


def is_checkpoint(name: str) -> bool:
    """Whether a model is not a family directory: weights as somebody has them, by path or Hugging Face id."""
    path = directory_of(name)
    return not (path / CARD).is_file() and (path.exists() or "/" in name or path.suffix in ENDINGS)
