"""The arithmetic of docs/scaling.md, line by line."""

from __future__ import annotations

import ast
import math
import operator
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "scaling.md"
BLOCKS = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
SIGNS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip


def value(node: ast.expr) -> float:
    """What an expression of numbers comes to."""
    if isinstance(node, ast.BinOp):
        return float(SIGNS[type(node.op)](value(node.left), value(node.right)))
    assert isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
    return float(node.value)


def right(line: str) -> bool:
    """Whether both sides agree, as exactly as the right side is written."""
    sum_of, said = line.split(" = ")
    digits = len(said.partition(".")[2])
    return math.isclose(value(ast.parse(sum_of, mode="eval").body), float(said), rel_tol=0, abs_tol=0.51 * 10**-digits)


def test_there_is_arithmetic() -> None:
    assert len(LINES) > 30
    assert right("1 / 3 = 0.333") and not right("1 / 3 = 0.334")


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_right(line: str) -> None:
    assert right(line)


def erlang(servers: int, busy: float) -> float:
    """The share that waits for one of `servers`, by the recurrence of Erlang's loss formula."""
    loss = 1.0
    for count in range(1, servers + 1):
        loss = servers * busy * loss / (count + servers * busy * loss)
    return loss / (1 - busy * (1 - loss))


def test_the_table_of_waiting() -> None:
    rows = re.findall(r"^\| (\d+) % \| ([\d.]+) % \| ([\d.]+) s \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 4
    for busy, share, wait in rows:
        waits = erlang(64, int(busy) / 100)
        assert 100 * waits == pytest.approx(float(share), abs=0.5)
        assert waits / (64 * (1 - int(busy) / 100)) * 10.7 == pytest.approx(float(wait), abs=0.06)
