"""What a model must tell half-way: cells in their places, labels of the frames a pass shows, a loss of known value."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.train.flow import FlowBatch, TeacherForcing
from arvid.train.reading import CellReader, ReadForcing, Told, ToldBatch

BLOCK, FRAMES, CHANNELS, SIDE = 3, 8, 4, 4


def wan() -> CausalWan:
    torch.manual_seed(0)
    return CausalWan(WanConfig(24, 48, 2, 4, 8, 5, CHANNELS, CHANNELS, 16))


def marks(clips: int, first: int, frames: int) -> Tensor:
    """[clips, frames]: a number that names clip and frame."""
    return (first + 100 * torch.arange(clips)[:, None] + torch.arange(frames)).float()


def latents(mark_BT: Tensor) -> Tensor:
    return mark_BT[:, :, None, None, None].expand(-1, -1, CHANNELS, SIDE, SIDE).clone()


def told(mark_BT: Tensor) -> Told:
    cells = mark_BT[:, :, None, None].expand(-1, -1, SIDE, SIDE)
    still = torch.zeros(*cells.shape, 2)
    return Told(cells[..., None].expand(-1, -1, -1, -1, 2), still, still, mark_BT >= 0)


def test_every_cell_is_read_from_its_own_place_in_its_token() -> None:
    reader = CellReader(24, (2, 3), (4, 5))
    x = torch.randn(2, 3, 8, 24)
    *kinds, velocity, offset = reader(x, (4, 2))
    assert [tuple(part.shape) for part in (*kinds, velocity, offset)] == [(2, 3, 8, 6, n) for n in (4, 5, 2, 2)]
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    read = normal @ reader.map.weight.T + reader.map.bias
    for row in range(8):
        for column in range(6):
            token = read[:, :, row // 2 * 2 + column // 3]
            inside = (row % 2 * 3 + column % 3) * 13
            torch.testing.assert_close(kinds[1][:, :, row, column], token[..., inside + 4 : inside + 9])
            torch.testing.assert_close(velocity[:, :, row, column], token[..., inside + 9 : inside + 11])
            torch.testing.assert_close(offset[:, :, row, column], token[..., inside + 11 : inside + 13])


def test_a_reader_that_knows_nothing_loses_the_choices_half_the_square_of_the_pace_and_twice_that_of_the_way() -> None:
    reader = CellReader(8, (1, 1), (4, 5))
    nn.init.zeros_(reader.map.weight)
    nn.init.zeros_(reader.map.bias)
    classes = torch.tensor([[0, 0], [2, 3], [1, 1], [0, 0]]).view(1, 1, 2, 2, 2)
    velocity = torch.tensor([[9.0, 9.0], [1.0, 2.0], [3.0, 0.0], [9.0, 9.0]]).view(1, 1, 2, 2, 2)
    offset = torch.tensor([[7.0, 7.0], [0.5, 0.0], [0.0, 1.0], [7.0, 7.0]]).view(1, 1, 2, 2, 2)
    loss, _ = reader.loss(torch.randn(1, 1, 4, 8), Told(classes, velocity, offset, torch.ones(1, 1).bool()))
    wanted = math.log(4) + math.log(5) + 0.5 * (5 + 9) / 2 + 2 * (0.25 + 1) / 2
    torch.testing.assert_close(loss, torch.tensor(wanted))


def test_frames_that_are_not_asked_for_do_not_count() -> None:
    reader = CellReader(8, (1, 1), (4, 5))
    x, classes = torch.randn(1, 6, 4, 8), torch.randint(0, 4, (1, 6, 2, 2, 2))
    ways = torch.randn(2, 1, 6, 2, 2, 2).unbind()
    late = torch.arange(6)[None] >= 3
    some, _ = reader.loss(x, Told(classes, *ways, late))
    alone, _ = reader.loss(x[:, 3:], Told(classes[:, 3:], *(way[:, 3:] for way in ways), late[:, 3:]))
    torch.testing.assert_close(some, alone)
    every, _ = reader.loss(x, Told(classes, *ways, torch.ones(1, 6).bool()))
    assert not torch.equal(every, some)


def test_the_labels_of_a_pass_are_those_of_the_frames_it_shows() -> None:
    model = wan()
    forcing = TeacherForcing(model, FRAMES, BLOCK, Window(3), noisy_past=0.0, rough_past=0.0)
    forcing._levels = lambda size, generator: torch.zeros(size, FRAMES)  # type: ignore[method-assign]
    shown: list[Tensor] = []
    plain = model.flow

    def flow(z_BTCHW: Tensor, *rest: object) -> object:
        shown.append(z_BTCHW[:, :, 0, 0, 0])
        return plain(z_BTCHW, *rest)  # type: ignore[arg-type]

    model.flow = flow  # type: ignore[method-assign, assignment]
    pairs: list[tuple[tuple[int, ...], Tensor]] = []

    class Recorder(CellReader):
        def loss(self, x_BTPD: Tensor, told: Told) -> tuple[Tensor, Tensor]:
            pairs.append((tuple(x_BTPD.shape[:2]), told.classes_BTYXK[:, :, 0, 0, 0]))
            return x_BTPD.sum() * 0, torch.zeros(())

    objective = ReadForcing(forcing, Recorder(24, (2, 2), (3, 3)), model.blocks[1])
    whole, first = marks(2, 1, FRAMES), marks(3, 5000, BLOCK)
    clips = FlowBatch(latents(whole), torch.randn(2, 5, 8), (latents(first), torch.randn(3, 5, 8)))
    objective(ToldBatch(clips, told(whole), told(first)), torch.Generator().manual_seed(0))
    _, *noisy, alone = shown
    assert len(noisy) == len(forcing.passes.groups) == len(pairs) - 1
    assert pairs[0][0] == tuple(alone.shape) and torch.equal(pairs[0][1], first)
    for mark, (shape, labels) in zip(noisy, pairs[1:], strict=True):
        assert shape == tuple(mark.shape) and torch.equal(labels, mark)


def test_reading_teaches_what_comes_before_it_and_leaves_the_rest_alone() -> None:
    model = wan()
    forcing = TeacherForcing(model, FRAMES, BLOCK, Window(3))
    objective = ReadForcing(forcing, CellReader(24, (2, 2), (3, 3)), model.blocks[1])
    z, first = torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE), torch.randn(3, BLOCK, CHANNELS, SIDE, SIDE)
    clips = FlowBatch(z, torch.randn(2, 5, 8), (first, torch.randn(3, 5, 8)))
    labels = [
        Told(
            torch.randint(0, 3, (*x.shape[:2], SIDE, SIDE, 2)),
            *torch.randn(2, *x.shape[:2], SIDE, SIDE, 2),
            torch.ones(x.shape[:2]).bool(),
        )
        for x in (z, first)
    ]
    numbers = objective(ToldBatch(clips, *labels), torch.Generator().manual_seed(0))
    plain = forcing(clips, torch.Generator().manual_seed(0))
    (numbers["loss"] - plain["loss"]).backward()
    grown = [max(float(p.grad.abs().max()) for p in block.parameters() if p.grad is not None) for block in model.blocks]
    assert min(grown[:2]) > 1e-4 > 1e-6 > max(grown[2:])
