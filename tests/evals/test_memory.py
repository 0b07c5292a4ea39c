"""The benchmark of the past: its table against the pasts themselves, its marks on films whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from arvid.caches.policies import POLICIES, remember
from arvid.caches.positions import POSITIONS
from arvid.evals import memory, memory_page, memory_rows
from arvid.evals import memory_scenes as scenes
from arvid.evals.memory import Cell, Film, Shape
from arvid.evals.signals import Seams
from arvid.spec import build
from arvid.types import Span
from arvid.worlds import captions, shapes
from arvid.worlds.grammar import parse
from oracles.asking import BLOCK, GRID, advance, asks
from oracles.asking import memory as pairs
from oracles.tiny_rollout import roll

SHAPE = Shape(block=3, trained=21, fps=16.0)
BUDGETS = (6, 9, 12, 16)
BOUNDED = [policy for policy in memory.RULES if policy != "full"]


# ---------------------------------------------------------------- the table


def test_no_policy_is_left_out() -> None:
    assert set(memory.RULES) == set(POLICIES)
    assert {name for name, rule in memory.RULES.items() if rule.control} == {"full", "window", "random"}


def in_sight(policy: str, budget: int) -> Iterator[torch.Tensor]:
    """Frames' worth of tokens that each head of a layer sees, layer by layer, once the past has long been full."""
    cell = memory.cell(policy, budget, memory.OWN, 21)
    past = remember(build(cell.past, POLICIES, "past"), BLOCK, build(cell.positions, POSITIONS, "positions"))
    advance(past, 0, 40)
    view = past.view(Span(120, 123))
    each = GRID[0] * GRID[1]
    for layer, ask in enumerate(asks(1, pairs(120))):
        seen = view.read(layer, ask)
        assert seen is not None
        heads = seen.keys.shape[2]
        looking = torch.ones(heads, seen.keys.shape[1]) if seen.bias is None else seen.bias[:, 0].isfinite().float()
        yield looking.expand(heads, -1).sum(1) / each


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("policy", BOUNDED)
def test_every_head_of_every_layer_sees_the_budget_and_no_more(policy: str, budget: int) -> None:
    """Counted by layers that are not turned."""
    for tokens in in_sight(policy, budget):
        assert tokens.max() <= budget
        assert tokens.min() >= budget - 1.01, "packs come three frames at a time, segments a frame's worth"


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("policy", [policy for policy in memory.RULES if policy != "neighbour"])
def test_until_it_drops_something_a_policy_is_the_full_past(policy: str, budget: int) -> None:
    """What the table says about when that is, on a tiny model (`neighbour` has another past at every level; its laws
    are in tests/caches/test_content.py)."""
    cell = memory.cell(policy, budget, memory.OWN, 21)

    def film(past: str) -> Film:
        where = build(cell.positions, POSITIONS, "positions")
        z = roll(remember(build(past, POLICIES, "past"), BLOCK, where), 7)  # type: ignore[arg-type]
        return Film(np.zeros((1, 1, 1, 3), np.uint8), z[0].numpy(), (0,), (0.0,), (0,))

    gap = memory.largest_difference(film(cell.past), film(cell.reference), cell, SHAPE)
    assert gap is not None and gap < 1e-4


def test_a_budget_makes_the_spec_that_the_table_says() -> None:
    assert memory.cell("sink", 9, "own", 21).past == "sink:frames=9,sink=3"
    assert memory.cell("deep", 16, "own", 21).past == "deep:frames=16,sink=10,recent=4"
    assert memory.cell("headwise", 9, "own", 21).past == "headwise:frames=9,sink=1,recent=7"
    assert memory.cell("full", 9, "own", 21) == Cell("full", "absolute", 0, "full", "target", 21, "full")
    with_weights = memory.cell("pack", 9, "decay", 21, {"weights": "w.safetensors"})
    assert with_weights.past == "pack:frames=9,sink=3,recent=3,weights=w.safetensors"
    assert (with_weights.policy, with_weights.positions) == ("pack+weights", "decay")
    with pytest.raises(ValueError, match="unknown policy 'lru'; known: bank, "):
        memory.cell("lru", 9, "own", 21)
    with pytest.raises(ValueError, match="a budget of 3 latent frames; every policy needs at least 4"):
        memory.cell("sink", 3, "own", 21)


