"""The database, on SQLite and on a real PostgreSQL: order, owners, places, repeats, what a killed server left."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arvid.serve.keys import make_key
from arvid.serve.limits import Allowance
from arvid.serve.store import Job, Store, new_id

PROGRAMS = ("initdb", "postgres")


def program(name: str) -> str | None:
    """A program of PostgreSQL, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL that was started for these tests."""
    pytest.importorskip("psycopg")
    initdb, server = (program(name) for name in PROGRAMS)
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed")
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
    running = subprocess.Popen(
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
        running.terminate()
        running.wait(20)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    """An empty place in it."""
    made = Store(address, new_id("place"))
    yield made
    made.close()


def job(owner: str = "ann", repeat: str | None = None) -> Job:
    return Job(
        id=new_id("video"), owner=owner, repeat=repeat, kind="create", model="m",
        prompt="a red \u2202\u0444\u65e5 \U0001f98a",
        seconds="4", size="64x64", asked={"request": {"seed": 2**62}}, created_at=1,
    )  # fmt: skip


def test_jobs_are_claimed_once_and_in_order(store: Store) -> None:
    added = [store.add(job())[0].id for _ in range(5)]
    claimed = []
    while (found := store.claim()) is not None:
        claimed.append(found.id)
        assert (found.status, found.attempts) == ("in_progress", 1)
        assert found.prompt.endswith("\U0001f98a") and found.asked["request"]["seed"] == 2**62
    assert claimed == added
    assert store.count() == 5
    store.change(added[0], status="completed", progress=100, report={"frames": 3})
    done = store.get(added[0])
    assert done is not None and (done.progress, done.report) == (100, {"frames": 3})
    assert (store.count(), store.requeue()) == (4, 4)
    again = store.claim()
    assert again is not None and (again.id, again.attempts) == (added[1], 2)


def test_a_repeated_request_is_one_job(store: Store) -> None:
    first, new = store.add(job(repeat="once"))
    again, other = store.add(job(repeat="once"))
    assert (new, other, again.id) == (True, False, first.id)
    assert store.add(job("bob", "once"))[1]
    assert store.add(job())[1] and store.add(job())[1]
    assert store.count("ann") == 3


def test_pages_follow_each_other_and_show_ones_own(store: Store) -> None:
    mine = [store.add(job())[0].id for _ in range(5)]
    theirs = store.add(job("bob"))[0].id
    for ascending, wanted in ((True, mine), (False, mine[::-1])):
        seen, last, more = [], None, True
        while more:
            page, more = store.page("ann", last, 2, ascending)
            seen += [found.id for found in page]
            last = page[-1]
        assert seen == wanted
    assert store.get(theirs, "ann") is None and store.get(theirs, "bob") is not None
    assert list(store.page("carl", None, 5, True)[0]) == []


def test_places_do_not_see_each_other(store: Store, address: str) -> None:
    mine = store.add(job())[0].id
    other = Store(address, new_id("place"))
    assert (other.get(mine), other.claim(), other.count(), other.ids()) == (None, None, 0, set())
    store.claim()
    assert other.requeue() == 0
    assert not other.delete(mine) and not other.change(mine, progress=3)
    assert store.ids() == {mine}
    other.close()


def test_what_was_deleted_is_gone(store: Store) -> None:
    mine = store.add(job())[0].id
    assert store.delete(mine) and not store.delete(mine)
    assert not store.change(mine, progress=5)
    assert store.get(mine) is None and store.claim() is None


def test_threads_share_it(store: Store) -> None:
    claimed: list[str] = []

    def work() -> None:
        for _ in range(5):
            store.add(job())
        while (found := store.claim()) is not None:
            claimed.append(found.id)
            store.change(found.id, progress=50)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.requeue() == 20 and set(claimed) == store.ids()


def test_keys(store: Store) -> None:
    name = new_id("n")[:40]
    make_key(store, name, Allowance(1, 2, 3))
    [key] = [key for key in store.all_keys() if key.name == name]
    assert (key.requests, key.jobs, key.sessions, len(key.hash)) == (1, 2, 3, 64)
    assert store.key_of(key.hash) is not None and store.key_of("0" * 64) is None
    assert store.remove_key(name) and not store.remove_key(name)


@pytest.mark.parametrize("wrong", ["nonsense", "sqlite:////no/such/folder/x.db", "postgresql+psycopg://h:1/x", "x://y"])
def test_a_database_that_cannot_be_used(wrong: str) -> None:
    with pytest.raises(ValueError, match="the database cannot be used"):
        Store(wrong)
