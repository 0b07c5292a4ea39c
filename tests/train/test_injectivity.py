"""The demonstration of injectivity: its exact flows by another way, the property itself, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import injectivity as demo
from torch import Tensor

from arvid.train.flow import noised

SMALL = {"steps": 3, "batch": 8}


def clean_by_tweedie(x: Tensor, sigma: Tensor, clean: Tensor, together: bool) -> Tensor:
    """E[x0 | x] by Tweedie's formula from the gradient of the log density, frame by frame or all at once."""
    films = demo.films().double().flatten(2)
    x = x.double().flatten(2).requires_grad_(True)
    level = sigma.double()[..., None]
    deviation = ((1 - level) ** 2 * demo.SPREAD**2 + level**2).sqrt()
    densities = []
    for film in films:
        own = torch.distributions.Normal((1 - level) * film, deviation).log_prob(x).sum(-1)
        past = torch.distributions.Normal(film, demo.SPREAD).log_prob(clean.double().flatten(2)).sum(-1)
        known = torch.stack([past[:, :frame].sum(1) for frame in range(demo.FRAMES)], 1)
        densities.append(own.sum(1, keepdim=True) if together else own + known)
    torch.logsumexp(torch.stack(densities), 0).sum().backward()
    assert x.grad is not None
    return (x.detach() + level**2 * x.grad) / (1 - level)


@pytest.mark.parametrize("together", [True, False])
def test_flows_are_exact(together: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    clean = demo.drawn(6, generator)
    sigma = torch.rand(6, demo.FRAMES, generator=generator) * 0.9 + 0.05
    x = noised(clean, torch.randn(clean.shape, generator=generator), sigma)
    flow = demo.Exact(together)(clean, x, sigma, torch.zeros(0))
    found = x - sigma[..., None, None, None] * flow
    torch.testing.assert_close(
        found.flatten(2).double(), clean_by_tweedie(x, sigma, clean, together), rtol=1e-3, atol=1e-3
    )


def test_a_walk_begins_at_its_noise_and_ends_at_a_film() -> None:
    noise = torch.randn(32, demo.FRAMES, *demo.SHAPE)
    for together in (True, False):
        states = demo.walked(demo.Exact(together), noise)
        assert len(states) == demo.TAUGHT + 1
        assert torch.equal(states[0], noise)
        assert float(demo.blur(states[-1]).max()) < 0.01
        assert demo.sides(states[-1]) > 1.7


def test_only_the_causal_teacher_gives_every_noise_of_a_frame_one_end() -> None:
    """The property itself: first frames that start alike, in films whose later frames start otherwise."""
    noise = torch.randn(64, demo.FRAMES, *demo.SHAPE)
    noise[:, 0] = noise[:1, 0]
    firsts = {name: demo.walked(demo.Exact(together), noise)[-1][:, 0] for name, together in demo.TEACHERS.items()}
    assert torch.equal(firsts["causal"], firsts["causal"][:1].expand_as(firsts["causal"]))
    assert demo.sides(firsts["bidirectional"][:, None]) > 1.5


def test_blur_and_sides_are_what_they_are_called() -> None:
    films = demo.films()
    assert torch.equal(demo.blur(films), torch.zeros(demo.FRAMES))
    mean = films.mean(0, keepdim=True)
    torch.testing.assert_close(demo.blur(mean), torch.ones(demo.FRAMES))
    assert demo.sides(films) == pytest.approx(2)
    assert demo.sides(films[:1]) == pytest.approx(1)


@pytest.mark.parametrize("method", demo.METHODS)
def test_students_learn_and_roll_out(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PAIRS", 16)
    student = demo.METHODS[method](demo.Exact(False), 0, SMALL["steps"], SMALL["batch"], tmp_path)
    fresh = demo.fresh(0)
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), fresh.parameters(), strict=True))
    made = demo.rolled(student, 2, 5)
    assert made.shape == (5, demo.FRAMES, *demo.SHAPE) and bool(made.isfinite().all())


def test_what_was_measured_is_what_the_page_says(project: Path) -> None:
    report = json.loads((project / "benchmarks" / "results" / "injectivity.json").read_text())
    first = {(row["teacher"], row["method"], row["passes"]): row["blur"][0] for row in report["rows"]}
    for method in demo.METHODS:
        for passes in demo.PASSES:
            causal, other = first["causal", method, passes], first["bidirectional", method, passes]
            assert causal["ci95"][1] < other["ci95"][0]
    page = (project / "docs" / "training.md").read_text()
    for teacher in demo.TEACHERS:
        for method in demo.METHODS:
            assert f"{first[teacher, method, 1]['mean']:.3f}" in page
