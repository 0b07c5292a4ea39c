"""`arvid generate` on a family of random weights: what it leaves, what it says, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from arvid.cli.making import Interrupts
from arvid.cli.options import prompts_of
from arvid.pipeline import Pipeline, Request, load
from arvid.rollout.session import Session
from arvid.types import Block
from arvid.video import read_video
from oracles import toy_family

Type = Callable[..., Any]
PROMPT = "a small red circle moves right"


def left_in(folder: Path) -> list[str]:
    """Names of everything in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_every_file_is_written_and_they_agree(arvid: Type, toy: Path, tmp_path: Path) -> None:
    files = ("--json", "a.json", "--latents", "a.safetensors", "--contact-sheet", "a.png")
    result = arvid("generate", PROMPT, "--model", toy, "-o", "a.mp4", "--seconds", 1, "--seed", 3, "--scale", 2, *files)
    assert result.exit_code == 0, result.output
    assert left_in(tmp_path) == ["a.json", "a.mp4", "a.png", "a.safetensors"]
    direct = Pipeline(load(toy)).generate(Request(PROMPT, 1, 3))
    latents = load_file(tmp_path / "a.safetensors")
    assert list(latents) == ["latents"]
    assert latents["latents"].dtype == torch.float32
    assert torch.equal(latents["latents"], direct.latents_BTCHW.float())
    frames = read_video(tmp_path / "a.mp4")
    assert frames.shape == (17, 128, 128, 3)
    expected = ((direct.frames_BTCHW[0].float() + 1) * 127.5).movedim(1, -1).numpy()
    assert np.abs(frames[:, ::2, ::2] - expected).mean() < 10
    with Image.open(tmp_path / "a.png") as sheet:
        assert min(sheet.size) > 300
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["totals"]["frames"] == 17
    assert [row["latent_frames"] for row in report["blocks"]] == [[0, 3], [3, 5]]
    assert report["config"]["seed"] == 3
    assert report["outputs"] == {
        "video": "a.mp4", "report": "a.json", "latents": "a.safetensors", "contact_sheet": "a.png",
    }  # fmt: skip


def fields_of(report: dict[str, Any]) -> set[str]:
    """Every field of a report with the names of docs/report.md."""
    found = {name for name in report if name not in ("config", "machine")}
    for group in ("config", "machine", "totals"):
        found |= {f"{group}.{name}" for name in report[group]}
    return found.union(*report["blocks"])


def test_the_report_has_the_fields_that_its_page_names(arvid: Type, toy: Path, project: Path) -> None:
    result = arvid("generate", PROMPT, "--model", toy, "--seconds", 1, "--scale", 1, "--json", "a.json", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    page = (project / "docs" / "report.md").read_text(encoding="utf-8").split("## Demo")[0]
    assert fields_of(json.loads(Path("a.json").read_text())) == set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))


def test_rejected_drafts_are_counted(arvid: Type, toy: Path) -> None:
    def report(router: str) -> dict[str, Any]:
        command = ("generate", PROMPT, "--model", toy, "--seconds", 2, "--json", "a.json", "--scale", 1)
        result = arvid(*command, "--router", router)
        assert result.exit_code == 0, result.output
        return json.loads(Path("a.json").read_text())

    never = report("reward:tau=2")
    assert [row["outcome"] for row in never["blocks"]] == ["target", "redone", "redone"]
    assert (never["totals"]["accept_rate"], never["totals"]["accept_rate_scored"]) == (0, 0)
    assert all(draft["score"] <= 1 for row in never["blocks"][1:] for draft in row["rejected"])
    assert never["totals"]["passes"]["drafter"] == 4
    mended = report("reward:tau=2,repair=1")
    assert mended["totals"]["blocks_by_outcome"] == {"target": 1, "repaired": 2}
    always = report("reward:tau=-1")
    assert [row["outcome"] for row in always["blocks"]] == ["target", "accepted", "accepted"]
    assert always["totals"]["accept_rate"] == pytest.approx(2 / 3, abs=1e-3)
    assert always["totals"]["accept_rate_scored"] == 1
    first = report("first")
    assert [row["outcome"] for row in first["blocks"]] == ["target", "drafted", "drafted"]
    assert first["totals"]["accept_rate_scored"] is None


