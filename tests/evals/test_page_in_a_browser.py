"""The pages in a real browser, without a network: they draw, they play, and nothing goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from arvid.evals import compare, gallery, registry, run
from arvid.evals.clips import opened, videos_in
from oracles import films

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--no-first-run",
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")  # fmt: skip
PATIENCE = 120
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
COMMITTED = sorted(path.name for path in RESULTS.glob("*.html"))
PROBE = """<script>
window.problems = [];
window.addEventListener("error", (event) => window.problems.push(event.message || "a part did not load"), true);
window.addEventListener("load", async () => {
  const videos = [...document.querySelectorAll("video")];
  document.querySelectorAll(".case button").forEach((button) => button.click());
  const begin = Date.now();
  while (videos.some((video) => video.currentTime === 0) && Date.now() - begin < 30000)
    await new Promise((go) => setTimeout(go, 50));
  const told = {
    problems: window.problems, played: videos.map((video) => video.currentTime > 0 && !video.error),
    wide: videos.map((video) => video.videoWidth),
    drawn: [...document.querySelectorAll("svg")].map((svg) => svg.clientWidth),
    pictures: [...document.images].map((picture) => picture.naturalWidth),
    asked: performance.getEntriesByType("resource").map((one) => one.name.slice(0, 5)).filter((one) => one !== "data:"),
  };
  fetch("ADDRESS", { method: "POST", mode: "no-cors", body: JSON.stringify(told) });
});
</script></head>"""


class Ear(HTTPServer):
    """Hears what the page tells."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Mouth)
        self.told: dict[str, Any] = {}
        self.heard = threading.Event()


class Mouth(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Ear)
        self.server.told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.heard.set()

    def log_message(self, format: str, *args: Any) -> None:
        return None


def page(folder: Path, names: tuple[str, ...]) -> str:
    """Evaluations of two films each, on one page."""
    reports = []
    for name in names:
        for seed in range(2):
            film = films.moving(seed, 40)
            films.write(folder / name / f"{seed}.mp4", film if name == "clean" else films.seamed(film))
        metrics = [kind() for kind in registry.BASIC]
        clips = [opened(path) for path in videos_in([folder / name])]
        rows = [run.row_of(outcome) for outcome in run.evaluate(clips, metrics)]
        reports.append({
            "kind": "eval", "name": name, "clips": rows, "protocol": run.protocol(metrics), "failures": [], "notes": {},
            "totals": run.totals(rows, metrics), "speed": None, "machine": {}, "command": "", "date": "",
        })  # fmt: skip
    return gallery.render(reports, names, compare.compare(reports, names), lambda row: Path(row["path"]))


def told_by(text: str, folder: Path) -> dict[str, Any]:
    """What a page tells of itself once it is loaded and all of its players play."""
    assert BROWSER is not None
    with Ear() as ear:
        threading.Thread(target=ear.serve_forever, daemon=True).start()
        file = folder / "page.html"
        file.write_text(text.replace("</head>", PROBE.replace("ADDRESS", f"http://127.0.0.1:{ear.server_port}/")))
        browser = subprocess.Popen(
            [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", file.as_uri()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            heard = ear.heard.wait(PATIENCE)
        finally:
            browser.terminate()
            browser.wait()
            ear.shutdown()
    assert heard, f"the page told nothing within {PATIENCE} s"
    return ear.told


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
@pytest.mark.parametrize("names", [("clean",), ("clean", "seams")])
def test_a_page_works_in_chromium(tmp_path: Path, names: tuple[str, ...]) -> None:
    told = told_by(page(tmp_path, names), tmp_path)
    assert told["problems"] == [] and told["asked"] == []
    assert len(told["played"]) == 2 * len(names) and all(told["played"])
    assert all(wide > 0 for part in ("wide", "drawn", "pictures") for wide in told[part])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_page_works_in_chromium(tmp_path: Path, name: str) -> None:
    told = told_by((RESULTS / name).read_text(encoding="utf-8"), tmp_path)
    assert told["problems"] == [] and told["asked"] == [] and told["drawn"]
    assert all(told["played"]) and all(wide > 0 for part in ("wide", "drawn", "pictures") for wide in told[part])
