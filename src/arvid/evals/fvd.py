"""The Frechet video distance (1812.01717) between the clips and a set of reference videos.

Knows: windows of frames, their features under an I3D (TorchScript) or a VideoMAE (transformers) checkpoint, sums that
become means and covariances, the distance of two Gaussians. Does not know: where checkpoints lie.

FVD is a number about sets: a clip has none. It is biased for few windows, so compare only runs of equal counts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from arvid.evals.clips import Clip, Frame, Pixels, frames_of, opened, videos_in
from arvid.evals.metric import About, Metric, Reading, Watcher
from arvid.evals.once import once

I3D_SIDE = 224
Vectors = NDArray[np.float64]


class Moments:
    """Count, sum and sum of outer products of vectors: they add up."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.sum_D: Vectors = np.zeros(width)
        self.outer_DD: Vectors = np.zeros((width, width))

    def add(self, rows_ND: Vectors) -> None:
        """Count vectors."""
        self.count += len(rows_ND)
        self.sum_D += rows_ND.sum(axis=0)
        self.outer_DD += rows_ND.T @ rows_ND

    def merge(self, other: Moments) -> None:
        """Count what another one has counted."""
        self.count += other.count
        self.sum_D += other.sum_D
        self.outer_DD += other.outer_DD

    def gaussian(self) -> tuple[Vectors, Vectors]:
        """Mean and unbiased covariance. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"{self.count} windows of video; a distance of distributions needs at least 2")
        mean_D = self.sum_D / self.count
        return mean_D, (self.outer_DD - self.count * np.outer(mean_D, mean_D)) / (self.count - 1)

    def save(self, path: Path) -> None:
        """Write them down, to be a reference again."""
        save_file({"count": np.array([self.count]), "sum": self.sum_D, "outer": self.outer_DD}, path)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote. Raises ValueError when it is something else."""
        try:
            held = load_file(path)
            found = cls(len(held["sum"]))
            found.count, found.sum_D, found.outer_DD = int(held["count"][0]), held["sum"], held["outer"]
        except (OSError, KeyError, SafetensorError) as error:
            raise ValueError(f"no moments of features in {path} ({error}); give a folder of videos") from error
        return found


def frechet(one: tuple[Vectors, Vectors], two: tuple[Vectors, Vectors]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (mean, covariance)."""
    (mean_one, spread_one), (mean_two, spread_two) = one, two
    values, vectors = np.linalg.eigh(spread_one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    # The eigenvalues of C1 C2 are those of the symmetric R C2 R with R the root of C1.
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ spread_two @ root), 0, None)).sum()
    gap = float(((mean_one - mean_two) ** 2).sum())
    return gap + float(np.trace(spread_one) + np.trace(spread_two) - 2 * shared)


# ---------------------------------------------------------------- networks


class Net(Protocol):
    """Windows of video to vectors."""

    def features(self, pictures: list[Pixels]) -> Vectors:
        """The vector [D] of a window [T][H, W, 3]."""
        ...


class I3D:
    """The TorchScript file that StyleGAN-V and its followers use: 400 logits-sized features of 224x224 pictures."""

    def __init__(self, path: str, device: str) -> None:
        self._device = device
        try:
            with warnings.catch_warnings():
                # The checkpoint everybody compares with is TorchScript, whether torch still recommends that or not.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._net: Any = torch.jit.load(path, map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"no TorchScript I3D in {path}; give i3d_torchscript.pt or a VideoMAE model") from error

    @torch.inference_mode()
    def features(self, pictures: list[Pixels]) -> Vectors:
        """The shorter side becomes 224, the middle square is seen."""
        window = torch.from_numpy(np.stack([_middle(picture, I3D_SIDE) for picture in pictures])).float()
        v_BCTHW = (window / 127.5 - 1).permute(3, 0, 1, 2)[None].to(self._device)
        found = self._net(v_BCTHW, rescale=False, resize=False, return_features=True)
        return np.asarray(found[0].flatten().double().cpu().numpy())


def _middle(picture: Pixels, side: int) -> Pixels:
    """The middle square of a picture whose shorter side becomes `side`."""
    high, wide = picture.shape[:2]
    scale = side / min(high, wide)
    size = (max(side, round(wide * scale)), max(side, round(high * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = np.asarray(cv2.resize(picture, size, interpolation=way), np.uint8)
    top, left = (scaled.shape[0] - side) // 2, (scaled.shape[1] - side) // 2
    return scaled[top : top + side, left : left + side]


class VideoMAE:
    """A VideoMAE: what a classifier's last layer reads, or the mean of the tokens of a model without one."""

    def __init__(self, source: str, device: str) -> None:
        from transformers import AutoConfig, AutoImageProcessor, VideoMAEForVideoClassification, VideoMAEModel

        try:
            config: Any = AutoConfig.from_pretrained(source)
            self._classifies = "VideoMAEForVideoClassification" in (config.architectures or [])
            kind: Any = VideoMAEForVideoClassification if self._classifies else VideoMAEModel
            self._net = kind.from_pretrained(source).to(device).eval()
            self._prepare: Any = AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"no VideoMAE in {source} ({line}); give a folder, a hub id or an I3D file") from error
        if self._classifies:
            self._net.classifier = torch.nn.Identity()
        self.frames = int(config.num_frames)
        self._device = device

    @torch.inference_mode()
    def features(self, pictures: list[Pixels]) -> Vectors:
        """The window as the model's own processor prepares it."""
        if len(pictures) != self.frames:
            raise ValueError(f"a window of {len(pictures)} frames; this VideoMAE reads {self.frames}: give frames=")
        pixels = self._prepare(pictures, return_tensors="pt")["pixel_values"].to(self._device)
        found = self._net(pixel_values=pixels)
        vector = found.logits[0] if self._classifies else found.last_hidden_state[0].mean(0)
        return np.asarray(vector.double().cpu().numpy())


