"""How far each piece of evidence is to be believed: the weights of a jury, from marked blocks.

Knows: a logistic of evidence fitted to marks, with a pull towards no weight. Does not know: what the evidence is, who
gave the marks.

Legend: N blocks, F pieces of evidence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PULL = 2e-3
"""Of the mean square of the weights of standardised evidence beside a cross-entropy in nats: pieces that say nearly the
same share a weight instead of fighting."""
STEPS = 200


def weigh(evidence_NF: Tensor, mark_N: Tensor, pull: float = PULL) -> tuple[Tensor, Tensor]:
    """Weights [F] and bias of the logistic that predicts marks in [0, 1] best.

    Raises ValueError unless there are at least two rows, and as many marks in [0, 1].
    """
    rows = len(evidence_NF)
    if evidence_NF.ndim != 2 or rows < 2 or mark_N.shape != (rows,) or not bool(((mark_N >= 0) & (mark_N <= 1)).all()):
        raise ValueError(
            f"evidence {list(evidence_NF.shape)} and {mark_N.numel()} marks; expected [N, F] with N of at least 2, and "
            "as many marks in [0, 1]"
        )
    mean_F, spread_F = evidence_NF.mean(0), evidence_NF.std(0).clamp(min=1e-6)
    x_NF = ((evidence_NF - mean_F) / spread_F).double()
    marks = mark_N.double()
    weight = torch.zeros(x_NF.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        far = F.binary_cross_entropy_with_logits(x_NF @ weight[:-1] + weight[-1], marks)
        total = far + pull * weight[:-1].square().sum()
        total.backward()
        return total

    search.step(loss)
    found = weight.detach().float()
    own_F = found[:-1] / spread_F
    return own_F, found[-1] - (own_F * mean_F).sum()
