"""What a client may ask of one block: how many passes, how long a past, and no files of the server.

Knows: options that name files, what options cost. Does not know: what else a request has to be (`Pipeline.check`), who
asks. It reads specs as text first: building one may already look for the file that it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Packing(Protocol):
    """A past that keeps packs of tokens besides whole frames."""

    @property
    def packs(self) -> int:
        """Packs on view."""
        ...

    @property
    def capacity(self) -> int:
        """Packs that are kept; 0: twice those on view."""
        ...

    @property
    def side(self) -> int:
        """A pack has one token for each square of so many by so many of a frame."""
        ...


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
    router, plan = pipeline.check(request, given)
    card = pipeline.family.card
    own = card.steps if isinstance(card.steps, int) else len(card.steps.timesteps)
    if request.router not in ("", card.router) and (found := passes(router, own)) > work.passes * own:
        raise ValueError(
            f"router {request.router!r} may take {found} passes until a block comes out; at most {work.passes * own:g} "
            "on this server"
        )
    most = work.past * card.trained_frames
    if request.past not in ("", card.past):
        held = _held(pipeline, request, router, plan[-1].span.stop, own)
        if not held <= most:
            raise ValueError(
                f"memory {request.past!r} may hold {held:g} latent frames; at most {most:g} on this server"
            )
    return router, plan


def passes(router: Spec, own: int) -> int:
    """The most passes over one block each, by either model, between two blocks that come out, where a family makes one
    in `own`: whatever a guard or a cut has the models do, less the passes that only write a past. A pass over several
    blocks counts as one over each."""
    walk = router.steps or own
    opening = router.first_steps or walk
    if isinstance(router, Draft):  # the drafter makes all blocks, those that open a scene too
        walk, opening = router.draft_steps or walk, router.draft_steps or opening
    looked = min(router.first_look or opening, opening)
    rivals = 0 if router.check is None else int(router.check.rival)  # the check itself is the first pass of `refine`
    mended = (router.draft_steps or walk) + rivals + (len(router.refine) or walk)
    alone = isinstance(router, (Draft, Target))
    # A cut opens a scene in the middle of a move, and a guard has the target walk where a router would only mend: both
    # are made block by block. Only what stands alone in its move is chosen among several.
    each = max(opening, walk, 0 if alone else mended)
    return max(opening + (router.first_best - 1) * looked, router.ahead * each)


def _held(pipeline: Pipeline, request: Request, router: Spec, frames: int, own: int) -> float:
    """Latent frames that the past a request names may hold for a model, of a video of so many and before its last
    move: the numbers of all options together, those that were left out too, which is no less for any of them; as often
    as a walk has passes where each noise level has a past of its own. Packs and patches count as if their side divided
    the grid of tokens."""
    policy = pipeline.policy(request, router)
    if request.past.partition(":")[0] in UNBOUNDED:
        return frames
    numbers = {name: value for name, value in vars(policy).items() if isinstance(value, (int, float))}
    if isinstance(policy, Packing):
        numbers["capacity"] = -(-(policy.capacity or 2 * policy.packs) // policy.side**2)
    # By way of text, because there a whole number that no float can hold is infinite, and not an error.
    held = sum(abs(float(str(value))) for name, value in numbers.items() if name not in NOT_COUNTED)
    walk = router.steps or own
    levels = max(router.first_steps, walk, router.draft_steps, len(router.refine)) if policy.per_level else 1
    return levels * held


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of a spec's options."""
    for part in text.partition(":")[2].split(","):
        name, _, value = part.partition("=")
        yield name, value
