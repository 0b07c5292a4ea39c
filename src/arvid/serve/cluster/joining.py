"""The way into a cluster.

Knows: Ray's beginning. Does not know: what runs there.
"""

from __future__ import annotations

import logging

import ray


def join(quiet: bool) -> None:
    """Join the cluster that RAY_ADDRESS names, or begin one on this machine, which ends with this process."""
    level = logging.WARNING if quiet else logging.INFO
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=not quiet, logging_level=level)
