"""A family of random weights for the command line, and a way to type commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oracles import toy_family

Type = Callable[..., Any]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a whole family."""
    return toy_family.write(tmp_path_factory.mktemp("families") / "toy")


@pytest.fixture
def arvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Runs a command in an empty folder (tmp_path)."""
    from arvid.cli.main import app

    monkeypatch.chdir(tmp_path)
    return lambda *words, **more: CliRunner().invoke(app, [str(word) for word in words], **more)
