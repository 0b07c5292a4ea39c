"""Every metric by its name.

Knows: which metrics there are, and which of them need nothing but the videos. Does not know: how a choice is written
(the command line reads specs), what a metric computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from arvid.evals.checklist import Checklist
from arvid.evals.features import Aesthetic, BackgroundConsistency, ClipAlignment, SubjectConsistency
from arvid.evals.fidelity import Psnr, Ssim, World
from arvid.evals.fvd import Fvd
from arvid.evals.metric import Metric
from arvid.evals.motion import DynamicDegree, Motion, MotionSmoothness
from arvid.evals.scores import HpsScore, ImageRewardScore
from arvid.evals.signals import (
    Drift,
    ExposureDrift,
    Flicker,
    Freeze,
    Repetition,
    SaturationDrift,
    Seams,
    Sharpness,
    SharpnessDrift,
)

BASIC: tuple[type[Metric], ...] = (
    World, MotionSmoothness, DynamicDegree, Motion, Flicker, Seams, Sharpness, SharpnessDrift, ExposureDrift,
    SaturationDrift, Drift, Freeze, Repetition,
)  # fmt: skip
"""What is measured when nothing is chosen: no weights, no reference."""
OTHERS: tuple[type[Metric], ...] = (
    Psnr, Ssim, ClipAlignment, SubjectConsistency, BackgroundConsistency, Aesthetic, ImageRewardScore, HpsScore,
    Checklist, Fvd,
)  # fmt: skip
"""What needs a reference or a model."""
METRICS: Mapping[str, Callable[..., Metric]] = {kind.about.name: kind for kind in (*BASIC, *OTHERS)}
