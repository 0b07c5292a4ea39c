"""A checkpoint as plain data: what `arvid models inspect` prints.

Knows: what is worth telling of a transformer or an adapter. Does not know: terminals, how it is read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from math import prod

from arvid.models.checkpoints.families import FAMILIES, partners
from arvid.models.checkpoints.reading import Checkpoint
from arvid.models.lora import Lora

SCHEMA = 1
Facts = dict[str, object]


def describe(found: Checkpoint | Lora) -> Facts:
    """Facts under stable names (docs/checkpoints.md); sizes in bytes, timesteps on the scale of 1000."""
    return _of_lora(found) if isinstance(found, Lora) else _of_transformer(found)


def _of_transformer(found: Checkpoint) -> Facts:
    entries = found.entries
    return {
        "schema": SCHEMA,
        "kind": "transformer",
        "path": found.name,
        "families": [_family(name) for name in found.families],
        "layout": found.part.layout,
        "part": found.part.key.rstrip("/") or None,
        "parameters": sum(prod(entry.shape) for entry in entries.values()),
        "dtypes": dict(Counter(_named(entry.dtype) for entry in entries.values())),
        "bytes": sum(entry.bytes for entry in entries.values()),
        "config": asdict(found.config),
        "licence": found.licence,
        "loras": [_of_lora(lora) for lora in found.loras],
        "pairs": [{"role": role, "family": name} for role, name in partners(found.config)],
    }


def _of_lora(found: Lora) -> Facts:
    return {
        "schema": SCHEMA,
        "kind": "lora",
        "path": found.name,
        "part": found.part or None,
        "naming": found.naming,
        "tensors": len(found.deltas),
        "ranks": found.ranks,
        "parameters": found.parameters,
    }


def _family(name: str) -> Facts:
    facts = FAMILIES[name]
    return {
        "name": name,
        "title": facts.title,
        "timesteps": [round(timestep, 4) for timestep in facts.timesteps],
        "shift": facts.shift,
        "block": facts.block,
        "past": facts.past,
        "router": facts.router,
        "note": facts.note or None,
    }


def _named(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
