"""Replicas as deployments of Ray Serve.

Knows: applications, actors' resources, handles. Does not know: what a replica does.

Every replica is an application of its own with one actor, so that a handle leads to one replica and to no other: Ray
Serve's own routing, by load or by a hash of the session, moves a session to another replica when replicas come and go,
and there its past is not.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ray import serve

from arvid.pipeline import Pipeline
from arvid.serve.cluster.options import Replicas
from arvid.serve.cluster.relay import PATIENCE, Event
from arvid.serve.cluster.replica import Replica
from arvid.serve.limits import Limits
from arvid.serve.making import Speed, untimed
from arvid.serve.place import Place

ONGOING = 1000
"""Questions that a replica answers at the same time."""
GRACE_SECONDS = 5.0
"""How long a replica that is removed may take for what it is asked at that moment."""


class ServeHandle:
    """A replica behind a handle of Ray Serve (see `arvid.serve.cluster.lane.Handle`)."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def ask(self, what: str, *given: Any, patience: float | None = PATIENCE) -> Any:
        """Call a method and wait for what it gives."""
        return getattr(self._handle, what).remote(*given).result(timeout_s=patience)

    def tell(self, what: str, *given: Any) -> None:
        """Call a method and wait for nothing."""
        getattr(self._handle, what).remote(*given)

    def watch(self) -> Iterator[list[Event]]:
        """What the replica tells."""
        yield from self._handle.options(stream=True).watch.remote()


class ServeDeploy:
    """Replicas of one model (see `arvid.serve.cluster.lane.Deploy`). Their names begin with that of the server's place,
    so that a server that begins again removes those that another left, and none is used twice: handles remember that an
    application is gone."""

    def __init__(
        self, open_pipeline: Callable[[], Pipeline], place: Place, limits: Limits, replicas: Replicas,
        speed: Speed = untimed,
    ) -> None:  # fmt: skip
        self._given = (open_pipeline, str(place.root), limits, speed)
        self._name = f"arvid-{place.name[:12]}"
        self._options = actor_options(replicas)
        self._lock = threading.Lock()
        serve.start(proxy_location="Disabled")
        self._delete(f"{self._name}-")

    def begin(self, number: int) -> ServeHandle:
        """Put one up. It may take until there is room; what is asked waits until then."""
        with self._lock:
            deployment = serve.deployment(
                Replica, name="replica", num_replicas=1, max_ongoing_requests=ONGOING,
                ray_actor_options=self._options, graceful_shutdown_timeout_s=GRACE_SECONDS,
                graceful_shutdown_wait_loop_s=0.5,
            )  # fmt: skip
            name = f"{self._name}-{number}-{secrets.token_hex(4)}"
            target = serve.RunTarget(deployment.bind(*self._given), name=name, route_prefix=None)
            [handle] = serve.run_many([target], wait_for_applications_running=False)
        return ServeHandle(handle)

    def end(self, number: int) -> None:
        """Remove one, and come back when it is gone."""
        self._delete(f"{self._name}-{number}-")

    def _delete(self, begins: str) -> None:
        for name in list(serve.status().applications):
            if name.startswith(begins):
                serve.delete(name)


def actor_options(replicas: Replicas) -> dict[str, Any]:
    """What Ray is asked to hold for a replica."""
    kind = {"accelerator_type": replicas.accelerator} if replicas.accelerator else {}
    return {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus, **kind}
