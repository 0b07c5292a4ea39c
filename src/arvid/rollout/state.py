"""The state of a video in the making: a value in memory, one file on disk, and latents that are written as they come.

Knows: which plain values and nouns a state is made of, how they become tensors and JSON and come back, one and the same
object wherever it was one. Does not know: what any part means, when a state is taken.

On disk a state is a safetensors file whose metadata hold the JSON. It appears whole or not at all; nothing in it is
code. Tensors keep the order of their strides, because a kernel may round differently on another layout.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arvid.caches.pieces import Held
from arvid.rollout.guard import Sight
from arvid.rollout.timeline import Change
from arvid.types import Condition, Move, Span

SCHEMA = 2
NOUNS: dict[str, type[Any]] = {noun.__name__: noun for noun in (Span, Move, Condition, Change, Sight)}
"""Dataclasses that a state may hold, by the name they have on disk."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything a rollout needs to go on after `place` moves of its plan: what was asked for (`request`, plain data),
    the changes of its prompt (`script`) and of its seed (block, seed), what was given to begin with, and the state of
    its parts. Tensors are shared with the running rollout, none is copied."""

    place: int
    request: dict[str, Any]
    script: tuple[Change, ...]
    seeds: tuple[tuple[int, int], ...]
    given: Tensor | None
    parts: Any


def bytes_of(value: Any) -> int:
    """Bytes of the keys and values that the parts of a snapshot hold, wherever in them pasts are."""
    if isinstance(value, Held):
        return value.piece.bytes
    if isinstance(value, dict):
        return sum(bytes_of(part) for part in value.values())
    return sum(bytes_of(part) for part in value) if isinstance(value, (tuple, list)) else 0


# ---------------------------------------------------------------- packing


class Packer:
    """Turns a nested value into JSON and numbered tensors. Sharing is kept: an object met twice is written once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.orders: list[list[int]] = []
        self.nouns: list[Any] = []
        self._seen: dict[int, tuple[Any, dict[str, int]]] = {}

    def pack(self, value: Any) -> Any:
        """The JSON of a value. Raises ValueError for anything but plain data, tensors and the nouns."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, list):
            return [self.pack(part) for part in value]
        if isinstance(value, tuple):
            return {"tuple": [self.pack(part) for part in value]}
        if isinstance(value, dict):
            return {"dict": [[self.pack(key), self.pack(part)] for key, part in value.items()]}
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, self._packed(value))
        return self._seen[id(value)][1]

    def _packed(self, value: Any) -> dict[str, int]:
        if isinstance(value, Tensor):
            strides = value.stride()
            order = sorted(range(value.ndim), key=lambda axis: -strides[axis])
            self.tensors[str(len(self.orders))] = (
                value.detach().permute(order).clone(memory_format=torch.contiguous_format)
            )
            self.orders.append(order)
            return {"tensor": len(self.orders) - 1}
        name = type(value).__name__
        if NOUNS.get(name) is not type(value):
            raise ValueError(f"a state cannot hold a {name}; known: plain data, tensors, {', '.join(NOUNS)}")
        named = {field.name: self.pack(getattr(value, field.name)) for field in fields(NOUNS[name])}
        self.nouns.append({"noun": name, "fields": named})
        return {"object": len(self.nouns) - 1}


class Unpacker:
    """The way back."""

    def __init__(self, tensors: Mapping[str, Tensor], orders: list[list[int]], nouns: list[Any]) -> None:
        self._tensors = [
            tensors[str(number)].permute([order.index(axis) for axis in range(len(order))])
            for number, order in enumerate(orders)
        ]
        self._nouns: list[Any] = []
        for noun in nouns:
            made = {name: self.unpack(value) for name, value in noun["fields"].items()}
            self._nouns.append(NOUNS[noun["noun"]](**made))

    def unpack(self, found: Any) -> Any:
        """The value of its JSON."""
        if isinstance(found, list):
            return [self.unpack(part) for part in found]
        if not isinstance(found, dict):
            return found
        [(kind, value)] = found.items()
        if kind == "tuple":
            return tuple(self.unpack(part) for part in value)
        if kind == "dict":
            return {self.unpack(key): self.unpack(part) for key, part in value}
        return self._tensors[value] if kind == "tensor" else self._nouns[value]


# ---------------------------------------------------------------- files


def save(snapshot: Snapshot, path: Path | str, notes: Mapping[str, Any] | None = None) -> None:
    """Write a snapshot; `notes` is plain data of whoever saves. A kill at any moment leaves the file before or this."""
    packer, path = Packer(), Path(path)
    held = {field.name: packer.pack(getattr(snapshot, field.name)) for field in fields(snapshot)}
    told = {"schema": SCHEMA, "state": held, "orders": packer.orders, "nouns": packer.nouns, "notes": dict(notes or {})}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(packer.tensors, part, {"arvid": json.dumps(told)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path | str, device: str = "cpu") -> tuple[Snapshot, dict[str, Any]]:
    """A snapshot, all of it on `device`, where latents live, and the notes beside it; who restores it brings to itself
    what belongs elsewhere. Raises ValueError when the file is missing, damaged or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no state {path}; give a folder in which a video was begun with --save-every")
    try:
        with safe_open(path, "pt", device) as file:
            told = json.loads(file.metadata()["arvid"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
        if told["schema"] != SCHEMA:
            raise ValueError(f"schema {told['schema']}, expected {SCHEMA}")
        unpacker = Unpacker(tensors, told["orders"], told["nouns"])
        held = {name: unpacker.unpack(value) for name, value in told["state"].items()}
        return Snapshot(**held), told["notes"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is not a state that can be gone on with ({error}); begin again") from error


class LatentsFile:
    """Latents on disk as they come: raw fp32 frames of `shape` (channels, height, width), one after the other. `frames`
    counts them; an existing file is gone on with after `truncate`."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self._shape = path, shape
        self._each = 4 * int(np.prod(shape))
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.seek(0, os.SEEK_END)

    @property
    def frames(self) -> int:
        """Whole latent frames in the file."""
        return self._file.tell() // self._each

    def append(self, z_BTCHW: Tensor) -> None:
        """Add frames. Raises ValueError unless they are one video's and of the file's shape."""
        found = tuple(z_BTCHW.shape)
        if found[0] != 1 or found[2:] != self._shape:
            raise ValueError(f"latents {list(found)} for a file of frames {list(self._shape)}; give one video's")
        self._file.write(z_BTCHW.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())

    def truncate(self, frames: int) -> None:
        """Keep the first frames only. Raises ValueError when there are fewer."""
        if self.frames < frames:
            raise ValueError(f"{self.path} holds {self.frames} latent frames, {frames} were written; begin again")
        self._file.seek(frames * self._each)
        self._file.truncate()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def flush(self) -> None:
        """Have everything on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, path: Path, told: Mapping[str, str]) -> None:
        """Write what was gathered as safetensors with one tensor, `latents` [1, T, C, H, W], without holding it in
        memory: the format is the length of a JSON header, the header, the bytes."""
        self.flush()
        size = self.frames * self._each
        entry = {"dtype": "F32", "shape": [1, self.frames, *self._shape], "data_offsets": [0, size]}
        header = json.dumps({"__metadata__": dict(told), "latents": entry}).encode()
        header += b" " * (-len(header) % 8)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file, self.path.open("rb") as raw:
                file.write(len(header).to_bytes(8, "little") + header)
                shutil.copyfileobj(raw, file)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