@once(2)
def net(model: str, device: str) -> Net:
    """The network of a checkpoint: a file that ends in .pt is an I3D, anything else a VideoMAE."""
    return I3D(model, device) if model.endswith(".pt") else VideoMAE(model, device)


# ---------------------------------------------------------------- the metric


@dataclass(eq=False)
class Fvd(Metric):
    """The distance between the windows of the clips and those of a reference: a folder of videos, or the .safetensors
    of `Moments`."""

    model: str
    reference: str
    frames: int = 16
    device: str = "cpu"
    about = About(
        "fvd", -1, 0.0, float("inf"), "", "model",
        "Frechet distance between features of windows of the clips and of reference videos", "FVD 1812.01717",
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.moments: Moments | None = None
        self._known: Moments | None = None

    def watch(self, clip: Clip) -> Watcher:
        """Collect windows that follow each other."""
        return _Windows(net(self.model, self.device), self.frames)

    def add(self, reading: Reading) -> None:
        """Count a clip's windows."""
        if reading.features is not None and len(reading.features):
            self.moments = self.moments or Moments(reading.features.shape[1])
            self.moments.add(reading.features)

    def merge(self, other: Metric) -> None:
        """Add the other's sums."""
        self.check_same(other)
        assert isinstance(other, Fvd)
        if other.moments is not None:
            self.moments = self.moments or Moments(len(other.moments.sum_D))
            self.moments.merge(other.moments)

    def value(self) -> float | None:
        """The distance; None when nothing was counted. Raises ValueError for fewer than two windows on either side."""
        if self.moments is None:
            return None
        return frechet(self.moments.gaussian(), self.known().gaussian())

    def known(self) -> Moments:
        """The moments of the reference, made once."""
        if self._known is None:
            place = Path(self.reference)
            self._known = Moments.load(place) if place.suffix == ".safetensors" else self._read(place)
        return self._known

    def _read(self, folder: Path) -> Moments:
        found: Moments | None = None
        for path in videos_in([folder]):
            watcher = _Windows(net(self.model, self.device), self.frames)
            for frame in frames_of(opened(path)):
                watcher.see(frame)
            rows = watcher.rows()
            found = found or Moments(rows.shape[1])
            found.add(rows)
        assert found is not None
        return found


class _Windows:
    def __init__(self, network: Net, length: int) -> None:
        self._network, self._length = network, length
        self._pictures: list[Pixels] = []
        self._rows: list[Vectors] = []

    def see(self, frame: Frame) -> None:
        self._pictures.append(frame.rgb_HWC)
        if len(self._pictures) == self._length:
            self._rows.append(self._network.features(self._pictures))
            self._pictures = []

    def rows(self) -> Vectors:
        if not self._rows:
            raise ValueError(f"shorter than one window of {self._length} frames; give longer clips")
        return np.stack(self._rows)

    def reading(self) -> Reading:
        rows = self.rows()
        return Reading(None, parts={"windows": float(len(rows))}, features=rows)
