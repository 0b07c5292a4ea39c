"""The table against numbers worked out by hand, and the claims on tables made to show or to miss them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arvid.evals import page, summary
from arvid.evals.speculation import BlockRun, Video
from arvid.worlds.oracle import WorldScore

STRIP = np.zeros((4, 32, 3), np.uint8)


def video(policy: str, prompt: str, score: float, seconds: float, blocks: tuple[BlockRun, ...], seed: int = 0) -> Video:
    world = WorldScore(score, score, 1.0, {"colour": score})
    return Video(policy, prompt, seed, seconds, world, blocks, STRIP, 2 * seconds)


def target_block(seconds: float, commits: int = 0) -> BlockRun:
    return BlockRun(seconds, "target", None, {"target": 4, "target_commit": commits}, {"target": seconds})


def draft_block(seconds: float, score: float | None) -> BlockRun:
    return BlockRun(seconds, "draft", score, {"drafter": 4}, {"draft": seconds})


@pytest.fixture
def videos() -> list[Video]:
    rejected = BlockRun(3.0, "target", 0.2, {"drafter": 4, "target": 4, "target_commit": 1})
    return [
        video("target", "a", 0.8, 6.0, (target_block(2), target_block(2, 1), target_block(2, 1))),
        video("reward:tau=0.5", "a", 0.6, 3.0, (target_block(2), draft_block(0.5, 0.9), draft_block(0.5, 0.6))),
        video("target", "b", 1.0, 6.0, (target_block(2), target_block(2, 1), target_block(2, 1))),
        video("reward:tau=0.5", "b", 0.9, 5.0, (target_block(2), rejected, draft_block(1.0, None))),
    ]


def test_a_row_holds_the_numbers_of_its_videos(videos: list[Video]) -> None:
    target, row = summary.rows(videos)
    assert (target["policy"], target["speedup"], target["retention"], target["rival"]) == ("target", 1, 1, None)
    assert (target["target_calls"], target["target_commits"], target["accept_rate_scored"]) == (14, 2, None)
    assert row["tau"] == 0.5 and (row["prompts"], row["seeds"]) == (2, 1)
    assert row["speedup"] == pytest.approx(12 / 8) and row["speedup_median"] == pytest.approx((2 + 1.2) / 2)
    assert row["speedup_cpu"] == pytest.approx(12 / 8)
    assert row["quality"] == pytest.approx(0.75) and row["retention"] == pytest.approx(1.5 / 1.8, abs=1e-6)
    assert row["retention_ci95"] == [pytest.approx(0.75), pytest.approx(0.9)]
    assert row["accept_rate"] == pytest.approx(3 / 6) and row["accept_rate_scored"] == pytest.approx(2 / 3, abs=1e-6)
    assert row["first_frame_s"] == 2 and row["p50_block_s"] == pytest.approx(1.5)
    assert row["p95_block_s"] == pytest.approx(2.75)
    assert row["target_calls"] == pytest.approx((4 + 9) / 2) and row["drafter_calls"] == pytest.approx((8 + 8) / 2)
    assert row["sources"] == {"draft": 3, "target": 3} and row["attributes"] == {"colour": 0.75}
    assert row["diff_to_first_ci95"] is None and row["rival"] == "target"
    assert row["rival_diff"] == pytest.approx(-0.15)


def test_infinite_thresholds_leave_no_number(videos: list[Video]) -> None:
    renamed = [video("reward:tau=-inf", v.prompt, 0.5, 1.0, v.blocks) for v in videos if v.policy != "target"]
    assert summary.rows([*(v for v in videos if v.policy == "target"), *renamed])[1]["tau"] is None


def test_rows_need_the_target_and_complete_rounds(videos: list[Video]) -> None:
    with pytest.raises(ValueError, match="no video by 'target'"):
        summary.rows(videos[1:2])
    with pytest.raises(ValueError, match="complete rounds"):
        summary.rows(videos[:3])


def table(rng: np.random.Generator, **made: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows of policies (speed-up, quality) over 24 prompts with a little common noise."""
    noise = rng.normal(0, 0.05, 24)
    videos = [
        video(policy, f"p{number}", quality + shift, 10 / speed, (draft_block(1, None),))
        for number, shift in enumerate(noise)
        for policy, (speed, quality) in made.items()
    ]
    return summary.rows(videos)


def test_the_rival_is_the_fastest_cheaper_target_that_is_not_faster() -> None:
    found = table(
        np.random.default_rng(0),
        **{"target": (1.0, 0.8), "target:steps=3": (1.3, 0.78), "target:steps=2": (1.9, 0.7),
           "target:steps=1": (3.5, 0.4), "first": (3.0, 0.6), "refine:levels=0.8": (2.0, 0.79),
           "stride:k=2": (1.2, 0.75)},
    )  # fmt: skip
    rows = {row["policy"]: row for row in found}
    assert rows["refine:levels=0.8"]["rival"] == "target:steps=2"
    assert rows["refine:levels=0.8"]["rival_diff"] == pytest.approx(0.09)
    assert rows["refine:levels=0.8"]["diff_to_first"] == pytest.approx(0.19)
    assert rows["first"]["rival"] == "target:steps=2" and rows["first"]["diff_to_first"] is None
    assert rows["stride:k=2"]["rival"] == "target" and rows["target:steps=2"]["rival"] is None
    assert [row["policy"] for row in summary.front(found)] == [
        "target", "refine:levels=0.8", "first", "target:steps=1",
    ]  # fmt: skip


