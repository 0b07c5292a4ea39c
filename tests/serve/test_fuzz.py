"""The whole described API under requests nobody would send: no answer is a fault of ours, all are as described."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arvid.serve.limits import Limits
from serve import running
from serve.running import PROMPT, ask, wait_for

PROGRAM = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
OPTIONS = (
    "--checks", CHECKS, "--max-examples", "25", "--seed", "1", "--no-shrink", "--request-timeout", "60",
    "--suppress-health-check", "all",
)  # fmt: skip
"""Another seed asks for other things. The health checks are about the speed of the machine that makes requests up."""
EVERYTHING = ("--phases", "coverage,fuzzing,stateful")
ONE_VIDEO = ("--phases", "coverage,fuzzing", "--include-path-regex", "video_id", "--exclude-method", "DELETE")


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="schemathesis is not installed; pip install 'arvid[dev]'")
@pytest.mark.parametrize("options", [EVERYTHING, ONE_VIDEO], ids=["everything", "one-video"])
def test_no_request_makes_the_server_fail(toy: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    server = running.begin(toy, tmp_path / "data", limits=Limits(seconds=2, queue=20))
    try:
        body = {"prompt": PROMPT, "seconds": 1, "size": "64x64"}
        video = json.loads(ask(server.address, "/v1/videos", body)[2])["id"]
        wait_for(server.address, video)
        chosen = f'[parameters]\n"path.video_id" = "{video}"\n' if options == ONE_VIDEO else ""
        (tmp_path / "schemathesis.toml").write_text(chosen, encoding="utf-8")
        ended = subprocess.run(
            [str(PROGRAM), "--config-file", "schemathesis.toml", "run", f"{server.address}/openapi.json", *OPTIONS,
             *options],
            cwd=tmp_path, capture_output=True, text=True, timeout=3600, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
        counted = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
        assert counted and counted[1] == counted[2] and int(counted[1]) > 100, ended.stdout
        numbers = ask(server.address, "/metrics")[2].decode().splitlines()
        assert [line for line in numbers if 'status="500"' in line] == []
        assert ask(server.address, "/readyz")[0] == 200
        assert ask(server.address, f"/v1/videos/{video}")[0] == 200 or options == EVERYTHING
    finally:
        server.stop()
