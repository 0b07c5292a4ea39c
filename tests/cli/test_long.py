"""A long video as the pages say it is made: the example's timeline, a bounded past, positions in range, killed and gone
on with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arvid.caches.policies import POLICIES
from arvid.caches.positions import POSITIONS
from arvid.pipeline import Pipeline, Request, load
from arvid.rollout.session import Session
from arvid.rollout.state import bytes_of
from arvid.rollout.timeline import read

Type = Callable[..., Any]
QUICKER = 15
"""How much faster the example's story is told here: 8 seconds instead of 120."""
SPECS = (("sink:frames=9,sink=3", "relative:limit=21"), ("bank:frames=6,sink=1,recent=3", "rephase"))


def quick_story(project: Path, place: Path) -> Path:
    """The example's timeline with its seconds divided."""
    entries = read(project / "examples" / "story.yaml")
    plain = [
        {"at": entry.at / QUICKER, "prompt": entry.prompt, "how": entry.how, "blocks": entry.blocks}
        for entry in entries
    ]
    place.write_text(json.dumps(plain))
    return place


def options_of(kind: Any) -> set[str]:
    """The options of a dataclass with their defaults, as the page writes them."""
    found = {field.name: "" if field.default is MISSING else field.default for field in fields(kind)}
    return {
        f"{name}={value:g}" if isinstance(value, (int, float)) else f"{name}={value}" for name, value in found.items()
    }


@pytest.mark.parametrize(("column", "kinds"), [("--memory", POLICIES), ("--positions", POSITIONS)])
def test_the_page_lists_every_option(project: Path, column: str, kinds: dict[str, Any]) -> None:
    page = (project / "docs" / "long.md").read_text(encoding="utf-8").split(f"| `{column}` |")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| .+? \| (.*?) ?\|$", page.split("\n\n")[0], re.MULTILINE))
    assert set(rows) == set(kinds)
    for name, told in rows.items():
        written = {re.sub("=(FILE|DIR)", "=", option) for option in re.findall(r"`(\w+=[^`]*)`", told)}
        assert "as `conv`" in told or written == options_of(kinds[name]), name


@pytest.mark.parametrize(("memory", "positions"), SPECS)
def test_the_story_is_killed_and_gone_on_with(
    arvid: Type, toy: Path, tmp_path: Path, project: Path, memory: str, positions: str
) -> None:
    timeline = quick_story(project, tmp_path / "story.json")
    words = (
        "--memory",
        memory,
        "--positions",
        positions,
        "--seconds",
        120 / QUICKER,
        "--router",
        "target",
        "-o",
        "a.mp4",
    )
    words += ("--latents", "a.safetensors", "--json", "a.json", "--scale", 1, "--save-every", 3, "--model", toy)
    whole = Session.__next__

    def dies(session: Session) -> Any:
        if session.block == 7:
            shutil.copytree(tmp_path / "a.run", tmp_path / "aside.run")
            raise RuntimeError("killed")
        return whole(session)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "__next__", dies)
        assert str(arvid("generate", f"--timeline={timeline}", *words).exception) == "killed"
    shutil.rmtree(tmp_path / "a.run", ignore_errors=True)
    (tmp_path / "aside.run").rename(tmp_path / "a.run")
    result = arvid("generate", "--resume=a.run")
    assert result.exit_code == 0, result.output
    asked = Request(
        read(timeline)[0].prompt, 120 / QUICKER, 0, "target", memory, None, read(timeline), "", positions
    )  # fmt: skip
    direct = Pipeline(load(toy)).generate(asked)
    assert torch.equal(load_file("a.safetensors")["latents"], direct.latents_BTCHW.float())
    changes = json.loads(Path("a.json").read_text())["changes"]
    assert [change["how"] for change in changes] == ["recache", "cut", "soft"]


@pytest.mark.parametrize(("memory", "positions"), SPECS)
def test_what_is_on_hold_does_not_grow_with_the_video(toy: Path, memory: str, positions: str) -> None:
    pipeline = Pipeline(replace(load(toy), drafter=None))
    session = pipeline.session(Request("a red circle", 24.0, 0, "target", memory, positions=positions), keep=1)
    held = [bytes_of(session.snapshot().parts) for _ in session]
    assert len(held) == 33
    assert len(set(held[16:])) == 1 and held[16] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory", "sink:frames=3,sink=3"), "3 frames with sink 3; needs 0 <= sink < frames"),
        (("--memory", "window:frames=0"), "window of 0 frames"),
        (("--memory", "pack:frames=6,sink=3,recent=3"), "leave no room for packs"),
        (("--memory", "bank:reader=nowhere"), "reader nowhere holds no config.json"),
        (("--memory", "window:frames=9", "--positions", "cyclic:period=9"), "share places in a cycle of 9"),
        (("--positions", "relative:limit=0"), "needs limit >= 1"),
    ],
)
def test_impossible_budgets_and_positions_are_one_line(
    arvid: Type, toy: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = arvid("generate", "a red circle", "--model", toy, "--seconds", 1, *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.mp4"))
