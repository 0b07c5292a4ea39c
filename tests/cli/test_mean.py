"""Means of weights: by hand, in the type of the first file, and refused where files do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arvid.models.averaging import mean

Type = Callable[..., Any]


def file(folder: Path, name: str, value: float, **other: torch.Tensor) -> Path:
    path = folder / f"{name}.safetensors"
    tensors = {
        "a.weight": torch.full((2, 3), value),
        "b": torch.tensor([value, -value]).bfloat16(),
        "steps": torch.tensor(4),
    }
    save_file({**tensors, **other}, path)
    return path


def test_the_mean_by_hand(tmp_path: Path) -> None:
    one, two, three = (file(tmp_path, str(value), value) for value in (1.0, 2.0, 6.0))
    found = mean([one, two, three])
    torch.testing.assert_close(found["a.weight"], torch.full((2, 3), 3.0))
    assert found["b"].dtype == torch.bfloat16
    assert found["b"].tolist() == [3.0, -3.0]
    assert int(found["steps"]) == 4
    torch.testing.assert_close(mean([one, three], [3, 1])["a.weight"], torch.full((2, 3), 2.25))
    torch.testing.assert_close(mean([one, two], [-1, 2])["a.weight"], torch.full((2, 3), 3.0))


def test_the_mean_is_taken_in_full_precision(tmp_path: Path) -> None:
    """In bf16 steps of a sum, 1 + 1/256 would be 1."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, value in zip(paths, (1.0, 1.0078125, 1.015625), strict=True):
        save_file({"w": torch.tensor([value]).bfloat16()}, path)
    assert mean(paths)["w"].tolist() == [1.0078125]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"more": torch.zeros(1)}, "alone holds more; give files of one model"),
        ({"a.weight": torch.zeros(3, 2)}, "a.weight is [2, 3] in"),
        ({"steps": torch.tensor(5)}, "steps differs between"),
    ],
)
def test_files_of_another_model_are_refused(tmp_path: Path, other: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        mean([file(tmp_path, "one", 1.0), file(tmp_path, "two", 2.0, **other)])
    assert said in str(caught.value)


def test_the_command_writes_a_whole_file_or_none(arvid: Type, tmp_path: Path) -> None:
    one, two, out = file(tmp_path, "one", 1.0), file(tmp_path, "two", 3.0), tmp_path / "mean.safetensors"
    result = arvid("models", "mean", one, two, "-o", out, "--shares", "3,1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(out)
    torch.testing.assert_close(load_file(out)["a.weight"], torch.full((2, 3), 1.5))
    for words, said in [
        ([one, "-o", tmp_path / "x.safetensors"], "1 files and 1 shares; give at least two files"),
        ([one, two, "-o", out], "exists; name a new file"),
        ([one, two, "-o", tmp_path / "x.pt"], "ends in .pt; it is written as .safetensors"),
        ([one, two, "-o", tmp_path / "x.safetensors", "--shares", "1,a"], "expected numbers like 1,1,2"),
        ([one, two, "-o", tmp_path / "x.safetensors", "--shares", "1,-1"], "with a sum not 0"),
        ([one, tmp_path / "no.safetensors", "-o", tmp_path / "x.safetensors"], "cannot be read"),
    ]:
        refused = arvid("models", "mean", *words)
        assert refused.exit_code == 2
        assert said in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mean.safetensors",
        "one.safetensors",
        "two.safetensors",
    ]
