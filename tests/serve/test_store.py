"""The database, on SQLite and on a real PostgreSQL: order, owners, places, repeats, what a killed server left."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from arvid.serve.keys import make_key
from arvid.serve.limits import Allowance
from arvid.serve.store import Job, Store, new_id
from serve import running
from serve.running import PROMPT, ask, wait_for


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


def test_a_failed_job_is_tried_again_by_one_of_many(store: Store) -> None:
    failed, running_ = store.add(job())[0].id, store.add(job())[0].id
    store.change(failed, status="failed", attempts=3, completed_at=5, error={"code": "c", "message": "m"})
    asked = [threading.Thread(target=lambda: answers.append(store.retry(failed))) for _ in range(8)]
    answers: list[bool] = []
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    found = store.get(failed)
    assert found is not None
    assert (found.status, found.attempts, found.completed_at, found.error) == ("queued", 0, None, None)
    assert not store.retry(running_) and not store.retry(new_id("video"))


def test_a_database_has_one_name_of_its_own(store: Store, address: str, tmp_path: Path) -> None:
    names: list[str] = []
    stores = [Store(address, new_id("place")) for _ in range(4)]
    threads = [threading.Thread(target=lambda one=one: names.append(one.name)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names) == {store.name} and len(store.name) == 32
    other = Store(f"sqlite:///{tmp_path / 'other.db'}")
    assert other.name != store.name
    for opened in (*stores, other):
        opened.close()


def test_keys(store: Store) -> None:
    name = new_id("n")[:40]
    make_key(store, name, Allowance(1, 2, 3))
    [key] = [key for key in store.all_keys() if key.name == name]
    assert (key.requests, key.jobs, key.sessions, len(key.hash)) == (1, 2, 3, 64)
    assert store.key_of(key.hash) is not None and store.key_of("0" * 64) is None
    assert store.remove_key(name) and not store.remove_key(name)


@pytest.mark.slow
def test_a_server_on_postgresql(postgres: str, toy: Path, tmp_path: Path) -> None:
    body = {"prompt": PROMPT, "seconds": 1, "size": "64x64"}
    server = running.begin(toy, tmp_path, database=postgres)
    try:
        done, left = (json.loads(ask(server.address, "/v1/videos", body)[2])["id"] for _ in range(2))
        assert wait_for(server.address, done)["status"] == "completed"
        long = json.loads(ask(server.address, "/v1/videos", {**body, "seconds": 60})[2])["id"]
        wait_for(server.address, left)
    finally:
        server.stop()
    assert not (tmp_path / "arvid.db").exists()
    again = running.begin(toy, tmp_path, database=postgres)
    try:
        listed = json.loads(ask(again.address, "/v1/videos")[2])["data"]
        assert [video["id"] for video in listed] == [long, left, done]
        assert ask(again.address, f"/v1/videos/{done}/content")[0] == 200
        assert wait_for(again.address, long)["status"] == "completed"
    finally:
        again.stop()


def test_a_table_of_another_version_is_told_when_it_is_opened(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.execute("CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT)")
    with pytest.raises(ValueError, match=r"^the database cannot be used \(.*no such column.*\); .*of this version$"):
        Store(f"sqlite:///{tmp_path / 'old.db'}")


@pytest.mark.parametrize("wrong", ["nonsense", "sqlite:////no/such/folder/x.db", "postgresql+psycopg://h:1/x", "x://y"])
def test_a_database_that_cannot_be_used(wrong: str) -> None:
    with pytest.raises(ValueError, match="the database cannot be used"):
        Store(wrong)
