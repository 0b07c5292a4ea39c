"""Distribution matching: no gradient at the match, the published gradient otherwise, the fixed point in one dimension,
and two optimisers that resume as one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.samplers.grids import few_step
from arvid.train.distribution_matching import DistributionMatching, Levels, Loss, Matching, ScoreIdentity
from arvid.train.scores import CausalScore
from arvid.train.self_forcing import Horizon, SelfForcing
from arvid.train.trainer import TrainConfig, train
from oracles import gaussian

MEAN, DEVIATION = 1.5, 0.5
LOSSES = pytest.mark.parametrize("kind", [DistributionMatching, ScoreIdentity], ids=lambda kind: kind.__name__)
Kind = Callable[..., Loss]


def teacher(clean: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    return gaussian.flow(x, sigma[:, :, None, None, None], MEAN, DEVIATION)


def text(rows: int = 1, size: int = 16) -> Tensor:
    return torch.zeros(rows, size, 1, 1)


class Student(nn.Module):
    """A generator with two numbers: mean + deviation noise."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(deviation))

    def roll(self, text_BSD: Tensor, generator: torch.Generator) -> Tensor:
        return self.mean + self.deviation * torch.randn(len(text_BSD), 2, 1, 4, 4, generator=generator)


# ---------------------------------------------------------------- the losses


@LOSSES
def test_no_gradient_at_the_match(kind: Kind) -> None:
    """The critic says what the teacher says: of Gaussians, and of a real causal model and its copy."""
    student, generator = Student(MEAN, DEVIATION), torch.Generator().manual_seed(0)
    loss = kind(teacher, gaussian.Score(MEAN, DEVIATION).requires_grad_(False))
    numbers = loss(student.roll(text()[0], generator), text()[0], generator)
    numbers["loss"].backward()
    assert float(student.mean.grad.abs()) < 1e-6
    assert float(student.deviation.grad.abs()) < 1e-6
    assert float(numbers["gap"]) < 1e-6
    real = CausalScore(wan(), 6, 3, Window(3)).requires_grad_(False)
    x = torch.randn(2, 6, 2, 2, 2, requires_grad=True)
    kind(real, copy.deepcopy(real))(x, torch.randn(2, 5, 8), generator)["loss"].backward()
    assert x.grad.abs().max() < 1e-9


def test_the_gradient_of_dmd_is_the_published_one() -> None:
    """(f - r) / mean |x - r| per clip, divided by the count of numbers as the loss is a mean; in double precision."""
    x = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    levels = Levels(shift=3.0, low=0.1, high=0.9)
    loss = DistributionMatching(teacher, gaussian.Score(0.2, 1.3), levels)
    loss(x, text(1, 3)[0], torch.Generator().manual_seed(2))["loss"].backward()
    again = torch.Generator().manual_seed(2)
    tau = torch.rand(3, 1, generator=again).double()
    sigma = (3 * tau / (1 + 2 * tau)).clamp(0.1, 0.9)[:, :, None, None, None]
    eps = torch.randn(x.shape, generator=again).double()
    clean = x.detach().double()
    mixed = (1 - sigma) * clean + sigma * eps
    real, fake = gaussian.expected(mixed, sigma, MEAN, DEVIATION), gaussian.expected(mixed, sigma, 0.2, 1.3)
    for clip in range(3):
        expected = (fake - real)[clip] / (clean - real)[clip].abs().mean() / x.numel()
        torch.testing.assert_close(x.grad[clip].double(), expected, rtol=1e-4, atol=1e-7)


@LOSSES
def test_descent_leads_to_the_teachers_mean(kind: Kind) -> None:
    """The critic knows the student; wherever the student is, its mean goes towards the teacher's."""
    for mean in (-1.0, 1.0, 2.0, 4.0):
        student = Student(mean, DEVIATION)
        loss, generator = kind(teacher, gaussian.Score(mean, DEVIATION).requires_grad_(False)), torch.Generator()
        loss(student.roll(text(1, 64)[0], generator), text(1, 64)[0], generator)["loss"].backward()
        assert float(student.mean.grad) * (mean - MEAN) > 0


