"""The jury: what it hears, how it weighs it, the directory it is kept in, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.rewards.judges import judges_of
from arvid.rewards.jury import EVIDENCE, Jury
from arvid.rewards.latent import LatentJudge, LatentJudgeConfig
from arvid.rewards.reading import Meaning, ReadingJudge, ReadingJudgeConfig
from arvid.rewards.rereading import RereadingJudge
from arvid.types import Candidate, Condition

MEANING = Meaning([[3.0, 6.0], [4.0, 7.0]], ["still", "move", "orbit"], [[0.0, 0.0], [1.0, 0.0]], [0.5, 1.5], 3)
SCORES = torch.tensor([[0.9, 0.2, 0.7], [0.0, 0.5, 1.0]])


class Written:
    """A frame reward that says what is written."""

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        assert (v_BTCHW.shape[:2], prompt) == ((2, 3), "words")
        return SCORES


def witnesses() -> tuple[LatentJudge, ReadingJudge]:
    torch.manual_seed(0)
    latent = LatentJudge(LatentJudgeConfig(channels=4, text_width=8, width=12, blocks=1, heads=2)).eval()
    config = ReadingJudgeConfig(channels=4, frames=3, width=16, blocks=1, text_width=8, things=2, meaning=MEANING)
    return latent, ReadingJudge(config).eval()


def encode(v_BTCHW: Tensor) -> Tensor:
    """What two videos of three frames look like to a codec."""
    assert v_BTCHW.shape == (2, 3, 3, 8, 8)
    return torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(7))


def jury() -> Jury:
    latent, reading = witnesses()
    return Jury(Written(), latent, reading, RereadingJudge(reading, encode)).eval()


def candidate() -> Candidate:
    generator = torch.Generator().manual_seed(1)
    film, text = torch.randn(2, 6, 4, 4, 4, generator=generator), torch.randn(2, 3, 8, generator=generator)
    before, block = film.split(3, 1)
    return Candidate(block, before, lambda: torch.zeros(2, 3, 3, 8, 8), None, Condition("words", text))


def test_the_evidence_is_what_each_witness_says() -> None:
    latent, reading = witnesses()
    heard = dict(zip(EVIDENCE, jury().evidence(candidate()).T, strict=True))
    torch.testing.assert_close(heard["worst"], torch.tensor([0.2, 0.0]))
    torch.testing.assert_close(heard["frames"], torch.tensor([0.6, 0.5]))
    torch.testing.assert_close(heard["worst-log"], torch.tensor([0.2, 1e-3]).log())
    said = latent.score_block(candidate())
    torch.testing.assert_close(heard["latent"], said)
    torch.testing.assert_close(heard["latent-log"], said.log())
    for name, term in reading.terms(candidate()).items():
        torch.testing.assert_close(heard[name], term)
        torch.testing.assert_close(heard[f"{name}-root"].square(), term, atol=1e-5, rtol=1e-4)
    for name, term in RereadingJudge(reading, encode).terms(candidate()).items():
        torch.testing.assert_close(heard[f"seen-{name}"], term)
        torch.testing.assert_close(heard[f"seen-{name}-root"].square(), term, atol=1e-5, rtol=1e-4)


def test_the_score_is_a_logistic_of_the_evidence() -> None:
    made = jury()
    with torch.no_grad():
        made.weigh.weight.zero_()
        made.weigh.weight[0, EVIDENCE.index("worst")] = 3.0
        made.weigh.bias.fill_(-1.0)
    torch.testing.assert_close(made.score_block(candidate()), torch.tensor([3 * 0.2 - 1, -1.0]).sigmoid())


def test_a_family_finds_its_jury_behind_its_witnesses(tmp_path: Path) -> None:
    latent, reading = witnesses()
    latent.save(tmp_path / "latent_judge")
    reading.save(tmp_path / "reading_judge")
    made = jury()
    made.save(tmp_path / "jury_judge")
    found = judges_of(tmp_path, Written(), encode, torch.device("cpu"))
    assert list(found) == ["latent", "reading", "rereading", "jury"]
    torch.testing.assert_close(found["jury"].score_block(candidate()), made.score_block(candidate()))
    assert {entry.name for entry in (tmp_path / "jury_judge").iterdir()} == {"config.json", "model.safetensors"}
    assert set(made.state_dict()) == {"weigh.weight", "weigh.bias"}, "witnesses are no part of the weights"


def test_a_jury_without_a_witness_or_of_other_evidence_is_refused(tmp_path: Path) -> None:
    latent, reading = witnesses()
    place = tmp_path / "jury_judge"
    jury().save(place)
    with pytest.raises(ValueError, match="hears the judge 'latent', the family lacks it"):
        judges_of(tmp_path, Written(), encode, torch.device("cpu"))
    latent.save(tmp_path / "latent_judge")
    with pytest.raises(ValueError, match="hears the judge 'reading', the family lacks it"):
        judges_of(tmp_path, Written(), encode, torch.device("cpu"))
    reading.save(tmp_path / "reading_judge")
    with pytest.raises(ValueError, match="hears the judge 'rereading', the family lacks it"):
        judges_of(tmp_path, Written(), None, torch.device("cpu"))
    with pytest.raises(ValueError, match="hears the frame reward, the family lacks it"):
        judges_of(tmp_path, None, encode, torch.device("cpu"))
    (place / "config.json").write_text(json.dumps({"evidence": ["worst"]}))
    with pytest.raises(ValueError, match=r"the jury in .* is damaged \(weights of other evidence"):
        judges_of(tmp_path, Written(), encode, torch.device("cpu"))
