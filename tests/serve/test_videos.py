"""The Videos API: OpenAI's own client against it, what comes out against the pipeline, errors in one shape."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load as load_tensors
from torch import equal

from arvid.pipeline import Pipeline, Request
from arvid.serve.limits import Allowance, Limits
from arvid.serve.making import RAW, SAMPLED, VIDEO
from oracles import films
from serve import running
from serve.running import OTHER, PROMPT, Running, ask, frames_of, wait_for

SMALL = {"prompt": PROMPT, "seconds": "1", "size": "64x64"}


def made(server: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A completed video that was asked for."""
    status, _, answer = ask(server.address, path, body)
    assert status == 200, answer
    found = wait_for(server.address, json.loads(answer)["id"])
    assert found["status"] == "completed", found
    return found


def file_of(server: Running, video: str, variant: str = "video") -> bytes:
    status, _, data = ask(server.address, f"/v1/videos/{video}/content?variant={variant}")
    assert status == 200, data
    return data


def latents_of(server: Running, video: str) -> Any:
    return load_tensors(file_of(server, video, "latents"))["latents"]


@pytest.fixture(scope="module")
def first(server: Running) -> dict[str, Any]:
    """A finished video of two seconds."""
    return made(server, "/v1/videos", {**SMALL, "seconds": 2, "arvid": {"seed": 3, "router": "stride:k=2"}})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_client_of_openai(server: Running, pipeline: Pipeline) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    videos, extra = client.videos, {"arvid": {"seed": 5, "router": "target"}}
    film = videos.create_and_poll(
        prompt=PROMPT, seconds="1", size="64x64", model="embedded-toy", extra_body=extra, poll_interval_ms=100
    )
    assert (film.status, film.progress, film.seconds, film.size, film.object) == (
        "completed",
        100,
        "1",
        "64x64",
        "video",
    )
    wanted = pipeline.generate(Request(PROMPT, 1.0, 5, "target"))
    data = videos.download_content(film.id).read()
    assert frames_of(data).shape == (wanted.frames_BTCHW.shape[1], 64, 64, 3)
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        with Image.open(io.BytesIO(videos.download_content(film.id, variant=variant).read())) as picture:
            assert picture.format == kind
    remixed = videos.remix(film.id, prompt=OTHER)
    assert remixed.remixed_from_video_id == film.id
    assert videos.poll(remixed.id, poll_interval_ms=100).status == "completed"
    # This client takes files only, though the API takes ids too: they go around it.
    longer = videos.extend(prompt=OTHER, seconds="1", video=openai.omit, extra_body={"video": {"id": film.id}})
    assert videos.poll(longer.id, poll_interval_ms=100).seconds == "2"
    edited = videos.edit(prompt=OTHER, video=openai.omit, extra_body={"video": {"id": longer.id}})
    by_file = videos.extend(prompt=OTHER, seconds="1", video=("film.mp4", data, "video/mp4"))
    for video in (edited, by_file):
        assert videos.poll(video.id, poll_interval_ms=100).status == "completed"
    assert [found.id for found in videos.list(limit=2)][:5] == [
        video.id for video in (by_file, edited, longer, remixed, film)
    ]
    assert videos.retrieve(film.id).prompt == PROMPT
    assert videos.delete(film.id).deleted
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(film.id)
    with pytest.raises(openai.BadRequestError) as refused:
        videos.create(prompt=PROMPT, seconds="4000")
    assert refused.value.param == "seconds"
    with pytest.raises(openai.NotFoundError) as unknown:
        videos.get_character("one")
    assert unknown.value.code == "not_supported"
    with pytest.raises(openai.NotFoundError):
        videos.create_character(name="one", video=("film.mp4", data, "video/mp4"))


def test_a_job_makes_what_the_pipeline_makes(server: Running, pipeline: Pipeline, first: dict[str, Any]) -> None:
    wanted = pipeline.generate(Request(PROMPT, 2.0, 3, "stride:k=2"))
    assert equal(latents_of(server, first["id"]), wanted.latents_BTCHW)
    report = json.loads(file_of(server, first["id"], "report"))
    assert [row["source"] for row in report["blocks"]] == [block.source for block in wanted.blocks]
    assert first["arvid"]["made"]["blocks"] == len(wanted.blocks)
    assert first["arvid"]["seed"] == 3


