"""The marking judge: the numbers it is given, what enters a mark, its files, and where a family finds it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.rewards.judges import judges_of
from arvid.rewards.marking import Evidence, MarkingJudge, MarkingJudgeConfig, evidence
from arvid.rewards.reading import Asked, Meaning, ReadingJudge, ReadingJudgeConfig
from arvid.types import Candidate, Condition

MEANING = Meaning([[3.0, 6.0], [4.0, 7.0]], ["still", "move", "orbit"], [[0.0, 0.0], [1.0, 0.0]], [0.5, 1.5], 3)
CPU = torch.device("cpu")
FRAMES, SIDE = 3, 4


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reading() -> ReadingJudge:
    torch.manual_seed(0)
    config = ReadingJudgeConfig(channels=4, frames=3, width=16, blocks=1, text_width=8, things=2, meaning=MEANING)
    return ReadingJudge(config).eval()


def judge(seed: int = 1) -> MarkingJudge:
    torch.manual_seed(seed)
    shown = evidence(seen_thing(), asked())
    config = MarkingJudgeConfig(MEANING.fields, shown.things_NKF.shape[-1], shown.scene_NS.shape[-1], 3, width=16)
    made = MarkingJudge(config, reading())
    torch.nn.init.normal_(made.scene_value.weight, std=0.3)
    return made.eval()


def candidate(seed: int = 2) -> Candidate:
    text = Condition("words", normal(2, 3, 8, seed=3))
    return Candidate(normal(2, 3, 4, 4, 4, seed=seed), None, lambda: normal(2, 9, 3, 8, 8, seed=5), None, text)


def asked(second: bool = False) -> Asked:
    """A thing of colour 1 that moves to the right at 1.5 pixels a frame, of shape 0 and size 1; beside it one of colour
    2 that stands still."""
    things = torch.tensor([[[0, 1, 1, 1, 1, 1], [1, 2, 0, 0, 0, 0]]])
    return Asked.of(things, torch.tensor([[1.0, float(second)]]), MEANING)


def seen_thing(column: int = 1) -> list[Tensor]:
    """What a sure reader says of a thing of colour 1, shape 0, size 1 that covers two cells of a row and moves by one
    pixel a frame to the right."""
    logits = []
    for classes, right in ((3, 1), (3, 2), (4, 2)):
        sure = torch.zeros(1, FRAMES, SIDE, SIDE, classes)
        sure[..., 0] = 30.0
        sure[:, :, 1, column : column + 2, 0] = 0.0
        sure[:, :, 1, column : column + 2, right] = 30.0
        logits.append(sure)
    velocity = torch.zeros(1, FRAMES, SIDE, SIDE, 2)
    velocity[:, :, 1, column : column + 2, 0] = 1.0
    return [*logits, velocity]


def test_the_numbers_of_a_thing_are_what_is_seen_of_it() -> None:
    numbers = evidence(seen_thing(), asked()).things_NKF[0, 0]
    shape, size, area, own, off, pace, rest = numbers.split([3, 3, 3, 6, 6, 3, numbers.numel() - 24])
    torch.testing.assert_close(shape, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(size, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(area, torch.full((3,), 2.5 / 6.5).log(), atol=1e-4, rtol=0)
    torch.testing.assert_close(own, torch.tensor([1.0, 0.0] * 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(off, torch.tensor([-0.5, 0.0] * 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(pace, torch.full((3,), 1.1 / 1.6).log(), atol=1e-3, rtol=0)
    across, wide, steps, down, high, rows, kind = rest.split([3, 3, 2, 3, 3, 2, 3])
    # Columns 1 and 2 of four lie at -.25 and .25 of half a side, row 1 at -.25.
    torch.testing.assert_close(across, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(wide, torch.full((3,), 0.0625), atol=1e-5, rtol=0)
    torch.testing.assert_close(down, torch.full((3,), -0.25), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([high, steps, rows]), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(kind, torch.tensor([1.0, 0.0, 1.5]))
    moved = evidence(seen_thing(2), asked()).things_NKF[0, 0]
    torch.testing.assert_close(moved[24:27], torch.full((3,), 0.5), atol=1e-5, rtol=0)


def test_the_numbers_of_a_scene_are_the_terms_of_the_distance_and_their_roots() -> None:
    made = reading()
    read, wanted = made.read(candidate())
    terms = torch.stack([*made.terms(candidate()).values()], 1)
    found = evidence(read, wanted).scene_NS
    torch.testing.assert_close(found[:, : terms.shape[1]], terms)
    torch.testing.assert_close(found[:, terms.shape[1] :].square(), terms, atol=1e-5, rtol=1e-4)


def test_what_is_said_of_things_enters_and_what_is_not_there_does_not() -> None:
    made, shown = judge(), evidence(seen_thing(), asked())
    base = made(shown)[0]
    for field in range(len(MEANING.fields)):
        other = shown.asked.things_NKF.clone()
        other[0, 0, field] = 1 - other[0, 0, field]
        assert not torch.allclose(made(shown._replace(asked=replace(shown.asked, things_NKF=other)))[0], base)
        absent = shown.asked.things_NKF.clone()
        absent[0, 1, field] = 1
        again = made(shown._replace(asked=replace(shown.asked, things_NKF=absent)))[0]
        torch.testing.assert_close(again, base)
    both = evidence(seen_thing(), asked(second=True))
    assert not torch.allclose(made(both)[0], base)


def test_every_number_counts_in_its_own_deviations() -> None:
    made, shown = judge(), evidence(seen_thing(), asked())
    scaled = Evidence(3 * shown.things_NKF + 1, 5 * shown.scene_NS - 2, shown.asked)
    base = made(shown)
    for name, factor, shift in (("things", 3, 1), ("scene", 5, -2)):
        made.get_buffer(f"{name}_mean").mul_(factor).add_(shift)
        made.get_buffer(f"{name}_spread").mul_(factor)
    for one, other in zip(made(scaled), base, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_measure_leaves_numbers_of_no_mean_and_unit_deviation() -> None:
    made = judge()
    things, scene = normal(400, 2, made.config.things, seed=4) * 7 + 3, normal(400, made.config.scene, seed=5) - 9
    wanted = asked()
    rows = torch.zeros(400, dtype=torch.long)
    made.measure(Evidence(things, scene, wanted[rows]))
    torch.testing.assert_close(made.get_buffer("things_mean"), things[:, 0].mean(0))
    torch.testing.assert_close(made.get_buffer("scene_spread"), scene.std(0), atol=2e-3, rtol=0)


def test_a_score_is_a_probability_and_comes_back_from_its_file(tmp_path: Path) -> None:
    made = judge()
    score = made.score_block(candidate())
    assert (score.shape, score.dtype, score.requires_grad) == ((2,), torch.float32, False)
    assert bool(((score > 0) & (score < 1)).all())
    torch.testing.assert_close(score, made(made.evidence(candidate()))[0].sigmoid())
    made.save(tmp_path)
    assert not any("cells" in name or "scenes" in name for name in made.state_dict()), "the reader is no part of it"
    again = MarkingJudge.load(tmp_path, reading())
    assert again.config == made.config
    assert torch.equal(again.score_block(candidate()), score)
    (tmp_path / "config.json").write_text(json.dumps({"fields": [2], "things": 1, "scene": 1}))
    with pytest.raises(ValueError, match=r"the marking judge in .* is damaged"):
        MarkingJudge.load(tmp_path, reading())


def test_a_family_has_one_for_latents_and_one_for_frames(tmp_path: Path) -> None:
    shown = normal(2, 3, 4, 4, 4, seed=8)
    reading().save(tmp_path / "reading_judge")
    judge(1).save(tmp_path / "marking_judge")
    judge(2).save(tmp_path / "remarking_judge")
    found = judges_of(tmp_path, lambda v_BTCHW: shown, CPU)
    assert list(found) == ["reading", "rereading", "marking", "remarking"]
    assert [each.lookback for each in found.values()] == [0, 1, 0, 1]
    torch.testing.assert_close(found["marking"].score_block(candidate()), judge(1).score_block(candidate()))
    again = judge(2).score_block(replace(candidate(), block_BTCHW=shown))
    torch.testing.assert_close(found["remarking"].score_block(candidate()), again)


def test_a_family_without_whom_they_need_is_refused(tmp_path: Path) -> None:
    judge().save(tmp_path / "marking_judge")
    with pytest.raises(ValueError, match="listens to the reading judge, which the family lacks; remove it"):
        judges_of(tmp_path, None, CPU)
    reading().save(tmp_path / "reading_judge")
    assert list(judges_of(tmp_path, None, CPU)) == ["reading", "marking"]
    judge().save(tmp_path / "remarking_judge")
    with pytest.raises(ValueError, match="has frames encoded, and the family only decodes; remove it"):
        judges_of(tmp_path, None, CPU)
