"""What the people who run a server see: readiness, numbers, logs, foreign pages, bodies without end."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import InvalidStatus

from arvid.pipeline import Pipeline
from arvid.serve.app import Server, Settings, build
from arvid.serve.keys import make_key
from arvid.serve.limits import Allowance, Limits
from arvid.serve.logs import LOGGER, Lines
from arvid.serve.place import Place
from serve import running
from serve.running import PROMPT, Running, Viewer, ask, wait_for
from test_docs import ROOT, table_after

SMALL = {"prompt": PROMPT, "seconds": "1", "size": "64x64", "arvid": {"router": "stride:k=2"}}


class Kept(logging.Handler):
    """Keeps lines as they would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Lines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def named(self, event: str) -> list[dict[str, Any]]:
        """Lines about an event."""
        return [line for line in map(json.loads, self.lines) if line["event"] == event]


@pytest.fixture
def logs() -> Iterator[Kept]:
    """What the server logs meanwhile."""
    kept, before = Kept(), LOGGER.level
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(kept)
    yield kept
    LOGGER.removeHandler(kept)
    LOGGER.setLevel(before)


def started(settings: Settings) -> tuple[Running, Server]:
    """A server that listens; its model may not be there yet."""
    house = build(settings)
    server = Server(house, "127.0.0.1", 0, patience=5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    return Running(house, server, thread, f"http://127.0.0.1:{port}"), server


def test_it_is_ready_when_it_is_warm(pipeline: Pipeline, tmp_path: Path) -> None:
    loaded = threading.Event()

    def load() -> Pipeline:
        loaded.wait(20)
        return pipeline

    server, _ = started(Settings(load, Place(tmp_path)))
    try:
        assert ask(server.address, "/healthz")[0] == 200
        for path, body in (("/readyz", None), ("/v1/videos", SMALL), ("/v1/models", None)):
            status, headers, answer = ask(server.address, path, body)
            assert (status, headers["retry-after"]) == (503, "5"), answer
            assert json.loads(answer)["error"]["code"] == "not_ready"
        early = Viewer(server.address, {"prompt": PROMPT})
        assert early.until("error")["error"]["code"] == "not_ready"
        early.close()
        assert ask(server.address, "/")[0] == 200 and ask(server.address, "/v1/videos")[0] == 200
        loaded.set()
        while (status := ask(server.address, "/readyz")[0]) == 503:
            time.sleep(0.02)
        assert status == 200
    finally:
        loaded.set()
        server.stop()


def test_a_model_that_does_not_load_ends_the_server(tmp_path: Path, logs: Kept) -> None:
    asked = threading.Event()

    def load() -> Pipeline:
        asked.wait(20)
        raise ValueError("no such model")

    server, program = started(Settings(load, Place(tmp_path)))
    asked.set()
    server.thread.join(20)
    assert not server.thread.is_alive() and program.should_exit
    assert str(server.house.engine.failure) == "no such model"
    assert "no such model" in logs.named("the engine failed")[0]["traceback"]


def test_numbers_are_those_of_what_was_done(toy: Path, tmp_path: Path) -> None:
    server = running.begin(toy, tmp_path)
    try:
        video = wait_for(server.address, json.loads(ask(server.address, "/v1/videos", SMALL)[2])["id"])
        viewer = Viewer(server.address, {"prompt": PROMPT, "seconds": 2, "lead": 9, "arvid": {"router": "target"}})
        viewer.say(type="ping", id="x")
        viewer.until("video.done")
        viewer.say(type="pause", id="p")
        viewer.until("control.receipt")
        status, headers, text = ask(server.address, "/metrics")
        viewer.close()
    finally:
        server.stop()
    assert status == 200 and headers["content-type"].startswith("text/plain")
    lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
    numbers = {name: float(value) for name, _, value in lines}
    made = video["arvid"]["made"]
    assert (
        sum(value for name, value in numbers.items() if name.startswith('arvid_blocks_total{kind="job"'))
        == (made["blocks"])
    )
    assert numbers['arvid_frames_total{kind="job"}'] == made["frames"]
    assert numbers['arvid_blocks_total{kind="live",source="target"}'] == len(viewer.fragments)
    assert numbers['arvid_first_frame_seconds_count{kind="live"}'] == 1
    assert numbers['arvid_first_frame_seconds_count{kind="job"}'] == 1
    assert numbers["arvid_control_receipt_seconds_count"] == 1
    assert numbers['arvid_jobs_ended_total{status="completed"}'] == 1
    assert (numbers["arvid_queue_jobs"], numbers["arvid_live_sessions"]) == (0, 1)
    assert numbers["process_resident_memory_bytes"] > 1e7
    assert numbers['arvid_requests_total{method="POST",route="/v1/videos",status="200"}'] == 1
    assert not any(video["id"] in name for name in numbers), "one row per route, not per video"


def test_the_numbers_in_the_pages_are_those_there_are(server: Running) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    written = {row["metric"].strip("`") for row in table_after(page, "metric")}
    text = ask(server.address, "/metrics")[2].decode()
    kinds = [line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE")]
    there = {name for name, kind in kinds if name.startswith("arvid_") and not name.endswith("_created")}
    assert {name for name in written if name.startswith("arvid_")} == there
    assert "process_resident_memory_bytes" in written & {name for name, _ in kinds}


def test_every_request_has_an_id_in_answer_and_log(server: Running, logs: Kept) -> None:
    for given, kept in (("mine-1", True), ("no good", False), ("x" * 65, False)):
        logs.lines.clear()
        _, headers, _ = ask(server.address, "/v1/videos?limit=1", headers={"x-request-id": given})
        mark = headers["x-request-id"]
        assert (mark == given) is kept and mark
        while not (found := logs.named("request")):
            time.sleep(0.01)
        assert (found[0]["request_id"], found[0]["path"], found[0]["status"]) == (mark, "/v1/videos", 200)
        assert found[0]["seconds"] >= 0 and found[0]["time"].endswith("+00:00")
    _, headers, _ = ask(server.address, "/v1/videos", b"{", headers={"x-request-id": "wrong"})
    assert headers["x-request-id"] == "wrong"
    _, _, answer = ask(server.address, "/v1/videos", SMALL, headers={"x-request-id": "mine-2"})
    [accepted] = logs.named("job accepted")
    assert (accepted["request_id"], accepted["job"]) == ("mine-2", json.loads(answer)["id"])


def test_a_fault_of_ours_is_told_without_its_reason(
    server: Running, logs: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*more: object) -> None:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(server.house.store, "page", broken)
    status, headers, answer = ask(server.address, "/v1/videos", headers={"x-request-id": "odd"})
    assert status == 500 and b"secret" not in answer
    assert json.loads(answer)["error"]["type"] == "server_error" and headers["x-request-id"] == "odd"
    [told] = logs.named("GET /v1/videos")
    assert told["request_id"] == "odd" and "the secret reason" in told["traceback"]


def test_no_secret_is_logged(toy: Path, tmp_path: Path, logs: Kept) -> None:
    server = running.begin(toy, tmp_path, locked=True)
    try:
        key = make_key(server.house.store, "ann", Allowance())
        ask(server.address, "/v1/videos", headers={"authorization": f"Bearer {key}"})
        viewer = Viewer(server.address, {"prompt": PROMPT, "key": key, "seconds": 1})
        viewer.until("video.block")
        viewer.say(type="session.start", key=key)
        viewer.until("error")
        viewer.say(type="stop")
        viewer.until("session.closing")
        viewer.close()
    finally:
        server.stop()
    # A server of a test before may still log how it ends.
    assert any(str(line.get("owner")).startswith("key_") for line in logs.named("request"))
    assert logs.named("live session ended")
    assert not any(key[6:] in line for line in logs.lines)


@pytest.mark.parametrize("origins", [(), ("https://friend.example",)])
def test_pages_of_other_hosts_ask_first(toy: Path, tmp_path: Path, origins: tuple[str, ...]) -> None:
    server = running.begin(toy, tmp_path, origins=origins)
    try:
        for origin in ("https://friend.example", "https://evil.example"):
            asked = {"origin": origin, "access-control-request-method": "POST"}
            asked["access-control-request-headers"] = "content-type,authorization"
            _, headers, _ = ask(server.address, "/v1/videos", method="OPTIONS", headers=asked)
            allowed = headers.get("access-control-allow-origin")
            assert allowed == (origin if origin in origins else None)
            assert "access-control-allow-credentials" not in headers
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"host": "[::1"}), ("POST", {"host": "[zz]:80"}), ("POST", {"origin": "http://["}),
        ("DELETE", {"origin": "//a]b"}),
    ],
)  # fmt: skip
def test_headers_that_are_no_addresses_are_foreign(
    toy: Path, tmp_path: Path, method: str, headers: dict[str, str]
) -> None:
    server = running.begin(toy, tmp_path, hosts=("127.0.0.1",))
    try:
        status, _, answer = ask(server.address, "/v1/videos", SMALL if method == "POST" else None, method, headers)
        assert status == 403 and json.loads(answer)["error"]["code"] in ("wrong_host", "wrong_origin")
        if "origin" in headers:
            with pytest.raises(InvalidStatus) as refused:
                Viewer(server.address, {"prompt": PROMPT}, origin=headers["origin"])
            assert refused.value.response.status_code == 403
    finally:
        server.stop()


def test_a_body_without_a_length_is_counted(toy: Path, tmp_path: Path) -> None:
    server = running.begin(toy, tmp_path, limits=Limits(upload=10_000))
    try:
        connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=20)
        body = iter([b'{"prompt": "', *[b"x" * 1000] * 20, b'"}'])
        headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
        connection.request("POST", "/v1/videos", body, headers, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "too_large"
        connection.close()
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["index.html", "main.js", "page.css", "icon.svg"])
def test_the_page_loads_nothing_from_elsewhere(server: Running, name: str) -> None:
    status, headers, text = ask(server.address, "/" if name == "index.html" else f"/page/{name}")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert b"https://" not in text and b"//cdn" not in text
