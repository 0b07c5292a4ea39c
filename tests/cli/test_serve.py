"""`arvid serve` and `arvid keys`: what is refused before anything starts, what a server is set up with, keys."""

from __future__ import annotations

import importlib.util
import logging
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")
pytest.importorskip("websockets")

from arvid.cli import serve
from arvid.pipeline import Pipeline
from arvid.serve.app import Settings
from arvid.serve.keys import hashed
from arvid.serve.limits import Limits, Work
from arvid.serve.place import Place
from arvid.serve.store import Store

Type = Callable[..., Any]


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """Logs go afterwards where they went before."""
    names = ("", "arvid.serve", "uvicorn")
    before = [(logger, logger.level, logger.handlers[:]) for logger in map(logging.getLogger, names)]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_a_key_is_shown_once(arvid: Type, tmp_path: Path) -> None:
    made = arvid("keys", "add", "ann", "--data", "data", "--jobs", "3")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    listed = arvid("keys", "list", "--data", "data")
    assert "ann" in listed.stdout and "3 jobs" in listed.stdout and secret not in listed.stdout
    store = Store(Place(tmp_path / "data").database)
    assert store.key_of(hashed(secret)) is not None
    store.close()
    again = arvid("keys", "add", "ann", "--data", "data")
    assert again.exit_code == 2 and "there is a key named 'ann'" in again.stderr
    assert arvid("keys", "remove", "ann", "--data", "data").exit_code == 0
    gone = arvid("keys", "remove", "ann", "--data", "data")
    assert gone.exit_code == 2 and "no key named 'ann'" in gone.stderr
    assert arvid("keys", "list", "--data", "data").stdout == ""


def test_looking_for_keys_makes_nothing(arvid: Type, tmp_path: Path) -> None:
    for words in (("list",), ("remove", "ann")):
        result = arvid("keys", *words, "--data", "dta")
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert "no data of a server in dta" in result.stderr
    assert arvid("serve", "--host", "0.0.0.0").exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--host", "0.0.0.0"), "others reach 0.0.0.0, and there is no key"),
        (("--model", "nowhere"), "no model family in nowhere"),
        (("--database", "nonsense"), "the database cannot be used"),
        (("--data", "/proc/nowhere"), "cannot hold a server's data"),
        (("--drafter", "nowhere"), "no model family in nowhere"),
        (("--max-seconds", "0"), "--max-seconds 0; give a number of seconds above 0"),
        (("--max-live-seconds", "nan"), "--max-live-seconds nan; give a number of seconds above 0"),
        (("--max-passes", "0"), "--max-passes 0; give a number of times above 0"),
        (("--max-past", "inf"), "--max-past inf; give a number of times above 0"),
    ],
)
def test_what_is_refused_before_anything_starts(arvid: Type, options: tuple[str, ...], told: str) -> None:
    result = arvid("serve", *options)
    assert result.exit_code == 2 and told in result.stderr


def test_a_database_of_another_version_is_refused_on_one_line(arvid: Type, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.execute("CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT)")
    result = arvid("serve", "--port", 0, "--database", f"sqlite:///{tmp_path / 'old.db'}")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "the database cannot be used (" in result.stderr and "no such column" in result.stderr


def test_the_database_of_another_place_is_refused_on_one_line(arvid: Type, tmp_path: Path) -> None:
    place = Place(tmp_path / "arvid-data")
    place.belong("another", set())
    result = arvid("serve", "--port", 0)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "are in another database (another, this is " in result.stderr and "--database" in result.stderr


def test_two_servers_do_not_share_their_data(arvid: Type, tmp_path: Path) -> None:
    place = Place(tmp_path / "arvid-data")
    place.take()
    result = arvid("serve")
    assert result.exit_code == 2 and "another server uses" in result.stderr
    place.leave()


def test_what_is_missing_is_named(arvid: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    result = arvid("serve")
    assert result.exit_code == 2 and "the server needs uvicorn; install" in result.stderr


@pytest.mark.parametrize(
    ("host", "private"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_which_addresses_others_reach(host: str, private: bool) -> None:
    assert serve.is_private(host) is private


def test_a_port_that_is_taken(arvid: Type) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = arvid("serve", "--port", port)
    assert result.exit_code == 2 and f"cannot listen on 127.0.0.1 port {port}" in result.stderr


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What servers would be set up with, if they ran."""
    found: list[Settings] = []

    def note(settings: Settings, listens: socket.socket, far: object = None) -> None:
        assert listens.getsockname()[1] > 0
        found.append(settings)

    monkeypatch.setattr(serve, "run_here", note)
    return found


def test_what_a_server_is_set_up_with(arvid: Type, toy: Path, tmp_path: Path, begun: list[Settings]) -> None:
    words = ("serve", "--model", toy, "--drafter", toy, "--port", 0, "--max-seconds", 7, "--sessions", 3)
    most = ("--max-live-seconds", 9, "--max-passes", 2.5, "--max-past", 3)
    assert arvid(*words, *most, "--origin", "https://a.example").exit_code == 0
    assert arvid("keys", "add", "ann").exit_code == 0
    assert arvid(*words, "--host", "0.0.0.0").exit_code == 0
    assert arvid(*words, "--open").exit_code == 0
    private, public, open_door = begun
    assert (private.locked, public.locked, open_door.locked) == (False, True, False)
    assert private.place.root == tmp_path / "arvid-data" and private.database == ""
    assert private.limits == Limits(7, 9, block=Work(passes=2.5, past=3), sessions=3)
    assert public.limits.block == Work()
    assert private.origins == ("https://a.example",)
    assert private.models == (str(toy), "embedded-toy") and private.drafters == (str(toy), "own")
    assert "127.0.0.1" in private.hosts and public.hosts == ()
    made = private.open_pipeline()
    assert isinstance(made, Pipeline) and made.family.card.name == "embedded-toy"


def test_the_engine_of_this_process_times_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    houses: list[Any] = []

    class Noted:
        def __init__(self, house: Any, host: str, port: int) -> None:
            houses.append(house)

        def run(self, sockets: Any) -> None:
            """Ends at once."""

    monkeypatch.setattr("arvid.serve.app.Server", Noted)
    with serve.listening("127.0.0.1", 0) as listens:
        serve.run_here(Settings(lambda: None, Place(tmp_path)), listens)  # type: ignore[arg-type, return-value]
    assert houses[0].engine._speed is serve.speed


def test_the_timing_record_of_a_job_is_that_of_the_other_commands() -> None:
    from types import SimpleNamespace

    from arvid.cli.serve import speed
    from arvid.models.family import read_card
    from arvid.pipeline import EMBEDDED, Request

    rows = [
        {"frames": 9, "seconds": {"target": 0.3, "decode": 0.1}, "source": "target"},
        {"frames": 12, "seconds": {"draft": 0.2, "decode": 0.1}, "source": "draft"},
    ]
    family: Any = SimpleNamespace(card=read_card(EMBEDDED), device="cpu")
    found = speed(Request("a red circle", seed=3), family, rows)
    assert found is not None
    assert (found["fps"]["denoise"], found["fps"]["with_decode"]) == (pytest.approx(42), pytest.approx(30))
    assert found["conditions"]["seed"] == 3
    assert speed(Request("a red circle"), family, []) is None
