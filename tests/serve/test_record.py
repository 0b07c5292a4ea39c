"""The record of a live session: what was written is read, what was cut is gone, from the disk too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arvid.serve.record import Record


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """Five blocks."""
    record = Record(tmp_path / "live")
    for block in range(5):
        record.add(block, block * 0.75, 0.75, bytes([block]) * (100 + block), {"source": "draft"})
    yield record
    record.close()


def test_what_was_written_is_read(record: Record) -> None:
    for block in range(5):
        found = record.read(block)
        assert found is not None and found[2] == bytes([block]) * (100 + block)
        assert found[1].second == block * 0.75 and found[1].told == {"source": "draft"}
    assert record.read(5) is None
    assert record.end == pytest.approx(3.75)
    assert [record.at(second) for second in (0, 0.74, 0.75, 3.7, 9)] == [0, 0, 1, 4, 5]


def test_a_cut_is_another_version_and_frees_the_disk(record: Record, tmp_path: Path) -> None:
    before = (tmp_path / "live").stat().st_size
    record.cut(2)
    assert (len(record), record.version, record.read(2)) == (2, 1, None)
    assert (tmp_path / "live").stat().st_size == 201 < before
    record.add(2, 1.5, 0.75, b"new", {})
    found = record.read(2)
    assert found is not None and (found[0], found[2]) == (1, b"new")
    for _ in range(50):
        record.cut(0)
        record.add(0, 0, 0.75, b"x" * 100, {})
    assert (tmp_path / "live").stat().st_size == 100
    record.close()
    assert not (tmp_path / "live").exists() and record.read(0) is None


def test_blocks_come_in_order(record: Record) -> None:
    with pytest.raises(ValueError, match="block 7 for a record of 5 blocks"):
        record.add(7, 0, 1, b"", {})
