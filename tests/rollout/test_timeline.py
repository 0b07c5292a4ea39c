"""Timelines: what a file may say, which block a change falls on, what is asked of it, what becomes of the past."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.caches.full import Full
from arvid.caches.policy import Policy
from arvid.caches.store import Store
from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rollout.flow import FlowWalker
from arvid.rollout.judging import Routing
from arvid.rollout.loop import rollout
from arvid.rollout.routers import Target
from arvid.rollout.speculate import Speculator
from arvid.rollout.stage import Clock, Stage
from arvid.rollout.steered import GIVEN, Hands, Steered, statistics
from arvid.rollout.timeline import CUT, RECACHE, Change, Director, Entry, parse, place, read, spread, whole
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.types import Act, Block, Condition, DecoderState, Estimate, Span, View

BLOCK, CHANNELS, SIDE = 2, 4, 4
PLAN = sequential(12, BLOCK, few_step(2))


# ---------------------------------------------------------------- the file


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# a story\n- {at: 0, prompt: a red circle}\n- at: 2.5\n  prompt: a blue square\n  how: soft\n  blocks: 2\n"
    )
    entries = [{"at": 0, "prompt": "a red circle"}, {"at": 2.5, "prompt": "a blue square", "how": "soft", "blocks": 2}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    found = read(tmp_path / "a.yaml")
    assert found == read(tmp_path / "a.json") == parse(entries)
    assert found == (Entry(0, "a red circle"), Entry(2.5, "a blue square", "soft", 2))
    assert found[0].how == "recache"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {at: 0, prompt: a}\n- {at: 4, prompt: b}\n- {at: 2, prompt: c}", "entry 3 of T is at 2 s, the one be"),
        ("- {at: 1, prompt: a}\n- {at: 1, prompt: b}", "entry 2 of T is at 1 s, the one before at 1 s"),
        ("- {at: 1, prompt: a, how: fade}", "entry 1 of T: unknown transition 'fade' at 1 s; known: cut, flush, jump"),
        ("- {at: 1, prompt: ' '}", "entry 1 of T: the prompt at 1 s is empty"),
        ("- {at: -1, prompt: a}", "entry 1 of T: a change at -1 s; it must come at 0 s or later"),
        ("- {at: .nan, prompt: a}", "a change at nan s"),
        ("- {at: soon, prompt: a}", "entry 1 of T: at is 'soon'; expected a number"),
        ("- {at: true, prompt: a}", "at is True; expected a number"),
        ("- {at: 1, prompt: 3}", "prompt is 3; expected text"),
        ("- {at: 1, prompt: a, how: soft, blocks: -1}", "a soft transition takes at least 1 block"),
        ("- {at: 1, prompt: a, how: soft, blocks: 1.5}", "blocks is 1.5; expected a whole number"),
        ("- {at: 1, text: a}", "entry 1 of T has text; known: at, prompt, how, blocks"),
        ("- {prompt: a}", "entry 1 of T lacks at"),
        ("- red", "entry 1 of T is 'red'"),
        ("prompt: a", "T holds no list of entries"),
        ("[]", "T holds no list of entries"),
        ("- {at: 1", "T cannot be read"),
        ("[" * 3000, "T cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line_that_names_the_entry(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"T|story") as caught:
        read(path)
    assert said in str(caught.value).replace(str(path), "T")
    assert "\n" not in str(caught.value)


def test_the_example_is_the_one_of_the_page(project: Path) -> None:
    page = (project / "docs" / "long.md").read_text(encoding="utf-8")
    example = (project / "examples" / "story.yaml").read_text(encoding="utf-8")
    assert example in page
    assert [entry.at for entry in read(project / "examples" / "story.yaml")] == [0, 30, 60, 90]


def test_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no timeline .*none\.yaml"):
        read(tmp_path / "none.yaml")
    (tmp_path / "a.json").write_text("- {at: 1, prompt: a}")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "a.json")


# ---------------------------------------------------------------- the block of a change

SECONDS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)


def placed(*entries: Entry, prompt: str = "a") -> tuple[Change, ...]:
    return place(entries, prompt, PLAN, SECONDS, 3.0)


def test_a_change_is_applied_by_the_first_block_that_begins_at_its_second_or_later() -> None:
    found = placed(Entry(0.2, "b"), Entry(1.0, "c", "cut"), Entry(2.4999, "d", "soft", 2))
    assert [(change.prompt, change.how, change.block, change.frame) for change in found] == [
        ("a", "keep", 0, 0), ("b", "recache", 1, 2), ("c", "cut", 2, 4), ("d", "soft", 5, 10),
    ]  # fmt: skip
    assert placed(Entry(0, "z"), Entry(1, "b"), prompt="")[0].prompt == "z"


@pytest.mark.parametrize(
    ("entries", "prompt", "said"),
    [
        ((Entry(3.0, "b"),), "a", "a change at 3 s lies beyond the end of a video of 3 s"),
        ((Entry(2.7, "b"),), "a", r"a change at 2.7 s comes after the last block began \(2.5 s\)"),
        ((Entry(1.1, "b"), Entry(1.2, "c")), "a", "the change at 1.2 s falls on block 3, as the one before does"),
        ((Entry(0, "b"),), "a", "prompt 'a' and a timeline that begins with 'b'"),
        ((Entry(1, "b"),), " ", "the prompt is empty"),
        ((Entry(0, "a"), Entry(0, "b")), "", "entry 2 of the timeline is at 0 s, the one before at 0 s"),
        ((Entry(2, "b"), Entry(1, "c")), "a", "entry 2 of the timeline is at 1 s, the one before at 2 s; sort them by"),
    ],
)
def test_a_change_without_a_place_is_refused(entries: tuple[Entry, ...], prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        placed(*entries, prompt=prompt)


# ---------------------------------------------------------------- the condition of a block


def embedded(prompt: str) -> Tensor:
    return torch.full((1, 3, 8), float(sum(prompt.encode())))


def at(director: Director, block: int) -> Condition:
    return director.at(Span(BLOCK * block, BLOCK * block + BLOCK))


@pytest.mark.parametrize(
    ("count", "seconds", "length", "expected"),
    [
        (2, (0.0, 0.6, 1.3, 2.1, 2.8), 5.0, (0.0, 2.8)),  # 2.5 s lies nearer to 2.8 than to 2.1
        (2, (0.0, 1.0, 2.0, 3.0), 2.4, (0.0, 1.0)),
        (3, (0.0, 0.6, 1.3), 9.0, (0.0, 0.6, 1.3)),  # nearest would be 1.3 twice
        (3, (0.0, 3.0, 4.0, 5.0), 4.5, (0.0, 3.0, 4.0)),  # nearest would be 3.0 twice
        (1, (0.0, 0.6), 1.0, (0.0,)),
    ],
)
def test_acts_begin_with_the_nearest_move(
    count: int, seconds: tuple[float, ...], length: float, expected: tuple[float, ...]
) -> None:
    entries = spread([Act(str(number), cut=number == 1) for number in range(count)], seconds, length)
    assert tuple(entry.at for entry in entries) == expected
    assert [entry.prompt for entry in entries] == [str(number) for number in range(count)]
    assert [entry.how for entry in entries[1:]] == [CUT, RECACHE][: count - 1]


def test_more_acts_than_moves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tells of 3 acts, the video has room for 2 \(1 s in moves of whole blocks\)"):
        spread(whole("a") * 3, (0.0, 0.6), 1.0)


def test_a_condition_stays_the_same_object_while_nothing_changes() -> None:
    director = Director(placed(Entry(1, "b")), embedded, BLOCK)
    found = [at(director, block) for block in range(6)]
    assert [condition.prompt for condition in found] == ["a", "a", "b", "b", "b", "b"]
    assert all((one is other) == (one.prompt == other.prompt) for one in found for other in found)
    assert [bool(director.begins(BLOCK * block)) for block in range(6)] == [False, False, True, False, False, False]


def test_a_jump_changes_the_text_once() -> None:
    """Who looks for changes by the condition, as the guard does, sees one."""
    director = Director(placed(Entry(1, "b", "jump")), embedded, BLOCK)
    found = [at(director, block) for block in range(5)]
    assert found[0] is found[1] is not found[2]
    assert found[2] is found[3] is found[4]


def test_a_soft_change_is_a_cosine_ramp_that_ends_exactly() -> None:
    director = Director(placed(Entry(0.5, "b", "soft", 3)), embedded, BLOCK)
    old, new = embedded("a")[0, 0, 0].item(), embedded("b")[0, 0, 0].item()
    shares = [(at(director, block).text_BLD[0, 0, 0].item() - old) / (new - old) for block in range(6)]
    assert shares == pytest.approx([0, *((1 - math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3)), 1, 1], abs=1e-5)
    assert torch.equal(at(director, 5).text_BLD, embedded("b"))
    assert at(director, 4) is at(director, 5)


@pytest.mark.parametrize(("angle", "blocks"), [(0, 1), (60, 3), (90, 5), (180, 5)])
def test_a_soft_change_may_last_as_long_as_prompts_are_apart(angle: float, blocks: int) -> None:
    """1 - cos of the angle between the means, as a share of one to five blocks."""
    turned = math.cos(math.radians(angle)), math.sin(math.radians(angle))

    def flat(prompt: str) -> Tensor:
        return torch.tensor([[[1.0, 0.0] if prompt == "a" else [*turned], [0.0, 0.0]]])

    director = Director(placed(Entry(0.5, "b", "soft", 0)), flat, BLOCK)
    asked = Director(placed(Entry(0.5, "b", "soft", blocks)), flat, BLOCK)
    for block in range(8):
        assert torch.equal(at(director, block).text_BLD, at(asked, block).text_BLD)
    assert at(director, blocks + 1) is at(director, blocks + 2)
    assert torch.equal(at(director, blocks + 1).text_BLD, flat("b"))


def test_a_change_that_interrupts_a_soft_one_goes_on_from_where_it_stood() -> None:
    director = Director(placed(Entry(0.5, "b", "soft", 3), Entry(1, "c", "soft", 1)), embedded, BLOCK)
    a, b, c = (embedded(name)[0, 0, 0].item() for name in "abc")
    stood = a + (b - a) * (1 - math.cos(math.pi * 2 / 4)) / 2
    found = [at(director, block).text_BLD[0, 0, 0].item() for block in (1, 2, 3)]
    assert found == pytest.approx([a + (b - a) * (1 - math.cos(math.pi / 4)) / 2, (stood + c) / 2, c], rel=1e-5)


def stood(changes: list[tuple[int, str, int]], block: int) -> Tensor:
    """What a chain of soft changes (block, prompt, blocks) has reached at a block, worked out from its beginning."""
    found, now = embedded("0"), [change for change in changes if change[0] <= block]
    for number, (begin, prompt, blocks) in enumerate(now):
        step = (now[number + 1][0] if number + 1 < len(now) else block) - begin
        weight = 1.0 if step >= blocks else (1 - math.cos(math.pi * (step + 1) / (blocks + 1))) / 2
        found = embedded(prompt) if weight == 1 else torch.lerp(found, embedded(prompt), weight)
    return found


def chain(changes: list[tuple[int, str, int]]) -> tuple[Change, ...]:
    return (
        Change(0, 0, "0", "keep"),
        *(Change(BLOCK * begin, begin, prompt, "soft", blocks, True) for begin, prompt, blocks in changes),
    )


def test_a_chain_of_soft_changes_is_the_same_wherever_it_is_looked_at_first() -> None:
    changes = [(1, "1", 3), (2, "2", 5), (4, "3", 1), (6, "4", 2), (7, "5", 4), (8, "6", 3)]
    for order in ((0, 3, 5, 7, 8, 9, 12), (9, 2, 8, 1, 7, 5, 10, 3), (8, 8, 2, 2)):
        director = Director(chain(changes), embedded, BLOCK)
        for block in order:
            assert torch.equal(at(director, block).text_BLD, stood(changes, block))
    director.script = chain(changes[:2])  # gone back, and asked otherwise
    assert torch.equal(at(director, 8).text_BLD, stood(changes[:2], 8))
    director.script = chain([*changes[:2], (8, "x", 3)])
    assert torch.equal(at(director, 8).text_BLD, stood([*changes[:2], (8, "x", 3)], 8))


def test_a_long_chain_of_soft_changes_costs_a_text_a_block() -> None:
    changes, asked = [(block, str(block), 3) for block in range(1, 1500)], []

    def counted(prompt: str) -> Tensor:
        asked.append(prompt)
        return embedded(prompt)

    late, early = Director(chain(changes), counted, BLOCK), Director(chain(changes), counted, BLOCK)
    assert torch.equal(at(late, 1499).text_BLD, stood(changes, 1499))
    asked.clear()
    for block in range(60):
        at(early, block)
    assert len(asked) == 60


def test_what_is_asked_for_live_overrides_the_timeline_and_leaves_it() -> None:
    director = Director(placed(Entry(1, "b")), embedded, BLOCK)
    director.add(Change(4, 2, "x", "keep", live=True))
    director.add(Change(4, 2, "y", "keep", live=True))
    assert [at(director, block).prompt for block in (1, 2, 3)] == ["a", "y", "y"]
    director.script = tuple(change for change in director.script if not change.live)
    assert at(director, 3).prompt == "b"


# ---------------------------------------------------------------- the past at a boundary


@cache
def model(layers: int) -> CausalWan:
    torch.manual_seed(layers)
    net = CausalWan(WanConfig(24, 48, 2, layers, 8, 3, CHANNELS, CHANNELS, 16)).eval().requires_grad_(False)
    torch.nn.init.normal_(net.head.head.weight, std=0.3)
    return net


class Undecoded:
    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        return z_BTCHW, ()


class Story:
    """A rollout of the target behind given latents, with everything a test may look at."""

    def __init__(
        self, given: Tensor, *entries: Entry, layers: int = 2, policy: Policy | None = None, prompt: str = "a"
    ):
        clock, spec = Clock(), Target()
        self.past = Store(policy or Full(), BLOCK)
        self.passes: list[tuple[int, int, float]] = []
        walker = FlowWalker("target", self._pass, self.past, STEPS["euler"], clock)
        alone = Speculator(spec, walker, None, (1, CHANNELS, SIDE, SIDE), clock)
        director = Director(placed(*entries, prompt=prompt), lambda text: embedded(text) / 100, BLOCK)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.steered = Steered(
            Hands(alone, alone, (walker,)), director, 6, given, lambda *event: self.events.append(event)
        )
        self._layers = layers
        stage, judge = Stage(Undecoded(), clock), Routing(spec, None, clock)
        with torch.no_grad():
            self.blocks: list[Block] = list(rollout(PLAN, self.steered, judge, director, SeededNoise(5), stage))

    def _pass(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        self.passes.append((span.start, span.stop, float(sigma_BT[0, 0])))
        return model(self._layers)(z_BTCHW, sigma_BT, condition, view, span)

    def made(self, block: int) -> Tensor:
        return self.blocks[block].latents_BTCHW


def latents(seed: int, frames: int = 6) -> Tensor:
    return torch.randn(1, frames, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def differing(at: int, frames: int = 6) -> tuple[Tensor, Tensor]:
    """Two clips that differ in one frame."""
    one = latents(1, frames)
    other = one.clone()
    other[:, at] += 1
    return one, other


def test_what_is_given_comes_out_as_it_is_and_is_remembered() -> None:
    one, other = differing(2)
    told = Story(one)
    assert [block.source for block in told.blocks] == [GIVEN] * 3 + ["target"] * 3
    assert torch.equal(torch.cat([block.latents_BTCHW for block in told.blocks[:3]], 1), one)
    assert all(block.passes == {} for block in told.blocks[:3])
    assert not torch.equal(told.made(3), Story(other).made(3))


@pytest.mark.parametrize("how", ["recache", "keep"])
def test_after_a_recache_nothing_remembers_the_prompt_before(how: str) -> None:
    """On fixed latents, what follows a recache is a function of the new prompt alone; keeping keys is not."""
    made = [Story(latents(1), Entry(1.5, "c", how), prompt=prompt).made(3) for prompt in "ab"]
    assert torch.equal(*made) == (how == "recache")


def test_a_recache_under_the_same_prompt_changes_nothing() -> None:
    """The frames on view are run again in one causal pass: with all of them on view that is how they were made."""
    plain, again = Story(latents(1)), Story(latents(1), Entry(2, "a"))
    torch.testing.assert_close(plain.made(5), again.made(5), rtol=1e-4, atol=1e-5)
    assert (2, 8, 0.0) in again.passes, "no more frames than the reach of 6, in one pass"
    assert not torch.equal(plain.made(5), Story(latents(1), Entry(2, "b")).made(5))


def test_a_recache_runs_only_what_is_on_view() -> None:
    told = Story(latents(1), Entry(2, "b"), policy=Window(2))
    assert [entry for entry in told.passes if entry[:2] == (6, 8) and entry[2] == 0] == [(6, 8, 0.0)]
    assert not any(start < 6 < stop for start, stop, level in told.passes if level == 0 and stop > 6)


@pytest.mark.parametrize(("how", "reads"), [("flush", False), ("keep", True)])
def test_after_a_flush_evicted_frames_have_no_say(how: str, reads: bool) -> None:
    """With one layer, keys depend on their own frame alone; so whatever is not kept can be changed without effect."""
    made = [Story(z, Entry(1.5, "b", how), layers=1).made(3) for z in differing(at=3)]
    assert torch.equal(*made) != reads


@pytest.mark.parametrize("kept", [0, 5])
def test_a_flush_keeps_the_first_and_the_last_frame(kept: int) -> None:
    made = [Story(z, Entry(1.5, "b", "flush"), layers=1) for z in differing(at=kept)]
    assert not torch.equal(made[0].made(3), made[1].made(3))
    assert [start for start, _, level in made[0].passes if level == 0 and start < 6] == [0], "and no pass more"


def test_a_cut_begins_a_scene_that_sees_nothing_before_it() -> None:
    one, other = (Story(z, Entry(1.5, "b", "cut")) for z in differing(at=5))
    assert torch.equal(one.made(3), other.made(3))
    assert torch.equal(one.made(5), other.made(5))
    assert one.past.view(Span(12, 14)).frames == tuple(range(6, 10))
    assert [entry for entry in one.passes if entry[0] < 6] == [], "what nobody will read is never written"


def test_a_jump_moves_the_past_away_for_one_block() -> None:
    jumped, kept = (Story(latents(1), Entry(1.5, "b", how)) for how in ("jump", "keep"))
    assert not torch.equal(jumped.made(3), kept.made(3))
    one, other = (Story(z, Entry(1.5, "b", "jump")) for z in differing(at=5))
    assert not torch.equal(one.made(3), other.made(3)), "but it is still there"
    assert (6, 10, 0.0) not in jumped.passes


def test_every_jump_holds_for_its_own_block_however_many_wait() -> None:
    """Three blocks wait when the first is made, two of which jump: each is written as if none had waited."""
    given, entries = latents(1), (Entry(0.5, "b", "jump"), Entry(1, "c", "jump"))
    told, past = Story(given, *entries), Store(Full(), BLOCK)
    director = Director(placed(*entries), lambda text: embedded(text) / 100, BLOCK)
    for start in range(0, 6, BLOCK):
        span = Span(start, start + BLOCK)
        past.cut(frozenset({start} if start else ()))
        z, levels = given[:, start : span.stop], torch.zeros(1, BLOCK)
        with torch.no_grad():
            past.commit(span, model(2)(z, levels, director.at(span), past.view(span), span).memory)
    ours, theirs = told.past.snapshot(), past.snapshot()
    for frame in range(6):
        for pair, expected in zip(ours[frame], theirs[frame], strict=True):
            for one, other in zip(pair, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_every_change_is_receipted_with_the_block_that_applies_it() -> None:
    told = Story(latents(1, 2), Entry(0.4, "b", "keep"), Entry(2, "c", "soft"))
    assert told.events == [
        ("changed", {"block": 1, "prompt": "b", "how": "keep", "live": False}),
        ("changed", {"block": 4, "prompt": "c", "how": "soft", "live": False}),
    ]


def test_orders_are_carried_out_before_the_next_block() -> None:
    given = latents(1)
    told = Story(given)
    with pytest.raises(ValueError, match="unknown order 'dance'; known: target, refresh, anchor"):
        told.steered.order("dance")
    wanted = statistics(latents(9) * 3 + 1)
    told.steered.order("anchor", wanted)
    move = PLAN[-1]
    with torch.no_grad():
        told.steered.propose(move, Condition("a", embedded("a")), SeededNoise(5))
    tail = told.steered.snapshot()[1]
    for _, z in tail:
        torch.testing.assert_close(statistics(z), wanted, rtol=1e-4, atol=1e-4)
