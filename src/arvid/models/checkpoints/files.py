"""Where weights lie: safetensors, torch's zip format, shards with an index, directories, the Hugging Face hub.

Knows: how tensors are listed and read from a file by name, a few at a time. Does not know: what a name means.

A container is told by its first bytes, not by its name. Files are mapped into memory, never read whole; while tensors
are read the mapping is opened anew for every thirty-second part of them, because the pages of a mapping count as memory
of this process for as long as it lives. torch.load is called with weights_only=True and mmap=True and in no other way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PARTS_OF_A_READ = 32
LEAST_READ = 2**20
"""Bytes for which it does not pay to open a mapping anew."""
NAMED = 10
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt")
INDEX = ".index.json"
LEVEL = "/"
"""Stands between the keys of nested dictionaries in the name of a tensor."""

_FETCHED = ["*.json", "*.safetensors", "README.md"]
_NOT_FETCHED = ["text_encoder*/*", "image_encoder*/*", "vae/*", "tokenizer*/*", "scheduler/*", "feature_extractor/*"]
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(.+))?")
_FOREIGN = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights; fetch the file itself (git lfs pull)",
    b"GGUF": "is a GGUF file; give safetensors or a torch file of the same weights",
    b"\x80": "is a bare pickle, which can carry code and is not read; save its weights as safetensors",
    b"<!DOCTYPE": "is a web page, not weights; fetch the file itself",
    b"<html": "is a web page, not weights; fetch the file itself",
}
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        count = self.dtype.itemsize
        for side in self.shape:
            count *= side
        return count


class Container(Protocol):
    """Named tensors that are somewhere."""

    @property
    def name(self) -> str:
        """How a message calls it."""
        ...

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All tensors."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says about itself."""
        ...

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Some tensors, on the CPU. Each may lie in the file: copy it, and let go of it before asking for the next."""
        ...


class Held:
    """Tensors that are in memory already."""

    def __init__(self, state: Mapping[str, Tensor], name: str = "the state dict") -> None:
        self.name, self.metadata, self._state = name, dict[str, str](), state
        self.entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors themselves."""
        yield from ((name, self._state[name]) for name in names)


class SafetensorsFile:
    """A .safetensors file. Raises ValueError when it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        with self._open() as file:
            self.metadata: dict[str, str] = dict(file.metadata() or {})
            self.entries = {key: self._entry(file.get_slice(key), key) for key in file.keys()}  # noqa: SIM118

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged or not complete ({_line(error)}); fetch it again") from error

    def _entry(self, piece: Any, key: str) -> Entry:
        kind = piece.get_dtype()
        if kind not in _DTYPES:
            raise ValueError(f"{self.path}: tensor {key} is of type {kind}; known: {', '.join(_DTYPES)}")
        return Entry(tuple(piece.get_shape()), _DTYPES[kind])

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors on the file's pages."""
        for group in _groups(names, self.entries):
            with self._open() as file:
                for name in group:
                    yield name, file.get_tensor(name)


class TorchFile:
    """A file of torch.save in the zip format, nested dictionaries flattened. Raises ValueError when it is damaged or
    holds anything but data."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.metadata = path, str(path), dict[str, str]()
        self.entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in self._load().items()}

    def _load(self) -> dict[str, Tensor]:
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # what a damaged pickle raises is anybody's guess
            said = str(error)
            code = re.search(r"GLOBAL ([\w.]+)|type[^:]*: ([\w.]+)", said) if "eights only" in said else None
            if code or "eights_only" in said or "eights only" in said:
                what = f" ({code[1] or code[2]})" if code else ""
                raise ValueError(
                    f"{self.path} holds code or objects{what} beside weights and is not read; save the weights alone, "
                    "as safetensors"
                ) from error
            raise ValueError(f"{self.path} is damaged or not complete ({_line(error)}); fetch it again") from error
        return dict(_flat(held, ""))

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors on the file's pages."""
        for group in _groups(names, self.entries):
            held = self._load()
            for name in group:
                yield name, held.pop(name)
            del held


