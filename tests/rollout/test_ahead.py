"""Blocks drafted ahead: what one pass over several blocks gives is what a pass over each of them gives in turn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvid.caches.full import Full
from arvid.caches.policies import POLICIES
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.pipeline import Pipeline, Request
from arvid.samplers.noise import INITIAL, REFINE, TURN, Antiphase, InTurn, SeededNoise
from arvid.spec import build
from arvid.types import Memory, Span
from rollout.rig import (
    BLOCK,
    BLOCKS,
    CONDITION,
    LISTENING,
    SHAPE,
    STEPS_EACH,
    Run,
    assert_alike,
    autoencoder,
    fresh,
    run,
    same,
    written,
)

AHEAD = 2
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class ByBlock:
    """What a plan of single blocks is given, asked for by a plan of moves that are AHEAD blocks behind the first."""

    def __init__(self) -> None:
        self.inner = SeededNoise(3)

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        number, step = divmod(step, TURN)
        first = 1 + AHEAD * (block - 1) + number if block else 0
        batch, frames, *rest = shape
        parts = [
            self.inner.draw(first + place, step, (batch, min(BLOCK, frames - place * BLOCK), *rest))
            for place in range(-(-frames // BLOCK))
        ]
        return torch.cat(parts, 1)


def ahead(text: str, count: int = AHEAD) -> str:
    return f"{text}{',' if ':' in text else ':'}ahead={count}"


def assert_close(ours: Run, theirs: Run) -> None:
    torch.testing.assert_close(ours.latents, theirs.latents, **CLOSE)
    torch.testing.assert_close(ours.frames, theirs.frames, **CLOSE)


@pytest.mark.parametrize("riding", [False, True])
@pytest.mark.parametrize("text", ["target", "draft", "first", "first:first_steps=2", "target:steps=2"])
@pytest.mark.parametrize("step", ["renoise", "euler"])
def test_blocks_made_from_noise_are_the_same_however_many_make_a_move(text: str, step: str, riding: bool) -> None:
    together = Run(ahead(text), step, noise=ByBlock(), riding=riding)
    assert_close(together, Run(text, step, riding=riding))
    assert len(together.blocks) == 1 + -(-(BLOCKS - 1) // AHEAD)


def mended(past: Policy, level: float, frames: int) -> Tensor:
    """Refinement with `commit=last`, by hand: drafts by passes of the drafter over single blocks behind its own drafts
    of the same move, then a pass of the target over each block alone, behind the keys of such passes."""
    noise, models = SeededNoise(3), run("target")
    target, drafter = models.target.inner, models.drafter.inner
    keys = Store(past, BLOCK)
    assert not keys.snapshot()
    first = Run("target", "euler", frames=BLOCK, past=past)
    film = [first.latents]

    def flow(model: object, x: Tensor, level: float, store: Store, span: Span) -> tuple[Tensor, Memory]:
        found = model(x, torch.full(x.shape[:2], level), CONDITION, store.view(span), span)  # type: ignore[operator]
        return found.flow_BTCHW, found.memory

    def known(store: Store, blocks: list[Tensor]) -> None:
        """The drafter's past of finished blocks, written one after the other."""
        for number, block in enumerate(blocks):
            span = Span(number * BLOCK, number * BLOCK + block.shape[1])
            store.commit(span, flow(drafter, block, 0.0, store, span)[1])

    walked = Run("target:commit=last", "euler", frames=BLOCK, past=past)
    keys.restore(walked.pasts[0].snapshot())
    for index, start in enumerate(range(BLOCK, frames, AHEAD * BLOCK), 1):
        stop = min(start + AHEAD * BLOCK, frames)
        theirs = Store(past, BLOCK)
        known(theirs, [z for whole in film for z in whole.split(BLOCK, 1)])
        drafts = []
        for number, at in enumerate(range(start, stop, BLOCK)):
            span = Span(at, min(at + BLOCK, stop))
            x = InTurn(noise, number).draw(index, INITIAL, (1, len(span), *SHAPE[1:]))
            drafts.append(x - flow(drafter, x, 1.0, theirs, span)[0])
            theirs.commit(span, flow(drafter, drafts[-1], 0.0, theirs, span)[1])
        eps = noise.draw(index, REFINE, (1, stop - start, *SHAPE[1:]))
        rough = torch.cat(drafts, 1).lerp(eps, level)
        made = []
        for at in range(start, stop, BLOCK):
            span = Span(at, min(at + BLOCK, stop))
            x = rough[:, at - start : span.stop - start]
            v, memory = flow(target, x, level, keys, span)
            keys.commit(span, memory)
            made.append(x - level * v)
        film.append(torch.cat(made, 1))
    return torch.cat(film, 1)


@pytest.mark.parametrize("past", [Full(), Window(2 * BLOCK)])
@pytest.mark.parametrize("riding", [False, True])
@torch.no_grad()
def test_one_pass_over_a_move_is_a_pass_over_each_of_its_blocks(past: Policy, riding: bool) -> None:
    text = ahead("refine:levels=0.7,draft_steps=1,commit=last")
    ours = Run(text, "euler", frames=11, past=past, riding=riding)
    torch.testing.assert_close(ours.latents, mended(past, 0.7, 11), **CLOSE)
    assert ours.passes("target")[1:] == [1] * (len(ours.blocks) - 1)
    assert ours.passes("drafter")[1:] == [len(range(0, len(b.move.span), BLOCK)) for b in ours.blocks[1:]]


