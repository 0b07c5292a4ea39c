"""Metrics on the embeddings of frames: does the picture fit the words, does the subject stay itself, is it pretty.

Knows: picture encoders of transformers (CLIP, DINO and others with a class token), the formulas of VBench (2311.17982)
and the linear aesthetic heads of LAION. Does not know: where weights lie (a path or a hub identifier is given), files.

Frames are sampled at `rate` per second and encoded one by one; metrics of the same model share the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from arvid.evals.clips import Clip, Frame, Numbers, Pixels, stride
from arvid.evals.metric import About, Lags, Mean, Reading, Track, Watcher
from arvid.evals.once import once

FARTHEST = 64
"""Samples over which the curve of similarity by distance reaches."""


class Encoder:
    """Pictures to vectors: the projected embedding of a CLIP model, the last class token of any other.

    Raises ValueError when there is no such model at `source`.
    """

    def __init__(self, source: str, device: str) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

        self.source, self.device = source, torch.device(device)
        try:
            self.is_clip = AutoConfig.from_pretrained(source).model_type == "clip"
            model: Any = (CLIPModel if self.is_clip else AutoModel).from_pretrained(source)
            self._prepare: Any = AutoImageProcessor.from_pretrained(source)
            self._read: Any = AutoTokenizer.from_pretrained(source) if self.is_clip else None
        except (OSError, ValueError, KeyError) as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"no picture encoder in {source} ({line}); give a model's folder or hub id") from error
        self._model = model.to(self.device).eval()

    @torch.inference_mode()
    def picture(self, rgb_HWC: Pixels) -> Tensor:
        """The vector [D] of a picture, of length 1."""
        pixels = self._prepare(images=[rgb_HWC], return_tensors="pt")["pixel_values"].to(self.device)
        if self.is_clip:
            found = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
        else:
            found = self._model(pixel_values=pixels).last_hidden_state[:, 0]
        return F.normalize(found.float(), dim=-1)[0].cpu()

    @torch.inference_mode()
    def words(self, prompt: str) -> Tensor:
        """The vector [D] of a prompt, of length 1; tokens beyond the model's length are cut. CLIP only."""
        if not self.is_clip:
            raise ValueError(f"{self.source} has no text encoder; give a CLIP model")
        most = self._model.config.text_config.max_position_embeddings
        tokens = self._read([prompt], truncation=True, max_length=most, return_tensors="pt").to(self.device)
        told = self._model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(self._model.text_projection(told.pooler_output).float(), dim=-1)[0].cpu()

    def of(self, frame: Frame) -> Tensor:
        """The vector of a frame, computed once."""
        if self not in frame.memo:
            frame.memo[self] = self.picture(frame.rgb_HWC)
        found: Tensor = frame.memo[self]
        return found


@once(4)
def encoder(source: str, device: str = "cpu") -> Encoder:
    """The encoder of a model, loaded once."""
    return Encoder(source, device)


# ---------------------------------------------------------------- one score per frame


class Scored:
    """Follows one score per frame, of every `every`th frame."""

    def __init__(self, every: int, score: Any) -> None:
        self._every, self._score = every, score
        self._track = Track()

    def see(self, frame: Frame) -> None:
        """Score the frame, if it is its turn."""
        if frame.index % self._every == 0:
            self._track.add(float(self._score(frame)))

    def reading(self) -> Reading:
        """The mean score."""
        return Reading(self._track.mean, self._track.curve())