def test_blocks_are_remembered_at_a_level_where_the_target_may_be_told_one() -> None:
    noised = memory.cell("sink", 9, "own", 21, level=0.4)
    assert (noised.router, noised.level) == ("target:level=0.4", 0.4)
    assert noised.key != memory.cell("sink", 9, "own", 21).key
    adopted = memory.cell("neighbour", 9, "own", 21)
    assert memory.cell("neighbour", 9, "own", 21, level=0.4) == adopted, "its keys are those of the last pass"
    grid = memory.cells(("sink", "neighbour"), (9,), ("own",), 21, levels=(0.0, 0.4))
    assert [cell.level for cell in grid if cell.policy == "sink"] == [0.0, 0.4]
    assert len(grid) == 3


def test_the_grid_is_every_policy_at_every_budget_under_all_positions_once() -> None:
    found = memory.cells(("full", "sink", "window"), (6, 9), ("own", "all"), 21)
    assert len(found) == len(set(found)) == 5 + 2 * 5 + 2 * 6, "full has no budget; own positions are among all"
    schemes = {"absolute", "rephase", "relative:limit=21", "flex:trained=21", "decay"}
    for policy in ("full", "sink", "window"):
        cycle = {"cyclic:period=33"} if policy == "window" else set()
        assert {cell.positions for cell in found if cell.policy == policy} == schemes | cycle


def test_the_whole_grid_can_be_run() -> None:
    for cell in memory.cells(tuple(memory.RULES), BUDGETS, ("own", "all"), 21):
        remember(build(cell.past, POLICIES, "past"), BLOCK, build(cell.positions, POSITIONS, "positions"))


@pytest.mark.parametrize("budget", [4, 5, 7, 20, 30])
def test_other_budgets_are_possible_too(budget: int) -> None:
    for policy in BOUNDED:
        for tokens in in_sight(policy, budget):
            assert tokens.min() > 0 and tokens.max() <= budget


# ---------------------------------------------------------------- marks


def truth(prompt: str, lengths: int, seed: int = 0) -> Film:
    """A film as the world has it."""
    frames = shapes.render(prompt, seed, SHAPE.frames(lengths))
    starts = (0, *range(9, len(frames), 12))
    blocks = len(starts)
    z = np.random.default_rng(seed).normal(size=(21 * lengths, 2, 2, 2)).astype(np.float32)
    return Film(frames, z, starts, tuple(0.1 + 0.001 * n for n in range(blocks)), tuple(range(100, 100 + blocks)))


def test_windows_share_a_film_and_truth_is_marked_as_truth() -> None:
    prompt = "a large red circle moves right on a plain gray background"
    film = truth(prompt, 3)
    film.frames[SHAPE.frames(2) :] = 128
    found = memory.marks(film, prompt, (1, 3), SHAPE)
    assert len(found["scores"]) == 3
    assert found["scores"][0] > 0.9 and found["scores"][1] > 0.9 and found["scores"][2] < 0.1
    assert found["bytes"] == {"1": 106, "3": 120}
    assert len(found["seconds"]) == 21
    assert found["signals"]["3"]["motion"] < found["signals"]["1"]["motion"]


def test_a_planted_seam_is_seen() -> None:
    prompt = "a small blue star moves up on a plain black background"
    film = truth(prompt, 1)
    steady = memory.signals(film, 81, 16.0)[Seams.about.name]
    frames = film.frames.copy()
    for number, start in enumerate(film.starts):
        frames[start:] += np.uint8(20 if number % 2 else 0)
    shifted = Film(frames, film.latents, film.starts, film.seconds, film.bytes)
    jumpy = memory.signals(shifted, 81, 16.0)[Seams.about.name]
    assert steady is not None and jumpy is not None
    assert jumpy > steady + 1


def test_the_difference_is_taken_where_there_is_a_past_and_nothing_is_dropped() -> None:
    film = truth("a red circle", 1)
    for frame, seen in ((1, False), (4, True), (8, True), (11, True), (12, False)):
        z = film.latents.copy()
        z[frame] += 0.5
        cell = memory.cell("sink", 9, "own", 21)
        gap = memory.largest_difference(Film(film.frames, z, (), (), ()), film, cell, SHAPE)
        assert gap == (pytest.approx(0.5) if seen else 0.0), frame
    short = Cell("x", "own", 2, "x", "target", 2, "full")
    assert memory.largest_difference(film, film, short, SHAPE) is None


# ---------------------------------------------------------------- scenes


