"""Rotary positions against complex multiplication token by token, and against what they are for: distances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from arvid.layers.rope import angles, angles_at, axis_pairs, rotate
from oracles.elsewhere import Elsewhere, Far, far

FRAMES, ROWS, COLUMNS = (0, 3, 7), 2, 3


def turned_by_hand(x_BLHD: Tensor, frames: tuple[int, ...], rows: int, columns: int) -> Tensor:
    """Each channel pair as one complex number times e^(i position rate), in float64."""
    size = x_BLHD.shape[-1]
    side = size // 6
    pairs = [size // 2 - 2 * side, side, side]
    places = [(frame, row, column) for frame in frames for row in range(rows) for column in range(columns)]
    turns = [
        [place[axis] * 10000.0 ** (-i / count) for axis, count in enumerate(pairs) for i in range(count)]
        for place in places
    ]
    unit = torch.polar(torch.ones(len(places), size // 2, dtype=torch.float64), torch.tensor(turns).double())
    numbers = torch.view_as_complex(x_BLHD.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(numbers * unit[:, None]).flatten(-2)


def test_the_split_of_wan() -> None:
    assert axis_pairs(128) == (22, 21, 21)


@given(st.integers(3, 256).map(lambda half: 2 * half))
def test_every_pair_belongs_to_one_axis_and_sides_are_equal(size: int) -> None:
    frame, row, column = axis_pairs(size)
    assert frame + row + column == size // 2
    assert frame >= row == column >= 1


@pytest.mark.parametrize("size", [6, 12, 20, 128])
def test_rotation_is_complex_multiplication(size: int) -> None:
    x_BLHD = torch.randn(2, len(FRAMES) * ROWS * COLUMNS, 3, size)
    turned = rotate(x_BLHD, angles(FRAMES, ROWS, COLUMNS, size))
    torch.testing.assert_close(turned.double(), turned_by_hand(x_BLHD, FRAMES, ROWS, COLUMNS), rtol=1e-5, atol=1e-5)


@given(first=st.integers(0, 200), second=st.integers(0, 200), shift=st.integers(0, 300))
def test_only_distances_matter(first: int, second: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(first + 1000 * second)
    q, k = torch.randn(2, 1, 1, 1, 24, generator=generator)

    def product(a: int, b: int) -> float:
        return float((rotate(q, angles((a,), 1, 1, 24)) * rotate(k, angles((b,), 1, 1, 24))).sum())

    assert math.isclose(product(first, second), product(first + shift, second + shift), abs_tol=1e-4)


def test_places_of_one_frame_differ_and_norms_stay() -> None:
    x_BLHD = torch.randn(1, 1, 1, 24).expand(1, 6, 1, 24)
    turned = rotate(x_BLHD, angles((4,), ROWS, COLUMNS, 24))
    torch.testing.assert_close(turned.norm(dim=-1), x_BLHD.norm(dim=-1))
    assert len({tuple(row) for row in turned[0, :, 0].tolist()}) == 6


def test_dtype_is_kept_and_the_turn_is_made_in_fp32() -> None:
    x_BLHD = torch.randn(1, 6, 1, 24).bfloat16()
    table = angles((500,), ROWS, COLUMNS, 24)
    turned = rotate(x_BLHD, table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x_BLHD.float(), table).bfloat16())


def test_angles_made_in_inference_mode_serve_a_training_step() -> None:
    """Held-out evaluation runs in inference mode between training steps and shares the table of angles."""
    places = (8191, 8192)
    with torch.inference_mode():
        angles(places, 1, 1, 24)
    weight = torch.randn(1, 2, 1, 24, requires_grad=True)
    rotate(weight, angles(places, 1, 1, 24)).square().sum().backward()
    assert weight.grad is not None


def test_the_table_of_angles_does_not_grow_with_a_rollout() -> None:
    for start in range(200):
        angles((start, start + 1), 1, 1, 12)
    assert angles.cache_info().currsize <= 32


@given(
    st.lists(st.floats(0, 1e5) | st.integers(0, 10**5), min_size=1, max_size=5).map(tuple), st.integers(1, 9),
    st.integers(1, 9), st.sampled_from([6, 12, 24, 64, 128]),
)  # fmt: skip
def test_every_token_turns_bit_for_bit_as_if_it_were_alone(
    frames: tuple[float, ...], rows: int, columns: int, size: int
) -> None:
    places = torch.tensor([[f, r, c] for f in frames for r in range(rows) for c in range(columns)], dtype=torch.float64)
    alone = []
    for axis, pairs in enumerate(axis_pairs(size)):
        rate = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        alone.append(places[:, axis, None] * rate)
    angle_LE = torch.cat(alone, 1)
    expected = torch.polar(torch.ones_like(angle_LE), angle_LE).to(torch.complex64)
    assert torch.equal(angles(frames, rows, columns, size), expected)
    assert torch.equal(angles_at(places, size), expected)


class Turned(TorchFunctionMode):
    """Counts the complex numbers that are made out of angles."""

    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.count += made.numel() if func is torch.polar else 0
        return made


def test_no_number_is_made_for_each_token() -> None:
    """Sines and cosines in float64 are what a table costs: 21 frames of 30 x 52 tokens have 73 places, not 32,760."""
    with Turned() as turned:
        table = angles(tuple(range(70001, 70022)), 30, 52, 128)
    assert table.shape == (21 * 30 * 52, 64)
    assert turned.count == 21 * 22 + 30 * 21 + 52 * 21


def test_rates_are_moved_to_a_device_once() -> None:
    """Each move makes the host wait for a GPU, and tokens are turned layer by layer."""
    with Elsewhere() as device:
        places_L3 = far(torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        first = angles_at(places_L3, 24)
        moved = device.moved
        again = angles_at(places_L3, 24)
    assert isinstance(first, Far) and torch.equal(first, again)
    assert device.moved == moved
