"""Regressions planted into films: each moves the metric meant for it beyond its interval, and the report says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arvid.evals import compare, registry, run
from arvid.evals.beside import with_blocks
from arvid.evals.clips import opened
from oracles import films

CLIPS, FRAMES = 4, 80
SPOILT: dict[str, tuple[Callable[[films.Film], films.Film], str, str]] = {
    "blur from frame 40": (lambda film: films.blurred(film, 40, 1.2), "sharpness", "worse"),
    "blur from frame 40, as drift": (lambda film: films.blurred(film, 40, 1.2), "sharpness_drift", "worse"),
    "a drift of colour": (lambda film: films.fading(film, 0.6), "saturation_drift", "worse"),
    "a freeze of 3 frames": (lambda film: films.frozen(film, 50), "freeze", "worse"),
    "a seam every 12 frames": (lambda film: films.seamed(film, 12, 10), "seams", "worse"),
}
Report = dict[str, Any]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """The report of clean films, and one for each way to spoil them."""
    folder = tmp_path_factory.mktemp("films")
    clean = [films.moving(seed, FRAMES, step=(1 + seed % 2, 0)) for seed in range(CLIPS)]
    made = {"clean": clean}
    for name, (spoil, _, _) in SPOILT.items():
        if not name.endswith("as drift"):
            made[name] = [spoil(film) for film in clean]
    return {name: measured(folder / name, some) for name, some in made.items()}


def measured(folder: Path, some: list[films.Film]) -> Report:
    """What `arvid eval` writes down about films, encoded as anybody's videos are."""
    paths = [films.write(folder / f"{number}.mp4", film, crf=18) for number, film in enumerate(some)]
    clips = [with_blocks(replace(opened(path), prompt=f"film {path.stem}", seed=0), (12,)) for path in paths]
    metrics = [kind() for kind in registry.BASIC]
    rows = [run.row_of(outcome) for outcome in run.evaluate(clips, metrics)]
    return {"kind": "eval", "clips": rows, "protocol": run.protocol(metrics), "totals": run.totals(rows, metrics)}


@pytest.mark.parametrize("name", SPOILT)
def test_a_planted_regression_is_found_and_named(reports: dict[str, Report], name: str) -> None:
    _, metric, verdict = SPOILT[name]
    compared = compare.compare([reports["clean"], reports[name.partition(", as")[0]]], ["clean", "spoilt"])
    row = next(row for row in compared["rows"] if row["metric"] == metric and row["report"] == "spoilt")
    assert row["verdict"] == verdict and row["win_rate"] == 0
    # Beyond the interval of the clean films, not only on the other side of zero.
    low, high = reports["clean"]["totals"][metric]["ci95"]
    assert not low <= row["value"] <= high
    assert metric in [finding["metric"] for finding in compared["findings"]]
    finding = next(finding for finding in compared["findings"] if finding["metric"] == metric)
    assert finding["text"].startswith(f"spoilt is {verdict} than clean in {metric}")


def test_the_metric_meant_leads_the_findings(reports: dict[str, Report]) -> None:
    for name, leads in (
        ("blur from frame 40", {"sharpness_drift", "drift"}),
        ("a drift of colour", {"saturation_drift", "drift"}),
        ("a freeze of 3 frames", {"freeze"}),
        ("a seam every 12 frames", {"seams"}),
    ):
        compared = compare.compare([reports["clean"], reports[name]], ["clean", "spoilt"])
        assert compared["findings"][0]["metric"] in leads, (name, compared["findings"][:3])


def test_a_blur_is_said_to_begin_where_it_does(reports: dict[str, Report]) -> None:
    compared = compare.compare([reports["clean"], reports["blur from frame 40"]], ["clean", "spoilt"])
    row = next(row for row in compared["rows"] if row["metric"] == "sharpness" and row["report"] == "spoilt")
    assert row["from_s"] == pytest.approx(40 / 16, abs=0.15)


def test_the_same_films_again_show_no_difference(reports: dict[str, Report]) -> None:
    again = {**reports["clean"], "clips": [dict(row) for row in reports["clean"]["clips"]]}
    compared = compare.compare([reports["clean"], again], ["clean", "again"])
    assert compared["findings"] == []
    assert {row["verdict"] for row in compared["rows"] if row["report"] == "again" and row["pairs"]} == {
        compare.SURE[0]
    }
