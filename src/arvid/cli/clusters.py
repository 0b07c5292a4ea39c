"""The option `--engine` of verbs that can run on a cluster, and the way there.

Knows: names of engines, what Ray needs to be told by the environment, what to say when it is missing. Does not know:
what runs on a cluster (arvid.serve.cluster).
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from arvid import spec
from arvid.cli.options import Parts, Running
from arvid.serve.cluster.options import Replicas, Workers

if TYPE_CHECKING:
    from arvid.cli.batching import Models
    from arvid.cli.folder import Folder, Told
    from arvid.cli.rows import Row
    from arvid.pipeline import Pipeline
    from arvid.serve.app import Settings
    from arvid.serve.house import House

NEEDS = ("ray", "pyarrow", "aiohttp")
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is reported to anybody, and workers without a GPU keep what the caller set for them."""


Asked = TypeVar("Asked", Workers, Replicas)


@dataclass(frozen=True)
class Local:
    """In this process."""


def workers_of(engine: str) -> Workers | None:
    """The workers that a batch asks for; None when it is made in this process. Raises ValueError."""
    return _found(engine, Workers)


def replicas_of(engine: str) -> Replicas | None:
    """The replicas that a server asks for; None when it runs in one process. Raises ValueError."""
    return _found(engine, Replicas)


def _found(engine: str, kind: type[Asked]) -> Asked | None:
    known: dict[str, type[Any]] = {"local": Local, "ray": kind}
    found = spec.build(engine, known, "engine")
    if not isinstance(found, kind):
        return None
    check_installed()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return found


def check_installed() -> None:
    """Raises ValueError when Ray is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--engine ray needs {', '.join(missing)}; install them with: pip install 'arvid[ray]'")


def spread(workers: Workers, models: Models, folder: Folder, quiet: bool) -> Callable[[Iterable[Row]], Iterator[Told]]:
    """What makes rows on a cluster. Raises ValueError for workers that would not use what they hold, and, once there
    are rows to make, for models that cannot be opened."""
    if workers.gpus and models.device == "cpu":
        raise ValueError(f"gpus={workers.gpus:g} for workers that run on cpu; give --device cuda, or leave gpus out")
    from arvid.cli.batching import NO_MODELS, FarMaker, packed
    from arvid.serve.cluster import data, joining

    def make(rows: Iterable[Row]) -> Iterator[Told]:
        waiting = [packed(row) for row in rows]
        if waiting:
            joining.join(quiet)
        for told in map(json.loads, data.spread(waiting, FarMaker, (models, str(folder.root)), workers)):
            if NO_MODELS in told:
                raise ValueError(told[NO_MODELS])
            yield told

    return make


# ---------------------------------------------------------------- serve


@dataclass(frozen=True)
class Opener:
    """Opens the models of a replica, each role on its device."""

    model: str
    drafter: str
    devices: tuple[tuple[str, str], ...]
    threads: int

    def __call__(self) -> Pipeline:
        """The pipeline. Raises ValueError for missing or damaged files, and a GPU that is not there."""
        from arvid.cli import families
        from arvid.models.placement import Placement, placed
        from arvid.pipeline import Pipeline

        families.set_up(self.threads)
        family = families.open_pipeline(self.model, self.drafter, "cpu").family
        return Pipeline(placed(family, Placement(**dict(self.devices))))


def server_of(
    engine: str, parts: Parts, running: Running, threads: int, quiet: bool
) -> Callable[[Settings], House] | None:
    """What puts a server together whose blocks are made by replicas; None when they are made in its own process. Raises
    ValueError for an engine that does not exist, and for a device that no amount was asked for."""
    replicas = replicas_of(engine)
    if replicas is None:
        return None
    if running.device != "cpu":
        raise ValueError(
            f"--device {running.device} with --engine ray; say how much of a GPU each role needs, like "
            "ray:target=1,drafter=0.5"
        )
    if running != Running() or parts != Parts(parts.model, parts.drafter):
        raise ValueError("with --engine ray a family is named by --model and --drafter alone; leave the others out")
    opener = Opener(absolute(parts.model), absolute(parts.drafter), tuple(replicas.devices.items()), threads)
    return partial(_put_up, replicas, opener, quiet)


def _put_up(replicas: Replicas, opener: Opener, quiet: bool, settings: Settings) -> House:
    from arvid.cli.serve import speed
    from arvid.serve.cluster import joining
    from arvid.serve.cluster.deploying import ServeDeploy
    from arvid.serve.cluster.engine import build

    joining.join(quiet)
    return build(settings, replicas.replicas, ServeDeploy(opener, settings.place, settings.limits, replicas, speed))


def absolute(name: str) -> str:
    """A directory by a name that holds on other machines and in other folders."""
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name
