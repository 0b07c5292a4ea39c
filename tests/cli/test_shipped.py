"""The family that ships with the package: it is whole and small, and what the pages say about it runs as written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arvid.cli.main import app
from arvid.models.family import read_card
from arvid.pipeline import EMBEDDED, load
from test_docs import ROOT, commands_of_all_pages

MEGABYTES = 60
LONG_VERBS = {"train", "bench", "eval", "compare", "serve", "keys"}
"""Verbs that take minutes or hours, wait for somebody or read what those left: tests of their own run them."""
READERS = {"--timeline", "--image", "--continue", "--resume"}
"""Options that name a file of the reader's own: tests/cli/test_generate.py gives them one."""
COMMANDS = [
    (page, words)
    for page, words in commands_of_all_pages()
    if words[1] not in LONG_VERBS and READERS.isdisjoint(word.partition("=")[0] for word in words)
]


def test_the_weights_are_small_and_safe() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png"}
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6


def test_the_card_describes_the_weights() -> None:
    family = load()
    card = read_card(EMBEDDED)
    assert card.parts["target"]["num_layers"] == len(list(family.target.blocks))  # type: ignore[attr-defined]
    assert family.drafter is not None
    assert card.world == "shapes"


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words)[:60] for _, words in COMMANDS])
def test_a_command_of_the_pages_runs(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(word.startswith("path/") for word in words):
        pytest.skip(f"{page} names a file of the reader's own: {' '.join(words)}")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output


def test_the_demo_leaves_its_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["demo", "--quiet"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert report["speedup"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"demo.mp4", "demo.png", "demo.json"}


def test_the_python_of_the_readme_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert code
    for piece in code:
        exec(compile(piece, "README.md", "exec"), {})
    assert "refined" in capsys.readouterr().out
