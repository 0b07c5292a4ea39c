"""The engine whose blocks are made by replicas, with replicas in this process: everything but Ray itself.

A replica here runs on a loop of its own, and all that goes to it or comes from it is pickled on the way.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import queue
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load as load_tensors
from sqlalchemy.exc import OperationalError
from torch import equal

from arvid.pipeline import Family, Pipeline, Request, load
from arvid.serve.app import Server, Settings
from arvid.serve.cluster.engine import build
from arvid.serve.cluster.options import Replicas, Workers
from arvid.serve.cluster.relay import Outbox, Slips
from arvid.serve.cluster.replica import Replica, shell
from arvid.serve.engine import Engine
from arvid.serve.limits import Limits
from arvid.serve.live import Live
from arvid.serve.place import Place
from arvid.serve.store import COMPLETED, DatabaseError, Job, new_id
from serve.running import OTHER, PROMPT, Running, Viewer, ask, frames_of, until, wait_for

LONG = 60.0
LOADING = threading.Lock()


def copied(value: Any) -> Any:
    """What arrives on another machine."""
    return pickle.loads(pickle.dumps(value))


class Near:
    """A replica on a loop in a thread of its own."""

    def __init__(self, *given: Any) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.replica = Replica(*given)
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.dead = False

    def ask(self, what: str, *given: Any, patience: float | None = 30.0) -> Any:
        return copied(self.tell(what, *given).result(patience))

    def tell(self, what: str, *given: Any) -> Any:
        if self.dead:
            raise ConnectionError("the replica is dead")
        return asyncio.run_coroutine_threadsafe(getattr(self.replica, what)(*copied(given)), self.loop)

    def watch(self) -> Iterator[Any]:
        self.pumping = asyncio.run_coroutine_threadsafe(self._pump(), self.loop)
        while (batch := self.events.get()) is not None:
            if self.dead:
                raise ConnectionError("the replica died")
            yield copied(batch)

    async def _pump(self) -> None:
        try:
            async for batch in self.replica.watch():
                self.events.put(batch)
        finally:
            self.events.put(None)

    def kill(self) -> None:
        """It dies: nothing is heard of it any more, and nothing it says counts."""
        self.dead = True
        self.events.put([])
        self.loop.call_soon_threadsafe(self.pumping.cancel)


class NearDeploy:
    """Replicas in this process."""

    def __init__(self, *given: Any) -> None:
        self._given = given
        self.up: dict[int, Near] = {}
        self.begun = 0

    def begin(self, number: int) -> Near:
        self.begun += 1
        self.up[number] = Near(*copied(self._given))
        return self.up[number]

    def end(self, number: int) -> None:
        if (near := self.up.pop(number, None)) is not None:
            near.replica._engine.stop()


def opened(family: Path) -> Pipeline:
    """One at a time: transformers does not load two models at once."""
    with LOADING:
        return Pipeline(load(family))


def timed(request: Request, family: Family, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A timing record that says whose it is."""
    return {"seed": request.seed, "blocks": len(rows)}


