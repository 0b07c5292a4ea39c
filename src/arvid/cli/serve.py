"""`arvid serve`: an API for jobs, live sessions, and a page to direct from. `arvid keys`: who may use it.

Knows: arguments, the environment, where logs go. Does not know: what a server is made of (arvid.serve).
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import math
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arvid.cli import options

if TYPE_CHECKING:
    from arvid.pipeline import Family, Request
    from arvid.serve.app import Settings
    from arvid.serve.house import House
    from arvid.serve.limits import Limits
    from arvid.serve.store import Store

NEEDS = ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "websockets", "multipart")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Where jobs and their files are kept.")]
Database = Annotated[
    str,
    typer.Option(
        "--database",
        metavar="URL",
        envvar="ARVID_DATABASE",
        help="Another database, like postgresql+psycopg://user@host/name. Default: SQLite in --data.",
        show_default=False,
        show_envvar=True,
    ),
]

SILENT_MS = 60_000
"""How long the other end of a connection may take nothing of what waits for it. Closing it alone would wait for ever:
what is unsent goes first."""

app = typer.Typer(help="Keys of the server: make, list and remove.", no_args_is_help=True)


@dataclass(frozen=True)
class Most:
    """How much a server does at most."""

    seconds: Annotated[float, typer.Option("--max-seconds", help="The longest video of a job.")] = 120.0
    live: Annotated[float, typer.Option("--max-live-seconds", help="The longest live session.")] = 1200.0
    sessions: Annotated[int, typer.Option("--sessions", min=1, help="Live sessions at the same time.")] = 32
    passes: Annotated[
        float, typer.Option("--max-passes", help="Passes until a block comes out, in times the family's own.")
    ] = 4.0
    past: Annotated[
        float, typer.Option("--max-past", help="Frames of the past of a block, in times the family's training length.")
    ] = 4.0

    def limits(self) -> Limits:
        """As the server has them. Raises ValueError for numbers that nothing could be below."""
        from arvid.serve.limits import Limits, Work

        for option, value, wanted in (
            ("--max-seconds", self.seconds, "seconds"), ("--max-live-seconds", self.live, "seconds"),
            ("--max-passes", self.passes, "times"), ("--max-past", self.past, "times"),
        ):  # fmt: skip
            if not 0 < value < math.inf:
                raise ValueError(f"{option} {value:g}; give a number of {wanted} above 0")
        return Limits(self.seconds, self.live, block=Work(passes=self.passes, past=self.past), sessions=self.sessions)


@options.grouped
def serve(
    host: Annotated[str, typer.Option(help="The address it listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    data: Data = Path("arvid-data"),
    database: Database = "",
    threads: options.Threads = 0,
    origin: Annotated[
        list[str] | None, typer.Option("--origin", metavar="URL", help="A page of another host that may use it.")
    ] = None,
    open_door: Annotated[bool, typer.Option("--open", help="Need no key even where others reach it.")] = False,
    engine: Annotated[
        str,
        typer.Option("--engine", metavar="SPEC", help="Who makes blocks: local, ray, or ray:replicas=4,target=1."),
    ] = "local",
    quiet: options.Quiet = False,
    *,
    most: Most,
    parts: options.Parts,
    running: options.Running,
) -> None:
    """Serve a family: a Videos API at /v1, live sessions, and a page at /.

    On this machine alone (127.0.0.1) no key is needed until there is one. Ctrl-C or SIGTERM ends it after the block at
    hand; jobs go on where they were when it is started again.
    """
    check_installed()
    from arvid.cli import clusters, families
    from arvid.serve.app import Settings
    from arvid.serve.place import Place

    far = clusters.server_of(engine, parts, running, threads, quiet)
    set_up_logs(logging.WARNING if quiet else logging.INFO)
    limits, card = most.limits(), families.card_of(parts)
    private = is_private(host)
    locked = has_keys(data, database) and not open_door
    if not (private or locked or open_door):
        raise ValueError(f"others reach {host}, and there is no key; make one (arvid keys add NAME), or give --open")
    families.set_up(threads)
    place = Place(data)
    settings = Settings(
        partial(families.opened, parts, running), place, database, locked, limits,
        origins=tuple(origin or ()), hosts=(*LOOPBACK, host) if private else (),
        models=tuple(dict.fromkeys((parts.model, card.name))),
        drafters=tuple(dict.fromkeys((parts.drafter, "own"))) if parts.drafter else ("own",),
    )  # fmt: skip
    place.take()
    try:
        with listening(host, port) as listens:
            run_here(settings, listens, far)
    finally:
        place.leave()


def listening(host: str, port: int) -> socket.socket:
    """A socket of the server; port 0 takes a free one. Raises ValueError when that cannot be."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listens = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ValueError(f"cannot listen on {host} port {port} ({error.strerror}); name another of them") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; connections have it from here
        listens.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)
    return listens


