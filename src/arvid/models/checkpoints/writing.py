"""Writing a checkpoint in our own form: safetensors under the original names, and a config.json beside them.

Knows: the layout of the directory, shards and their index. Does not know: where the weights came from.

    config.json          kind, families, sizes, licence, what was merged
    model.safetensors    or model-00001-of-00002.safetensors, ... with model.safetensors.index.json
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from arvid.models.checkpoints.files import INDEX
from arvid.models.checkpoints.reading import CONFIG, KIND, Checkpoint

SCHEMA = 1
SHARD_BYTES = 4 * 2**30
WEIGHTS = "model.safetensors"


def convert(checkpoint: Checkpoint, directory: Path, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write a checkpoint, bit by bit as it is (LoRA merged), and name the files. At most `shard_bytes` of weights, or
    one tensor, are in memory at a time. The directory appears whole or not at all.

    Raises ValueError when the directory exists and is not empty, or its parent does not exist.
    """
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not empty; name a new directory")
    if not directory.parent.is_dir():
        raise ValueError(f"folder {directory.parent} does not exist; make it first or choose another")
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        _weights(checkpoint, part, shard_bytes)
        _write(part / CONFIG, _described(checkpoint))
        if directory.exists():
            directory.rmdir()
        os.replace(part, directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(directory.iterdir())


def _weights(checkpoint: Checkpoint, folder: Path, shard_bytes: int) -> None:
    metadata = {"format": "pt", **({"license": checkpoint.licence} if checkpoint.licence else {})}
    where: dict[str, Path] = {}
    files: list[Path] = []
    for number, shard in enumerate(_shards(checkpoint, shard_bytes), 1):
        files.append(folder / f"{number}.part")
        save_file(shard, files[-1], metadata)
        where |= dict.fromkeys(shard, files[-1])
        shard.clear()
    if len(files) == 1:
        files[0].rename(folder / WEIGHTS)
        return
    stem = WEIGHTS.removesuffix(".safetensors")
    named = {file: f"{stem}-{n:05}-of-{len(files):05}.safetensors" for n, file in enumerate(files, 1)}
    for file, name in named.items():
        file.rename(folder / name)
    total = sum(entry.bytes for entry in checkpoint.entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": {key: named[file] for key, file in where.items()}}
    _write(folder / f"{WEIGHTS}{INDEX}", index)


def _shards(checkpoint: Checkpoint, limit: int) -> Iterator[dict[str, Tensor]]:
    """Copies of the tensors, in runs of at most `limit` bytes."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in checkpoint.tensors():
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
    yield shard


def _described(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "families": list(checkpoint.families),
        "config": asdict(checkpoint.config),
        "license": checkpoint.licence,
        "source": Path(checkpoint.name).name,
        "merged": [Path(lora.name).name for lora in checkpoint.loras],
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
