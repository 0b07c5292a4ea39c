"""Knobs: a threshold or a frame rate instead of a whole router.

Knows: which options all routers share, how they are kept when the rule changes. Does not know: sessions, clients.
"""

from __future__ import annotations

import sys
from dataclasses import fields

from arvid.rollout.specs import Spec

COMMON = tuple(field.name for field in fields(Spec))
"""Options that mean the same in every router that scores."""
SCORED = ("by", "aggregate")


def with_tau(router: str, tau: float) -> str:
    """A router that keeps drafts of a score of at least `tau`; what is mended is mended as by `router`."""
    return _joined("reward", {"tau": f"{tau:g}", **_kept(router, (*COMMON, *SCORED))})


def with_fps(router: str, fps: float) -> str:
    """A router that mends as many drafts as `fps` frames a second leave time for."""
    return _joined("hold", {"fps": f"{fps:g}", **_kept(router, (*COMMON, "by"))})


def shared(router: str, sessions: int) -> str:
    """What a router that holds a frame rate has to hold where so many sessions take turns on one machine: it counts
    its own time only, of which it gets that part. Any other router as it is."""
    name, _, rest = router.partition(":")
    if name != "hold" or sessions < 2:
        return router
    options = dict(part.split("=", 1) for part in rest.split(","))
    fps = min(float(options["fps"]) * sessions, sys.float_info.max)  # a router's frame rate is finite
    return _joined(name, {**options, "fps": f"{fps:g}"})


def _kept(router: str, names: tuple[str, ...]) -> dict[str, str]:
    name, _, rest = router.partition(":")
    found = dict(part.split("=", 1) for part in rest.split(",") if "=" in part)
    if name == "refine":
        found["refine"] = found.pop("levels", "0.8")
    if name.startswith("verify"):
        found = {}  # its level is that of the pass that judges
    return {key: value for key, value in found.items() if key in names}


def _joined(name: str, options: dict[str, str]) -> str:
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in options.items())
