"""FVD: the distance against closed forms and scipy, the networks against the library's own forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from scipy import linalg

from arvid.evals import fvd
from arvid.evals.clips import opened, pictures_of
from arvid.evals.metric import measure
from oracles import films

LENGTH = 4


def test_the_distance_of_diagonal_gaussians_has_a_closed_form() -> None:
    one = (np.array([0.0, 1.0]), np.diag([4.0, 9.0]))
    two = (np.array([2.0, 1.0]), np.diag([1.0, 16.0]))
    assert fvd.frechet(one, two) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 4) ** 2)
    assert fvd.frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_the_distance_is_that_of_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    (a, b) = (rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6) for _ in range(2))
    one, two = ((rows.mean(0), np.cov(rows.T)) for rows in (a, b))
    root = linalg.sqrtm(one[1] @ two[1]).real
    expected = ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1] - 2 * root)
    assert fvd.frechet(one, two) == pytest.approx(expected, rel=1e-8)


def test_a_covariance_without_full_rank_is_no_trouble() -> None:
    rows = np.random.default_rng(1).normal(size=(3, 10))
    one = (rows.mean(0), np.cov(rows.T))
    assert fvd.frechet(one, one) == pytest.approx(0, abs=1e-6)


class TinyI3D(torch.nn.Module):
    """What StyleGAN-V's file looks like from outside."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return torch.stack([x.mean((2, 3, 4)), x.std((2, 3, 4)), x[:, :, -1].mean((2, 3))], 2).flatten(1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.script(TinyI3D()).save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of clean films and one of fading ones."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(3):
        film = films.moving(number, frames=2 * LENGTH + 1)
        films.write(root / "clean" / f"{number}.mp4", film)
        films.write(root / "faded" / f"{number}.mp4", films.fading(film, 0.1))
    return root / "clean", root / "faded"


def test_fvd_is_the_distance_of_all_windows_features(i3d: str, videos: tuple[Path, Path], tmp_path: Path) -> None:
    clean, faded = videos
    metric = fvd.Fvd(i3d, str(clean), LENGTH)
    for path in sorted(faded.iterdir()):
        reading = metric.update(opened(path))
        assert reading.value is None and reading.parts == {"windows": 2}
    rows = []
    for folder in videos:
        found = []
        for path in sorted(folder.iterdir()):
            film = torch.from_numpy(np.stack([*pictures_of(path)])).float().permute(3, 0, 1, 2) / 127.5 - 1
            # 96x64 becomes 336x224; the middle 224x224 is seen.
            large = torch.nn.functional.interpolate(film, (224, 336), mode="bilinear", antialias=False)[..., 56:280]
            for start in (0, LENGTH):
                found.append(TinyI3D()(large[None, :, start : start + LENGTH], False, False, True)[0].double().numpy())
        rows.append(np.stack(found))
    known, made = ((part.mean(0), np.cov(part.T)) for part in rows)
    root = linalg.sqrtm(known[1] @ made[1]).real
    expected = ((known[0] - made[0]) ** 2).sum() + np.trace(known[1] + made[1] - 2 * root)
    value = metric.value()
    assert value == pytest.approx(expected, rel=0.02)
    saved = tmp_path / "clean.safetensors"
    metric.known().save(saved)
    again = fvd.Fvd(i3d, str(saved), LENGTH)
    again.moments = metric.moments
    assert again.value() == pytest.approx(value, abs=1e-12)


def test_fvd_of_parts_is_fvd_of_the_whole(i3d: str, videos: tuple[Path, Path]) -> None:
    clean, faded = videos
    whole, *parts = (fvd.Fvd(i3d, str(clean), LENGTH) for _ in range(3))
    for number, path in enumerate(sorted(faded.iterdir())):
        reading = whole.update(opened(path))
        parts[number % 2].add(reading)
    parts[0].merge(parts[1])
    assert parts[0].value() == pytest.approx(whole.value(), abs=1e-8)
    assert fvd.Fvd(i3d, str(clean), LENGTH).value() is None


def test_a_videomae_gives_what_its_classifier_reads(tmp_path: Path, videos: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=LENGTH, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=5,
    )  # fmt: skip
    model = transformers.VideoMAEForVideoClassification(config).eval()
    model.save_pretrained(tmp_path)
    prepare = transformers.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    prepare.save_pretrained(tmp_path)
    pictures = [*pictures_of(next(videos[0].iterdir()))][:LENGTH]
    with torch.inference_mode():
        tokens = model.videomae(**prepare(pictures, return_tensors="pt")).last_hidden_state
        expected = model.fc_norm(tokens.mean(1))[0]
    network = fvd.VideoMAE(str(tmp_path), "cpu")
    assert network.features(pictures) == pytest.approx(expected.numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="this VideoMAE reads 4"):
        network.features(pictures[:2])


def test_what_is_missing_is_named(i3d: str, videos: tuple[Path, Path], tmp_path: Path) -> None:
    clean, _ = videos
    with pytest.raises(ValueError, match="no TorchScript I3D"):
        fvd.I3D(str(tmp_path / "none.pt"), "cpu")
    with pytest.raises(ValueError, match="no VideoMAE"):
        fvd.VideoMAE(str(tmp_path), "cpu")
    with pytest.raises(ValueError, match="no moments"):
        fvd.Moments.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="1 windows of video"):
        one = fvd.Moments(2)
        one.add(np.ones((1, 2)))
        one.gaussian()
    short = opened(films.write(tmp_path / "short.mp4", films.moving(frames=LENGTH - 1)))
    assert "give longer clips" in measure(short, [fvd.Fvd(i3d, str(clean), LENGTH)])["fvd"].note
