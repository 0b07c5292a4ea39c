"""The target's own opinion of a draft: one pass over the re-noised draft, and how far its estimate agrees.

Knows: a draft, what the target and perhaps the drafter made of the same noisy copy of it. Does not know: who asked for
the pass, what the score decides.

The plain squared difference between draft and estimate ranks the wrong way round, because it grows with what there is
to see: a faded draft leaves little to be wrong about. Two remedies, both a ratio to the error that such content would
cost anyway, and both ending as 1 / (1 + ratio) in (0, 1], higher is better:

- `place`: in every place, the squared difference by the draft's own variance around there; the worst place counts, as
  one wrong thing spoils a block. Places without any structure are measured by a part FLOOR of the mean variance.
- `rival`: the target's squared error by the drafter's on the same input. Squared denoising errors bound log-likelihoods
  (Kingma et al., 2107.00630), so this compares what the two models hold of the draft, as the acceptance of speculative
  sampling does (2211.17192), and everything that is hard for both cancels. It costs one pass of the drafter.
- `both`: the product of the two ratios.

Legend: B batch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from arvid.types import Proposal

FLOOR = 0.3
"""The part of a draft's mean variance that stands in where its own is missing."""
NOTHING = 1e-6
"""Keeps ratios finite; latents have unit variance."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Checked(Proposal):
    """A draft with the target's pass over it: `draft` as it was made, `check` the first step of the target's walk down
    from the re-noised draft (its block is the clean estimate), `rival_BTCHW` the drafter's estimate of the same."""

    draft: Proposal
    check: Proposal
    rival_BTCHW: Tensor | None = None


Measure = Callable[[Checked], Tensor]


def agreement(checked: Checked, measure: str) -> Tensor:
    """[B] in (0, 1]: 1 where the target would leave the draft as it is."""
    return 1 / (1 + MEASURES[measure](checked).float())


def place(checked: Checked) -> Tensor:
    """[B]: the largest over all places of the squared difference by the draft's variance around there."""
    draft, estimate = checked.draft.block_BTCHW, checked.check.block_BTCHW
    error_BTHW = _around((draft - estimate).square()).mean(2)
    own_BTHW = _around((draft - _around(draft)).square()).mean(2)
    content_B = draft.var((3, 4), correction=0).mean((1, 2))
    return (error_BTHW / (own_BTHW + FLOOR * content_B[:, None, None, None] + NOTHING)).amax((1, 2, 3))


def rival(checked: Checked) -> Tensor:
    """[B]: the target's mean squared error by the drafter's. Raises ValueError when the drafter was not asked."""
    if checked.rival_BTCHW is None:
        raise ValueError("the drafter has made no estimate of the re-noised draft; a measure of RIVALS needs one")
    draft = checked.draft.block_BTCHW
    ours, theirs = (
        (draft - estimate).square().mean((1, 2, 3, 4)) for estimate in (checked.check.block_BTCHW, checked.rival_BTCHW)
    )
    return (ours + NOTHING) / (theirs + NOTHING)


def both(checked: Checked) -> Tensor:
    """[B]: the product of the two."""
    return place(checked) * rival(checked)


MEASURES: dict[str, Measure] = {"place": place, "rival": rival, "both": both}
"""Measures of disagreement by the name a spec string uses."""
RIVALS = frozenset({"rival", "both"})
"""Those that need the drafter's estimate."""


def _around(x_BTCHW: Tensor) -> Tensor:
    """Means over 3 x 3 neighbours within the picture."""
    mean = F.avg_pool2d(x_BTCHW.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
    return mean.unflatten(0, x_BTCHW.shape[:2])