@pytest.mark.parametrize("text", ["refine:levels=0.8", "first", "reward:tau=inf", "reward:tau=0.5", "target"])
def test_a_draft_leaves_no_trace_in_any_past(text: str) -> None:
    """What is remembered is what writing the finished video, block by block, leaves."""
    ours = Run(ahead(text), "euler")
    with torch.no_grad():
        for walker, past, model in zip(ours.walkers, ours.pasts, (ours.target, ours.drafter), strict=True):
            walker.catch_up(ours.noise)
            fresh = Store(Full(), BLOCK)
            for start in range(0, ours.latents.shape[1], BLOCK):
                z = ours.latents[:, start : start + BLOCK]
                span = Span(start, start + z.shape[1])
                found = model.inner(z, torch.zeros(z.shape[:2]), CONDITION, fresh.view(span), span)
                fresh.commit(span, found.memory)
            whole = Span(ours.latents.shape[1], ours.latents.shape[1] + 1)
            assert past.view(whole).frames == fresh.view(whole).frames
            for ours_piece, other in zip(past.snapshot().values(), fresh.snapshot().values(), strict=True):
                for pair, expected in zip(ours_piece, other, strict=True):
                    torch.testing.assert_close(pair, expected, **CLOSE)


@pytest.mark.parametrize("past", LISTENING)
@pytest.mark.parametrize("router", ["target", "first", "reward:tau=inf"])
def test_a_past_that_listens_has_a_clean_pass_over_what_was_made_in_turn(router: str, past: str) -> None:
    """It has heard a walk over each block of a move, and none over the move; of the target's first block it has."""
    policy = build(past, POLICIES, "past")
    ours = Run(ahead(f"{router}{',' if ':' in router else ':'}commit=last"), "euler", past=policy)
    made = [block.latents_BTCHW for block in ours.blocks]
    ours.remembered()
    if router == "first":
        theirs, model = written(ours.drafter.inner, made[:1], fresh(past)), ours.drafter.inner
    else:
        theirs, model = Run("target:commit=last", "euler", BLOCK, past=policy).pasts[0], ours.target.inner
    assert_alike(ours.pasts[router == "first"].snapshot(), written(model, made[1:], theirs, BLOCK).snapshot())


@pytest.mark.parametrize(("router", "maker"), [("target", "target"), ("draft", "drafter")])
def test_a_past_of_whole_frames_keeps_what_was_made_in_turn(router: str, maker: str) -> None:
    """No pass but those over the blocks of a move that others of it go on from."""
    ours = Run(ahead(f"{router}:commit=last"), "euler")
    assert ours.passes(f"{maker}_commit") == [-(-len(block.move.span) // BLOCK) - 1 for block in ours.blocks]


def test_a_move_is_judged_and_mended_as_one() -> None:
    accepted, redone = Run(ahead("reward:tau=-inf")), Run(ahead("reward:tau=inf"))
    assert same(accepted, Run(ahead("first")))
    assert same(redone, Run(ahead("target")))
    assert redone.passes("target") == [STEPS_EACH] + [AHEAD * STEPS_EACH] * ((BLOCKS - 1) // AHEAD)
    frames = autoencoder().decode(redone.latents)[0].shape[1]
    assert sum(block.frames_BTCHW.shape[1] for block in redone.blocks) == frames
    scored = [block.verdict.frames_scored for block in redone.blocks]
    assert scored == [0] + [block.frames_BTCHW.shape[1] for block in redone.blocks[1:]]


def test_a_repair_resumes_every_block_where_its_draft_stood() -> None:
    assert same(Run(ahead("reward:tau=inf,repair=0")), Run(ahead("target")))
    kept = Run(ahead(f"reward:tau=inf,repair={STEPS_EACH}"))
    torch.testing.assert_close(kept.latents, Run(ahead("first")).latents)


def test_noise_of_later_blocks_is_of_its_kind() -> None:
    shape = (1, 6, 2, 2, 2)
    leaning, plain = InTurn(Antiphase(SeededNoise(4), -0.9), 2), InTurn(SeededNoise(4), 2)
    assert torch.equal(leaning.draw(3, 1, shape), plain.draw(3, 1, shape))
    assert not torch.equal(leaning.draw(3, 0, shape), plain.draw(3, 0, shape))
    assert not torch.equal(plain.draw(3, 0, shape), SeededNoise(4).draw(3, 0, shape))


@pytest.mark.parametrize("count", [0, 17])
def test_impossible_numbers_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"ahead={count} blocks drafted before the target looks; give 1 to 16"):
        run(f"refine:ahead={count}")


# ---------------------------------------------------------------- the embedded family


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.embedded()


ROUTER = "refine:levels=0.7,draft_steps=1,commit=last,ahead=2"
ASKED = Request("a large red circle moves to the left on a white background", seconds=3.0, seed=4, router=ROUTER)


def test_a_judge_of_single_blocks_is_not_asked_about_several(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="drafts 2 blocks ahead and asks a judge that sees one"):
        pipeline.check(Request("a red circle", router="reward:tau=0.5,by=marking,ahead=2"))


def test_a_session_goes_back_and_on_between_moves(pipeline: Pipeline) -> None:
    whole = [block.latents_BTCHW for block in pipeline.session(ASKED)]
    assert [z.shape[1] for z in whole] == [3, 6, 4]
    session = pipeline.session(ASKED)
    next(session), next(session)
    resumed = pipeline.resume(session.snapshot())
    for other in (session, resumed):
        assert torch.equal(next(other).latents_BTCHW, whole[2])
    session.rewind(1)
    assert torch.equal(next(session).latents_BTCHW, whole[1])


def test_a_change_waits_for_the_next_move(pipeline: Pipeline) -> None:
    session = pipeline.session(ASKED)
    next(session)
    receipt = session.prompt("a blue square stays still on a black background", "cut")
    assert receipt.block == 1
    assert [block.source for block in session] == ["target", "refined"]
