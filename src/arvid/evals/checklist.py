"""A checklist of yes-or-no questions, put to a vision-language model: VisionReward's score (2412.21059) by any of them.

Knows: questions with weights, how a transformers image-text model is asked, how answers become a score. Does not know:
which model, which questions (files are given).

A question is answered by one forward pass: yes when the likeliest way to begin a yes is at least as likely as that of
a no. The score is the mean over questions of weight times answer, +1 for yes and -1 for no, as VisionReward computes
it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from arvid.evals.clips import Clip, Frame, Pixels, stride
from arvid.evals.metric import About, Mean, Reading, Watcher
from arvid.evals.once import once

YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
PLACE = "[[prompt]]"
"""Stands for the prompt in a question."""
ANSWER = "Answer with yes or no."


@dataclass(frozen=True)
class Question:
    """One line of a checklist."""

    text: str
    weight: float = 1.0


def read_questions(path: Path, weights: Path | None = None) -> tuple[Question, ...]:
    """The questions of a text file, one per line, either `weight<TAB>question` or the question alone with its weight in
    a JSON list of numbers (VisionReward's two files; 1 without one).

    Raises ValueError for a file without questions and for a list of another length.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        listed = json.loads(weights.read_text(encoding="utf-8")) if weights else None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the checklist {path} ({error}); give a text file of questions") from error
    if not lines:
        raise ValueError(f"no question in {path}; write one per line")
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != len(lines):
            raise ValueError(f"{weights} does not hold {len(lines)} weights, one per question of {path}")
        return tuple(Question(line, float(weight)) for line, weight in zip(lines, listed, strict=True))
    return tuple(_question(line) for line in lines)


def _question(line: str) -> Question:
    first, tab, rest = line.partition("\t")
    if not tab:
        return Question(line)
    try:
        return Question(rest.strip(), float(first))
    except ValueError as error:
        raise ValueError(f"{first!r} is no weight; write weight<TAB>question or the question alone") from error


class Asker:
    """A vision-language model that answers yes or no. Raises ValueError when there is none at `source`."""

    def __init__(self, source: str, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(source)
            self.processor: Any = AutoProcessor.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"no vision-language model in {source} ({line}); give a folder or a hub id") from error
        self.model = model.to(device).eval()
        self._device = torch.device(device)
        self._yes, self._no = self._first_tokens(YES), self._first_tokens(NO)

    def _first_tokens(self, words: tuple[str, ...]) -> list[int]:
        """The first tokens of the ways to write a word, without those that stand for unknown words."""
        read = self.processor.tokenizer
        found = {read(word, add_special_tokens=False)["input_ids"][0] for word in words}
        known = sorted(found - {read.unk_token_id})
        if not known:
            raise ValueError(f"the tokenizer has no word for {words[0]!r}; give another model")
        return known

    @torch.inference_mode()
    def is_true(self, pictures: list[Pixels], question: str) -> bool:
        """Whether the model would rather say yes than no."""
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": f"{question} {ANSWER}"}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = [Image.fromarray(picture) for picture in pictures]
        inputs = self.processor(images=images, text=text, return_tensors="pt").to(self._device)
        logits = self.model(**inputs).logits[0, -1].float()
        return bool(logits[self._yes].max() >= logits[self._no].max())


@once(2)
def asker(source: str, device: str) -> Asker:
    """The model at a folder or hub id, loaded once."""
    return Asker(source, device)


@dataclass(eq=False)
class Checklist(Mean):
    """The weighted mean of a vision-language model's answers about a clip."""

    model: str
    questions: str
    weights: str = ""
    rate: float = 1.0
    most: int = 24
    device: str = "cpu"
    about = About(
        "checklist", 1, float("-inf"), float("inf"), "", "model",
        "mean of weight times answer (+1 yes, -1 no) over the questions of a checklist", "VisionReward 2412.21059",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._list = read_questions(Path(self.questions), Path(self.weights) if self.weights else None)

    def watch(self, clip: Clip) -> Watcher:
        """Collect `rate` frames per second, at most `most` of them."""
        if not clip.prompt and any(PLACE in question.text for question in self._list):
            raise ValueError("no prompt is known, and the questions ask about it; give --prompts FILE")
        return _Asking(self, asker(self.model, self.device), clip)

    @property
    def asked(self) -> tuple[Question, ...]:
        """The questions."""
        return self._list


class _Asking:
    def __init__(self, metric: Checklist, asker: Asker, clip: Clip) -> None:
        self._metric, self._asker, self._clip = metric, asker, clip
        self._every = stride(clip.fps, metric.rate)
        self._pictures: list[Pixels] = []

    def see(self, frame: Frame) -> None:
        if frame.index % self._every == 0 and len(self._pictures) < self._metric.most:
            self._pictures.append(frame.rgb_HWC)

    def reading(self) -> Reading:
        parts: dict[str, float] = {}
        total = 0.0
        for question in self._metric.asked:
            text = question.text.replace(PLACE, self._clip.prompt)
            answer = 1.0 if self._asker.is_true(self._pictures, text) else -1.0
            parts[question.text] = answer
            total += question.weight * answer
        return Reading(total / len(self._metric.asked), parts=parts)
