"""Rewards as metrics: the mean score of a clip's frames by a reward model of `arvid.rewards`.

Knows: how frames become what a reward reads, which rewards can be had from a file of weights and a tokenizer.
Does not know: what a reward computes.
"""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from arvid.evals.clips import Clip, Frame, stride
from arvid.evals.features import Scored
from arvid.evals.metric import About, Mean, Watcher
from arvid.evals.once import once
from arvid.types import Reward


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors or a torch checkpoint. Raises ValueError when it is neither."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held = torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, EOFError, pickle.UnpicklingError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot read weights from {path} ({line}); give the published checkpoint") from error
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


@once(2)
def image_reward(weights: str, tokenizer: str, device: str) -> Reward:
    """ImageReward-v1.0 over its published checkpoint, loaded once."""
    from arvid.rewards.image_reward import ImageReward

    return ImageReward.from_weights(read_weights(Path(weights)), Path(tokenizer)).to(device)


@once(2)
def hps(weights: str, tokenizer: str, device: str) -> Reward:
    """HPSv2 over its published checkpoint, loaded once."""
    from arvid.rewards.hps import HPSv2

    return HPSv2.from_weights(read_weights(Path(weights)), Path(tokenizer)).to(device)


@dataclass(eq=False)
class FrameScore(Mean):
    """The mean over sampled frames of a reward model's score."""

    weights: str
    tokenizer: str
    rate: float = 2.0
    device: str = "cpu"

    @abstractmethod
    def reward(self) -> Reward:
        """The model."""

    def watch(self, clip: Clip) -> Watcher:
        """Score sampled frames against the prompt."""
        if not clip.prompt:
            raise ValueError("no prompt is known; give --prompts FILE")
        judge = self.reward()

        def score(frame: Frame) -> float:
            v_BTCHW = torch.from_numpy(frame.rgb_HWC.copy()).permute(2, 0, 1)[None, None].float() / 127.5 - 1
            return float(judge.score(v_BTCHW, clip.prompt)[0, 0])

        return Scored(stride(clip.fps, self.rate), score)


@dataclass(eq=False)
class ImageRewardScore(FrameScore):
    """ImageReward."""

    about = About(
        "image_reward", 1, float("-inf"), float("inf"), "", "model",
        "mean ImageReward of frames; pictures of people's prompts have mean 0 and deviation 1",
        "ImageReward 2304.05977",
    )  # fmt: skip

    def reward(self) -> Reward:
        """ImageReward-v1.0."""
        return image_reward(self.weights, self.tokenizer, self.device)


@dataclass(eq=False)
class HpsScore(FrameScore):
    """HPSv2."""

    about = About("hps", 1, -1.0, 1.0, "", "model", "mean HPSv2 cosine of frames and prompt", "HPSv2 2306.09341")

    def reward(self) -> Reward:
        """HPSv2 or 2.1, by the file."""
        return hps(self.weights, self.tokenizer, self.device)
