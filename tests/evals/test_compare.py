"""Pairs, intervals and win rates against numbers worked out by hand; the page holds everything and fetches nothing."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from arvid.evals import compare, drawing, gallery
from oracles import films

ABOUT = {"better": 1, "what": "a number", "unit": "", "tier": "signal", "options": {}}
Report = dict[str, Any]


def row(prompt: str, seed: int | None, curve: tuple[float, ...] = (), **values: float) -> dict[str, Any]:
    return {"name": f"{prompt}-{seed}", "path": f"{prompt}.mp4", "prompt": prompt, "seed": seed, "fps": 16,
            "frames": 32, "values": values, "curves": {name: ["time", *curve] for name in values if curve},
            "parts": {}, "notes": {},
            "speed": None, "size": [96, 64]}  # fmt: skip


def report(*rows: dict[str, Any], name: str = "x", about: dict[str, Any] | None = None, **more: Any) -> Report:
    names = dict.fromkeys(metric for one in rows for metric in one["values"])
    return {
        "kind": "eval", "name": name, "clips": [*rows], "failures": [], "notes": {}, "command": "arvid eval <x>",
        "date": "today", "machine": {"cpu": "a <processor>"}, "speed": None,
        "protocol": {"suite": None, "metrics": dict.fromkeys(names, about or ABOUT), "versions": {"av": "1"}},
        "totals": {metric: {"value": float(np.mean([one["values"][metric] for one in rows if metric in one["values"]])),
                            "ci95": None, "clips": len(rows)} for metric in names},
        **more,
    }  # fmt: skip


def of(compared: dict[str, Any], metric: str, name: str) -> dict[str, Any]:
    return next(one for one in compared["rows"] if one["metric"] == metric and one["report"] == name)


def test_clips_are_paired_by_prompt_and_seed_in_any_order() -> None:
    base = report(row("a", 0, score=0.5), row("b", 0, score=0.7), row("c", 0, score=0.1), row("a", 1, score=0.9))
    other = report(row("a", 1, score=0.8), row("b", 0, score=0.9), row("a", 0, score=0.7), row("d", 0, score=1.0))
    compared = compare.compare([base, other], ["base", "other"])
    found = of(compared, "score", "other")
    assert compared["pairs"] == 3 and found["pairs"] == 3
    assert found["difference"] == pytest.approx((0.2 + 0.2 - 0.1) / 3)
    assert found["value"] == pytest.approx((0.7 + 0.9 + 0.8) / 3)
    assert found["win_rate"] == pytest.approx(2 / 3)
    assert compared["left_out"] == ["base: 1 of 4 clips have no partner", "other: 1 of 4 clips have no partner"]


def test_seeds_of_a_prompt_are_drawn_together() -> None:
    # One prompt moves up by 1, the other down by 1, with many seeds each: prompts are what is uncertain.
    base = report(*(row(prompt, seed, score=0.0) for prompt in "ab" for seed in range(20)))
    moved = report(*(row(p, seed, score=1.0 if p == "a" else -1.0) for p in "ab" for seed in range(20)))
    found = of(compare.compare([base, moved], ["base", "moved"]), "score", "moved")
    assert found["difference_ci95"] == [-1, 1] and found["verdict"] == compare.SURE[0]


@pytest.mark.parametrize(("better", "verdict", "wins"), [(1, "better", 1), (-1, "worse", 0), (0, "different", None)])
def test_better_is_the_side_the_metric_says(better: int, verdict: str, wins: float | None) -> None:
    about = {**ABOUT, "better": better}
    base = report(*(row(str(number), 0, score=0.1 * number) for number in range(6)), about=about)
    more = report(*(row(str(number), 0, score=0.1 * number + 0.5) for number in range(6)), about=about)
    found = of(compare.compare([base, more], ["base", "more"]), "score", "more")
    assert (found["verdict"], found["win_rate"]) == (verdict, wins)
    assert found["effect"] == pytest.approx(0.5 / np.std(0.1 * np.arange(6)), abs=1e-3)


def test_a_tie_is_half_a_win() -> None:
    base = report(row("a", 0, score=1.0), row("b", 0, score=1.0))
    found = of(
        compare.compare([base, report(row("a", 0, score=1.0), row("b", 0, score=2.0))], ["x", "y"]), "score", "y"
    )
    assert found["win_rate"] == 0.75


def test_a_difference_is_placed_in_time() -> None:
    flat, late = (1.0,) * 8, (1.0,) * 6 + (2.0,) * 2
    base = report(*(row(str(n), 0, flat, score=1.0) for n in range(3)))
    other = report(*(row(str(n), 0, late, score=1.2) for n in range(3)))
    compared = compare.compare([base, other], ["base", "other"])
    # 32 frames at 16 per second; the curves part at the seventh of eight points.
    assert of(compared, "score", "other")["from_s"] == pytest.approx(6 / 8 * 2)
    assert "from about 1.5 s on" in compared["findings"][0]["text"]


def test_metrics_measured_differently_are_left_out() -> None:
    base = report(row("a", 0, score=1.0, other=1.0))
    second = report(row("a", 0, score=1.0, third=1.0), about={**ABOUT, "options": {"rate": 2.0}})
    compared = compare.compare([base, second], ["base", "second"])
    assert compared["rows"] == []
    assert compared["left_out"] == [
        "score was measured with other options", "other is not in all reports", "third is not in all reports",
    ]  # fmt: skip


def test_clips_without_prompts_are_paired_by_name() -> None:
    rows = [{**row("a", None, score=value), "prompt": None, "name": "one"} for value in (1.0, 2.0)]
    compared = compare.compare([report(rows[0]), report(rows[1])], ["x", "y"])
    assert compared["pairs"] == 1 and of(compared, "score", "y")["difference"] == 1
    assert of(compared, "score", "y")["difference_ci95"] is None


def test_reports_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="kind 'bench'"):
        compare.compare([{"kind": "bench"}], ["x"])
    with pytest.raises(ValueError, match="compare runs of one suite"):
        compare.compare([report(row("a", 0, score=1.0)), report(row("b", 0, score=1.0))], ["x", "y"])


def test_the_front_is_what_nobody_beats_in_both() -> None:
    found = [{"report": name, "x": x, "y": y} for name, x, y in (("a", 1, 1), ("b", 2, 3), ("c", 3, 2), ("d", 2, 3))]
    assert compare.front(found, -1, 1) == ["a", "b", "d"]
    assert compare.front(found, 1, 1) == ["b", "c", "d"]


# ---------------------------------------------------------------- page


@pytest.fixture
def pages(tmp_path: Path) -> tuple[str, dict[str, Path]]:
    """A page of two reports whose videos are there, and one that is gone."""
    made, found = {}, []
    for number, name in enumerate(("left <one>", "right")):
        rows = [
            row(prompt, 0, (1.0, 2.0, 3.0), score=value + number, other=1.0)
            for prompt, value in (("a", 0.1), ("b <i>", 0.3))
        ]
        made[name] = films.write(tmp_path / f"{number}" / "a.mp4", films.moving(number, frames=32))
        rows[0]["path"] = str(made[name])
        speed = {"seconds_per_video": 2.0 - number, "fps": {"denoise": 20.0}, "seconds": {}}
        found.append(report(*rows, name=name, speed=speed))
    names = [*made]
    compared = compare.compare(found, names)
    find = {str(path): path for path in made.values()}
    return gallery.render(found, names, compared, lambda one: find.get(one["path"])), made


def test_the_page_holds_everything_and_fetches_nothing(pages: tuple[str, dict[str, Path]]) -> None:
    text, _ = pages
    assert (
        "right is better than left &lt;one&gt; in score" in text and "b &lt;i&gt;" not in text.partition("<h2>Side")[0]
    )
    assert "a &lt;processor&gt;" in text and "arvid eval &lt;x&gt;" in text
    for part in ("pareto", "bars", "curves"):
        assert re.search(rf'id="{part}"><svg', text), part
    assert not re.search(r'(src|href)="(?!data:)', text.replace('xlink:href="#', "")) and "<link" not in text
    assert "@import" not in text and "fetch(" not in text
    assert text.count("<video") == 2 and text.count("data:image/jpeg;base64,") == 2


def test_the_page_stands_in_the_frame_of_all_pages(pages: tuple[str, dict[str, Path]]) -> None:
    text, _ = pages
    frame = Path(drawing.__file__).with_name("frame.html").read_text(encoding="utf-8")
    places = [text.find(part.strip()) for part in re.split("{%.*?%}", frame) if part.strip()]
    assert len(places) == 4 and places[0] == 0 and places == sorted(places)
    assert all(text.count(tag) == 1 for tag in ("<head>", "<style>", "<body>", "</html>"))


def test_the_players_play_the_videos(pages: tuple[str, dict[str, Path]]) -> None:
    text, _ = pages
    for number, address in enumerate(re.findall(r"data:video/webm;base64,([A-Za-z0-9+/=]+)", text)):
        with av.open(io.BytesIO(base64.b64decode(address))) as file:
            played = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert len(played) == 32 and played[0].shape == (64, 96, 3), "the page enlarges, not the file"
        truth = films.moving(number, frames=32)[[0, -1]].mean(axis=(1, 2))
        assert np.abs(np.stack([played[0], played[-1]]).mean(axis=(1, 2)) - truth).max() < 8


def test_large_players_are_made_smaller(tmp_path: Path) -> None:
    path = films.write(tmp_path / "large.mp4", films.moving(frames=3, size=(640, 512)))
    player, strip = drawing.shown(path, 3)
    with av.open(io.BytesIO(base64.b64decode(player.partition(",")[2]))) as file:
        assert [(frame.width, frame.height) for frame in file.decode(video=0)] == [(320, 256)] * 3
    assert strip.startswith("data:image/jpeg;base64,")


def test_a_single_report_is_a_page_too() -> None:
    only = report(row("a", 0, score=1.0), row("b", 0, score=2.0))
    text = gallery.render([only], ["x"], compare.compare([only], ["x"]), lambda one: None)
    assert "Videos measured" in text and "What differs" not in text and "<video" not in text


def test_the_same_numbers_give_the_same_page() -> None:
    only = report(row("a", 0, (1.0, 2.0), score=1.0))
    first, second = (gallery.render([only], ["x"], compare.compare([only], ["x"]), lambda one: None) for _ in range(2))
    assert first == second
