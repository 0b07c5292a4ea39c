"""States: what goes into a file comes out again, and going on from one is never having stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from arvid.caches.pieces import Held, Piece
from arvid.models.placement import PlacedDenoiser, Placement, placed
from arvid.pipeline import Pipeline, Request, load
from arvid.rollout import flow, stage, state
from arvid.rollout.devices import brought, device_of
from arvid.rollout.replay import Timed
from arvid.rollout.state import LatentsFile, Packer, Snapshot, Unpacker
from arvid.rollout.timeline import Change, Entry
from arvid.samplers.timetable import Timetable
from arvid.serve.direction import Direction
from arvid.types import Block, Condition, Move, Span
from oracles import toy_family

STORY = (Entry(0.5, "a blue square"), Entry(1.3, "a large star", "soft", 2))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(load(toy_family.write(tmp_path_factory.mktemp("families") / "toy")))


def same(one: list[Block], other: list[Block]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.latents_BTCHW, b.latents_BTCHW)
        and torch.equal(a.frames_BTCHW, b.frames_BTCHW)
        and (a.source, a.verdict) == (b.source, b.verdict)
        for a, b in zip(one, other, strict=True)
    )


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("router", "past", "positions"),
    [
        ("target", "", ""),
        ("first", "", ""),
        ("stride:k=3", "window:frames=6,sink=3", "relative:limit=12"),
        ("reward:tau=0.5", "full", ""),
        ("quantile:accept=0.5,commit=last", "", ""),
        ("refine:levels=0.8,draft_steps=1", "", "rephase"),
        ("random:p=0.5,level=0.3", "", ""),
        ("verify:tau=0.3,level=0.7", "", ""),
        ("stride:k=3", "bank:frames=6,sink=1,recent=3,bank=4,top=2", ""),
        ("stride:k=3", "neighbour", ""),
    ],
)
def test_going_on_from_a_file_is_never_having_stopped(
    toy: Pipeline, tmp_path: Path, router: str, past: str, positions: str
) -> None:
    """Bit for bit, wherever it stops: also while blocks wait to be written, and inside a soft change."""
    request = Request("a red circle", 3, 3, router, past, positions=positions, timeline=STORY, guard="warn")
    whole, parts, waiting = [], [], 0
    session = toy.session(request)
    for stop in (2, 3):
        while session.block != stop:
            parts.append(next(session))
        snapshot = session.snapshot()
        waiting += sum(len(walker[1]) for walker in snapshot.parts[0][0])
        state.save(snapshot, tmp_path / "state", {"note": stop})
        found, notes = state.load(tmp_path / "state")
        assert notes == {"note": stop}
        session = toy.resume(found)
    parts += list(session)
    whole = list(toy.stream(request))
    assert len(whole) == 5
    assert same(parts, whole)
    assert waiting or router.startswith(("target", "quantile"))


def test_a_snapshot_stays_as_it_is_while_the_session_goes_on(toy: Pipeline, tmp_path: Path) -> None:
    request = Request("a red circle", 3, 3, "stride:k=2", timeline=STORY)
    session = toy.session(request)
    for _ in range(2):
        next(session)
    snapshot = session.snapshot()
    state.save(snapshot, tmp_path / "at once")
    rest = list(session)
    assert same(list(toy.resume(snapshot)), rest)
    assert same(list(toy.resume(state.load(tmp_path / "at once")[0])), rest)
    assert same(list(toy.resume(snapshot)), rest), "going on from it leaves it as it was, too"


def test_a_snapshot_copies_nothing(toy: Pipeline) -> None:
    session = toy.session(Request("a red circle", 2, 3, "target"))
    last = [next(session) for _ in range(3)][-1]
    one, other = session.snapshot(), session.snapshot()

    def tensors(value: Any) -> list[int]:
        if isinstance(value, Tensor):
            return [value.data_ptr()]
        return [found for part in value for found in tensors(part)] if isinstance(value, tuple) else []

    assert tensors(one.parts) == tensors(other.parts)
    assert last.latents_BTCHW.data_ptr() in tensors(one.parts)


JUMPS = (Entry(0.5, "a blue square", "jump"), Entry(1.1, "a large star", "jump"))


def test_jumps_that_wait_are_part_of_what_is_gone_on_with(toy: Pipeline, tmp_path: Path) -> None:
    """The target writes blocks 1 and 2 at block 4; it stops in between."""
    request = Request("a red circle", 3, 3, "stride:k=4", timeline=JUMPS)
    whole = list(toy.stream(request))
    session = toy.session(request)
    parts = [next(session) for _ in range(3)]
    state.save(session.snapshot(), tmp_path / "state")
    assert same(parts + list(toy.resume(state.load(tmp_path / "state")[0])), whole)
    keeps = replace(request, timeline=tuple(replace(entry, how="keep") for entry in JUMPS))
    assert not same(list(toy.stream(keeps))[4:], whole[4:])


def places(value: Any) -> set[str]:
    """Kinds of devices that the tensors of a state are on."""
    packer = Packer()
    packer.pack(value)
    return {tensor.device.type for tensor in packer.tensors.values()}


@pytest.mark.parametrize("past", ["", "deep:frames=6,sink=1,recent=3", "neighbour"])
def test_every_part_has_its_state_back_where_it_stands(toy: Pipeline, tmp_path: Path, past: str) -> None:
    """On a machine without a second device one that holds no values stands for it."""
    session = toy.session(Request("a red circle", 4, 3, "stride:k=3", past, timeline=STORY))
    for _ in range(5):
        next(session)
    state.save(session.snapshot(), tmp_path / "state")
    family = load(toy_family.write(tmp_path / "apart"))
    apart = Pipeline(placed(family, Placement("cpu", drafter="meta", vae="meta")))
    (walkers, *others), _, memo, decoder = apart.resume(state.load(tmp_path / "state")[0]).snapshot().parts
    (target, waiting, _), (drafter, pending, _) = walkers
    assert places(target) == places((waiting, pending, others)) == {"cpu"}
    assert places(drafter) == places(decoder) == {"meta"}
    assert pending[-1][2] is memo[2], "a condition is still one object"


@pytest.mark.parametrize("past", ["", "deep:frames=6,sink=1,recent=3"])
def test_only_what_was_read_from_disk_is_brought_anywhere(
    toy: Pipeline, monkeypatch: pytest.MonkeyPatch, past: str
) -> None:
    """Each part once; going back in memory touches no tensor."""
    calls: list[Any] = []
    for module in (flow, stage):
        monkeypatch.setattr(module, "brought", lambda value, device: calls.append(value) or value)
    session = toy.session(Request("a red circle", 3, 3, "stride:k=2", past))
    for _ in range(3):
        next(session)
    session.rewind(1)
    session.restore(session.snapshot())
    assert calls == []
    toy.resume(session.snapshot())
    assert len(calls) == 3, "two pasts and a decoder"


# ---------------------------------------------------------------- other hands


@pytest.mark.parametrize(
    "past", ["window:frames=6", "sink:frames=9,sink=3", "neighbour", "pack:frames=6,sink=1,recent=3"]
)
@pytest.mark.parametrize("router", ["first", "draft", "refine:levels=0.7"])
def test_a_session_of_another_router_goes_on_from_a_target_that_was_alone(
    toy: Pipeline, past: str, router: str
) -> None:
    """The drafter joins in with what the target knows of the last blocks, and a session that was interrupted there
    makes the same."""
    request = Request("a red circle", 3, 3, "target:commit=last", past)
    alone = toy.session(request)
    for _ in range(3):
        next(alone)
    state_there = alone.snapshot()
    assert len(state_there.parts[0][0]) == 1, "nobody remembers for a drafter that is never asked"
    joined = toy.session(replace(request, router=router))
    joined.restore(state_there)
    assert len(joined.snapshot().parts[0][0]) == 1, "until the next block"
    again = toy.session(replace(request, router=router))
    again.restore(joined.snapshot())
    rest = list(joined)
    assert {block.source for block in rest} >= {"refined" if router.startswith("refine") else "draft"}
    assert len(joined.snapshot().parts[0][0]) == 2
    assert same(rest, list(again))
    left = toy.session(request)
    left.restore(joined.snapshot())
    assert len(left.snapshot().parts[0][0]) == 1


@pytest.mark.parametrize("past", ["window:frames=6", "window:frames=7", "sink:frames=9,sink=3", "sink:frames=7,sink=1"])
def test_who_joins_in_reads_what_it_would_have_remembered(toy: Pipeline, past: str) -> None:
    """With a past that the kept blocks cover, a drafter that was there all along makes the same drafts."""
    given = torch.randn(1, 27, *toy.latent_shape, generator=torch.Generator().manual_seed(1))
    drafts = Request("a red circle", 3, 3, "first", past)
    there, alone = toy.session(drafts, given=given), toy.session(replace(drafts, router="target"), given=given)
    for session in (there, alone):
        for _ in range(10):  # what was given, and the target's first block behind it
            next(session)
    joined = toy.session(drafts, given=given)
    joined.restore(alone.snapshot())
    assert same(list(joined), list(there))


def test_a_knob_from_the_target_alone_to_another_router_and_back(toy: Pipeline) -> None:
    """Turned while the video is made, with another prompt behind it, and once more on the way back."""
    direction = Direction(toy, Request("a red circle", 5, 3, "target", "sink:frames=9,sink=3"))
    made = []
    for at in range(7):
        if at in (2, 5):
            direction.route({2: "first", 5: "target"}[at])
        if at in (2, 4):
            direction.prompt("a blue square", {2: "recache", 4: "flush"}[at])
        made.append(direction.step())
    whole = [block for block in made if block is not None]
    assert [block.source for block in whole] == ["target"] * 2 + ["draft"] * 3 + ["target"] * 2
    direction._states = {0: direction._states[0]}  # as after a long while
    direction.back(6)
    again = [direction.step() for _ in range(7)]
    assert again[:6] == [None] * 6 and again[6] is not None and same([again[6]], whole[6:])


def test_what_stands_where_it_should_is_left_as_it_is() -> None:
    piece = Held.of(Piece((0,), ((torch.zeros(1), torch.ones(1)),), 0))
    value = {0.5: {0: piece}, 1.0: (1, None, "x")}
    assert brought(value, torch.device("cpu")) is brought(value, None) is value
    there = brought(value, torch.device("meta"))
    assert there[1.0] is value[1.0] and there[0.5][0][0][1].is_meta and not piece[0][1].is_meta


def test_a_part_stands_where_its_weights_do_behind_whatever_border() -> None:
    model = torch.nn.Linear(1, 1, device="meta")
    border: Any = PlacedDenoiser(model, torch.device("meta"), torch.device("cpu"))  # type: ignore[arg-type]
    for part in (model, border, Timed(border, (1000.0,), Timetable())):
        assert device_of(part) == torch.device("meta")
    assert device_of(None) is device_of(lambda z: z) is device_of(torch.nn.Identity()) is None


def test_a_state_of_another_family_is_refused(toy: Pipeline, tmp_path: Path) -> None:
    snapshot = toy.session(Request("a red circle", 1)).snapshot()
    other = Pipeline(load(toy_family.write(tmp_path / "other", name="embedded-other", reward=False)))
    with pytest.raises(ValueError, match="a state of the family embedded-toy, this one is embedded-other"):
        other.resume(snapshot)


# ---------------------------------------------------------------- the file


def packed(value: Any) -> Any:
    packer = Packer()
    found = packer.pack(value)
    return Unpacker(packer.tensors, packer.orders, packer.nouns).unpack(found)


def test_plain_values_and_nouns_come_back() -> None:
    move = Move(3, Span(4, 7), (1.0, 0.3, 0.0), None)
    value = {"a": [1, 2.5, None, True, "x", float("inf")], 7: (move, (), {}, Change(1, 2, "p", "soft", 3, True))}
    assert packed(value) == value
    assert list(packed(value)) == ["a", 7]


def test_what_was_one_object_is_one_again() -> None:
    """Blocks that wait are written in one pass when they share a condition, so its identity is part of the state."""
    one, other = (Condition("same", torch.ones(1, 2, 3)) for _ in range(2))
    found = packed((one, [one, other], {"x": one.text_BLD}))
    assert found[0] is found[1][0]
    assert found[0] is not found[1][1]
    assert found[0].text_BLD is found[2]["x"]
    assert torch.equal(found[1][1].text_BLD, other.text_BLD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_with_their_layout(dtype: torch.dtype) -> None:
    plain = (torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) % 7).to(dtype)
    last = plain.to(memory_format=torch.channels_last)
    for tensor in (plain, last, plain.permute(3, 0, 2, 1), plain[:, 1], plain[0, 0, 0, 0]):
        found = packed((tensor,))[0]
        assert torch.equal(found, tensor)
        assert found.dtype == dtype
        dense = tensor.clone(memory_format=torch.preserve_format)
        assert found.stride() == dense.stride() or not tensor.is_contiguous()
    assert packed((last,))[0].is_contiguous(memory_format=torch.channels_last)


def test_a_state_holds_no_strangers() -> None:
    with pytest.raises(ValueError, match="a state cannot hold a PosixPath; known: plain data, tensors, Span, Move"):
        Packer().pack((Path("x"),))


def snapshot_of(value: Any) -> Snapshot:
    return Snapshot(1, {"model": "m"}, (), ((0, 3),), None, value)


def test_a_state_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save(snapshot_of(torch.ones(2)), tmp_path / "s")
    before = (tmp_path / "s").read_bytes()

    def dies(*words: Any) -> None:
        Path(words[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        state.save(snapshot_of(torch.zeros(2)), tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("harm", ["cut", "junk", "foreign", "none"])
def test_a_damaged_state_is_one_line(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "s"
    state.save(snapshot_of(torch.ones(200)), path)
    whole = path.read_bytes()
    if harm == "none":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[:-100], "junk": b"junk", "foreign": save({"x": torch.ones(1)})}[harm])
    with pytest.raises(ValueError, match=r"no state|is not a state that can be gone on with") as caught:
        state.load(path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- latents as they come


def test_latents_that_were_written_as_they_came_are_those_saved_at_once(tmp_path: Path) -> None:
    z = torch.randn(1, 9, 4, 2, 3)
    file = LatentsFile(tmp_path / "raw", (4, 2, 3))
    for part in (z[:, :3], z[:, 3:4], z[:, 4:].to(torch.bfloat16)):
        file.append(part)
    file.finish(tmp_path / "z.safetensors", {"prompt": 'a "red" cirçle'})
    z[:, 4:] = z[:, 4:].to(torch.bfloat16).float()
    assert torch.equal(load_file(tmp_path / "z.safetensors")["latents"], z)
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "z.safetensors"]


def test_a_file_of_latents_is_gone_on_with_where_the_state_was(tmp_path: Path) -> None:
    z = torch.randn(1, 6, 4, 2, 2)
    file = LatentsFile(tmp_path / "raw", (4, 2, 2))
    file.append(z[:, :5])
    file.close()
    again = LatentsFile(tmp_path / "raw", (4, 2, 2))
    again.truncate(3)
    again.append(z[:, 3:])
    assert again.frames == 6
    again.finish(tmp_path / "z.safetensors", {})
    assert torch.equal(load_file(tmp_path / "z.safetensors")["latents"], z)
    with pytest.raises(ValueError, match="holds 6 latent frames, 7 were written"):
        again.truncate(7)
    with pytest.raises(ValueError, match="for a file of frames"):
        again.append(z[:, :, :3])
    again.close()
