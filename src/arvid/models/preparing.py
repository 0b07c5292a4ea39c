"""How a transformer is brought to where it computes: rounded to 8 bits, its layers left on the CPU, or compiled.

Knows: which of these go together, and the order in which they are done, so that no device ever holds more than the
result and one layer. Does not know: how any of them works (layers/quantise.py, models/offload.py, models/running.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from arvid.layers.quantise import KINDS, quantise
from arvid.models.offload import offload
from arvid.models.running import compile_blocks, unpack
from arvid.models.wan.transformer import CausalWan

TRANSFORMERS = ("target", "drafter")


@dataclass(frozen=True)
class How:
    """How transformers run: the kind of 8 bits their weights are rounded to (empty: not at all), the roles whose layers
    rest on the CPU, and whether blocks are compiled.

    Raises ValueError for an unknown kind or role, and for layers that shall rest and be compiled, or be rounded to a
    kind that is made on a GPU only.
    """

    quantise: str = ""
    offload: tuple[str, ...] = ()
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.quantise and self.quantise not in KINDS:
            raise ValueError(f"unknown kind of quantisation {self.quantise!r}; known: {', '.join(KINDS)}")
        if unknown := [role for role in self.offload if role not in TRANSFORMERS]:
            raise ValueError(f"layers of {unknown[0]!r} cannot be offloaded; known: {', '.join(TRANSFORMERS)}")
        if self.offload and self.compiled:
            raise ValueError(
                f"layers of {' and '.join(self.offload)} shall rest on the CPU and be compiled; they change their "
                "place at every pass: give --offload or --compile"
            )
        if self.offload and self.quantise == "fp8-dynamic":
            raise ValueError(
                f"layers of {' and '.join(self.offload)} shall rest on the CPU and be rounded there to fp8-dynamic, "
                "which only a GPU can: give --quantise fp8 or int8, or leave --offload out"
            )

    def begins_on(self, role: str, device: torch.device) -> torch.device:
        """Where the weights of a transformer are read to: what is changed on its way is read to the CPU."""
        return torch.device("cpu") if self.quantise or role in self.offload else device


def prepare(model: CausalWan, role: str, device: torch.device, how: How) -> None:
    """Bring a transformer, in place, from where `How.begins_on` had it read to `device`, and make it run as `how` says.
    Rounding moves block by block, so the device never holds the whole of the unrounded weights."""
    if how != How():
        unpack(model)
    if role in how.offload:
        if how.quantise:
            quantise(model, how.quantise)
        offload(model, device)
        return
    if how.quantise:
        for number, block in enumerate(model.blocks):
            block.to(device)
            quantise(model, how.quantise, f"blocks.{number}.")
    model.to(device)
    if how.compiled:
        compile_blocks(model)
