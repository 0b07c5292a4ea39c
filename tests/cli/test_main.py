"""The command line as a whole: help that answers at once, errors that are one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from arvid.cli import main as front
from arvid.cli.progress import Lines, Terminal, choose

Type = Callable[..., Any]


def test_help_imports_nothing_heavy(project: Path) -> None:
    code = (
        "import sys\nfrom arvid.cli.main import app\n"
        "try: app(['generate', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'diffusers', 'av', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("verb", [[], ["generate"], ["demo"], ["train"], ["bench", "speculation"]])
def test_every_verb_explains_itself(arvid: Type, verb: list[str]) -> None:
    result = arvid(*verb, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_version(arvid: Type) -> None:
    result = arvid("--version")
    assert result.exit_code == 0
    assert result.output.startswith("arvid ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-verb"], "no-such-verb"),
        (["--no-such-option"], "--no-such-option"),
        (["generate", "x", "--sede", "3"], "--sede"),
        (["generate", "--seed", "x"], "--seed"),
        (["generate", "x", "--seed", "-1"], "--seed"),
        (["bench", "speculation", "--prompts", "0"], "--prompts"),
        (["batch"], "FILE"),
    ],
)
def test_a_wrong_command_is_one_line_and_ends_with_2(arvid: Type, words: list[str], said: str) -> None:
    result = arvid(*words)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert result.stderr.startswith("error: ") and said in result.stderr and result.stderr.endswith("--help\n")


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (ValueError("3 found,\n 4 expected"), 2, "error: 3 found, 4 expected\n"),
        (OSError(28, "No space left on device", "a.mp4"), 2, "error: a.mp4: No space left on device\n"),
        (EOFError("a.mp4: end of file"), 2, "error: a.mp4: end of file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_faults_become_one_line(fault: BaseException, code: int, said: str) -> None:
    from typer.testing import CliRunner

    app = typer.Typer(cls=front.Careful)

    @app.callback()
    def nothing() -> None: ...

    @app.command()
    def fail() -> None:
        raise fault

    result = CliRunner().invoke(app, ["fail"])
    assert (result.exit_code, result.stderr) == (code, said)


def test_our_own_faults_keep_their_traceback() -> None:
    from typer.testing import CliRunner

    app = typer.Typer(cls=front.Careful)

    @app.callback()
    def nothing() -> None: ...

    @app.command()
    def fail() -> None:
        raise RuntimeError("a bug")

    result = CliRunner().invoke(app, ["fail"])
    assert isinstance(result.exception, RuntimeError)


def row(number: int, **more: Any) -> dict[str, Any]:
    """A finished block of a report."""
    return {
        "block": number, "frames": 12, "source": "draft", "score": 0.75, "rejected": [], "seconds": {"draft": 0.5},
        "passes": {"drafter": 4}, "outcome": "accepted", **more,
    }  # fmt: skip


def test_a_live_table_shows_the_last_blocks_and_what_happens_now() -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    table = Terminal(console)
    table.begin("a title", 40)
    with table:
        for number in range(20):
            table.on("begun", {"block": number})
            table.on("rejected", {"source": "draft", "score": 0.125, "decision": "redo"})
            table.block(row(number))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "block 20: draft rejected at 0.125, the target takes over" in text
    last = text.split("a title")[-1]
    assert "20/40 blocks, 240 frames" in last
    assert "0.750" in last
    assert "24.0" in last
    assert last.count("accepted") == 18


def test_the_display_fits_where_it_is_shown() -> None:
    assert type(choose(quiet=False)) is Lines
    assert type(choose(quiet=True)) is not Lines
