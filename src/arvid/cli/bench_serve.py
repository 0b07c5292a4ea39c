"""`arvid bench serve`: many viewers and jobs on a server, and what they got.

Knows: arguments, files, how a server of its own is started and ended. Does not know: how viewers behave
(cli/serve_load.py), what the numbers mean (cli/serve_numbers.py).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arvid.cli import options
from arvid.cli.places import writable, write

if TYPE_CHECKING:
    from arvid.cli.serve_load import Api, Wanted

PROGRAM = "from arvid.cli.main import main; main()"
PATIENCE, FAREWELL = 600.0, 60.0
"""Seconds that a server may take to load its model and to warm up, and to end."""
LONGER = 300.0
"""A live session may last so much longer than the load."""
ROUNDS, SECONDS = (5, 20.0), (3, 4.0)
"""Rounds and seconds of video for the overhead, and the same when it has to be quick."""


def serve(
    url: Annotated[
        str, typer.Option(metavar="URL", help="A server that runs. Default: one of its own.", show_default=False)
    ] = "",
    sessions: Annotated[int, typer.Option(min=0, help="Live sessions at the same time.")] = 8,
    jobs: Annotated[int, typer.Option(min=0, help="Unfinished jobs at the same time.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="How long the load lasts.")] = 60.0,
    job_seconds: Annotated[float, typer.Option(min=0.1, help="Length of the video of a job.")] = 2.0,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between two controls of a viewer.")] = 5.0,
    router: options.Router = "",
    overhead: Annotated[
        bool, typer.Option("--overhead/--no-overhead", help="Also compare with the bare engine; not with --url.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="2 sessions and 4 jobs for 10 seconds.")] = False,
    model: options.Model = "embedded",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    key: Annotated[str, typer.Option(envvar="ARVID_KEY", metavar="KEY", help="A key of the server at --url.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page here.")] = None,
) -> None:
    """Measure a server: frames received, first frames, missed deadlines, receipts, jobs, memory over time.

    Viewers play at the video's own speed and say something now and then; finished jobs are downloaded, deleted and
    replaced. Ends with code 1 when anything went wrong or a job was lost.
    """
    for path in filter(None, (json_file, html_file)):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file in it")
        writable(path.absolute().parent)
    if url and not url.startswith(("http://", "https://")):
        raise ValueError(f"--url {url!r}; give the address of a server, like http://127.0.0.1:8000")
    from arvid.cli.report import head, write_report
    from arvid.cli.serve import check_installed

    check_installed()
    from arvid.cli import serve_numbers
    from arvid.cli.serve_load import Api, Wanted

    wanted = Wanted(sessions, jobs, seconds, every, job_seconds, router)
    if quick:
        wanted = Wanted(2, 4, 10.0, 2.0, 1.0, router)
    extra = {"overhead": _overhead(model, device, threads, router, quick)} if overhead and not url else {}
    if url:
        report = measured(Api(url, key), wanted)
    else:
        with own_server(model, device, threads, wanted) as address:
            report = measured(Api(address), wanted)
    report = {**head("serve", device if not url else "cpu"), **report, **extra}
    for name, value in serve_numbers.told(report):
        typer.echo(f"{name:<28}{value}")
    if json_file:
        write_report(report, json_file)
    if html_file:
        write(html_file, serve_numbers.rendered(report))
    if report["totals"]["errors"] or report["totals"]["jobs"]["lost"]:
        raise typer.Exit(1)


def measured(api: Api, wanted: Wanted) -> dict[str, Any]:
    """The report of a load on a server. Raises ValueError when there is none."""
    from dataclasses import asdict, replace

    from arvid.cli import serve_load, serve_numbers

    [model, *_] = json.loads(api.read("/v1/models"))["data"]
    wanted = replace(wanted, scores=bool(model["arvid"]["reward"]))
    ran = asyncio.run(serve_load.run(api, wanted))
    found = serve_numbers.summed(ran, wanted, model["arvid"]["fps"])
    return {"model": model["id"], "config": {"url": api.url, **asdict(wanted)}, **found}


def _overhead(model: str, device: str, threads: int, router: str, quick: bool) -> dict[str, Any]:
    from arvid.cli import families
    from arvid.cli.serve_overhead import measure

    families.set_up(threads)
    rounds, seconds = SECONDS if quick else ROUNDS
    return measure(families.open_pipeline(model, "", device), seconds, rounds, router)


@contextmanager
def own_server(model: str, device: str, threads: int, wanted: Wanted) -> Iterator[str]:
    """The address of a server in a process of its own, with data of its own. Raises ValueError when it does not
    start."""
    longest = f"{wanted.seconds + LONGER:g}"
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+", encoding="utf-8") as log:
        command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", "--data", f"{folder}/data", "--model", model]
        command += ["--device", device, "--threads", str(threads), "--max-live-seconds", longest]
        command += ["--max-seconds", f"{max(120.0, wanted.job_seconds):g}", "--sessions", str(max(1, wanted.sessions))]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            yield _address(running, Path(log.name))
        finally:
            running.terminate()
            try:
                running.wait(FAREWELL)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _address(running: subprocess.Popen[bytes], log: Path) -> str:
    """Where a server listens, as soon as it is ready."""
    end, address = time.monotonic() + PATIENCE, ""
    while time.monotonic() < end:
        told = log.read_text(encoding="utf-8")
        if running.poll() is not None:
            raise ValueError(f"the server did not start: {(told.splitlines() or ['it said nothing'])[-1]}")
        for line in told.splitlines():
            said = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if said.get("event") == "listening":
                address = str(said["address"])
            if said.get("event") == "ready" and address:
                return address
        time.sleep(0.1)
    raise ValueError(f"the server was not ready after {PATIENCE:g} s; see arvid doctor")
