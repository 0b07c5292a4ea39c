"""What every test shares: the same random numbers in every run, and where the project lies."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch

# Property tests draw the same examples in every run, and a slow machine is not a failure.
hypothesis.settings.register_profile("arvid", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("arvid")
# Tiny models gain nothing from a second thread and lose much to waiting for it when the machine is busy.
torch.set_num_threads(1)


@pytest.fixture
def project() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights that a test initialises are the same in every run, in any order of tests."""
    torch.manual_seed(0)
