"""What is loaded for several threads is loaded once: with a slow loader, for the mechanism and for all who use it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from arvid.evals import checklist, features, fvd, scores
from arvid.evals.clips import Clip
from arvid.evals.once import once

THREADS = 4


class Slow:
    """A loader that takes a while, and who asked it for what."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[Any, ...]] = Counter()

    def __call__(self, *asked: Any) -> object:
        self.calls[asked] += 1
        time.sleep(0.05)
        return object()


def together(ask: Callable[[int], Any]) -> list[Any]:
    """What several threads are answered that ask at the same moment, each with its number."""
    line = Barrier(THREADS)

    def one(number: int) -> Any:
        line.wait()
        return ask(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(one, range(THREADS))]


def test_an_answer_is_computed_once_for_each_argument() -> None:
    slow = Slow()
    kept = once(4)(lambda name: slow(name))
    found = together(lambda number: kept(number % 2))
    assert slow.calls == {(0,): 1, (1,): 1}
    assert found[0] is found[2] and found[1] is found[3] and found[0] is not found[1]


def test_only_the_last_answers_and_no_failures_are_kept() -> None:
    slow = Slow()
    kept = once(2)(lambda name: slow(name) if name else 1 / name)
    for name in (1, 2, 1, 3, 1, 2):
        kept(name)
    assert slow.calls == {(1,): 1, (2,): 2, (3,): 1}
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept(0)


@pytest.mark.parametrize("model", ["encoder", "asker", "fvd", "image_reward", "hps"])
def test_every_model_is_loaded_by_one_thread_only(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, source = Slow(), str(tmp_path)
    (tmp_path / "questions.txt").write_text("Is it sharp?\n", encoding="utf-8")
    monkeypatch.setattr(features, "Encoder", slow)
    monkeypatch.setattr(checklist, "Asker", slow)
    monkeypatch.setattr(fvd, "VideoMAE", slow)
    monkeypatch.setattr(scores, "read_weights", slow)
    for name in ("image_reward.ImageReward", "hps.HPSv2"):
        monkeypatch.setattr(f"arvid.rewards.{name}.from_weights", lambda weights, words: Anywhere())
    clip, questions = Clip(tmp_path / "a.mp4"), checklist.Checklist(source, str(tmp_path / "questions.txt"))
    asks: dict[str, Callable[[int], Any]] = {
        "encoder": lambda _: features.encoder(source, "cpu"),
        "asker": lambda _: questions.watch(clip),
        "fvd": lambda _: fvd.net(source, "cpu"),
        "image_reward": lambda _: scores.image_reward(source, "words", "cpu"),
        "hps": lambda _: scores.hps(source, "words", "cpu"),
    }
    together(asks[model])
    assert sum(slow.calls.values()) == 1


class Anywhere:
    """A reward that is on every device."""

    def to(self, device: str) -> Anywhere:
        """Itself."""
        return self