def test_an_extension_begins_with_the_whole_of_the_first(server: Running, first: dict[str, Any]) -> None:
    longer = made(server, "/v1/videos/extensions", {"prompt": OTHER, "seconds": 1, "video": {"id": first["id"]}})
    before, after = latents_of(server, first["id"]), latents_of(server, longer["id"])
    assert longer["seconds"] == "3" and after.shape[1] == before.shape[1] + 4
    assert equal(after[:, : before.shape[1]], before)
    short, long = (frames_of(file_of(server, video)) for video in (first["id"], longer["id"]))
    assert len(long) == len(short) + 16
    assert np.abs(long[: len(short)].astype(int) - short).mean() < 2


def test_an_edit_keeps_what_is_before_the_block(server: Running, first: dict[str, Any]) -> None:
    body = {"prompt": OTHER, "video": {"id": first["id"]}}
    edited = made(server, "/v1/videos/edits", body)
    by_second = made(server, "/v1/videos/edits", {**body, "arvid": {"from_second": 0.6}})
    before, after = latents_of(server, first["id"]), latents_of(server, edited["id"])
    assert after.shape == before.shape
    assert equal(after[:, :3], before[:, :3]) and not equal(after[:, 3:], before[:, 3:])
    assert equal(latents_of(server, by_second["id"]), after)
    assert edited["seconds"] == first["seconds"] and edited["arvid"]["kind"] == "edit"
    status, _, answer = ask(server.address, "/v1/videos/edits", {**body, "arvid": {"from_block": 3}})
    assert status == 400 and "a video of 3 blocks" in json.loads(answer)["error"]["message"]


def test_a_remix_is_the_same_seed_with_another_prompt(
    server: Running, pipeline: Pipeline, first: dict[str, Any]
) -> None:
    remixed = made(server, f"/v1/videos/{first['id']}/remix", {"prompt": OTHER})
    wanted = pipeline.generate(Request(OTHER, 2.0, 3, "stride:k=2"))
    assert equal(latents_of(server, remixed["id"]), wanted.latents_BTCHW)


def test_a_picture_to_begin_with(server: Running, pipeline: Pipeline) -> None:
    out = io.BytesIO()
    Image.new("RGB", (128, 128), (200, 30, 30)).save(out, format="PNG")
    form = multipart({"prompt": PROMPT, "seconds": "1", "arvid": '{"seed": 1}'}, "input_reference", out.getvalue())
    status, _, answer = ask(server.address, "/v1/videos", form[0], headers={"content-type": form[1]})
    assert status == 200, answer
    video = wait_for(server.address, json.loads(answer)["id"])
    assert video["status"] == "completed" and video["arvid"]["seed"] == 1
    picture = np.full((1, 64, 64, 3), (200, 30, 30), dtype=np.uint8)
    assert equal(latents_of(server, video["id"])[:, :1], pipeline.encode(picture))


def multipart(fields: dict[str, str], name: str, data: bytes) -> tuple[bytes, str]:
    """A form with one file, written by hand."""
    parts = [
        f'--xyz\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
    ]
    head = f'--xyz\r\ncontent-disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
    return "".join([*parts, head]).encode() + data + b"\r\n--xyz--\r\n", "multipart/form-data; boundary=xyz"


