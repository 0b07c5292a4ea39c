"""CLIP-score: the cosine between what CLIP sees in a frame and what it reads in the prompt.

Knows: how frames are prepared for networks that were trained as CLIP was, transformers' CLIPModel, how it is read.
Does not know: videos (a frame is scored alone), where checkpoints come from. CLIP: 2103.00020; CLIP-score,
2.5 max(cos, 0): 2104.08718, equation 1.

Legend: N frames, B videos, T frames of a video, C channels, H height, W width, D width; v_BTCHW in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
WEIGHT = 2.5
SHOWN = 10
"""How many names an error lists."""
POSITIONS = "position_ids"
"""Buffers of transformers' towers that count positions; no checkpoint holds them."""

Prepare = Callable[[Tensor, int], Tensor]
"""(frames [N, 3, H, W] in [-1, 1], side) -> [N, 3, side, side] as a network takes them."""


def centre_crop(v_NCHW: Tensor, side: int) -> Tensor:
    """The published preparation: the short side becomes `side` by bicubic resizing, and the middle square is cut out.
    Of 832x480 pixels only the middle 480x480 are seen."""
    height, width = v_NCHW.shape[-2:]
    short = min(height, width)
    tall, wide = side * height // short, side * width // short
    top, left = round((tall - side) / 2), round((wide - side) / 2)
    return normalised(as_picture(v_NCHW, tall, wide)[..., top : top + side, left : left + side])


def whole_frame(v_NCHW: Tensor, side: int) -> Tensor:
    """All of the frame, squeezed into a square: nothing is cut off, proportions change."""
    return normalised(as_picture(v_NCHW, side, side))


def letterbox(v_NCHW: Tensor, side: int) -> Tensor:
    """All of the frame in its proportions: the long side becomes `side`, the rest is black (HPSv2's preparation)."""
    height, width = v_NCHW.shape[-2:]
    scale = side / max(height, width)
    tall, wide = round(height * scale), round(width * scale)
    above, before = (side - tall) // 2, (side - wide) // 2
    border = (before, side - wide - before, above, side - tall - above)
    return normalised(F.pad(resized(v_NCHW, tall, wide), border, value=-1.0))


def as_picture(v_NCHW: Tensor, height: int, width: int) -> Tensor:
    """`resized` as Pillow does it to pictures of 8 bits: rows first, and nothing leaves the range after either pass."""
    rows = resized(v_NCHW, v_NCHW.shape[-2], width).clamp(-1, 1)
    return resized(rows, height, width).clamp(-1, 1)


def resized(v_NCHW: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, in fp32."""
    return F.interpolate(v_NCHW.float(), (height, width), mode="bicubic", antialias=True, align_corners=False)


def normalised(v_NCHW: Tensor) -> Tensor:
    """Frames in [-1, 1] as CLIP takes them."""
    mean, std = (torch.tensor(values, device=v_NCHW.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((v_NCHW + 1) / 2 - mean) / std


def frames_of(v_BTCHW: Tensor) -> Tensor:
    """All frames of all videos [N, 3, H, W]. Raises ValueError unless there are five axes and three channels."""
    if v_BTCHW.ndim != 5 or v_BTCHW.shape[2] != 3:
        raise ValueError(f"frames of shape {[*v_BTCHW.shape]} to score; expected [B, T, 3, H, W]")
    return v_BTCHW.flatten(0, 1)


def tokenizer_of(directory: Path) -> Any:
    """The tokenizer of a transformers directory. Raises ValueError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"no tokenizer in {directory} ({_line(error)}); pass the folder with tokenizer.json"
        ) from error


def take(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Let a model that was built on the meta device take weights over, without a copy and in their type.

    Raises ValueError listing the first names that are missing, surplus or of another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    missing, surplus = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    bent = [name for name in sorted(wanted.keys() & given.keys()) if wanted[name] != given[name]]
    if missing or surplus or bent:
        raise ValueError(
            f"not the weights of {what}: {len(missing)} missing {missing[:SHOWN]}, {len(surplus)} surplus "
            f"{surplus[:SHOWN]}, {len(bent)} of another shape {bent[:SHOWN]}; pass the checkpoint as it was published"
        )
    model.load_state_dict(weights, assign=True)
    for part in model.modules():
        held = getattr(part, POSITIONS, None)
        if isinstance(held, Tensor):
            part.register_buffer(POSITIONS, torch.arange(held.shape[1])[None], persistent=False)


class Cosine(nn.Module):
    """Frames and prompts as directions of one space."""

    def __init__(self, model: CLIPModel, tokenizer: Any, prepare: Prepare) -> None:
        super().__init__()
        self.model, self.prepare, self._tokenizer = model, prepare, tokenizer
        self._text: tuple[str, Tensor] | None = None

    @torch.no_grad()
    def cosine(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """Cosines [B, T] fp32 of frames and a prompt; all frames are one batch, prompts lose what is beyond the
        model's number of tokens. Raises ValueError unless frames have five axes and three channels."""
        v_NCHW = frames_of(v_BTCHW)
        weight = self.model.visual_projection.weight
        side = int(self.model.config.vision_config.image_size)
        x_NCHW = self.prepare(v_NCHW.to(weight.device), side).to(weight.dtype)
        seen_ND = self.model.visual_projection(self.model.vision_model(pixel_values=x_NCHW).pooler_output)
        cosine_N = F.cosine_similarity(seen_ND.float(), self._read(prompt), dim=-1)
        return cosine_N.unflatten(0, (v_BTCHW.shape[0], -1))

    def _read(self, prompt: str) -> Tensor:
        """The direction [1, D] fp32 of a prompt; the last one is kept."""
        project = self.model.text_projection
        device = project.weight.device
        if self._text is None or self._text[0] != prompt or self._text[1].device != device:
            longest = int(self.model.config.text_config.max_position_embeddings)
            ids_1L = self._tokenizer([prompt], truncation=True, max_length=longest, return_tensors="pt")["input_ids"]
            said_1D = self.model.text_model(input_ids=ids_1L.to(device)).pooler_output
            self._text = (prompt, project(said_1D).float())
        return self._text[1]


class ClipScore(Cosine):
    """A `Reward` (see `arvid.types`): 2.5 times the cosine, never below 0."""

    def __init__(self, model: CLIPModel, tokenizer: Any, prepare: Prepare = centre_crop) -> None:
        super().__init__(model, tokenizer, prepare)

    @classmethod
    def load(cls, directory: Path, prepare: Prepare = centre_crop) -> ClipScore:
        """Read a transformers directory of a CLIP model (config, weights, tokenizer), in the type of its weights.

        Nothing is fetched. Raises ValueError when a file is missing or damaged, or holds another model.
        """
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise ValueError(f"no CLIP model in {directory}: config.json is missing; pass a transformers directory")
        try:
            model, found = CLIPModel.from_pretrained(
                str(directory), local_files_only=True, dtype="auto", output_loading_info=True
            )
        except Exception as error:  # what a damaged file raises differs by library and version
            raise ValueError(f"the CLIP model in {directory} is damaged ({_line(error)}); fetch it again") from error
        wrong = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
        if wrong:
            raise ValueError(
                f"the CLIP model in {directory} lacks {len(wrong)} weights {wrong[:SHOWN]}; pass the directory of a "
                "CLIP model with both towers"
            )
        return cls(model.eval().requires_grad_(False), tokenizer_of(directory), prepare)

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """Scores [B, T] fp32 in [0, 2.5] of frames against a prompt."""
        return WEIGHT * self.cosine(v_BTCHW, prompt).clamp(min=0)


def _line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
