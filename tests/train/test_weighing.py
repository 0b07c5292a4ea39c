"""Weights of a jury: what is known to have made the marks comes back, and what says nothing is not heard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from arvid.train.weighing import weigh


def drawn(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 5.0, 0.1]) + 2.0


def test_the_logistic_that_made_the_marks_is_found() -> None:
    evidence, weight = drawn(200), torch.tensor([0.8, -0.3, 4.0])
    found, bias = weigh(evidence, (evidence @ weight - 7).sigmoid(), pull=0.0)
    torch.testing.assert_close(found, weight, rtol=1e-2, atol=1e-2)
    assert float(bias) == pytest.approx(-7, abs=0.1)


@pytest.mark.parametrize("pull", [0.0, 0.02])
def test_the_minimum_is_that_of_another_search(pull: float) -> None:
    """Marks that no logistic explains, minimised by scipy over standardised evidence."""
    evidence = drawn(60)
    marks = torch.rand(60, generator=torch.Generator().manual_seed(1))
    x = ((evidence - evidence.mean(0)) / evidence.std(0)).double().numpy()
    y = marks.double().numpy()

    def loss(w: np.ndarray) -> float:
        z = x @ w[:3] + w[3]
        return float(np.mean(np.logaddexp(0, z) - y * z) + pull * (w[:3] ** 2).sum())

    best = minimize(loss, np.zeros(4), tol=1e-12).x
    weight, bias = weigh(evidence, marks, pull)
    own = best[:3] / evidence.std(0).numpy()
    assert weight.tolist() == pytest.approx(own, rel=1e-2, abs=2e-3)
    assert float(bias) == pytest.approx(best[3] - own @ evidence.mean(0).numpy(), rel=1e-2, abs=5e-3)


def test_evidence_that_never_changes_is_not_heard() -> None:
    evidence = torch.cat([drawn(50)[:, :1], torch.ones(50, 1)], 1)
    weight, _ = weigh(evidence, (evidence[:, 0] - 2).sigmoid())
    assert weight[0] > 0.5
    assert weight[1] == 0


@pytest.mark.parametrize(
    ("rows", "marks"), [(1, torch.ones(1)), (3, torch.ones(2)), (3, torch.tensor([0.5, 1.2, 0.1]))]
)
def test_marks_that_do_not_fit_are_refused(rows: int, marks: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"evidence \[{rows}, 3\] and {len(marks)} marks; expected"):
        weigh(drawn(rows), marks)
