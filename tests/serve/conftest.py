"""A family of random weights, a server that a whole file of tests may use, and a PostgreSQL of Debian's packages."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")
pytest.importorskip("websockets")

from arvid.pipeline import Pipeline, load
from arvid.serve.store import Store
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


PROGRAMS = ("initdb", "postgres")


def program(name: str) -> str | None:
    """A program of PostgreSQL, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL that was started for these tests."""
    pytest.importorskip("psycopg")
    initdb, server = (program(name) for name in PROGRAMS)
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = tmp_path_factory.mktemp("postgres")
    data, user = root / "data", []
    if Path("/proc/self").stat().st_uid == 0:  # it does not run as root
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
        user = ["setpriv", "--reuid=nobody", "--clear-groups"]
        data.mkdir()
        shutil.chown(data, "nobody")
        for path in (root, *root.parents[:3]):
            path.chmod(path.stat().st_mode | 0o111)
    begun = [*user, initdb, "-D", str(data), "-U", "arvid", "--auth=trust", "--no-sync"]
    subprocess.run(begun, check=True, capture_output=True)
    process = subprocess.Popen(
        [*user, server, "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(data), "-c", "fsync=off"],
        stderr=subprocess.DEVNULL,
    )
    address = f"postgresql+psycopg://arvid@127.0.0.1:{port}/postgres"
    try:
        for attempt in range(100):
            try:
                Store(address).close()
                break
            except ValueError:
                assert attempt < 99
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGINT)  # at once: a connection may be left
        process.wait(20)
