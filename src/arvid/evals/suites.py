"""Suites: what a benchmark asks for, as data. Prompts, seeds, lengths and the names of the files.

Knows: prompt files of other people (one per line, VBench's JSON, scripts of several prompts), the held-out part of the
shapes world. Does not know: who makes the videos (a callable), how they are judged.

A suite names the file of every case, so a run can be taken up again: what is there is not made again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from arvid.worlds import captions

SHORT_SECONDS, LONG_SECONDS = 5.0, 15.0
"""The training length of the embedded family, and three times that."""
CUT = ", then a new scene: "
SEED_STEP = 1000
"""Seed s of prompt number i is i + SEED_STEP s: no two prompts share noise."""


@dataclass(frozen=True)
class Case:
    """One video: the name of its file without ending, its prompts in their order (several for a script, shared out
    equally over its seconds), its seed and its length; `story` is the whole as a judge reads it (empty: joined)."""

    name: str
    prompts: tuple[str, ...]
    seed: int
    seconds: float
    story: str = ""

    @property
    def prompt(self) -> str:
        """All of it as one text."""
        return self.story or " ".join(self.prompts)

    @property
    def changes(self) -> tuple[tuple[float, str], ...]:
        """(second, prompt) of every prompt behind the first."""
        share = self.seconds / len(self.prompts)
        return tuple((number * share, prompt) for number, prompt in enumerate(self.prompts) if number)


@dataclass(frozen=True)
class Suite:
    """Cases under a name; `protocol` says in words what they are."""

    name: str
    protocol: str
    cases: tuple[Case, ...]


class Source(Protocol):
    """Where a suite comes from: the options of an entry of SUITES."""

    def build(self) -> Suite:
        """The suite. Raises ValueError when a file is missing or something else."""
        ...


def missing(suite: Suite, folder: Path, ending: str = ".mp4") -> list[Case]:
    """The cases whose video is not in a folder."""
    return [case for case in suite.cases if not (folder / f"{case.name}{ending}").is_file()]


def fill(suite: Suite, folder: Path, make: Callable[[Case, Path], None]) -> Iterator[Case]:
    """Make what is missing, one case after the other; yields each when its file is there. `make` writes it whole or not
    at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in missing(suite, folder):
        make(case, folder / f"{case.name}.mp4")
        yield case


# ---------------------------------------------------------------- the embedded world


@dataclass(frozen=True)
class World:
    """Held-out stories of the shapes world. `acts` is the form of a story: A, AB (a switch) or ABA (and back);
    `levels` are the levels of its scenes, joined by +."""

    prompts: int = 32
    seeds: int = 1
    seconds: float = SHORT_SECONDS
    acts: str = "A"
    levels: tuple[float, ...] = (1, 2)

    def build(self) -> Suite:
        """The suite. Raises ValueError for a form without letters or levels the grammar lacks."""
        if self.prompts < 1 or self.seeds < 1 or not self.acts.isalpha():
            raise ValueError(
                f"{self.prompts} prompts, {self.seeds} seeds, acts={self.acts}; expected at least 1, 1 and letters"
            )
        if not all(level.is_integer() for level in map(float, self.levels)):
            raise ValueError(f"levels {'+'.join(map(str, self.levels))}; expected whole numbers like 1+2")
        if len(self.acts) > 1 and not set(self.levels) <= {1, 2}:
            raise ValueError(f"levels {self.levels} in a story of {len(self.acts)} acts; its scenes have 1 and 2")
        cases = tuple(
            replace(case, story=CUT.join(case.prompts)) for case in _cases(self._stories(), self.seeds, self.seconds)
        )
        protocol = (
            f"{self.prompts} held-out stories of the shapes world in the form {self.acts}, scenes of levels "
            f"{'+'.join(f'{level:g}' for level in self.levels)}, {self.seconds:g} s, {self.seeds} seeds"
        )
        return Suite(f"world-{self.acts}", protocol, cases)

    def _stories(self) -> tuple[tuple[str, ...], ...]:
        levels = tuple(int(level) for level in self.levels)
        rng = random.Random(f"suite/{self.acts}/{levels}")
        found: dict[tuple[str, ...], None] = {}
        while len(found) < self.prompts:
            scenes = {act: _scene(rng, levels) for act in dict.fromkeys(self.acts)}
            if len(set(scenes.values())) == len(scenes):
                found[tuple(scenes[act] for act in self.acts)] = None
        return tuple(found)


def _scene(rng: random.Random, levels: tuple[int, ...]) -> str:
    text = captions.sample(rng, levels, held_out=True).prompt.rstrip(".")
    return text[0].lower() + text[1:]


@dataclass(frozen=True)
class WorldLong(World):
    """Stories of one scene, three times as long as was trained."""

    seconds: float = LONG_SECONDS


