"""PSNR and SSIM against scikit-image, the world's score against the oracle on the true frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from arvid.evals import fidelity
from arvid.evals.clips import Frame, opened, pictures_of
from arvid.evals.metric import measure
from arvid.worlds import oracle, shapes
from oracles import films

PROMPT = "a red circle moves right on a black background"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A video and a reference of the same name."""
    film = films.moving(frames=6)
    return films.write(tmp_path / "made" / "a.mp4", films.blurred(film, 3)), films.write(
        tmp_path / "truth" / "a.mp4", film
    )


def test_psnr_is_that_of_scikit_image_over_the_whole_clip(pair: tuple[Path, Path]) -> None:
    made, truth = (np.stack([*pictures_of(path)]) for path in pair)
    metric = fidelity.Psnr(str(pair[1].parent))
    found = measure(opened(pair[0]), [metric])["psnr"]
    assert found.value == pytest.approx(peak_signal_noise_ratio(truth, made, data_range=255), abs=1e-9)
    assert len(found.curve) == 6 and found.curve[0] > found.curve[-1]


def test_equal_videos_have_the_best_psnr_and_an_ssim_of_one(pair: tuple[Path, Path]) -> None:
    folder = str(pair[1].parent)
    found = measure(opened(pair[1]), [fidelity.Psnr(folder), fidelity.Ssim(folder)])
    assert found["psnr"].value == fidelity.BEST_PSNR
    assert found["ssim"].value == pytest.approx(1, abs=1e-6)


def test_ssim_is_that_of_scikit_image(pair: tuple[Path, Path]) -> None:
    one, two = ([Frame(picture, 0).grey_HW for picture in pictures_of(path)] for path in pair)
    expected = [
        structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
        for a, b in zip(one, two, strict=True)
    ]
    found = measure(opened(pair[0]), [fidelity.Ssim(str(pair[1].parent))])["ssim"]
    assert found.value == pytest.approx(np.mean(expected), abs=1e-5)


def test_references_have_to_fit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    metric = fidelity.Psnr(str(tmp_path / "truth"))

    def note(path: Path) -> str:
        return measure(opened(path), [metric])["psnr"].note

    assert "no reference named b" in note(films.write(tmp_path / "made" / "b.mp4", films.moving(frames=2)))
    films.write(tmp_path / "truth" / "c.mp4", films.moving(frames=4))
    assert "only 4 frames" in note(films.write(tmp_path / "made" / "c.mp4", films.moving(frames=5)))
    assert "goes on" in note(films.write(tmp_path / "made" / "c.mp4", films.moving(frames=3)))
    assert "compare equal sizes" in note(
        films.write(tmp_path / "made" / "c.mp4", films.moving(frames=4, size=(64, 64)))
    )


def test_the_world_score_of_an_enlarged_video_is_that_of_the_true_frames(tmp_path: Path) -> None:
    truth = shapes.render(PROMPT, 3)[:33]
    large = truth.repeat(4, 1).repeat(4, 2)
    clip = opened(films.write(tmp_path / "a.mp4", large))
    from dataclasses import replace

    metric = fidelity.World()
    found = measure(replace(clip, prompt=PROMPT), [metric])["world"]
    expected = oracle.judge(truth, PROMPT)
    assert found.value == pytest.approx(expected.score, abs=0.03)
    assert found.parts["colour"] == pytest.approx(expected.attributes["colour"], abs=0.05)
    assert "no prompt" in measure(clip, [metric])["world"].note
    assert "cat" in measure(replace(clip, prompt="a cat on a sofa"), [metric])["world"].note
    wide = opened(films.write(tmp_path / "b.mp4", films.moving(frames=9)))
    assert "96x64" in measure(replace(wide, prompt=PROMPT), [metric])["world"].note
