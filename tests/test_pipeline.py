"""Sessions: what comes out of a pipeline, what can be asked of it on the way, and what a video may begin with."""

from __future__ import annotations

import gc
import json
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arvid.caches.merging import Merge
from arvid.models.family import read_card
from arvid.pipeline import WAITING, Pipeline, Request, load
from arvid.rollout.session import Receipt
from arvid.rollout.timeline import Entry
from arvid.types import Block
from oracles import toy_family

PROMPT = "a red circle"
LATER = (Entry(1.5, "a blue square"), Entry(3, "a star", "soft", 2))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(load(toy_family.write(tmp_path_factory.mktemp("families") / "toy")))


def same(one: list[Block], other: list[Block]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.latents_BTCHW, b.latents_BTCHW) and torch.equal(a.frames_BTCHW, b.frames_BTCHW)
        for a, b in zip(one, other, strict=True)
    )


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def on(self, event: str, payload: dict[str, Any]) -> None:
        self.events.append((event, payload))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [payload for name, payload in self.events if name == event]


# ---------------------------------------------------------------- directing


def test_stream_and_generate_are_consumers_of_a_session(toy: Pipeline) -> None:
    request = Request(PROMPT, 2, 3, "first")
    session = toy.session(request)
    assert (session.blocks, session.block) == (3, 0)
    blocks = list(session)
    assert session.block is None
    assert list(session) == []
    assert same(blocks, list(toy.stream(request)))
    assert torch.equal(toy.generate(request).frames_BTCHW, torch.cat([block.frames_BTCHW for block in blocks], 1))


def test_a_prompt_that_was_asked_for_live_is_one_of_a_timeline(toy: Pipeline) -> None:
    heard = Heard()
    session = toy.session(Request(PROMPT, 3, 3, "stride:k=2"), (heard,))
    live = [next(session), next(session)]
    assert session.prompt("a blue square") == Receipt("prompt", 2)
    live += list(session)
    assert heard.named("changed") == [{"block": 2, "prompt": "a blue square", "how": "recache", "live": True}]
    second = (1 + 4 * 5) / 16
    assert same(live, list(toy.stream(Request(PROMPT, 3, 3, "stride:k=2", timeline=(Entry(second, "a blue square"),)))))
    assert not same(live, list(toy.stream(Request(PROMPT, 3, 3, "stride:k=2"))))


@pytest.mark.parametrize("router", ["target", "first", "stride:k=3", "quantile:accept=0.5"])
@pytest.mark.parametrize("keep", [1, 8])
def test_a_rewound_video_is_made_again_bit_for_bit(toy: Pipeline, router: str, keep: int) -> None:
    """Whether the state of the block is still kept, or everything before it has to be made again."""
    request = Request(PROMPT, 3, 3, router, timeline=LATER[:1], guard="warn")
    heard = Heard()
    session = toy.session(request, (heard,), keep=keep)
    whole = list(session)
    told = len(heard.events)
    assert session.rewind(3) == Receipt("rewind", 3)
    assert len(heard.events) == told, "a replay is not news"
    assert session.block == 3
    assert same(list(session), whole[3:])
    session.rewind(0)
    assert same(list(session), whole)


def test_a_branch_has_another_seed_or_prompt_from_its_block_on(toy: Pipeline) -> None:
    request = Request(PROMPT, 3.6, 3, "stride:k=2", timeline=LATER[:1])
    session = toy.session(request, keep=2)
    whole = list(session)
    assert session.branch(2, seed=9) == Receipt("branch", 2)
    other = list(session)
    assert not any(torch.equal(a.latents_BTCHW, b.latents_BTCHW) for a, b in zip(other, whole[2:], strict=True))
    session.rewind(4)
    assert same(list(session), other[2:]), "going back inside a branch stays in it"
    session.branch(2, "a green star", how="flush")
    third = list(session)
    assert not same(third, whole[2:])
    session.branch(2, "a green star", 9, "flush")
    assert not same(list(session), third)
    session.rewind(2)
    assert same(list(session), whole[2:]), "and going back behind it leaves it; the timeline stays"


def test_a_branch_of_a_snapshot_leaves_the_first_session_alone(toy: Pipeline) -> None:
    request = Request(PROMPT, 3, 3, "first")
    session = toy.session(request)
    begun = [next(session), next(session)]
    other = toy.resume(session.snapshot())
    other.branch(2, seed=7)
    branched = list(other)
    assert same(begun + list(session), list(toy.stream(request)))
    other.rewind(1)
    assert same(list(other), [begun[1], *list(toy.stream(request))[2:]])
    assert not torch.equal(branched[0].latents_BTCHW, list(toy.stream(request))[2].latents_BTCHW)