def reached(found: list[dict[str, Any]]) -> list[bool]:
    return [claim["reached"] for claim in summary.claims(found)]


def test_claims_name_the_row_that_shows_them() -> None:
    rng = np.random.default_rng(0)
    base = {"target": (1.0, 0.8), "target:steps=2": (1.9, 0.7), "first": (2.2, 0.6), "draft": (5.0, 0.99)}
    all_met = table(rng, **base, **{"refine:levels=0.8": (2.5, 0.79)})
    assert reached(all_met) == [True] * 7 + [False]
    assert {claim["policy"] for claim in summary.claims(all_met)[:7]} == {"refine:levels=0.8"}
    slow = table(rng, **base, **{"refine:levels=0.8": (2.0, 0.79)})
    assert reached(slow) == [True, False, True, False, True, True, False, False]
    poor = table(rng, **base, **{"refine:levels=0.8": (2.5, 0.5)})
    assert reached(poor) == [False] * 8
    assert all(claim["policy"] == "refine:levels=0.8" for claim in summary.claims(poor)[:7])


def kept(policy: str, shares: tuple[int, ...], scores: tuple[float, ...]) -> list[Video]:
    """Videos of four blocks, of which so many stayed drafts."""
    return [
        video(policy, f"p{number}", score, 10.0, tuple(
            draft_block(1, None) if index < share else target_block(1) for index in range(4)
        ))
        for number, (share, score) in enumerate(zip(shares, scores, strict=True))
    ]  # fmt: skip


def test_chance_is_the_line_between_the_random_rows_around() -> None:
    """A quarter kept scores .8 and three quarters .4, so a half would have scored .6 in every video."""
    videos = [
        *kept("target", (0, 0, 0), (0.9, 0.9, 0.9)), *kept("random:p=0.7", (3, 3, 3), (0.3, 0.4, 0.5)),
        *kept("random:p=0.3", (1, 1, 1), (0.7, 0.8, 0.9)), *kept("reward:tau=0.5", (2, 2, 2), (0.6, 0.7, 0.8)),
        *kept("first", (4, 4, 4), (0.2, 0.2, 0.2)),
    ]  # fmt: skip
    rows = {row["policy"]: row for row in summary.rows(videos)}
    assert rows["reward:tau=0.5"]["diff_to_random"] == pytest.approx(0.1)
    assert rows["reward:tau=0.5"]["diff_to_random_ci95"] == pytest.approx([0.1, 0.1])
    assert rows["first"]["diff_to_random"] is None, "as many were never kept by chance"
    assert rows["random:p=0.3"]["diff_to_random"] is None
    assert summary.claims(list(rows.values()))[-1]["policy"] == "reward:tau=0.5"
    assert summary.claims(list(rows.values()))[-1]["reached"]


def test_a_faster_cheaper_target_that_scores_as_much_denies_the_claim() -> None:
    rng = np.random.default_rng(0)
    base = {"target": (1.0, 0.8), "target:steps=2": (1.9, 0.7), "first": (2.2, 0.6), "refine:levels=0.8": (2.5, 0.79)}
    assert reached(table(rng, **base, **{"target:steps=1": (2.6, 0.6)}))[4]
    assert not reached(table(rng, **base, **{"target:steps=1": (2.6, 0.795)}))[4]


def test_baselines_alone_reach_nothing() -> None:
    found = table(np.random.default_rng(0), target=(1.0, 0.8), first=(3.0, 0.8), draft=(5.0, 0.8))
    assert reached(found) == [False] * 8
    assert all(claim["policy"] is None for claim in summary.claims(found))


def test_the_page_holds_everything_and_fetches_nothing(videos: list[Video]) -> None:
    found = summary.rows(videos)
    report = {
        "machine": {"cpu": "a <processor>"},
        "config": {"model": "toy", "world": "shapes", "prompts": 2, "seeds": 1, "seconds": 2.0, "interrupted": True},
        "rows": found, "claims": summary.claims(found),
    }  # fmt: skip
    text = page.render(report, videos)
    assert "a &lt;processor&gt;" in text and "<svg" in text and "interrupted" in text
    assert text.count("data:image/png;base64,") == 4
    assert text.count("reward:tau=0.5") >= 4
    assert 'src="http' not in text and "<script" not in text and "<link" not in text


def test_the_page_of_a_target_without_a_score_still_appears() -> None:
    videos = [video(policy, "a", 0.0, 1.0, (target_block(1),)) for policy in ("target", "first")]
    found = summary.rows(videos)
    assert found[1]["retention"] is None and found[1]["retention_ci95"] is None
    config = {"model": "toy", "world": "shapes", "prompts": 1, "seeds": 1, "seconds": 1.0, "interrupted": False}
    report = {"machine": {}, "config": config, "rows": found, "claims": summary.claims(found)}
    assert "<svg" in page.render(report, videos)