@dataclass(eq=False)
class ClipAlignment(Mean):
    """Mean cosine between a clip's frames and its prompt."""

    model: str
    rate: float = 2.0
    device: str = "cpu"
    about = About(
        "clip_alignment", 1, -1.0, 1.0, "", "model",
        "mean cosine of frames and prompt under CLIP; long prompts are cut",
        "CLIPScore 2104.08718 is 2.5 max(cosine, 0) of one picture",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Compare sampled frames with the prompt."""
        if not clip.prompt:
            raise ValueError("no prompt is known; give --prompts FILE")
        reader = encoder(self.model, self.device)
        words = reader.words(clip.prompt)
        return Scored(stride(clip.fps, self.rate), lambda frame: reader.of(frame) @ words)


@dataclass(eq=False)
class Aesthetic(Mean):
    """LAION's aesthetic score of CLIP embeddings, a tenth of its scale."""

    model: str
    head: str
    rate: float = 2.0
    device: str = "cpu"
    about = About(
        "aesthetic", 1, 0.0, 1.0, "", "model",
        "mean score of a linear aesthetic head on CLIP embeddings, divided by 10",
        "LAION aesthetic predictor; VBench 2311.17982, aesthetic quality",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layers = read_head(Path(self.head))

    def watch(self, clip: Clip) -> Watcher:
        """Score sampled frames."""
        reader = encoder(self.model, self.device)
        width = self._layers[0][0].shape[1]

        def score(frame: Frame) -> float:
            x_D = reader.of(frame)
            if len(x_D) != width:
                raise ValueError(f"the head {self.head} reads {width} numbers, {self.model} gives {len(x_D)}")
            for weight, bias in self._layers:
                x_D = F.linear(x_D, weight, bias)
            return float(x_D[0]) / 10

        return Scored(stride(clip.fps, self.rate), score)


def read_head(path: Path) -> list[tuple[Tensor, Tensor]]:
    """The linear layers (weight, bias) of an aesthetic head, in their order: LAION's single layer or its chain of
    layers, which has nothing between them. Raises ValueError when the file is none."""
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        names = [name.removesuffix("weight") for name in held if name.endswith("weight")]
        names.sort(key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
        layers = [(held[f"{name}weight"].float(), held[f"{name}bias"].float()) for name in names]
        fits = all(after[0].shape[1] == before[0].shape[0] for before, after in pairwise(layers))
        if not layers or not fits or layers[-1][0].shape[0] != 1:
            raise KeyError("its layers do not lead from an embedding to one number")
    except (OSError, KeyError, RuntimeError, SafetensorError, AttributeError, EOFError) as error:
        raise ValueError(f"no aesthetic head in {path} ({error}); give LAION's .pth or .safetensors") from error
    return layers


# ---------------------------------------------------------------- consistency


class _Consistent:
    """VBench's consistency: each sample against the one before and against the first."""

    def __init__(self, every: int, reader: Encoder) -> None:
        self._every, self._reader = every, reader
        self._track, self._lags = Track(), Lags(FARTHEST)
        self._first: Tensor | None = None
        self._before: Tensor | None = None

    def see(self, frame: Frame) -> None:
        if frame.index % self._every:
            return
        now = self._reader.of(frame)
        if self._first is None or self._before is None:
            self._first = now
        else:
            near, far = float(self._before @ now), float(self._first @ now)
            self._track.add((max(0.0, near) + max(0.0, far)) / 2)
        self._before = now
        self._lags.add(np.asarray(now.numpy(), np.float32), _cosines)

    def reading(self) -> Reading:
        curve = tuple(round(float(value), 6) for value in self._lags.means())
        return Reading(self._track.mean, curve, curve_of="distance")


def _cosines(earlier_KD: Numbers, now_D: Numbers) -> Numbers:
    return np.asarray(earlier_KD @ now_D, np.float32)


def _about(name: str, model: str) -> About:
    return About(
        f"{name}_consistency", 1, 0.0, 1.0, "", "model",
        f"mean cosine (at least 0) of a frame with the one before and with the first, under {model}: over the frames "
        "of a video, then over videos; the curve is the mean cosine by distance",
        f"VBench 2311.17982, {name} consistency, as it averages on several ranks",
    )  # fmt: skip


@dataclass(eq=False)
class _Consistency(Mean):
    """How much frames look like the one before and the first, by a model."""

    model: str
    rate: float = 8.0
    device: str = "cpu"

    def watch(self, clip: Clip) -> Watcher:
        """Compare sampled frames with each other."""
        return _Consistent(stride(clip.fps, self.rate), encoder(self.model, self.device))


class SubjectConsistency(_Consistency):
    """How much frames look like the one before and the first, by a DINO model."""

    about = _about("subject", "DINO")


class BackgroundConsistency(_Consistency):
    """How much frames look like the one before and the first, by a CLIP model."""

    about = _about("background", "CLIP")