def run_here(settings: Settings, listens: socket.socket, far: Callable[[Settings], House] | None = None) -> None:
    """Serve from this process until a signal ends it; `far` puts a server together whose blocks are made elsewhere.
    Raises what kept its engine from going on."""
    from arvid.serve.app import Server, build
    from arvid.serve.engine import Engine
    from arvid.serve.logs import say

    house = far(settings) if far else build(settings, partial(Engine, settings.open_pipeline, speed=speed))
    host, port = listens.getsockname()[:2]
    say("listening", address=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    try:
        Server(house, host, port).run([listens])
    finally:
        house.engine.stop()
    if house.engine.failure is not None:
        raise house.engine.failure


def speed(request: Request, family: Family, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The timing record of a job (docs/evaluation.md): that of every other command."""
    from arvid.cli.report import speed_of

    return speed_of(request, family.card, rows, str(family.device))


def is_private(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_installed() -> None:
    """Raises ValueError when a library of the server is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the server needs {', '.join(missing)}; install them with: pip install 'arvid[serve]'")


def set_up_logs(level: int) -> None:
    """Structured logs to stderr."""
    from arvid.serve.logs import Lines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("arvid.serve", "uvicorn"):
        logging.getLogger(name).setLevel(level)


# ---------------------------------------------------------------- keys


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    data: Data = Path("arvid-data"),
    database: Database = "",
    requests: Annotated[int, typer.Option(min=0, help="Requests a minute; 0: as many as come.")] = 600,
    jobs: Annotated[int, typer.Option(min=0, help="Unfinished jobs at the same time.")] = 32,
    sessions: Annotated[int, typer.Option(min=0, help="Live sessions at the same time.")] = 4,
) -> None:
    """Make a key and print it. It is shown once: only a hash of it is kept."""
    check_installed()
    from arvid.serve.keys import make_key
    from arvid.serve.limits import Allowance

    with _store(data, database) as store:
        typer.echo(make_key(store, name, Allowance(requests, jobs, sessions)))


@app.command("list")
def listed(data: Data = Path("arvid-data"), database: Database = "") -> None:
    """List keys: whose they are and what they may do."""
    check_installed()
    with _kept(data, database) as store:
        keys = store.all_keys()
        for key in keys:
            limits = f"{key.requests} requests a minute, {key.jobs} jobs, {key.sessions} live sessions"
            typer.echo(f"{key.name}  {key.begins}...  {limits}")
    if not keys:
        typer.echo("no keys; arvid keys add NAME makes one", err=True)


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    data: Data = Path("arvid-data"),
    database: Database = "",
) -> None:
    """Remove a key. Its jobs stay."""
    check_installed()
    with _kept(data, database) as store:
        if not store.remove_key(name):
            raise ValueError(f"no key named {name!r}; arvid keys list shows them")


def has_keys(data: Path, database: str) -> bool:
    """Whether anybody has a key. Raises ValueError when the database cannot be used."""
    if not database and not data.exists():
        return False
    with _store(data, database) as store:
        return bool(store.all_keys())


def _kept(data: Path, database: str) -> AbstractContextManager[Store]:
    """The store that is there. Raises ValueError when there is none: looking makes nothing."""
    if not database and not data.is_dir():
        raise ValueError(f"no data of a server in {data}; name the folder of arvid serve with --data")
    return _store(data, database)


def _store(data: Path, database: str) -> AbstractContextManager[Store]:
    from arvid.serve.place import Place
    from arvid.serve.store import Store

    return closing(Store(database or Place(data).database))