WRONG: list[tuple[str, Any, str]] = [
    ("/v1/videos", {}, "prompt: Field required"),
    ("/v1/videos", {"prompt": " "}, "prompt"),
    ("/v1/videos", {"prompt": "a\x00b"}, "no text"),
    ("/v1/videos", b'{"prompt": "\\ud800"}', "prompt"),
    ("/v1/videos", {"prompt": "x" * 5000}, "at most 4000"),
    ("/v1/videos", {"prompt": PROMPT, "seconds": 0}, "more than 0"),
    ("/v1/videos", {"prompt": PROMPT, "seconds": 121}, "at most 120"),
    ("/v1/videos", b'{"prompt": "x", "seconds": NaN}', "seconds: "),
    ("/v1/videos", {"prompt": PROMPT, "size": "65x64"}, "64x64 or a whole multiple"),
    ("/v1/videos", {"prompt": PROMPT, "size": "6400x6400"}, "at most 2048"),
    ("/v1/videos", {"prompt": PROMPT, "model": "sora-2"}, "loaded: embedded-toy"),
    ("/v1/videos", {"prompt": PROMPT, "fun": 1}, "fun: Extra inputs"),
    ("/v1/videos", {"prompt": PROMPT, "arvid": {"router": "nobody"}}, "unknown router 'nobody'"),
    ("/v1/videos", {"prompt": PROMPT, "arvid": {"router": "first", "tau": 0.5}}, "leave out arvid.router"),
    ("/v1/videos", {"prompt": PROMPT, "arvid": {"seed": -1}}, "arvid.seed"),
    ("/v1/videos", {"prompt": PROMPT, "arvid": {"timeline": [{"at": 99, "prompt": "x"}]}}, "beyond the end"),
    ("/v1/videos", {"prompt": PROMPT, "input_reference": {"image_url": "http://10.0.0.1/x.png"}}, "nothing is fetched"),
    ("/v1/videos", {"prompt": PROMPT, "input_reference": {"image_url": "data:image/png;base64,AAAA"}}, "no picture"),
    ("/v1/videos", b"[" * 20000, "the body"),
    ("/v1/videos", b"{", "no JSON"),
    ("/v1/videos/extensions", {"prompt": PROMPT, "seconds": 1}, "no video"),
]