def test_plain_lines_say_what_became_of_every_block(arvid: Type, toy: Path) -> None:
    result = arvid("generate", PROMPT, "--model", toy, "--seconds", 2, "--scale", 1, "--router", "reward:tau=2")
    lines = result.stderr.splitlines()
    assert result.stdout == ""
    assert lines[0] == PROMPT
    assert re.fullmatch(r"block 1/3: not drafted, not scored, target, 9 frames, .* frames per second", lines[1])
    assert re.fullmatch(r"block 2/3: drafted, score 0\.\d+, redone, 12 frames, .* frames per second", lines[2])
    assert re.fullmatch(r"33 frames in .*; 3 blocks: 1 target, 2 redone", lines[4])
    assert lines[5] == "wrote video.mp4"


def test_a_seed_is_a_video(arvid: Type, toy: Path) -> None:
    def latents(seed: int) -> torch.Tensor:
        command = ("generate", PROMPT, "--model", toy, "--seconds", 1, "--scale", 1, "--latents", "z.safetensors")
        assert arvid(*command, "--seed", seed).exit_code == 0
        return load_file("z.safetensors")["latents"]

    assert torch.equal(latents(1), latents(1))
    assert not torch.equal(latents(1), latents(2))


def test_scale_is_the_size_of_a_pixel(arvid: Type, toy: Path) -> None:
    for words, side in (([], 512), (["--scale", 1], 64), (["--scale", 3], 192)):
        assert arvid("generate", PROMPT, "--model", toy, "--seconds", 0.1, "-q", *words).exit_code == 0
        assert read_video(Path("video.mp4")).shape[1:] == (side, side, 3)


# ---------------------------------------------------------------- many prompts


def test_prompts_from_stdin_make_numbered_files(arvid: Type, toy: Path, tmp_path: Path) -> None:
    command = ("generate", "--prompts", "-", "--model", toy, "--seconds", 0.1, "-o", "films", "--json", "{n}.json")
    result = arvid(*command, input="a red circle\n\n  a blue square  \n")
    assert result.exit_code == 0, result.output
    assert left_in(tmp_path) == ["001.json", "002.json", "films", "films/001.mp4", "films/002.mp4"]
    prompts = [json.loads(Path(f"00{n}.json").read_text())["config"]["prompt"] for n in (1, 2)]
    assert prompts == ["a red circle", "a blue square"]


def test_prompts_from_a_file(arvid: Type, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    result = arvid("generate", "--prompts", "prompts.txt", "--model", toy, "--seconds", 0.1)
    assert result.exit_code == 0, result.output
    assert left_in(tmp_path) == ["prompts.txt", "video-001.mp4"]


def test_prompts_are_utf8(arvid: Type, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.txt").write_bytes("a caf\xe9".encode("latin-1"))
    refused(arvid("generate", "--prompts", "old.txt"), "old.txt is no UTF-8 text")
    (tmp_path / "marked.txt").write_bytes("\ufeffa red circle\r\n".encode())
    assert prompts_of(None, "marked.txt") == ["a red circle"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="--prompts - reads stdin, which is closed"):
        prompts_of(None, "-")


# ---------------------------------------------------------------- words it never learned


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a red dragon circle moves right", ["never learned 'dragon'", "for example 'a small red circle"]),
        ("a dragon", ["never learned 'dragon'", "names no shape", "for example 'a small red circle"]),
        ("a red circle moves right", []),
        ("a red circle " * 9, ["the prompt has 28 tokens, embedded-toy reads 24; what follows is lost"]),
    ],
)
def test_unknown_words_are_named(arvid: Type, toy: Path, prompt: str, wanted: list[str]) -> None:
    result = arvid("generate", prompt, "--model", toy, "--seconds", 0.1, "-q")
    assert result.exit_code == 0
    assert len(result.stderr.splitlines()) == bool(wanted)
    assert all(part in result.stderr for part in wanted)
    assert Path("video.mp4").exists()


