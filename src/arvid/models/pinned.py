"""Main memory that stays where it is, so that a GPU copies from it while it computes: no more of it than is needed.

Knows: how pages are given to CUDA (`cudaHostRegister`) and taken back. Does not know: what is kept in them.

torch's own `pin_memory` takes a power of two for every tensor: 256 MiB for one of 135, and 1.5 times the weights of a
14B transformer. Here tensors lie side by side in pages of their own.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNED = 64
"""Tensors begin at multiples of so many bytes, as torch's own do on a CPU."""
PORTABLE = 1
"""cudaHostRegisterPortable: pinned for all GPUs of the process."""


class _Pages(mmap.mmap):
    """Pages that are pinned from `pin` until the last tensor in them is gone."""

    _address = 0
    _device = torch.device("cpu")

    def pin(self, address: int, device: torch.device) -> None:
        """Give them, which begin at `address`, to CUDA. Raises ValueError when it does not take them."""
        code = int(torch.cuda.cudart().cudaHostRegister(address, len(self), PORTABLE))
        if code:
            raise ValueError(
                f"{len(self)} bytes of main memory could not be pinned for {device} (CUDA error {code}); free some, or "
                "leave --offload out"
            )
        self._address, self._device = address, device

    def __del__(self) -> None:
        if self._address and not sys.is_finalizing():
            torch.cuda.synchronize(self._device)  # a copy may be under way
            torch.cuda.cudart().cudaHostUnregister(self._address)


@torch.inference_mode(False)
@torch.no_grad()
def pinned(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors on the CPU, of the same strides, in memory that is pinned for `device`, a GPU.

    Raises ValueError when that much cannot be pinned.
    """
    if not tensors:
        return []
    ends = list(accumulate(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors))
    pages = _Pages(-1, max(ends[-1], ALIGNED))
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    pages.pin(whole.data_ptr(), device)
    found = []
    for tensor, start in zip(tensors, (0, *ends), strict=False):
        form = torch.empty_like(tensor, device="meta")
        held = whole[start : start + form.nbytes].view(form.dtype).as_strided(form.shape, form.stride())
        found.append(held.copy_(tensor))
    return found
