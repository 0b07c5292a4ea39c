"""What goes wrong around a server: its database, rows of other versions, another database for its place, its end."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sqlalchemy.exc import OperationalError
from torch import equal

from arvid.pipeline import Pipeline, Request
from arvid.serve import app
from arvid.serve.app import Settings, build
from arvid.serve.direction import Direction
from arvid.serve.engine import Engine
from arvid.serve.limits import Allowance, Limits
from arvid.serve.making import SAMPLED, STATE, VIDEO, Asked, Hands, Making, frames_in
from arvid.serve.metrics import Metrics
from arvid.serve.place import Place
from arvid.serve.store import Job, Store, new_id, now
from serve import running
from serve.running import OTHER, PROMPT, Running, Viewer, ask, until, wait_for

SMALL = {"prompt": PROMPT, "seconds": 1, "size": "64x64"}
PLAIN = {
    "prompt": PROMPT, "seconds": 1.0, "seed": 0, "router": "", "past": "", "size": None, "timeline": [], "guard": "",
    "positions": "",
}  # fmt: skip
GONE = OperationalError("select", {}, Exception("the server closed the connection"))


@pytest.fixture
def own(toy: Path, tmp_path: Path) -> Iterator[Running]:
    """A server of one's own."""
    started = running.begin(toy, tmp_path / "data")
    yield started
    started.stop()


def asked(server: Running, **more: Any) -> str:
    status, _, answer = ask(server.address, "/v1/videos", {**SMALL, **more})
    assert status == 200, answer
    return str(json.loads(answer)["id"])


def row(asked: dict[str, Any], **more: Any) -> Job:
    """A job as it lies in the database."""
    return Job(
        id=new_id("video"), owner="", kind="create", model="m", prompt=PROMPT, seconds="1", size="64x64", asked=asked,
        created_at=now(), **more,
    )  # fmt: skip


# ---------------------------------------------------------------- the database


def failing(times: int, call: Any) -> Any:
    """A call that fails so many times before it does what it did."""
    left = iter(range(times))

    def flaky(*given: Any, **named: Any) -> Any:
        if next(left, None) is not None:
            raise GONE
        return call(*given, **named)

    return flaky


def test_a_job_waits_no_longer_than_the_database_is_gone(own: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own.house.store, "claim", failing(2, own.house.store.claim))
    video = asked(own)
    until(lambda: json.loads(ask(own.address, f"/v1/videos/{video}")[2])["status"] == "completed")


def test_a_job_in_hand_is_not_lost_with_the_database(tmp_path: Path, pipeline: Pipeline) -> None:
    place = Place(tmp_path)
    store = Store(place.database, place.name)
    engine = Engine(lambda: pipeline, store, place, Limits(attempts=3), Metrics())
    engine.pipeline = pipeline
    given_up, good = (store.add(row({"request": PLAIN}, attempts=count))[0].id for count in (3, 0))
    place.video(good).mkdir()
    store.change = failing(1, store.change)  # type: ignore[method-assign]
    with pytest.raises(OperationalError):
        engine._turn(pipeline)
    found = store.get(given_up)
    assert found is not None and found.status == "in_progress"
    assert engine._turn(pipeline), "it goes on by itself"
    failed, begun = store.get(given_up), store.get(good)
    assert failed is not None and begun is not None
    assert failed.error is not None and "the server ended 3 times" in failed.error["message"]
    assert (failed.status, failed.attempts, begun.status, begun.attempts) == ("failed", 4, "in_progress", 1)
    engine._leave()
    engine.stop()
    store.close()


def test_without_a_database_it_fails_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = build(Settings(lambda: pytest.fail("not to be loaded"), Place(tmp_path)))
    monkeypatch.setattr(house.store, "requeue", failing(1, house.store.requeue))
    server = app.Server(house, "127.0.0.1", 0)
    server.run()
    assert isinstance(house.engine.failure, ValueError)
    assert str(house.engine.failure).startswith("the database cannot be used (")
    assert len(str(house.engine.failure).splitlines()) == 1
    house.engine.stop()


