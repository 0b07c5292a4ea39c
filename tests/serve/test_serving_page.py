"""docs/serving.md as a reader would follow it: its curl and its Python run against a server as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serve.running import Running, ask, frames_of
from test_docs import ROOT

WRITTEN = "http://127.0.0.1:8000"
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks_of(kind: str, word: str, address: str) -> list[str]:
    """Blocks of code with a word in them, for a server at an address."""
    found = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    places = ((WRITTEN, address), (WRITTEN.replace("http", "ws"), address.replace("http", "ws")))
    for old, new in places:
        found = [text.replace(old, new) for text in found]
    return [text for text in found if word in text]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_commands_of_curl(server: Running, tmp_path: Path) -> None:
    [text] = blocks_of("bash", "curl", server.address)
    ended = subprocess.run(["bash", "-e", "-c", text], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(frames_of((tmp_path / "ball.mp4").read_bytes())) == 33
    assert (tmp_path / "ball.webp").read_bytes()[8:12] == b"WEBP"
    assert b'"remixed_from_video_id":"video_' in ended.stdout and b'"deleted":true' in ended.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_python_of_the_client(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    [text] = blocks_of("python", "openai", server.address)
    exec(compile(text, "serving.md", "exec"), {})
    assert len(frames_of((tmp_path / "ball.mp4").read_bytes())) == 33
    assert capsys.readouterr().out.count("video_") >= 2


def test_the_python_of_a_live_session(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [text] = blocks_of("python", "websockets", server.address)
    exec(compile(text, "serving.md", "exec"), {})
    told = capsys.readouterr().out.splitlines()
    assert len(frames_of((tmp_path / "live.mp4").read_bytes())) == 65
    assert sum("target" in line or "accepted" in line or "repaired" in line for line in told) == 6
    assert any(re.fullmatch(r"prompt shows from block [2-5]", line) for line in told)


def test_every_address_in_the_page_is_there(server: Running) -> None:
    described = json.loads(ask(server.address, "/openapi.json")[2])["paths"]
    known = {re.sub(r"\{\w+\}", "ID", path) for path in described} | {"/openapi.json", "/v1/live"}
    named = set(re.findall(r"`(?:(?:GET|POST|DELETE) )?(/[a-z0-9/.]+(?:ID)?[a-z/]*)`", PAGE))
    assert named <= known, "a path that is not served"
    assert {path for path in known - named if "characters" not in path} <= {"/v1/live/ID"}, "a path without a word"
