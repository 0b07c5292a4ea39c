"""What a client may ask of one block: how many passes, how long a past, and no files of the server.

Knows: options that name files, what options cost. Does not know: what else a request has to be (`Pipeline.check`), who
asks. It reads specs as text, and first: building one may already look for the file that it names.
"""

from __future__ import annotations

from collections.abc import Iterator

from arvid.pipeline import Pipeline, Request
from arvid.rollout.routers import Draft, Target
from arvid.rollout.specs import Spec
from arvid.serve.limits import Work
from arvid.types import Plan

FILES = frozenset({"weights", "profile", "reader"})
"""Options of specs that name a file or a folder."""
UNBOUNDED = frozenset({"full"})
"""Pasts that grow with the video."""
NOT_COUNTED = frozenset({"seed"})
"""Numbers of a past that say nothing of its size."""


def check(pipeline: Pipeline, request: Request, work: Work, given: int = 0) -> tuple[Spec, Plan]:
    """The router and the plan of a request, behind `given` latent frames. Raises ValueError for one that names files,
    whose blocks may take more than `work`, or that cannot be met."""
    for what, text in (
        ("router", request.router), ("memory", request.past), ("positions", request.positions),
        ("guard", request.guard), ("noise", request.noise),
    ):  # fmt: skip
        for name, value in _options(text):
            if name in FILES:
                raise ValueError(f"{what}: {name}={value!r} names a file, which no client may do here; leave it out")
    card = pipeline.family.card
    held = _held(request.past, given + pipeline.latent_frames(request.seconds, given))
    most = work.past * card.trained_frames
    if request.past not in ("", card.past) and not held <= most:
        raise ValueError(f"memory {request.past!r} may hold {held:g} latent frames; at most {most:g} on this server")
    router, plan = pipeline.check(request, given)
    own = card.steps if isinstance(card.steps, int) else len(card.steps.timesteps)
    if request.router not in ("", card.router) and (found := passes(router, own)) > work.passes * own:
        raise ValueError(
            f"router {request.router!r} may take {found} passes until a block comes out; at most {work.passes * own:g} "
            "on this server"
        )
    return router, plan


def passes(router: Spec, own: int) -> int:
    """The most passes over one block each, by either model, between two blocks that come out, where a family makes one
    in `own`. A pass over several blocks counts as one over each."""
    walk = router.steps or own
    opening = max(router.first_steps or walk, router.draft_steps)
    looked = min(router.first_look or opening, opening)
    drafted = 0 if isinstance(router, Target) else router.draft_steps or walk
    rivals = 0 if router.check is None else int(router.check.rival)  # the check itself is the first pass of `refine`
    mended = 0 if isinstance(router, Draft) else len(router.refine) or walk
    return max(opening + (router.first_best - 1) * looked, router.ahead * (drafted + rivals + mended))


def _held(past: str, frames: int) -> float:
    """Latent frames that a past may hold of a video of so many: the numbers of its options together, which is no less
    for any of them."""
    if past.partition(":")[0] in UNBOUNDED:
        return frames
    held = 0.0
    for name, value in _options(past):
        try:
            held += 0 if name in NOT_COUNTED else abs(float(value))
        except ValueError:
            continue  # a word, or an error that whoever builds the spec tells better
    return held


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of a spec's options."""
    for part in text.partition(":")[2].split(","):
        name, _, value = part.partition("=")
        yield name, value
