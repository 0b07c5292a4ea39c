"""Attention kernels: tensors in, tensors out, no memory and no policy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, mask_LM: Tensor | None = None) -> Tensor:
    """Softmax attention [B, L, H, D]; `mask_LM` is boolean, True where a query may look."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BMHD, v_BMHD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_LM).transpose(1, 2)
