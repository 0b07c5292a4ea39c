"""Labels say what the rendered film shows, cell by cell."""

import numpy as np
import pytest

from arvid.worlds import shapes
from arvid.worlds.grammar import SHAPES, SIZES, THING_COLOURS
from arvid.worlds.labels import CELL, label

PROMPT = "a large red circle moves right quickly on a black background"


def test_pixels_of_things_are_the_pixels_that_differ_from_the_background() -> None:
    film, found = shapes.render(PROMPT, 3, 20), label(PROMPT, 3, 20)
    red = np.abs(film.astype(int) - film[0, 0, 0].astype(int)).max(-1) > 30
    strange = red ^ found.things_THW
    assert red.any() and strange.mean() < 0.005


def test_cells_name_shape_and_size_where_the_thing_covers_them_and_nothing_elsewhere() -> None:
    found = label(PROMPT, 3, 20)
    share = found.things_THW.reshape(20, 8, CELL, 8, CELL).mean((2, 4))
    assert set(found.shape_TYX[share > 0.3]) == {1 + SHAPES.index("circle")}
    assert set(found.size_TYX[share > 0.3]) == {1 + SIZES.index("large")}
    assert set(found.colour_TYX[share > 0.3]) == {1 + THING_COLOURS.index("red")}
    assert not found.shape_TYX[share == 0].any() and not found.colour_TYX[share == 0].any()


def test_velocity_is_the_pace_of_the_middle_of_the_thing() -> None:
    found = label("a small green square moves up on a gray background", 5, 12)
    stands = found.shape_TYX > 0
    np.testing.assert_allclose(found.velocity_TYX2[1:][stands[1:]], [[0.0, -1.0]] * int(stands[1:].sum()), atol=1e-2)
    assert not found.velocity_TYX2[0].any()


@pytest.mark.parametrize("prompt", [PROMPT, "a small yellow circle moves up slowly on black, camera pans left"])
def test_offsets_point_at_the_middle_of_what_is_seen(prompt: str) -> None:
    found = label(prompt, 3, 30)
    for frame, cells, offset in zip(found.things_THW, found.shape_TYX, found.offset_TYX2, strict=True):
        rows, columns = np.nonzero(frame)
        if np.ptp(rows) > 40 or np.ptp(columns) > 40:
            continue  # over an edge: the mean of its pixels is not its middle
        middle = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / CELL
        for row, column in np.argwhere(cells):
            np.testing.assert_allclose((column + 0.5, row + 0.5) + offset[row, column], middle, atol=0.1)
        assert not offset[cells == 0].any()


def test_over_an_edge_the_shorter_way_is_the_offset() -> None:
    found = label("a large red circle moves right quickly on black", 3, 81)
    over = [frame for frame, seen in enumerate(found.shape_TYX) if seen[:, 0].any() and seen[:, -1].any()]
    assert over
    assert np.abs(found.offset_TYX2[over].astype(float)).max() < 3


def test_of_two_things_the_one_that_covers_more_of_a_cell_names_it() -> None:
    prompt = "a large blue square stays still and a large red star stays still on a white background"
    found = label(prompt, 1, 2)
    assert set(np.unique(found.shape_TYX)) == {0, 1 + SHAPES.index("square"), 1 + SHAPES.index("star")}


def test_a_vanished_thing_has_no_label() -> None:
    found = label("a red circle stays still on black, then the red circle vanishes", 0, 40)
    assert found.shape_TYX[0].any() and not found.shape_TYX[-1].any()


def test_a_size_without_whole_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="60 pixels"):
        label(PROMPT, 0, 4, 60)