def test_scenes_are_held_out_and_their_parts_differ_as_they_should() -> None:
    found = scenes.draw_scenes(6)
    assert found[:3] == scenes.draw_scenes(3)
    for trial in found:
        first, other, turned = (parse(text).scene for text in (trial.first, trial.other, trial.turned))
        assert captions.is_held_out(first) and captions.is_held_out(other)
        thing, stranger, same = first.things[0], other.things[0], turned.things[0]
        assert thing.colour != stranger.colour and thing.shape != stranger.shape
        assert first.background != other.background
        assert (thing.shape, thing.colour, thing.size) == (same.shape, same.colour, same.size)
        assert thing.motion.way != same.motion.way
        assert not parse(trial.first).unknown


RED = "a large red circle moves right on a plain gray background"
LIKE = {"the same": (RED, 1.0, 0.9), "another size": (RED.replace("large", "small"), 0.2, 0.0),
        "another shape": (RED.replace("circle", "star"), 0.6, 0.0),
        "another colour": (RED.replace("red", "blue"), 0.05, 0.0)}  # fmt: skip


@pytest.mark.parametrize("case", LIKE)
def test_likeness_is_that_of_looks(case: str) -> None:
    prompt, highest, lowest = LIKE[case]
    before = scenes.look(shapes.render(RED, 1, 40), RED)
    after = scenes.look(shapes.render(prompt, 2, 40), RED)
    found = scenes.alike(before, after)
    assert found is not None
    assert lowest <= found <= highest
    nothing = scenes.look(np.full((20, 64, 64, 3), 128, np.uint8), RED)
    assert nothing.seen == 0
    assert scenes.alike(nothing, before) is None
    assert scenes.alike(before, nothing) == 0


def test_a_change_is_adopted_when_the_new_thing_is_there_and_the_old_one_gone() -> None:
    blue = "a small blue star moves left on a plain black background"
    old, new = shapes.render(RED, 1, 24), shapes.render(blue, 1, 24)
    assert scenes.adopted(new, RED, blue)
    assert not scenes.adopted(old, RED, blue)
    both = "a large red circle and a small blue star on a plain gray background"
    assert not scenes.adopted(shapes.render(both, 1, 24), RED, blue)
    assert scenes.adherence(new, blue) > 0.9 > 0.3 > scenes.adherence(old, blue)


def test_a_step_is_measured_beside_its_neighbours() -> None:
    steady = shapes.render(RED, 1, 48)
    assert abs(scenes.step_at(steady, 24, 11)) < 0.3
    cut = np.concatenate([steady[:24], 255 - steady[24:]])
    assert scenes.step_at(cut, 24, 11) > 5
    assert scenes.continuity(scenes.step_at(cut, 24, 11)) < 0.2 < 0.7 < scenes.continuity(0.3)


# ---------------------------------------------------------------- rows


