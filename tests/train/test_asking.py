"""The distance of a block from what was asked: true labels are near, every fault has its own term, readers learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arvid.rewards.reading import MARKS, WEIGHTS, Asked, Asking, BlockReader, SceneReader, distance
from arvid.train.asking import BlockReading, LabelledBlocks, SceneReading, ToldScenes, asked, classes, meaning
from arvid.train.reading import Told
from arvid.train.text import targets
from arvid.worlds.grammar import SHAPES, SIZES, SPEEDS, parse
from arvid.worlds.labels import label
from arvid.worlds.shapes import RADII, SIZE

FRAMES = 3


class Perfect(nn.Module):
    """Reads latents that are the labels themselves: channel by channel what kind stands there, then velocity."""

    def forward(self, z_NTCHW: Tensor) -> tuple[Tensor, ...]:
        told = z_NTCHW.movedim(2, -1)
        sure = [
            20.0 * nn.functional.one_hot(told[..., i].long(), kinds).float() for i, kinds in enumerate(meaning().seen)
        ]
        return (*sure, told[..., 3:])


def film(prompt: str, seed: int = 0) -> Tensor:
    """What stands in the cells of the first block of a rendered clip, as latents [1, T, 5, 8, 8]."""
    found = label(prompt, seed, 9)
    rows = [found.shape_TYX, found.size_TYX, found.colour_TYX, found.velocity_TYX2[..., 0], found.velocity_TYX2[..., 1]]
    return torch.from_numpy(np.stack([row[::4].astype(np.float32) for row in rows], 1))[None]


def terms(shown: str, wanted: str, seed: int = 0) -> dict[str, float]:
    found = Asking(Perfect())(film(shown, seed), asked(classes([parse(wanted).scene])))
    return {name: float(value[0]) for name, value in found.items()}


ONE = "a medium red circle moves right steadily on a black background"
TWO = "a large green star moves up quickly and a small blue square stays still on a white background"


@pytest.mark.parametrize("prompt", [
    ONE, TWO, "a medium cyan triangle bounces vertically on a gray background",
    "a small yellow diamond orbits clockwise slowly on a navy background",
    "a large purple circle bounces diagonally on a beige background",
])  # fmt: skip
def test_what_the_renderer_draws_is_near_what_was_asked(prompt: str) -> None:
    for seed in range(8):
        found = terms(prompt, prompt, seed)
        assert found["shape"] < 1e-3
        assert found["size"] < 1e-3
        assert found["stray"] < 1e-3
        assert found["motion"] < 0.05
        assert found["cells"] < 0.5, "a thing covers fewer or more cells where it stands on a corner of them"


@pytest.mark.parametrize(("term", "wanted"), [
    ("shape", ONE.replace("circle", "star")), ("size", ONE.replace("medium", "large")),
    ("motion", ONE.replace("right", "left")), ("motion", ONE.replace("moves right steadily", "stays still")),
    ("motion", ONE.replace("steadily", "quickly")), ("motion", ONE.replace("moves right", "bounces vertically")),
    ("motion", ONE.replace("moves right steadily", "orbits clockwise quickly")),
])  # fmt: skip
def test_a_fault_is_seen_by_its_own_term(term: str, wanted: str) -> None:
    right, wrong = terms(ONE, ONE), terms(ONE, wanted)
    assert wrong[term] > right[term] + 0.3
    same = [name for name in WEIGHTS if name != term and not (term == "size" and name == "cells")]
    assert all(wrong[name] == pytest.approx(right[name], abs=0.1) for name in same)


def test_what_is_missing_and_what_nobody_asked_for() -> None:
    lone = "a large green star moves up quickly on a white background"
    missing, added = terms(lone, TWO), terms(TWO, lone)
    assert missing["cells"] > 1
    assert missing["stray"] < 1e-3
    assert added["stray"] > 1
    assert added["cells"] < 0.5


def test_motion_by_hand() -> None:
    """A thing asked to move 1 pixel per frame to the right that moves (0.5, 0.5): 0.25 + 0.25; bounces, either sign."""
    z = film(ONE)
    z[:, :, 3:] = torch.tensor([0.5, 0.5])[:, None, None]

    def motion(prompt: str) -> float:
        return float(Asking(Perfect())(z, asked(classes([parse(prompt).scene])))["motion"][0])

    assert motion(ONE) == pytest.approx(0.5)
    assert motion(ONE.replace("moves right", "bounces horizontally")) == pytest.approx(0.5)
    assert motion(ONE.replace("right", "left")) == pytest.approx(1.5**2 + 0.25)
    turning = (1 - math.sqrt(0.5)) ** 2
    assert motion(ONE.replace("moves right", "orbits clockwise")) == pytest.approx(turning, abs=1e-2)


def test_pace_by_hand() -> None:
    """A thing that should creep and stands still is off by its whole pace; noise of its cells does not count."""
    paces = dict(zip(SPEEDS, meaning().paces, strict=True))
    said = {"slow": "slowly", "medium": "steadily", "fast": "quickly"}
    for speed, pace in paces.items():
        z = film(ONE)
        z[:, :, 3:] = 0.0
        found = Asking(Perfect())(z, asked(classes([parse(ONE.replace("steadily", said[speed])).scene])))
        assert float(found["motion"][0]) == pytest.approx(pace**2, rel=1e-4)
        assert float(found["pace"][0]) == pytest.approx(pace**2 / (pace**2 + 0.25), rel=1e-4)
    z = film(ONE)
    there = z[:, :, 2] > 0
    z[:, :, 3] = torch.where(there, paces["medium"] + torch.tensor([1.0, -1.0]).repeat(4), 0.0)
    balanced = (z[:, 1:, 3] * there[:, 1:]).sum((-2, -1)) / there[:, 1:].sum((-2, -1))
    wanted = float(((balanced - paces["medium"]).square() / (paces["medium"] ** 2 + 0.25)).mean())
    found = Asking(Perfect())(z, asked(classes([parse(ONE).scene])))
    assert float(found["pace"][0]) == pytest.approx(wanted, abs=1e-4)
    assert float(found["motion"][0]) > 0.9 > 2 * wanted


def test_pace_is_looked_at_and_not_learned_from() -> None:
    found = {name: torch.ones(1) for name in MARKS}
    slower = {**found, "pace": torch.zeros(1)}
    assert float(distance(found)) == float(distance(slower))
    assert float(distance(found, MARKS)) > float(distance(slower, MARKS))


def test_a_scene_of_fewer_things_is_not_measured_by_its_neighbours() -> None:
    alone, both = asked(classes([parse(ONE).scene])), asked(classes([parse(ONE).scene, parse(TWO).scene]))
    ask, z = Asking(Perfect()), film(ONE)
    for name, value in ask(z, alone).items():
        torch.testing.assert_close(ask(z, both[torch.tensor([0])])[name], value)


def test_the_gradient_leads_to_what_was_asked() -> None:
    """Logits that are free: pulled down the distance, they say what was asked where something stood."""
    wanted = asked(classes([parse(ONE.replace("circle", "star")).scene]))
    start = [part.clone() for part in Perfect()(film(ONE))]
    free = [nn.Parameter(part / 10) for part in start]

    class Free(nn.Module):
        def forward(self, z: Tensor) -> tuple[Tensor, ...]:
            return tuple(free)

    step = torch.optim.Adam(free, 0.1)
    ask = Asking(Free())  # type: ignore[arg-type]
    before = float(distance(ask(torch.zeros(1), wanted)).detach())
    for _ in range(60):
        far = distance(ask(torch.zeros(1), wanted)).sum()
        step.zero_grad()
        far.backward()
        step.step()
    assert float(far.detach()) < 0.3 * before
    here = start[2].argmax(-1) == wanted.classes_NKJ[0, 0, 2]
    assert (free[0].argmax(-1)[here] == wanted.classes_NKJ[0, 0, 0]).all()


def test_usual_cells_are_no_fewer_than_the_area_and_grow_with_it() -> None:
    for row in meaning().cells:
        assert list(row) == sorted(row)
        for size, cells in zip(SIZES, row, strict=True):
            assert cells > math.pi * (RADII[size] * SIZE) ** 2 / 64


def test_scenes_as_numbers_by_hand() -> None:
    """A fast star that moves up beside a square that stands still; a bounce; three things where others have one."""
    three = "a red circle, a small blue star and a green square orbit clockwise on a black background"
    prompts = (TWO, ONE.replace("moves right", "bounces diagonally"), three)
    found = asked(classes([parse(prompt).scene for prompt in prompts]))
    assert found.there_NK.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    star, circle = 1 + SHAPES.index("star"), 1 + SHAPES.index("circle")
    assert found.classes_NKJ[:, 0, 0].tolist() == [star, circle, circle]
    assert found.velocity_NK2[0].tolist() == [[0.0, -1.75], [0.0, 0.0], [0.0, 0.0]]
    assert found.pace_NK[0].tolist() == [1.75, 0.0, 0.0]
    assert (found.told_NK[0].tolist(), found.axis_NK[1].tolist()) == ([1, 1, 0], [1, 0, 0])
    assert found.velocity_NK2[1, 0].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert found.classes_NKJ[1, 1].tolist() == [0, 0, 0]


def test_a_reader_of_prompts_learns_what_they_say() -> None:
    """Embeddings that name the classes: after some steps everything is read right, and the scenes are those asked."""
    torch.manual_seed(0)
    scenes = [
        parse(prompt).scene for prompt in (ONE, TWO, ONE.replace("circle", "star"), TWO.replace("large", "small"))
    ]
    things = torch.tensor([targets(scene)[0] for scene in scenes])
    text = torch.cat([torch.randn(4, 3, 16), torch.zeros(4, 2, 16)], 1)
    reader = SceneReader(16, meaning().fields, 3)
    objective, step = SceneReading(reader), torch.optim.Adam(reader.parameters(), 1e-2)
    first = float(objective(ToldScenes(text, things), torch.Generator())["loss"].detach())
    for _ in range(120):
        numbers = objective(ToldScenes(text, things), torch.Generator())
        step.zero_grad()
        numbers["loss"].backward()
        step.step()
    assert float(numbers["loss"].detach()) < 0.1 * first
    assert float(numbers["right"]) == 1.0
    read, wanted = reader.read(text, meaning()), asked(classes(scenes))
    for name in Asked.__dataclass_fields__:
        given, known = getattr(read, name), getattr(wanted, name)
        torch.testing.assert_close(given[:, : known.shape[1]].float(), known.float())
    longer = torch.cat([text, torch.zeros(4, 7, 16)], 1)
    torch.testing.assert_close(reader(longer)[1], reader(text)[1], rtol=1e-4, atol=1e-5)


def test_two_things_of_one_colour_cannot_be_told_apart() -> None:
    scene = parse(ONE).scene
    twice = type(scene)((scene.things[0], scene.things[0]), scene.background)
    with pytest.raises(ValueError, match=r"things of the colours red, red in one scene"):
        asked(classes([twice]))


def test_a_reader_learns_what_stands_in_cells() -> None:
    """Latents that hold the labels: after some steps shapes are read right, before they were not."""
    torch.manual_seed(0)
    z = torch.cat([film(prompt, seed) for prompt in (ONE, TWO) for seed in range(6)])
    everywhere, moves = torch.ones(z.shape[:2]).bool(), z[:, :, 3:].movedim(2, -1)
    batch = LabelledBlocks(z, Told(z[:, :, :3].movedim(2, -1).byte(), moves, moves, everywhere), everywhere)
    reader = BlockReader(5, FRAMES, meaning().seen, width=16, blocks=1)
    objective, step = BlockReading(reader), torch.optim.Adam(reader.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    losses, rights = [], []
    for _ in range(80):
        numbers = objective(batch, generator)
        step.zero_grad()
        numbers["loss"].backward()
        step.step()
        losses.append(float(numbers["loss"].detach()))
        rights.append(float(numbers["right"]))
    assert losses[-1] < 0.3 * losses[0]
    assert rights[-1] > 0.9
