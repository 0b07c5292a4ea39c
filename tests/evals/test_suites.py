"""Suites are data: the prompts of files and of the shapes world, names of files, runs that are taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arvid import spec
from arvid.evals import suites
from arvid.evals.suites import SUITES, Case, Suite
from arvid.worlds import captions, grammar
from arvid.worlds.grammar import Scene


def build(text: str) -> Suite:
    return spec.build(text, SUITES, "suite").build()


@pytest.mark.parametrize(
    ("name", "acts", "seconds"), [("short", 1, 5), ("long", 1, 15), ("switch", 2, 10), ("aba", 3, 15)]
)
def test_stories_of_the_world_are_held_out_and_have_their_acts(name: str, acts: int, seconds: float) -> None:
    suite = build(f"world-{name}:prompts=12,seeds=2")
    assert suite.cases == build(f"world-{name}:prompts=12,seeds=2").cases
    assert len(suite.cases) == 24 and len({case.name for case in suite.cases}) == 24
    assert len({case.prompt for case in suite.cases}) == 12 and len({case.seed for case in suite.cases}) == 24
    for case in suite.cases:
        story = grammar.parse(case.prompt)
        assert [second for second, _ in case.changes] == [5.0 * number for number in range(1, acts)]
        assert len(case.prompts) == acts and [text for _, text in case.changes] == [*case.prompts[1:]]
        assert len(story.acts) == acts and case.seconds == seconds
        scenes = [act for act in story.acts if isinstance(act, Scene)]
        assert len(scenes) == acts and all(captions.is_held_out(scene) for scene in scenes)
        if name == "aba":
            assert scenes[0] == scenes[2] != scenes[1]


def test_stories_do_not_depend_on_how_many_are_asked_for() -> None:
    assert build("world-short:prompts=3").cases == build("world-short:prompts=9").cases[:3]


def test_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "MovieGenVideoBench.txt"
    path.write_text("a cat\n\n  a dog \na bird\n", encoding="utf-8")
    suite = build(f"moviegen:file={path},prompts=2,seeds=2,seconds=4")
    assert [(case.name, case.prompt, case.seed) for case in suite.cases] == [
        ("0000-0", "a cat", 0), ("0001-0", "a dog", 1), ("0000-1", "a cat", 1000), ("0001-1", "a dog", 1001),
    ]  # fmt: skip
    assert "first 2 of 3 prompts of MovieGenVideoBench.txt" in suite.protocol


def test_vbenchs_own_file_names_videos_as_vbench_wants_them(tmp_path: Path) -> None:
    path = tmp_path / "VBench_full_info.json"
    rows = [
        {"prompt_en": "a person swimming", "dimension": ["subject_consistency", "motion_smoothness"]},
        {"prompt_en": "a red car", "dimension": ["color"]},
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    suite = build(f"vbench:file={path},dimensions=motion_smoothness+dynamic_degree")
    assert [case.name for case in suite.cases] == [f"a person swimming-{turn}" for turn in range(5)]
    assert len(build(f"vbench:file={path},seeds=1").cases) == 2
    with pytest.raises(ValueError, match="no prompt of scene"):
        build(f"vbench:file={path},dimensions=scene")


@pytest.mark.parametrize("key", ["prompts", "prompts_list"])
def test_scripts_of_several_prompts(tmp_path: Path, key: str) -> None:
    path = tmp_path / "scripts.jsonl"
    path.write_text(json.dumps({key: ["one", "two", "three"]}) + "\n\n" + json.dumps({key: ["four"]}), encoding="utf-8")
    suite = build(f"script:file={path},seconds=6")
    assert [(case.prompts, case.seconds) for case in suite.cases] == [(("one", "two", "three"), 18), (("four",), 6)]


def test_a_run_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    suite = build("world-short:prompts=4")
    made: list[str] = []

    def make(case: Case, path: Path) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(case.name)
        path.write_bytes(b"video")

    with pytest.raises(KeyboardInterrupt):
        list(suites.fill(suite, tmp_path / "new", make))
    assert [case.name for case in suites.missing(suite, tmp_path / "new")] == ["0002-0", "0003-0"]
    made.clear()
    assert [case.name for case in suites.fill(suite, tmp_path / "new", make)] == ["0002-0", "0003-0"]
    assert suites.missing(suite, tmp_path / "new") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("moviegen:file=no-such-file", "cannot read the prompts"),
        ("moviegen", "needs file="),
        ("vbench:file={0}", "is no VBench_full_info.json"),
        ("script:file={0}", "line 1 of"),
        ("world-short:prompts=0", "0 prompts"),
        ("world-aba:levels=3", "have 1 and 2"),
        ("cats", "known: moviegen"),
    ],
)
def test_wrong_suites_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_text('[{"prompt": "x"}]', encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        build(text.format(path))