@LOSSES
def test_a_clip_the_teacher_would_not_change_is_left_alone(kind: Kind) -> None:
    """x = r: the normaliser is zero. At level one half the arithmetic is exact."""
    half = Levels(shift=1.0, low=0.5, high=0.5)

    def to_nothing(clean: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        return x / 0.5

    class Critic(nn.Module):
        def forward(self, clean: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
            return x / 0.5 - 3.0

    x = torch.zeros(2, 2, 1, 2, 2, requires_grad=True)
    if kind is DistributionMatching:
        kind(to_nothing, Critic(), half)(x, text(1, 2)[0], torch.Generator())["loss"].backward()
        assert (x.grad == 0).all()
    same = kind(to_nothing, Frozen(to_nothing), half)(x, text(1, 2)[0], torch.Generator())["loss"]
    assert float(same.detach()) == 0


class Frozen(nn.Module):
    """A score without weights as a critic."""

    def __init__(self, score: Callable[..., Tensor]) -> None:
        super().__init__()
        self.score = score

    def forward(self, clean: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        return self.score(clean, x, sigma, text)


def test_levels_are_bounded_one_per_clip_and_shifted() -> None:
    sigma = Levels().draw(torch.zeros(4000, 3, 1), torch.Generator().manual_seed(0))
    assert sigma.shape == (4000, 3)
    assert (sigma == sigma[:, :1]).all()
    assert float(sigma.min()) == pytest.approx(0.02, abs=0.02)
    assert float(sigma.max()) == pytest.approx(0.98)
    inner = sigma[:, 0][(sigma[:, 0] > 0.02) & (sigma[:, 0] < 0.98)]
    tau = inner / (5 - 4 * inner)
    edges = torch.tensor([0.02, 0.98]) / (5 - 4 * torch.tensor([0.02, 0.98]))
    assert float(tau.mean()) == pytest.approx(float(edges.mean()), abs=0.02), "uniform before the shift"


# ---------------------------------------------------------------- the fixed point


CONFIG = TrainConfig(steps=220, learning_rate=0.04, warmup=1, average=0.9, save_every=1000, log_every=1000, clip=100.0)


def matched(
    kind: Kind, real: Callable[..., Tensor], start: tuple[float, float], directory: Path, levels: Levels
) -> Student:
    student = Student(*start)
    objective = Matching(student.roll, kind(real, gaussian.Score(*start), levels), learning_rate=0.05)
    train(student, objective, lambda step: text(3), CONFIG, directory)
    return student


@LOSSES
def test_the_student_becomes_the_teachers_distribution(kind: Kind, tmp_path: Path) -> None:
    """With a critic that is trained along, not given."""
    student = matched(kind, teacher, (0.0, 1.0), tmp_path, Levels())
    assert float(student.mean.detach()) == pytest.approx(MEAN, abs=0.06)
    assert float(student.deviation.detach()) == pytest.approx(DEVIATION, abs=0.06)


@pytest.mark.parametrize(
    ("levels", "mean", "deviation"), [(Levels(shift=1.0, high=0.1), 1.0, 0.2), (Levels(), 0.0, 1.0)], ids=["low", "all"]
)
def test_of_two_modes_dmd_finds_the_nearer_one_where_noise_keeps_them_apart(
    tmp_path: Path, levels: Levels, mean: float, deviation: float
) -> None:
    """Teacher: N(1, 0.2^2) and N(-1, 0.2^2), half each; their mixture has mean 0 and deviation 1. The student has one
    mode. At low levels it seeks one of theirs; over all levels, most of them high, it covers both."""

    def two(clean: Tensor, x: Tensor, sigma_BT: Tensor, text: Tensor) -> Tensor:
        sigma = sigma_BT[:, :, None, None, None]
        variance = (1 - sigma) ** 2 * 0.2**2 + sigma**2
        share = torch.sigmoid(2 * (1 - sigma) * x / variance)
        return share * gaussian.flow(x, sigma, 1.0, 0.2) + (1 - share) * gaussian.flow(x, sigma, -1.0, 0.2)

    student = matched(DistributionMatching, two, (0.6, 0.3), tmp_path, levels)
    assert float(student.mean.detach()) == pytest.approx(mean, abs=0.08)
    assert float(student.deviation.detach().abs()) == pytest.approx(deviation, abs=0.08)


# ---------------------------------------------------------------- two optimisers


@LOSSES
def test_the_critic_takes_its_turns_and_only_those(kind: Kind) -> None:
    student, critic, asked = Student(0.0, 1.0), gaussian.Score(0.0, 1.0), []

    def roll(text_BSD: Tensor, generator: torch.Generator) -> Tensor:
        asked.append((float(text_BSD[0, 0, 0]), torch.is_grad_enabled()))
        return student.roll(text_BSD, generator)

    objective = Matching(roll, kind(teacher, critic), learning_rate=0.05)
    rows = torch.arange(6.0)[:, None, None, None].expand(6, 8, 1, 1)
    numbers = objective(rows, torch.Generator().manual_seed(0))
    assert asked == [(0.0, False), (1.0, False), (2.0, False), (3.0, False), (4.0, False), (5.0, True)]
    assert {int(state["step"]) for state in objective.optimiser.state.values()} == {5}
    held = copy.deepcopy(critic.state_dict())
    numbers["loss"].backward()
    assert all(p.grad is None for p in critic.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert all(torch.equal(value, critic.state_dict()[name]) for name, value in held.items())
    with pytest.raises(ValueError, match="a batch of 1 rows of prompts"):
        objective(rows[:1], torch.Generator())


def test_the_critic_learns_what_the_student_makes() -> None:
    student, critic = Student(-0.7, 0.4), gaussian.Score(0.5, 1.0)
    objective, generator = Matching(student.roll, DistributionMatching(teacher, critic), 0.03), torch.Generator()
    for _ in range(60):
        objective(text(4), generator)
    assert float(critic.mean.detach()) == pytest.approx(-0.7, abs=0.06)
    assert float(critic.log_deviation.detach().exp()) == pytest.approx(0.4, abs=0.06)


@LOSSES
def test_killed_and_resumed_is_never_stopped(kind: Kind, tmp_path: Path) -> None:
    """Student, critic, both optimisers and every later number, bit for bit."""
    config = TrainConfig(steps=9, learning_rate=0.05, warmup=2, save_every=4, log_every=1)

    def parts() -> tuple[Student, Matching]:
        student = Student(0.0, 1.0)
        return student, Matching(student.roll, kind(teacher, gaussian.Score(0.0, 1.0)), learning_rate=0.05)

    def deadly(step: int) -> Tensor:
        if step == 6:
            raise KeyboardInterrupt
        return text(3)

    whole, objective = parts()
    train(whole, objective, lambda step: text(3), config, tmp_path / "whole")
    cut, killed = parts()
    with pytest.raises(KeyboardInterrupt):
        train(cut, killed, deadly, config, tmp_path / "parts")
    again, resumed = parts()
    train(again, resumed, lambda step: text(3), config, tmp_path / "parts")
    for one, other in ((whole, again), (objective.critic, resumed.critic)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    for one, other in zip(objective.optimiser.state.values(), resumed.optimiser.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(objective.critic.mean.detach(), torch.tensor(0.0))


# ---------------------------------------------------------------- all of it on a real tiny model


def wan() -> CausalWan:
    return CausalWan(WanConfig(16, 32, 2, 1, 8, 5, 2, 2, 16))


@LOSSES
def test_a_causal_model_is_matched_by_its_own_rollouts(kind: Kind) -> None:
    student, real, fake = wan(), wan().to(torch.bfloat16).requires_grad_(False), wan()
    before = {name: value.clone() for name, value in fake.state_dict().items()}
    roll = SelfForcing(student, Window(3), Horizon(6, 12, 3, lead=3), (2, 2, 2), few_step(2))
    scores = (CausalScore(model, 6, 3, Window(3)) for model in (real, fake))
    objective = Matching(roll, kind(*scores), learning_rate=1e-2)
    objective(torch.randn(2, 2, 5, 8), torch.Generator().manual_seed(1))["loss"].backward()
    for name, p in student.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all()
    assert any((p.grad != 0).any() for p in student.parameters())
    assert all(p.grad is None for p in (*fake.parameters(), *real.parameters()))
    assert not all(torch.equal(value, before[name]) for name, value in fake.state_dict().items())