def marked(scores: list[float], slope: float = 0.0, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    blocks = 7 * len(scores)
    signals = {"seams": 0.1, "motion": 0.5, "drift": None}
    return {
        "scores": scores, "seconds": [0.1 + slope * n + 0.002 * rng.normal() for n in range(blocks)],
        "bytes": {"1": 5, "4": 7}, "signals": {"1": signals, "4": signals}, "difference": 1e-6 * (seed + 1),
    }  # fmt: skip


def a_report() -> dict[str, Any]:
    cells = [memory.cell(policy, 6, "own", 21) for policy in ("sink", "pack", "window")]
    prompts = ["a", "b", "c"]
    scores = {"sink": [0.5, 0.4, 0.3, 0.2], "pack": [0.5, 0.5, 0.5, 0.49], "window": [0.5, 0.1, 0.1, 0.1]}
    slopes = {"sink": 0.0, "pack": 0.001, "window": 0.0}
    videos = {
        cell.key: [
            marked([s * f for s in scores[cell.policy]], slopes[cell.policy], n) for n, f in enumerate((1, 0.9, 1.2))
        ]
        for cell in cells
    }
    returns = {cells[0].key: [0.25, None, 0.75]}
    found = memory_rows.rows(cells, prompts, videos, returns, (1, 4), SHAPE)
    trials = [
        {"past": "p", "positions": "q", "policy": "sink", "how": "recache", "kind": kind, "adopted": done,
         "adherence": 0.5, "identity": same, "seam": 0.0, "continuity": 1.0, "seconds": 0.2}
        for kind, done, same in (("other", True, None), ("other", False, None), ("turned", None, 0.8))
    ]  # fmt: skip
    switches = memory_rows.switching(trials)
    return {"rows": found, "switching": switches, "claims": memory_rows.claims(found, switches)}


WANTED = set(
    "policy positions budget_frames horizon blocks max_diff_to_full bytes ms_per_block ms_slope_per_block world_score "
    "world_score_ci95 score_slope chunk_discontinuity identity_return".split()
)


def test_rows_hold_what_was_measured() -> None:
    report = a_report()
    assert all(set(row) >= WANTED for row in report["rows"])
    rows = {(row["policy"], row["horizon"]): row for row in report["rows"]}
    assert len(rows) == 6
    sink = rows["sink", 4]
    assert sink["blocks"] == 28 and sink["prompts"] == 3 and sink["bytes"] == 7
    assert sink["world_score"] == pytest.approx(0.35 * 31 / 30, abs=1e-6)
    assert sink["kept"] == pytest.approx(0.35 / 0.5, abs=1e-6)
    assert sink["score_slope"] == pytest.approx(-0.1 * 31 / 30, abs=1e-6)
    assert sink["score_slope_ci95"][1] < 0
    assert sink["max_diff_to_full"] == pytest.approx(3e-6)
    assert sink["identity_return"] == pytest.approx(0.5) and sink["identity_scenes"] == 2
    assert rows["pack", 4]["identity_return"] is None
    assert rows["sink", 1]["score_slope"] is None and rows["sink", 1]["kept"] == 1
    assert rows["pack", 4]["over_sink_ci95"][0] > 0 > rows["window", 4]["over_sink_ci95"][1]
    assert sink["drift"] is None and sink["motion"] == 0.5
    json.dumps(report, allow_nan=False)


def test_a_policy_is_held_against_the_plainest_sink() -> None:
    cells = memory.cells(("sink", "window"), (6,), ("own",), 21, levels=(0.4, 0.0))
    scores = {("sink", 0.0): 0.5, ("sink", 0.4): 0.8, ("window", 0.0): 0.6, ("window", 0.4): 0.7}
    videos = {cell.key: [marked([scores[cell.policy, cell.level]])] for cell in cells}
    found = memory_rows.rows(cells, ["a"], videos, {}, (1,), SHAPE)
    over = {(row["policy"], row["past_level"]): row["over_sink"] for row in found}
    assert over["window", 0.0] == pytest.approx(0.1) and over["window", 0.4] == pytest.approx(0.2)
    assert over["sink", 0.4] == pytest.approx(0.3) and over["sink", 0.0] is None


def test_a_planted_slope_of_time_is_found_and_none_is_none() -> None:
    rows = {(row["policy"], row["horizon"]): row for row in a_report()["rows"]}
    rising, flat = rows["pack", 4], rows["sink", 4]
    assert rising["ms_slope_per_block"] == pytest.approx(1.0, abs=0.1)
    assert rising["ms_slope_ci95"][0] > 0.8
    assert flat["ms_slope_ci95"][0] < 0 < flat["ms_slope_ci95"][1]
    assert flat["ms_per_block"] == pytest.approx(100, abs=2)
    assert rows["sink", 1]["ms_slope_per_block"] is None, "four blocks are too few"
    assert memory_rows.timing([[0.1] * 3], 3)["ms_per_block"] is None


def test_switches_are_counted_by_what_was_tried() -> None:
    [row] = a_report()["switching"]
    assert (row["adopted"], row["trials"], row["identity_kept"], row["continuity"]) == (0.5, 2, 0.8, 1.0)


def test_claims_rest_on_the_longest_rows() -> None:
    claims = a_report()["claims"]
    assert [claim["reached"] for claim in claims] == [True, True, True, False, False]
    assert claims[0]["policy"] == "pack" and claims[2]["policy"] == "window" and claims[3]["policy"] == "pack"
    assert memory_rows.claims([], []) == []


def test_the_page_holds_curves_and_every_row() -> None:
    series = {"curve_ms": [1.0, 2.0], "curve_process_bytes": [5, 6], "policy": "sink", "blocks": 80}
    config = {"model": "toy", "world": "shapes", "trained_frames": 21, "interrupted": False, "complete": True,
              "specs": {"sink 6": "sink:frames=6,sink=3"}}  # fmt: skip
    report = {
        **a_report(),
        "endurance": [series],
        "config": config,
        "machine": {"cpu": "x<y"},
        "command": "c",
        "date": "d",
    }
    page = memory_page.render(report)
    assert page.count("<svg") == 2, "one budget alone makes no curve by budget"
    assert page.count('class="name" title=') == 6
    assert "x&lt;y" in page and "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl", ""
    ).replace("http://creativecommons", "")
