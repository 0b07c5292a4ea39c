"""The mean of several runs' weights, tensor by tensor.

Knows: files of safetensors with the same tensors, shares. Does not know: what the weights are of, how they were made.
Source: model soups (2203.05482) and WiSE-FT (2109.01903): runs from one start end in one basin, where the mean of two
is often better than either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor


def mean(paths: Sequence[Path], shares: Sequence[float] = ()) -> dict[str, Tensor]:
    """The weighted mean of the floating-point tensors of all files, in fp32 and then in the type of the first file;
    other tensors have to be the same in all. `shares` are brought to a sum of 1 (none given: equal ones).

    Raises ValueError for fewer than two files, shares that do not fit, a missing or damaged file, and files of other
    tensors, with the first that differs.
    """
    shares = shares or [1.0] * len(paths)
    if len(paths) < 2 or len(shares) != len(paths):
        raise ValueError(f"{len(paths)} files and {len(shares)} shares; give at least two files, and a share for each")
    if not all(math.isfinite(share) for share in shares) or abs(sum(shares)) < 1e-6:
        raise ValueError(f"shares {', '.join(f'{share:g}' for share in shares)}; they must be finite, with a sum not 0")
    total, first = sum(shares), _read(paths[0])
    found = {name: _scaled(value, shares[0] / total) for name, value in first.items()}
    for path, share in zip(paths[1:], shares[1:], strict=True):
        other = _read(path)
        _same(paths[0], first, path, other)
        for name, value in other.items():
            if value.is_floating_point():
                found[name] += _scaled(value, share / total)
    return {name: value.to(first[name].dtype).contiguous() for name, value in found.items()}


def told(paths: Sequence[Path]) -> dict[str, str]:
    """What the metadata of all files say alike (the sizes of their transformer, if anything), and what they are for."""
    said = []
    for path in paths:
        with safe_open(path, "pt") as file:
            said.append(file.metadata() or {})
    alike = {name: value for name, value in said[0].items() if all(one.get(name) == value for one in said)}
    return {"format": "pt"} | alike


def _scaled(value: Tensor, share: float) -> Tensor:
    return value.float() * share if value.is_floating_point() else value


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read ({line}); give a file of safetensors") from error


def _same(path: Path, first: dict[str, Tensor], other_path: Path, other: dict[str, Tensor]) -> None:
    """Raises ValueError unless both files hold tensors of the same names and shapes, and what is no number with a
    fraction is equal."""
    if odd := sorted(first.keys() ^ other.keys()):
        raise ValueError(f"{path if odd[0] in first else other_path} alone holds {odd[0]}; give files of one model")
    for name, value in first.items():
        if value.shape != other[name].shape:
            shapes = f"{[*value.shape]} in {path} and {[*other[name].shape]} in {other_path}"
            raise ValueError(f"{name} is {shapes}; give files of one model")
        if not value.is_floating_point() and not torch.equal(value, other[name]):
            raise ValueError(f"{name} differs between {path} and {other_path} and has no mean; give files of one model")