@pytest.mark.parametrize(("name", "world"), [("embedded-toy", ""), ("another", "shapes")])
def test_the_card_says_which_world_a_family_knows_and_not_its_name(
    arvid: Type, tmp_path_factory: pytest.TempPathFactory, name: str, world: str
) -> None:
    family = toy_family.write(tmp_path_factory.mktemp("families") / "toy", name)
    card = json.loads((family / "card.json").read_text())
    (family / "card.json").write_text(json.dumps({**card, "world": world}))
    result = arvid("generate", "a dragon", "--model", family, "--seconds", 0.1, "--json", "r.json", "-q")
    assert result.exit_code == 0
    assert f"{name} never learned 'dragon'" in result.stderr
    assert ("names no shape" in result.stderr) == ("for example" in result.stderr) == bool(world)
    assert json.loads(Path("r.json").read_text())["config"]["world"] == (world or None)


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["  "], "the prompt is empty"),
        ([], "the prompt is empty"),
        ([PROMPT, "--router", "oracle"], "unknown router 'oracle'; known: cascade, draft"),
        ([PROMPT, "--router", "reward"], "router 'reward' needs tau="),
        ([PROMPT, "--router", "stride:k=0"], "stride k=0 must be at least 1"),
        ([PROMPT, "--router", "reward:tau=nan"], "router 'reward': tau='nan' is not a number"),
        ([PROMPT, "--router", "stride:k=2,k=3"], "router 'stride' has k= twice"),
        ([PROMPT, "--router", "hold:fps=inf"], "fps=inf is not finite; give a number"),
        ([PROMPT, "--router", "stride:k=2,repair=99"], "repair=99 of a draft of 2 steps; give at most 2"),
        (["a red circle \udcff"], "the prompt holds '\\udcff', which is no character"),
        ([PROMPT, "--scale", "1000"], "enlarged 1000 times at 16 fps; sides: 1 to 16384"),
        ([PROMPT, "--scale", "1000", "--save-every", "1"], "enlarged 1000 times at 16 fps; sides: 1 to 16384"),
        ([PROMPT, "--past", "bag"], "unknown past 'bag'; known: "),
        ([PROMPT, "--memory", "window:frames=0"], "window of 0 frames"),
        ([PROMPT, "--memory", "pack:frames=9,weights=none.pt"], "no file none.pt; weights= names one"),
        ([PROMPT, "--memory", "headwise:profile=none.json"], "no file none.json; profile= names one"),
        ([PROMPT, "--positions", "bent"], "unknown positions 'bent'; known: absolute"),
        ([PROMPT, "--guard", "dog"], "unknown guard 'dog'; known: act, off, warn"),
        ([PROMPT, "--timeline", "none.yaml"], "no timeline none.yaml"),
        ([PROMPT, "--image", "none.png"], "no file none.png; give a picture"),
        ([PROMPT, "--continue", "none.mp4"], "no file none.mp4; give a video"),
        ([PROMPT, "--image", "a.png", "--continue", "a.mp4"], "--image a.png and --continue a.mp4 at once"),
        (["--resume", "nowhere"], "no run in nowhere: job.json is missing"),
        ([PROMPT, "--size", "big"], "size 'big' is not WIDTHxHEIGHT"),
        ([PROMPT, "--size", "128x64"], "size 128x64 asked for; embedded-toy makes 64x64"),
        ([PROMPT, "--seconds", "0"], "0.0 seconds asked for; give more than 0"),
        ([PROMPT, "--seconds", "nan"], "nan seconds asked for"),
        ([PROMPT, "--device", "gameboy"], "unknown device 'gameboy'; use cpu"),
        ([PROMPT, "--device", "meta"], "device 'meta' cannot be used here; use cpu, cuda"),
        ([PROMPT, "--device", "cuda:99"], "device 'cuda:99' asked for; torch sees"),
        ([PROMPT, "-o", "nowhere/a.mp4"], "nowhere does not exist; make it first"),
        ([PROMPT, "-o", "a.gif"], "-o a.gif ends in .gif; it is written as .mp4"),
        ([PROMPT, "-o", "."], "-o . ends in nothing"),
        ([PROMPT, "-o", "/proc/a.mp4"], "cannot write into /proc"),
        ([PROMPT, "--json", "nowhere/a.json"], "nowhere does not exist"),
        ([PROMPT, "--latents", "a.pt"], "--latents a.pt ends in .pt"),
        ([PROMPT, "--contact-sheet", "a.jpg"], "--contact-sheet a.jpg ends in .jpg"),
        ([PROMPT, "--prompts", "-"], "a prompt and --prompts - at once"),
        (["--prompts", "none.txt"], "no file none.txt for --prompts; give a text file: one prompt per line"),
        (["--prompts", "-"], "0 prompts in stdin"),
        ([PROMPT, "--model", "nowhere"], "no model family in nowhere: card.json is missing"),
        ([PROMPT, "--drafter", "nowhere"], "no model family in nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    arvid: Type, toy: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    model = [] if {"--model", "--resume"} & {*words} else ["--model", str(toy)]
    result = arvid("generate", *words, *model)
    refused(result, said)
    assert left_in(tmp_path) == []


def refused(result: Any, said: str) -> None:
    """One line that says it, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert result.stdout == ""


def test_one_name_for_two_prompts_is_refused(arvid: Type, toy: Path) -> None:
    result = arvid("generate", "--prompts", "-", "--model", toy, "-o", "a.mp4", input="a\nb\n")
    refused(result, "-o a.mp4 is one name for 2 prompts")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("target.safetensors", None, "weights missing"),
        ("target.safetensors", b"\x10\0\0\0\0\0\0\0{", "is damaged"),
        ("vae.safetensors", b"", "is damaged"),
        ("card.json", b"{", "is not a family card"),
        ("card.json", b'{"size": [64, 64]}', "is not a family card"),
        ("text/tokenizer.json", None, "tokenizer.json is missing"),
        ("reward/model.safetensors", b"junk", "is damaged"),
    ],
)
def test_damaged_families_are_refused(
    arvid: Type, toy: Path, tmp_path_factory: pytest.TempPathFactory, file: str, content: bytes | None, said: str
) -> None:
    copy = tmp_path_factory.mktemp("damaged") / "family"
    shutil.copytree(toy, copy)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    refused(arvid("generate", PROMPT, "--model", copy), said)
    assert left_in(Path.cwd()) == []


def test_a_card_without_a_target_is_refused(arvid: Type, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "family")
    card = json.loads((toy / "card.json").read_text())
    del card["parts"]["target"]
    (tmp_path / "family" / "card.json").write_text(json.dumps(card))
    refused(arvid("generate", PROMPT, "--model", "family"), "does not describe a family ('target')")


def test_a_router_needs_what_it_uses(arvid: Type, tmp_path_factory: pytest.TempPathFactory) -> None:
    poor = toy_family.write(tmp_path_factory.mktemp("poor") / "family", drafter=None, reward=False)
    refused(arvid("generate", PROMPT, "--model", poor, "--router", "first"), "needs a drafter")
    blind = toy_family.write(tmp_path_factory.mktemp("blind") / "family", reward=False)
    refused(arvid("generate", PROMPT, "--model", blind, "--router", "cascade:tau=0.5"), "has no reward model")
    assert left_in(Path.cwd()) == []


def test_the_drafter_of_another_family(arvid: Type, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("others")
    wide = toy_family.write(place / "wide", drafter=replace(toy_family.DRAFTER, text_dim=32))
    refused(arvid("generate", PROMPT, "--model", toy, "--drafter", wide), "text_dim 32, expected 16")
    alone = toy_family.write(place / "alone", drafter=None)
    refused(arvid("generate", PROMPT, "--model", toy, "--drafter", alone), "has no drafter")
    command = (
        "generate",
        PROMPT,
        "--model",
        alone,
        "--router",
        "first",
        "--seconds",
        1,
        "--scale",
        1,
        "--json",
        "a.json",
    )
    assert arvid(*command, "--drafter", toy).exit_code == 0
    assert json.loads(Path("a.json").read_text())["config"]["drafter"] == str(toy)


# ---------------------------------------------------------------- timelines, beginnings

STORY = "- {at: 0, prompt: a red circle}\n- {at: 1, prompt: a blue square, how: HOW}\n"


@pytest.mark.parametrize("how", ["recache", "cut"])
def test_a_timeline_is_followed_and_receipted(arvid: Type, toy: Path, tmp_path: Path, how: str) -> None:
    (tmp_path / "story.yaml").write_text(STORY.replace("HOW", how))
    words = ("--timeline", "story.yaml", "--memory", "window:frames=6,sink=1", "--positions", "relative:limit=12")
    result = arvid("generate", "--model", toy, "--seconds", 2, "--scale", 1, "--json", "a.json", *words)
    assert result.exit_code == 0, result.output
    report = json.loads(Path("a.json").read_text())
    assert report["changes"] == [{"block": 2, "prompt": "a blue square", "how": how, "live": False}]
    assert report["config"]["prompt"] == "a red circle"
    assert [entry["at"] for entry in report["config"]["timeline"]] == [0, 1]
    assert report["config"]["positions"] == "relative:limit=12"


def test_a_guard_reports_its_looks(arvid: Type, toy: Path) -> None:
    words = ("--guard", "warn:colour=0.0001", "--seconds", 1, "--scale", 1, "--json", "a.json")
    result = arvid("generate", PROMPT, "--model", toy, *words)
    looks = json.loads(Path("a.json").read_text())["guard"]
    assert [(look["block"], look["decision"]) for look in looks] == [(0, "steady"), (1, "warned")]
    assert "guard: drift in 1 looks: block 2 (colour: warned)" in result.stderr


@pytest.mark.parametrize(
    ("story", "words", "said"),
    [
        ("- {at: 1, prompt: a}\n- {at: 0.5, prompt: b}\n", [PROMPT], "entry 2 of T is at 0.5 s, the one before at 1 s"),
        ("- {at: 9, prompt: a}\n", [PROMPT], "a change at 9 s lies beyond the end of a video of 5 s"),
        ("- {at: 1, prompt: a, how: fade}\n", [PROMPT], "unknown transition 'fade' at 1 s; known: cut"),
        ("- {at: 1, prompt: a}\n", [], "the prompt is empty"),
        (STORY, [PROMPT], "unknown transition 'HOW'"),
    ],
)
def test_wrong_timelines_are_one_line(
    arvid: Type, toy: Path, tmp_path: Path, story: str, words: list[str], said: str
) -> None:
    (tmp_path / "T").write_text(story)
    refused(arvid("generate", *words, "--timeline", "T", "--model", toy), said)
    assert left_in(tmp_path) == ["T"]


def test_a_video_begins_with_an_image(arvid: Type, toy: Path, tmp_path: Path) -> None:
    Image.new("RGB", (256, 256), (200, 30, 30)).save(tmp_path / "a.png")
    words = ("--image", "a.png", "--seconds", 1, "--scale", 1, "--json", "a.json", "--latents", "a.safetensors")
    result = arvid("generate", PROMPT, "--model", toy, *words)
    assert result.exit_code == 0, result.output
    report = json.loads(Path("a.json").read_text())
    assert [row["source"] for row in report["blocks"]] == ["given", "target", "draft"]
    assert report["start"] == str(tmp_path / "a.png")
    assert len(read_video(Path("video.mp4"))) == 17
    assert load_file("a.safetensors")["latents"].shape[1] == 5
    Image.new("RGB", (256, 128)).save(tmp_path / "wide.png")
    refused(arvid("generate", PROMPT, "--model", toy, "--image", "wide.png"), "wide.png is 256x128, the video 64x64")
    (tmp_path / "bad.png").write_text("no picture")
    refused(arvid("generate", PROMPT, "--model", toy, "--image", "bad.png"), "bad.png cannot be read as a picture")
    Image.new("1", (14000, 14000)).save(tmp_path / "huge.png")
    refused(arvid("generate", PROMPT, "--model", toy, "--image", "huge.png"), "huge.png cannot be read as a picture")


def test_a_clip_is_gone_on_with(arvid: Type, toy: Path, tmp_path: Path) -> None:
    assert arvid("generate", PROMPT, "--model", toy, "--seconds", 1, "--scale", 2, "-o", "a.mp4").exit_code == 0
    words = ("--continue", "a.mp4", "--seconds", 1, "--scale", 2, "-o", "b.mp4", "--contact-sheet", "b.png")
    result = arvid("generate", "a blue square", "--model", toy, *words)
    assert result.exit_code == 0, result.output
    one, other = (read_video(tmp_path / name).astype(int) for name in ("a.mp4", "b.mp4"))
    assert (len(one), len(other)) == (17, 33)
    assert abs(other[:17] - one).mean() < 6
    assert left_in(tmp_path) == ["a.mp4", "b.mp4", "b.png"]


# ---------------------------------------------------------------- going on

FILES = ("--json", "a.json", "--latents", "a.safetensors", "--contact-sheet", "a.png", "-o", "a.mp4", "--scale", 1)


def killed_at(block: int, monkeypatch: pytest.MonkeyPatch, run: Path, aside: Path) -> None:
    """What a kill leaves: the folder as it is on disk while block `block` is being made, and nothing else."""
    whole = Session.__next__

    def dies(session: Session) -> Block:
        if session.block == block:
            shutil.copytree(run, aside)
            raise RuntimeError("killed")
        return whole(session)

    monkeypatch.setattr(Session, "__next__", dies)


@pytest.mark.parametrize(("every", "block"), [(1, 4), (2, 3), (3, 1)])
def test_a_killed_run_is_gone_on_with(
    arvid: Type, toy: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, every: int, block: int
) -> None:
    """Saved at every block, between two states, and before the first: the result is that of a run in one go."""
    (tmp_path / "story.yaml").write_text(STORY.replace("HOW", "soft"))
    words = ("generate", "--timeline", "story.yaml", "--model", toy, "--seconds", 3, "--router", "stride:k=2", *FILES)
    aside = tmp_path_factory.mktemp("aside") / "run"
    with pytest.MonkeyPatch.context() as patch:
        killed_at(block, patch, tmp_path / "a.run", aside)
        result = arvid(*words, "--save-every", every)
        assert str(result.exception) == "killed"
    shutil.rmtree(tmp_path / "a.run", ignore_errors=True)
    shutil.copytree(aside, tmp_path / "a.run")
    for name in ("a.mp4", "story.yaml"):
        (tmp_path / name).unlink(missing_ok=True)
    refused(arvid("generate", "--resume", "a.run", "--seed", 4), "leave out seed")
    result = arvid("generate", "--resume", "a.run")
    assert result.exit_code == 0, result.output
    assert left_in(tmp_path) == ["a.json", "a.mp4", "a.png", "a.safetensors"]
    (tmp_path / "story.yaml").write_text(STORY.replace("HOW", "soft"))
    report, frames, z = json.loads(Path("a.json").read_text()), read_video(Path("a.mp4")), load_file("a.safetensors")
    assert arvid(*words).exit_code == 0
    plain = json.loads(Path("a.json").read_text())
    assert torch.equal(z["latents"], load_file("a.safetensors")["latents"])
    assert np.abs(frames.astype(int) - read_video(Path("a.mp4"))).mean() < 3
    assert [(row["block"], row["source"], row["frames"]) for row in report["blocks"]] == [
        (row["block"], row["source"], row["frames"]) for row in plain["blocks"]
    ]
    assert report["changes"] == plain["changes"]
    assert set(report["totals"]) == set(plain["totals"])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("state.safetensors", b"cut", "is not a state that can be gone on with"),
        ("part-000001.mp4", None, "part-000001.mp4 is no finished part of the video any more"),
        ("part-000001.mp4", b"cut", "part-000001.mp4 is no finished part of the video any more"),
        ("events.jsonl", b'{"kind": "block"}\n', "events.jsonl is not what its 2 lines were"),
        ("events.jsonl", None, "events.jsonl is not what its 2 lines were"),
        ("latents.raw", b"", "latents.raw holds 0 latent frames, 6 were written"),
        ("job.json", b"[]", "job.json is not a run that can be gone on with"),
        ("job.json", {"save_every": "1"}, "expected numbers of seconds, seed, scale and save_every"),
        ("job.json", {"made_of": {"colour": "red"}}, "job.json is not a run that can be gone on with"),
    ],
)
def test_a_damaged_run_is_refused(
    arvid: Type, begun: Path, tmp_path: Path, file: str, content: bytes | dict[str, Any] | None, said: str
) -> None:
    run = shutil.copytree(begun, tmp_path / "a.run")
    if isinstance(content, dict):
        content = json.dumps({**json.loads((run / file).read_text()), **content}).encode()
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content)
    left = {*left_in(tmp_path), "a.run/events.jsonl"}
    refused(arvid("generate", "--resume", "a.run"), said)
    assert {*left_in(tmp_path)} | {"a.run/events.jsonl"} == left


@pytest.fixture(scope="module")
def begun(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after two blocks."""
    from typer.testing import CliRunner

    from arvid.cli.main import app

    place = tmp_path_factory.mktemp("begun")
    words = ["generate", PROMPT, "--model", toy, "--seconds", 3, "--save-every", 1, "--scale", 1]
    files = ["-o", place / "a.mp4", "--latents", place / "a.safetensors"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "__next__", stopped_at(2, Session.__next__))
        assert CliRunner().invoke(app, [str(word) for word in [*words, *files]]).exit_code == 130
    return place / "a.run"


def stopped_at(block: int, whole: Callable[[Session], Block]) -> Callable[[Session], Block]:
    """Ctrl-C while block `block` is being made."""

    def stops(session: Session) -> Block:
        if session.block == block:
            raise KeyboardInterrupt
        return whole(session)

    return stops


def test_an_interrupted_run_that_is_saved_can_be_gone_on_with(
    arvid: Type, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", PROMPT, "--model", toy, "--seconds", 3, *FILES)
    with pytest.MonkeyPatch.context() as patch:
        whole = Session.__next__
        patch.setattr(
            Session, "__next__", lambda session: whole(session) if session.block != 2 else _raise(KeyboardInterrupt())
        )
        result = arvid(*words, "--save-every", 5)
    assert result.exit_code == 130
    assert "go on with: arvid generate --resume a.run" in result.stderr
    assert len(read_video(Path("a.mp4"))) == 21
    refused(arvid(*words, "--save-every", 5), "a.run holds a run that was not finished; go on with --resume a.run")
    assert arvid("generate", "--resume", "a.run").exit_code == 0
    assert len(read_video(Path("a.mp4"))) == 49
    direct = Pipeline(load(toy)).generate(Request(PROMPT, 3))
    assert torch.equal(load_file("a.safetensors")["latents"], direct.latents_BTCHW.float())
    assert left_in(tmp_path) == ["a.json", "a.mp4", "a.png", "a.safetensors"]


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.slow
def test_sigkill_in_a_real_process(arvid: Type, toy: Path, tmp_path: Path, project: Path) -> None:
    words = (PROMPT, "--model", str(toy), "--seconds", "6", *map(str, FILES), "--save-every", "2")
    start = "from arvid.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", start, "generate", *words, "--threads", "1"], cwd=tmp_path, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(project / "src")},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("block 4/"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "a.run").is_dir()
    assert not (tmp_path / "a.mp4").exists()
    assert arvid("generate", "--resume", "a.run").exit_code == 0
    direct = Pipeline(load(toy)).generate(Request(PROMPT, 6))
    assert torch.equal(load_file(tmp_path / "a.safetensors")["latents"], direct.latents_BTCHW.float())
    assert len(read_video(tmp_path / "a.mp4")) == direct.frames_BTCHW.shape[1]