@pytest.mark.parametrize(("path", "body", "told"), WRONG)
def test_what_cannot_be_made_is_refused_in_one_shape(server: Running, path: str, body: Any, told: str) -> None:
    status, headers, answer = ask(server.address, path, body)
    assert status == 400, answer
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert told in error["message"]
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/videos/video_" + "0" * 32, 404),
        ("GET", "/v1/videos/..%2f..%2fserver/content", 404),
        ("GET", "/v1/videos?limit=0", 400),
        ("GET", "/v1/videos?after=x", 404),
        ("DELETE", "/v1/videos/x", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/videos", 405),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/v1/live/live_1", 404),
    ],
)
def test_what_is_not_there(server: Running, method: str, path: str, status: int) -> None:
    found, _, answer = ask(server.address, path, method=method)
    assert found == status
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_a_clip_that_is_a_list_of_addresses_is_not_opened(server: Running) -> None:
    form, kind = multipart({"prompt": PROMPT, "seconds": "1"}, "video", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    status, _, answer = ask(server.address, "/v1/videos/extensions", form, headers={"content-type": kind})
    assert status == 400 and "cannot be read" in json.loads(answer)["error"]["message"]


def test_a_clip_is_judged_by_the_shape_it_is_shown_in(server: Running, tmp_path: Path) -> None:
    path = films.write(tmp_path / "a.mp4", films.moving(frames=3, size=(64, 32)))
    data = films.turned(path, films.TURNS["clockwise"]).read_bytes()
    form, kind = multipart({"prompt": PROMPT, "seconds": "1"}, "video", data)
    status, _, answer = ask(server.address, "/v1/videos/extensions", form, headers={"content-type": kind})
    assert status == 400 and "32x64 pixels; cut it to the shape of 64x64" in json.loads(answer)["error"]["message"]


def test_a_repeated_request_is_made_once(server: Running) -> None:
    mark = {"idempotency-key": "same"}
    ids = {json.loads(ask(server.address, "/v1/videos", SMALL, headers=mark)[2])["id"] for _ in range(3)}
    assert len(ids) == 1
    wait_for(server.address, ids.pop())


def test_a_film_is_decoded_again_without_sampling(
    server: Running, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = frames_of(file_of(server, first["id"]))
    broken = [True]

    def no_disk(reel: Any, path: Path) -> None:
        if broken:
            raise MemoryError("planted")
        raise ValueError("a part is missing")

    monkeypatch.setattr("arvid.video.Reel.join", no_disk)
    body = {**SMALL, "seconds": 2, "arvid": {"seed": 3, "router": "stride:k=2"}}
    failed = wait_for(server.address, json.loads(ask(server.address, "/v1/videos", body)[2])["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    folder = server.house.place.video(failed["id"])
    assert (folder / SAMPLED).is_file() and not (folder / VIDEO).exists()
    assert ask(server.address, f"/v1/videos/{failed['id']}/content")[0] == 400
    broken.clear()
    monkeypatch.setattr("arvid.pipeline.Pipeline.session", lambda *more, **others: pytest.fail("sampled again"))
    assert ask(server.address, f"/v1/videos/{failed['id']}/retry", method="POST")[0] == 200
    assert wait_for(server.address, failed["id"])["status"] == "completed"
    again = frames_of(file_of(server, failed["id"]))
    assert again.shape == whole.shape and np.abs(again.astype(int) - whole).mean() < 2
    assert not (folder / RAW).exists() and not list(folder.glob("part-*"))
    assert ask(server.address, f"/v1/videos/{failed['id']}/retry", method="POST")[0] == 400


def test_keys_see_their_own_only_and_limits_hold(toy: Path, tmp_path: Path) -> None:
    from arvid.serve.keys import make_key

    server = running.begin(toy, tmp_path, locked=True, limits=Limits(save_seconds=0, upload=100_000, queue=3))
    try:
        keys = [make_key(server.house.store, name, Allowance(jobs=2)) for name in ("ann", "bob")]
        ann, bob = ({"authorization": f"Bearer {key}"} for key in keys)
        for headers in ({}, {"authorization": "Bearer arvid-x"}, {"authorization": "Basic x"}):
            status, _, answer = ask(server.address, "/v1/videos", SMALL, headers=headers)
            assert (status, json.loads(answer)["error"]["code"]) == (401, "invalid_api_key")
        film = json.loads(ask(server.address, "/v1/videos", SMALL, headers=ann)[2])["id"]
        wait_for(server.address, film, ann)
        for method, path, body in (
            ("GET", f"/v1/videos/{film}", None),
            ("GET", f"/v1/videos/{film}/content", None),
            ("DELETE", f"/v1/videos/{film}", None),
            ("POST", f"/v1/videos/{film}/remix", {"prompt": OTHER}),
            ("POST", f"/v1/videos/{film}/retry", None),
            ("POST", "/v1/videos/extensions", {"prompt": OTHER, "seconds": 1, "video": {"id": film}}),
            ("POST", "/v1/videos/edits", {"prompt": OTHER, "video": {"id": film}}),
            ("GET", f"/v1/videos?after={film}", None),
        ):
            assert ask(server.address, path, body, method, bob)[0] == 404, (method, path)
        assert json.loads(ask(server.address, "/v1/videos", headers=bob)[2])["data"] == []
        assert len(json.loads(ask(server.address, "/v1/videos", headers=ann)[2])["data"]) == 1
        long = {**SMALL, "seconds": 60}
        assert [ask(server.address, "/v1/videos", long, headers=ann)[0] for _ in range(3)] == [200, 200, 429]
        assert [ask(server.address, "/v1/videos", long, headers=bob)[0] for _ in range(2)] == [200, 429]
        large = {**SMALL, "prompt": "x" * 200_000}
        status, _, answer = ask(server.address, "/v1/videos", large, headers=bob)
        assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large")
        for headers in (ann, bob):
            for video in json.loads(ask(server.address, "/v1/videos", headers=headers)[2])["data"]:
                assert ask(server.address, f"/v1/videos/{video['id']}", method="DELETE", headers=headers)[0] == 200
    finally:
        server.stop()
    assert [path.name for path in (tmp_path / "videos").iterdir()] == []