@pytest.fixture(scope="module")
def deploy(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> NearDeploy:
    root = tmp_path_factory.mktemp("cluster")
    deploy = NearDeploy(partial(opened, toy), str(root), Limits(save_seconds=0.0), timed)
    deploy.root = root  # type: ignore[attr-defined]
    return deploy


@pytest.fixture(scope="module")
def cluster(toy: Path, deploy: NearDeploy) -> Iterator[Running]:
    """A server with two replicas."""
    place = Place(deploy.root)  # type: ignore[attr-defined]
    settings = Settings(partial(opened, toy), place, limits=Limits(save_seconds=0.0), models=("embedded-toy",))
    house = build(settings, 2, deploy)
    server = Server(house, "127.0.0.1", 0, patience=5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started and house.engine.failure is None and all(lane.ready for lane in house.engine._lanes))
    until(lambda: house.engine.warm)
    port = server.servers[0].sockets[0].getsockname()[1]
    running = Running(house, server, thread, f"http://127.0.0.1:{port}")
    yield running
    running.stop()
    assert deploy.up == {}


def asked(server: Running, **body: Any) -> str:
    status, _, answer = ask(server.address, "/v1/videos", {"prompt": PROMPT, "seconds": 1, "size": "64x64", **body})
    assert status == 200, answer
    return str(json.loads(answer)["id"])


def latents_of(server: Running, video: str) -> Any:
    found = wait_for(server.address, video)
    assert found["status"] == "completed", found
    return load_tensors(ask(server.address, f"/v1/videos/{video}/content?variant=latents")[2])["latents"]


def test_jobs_are_spread_and_make_what_the_pipeline_makes(cluster: Running, toy: Path) -> None:
    videos = [asked(cluster, arvid={"seed": seed}) for seed in range(5)]
    pipeline = opened(toy)
    for seed, video in enumerate(videos):
        made = pipeline.generate(Request(PROMPT, 1, seed))
        assert equal(latents_of(cluster, video), made.latents_BTCHW)
        told = json.loads(ask(cluster.address, f"/v1/videos/{video}/content?variant=report")[2])
        assert told["speed"] == {"seed": seed, "blocks": len(made.blocks)}
    report = ask(cluster.address, "/metrics")[2].decode()
    assert 'arvid_jobs_ended_total{status="completed"} 5.0' in report and "arvid_replicas 2.0" in report
    assert 'arvid_frames_total{kind="job"} 85.0' in report and "arvid_queue_jobs 0.0" in report
    status, _, answer = ask(
        cluster.address, "/v1/videos", {"prompt": PROMPT, "seconds": 1, "arvid": {"router": "coin"}}
    )
    assert status == 400 and b"unknown router" in answer


def test_a_live_session_plays_and_is_directed_on_its_replica(cluster: Running, toy: Path) -> None:
    both = [Viewer(cluster.address, {"prompt": PROMPT, "seconds": 3, "lead": 30}) for _ in range(2)]
    names = [viewer.until("session.created")["session"] for viewer in both]
    lanes = [[lane.number for lane in cluster.house.engine._lanes if name in lane.mirrors] for name in names]
    assert sorted(lanes) == [[0], [1]]
    for viewer in both:
        viewer.until("video.done")
    first = both[0]
    film = first.init + b"".join(data for _, data in sorted(first.fragments.items()))
    wanted = opened(toy).generate(Request(PROMPT, 3)).frames_BTCHW[0]
    pictures = ((wanted.float() + 1) * 127.5).movedim(1, -1).numpy()
    shown = frames_of(film)[:, ::2, ::2].astype(int)
    assert shown.shape == pictures.shape and np.abs(shown - pictures).mean() < 10
    first.say(type="branch", id="b", block=1, prompt=OTHER, seed=5)
    receipt = first.until("control.receipt", id="b") if not seen(first, "b") else None
    assert (receipt or seen(first, "b"))["block"] == 1
    until(lambda: first.next()["type"] == "video.done")
    assert {version for version, _ in first.fragments} == {0, 1} and (1, 0) not in first.fragments
    assert first.fragments[1, 1] != first.fragments[0, 1]
    first.say(type="prompt", id="late", prompt=OTHER)
    assert "go back first" in first.until("error", id="late")["error"]["message"]
    first.say(type="rewind", id="far", block=99)
    assert "cannot be gone back to" in first.until("error", id="far")["error"]["message"]
    assert ask(cluster.address, f"/v1/live/{names[1]}", method="DELETE")[0] == 200
    assert both[1].until("session.closing")["why"] == "deleted"
    first.say(type="stop")
    until(lambda: not cluster.house.engine.lives)
    for viewer in both:
        viewer.close()


def seen(viewer: Viewer, mark: str) -> dict[str, Any] | None:
    """The receipt of a control, if it has come already."""
    return next((message for message in viewer.messages if message.get("id") == mark), None)


def test_a_viewer_sets_the_pace(cluster: Running) -> None:
    viewer = Viewer(cluster.address, {"prompt": PROMPT, "seconds": 20, "lead": 1.0})
    name = viewer.until("session.created")["session"]
    viewer.until("video.block", block=1)
    while not viewer.idle(1.0):
        pass
    live = cluster.house.engine.lives[name]
    made = len(live.record)
    assert made < live.blocks // 2
    viewer.say(type="ack", second=1.5)
    viewer.until("video.block", block=made)
    viewer.say(type="pause", id="p")
    viewer.until("control.receipt", id="p")
    assert ask(cluster.address, f"/v1/live/{name}/content")[2].startswith(viewer.init)
    viewer.close()
    cluster.house.engine.close_live(live, "over")


def test_a_job_outlives_its_replica(cluster: Running, deploy: NearDeploy, toy: Path) -> None:
    viewers = [Viewer(cluster.address, {"prompt": PROMPT, "seconds": 600, "lead": 1}) for _ in range(2)]
    for viewer in viewers:
        viewer.until("video.block", block=0)
    video = asked(cluster, seconds=12, arvid={"seed": 9})
    engine = cluster.house.engine
    until(lambda: any(video in lane.jobs for lane in engine._lanes))
    [lane] = [lane for lane in engine._lanes if video in lane.jobs]
    until(lambda: json.loads(ask(cluster.address, f"/v1/videos/{video}")[2])["progress"] > 20)
    before = deploy.begun
    deploy.up[lane.number].kill()
    ended = [viewer for viewer in viewers if closing(viewer)]
    assert len(ended) == 1 and "the replica that made it was lost" in ended[0].messages[-1]["why"]
    assert equal(latents_of(cluster, video), opened(toy).generate(Request(PROMPT, 12, 9)).latents_BTCHW)
    until(lambda: lane.ready)
    assert deploy.begun == before + 1
    for viewer in viewers:
        viewer.close()
    for live in list(engine.lives.values()):
        engine.close_live(live, "over")


def closing(viewer: Viewer) -> bool:
    """Whether the session has come to an end."""
    try:
        while viewer.next(2.0)["type"] != "session.closing":
            pass
    except TimeoutError:
        return False
    return True


def test_a_session_that_opens_too_late_is_kept_by_nobody(
    cluster: Running, deploy: NearDeploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    may, engines = threading.Event(), [near.replica._engine for near in deploy.up.values()]
    opened: list[str] = []

    def slow(engine: Engine, *given: Any) -> Live:
        may.wait(LONG)
        live = Engine.open_live(engine, *given)
        opened.append(live.name)
        return live

    for engine in engines:
        monkeypatch.setattr(engine, "open_live", partial(slow, engine))
    with monkeypatch.context() as impatient:
        for near in deploy.up.values():
            impatient.setattr(near, "ask", partial(near.ask, patience=0.2))
        viewer = Viewer(cluster.address, {"prompt": PROMPT, "seconds": 20, "lead": 1.0})
        assert viewer.until("error")["error"]["code"] == "replica_lost"
    viewer.close()
    may.set()
    until(lambda: opened)
    until(lambda: not any(engine.lives for engine in engines))
    assert not any(near.replica._taps for near in deploy.up.values()) and not cluster.house.engine.lives


def test_a_session_that_is_closed_before_it_is_open_stays_closed(deploy: NearDeploy, cluster: Running) -> None:
    """The word that it is closed may overtake the question that opens it."""
    near, name = deploy.up[0], new_id("live")
    near.ask("close", name, "too late")
    assert near.ask("open", name, "", Request(PROMPT, 5.0), 1.0)["blocks"] > 1
    assert name not in near.replica._engine.lives and name not in near.replica._taps


def test_a_job_waits_no_longer_than_the_database_is_gone(cluster: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    store, left = cluster.house.store, [1, 1]
    claim = store.claim

    def flaky() -> Job | None:
        if left:
            left.pop()
            raise OperationalError("select", {}, Exception("the server closed the connection"))
        return claim()

    monkeypatch.setattr(store, "claim", flaky)
    assert latents_of(cluster, asked(cluster)).shape[1] == 5 and not left


def test_a_job_that_is_deleted_leaves_nothing(cluster: Running) -> None:
    video = asked(cluster, seconds=60)
    engine = cluster.house.engine
    until(lambda: any(video in lane.jobs for lane in engine._lanes))
    assert ask(cluster.address, f"/v1/videos/{video}", method="DELETE")[0] == 200
    until(lambda: not cluster.house.place.video(video).exists())
    assert not any(lane.jobs for lane in engine._lanes)
    assert latents_of(cluster, asked(cluster)).shape[1] == 5


def test_a_change_counts_when_the_server_has_heard_of_it(tmp_path: Path) -> None:
    outbox = Outbox()
    slips = Slips(tmp_path, outbox)
    told = {"prompt": "p", "seconds": "1", "size": "1x1", "asked": {}, "created_at": 0}
    slips.add(Job(id="video_1", owner="o", kind="video", model="m", **told))
    results: list[Any] = []
    writer = threading.Thread(target=lambda: results.append(slips.change("video_1", status=COMPLETED)))
    writer.start()
    until(lambda: outbox._events)
    [(kind, number, job, values)], _ = outbox.take()
    found = slips.get("video_1")
    assert (kind, job, values) == ("change", "video_1", {"status": COMPLETED}) and found and found.status == "queued"
    outbox.heard(number, False)
    writer.join()
    assert results == [False]
    outbox.close()
    with pytest.raises(DatabaseError, match="the server is gone"):
        slips.change("video_1", progress=3)


def test_a_family_travels_without_its_models(pipeline: Pipeline) -> None:
    light = pickle.dumps(shell(pipeline.family))
    assert len(light) < 10_000
    checked = Pipeline(pickle.loads(light))
    request = Request(PROMPT, 2, router="reward:tau=0.5")
    assert checked.check(request) == pipeline.check(request)


@pytest.mark.parametrize(
    ("amounts", "places", "gpus"),
    [
        ({}, {}, 0.0),
        ({"target": 0.5, "drafter": 0.25}, {"target": 0, "drafter": 0}, 0.75),
        ({"target": 1.0, "drafter": 0.5, "vae": 0.5}, {"target": 0, "drafter": 1, "vae": 1}, 2.0),
        ({"target": 0.7, "drafter": 0.5, "vae": 0.3}, {"target": 0, "drafter": 1, "vae": 0}, 2.0),
    ],
)
def test_roles_share_gpus_while_they_fit(amounts: dict[str, float], places: dict[str, int], gpus: float) -> None:
    replicas = Replicas(**amounts)
    assert replicas.places == places
    assert replicas.gpus == pytest.approx(gpus)
    devices = replicas.devices
    assert all(devices[role] == f"cuda:{place}" for role, place in places.items())
    others = {device for role, device in devices.items() if role not in places and role != "target"}
    assert others == {""} and devices["target"] == (f"cuda:{places['target']}" if places else "cpu")


def test_amounts_that_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="target=2; a role takes 0 to 1 GPU"):
        Replicas(target=2)
    with pytest.raises(ValueError, match="replicas=0; give at least 1"):
        Replicas(replicas=0)
    with pytest.raises(ValueError, match="gpus=-1; give at least 0"):
        Workers(gpus=-1)