# ---------------------------------------------------------------- interrupts


@pytest.mark.parametrize("blocks", [0, 2])
def test_an_interrupt_leaves_the_finished_blocks(
    arvid: Type, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    whole = Session.__next__

    def stopped(session: Session) -> Block:
        if session.block == blocks:
            raise KeyboardInterrupt
        return whole(session)

    monkeypatch.setattr(Session, "__next__", stopped)
    files = ("--json", "a.json", "--latents", "a.safetensors", "--contact-sheet", "a.png")
    result = arvid("generate", PROMPT, "--model", toy, "--scale", 1, *files)
    assert result.exit_code == 130
    if blocks == 0:
        assert "nothing was written" in result.stderr
        assert left_in(tmp_path) == []
        return
    assert "the first 2 of 7 blocks" in result.stderr
    assert len(read_video(tmp_path / "video.mp4")) == 21
    assert load_file(tmp_path / "a.safetensors")["latents"].shape == (1, 6, 16, 8, 8)
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["interrupted"], report["totals"]["frames"]) == (True, 21)
    assert left_in(tmp_path) == ["a.json", "a.png", "a.safetensors", "video.mp4"]


@pytest.fixture
def listening() -> Iterator[None]:
    """SIGINT as a person's shell leaves it: a shell that starts a process in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_a_signal_waits_while_a_block_is_put_away() -> None:
    seen: list[Any] = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        for number in interrupts.during(iter(range(5))):
            seen.append(number)
            if number == 1:
                signal.raise_signal(signal.SIGINT)
                seen.append("put away")
    assert seen == [0, 1, "put away"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("listening")
def test_a_signal_ends_the_making_of_a_block_at_once() -> None:
    def blocks() -> Iterator[int]:
        yield 0
        signal.raise_signal(signal.SIGINT)
        seen.append("made")
        yield 1

    seen: list[Any] = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        seen.extend(interrupts.during(blocks()))
    assert seen == [0]


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(toy: Path, tmp_path: Path, project: Path) -> None:
    command = (PROMPT, "--model", str(toy), "--seconds", "86400", "--scale", "1", "-o", "a.mp4", "--json", "a.json")
    # A shell's background jobs, and all they start, are deaf to Ctrl-C.
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start = hear + "from arvid.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", start, "generate", *command, "--threads", "1"], cwd=tmp_path, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(project / "src")},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("block 3/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["interrupted"]
    assert len(read_video(tmp_path / "a.mp4")) == report["totals"]["frames"] >= 33
    assert left_in(tmp_path) == ["a.json", "a.mp4"]
