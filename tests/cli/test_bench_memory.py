"""The verb `bench memory` on a family of random weights: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvid.cli import endurance, memory_run
from arvid.cli.journal import Journal
from arvid.cli.memory_run import Bench, PipelineMaker, Wanted
from arvid.evals import memory
from arvid.evals.memory import Script
from arvid.pipeline import Pipeline, Request, load
from arvid.rollout.timeline import Entry
from arvid.video import to_bytes
from arvid.worlds import shapes
from oracles import toy_family

Type = Callable[..., Any]
WANTED = set(
    "policy positions budget_frames horizon blocks max_diff_to_full bytes ms_per_block ms_slope_per_block world_score "
    "world_score_ci95 score_slope chunk_discontinuity identity_return".split()
)
FEW = ("--policies", "full,sink", "--budgets", "6", "--horizons", "1", "--threads", "1")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of random weights whose training clips are short."""
    place = toy_family.write(tmp_path_factory.mktemp("families") / "toy")
    card = json.loads((place / "card.json").read_text())
    (place / "card.json").write_text(json.dumps({**card, "trained_frames": 9, "router": "first"}))
    return place


def test_a_run_leaves_tables_a_report_and_a_page(arvid: Type, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_run, "WAYS", ("recache", "cut"))
    words = ("bench", "memory", "--model", family, *FEW, "--prompts", 2, "--scenes", 1)
    result = arvid(*words, "--json", "r.json", "--html", "r.html")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("r.json").read_text())
    assert next(iter(report)) == "schema"
    assert report["kind"] == "bench memory" and report["machine"]["threads"] == 1
    rows = {row["policy"]: row for row in report["rows"]}
    assert list(rows) == ["full", "sink"]
    assert all(set(row) >= WANTED for row in report["rows"])
    assert rows["full"]["budget_frames"] is None and rows["sink"]["budget_frames"] == 6
    assert rows["sink"]["positions"] == "relative:limit=9" and rows["sink"]["blocks"] == 3
    assert rows["full"]["max_diff_to_full"] == 0 and 0 <= rows["sink"]["max_diff_to_full"] < 1e-4
    assert rows["sink"]["bytes"] == rows["full"]["bytes"] > 0, "six frames are written when the third block is made"
    assert len(rows["sink"]["scores"]) == 2
    assert [row["how"] for row in report["switching"]] == ["recache", "cut"]
    assert all(0 <= row["adopted"] <= 1 and 0 < row["continuity"] <= 1 for row in report["switching"])
    assert report["config"]["complete"] and not report["config"]["interrupted"]
    assert report["config"]["specs"]["sink 6 relative:limit=9"] == "sink:frames=6,sink=3"
    assert Path("r.html").read_text().startswith("<!DOCTYPE html>")
    assert "sink" in result.stdout and "reached" in result.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["r.html", "r.json"], "the journal goes with the end"


def test_a_killed_run_goes_on_where_it_was(arvid: Type, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench", "memory", "--model", family, *FEW, "--prompts", 2, "--scenes", 0, "--json", "r.json")
    made: list[str] = []
    whole = Bench._measured

    def counted(bench: Bench, unit: memory_run.Unit, stop: int) -> Any:
        if len(made) == stop:
            raise RuntimeError("killed")
        made.append(unit.key)
        return whole(bench, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "_measured", lambda bench, unit: counted(bench, unit, 3))
        assert str(arvid(*words).exception) == "killed"
    assert not Path("r.json").exists()
    with Path("r.json.journal").open("ab") as file:
        file.write(b'{"key": "half a li')
    refused = arvid(*words[:-2], "--horizons", 2, "--json", "r.json")
    assert refused.exit_code == 2
    assert "r.json.journal was made with horizons [1], now it is [2]; remove it to begin anew" in refused.stderr
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "_measured", lambda bench, unit: counted(bench, unit, 9))
        assert arvid(*words).exit_code == 0
    assert len(made) == len(set(made)) == 4
    report = json.loads(Path("r.json").read_text())
    assert all(len(row["scores"]) == 2 for row in report["rows"])
    assert not Path("r.json.journal").exists()


