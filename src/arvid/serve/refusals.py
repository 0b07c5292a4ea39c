"""What a client is told when it does not get what it asked for: one shape for every error.

Knows: the error object of the OpenAI API, its kinds and codes. Does not know: routes, jobs, why something is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID, FORBIDDEN, LIMITED, OURS = (
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error",
)  # fmt: skip
"""Kinds of errors (`type` in the object)."""


class Refused(Exception):
    """An answer other than the one asked for. `param` names the part of the request that is wrong, `after` the seconds
    after which it may be worth trying again."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind, self.code, self.param, self.after = (
            message, status, kind, code, param, after,
        )  # fmt: skip

    @property
    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        return body_of(self.message, self.kind, self.code, self.param)

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that go with it."""
        return {} if self.after is None else {"retry-after": str(max(1, round(self.after)))}


def body_of(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def missing(name: str) -> Refused:
    """A thing that does not exist, or is somebody else's: nobody learns which of the two."""
    return Refused(f"no {name} of yours with this id; list yours first", 404, code="not_found")