class Shards:
    """Several files with an index. Raises ValueError when a file, or a tensor that the index names, is missing."""

    def __init__(self, index: Path) -> None:
        self.name = str(index)
        try:
            where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(where.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of shards ({_line(error)}); fetch it again") from error
        absent = [file for file in files if not (index.parent / file).is_file()]
        if absent:
            raise ValueError(f"{index} names {len(files)} files, {len(absent)} are missing: {absent[:NAMED]}; "
                             "fetch them")  # fmt: skip
        self._shards = [open_file(index.parent / file) for file in files]
        self.metadata: dict[str, str] = {}
        self.entries: dict[str, Entry] = {}
        for shard in self._shards:
            self.metadata |= shard.metadata
            self.entries |= shard.entries
        lost = sorted(set(where) - set(self.entries))
        if lost:
            raise ValueError(f"{index} names {len(lost)} tensors that its files lack: {lost[:NAMED]}; fetch them again")

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors, shard after shard."""
        for shard in self._shards:
            yield from shard.read([name for name in names if name in shard.entries])


def open_file(path: Path) -> Container:
    """The container at a path, told by its first bytes. Raises ValueError for anything else, and for damaged files."""
    if path.name.endswith(INDEX):
        return Shards(path)
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"PK\x03\x04"):
        return TorchFile(path)
    if head[8:9] == b"{":
        return SafetensorsFile(path)
    for sign, meaning in _FOREIGN.items():
        if head.startswith(sign):
            raise ValueError(f"{path} {meaning}")
    what = "is empty" if not head else "is neither safetensors nor a torch file"
    raise ValueError(f"{path} {what}; fetch it again")


def containers(path: Path) -> list[Path]:
    """The files of a directory that may hold weights: indices, and weights that no index names."""
    found = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    indices = [entry for entry in found if entry.name.endswith(INDEX)]
    sharded: set[str] = set()
    for index in indices:
        try:
            sharded |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # opening it says what is wrong
    return indices + [entry for entry in found if entry.suffix in ENDINGS and entry.name not in sharded]


def locate(name: str) -> Path:
    """The file or directory called `name`: a path, or `owner/name` or `owner/name/file` on the Hugging Face hub.

    A repository is fetched as safetensors and JSON only; a torch file is fetched when it is named. Raises ValueError
    when there is no such path and the hub does not have it, or is off (HF_HUB_OFFLINE) and the cache does not.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    known = _REPOSITORY.fullmatch(name)
    if not known or path.parent.is_dir() or (not known[2] and path.suffix in ENDINGS):
        raise ValueError(f"no file or directory {name}; give a path, or owner/name of a Hugging Face repository")
    repository, inside = known[1], known[2]
    from huggingface_hub import snapshot_download

    wanted, unwanted = ([inside, f"{inside}/*"], None) if inside else (_FETCHED, _NOT_FETCHED)
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=unwanted))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no file or directory {name}, and the Hugging Face repository {repository} is not at hand "
            f"({_line(error)}); check the name, or fetch it where there is a network"
        ) from error
    if inside and not (folder / inside).exists():
        raise ValueError(f"the repository {repository} has no {inside}; look up the file's name on its page")
    return folder / inside if inside else folder


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries with their path; everything that is not a tensor is left."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Tensor):
                yield f"{prefix}{key}", inner
            else:
                yield from _flat(inner, f"{prefix}{key}{LEVEL}")


def _groups(names: Sequence[str], entries: Mapping[str, Entry]) -> Iterator[list[str]]:
    """Names in runs of about a thirty-second of all their bytes, or of LEAST_READ where that is more."""
    limit = max(LEAST_READ, sum(entries[name].bytes for name in names) // PARTS_OF_A_READ)
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + entries[name].bytes > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += entries[name].bytes
    if group:
        yield group


def _line(error: Exception) -> str:
    """The start of what an error says, on one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
