"""Sessions: what a seed of a branch leaves behind, what a video may begin with, what listeners are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from arvid.pipeline import Pipeline, Request, load
from arvid.rollout.timeline import Entry
from arvid.types import Listener
from oracles import toy_family

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(load(toy_family.write(tmp_path_factory.mktemp("families") / "toy")))


@pytest.mark.parametrize("block", [0, 1])
def test_going_back_to_where_a_branch_began_undoes_it(toy: Pipeline, block: int) -> None:
    session = toy.session(Request(PROMPT, 2, 3, "target"))
    whole = [made.latents_BTCHW for made in session]
    session.branch(block, seed=7)
    branched = [made.latents_BTCHW for made in session]
    assert not torch.equal(branched[0], whole[block])
    session.rewind(block)
    assert all(torch.equal(made.latents_BTCHW, z) for made, z in zip(session, whole[block:], strict=True))


def test_a_branch_may_begin_where_one_began(toy: Pipeline) -> None:
    session, other = (toy.session(Request(PROMPT, 2, 3, "target")) for _ in range(2))
    for seed in (7, 8):
        next(session)
        session.branch(0, seed=seed)
    next(other)
    other.branch(0, seed=8)
    assert all(torch.equal(a.latents_BTCHW, b.latents_BTCHW) for a, b in zip(session, other, strict=True))


def test_a_jump_that_was_taken_back_leaves_no_trace(toy: Pipeline) -> None:
    """Also not for the target, which has not written the block that jumped."""
    request = Request(PROMPT, 3, 3, "stride:k=4")
    session = toy.session(request)
    next(session)
    session.prompt("a star", "jump")
    next(session), next(session)
    session.rewind(1)
    rest = [made.latents_BTCHW for made in session]
    assert all(torch.equal(z, made.latents_BTCHW) for z, made in zip(rest, list(toy.stream(request))[1:], strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_what_is_given_is_gone_on_with_in_single_precision(toy: Pipeline, dtype: torch.dtype) -> None:
    given = torch.randn(1, 3, *toy.latent_shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    request = Request(PROMPT, 1, 3, "first")
    ours, theirs = list(toy.session(request, given=given)), list(toy.session(request, given=given.float()))
    assert {made.latents_BTCHW.dtype for made in ours} == {torch.float32}
    assert all(torch.equal(a.latents_BTCHW, b.latents_BTCHW) for a, b in zip(ours, theirs, strict=True))


def test_listeners_are_told_what_their_protocol_says(toy: Pipeline) -> None:
    told: dict[str, set[str]] = {}

    class Hears:
        def on(self, event: str, payload: dict[str, Any]) -> None:
            told.setdefault(event, set()).update(payload)

    request = Request(PROMPT, 2, 3, "first", timeline=(Entry(1, "a star"),), guard="act:colour=0.0001")
    list(toy.stream(request, (Hears(),)))
    numbers = {"colour", "sharpness", "motion", "seam"}
    assert {*told} == {"begun", "changed", "guard", "rejected", "done"}
    for line in (Listener.on.__doc__ or "").split("- ")[1:]:
        event, said = line.split(":", 1)[0].split(" ")[0], line.split(":", 1)[1].split(".")[0]
        names = {name.strip(" \n") for name in said.replace(", and the numbers by name", "").split(",")}
        assert names == told.pop(event) - numbers
    assert not told