def test_another_database_erases_no_video(toy: Path, tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", f"sqlite:///{tmp_path / 'elsewhere.db'}"
    server = running.begin(toy, data, database=elsewhere)
    video = asked(server)
    assert wait_for(server.address, video)["status"] == "completed"
    server.stop()
    for _ in range(2):
        with pytest.raises(ValueError, match="are in another database"):
            build(Settings(lambda: pytest.fail("not to be loaded"), Place(data)))
    assert (Place(data).video(video) / VIDEO).is_file()
    again = running.begin(toy, data, database=elsewhere)
    assert ask(again.address, f"/v1/videos/{video}/content")[0] == 200
    again.stop()


# ---------------------------------------------------------------- rows that cannot be read


@pytest.mark.parametrize(
    "strange",
    [{"request": {**PLAIN, "cfg": 3.0}}, {"request": {"prompt": PROMPT}}, {}, {"request": PLAIN, "wind": 1}],
    ids=["more", "less", "none", "other"],
)
def test_a_row_of_another_version_fails_alone(toy: Path, tmp_path: Path, strange: dict[str, Any]) -> None:
    place = Place(tmp_path)
    store = Store(place.database, place.name)
    left = store.add(row(strange))[0].id
    finished = store.add(row(strange, status="completed", progress=100))[0].id
    for video in (left, finished):
        place.video(video).mkdir()
    store.close()
    server = running.begin(toy, tmp_path)
    try:
        found = wait_for(server.address, left)
        assert (found["status"], found["error"]["code"]) == ("failed", "invalid_input")
        assert "of another version" in found["error"]["message"] and "ask for it again" in found["error"]["message"]
        assert len(json.loads(ask(server.address, "/v1/videos")[2])["data"]) == 2
        status, _, answer = ask(server.address, f"/v1/videos/{finished}/remix", {"prompt": OTHER})
        assert status == 400 and b"of another version" in answer
        assert wait_for(server.address, asked(server))["status"] == "completed"
        assert server.house.engine.failure is None
    finally:
        server.stop()


def test_latents_whose_state_is_of_another_version_are_sampled_again(tmp_path: Path, pipeline: Pipeline) -> None:
    """Also when that is ended half-way by a kill."""
    request, hands = Request(PROMPT, 2.0), Hands(ThreadPoolExecutor(1), ThreadPoolExecutor(1))

    def work(most: int = 99) -> None:
        making = Making(pipeline, tmp_path, Asked(request), hands, save_seconds=0.0)
        for step in making.run():
            if isinstance(step, Future):
                step.result()
            if len(making.rows) == most and making.saves:
                break
        making.close()

    work()
    (tmp_path / VIDEO).unlink()
    with safe_open(tmp_path / STATE, "pt") as file:
        told, tensors = json.loads(file.metadata()["arvid"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / STATE, {"arvid": json.dumps({**told, "schema": told["schema"] - 1})})
    work(2)
    assert not (tmp_path / SAMPLED).exists()
    work()
    wanted = pipeline.generate(request)
    assert frames_in(tmp_path / VIDEO) == wanted.frames_BTCHW.shape[1]
    assert equal(load_file(tmp_path / SAMPLED)["latents"], wanted.latents_BTCHW)


def test_a_report_that_cannot_be_made_fails_its_job_alone(own: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    report, thread = Making.report, own.house.engine._thread

    def broken(making: Making) -> dict[str, Any]:
        if threading.current_thread() is thread:
            raise KeyError("planted")
        return report(making)

    with monkeypatch.context() as planted:
        planted.setattr(Making, "report", broken)
        found = wait_for(own.address, asked(own))
    assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
    assert wait_for(own.address, asked(own))["status"] == "completed"
    assert own.house.engine.failure is None


def test_a_retry_counts_as_a_job(toy: Path, tmp_path: Path) -> None:
    server = running.begin(toy, tmp_path, anybody=Allowance(jobs=1))
    try:
        failed = server.house.store.add(row({"request": PLAIN}, status="failed"))[0].id
        server.house.place.video(failed).mkdir()
        long = asked(server, seconds=60)
        status, _, answer = ask(server.address, f"/v1/videos/{failed}/retry", method="POST")
        assert (status, json.loads(answer)["error"]["code"]) == (429, "queue_full")
        ask(server.address, f"/v1/videos/{long}", method="DELETE")
        assert ask(server.address, f"/v1/videos/{failed}/retry", method="POST")[0] == 200
        assert wait_for(server.address, failed)["status"] == "completed"
    finally:
        server.stop()


# ---------------------------------------------------------------- the end


def test_viewers_hear_of_the_end_while_a_block_is_made(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, step = running.begin(toy, tmp_path), Direction.step

    def slow(direction: Direction) -> Any:
        time.sleep(0.5)
        return step(direction)

    monkeypatch.setattr(Direction, "step", slow)
    viewer = Viewer(server.address, {"prompt": PROMPT, "seconds": 60, "lead": 30})
    viewer.until("video.block")
    server.server.should_exit = True  # as a signal does
    assert viewer.until("session.closing")["why"] == "the server ends"
    viewer.close()
    server.stop()
    assert list((tmp_path / "live").iterdir()) == []


def test_a_signal_takes_no_lock_that_may_be_held(own: Running) -> None:
    """A handler runs in the middle of whatever its thread does, `Engine.nudge` for example."""
    engine, handled = own.house.engine, threading.Event()

    def interrupted() -> None:
        with engine._awake._cond:
            own.server.handle_exit(signal.SIGTERM, None)
            handled.set()

    threading.Thread(target=interrupted, daemon=True).start()
    assert handled.wait(5.0)
    own.thread.join(20)
    assert engine.leaving