def test_what_cannot_be_asked_changes_nothing(toy: Pipeline) -> None:
    session = toy.session(Request(PROMPT, 2, 3, "first"))
    made = [next(session)]
    for wrong, said in (
        (lambda: session.rewind(2), "block 2 cannot be gone back to; blocks 0 to 0 are made"),
        (lambda: session.prompt(" "), "is empty"),
        (lambda: session.prompt("a star", "fade"), "unknown transition 'fade'"),
        (lambda: session.branch(0, "a star", how="fade"), "unknown transition 'fade'"),
        (lambda: session.branch(5, seed=1), "block 5 cannot be gone back to"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
    made += list(session)
    assert same(made, list(toy.stream(Request(PROMPT, 2, 3, "first"))))
    with pytest.raises(ValueError, match="all 3 blocks are made"):
        session.prompt("a star")


@pytest.mark.parametrize("event", ["begun", "rejected", "done"])
def test_an_interrupted_block_leaves_no_trace(toy: Pipeline, event: str) -> None:
    class Nervous:
        calls = 0

        def on(self, name: str, payload: dict[str, Any]) -> None:
            Nervous.calls += name == event
            if name == event and Nervous.calls == 2:
                raise KeyboardInterrupt

    request = Request(PROMPT, 3, 3, "reward:tau=2", timeline=(Entry(0.5, "a star"),))
    session = toy.session(request, (Nervous(),))
    with pytest.raises(KeyboardInterrupt):
        list(session)
    session.rewind(0)
    assert same(list(session), list(toy.stream(request)))


def test_an_interrupted_block_can_be_made_at_once(toy: Pipeline) -> None:
    class Once:
        done = False

        def on(self, name: str, payload: dict[str, Any]) -> None:
            if name == "begun" and payload["block"] == 2 and not Once.done:
                Once.done = True
                raise RuntimeError("out of luck")

    request = Request(PROMPT, 3, 3, "stride:k=2", timeline=(Entry(1.3, "a star", "flush"),))
    session = toy.session(request, (Once(),), keep=1)
    made = [next(session), next(session)]
    with pytest.raises(RuntimeError, match="out of luck"):
        next(session)
    assert session.block == 2
    assert same(made + list(session), list(toy.stream(request)))


def test_nothing_holds_blocks_that_are_gone(toy: Pipeline) -> None:
    """Memory is constant in the number of frames: latents and frames of old blocks die, whatever may still wait."""
    session = toy.session(Request(PROMPT, 25, 3, "first:steps=1", past="window:frames=3", guard="warn"), keep=2)
    latents: list[weakref.ref[Tensor]] = []
    frames: list[weakref.ref[Tensor]] = []
    alive = []
    for block in session:
        latents.append(weakref.ref(block.latents_BTCHW))
        frames.append(weakref.ref(block.frames_BTCHW))
        del block
        gc.collect(0)
        alive.append((sum(ref() is not None for ref in latents), sum(ref() is not None for ref in frames)))
    assert len(alive) == 34
    assert max(seen for _, seen in alive) <= 2
    assert max(held for held, _ in alive) <= 16


def test_the_page_about_sessions_runs(
    toy: Pipeline, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (project / "docs" / "long.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "embedded", lambda: toy)
    there: dict[str, Any] = {}
    exec(example, there)
    said = capsys.readouterr().out.strip()
    assert said == "Receipt(kind='prompt', block=11)"
    assert said in example
    assert next(there["other"]).move.index == 12
    assert (tmp_path / "here.safetensors").is_file()


# ---------------------------------------------------------------- what a video begins with


def pictures(frames: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 255, (frames, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(side // 8, 1).repeat(side // 8, 2)


def test_an_image_is_the_first_frame(toy: Pipeline) -> None:
    given = toy.encode(pictures(1))
    assert given.shape == (1, 1, 16, 8, 8)
    blocks = list(toy.stream(Request(PROMPT, 2, 3, "first"), given=given))
    assert [(block.source, block.move.span.start, block.frames_BTCHW.shape[1]) for block in blocks] == [
        ("given", 0, 1), ("target", 1, 12), ("draft", 4, 12), ("draft", 7, 8),
    ]  # fmt: skip
    assert torch.equal(blocks[0].latents_BTCHW, given)
    whole, _ = toy.family.decoder.decode(torch.cat([block.latents_BTCHW for block in blocks], 1))
    frames = torch.cat([block.frames_BTCHW for block in blocks], 1)
    torch.testing.assert_close(frames.float(), whole.float(), rtol=0.05, atol=0.05)
    other = list(toy.stream(Request(PROMPT, 2, 3, "first"), given=toy.encode(255 - pictures(1))))
    assert not torch.equal(other[1].latents_BTCHW, blocks[1].latents_BTCHW)


def test_a_clip_is_gone_on_with_from_its_end(toy: Pipeline) -> None:
    clip = pictures(31)
    given = toy.encode(clip)
    assert given.shape[1] == 8, "the last 29 of 31 frames: 1 + 4 * 7"
    assert torch.equal(given, toy.encode(clip[2:]))
    assert toy.encode(pictures(200)).shape[1] == toy.family.card.trained_frames
    blocks = list(toy.stream(Request(PROMPT, 1.5, 3, "draft"), given=given))
    assert [(block.source, len(block.move.span)) for block in blocks] == [
        ("given", 3), ("given", 3), ("given", 2), ("draft", 3), ("draft", 3),
    ]  # fmt: skip
    assert sum(block.frames_BTCHW.shape[1] for block in blocks[3:]) == 24


@pytest.mark.parametrize("router", ["first", "stride:k=2"])
def test_a_timeline_counts_from_where_making_begins(toy: Pipeline, router: str) -> None:
    heard = Heard()
    given = toy.encode(pictures(29))
    request = Request(PROMPT, 2.2, 3, router, timeline=(Entry(0.7, "a star"),))
    session = toy.session(request, (heard,), given)
    whole = list(session)
    assert [event["block"] for event in heard.named("changed")] == [4]
    resumed = toy.session(request, given=given)
    for _ in range(4):
        next(resumed)
    assert same(list(toy.resume(resumed.snapshot())), whole[4:])
    session.rewind(1)
    assert same(list(session), whole[1:])


def test_a_cut_shows_nothing_of_what_was_before(toy: Pipeline) -> None:
    """Its frames are those of a stream that stood on its first latent; a block that only changes its prompt goes on."""
    decode = toy.family.decoder.decode
    for how in ("cut", "recache"):
        request = Request(PROMPT, 2.2, 3, "target", timeline=(Entry(1.2, "a green star on white", how),))
        blocks = list(toy.stream(request))
        z = blocks[2].latents_BTCHW
        with torch.inference_mode():
            alone, after = decode(torch.cat([z[:, :1], z], 1))
            last, _ = decode(blocks[3].latents_BTCHW, after)
        assert [block.opens for block in blocks] == [False, False, how == "cut", False]
        assert blocks[2].frames_BTCHW.shape[1] == 12
        assert torch.equal(alone[:, 1:], blocks[2].frames_BTCHW) == (how == "cut")
        assert torch.equal(last, blocks[3].frames_BTCHW)


def test_a_story_is_the_timeline_of_its_acts(toy: Pipeline) -> None:
    """Both changes of a story fall where a person would have put them, and the bits are those of that timeline."""
    heard = Heard()
    story = "a red star rests on black, then the red star turns blue, then cut to a green ball moves left on white"
    told = [act.prompt for act in toy.family.acts(story)]
    blocks = list(toy.stream(Request(story, 2.2, 3, "first"), (heard,)))
    assert [(event["block"], event["how"]) for event in heard.named("changed")] == [(1, "recache"), (2, "cut")]
    entries = (Entry(0.5, told[1], "recache"), Entry(1.3, told[2], "cut"))
    assert same(blocks, list(toy.stream(Request(told[0], 2.2, 3, "first", timeline=entries))))
    session = toy.session(Request(story, 2.2, 3, "first"))
    next(session)
    assert same(list(toy.resume(session.snapshot())), blocks[1:])
    given = toy.encode(pictures(29))
    later = list(toy.stream(Request(story, 2.2, 3, "first"), given=given))
    assert [block.source for block in later][:4] == ["given", "given", "given", "target"]
    with pytest.raises(ValueError, match="tells of 3 acts, the video has room for 1"):
        toy.check(Request(story, 0.5))


def test_what_cannot_be_begun_with_is_refused(toy: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"frames \[1, 32, 32, 3\]; expected \[T, 64, 64, 3\]"):
        toy.encode(pictures(1, 32))
    with pytest.raises(ValueError, match=r"given latents \[1, 2, 4, 8, 8\]; expected \[1, T, 16, 8, 8\]"):
        toy.session(Request(PROMPT), given=torch.zeros(1, 2, 4, 8, 8))


# ---------------------------------------------------------------- the guard in a pipeline


def test_a_guard_that_warns_changes_no_bit(toy: Pipeline) -> None:
    plain, heard = Request(PROMPT, 2, 3, "first"), Heard()
    watched = Request(PROMPT, 2, 3, "first", guard="warn:colour=0.0001")
    assert same(list(toy.stream(plain)), list(toy.stream(watched, (heard,))))
    assert [look["decision"] for look in heard.named("guard")] == ["steady", "warned", "warned"]


def test_a_guard_that_acts_has_the_target_make_drifted_blocks(toy: Pipeline) -> None:
    heard = Heard()
    acting = Request(PROMPT, 3, 3, "first", guard="act:colour=0.0001")
    blocks = list(toy.stream(acting, (heard,)))
    assert [block.source for block in blocks] == ["target"] * 5
    assert all("guard" in block.seconds for block in blocks)
    decisions = [look["decision"] for look in heard.named("guard")]
    assert decisions[::2] == ["steady", *["refresh"] * 2, *["anchor"] * 2]
    assert decisions[1::2] == ["rejected"] * 4
    refined = list(toy.stream(Request(PROMPT, 2, 3, "refine:levels=0.8", guard="act:colour=0.0001")))
    assert [block.source for block in refined] == ["target", "refined", "target"]
    drafted = list(toy.stream(Request(PROMPT, 1, 3, "draft", guard="warn:colour=0.0001")))
    assert [block.source for block in drafted] == ["draft", "draft"]


# ---------------------------------------------------------------- what cannot be asked


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": None}, "are text; got"),
        ({"router": 3}, "are text; got"),
        ({"seconds": "5"}, "seconds='5'; give a number"),
        ({"seed": 1.5}, "seed=1.5; give a whole number"),
        ({"seed": -1}, "seed=-1; give a whole number of at least 0"),
        ({"size": "64x64"}, "size='64x64'; give two whole numbers"),
        ({"timeline": ({"at": 1},)}, "something that is no entry"),
    ],
)
def test_a_request_of_other_things_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Request(**{"prompt": PROMPT, **fields})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("fps", 0, "fps is 0, expected a whole number of at least 1"),
        ("block", "three", "block is 'three', expected a whole number"),
        ("steps", float("nan"), "steps is nan, expected a whole number"),
        ("router", None, "router is None, expected text"),
        ("world", 5, "world is 5, expected text"),
        ("parts", [1], "parts is no table of tables"),
        ("size", [64], "is not a family card"),
        ("temperature", 0, "temperature is 0, expected a number above 0 and at most 1"),
        ("temperature", 1.5, "temperature is 1.5, expected"),
        ("temperature", "warm", "temperature is 'warm', expected"),
    ],
)
def test_a_card_of_other_things_is_refused(tmp_path: Path, key: str, value: Any, said: str) -> None:
    family = toy_family.write(tmp_path / "toy")
    card = json.loads((family / "card.json").read_text())
    (family / "card.json").write_text(json.dumps({**card, key: value}))
    with pytest.raises(ValueError, match=said):
        load(str(family))


def test_a_repair_ends_with_the_walk_it_is_a_part_of(toy: Pipeline) -> None:
    def asked(router: str) -> Request:
        return Request(PROMPT, seconds=0.1, router=router)

    for router in ("stride:k=2,repair=2", "stride:k=2,repair=5,steps=5"):
        toy.check(asked(router))
    for router, steps in (("stride:k=2,repair=99", 2), ("stride:k=2,repair=6,steps=5", 5)):
        with pytest.raises(ValueError, match=f"of a draft of {steps} steps; give at most {steps}") as caught:
            toy.check(asked(router))
        assert "\n" not in str(caught.value)


PACK = "pack:frames=6,sink=1,recent=3,weights={}"
UNFIT = {
    "share places in a cycle of 3": {"positions": "cyclic:period=3"},
    "share places in a cycle of 33": {"positions": "cyclic", "past": "sink:frames=6,sink=3"},
    "15 frames of the past and a pass of 9 share places": {
        "router": "verify:tau=0.3,ahead=3", "past": "coarse:frames=6,fine=3", "positions": "cyclic:period=18",
    },
    "24 frames in one pass do not fit below position 21; take limit=24 or more, or fewer blocks ahead": {
        "router": "refine:levels=0.7,ahead=8", "positions": "relative:limit=21",
    },
    "3 frames in one pass do not fit below position 2": {"positions": "relative:limit=2"},
    "none holds no merging weights": {"past": PACK.format("{folder}/none")},
    "broken holds no merging weights": {"past": "coarse:weights={folder}/broken"},
    r"groups of 4 tokens with 32 channels, merging weights for \(12, 32\)": {"past": "conv:weights={folder}/target"},
    r"groups of 12 tokens with 16 channels, merging weights for \(12, 32\)": {"past": PACK.format("{folder}/target")},
    r"layers 0 to 1 have .*, merging weights for \(12, 32\) in layers 0 to 0": {"past": PACK.format("{folder}/short")},
    "none is no head profile": {"past": "headwise:profile={folder}/none"},
    "broken is no head profile": {"past": "headwise:profile={folder}/broken"},
    "profiles 2 layers .*, the model has 1 layers": {"past": "headwise:profile={folder}/heads"},
}  # fmt: skip
"""What a request cannot have, by what is said of it: a file that is missing, damaged, of another policy or model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files for the target of the toy, which has two layers of two heads; its drafter has one of both, half as wide."""
    made = tmp_path_factory.mktemp("files")
    save_file(Merge(2, 12, 32).state_dict(), made / "target")
    save_file(Merge(1, 12, 32).state_dict(), made / "short")
    (made / "heads").write_text(json.dumps({"static": [[], [1]]}))
    (made / "broken").write_text("{")
    return made


@pytest.mark.parametrize("said", UNFIT)
def test_what_dies_in_the_middle_is_refused_before_it_begins(toy: Pipeline, folder: Path, said: str) -> None:
    fields = {name: text.format(folder=folder) for name, text in UNFIT[said].items()}
    request = Request(**{"prompt": PROMPT, "seconds": 6, "router": "first", **fields})
    for refused in (toy.check, toy.session):
        with pytest.raises(ValueError, match=said) as caught:
            refused(request)
        assert "\n" not in str(caught.value)


def test_files_need_not_fit_a_model_that_is_never_asked(toy: Pipeline, folder: Path) -> None:
    """`target` has no past of the drafter, however long the video is and whatever is asked for on the way."""
    flush = Entry(2, "a star", "flush")
    request = Request(PROMPT, 60, router="target", past=PACK.format(folder / "target"), timeline=(flush,))
    toy.check(request)
    session = toy.session(replace(request, seconds=4, timeline=()))
    next(session)
    session.prompt("a star", "flush")
    assert len(list(session)) == 5
    with pytest.raises(ValueError, match="groups of 12 tokens with 16 channels"):
        toy.check(replace(request, router="first"))


def test_the_target_alone_makes_what_it_makes_where_a_drafter_is_loaded(toy: Pipeline) -> None:
    """Bit for bit and pass for pass, also when more blocks are behind it than may wait for a past that listens."""
    story = (Entry(2, "a star", "flush"), Entry(3, "a blue square"))
    request = Request(PROMPT, 24, 3, "target", "pack:frames=6,sink=1,recent=3", timeline=story)
    alone = Pipeline(replace(toy.family, drafter=None))
    ours, theirs = list(toy.stream(request)), list(alone.stream(request))
    assert same(ours, theirs)
    assert [block.passes for block in ours] == [block.passes for block in theirs]
    assert len(ours) * toy.family.card.block > WAITING * toy.family.card.trained_frames


def test_a_card_from_before_worlds_has_none(tmp_path: Path) -> None:
    family = toy_family.write(tmp_path / "toy")
    assert read_card(family).world == "shapes"
    card = json.loads((family / "card.json").read_text())
    assert card.pop("world") == "shapes"
    (family / "card.json").write_text(json.dumps(card))
    assert read_card(family) == replace(read_card(toy_family.write(tmp_path / "other")), world="")
    assert load(family).card.world == ""


@pytest.mark.parametrize("text", ["null", "5", "[]"])
def test_a_card_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match="is not a family card"):
        load(tmp_path)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target is placed on cuda:99, and torch sees"):
        load(device="cuda:99")


def test_noise_is_what_was_asked_for_and_goes_on_with_a_resumed_session(toy: Pipeline) -> None:
    """A correlation of 0 is white noise by another name; any other makes another video."""
    white, antiphase, none = (
        Request(PROMPT, 2.0, 3, "target", noise=noise) for noise in ("", "antiphase:rho=-0.5", "antiphase:rho=0")
    )
    blocks = list(toy.stream(white))
    assert same(blocks, list(toy.stream(none)))
    leaning = list(toy.stream(antiphase))
    assert not same(blocks, leaning)
    session = toy.session(antiphase)
    next(session)
    assert same([*toy.resume(session.snapshot())], leaning[1:])
    for noise, said in (
        ("pink", "unknown noise 'pink'; known: antiphase, white"),
        ("antiphase:rho=1", "correlation 1; needs"),
    ):
        with pytest.raises(ValueError, match=said):
            toy.check(Request(PROMPT, noise=noise))
