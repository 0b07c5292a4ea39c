"""Spec strings: what is read, and that what cannot be read says what is known, in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, make_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvid.spec import build


@dataclass(frozen=True)
class Paint:
    """All kinds of options."""

    coats: int
    shine: float = 0.5
    name: str = "red"
    layers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.coats < 1:
            raise ValueError(f"coats={self.coats} must be at least 1")


@dataclass(frozen=True)
class Bare:
    """No options."""


KNOWN = {"paint": Paint, "bare": Bare}


def error(text: str) -> str:
    with pytest.raises(ValueError) as caught:
        build(text, KNOWN, "finish")
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_every_kind_is_read() -> None:
    assert build("bare", KNOWN, "finish") == Bare()
    assert build("paint:coats=2", KNOWN, "finish") == Paint(2)
    assert build("paint:coats=3,shine=-1e-2,name=sky,layers=0.8+0.4", KNOWN, "finish") == Paint(
        3, -0.01, "sky", (0.8, 0.4)
    )
    assert build("paint:coats=1,shine=-inf", KNOWN, "finish") == Paint(1, -math.inf)


@given(st.integers(1, 10**9), st.floats(allow_nan=False), st.lists(st.floats(allow_nan=False), min_size=1))
def test_what_is_written_is_read_back(coats: int, shine: float, layers: list[float]) -> None:
    text = f"paint:coats={coats},shine={shine!r},layers={' + '.join(map(repr, layers))}"
    if any("e+" in repr(number) for number in layers):
        return  # '+' joins lists
    assert build(text, KNOWN, "finish") == Paint(coats, shine, layers=tuple(layers))


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert error("lacquer:coats=2") == "unknown finish 'lacquer'; known: bare, paint"
    assert "known: bare, paint" in error("")


def test_an_unknown_option_lists_the_known_ones() -> None:
    assert error("paint:coats=1,colour=red") == (
        "finish 'paint' has no option 'colour=red'; its options: coats=, shine=, name=, layers="
    )
    assert "no option 'coats'" in error("paint:coats")
    assert error("bare:x=1").endswith("its options: none")


def test_a_missing_option_is_named() -> None:
    assert error("paint") == "finish 'paint' needs coats="


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("paint:coats=two", "finish 'paint': coats='two' is not a whole number"),
        ("paint:coats=1.5", "finish 'paint': coats='1.5' is not a whole number"),
        ("paint:coats=1,shine=much", "finish 'paint': shine='much' is not a number"),
        ("paint:coats=1,shine=nan", "finish 'paint': shine='nan' is not a number"),
        ("paint:coats=1,layers=0.8+nan", "finish 'paint': layers='0.8+nan' is not numbers joined by +"),
        ("paint:coats=1,layers=0.8+", "finish 'paint': layers='0.8+' is not numbers joined by +"),
    ],
)
def test_a_value_of_the_wrong_kind(text: str, said: str) -> None:
    assert error(text) == said


def test_an_option_that_comes_twice_is_refused() -> None:
    assert error("paint:coats=1,coats=2") == "finish 'paint' has coats= twice; give it once"


def test_the_options_own_check_speaks_for_itself() -> None:
    assert error("paint:coats=0") == "coats=0 must be at least 1"


def test_kinds_are_read_from_real_types_too() -> None:
    """Annotations are strings only in modules that say so."""
    real = make_dataclass("Real", [("count", int), ("share", float, field(default=0.0))])
    made = build("real:count=3,share=0.5", {"real": real}, "thing")
    assert (made.count, made.share) == (3, 0.5)


def test_a_fault_inside_an_option_is_not_called_a_missing_key() -> None:
    def broken() -> Bare:
        raise TypeError("unsupported operand")

    with pytest.raises(TypeError, match="unsupported operand"):
        build("broken", {"broken": broken}, "finish")