def test_ctrl_c_reports_whole_rounds_and_keeps_the_rest(
    arvid: Type, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("bench", "memory", "--model", family, *FEW, "--prompts", 2, "--scenes", 0, "--json", "r.json")
    whole, made = Bench._measured, list[str]()

    def interrupted(bench: Bench, unit: memory_run.Unit) -> Any:
        made.append(unit.key)
        if len(made) == 4:
            raise KeyboardInterrupt
        return whole(bench, unit)

    monkeypatch.setattr(Bench, "_measured", interrupted)
    result = arvid(*words)
    assert result.exit_code == 130
    assert "interrupted; the same command goes on from here" in result.stderr
    report = json.loads(Path("r.json").read_text())
    assert report["config"]["interrupted"] and not report["config"]["complete"]
    assert all(len(row["scores"]) == 1 for row in report["rows"]) and len(report["config"]["prompts"]) == 1
    assert Path("r.json.journal").exists()


def test_pasts_of_several_noise_levels_are_compared(arvid: Type, family: Path) -> None:
    words = ("bench", "memory", "--model", family, *FEW, "--prompts", 1, "--scenes", 0)
    assert arvid(*words, "--past-levels", "0,0.4", "--json", "r.json").exit_code == 0
    report = json.loads(Path("r.json").read_text())
    told = {(row["policy"], row["past_level"], row["router"]) for row in report["rows"]}
    assert told == {
        (policy, *level) for policy in ("full", "sink") for level in ((0.0, "target"), (0.4, "target:level=0.4"))
    }
    assert report["config"]["past_levels"] == [0.0, 0.4]
    assert arvid(*words, "--past-levels", "", "--json", "plain.json").exit_code == 0
    assert {row["past_level"] for row in json.loads(Path("plain.json").read_text())["rows"]} == {0.0}
    refused = arvid(*words, "--past-levels", "1")
    assert refused.exit_code == 2
    assert "--past-levels '1'; expected noise levels from 0 to below 1" in refused.stderr


def test_a_long_video_tells_slopes_of_time_and_memory(
    arvid: Type, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "SETTLING", 2)
    words = ("bench", "memory", "--model", family, "--blocks", 12, "--budgets", "6", "--threads", "1")
    result = arvid(*words, "--json", "r.json", "--html", "r.html")
    assert result.exit_code == 0, result.output
    [row] = json.loads(Path("r.json").read_text())["endurance"]
    assert (row["policy"], row["blocks"], row["past"]) == ("sink", 12, "sink:frames=6,sink=3")
    assert row["process_bytes"] > 2**26
    assert row["ms_slope_ci95"][0] <= row["ms_slope_per_block"] <= row["ms_slope_ci95"][1]
    assert row["process_slope_ci95"][0] <= row["process_slope_bytes_per_block"] <= row["process_slope_ci95"][1]
    assert len(row["curve_ms"]) == len(row["curve_process_bytes"]) == 12
    assert "12 blocks" in result.stdout and "<svg" in Path("r.html").read_text()
    refused = arvid(*words[:4], "--blocks", 11)
    assert refused.exit_code == 2 and "11 blocks asked for; a slope needs at least 12" in refused.stderr


def test_a_family_of_another_world_is_refused(arvid: Type, tmp_path_factory: pytest.TempPathFactory) -> None:
    family = toy_family.write(tmp_path_factory.mktemp("families") / "toy")
    card = json.loads((family / "card.json").read_text())
    del card["world"]
    (family / "card.json").write_text(json.dumps(card))
    refused = arvid("bench", "memory", "--model", family, *FEW)
    assert refused.exit_code == 2 and len(refused.stderr.strip().splitlines()) == 1
    assert "family 'embedded-toy' has world '' in its card, expected 'shapes'" in refused.stderr


def test_films_are_those_of_the_pipeline(family: Path) -> None:
    """Made live, they are what a timeline says; what is shown to begin with is there, and bytes are those on hold."""
    pipeline = Pipeline(load(family))
    make = PipelineMaker(pipeline)
    cell = memory.cell("sink", 6, "own", 9)
    assert make.pipeline.family.drafter is None and pipeline.family.drafter is not None
    film = make(cell, Script("a red circle moves right", 4, 5, ((2, "a blue square moves left", "recache"),)))
    second = (1 + 4 * 5) / 16
    told = Request(
        "a red circle moves right", 14 * 4 / 16, 4, "target", cell.past, positions=cell.positions,
        timeline=(Entry(second, "a blue square moves left", "recache"),),
    )  # fmt: skip
    expected = pipeline.generate(told)
    assert np.array_equal(film.latents, expected.latents_BTCHW[0].numpy())
    assert np.array_equal(film.frames, to_bytes(expected.frames_BTCHW[0]))
    assert film.starts == (0, 9, 21, 33, 45)
    each = 2 * 2 * 16 * 32 * 2
    assert film.bytes == (0, 3 * each, 6 * each, 6 * each, 6 * each), "the last block waits to be written"
    shown = make(cell, Script("a red circle", 4, 7, (), ("a red circle moves right", "a green star")))
    given = [
        pipeline.encode(shapes.render(text, 4))[0].numpy() for text in ("a red circle moves right", "a green star")
    ]
    assert [len(part) for part in given] == [9, 9]
    assert np.array_equal(shown.latents[:18], np.concatenate(given)) and len(shown.latents) == 21


def test_trained_weights_compete_beside_the_average(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no trained weights; train them by `arvid train compressors`"):
        memory_run.extras(tmp_path)
    for name in ("pack.safetensors", "heads.json"):
        (tmp_path / name).write_bytes(b"")
    found = memory_run.extras(tmp_path)
    assert found == {
        "pack": {"weights": str(tmp_path / "pack.safetensors")}, "headwise": {"profile": str(tmp_path / "heads.json")},
    }  # fmt: skip
    cells = memory.cells(("pack", "sink", "headwise"), (9,), ("own",), 21, found)
    assert [cell.policy for cell in cells] == ["pack", "pack+weights", "sink", "headwise", "headwise+profile"]


def test_a_quick_run_is_small_and_gives_up_what_does_not_fit(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Wanted()
    small = memory_run.quick(default, default)
    assert (small.budgets, small.horizons, small.prompts, small.scenes) == ((9,), (1, 4), 2, 1)
    asked = memory_run.quick(Wanted(budgets=(6, 9), prompts=1), default)
    assert asked.budgets == (6, 9) and asked.prompts == 1
    pipeline = Pipeline(load(family))
    for left, horizons, prompts in ((1e6, (1, 4), 2), (-1.0, (1,), 1)):
        bench = Bench(pipeline, small, memory_run.time.monotonic() + left - memory_run.QUICK_SECONDS)
        assert (bench.wanted.horizons, bench.wanted.prompts) == (horizons, prompts)


def test_a_journal_is_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, {"a": 1}) as journal:
        journal.add("x", {"y": [1, None]})
        journal.add("z", 2.5)
    with Journal(path, {"a": 1}) as journal:
        assert "x" in journal and journal["x"] == {"y": [1, None]} and len(journal) == 2
    path.write_bytes(path.read_bytes()[:-3])
    with Journal(path, {"a": 1}) as journal:
        assert "z" not in journal and len(journal) == 1
        journal.add("z", 3)
    with Journal(path, {"a": 1}) as journal:
        assert journal["z"] == 3
    path.write_text("no json\n")
    with pytest.raises(ValueError, match="is no journal of a run"):
        Journal(path, {"a": 1})
    with Journal(None, {}) as nowhere:
        nowhere.add("k", 1)
        assert nowhere["k"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policies", "lru"], "unknown policy 'lru'; known: bank"),
        (["--budgets", "two"], "--budgets 'two'; expected whole numbers"),
        (["--budgets", "3"], "a budget of 3 latent frames; every policy needs at least 4"),
        (["--horizons", "0"], "--horizons '0'; expected numbers of at least 1"),
        (["--positions", "nowhere"], "unknown positions 'nowhere'"),
        (["--levels", "5"], "like 1-2 or 1,3"),
        (["--json", "no/such/folder/r.json"], "does not exist"),
        (["--weights", "nothing"], "nothing holds no trained weights"),
        (["--model", "no-such-family"], "no-such-family"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arvid: Type, family: Path, options: list[str], said: str) -> None:
    result = arvid("bench", "memory", "--model", family, "--prompts", 1, *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