@dataclass(frozen=True)
class WorldSwitch(World):
    """Two scenes with a cut between them."""

    seconds: float = 2 * SHORT_SECONDS
    acts: str = "AB"


@dataclass(frozen=True)
class WorldReturn(World):
    """Two scenes, and the first one again: does the model remember?"""

    seconds: float = 3 * SHORT_SECONDS
    acts: str = "ABA"


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class Lines:
    """A text file of prompts, one per line (MovieGenVideoBench.txt is one); the first `prompts` of them (0: all)."""

    file: str
    prompts: int = 0
    seeds: int = 1
    seconds: float = SHORT_SECONDS

    def build(self) -> Suite:
        """The suite."""
        lines = [line.strip() for line in _read(self.file).splitlines() if line.strip()]
        chosen = lines[: self.prompts or None]
        if not chosen:
            raise ValueError(f"no prompt in {self.file}; write one per line")
        cases = _cases(tuple((line,) for line in chosen), self.seeds, self.seconds)
        told = f"first {len(chosen)} of {len(lines)} prompts of {Path(self.file).name}"
        return Suite(Path(self.file).stem, f"{told}, {self.seeds} seeds, {self.seconds:g} s", cases)


@dataclass(frozen=True)
class VBench:
    """VBench_full_info.json: the prompts of some dimensions (joined by +; empty: all), five videos of each, named as
    VBench wants its files: PROMPT-0.mp4 to PROMPT-4.mp4."""

    file: str
    dimensions: str = ""
    prompts: int = 0
    seeds: int = 5
    seconds: float = SHORT_SECONDS

    def build(self) -> Suite:
        """The suite."""
        rows = _json(self.file)
        wanted = {name for name in self.dimensions.split("+") if name}
        try:
            texts = [row["prompt_en"] for row in rows if not wanted or wanted & set(row["dimension"])]
        except (TypeError, KeyError) as error:
            raise ValueError(f"{self.file} is no VBench_full_info.json (no {error}); fetch it again") from error
        texts = [*dict.fromkeys(texts)][: self.prompts or None]
        if not texts:
            raise ValueError(f"no prompt of {self.dimensions or 'any dimension'} in {self.file}")
        cases = tuple(
            Case(f"{text}-{turn}", (text,), number + SEED_STEP * turn, self.seconds)
            for turn in range(self.seeds)
            for number, text in enumerate(texts)
        )
        told = f"VBench prompts as they stand, dimensions {self.dimensions or 'all'}, {len(texts)} prompts"
        return Suite("vbench", f"{told}, {self.seeds} videos each, {self.seconds:g} s", cases)


@dataclass(frozen=True)
class Script:
    """A file of scripts, one JSON object per line with a list under `prompts` or `prompts_list` (NarraStream-Bench and
    LongLive); `seconds` is the length of one prompt's part."""

    file: str
    prompts: int = 0
    seeds: int = 1
    seconds: float = 10.0

    def build(self) -> Suite:
        """The suite."""
        scripts = []
        for number, line in enumerate(_read(self.file).splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                script = tuple(str(part) for part in row.get("prompts") or row["prompts_list"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                wanted = '{"prompts": [...]}'
                raise ValueError(f"line {number} of {self.file} is no script; expected {wanted}") from error
            scripts.append(script)
        scripts = scripts[: self.prompts or None]
        if not scripts:
            raise ValueError(f"no script in {self.file}; write one JSON object per line")
        cases = tuple(
            replace(case, seconds=self.seconds * len(case.prompts))
            for case in _cases(tuple(scripts), self.seeds, self.seconds)
        )
        told = f"{len(scripts)} scripts of {Path(self.file).name}, {self.seconds:g} s per prompt, {self.seeds} seeds"
        return Suite(Path(self.file).stem, told, cases)


def _cases(prompts: tuple[tuple[str, ...], ...], seeds: int, seconds: float) -> tuple[Case, ...]:
    """All first seeds first: a run that is cut short has seen as many prompts as possible."""
    return tuple(
        Case(f"{number:04d}-{turn}", texts, number + SEED_STEP * turn, seconds)
        for turn in range(seeds)
        for number, texts in enumerate(prompts)
    )


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the prompts in {file} ({error}); give a text file") from error


def _json(file: str) -> Any:
    try:
        return json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON ({error}); give VBench_full_info.json") from error


SUITES: Mapping[str, Callable[..., Source]] = {
    "world-short": World,
    "world-long": WorldLong,
    "world-switch": WorldSwitch,
    "world-aba": WorldReturn,
    "prompts": Lines,
    "moviegen": Lines,
    "vbench": VBench,
    "script": Script,
}
"""Suites by name."""
