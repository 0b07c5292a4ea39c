"""A family of random weights, and a server that a whole file of tests may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")
pytest.importorskip("websockets")

from arvid.pipeline import Pipeline, load
from oracles import toy_family
from serve import running


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a whole family."""
    return toy_family.write(tmp_path_factory.mktemp("families") / "toy")


@pytest.fixture(scope="session")
def pipeline(toy: Path) -> Pipeline:
    """Its pipeline."""
    return Pipeline(load(toy))


@pytest.fixture(scope="module")
def server(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.Running]:
    """A server without keys."""
    started = running.begin(toy, tmp_path_factory.mktemp("data"))
    yield started
    started.stop()
