"""One run of `arvid bench memory`, from options to report.

Knows: how a pipeline is handed to the benchmark as a callable, in which order things are measured, how a killed run
goes on. Does not know: arguments (`cli.bench_memory`), the table of policies and the marks (`evals.memory`), the
rows (`evals.memory_rows`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from arvid import spec
from arvid.caches.policies import POLICIES, remember
from arvid.caches.positions import POSITIONS
from arvid.cli import families
from arvid.cli.endurance import endure
from arvid.cli.journal import Journal
from arvid.cli.report import Row, head
from arvid.evals import memory, memory_rows
from arvid.evals import memory_scenes as scenes
from arvid.evals.memory import Cell, Film, Script, Shape
from arvid.evals.speculation import draw_prompts
from arvid.pipeline import Pipeline, Request
from arvid.rollout.state import bytes_of
from arvid.rollout.timeline import CUT, FLUSH, JUMP, KEEP, RECACHE, SOFT
from arvid.video import to_bytes
from arvid.worlds import shapes

QUICK_SECONDS = 140.0
"""Of the three minutes of a quick run: what is left for making and marking when starting and writing are paid."""
WAYS = (RECACHE, KEEP, FLUSH, SOFT, JUMP, CUT)
RETURN_WAY = KEEP
"""How the prompt changes in a video whose scene returns: nothing but the text, so that the past alone can bring it."""
FIRST, REFERENCES = "a red circle moves right", 4
"""The prompt of the film that warms up, and films of one training length per prompt that others are compared with."""
AFTER = 5
"""Blocks that are made behind a change."""
QUICK_BUDGETS, QUICK_HORIZONS, QUICK_PROMPTS, QUICK_SCENES = (9,), (1, 4), 2, 1

errors = Console(stderr=True)


@dataclass(frozen=True)
class Wanted:
    """The options of a run. `weights` is a folder of trained merging weights and a head profile, or None."""

    policies: tuple[str, ...] = tuple(memory.RULES)
    budgets: tuple[int, ...] = memory.BUDGETS
    horizons: tuple[int, ...] = memory.HORIZONS
    positions: tuple[str, ...] = (memory.OWN,)
    prompts: int = 8
    scenes: int = 8
    levels: tuple[int, ...] = (1, 2)
    weights: Path | None = None
    quick: bool = False
    past_levels: tuple[float, ...] = (0.0,)

    def cells(self, trained: int) -> tuple[Cell, ...]:
        """The competitors, of a family trained on so many latent frames. Raises ValueError for what cannot be."""
        return memory.cells(
            self.policies, self.budgets, self.positions, trained, extras(self.weights), self.past_levels
        )  # fmt: skip


def check(wanted: Wanted) -> None:
    """Raises ValueError for policies, budgets and positions that cannot be, before anything is loaded."""
    for cell in wanted.cells(21):
        remember(spec.build(cell.past, POLICIES, "past"), 3, spec.build(cell.positions, POSITIONS, "positions"))


def quick(wanted: Wanted, default: Wanted) -> Wanted:
    """What a quick run does of it: what was not asked for otherwise becomes small."""
    return replace(
        wanted, quick=True,
        budgets=QUICK_BUDGETS if wanted.budgets == default.budgets else wanted.budgets,
        horizons=QUICK_HORIZONS if wanted.horizons == default.horizons else wanted.horizons,
        prompts=min(wanted.prompts, QUICK_PROMPTS), scenes=min(wanted.scenes, QUICK_SCENES),
    )  # fmt: skip


# ---------------------------------------------------------------- the maker


class PipelineMaker:
    """Makes the films of the benchmark with the target of a pipeline (see `arvid.evals.memory.Maker`). The drafter
    stays out: its past would cost bytes and, where blocks wait for it, time."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = Pipeline(replace(pipeline.family, drafter=None))
        card = pipeline.family.card
        self.shape = Shape(card.block, card.trained_frames, float(card.fps))

    def request(self, cell: Cell, prompt: str, seed: int, latents: int, given: int = 0) -> Request:
        """A request for so many latent frames behind those that are given."""
        made = latents - given - (0 if given else 1)
        seconds = memory.STRIDE * made / self.shape.fps
        return Request(prompt, seconds, seed, cell.router, cell.past, positions=cell.positions)

    def __call__(self, cell: Cell, script: Script) -> Film:
        """One film; the time of a block is that of making and decoding it."""
        parts = [self.pipeline.encode(shapes.render(text, script.seed)) for text in script.shown]
        given = torch.cat(parts, 1) if parts else None
        latents = script.blocks * self.shape.block
        request = self.request(cell, script.prompt, script.seed, latents, 0 if given is None else given.shape[1])
        session = self.pipeline.session(request, given=given, keep=1)
        turns = {block: (prompt, how) for block, prompt, how in script.turns}
        frames, z, starts, seconds, held = [], [], [0], [], []
        for number in range(script.blocks):
            if number in turns:
                session.prompt(*turns[number])
            begin = time.perf_counter()
            block = next(session)
            seconds.append(time.perf_counter() - begin)
            frames.append(to_bytes(block.frames_BTCHW[0]))
            z.append(block.latents_BTCHW[0].float().cpu().numpy())
            starts.append(starts[-1] + len(frames[-1]))
            held.append(bytes_of(session.snapshot().parts))
        return Film(np.concatenate(frames), np.concatenate(z), tuple(starts[:-1]), tuple(seconds), tuple(held))


def endurance(pipeline: Pipeline, wanted: Wanted, blocks: int) -> Row:
    """The report of one video of `blocks` blocks by each policy that was asked for (all were: by the plain window with
    its sink), at the first budget; a policy that is interrupted is reported as far as it came."""
    make = PipelineMaker(pipeline)
    policies = (memory.SINK,) if wanted.policies == Wanted().policies else wanted.policies
    one = replace(wanted, policies=policies, budgets=wanted.budgets[:1], positions=wanted.positions[:1])
    cells = one.cells(make.shape.trained)
    prompt = draw_prompts(1, wanted.levels, "memory")[0]
    found: list[Row] = []
    with _progress() as progress:
        for cell in cells:
            task = progress.add_task(cell.policy, total=blocks)

            def said(done: int, task: TaskID = task) -> None:
                progress.update(task, completed=done, refresh=done % 20 == 0)

            if (row := endure(make, cell, prompt, blocks, said)) is not None:
                found.append(row)
            if row is None or row["blocks"] < blocks:
                break
    config = {
        "benchmark": "memory", "model": pipeline.family.card.name, "world": pipeline.family.card.world or None,
        "trained_frames": make.shape.trained, "block": make.shape.block, "prompts": [prompt],
        "specs": {cell.policy: cell.past for cell in cells}, "complete": len(found) == len(cells),
        "interrupted": len(found) < len(cells) or found[-1]["blocks"] < blocks,
    }  # fmt: skip
    return {
        **head("bench memory", str(pipeline.family.device)), "config": config, "rows": [], "switching": [],
        "endurance": found, "claims": [],
    }  # fmt: skip


# ---------------------------------------------------------------- one run


@dataclass(frozen=True)
class Unit:
    """One measurement: its name in the journal, its part of the run, and what it is about."""

    key: str
    kind: str
    cell: Cell
    number: int
    how: str = ""
    trial: str = ""


class Bench:
    """One run from options to report. `begin` is when the command began (time.monotonic), `journal` where measurements
    are kept (None: nowhere)."""

    def __init__(self, pipeline: Pipeline, wanted: Wanted, begin: float, journal: Path | None = None) -> None:
        card = pipeline.family.card
        if card.world != "shapes":
            raise ValueError(
                f"family {card.name!r} has world {card.world!r} in its card, expected 'shapes', whose oracle marks its "
                "videos; where it was trained on that world, say so in card.json"
            )
        self.pipeline, self.make = pipeline, PipelineMaker(pipeline)
        self.shape = self.make.shape
        self.until = begin + QUICK_SECONDS if wanted.quick else float("inf")
        self.wanted = self._fitted(wanted)
        self.cells = self.wanted.cells(self.shape.trained)
        for cell in self.cells:
            families.check(self.make.pipeline, self.make.request(cell, FIRST, 0, self.shape.trained))
        self.prompts = draw_prompts(self.wanted.prompts, self.wanted.levels, "memory")
        self.scenes = scenes.draw_scenes(self.wanted.scenes) if self.wanted.scenes else ()
        self.journal = Journal(journal, self._made_with())
        self.interrupted = False
        self._references: dict[tuple[str, str, str, str], Film] = {}

    def _fitted(self, wanted: Wanted) -> Wanted:
        """What is left of a quick run when the first films have told how fast the machine is: it gives up its longest
        horizons, then its second prompt."""
        cell = memory.cell(memory.FULL, 0, memory.OWN, self.shape.trained)
        self.make(cell, Script(FIRST, 0, 2))
        begin = time.monotonic()
        film = self.make(cell, Script(FIRST, 0, self.shape.blocks))
        self.mark = hashlib.sha256(film.latents.tobytes() + film.frames.tobytes()).hexdigest()[:16]
        one, left = time.monotonic() - begin, self.until - time.monotonic()
        count = len(wanted.cells(self.shape.trained))
        for prompts in dict.fromkeys((wanted.prompts, 1)):
            for most in sorted(wanted.horizons, reverse=True):
                films = prompts * (1.1 * count * most + REFERENCES) + wanted.scenes * (1.2 * count + 3 * len(WAYS))
                if one * films < left:
                    return replace(wanted, prompts=prompts, horizons=tuple(h for h in wanted.horizons if h <= most))
        return replace(wanted, prompts=1, scenes=0, horizons=(min(wanted.horizons),))

    def _made_with(self) -> Row:
        """What a measurement depends on besides its key; `mark` is that of a film, and differs with the weights."""
        return {
            "model": self.pipeline.family.card.name, "mark": self.mark, "horizons": list(self.wanted.horizons),
            "threads": torch.get_num_threads(),
        }  # fmt: skip

    def run(self) -> Row:
        """The report; without rows when it was stopped before every competitor had made one video."""
        units = [*self._units()]
        with self.journal, _progress() as progress:
            task = progress.add_task("measuring", total=len(units))
            try:
                for unit in units:
                    if unit.key not in self.journal:
                        if time.monotonic() > self.until:
                            break
                        self.journal.add(unit.key, self._measured(unit))
                    progress.update(task, advance=1, description=f"{unit.kind} {unit.cell.policy}", refresh=True)
            except KeyboardInterrupt:
                self.interrupted = True
        return self._report(all(unit.key in self.journal for unit in units))

    def _units(self) -> Iterator[Unit]:
        """Everything that is measured, in turns: scenes between the rounds of videos, so that a run that is cut short
        has some of each."""
        switched = self._switched()
        for number in range(max(self.wanted.prompts, self.wanted.scenes)):
            turn = number % len(self.cells)
            cells = (*self.cells[turn:], *self.cells[:turn])
            if number < self.wanted.prompts:
                for cell in cells:
                    yield Unit(f"video | {cell.key} | {self.prompts[number]}", "video", cell, number)
            if number < self.wanted.scenes:
                for cell in cells:
                    yield Unit(f"return | {cell.key} | {number}", "return", cell, number)
                for how in WAYS:
                    for trial in ("other", "turned"):
                        key = f"switch | {switched.key} | {how} | {trial} | {number}"
                        yield Unit(key, "switch", switched, number, how, trial)

    def _switched(self) -> Cell:
        """The competitor whose prompts change: the plain window with its sink, at the budget nearest to 9."""
        budget = min(self.wanted.budgets, key=lambda budget: abs(budget - 9))
        return memory.cell(memory.SINK, budget, memory.OWN, self.shape.trained)

    def _measured(self, unit: Unit) -> Any:
        if unit.kind == "video":
            return self._video(unit.cell, self.prompts[unit.number], unit.number)
        trial = self.scenes[unit.number]
        return self._return(unit.cell, trial) if unit.kind == "return" else self._switch(unit, trial)

    def _video(self, cell: Cell, prompt: str, seed: int) -> Row:
        film = self.make(cell, Script(prompt, seed, max(self.wanted.horizons) * self.shape.blocks))
        reference = self._reference(cell, prompt, seed)
        return {
            **memory.marks(film, prompt, self.wanted.horizons, self.shape),
            "difference": memory.largest_difference(film, reference, cell, self.shape),
        }

    def _reference(self, cell: Cell, prompt: str, seed: int) -> Film:
        """One training length with the past that drops nothing, at the same positions."""
        key = (cell.reference, cell.positions, cell.router, prompt)
        if key not in self._references:
            self._references = {known: film for known, film in self._references.items() if known[-1] == prompt}
            full = replace(cell, past=cell.reference)
            self._references[key] = self.make(full, Script(prompt, seed, self.shape.blocks))
        return self._references[key]

    def _return(self, cell: Cell, trial: scenes.Scenes) -> float | None:
        """How alike the thing of a scene is that comes back after another scene: both are true clips."""
        blocks = self.shape.blocks
        turns = ((blocks, trial.other, KEEP), (2 * blocks, trial.first, RETURN_WAY))
        shown = (trial.first, trial.other)
        film = self.make(cell, Script(trial.first, trial.seed, 2 * blocks + AFTER, turns, shown))
        before = film.frames[film.starts[blocks // 2] : film.starts[blocks]]
        after = film.frames[film.starts[2 * blocks + scenes.TWO_BLOCKS] :]
        return scenes.alike(scenes.look(before, trial.first), scenes.look(after, trial.first))

    def _switch(self, unit: Unit, trial: scenes.Scenes) -> Row:
        """A change of prompt after one training length."""
        cell, at = unit.cell, self.shape.blocks
        new = trial.other if unit.trial == "other" else trial.turned
        film = self.make(cell, Script(trial.first, trial.seed, at + AFTER, ((at, new, unit.how),)))
        start, each = film.starts[at], film.starts[at + 1] - film.starts[at]
        second = film.frames[film.starts[at + 1] : film.starts[at + 2]]
        later = film.frames[film.starts[at + scenes.TWO_BLOCKS] :]
        seam = scenes.step_at(film.frames, start, each - 1)
        before = scenes.look(film.frames[start - 2 * each : start], trial.first)
        same = scenes.alike(before, scenes.look(later, trial.first)) if unit.trial == "turned" else None
        return {
            "policy": cell.policy, "past": cell.past, "positions": cell.positions, "how": unit.how, "kind": unit.trial,
            "adopted": scenes.adopted(second, trial.first, new) if unit.trial == "other" else None,
            "adherence": round(scenes.adherence(later, new), 6), "identity": same,
            "seam": round(seam, 6), "continuity": round(scenes.continuity(seam), 6),
            "seconds": round(film.seconds[at], 6),
        }  # fmt: skip

    def _report(self, complete: bool) -> Row:
        """The report of the prompts of which every competitor has made its video."""
        units = [unit for unit in self._units() if unit.key in self.journal]
        made: dict[int, int] = {}
        for unit in units:
            made[unit.number] = made.get(unit.number, 0) + (unit.kind == "video")
        rounds = [number for number, count in made.items() if count == len(self.cells)]
        prompts = [self.prompts[number] for number in rounds]
        videos: dict[str, list[Row]] = {}
        returns: dict[str, list[float | None]] = {}
        for unit in sorted(units, key=lambda unit: unit.number):
            if unit.kind == "video" and unit.number in rounds:
                videos.setdefault(unit.cell.key, []).append(self.journal[unit.key])
            elif unit.kind == "return":
                returns.setdefault(unit.cell.key, []).append(self.journal[unit.key])
        told = self.cells, prompts, videos, returns, self.wanted.horizons, self.shape
        found = memory_rows.rows(*told) if rounds else []
        switches = memory_rows.switching([self.journal[unit.key] for unit in units if unit.kind == "switch"])
        return {
            **head("bench memory", str(self.pipeline.family.device)),
            "config": {**self._config(prompts), "complete": complete, "interrupted": self.interrupted},
            "rows": found, "switching": switches, "endurance": [], "claims": memory_rows.claims(found, switches),
        }  # fmt: skip

    def _config(self, prompts: list[str]) -> Row:
        wanted, card = self.wanted, self.pipeline.family.card
        return {
            "benchmark": "memory", "model": card.name, "world": card.world or None, "levels": list(wanted.levels),
            "block": card.block, "trained_frames": card.trained_frames, "fps": card.fps,
            "budgets": list(wanted.budgets), "horizons": list(wanted.horizons), "positions": list(wanted.positions),
            "past_levels": list(wanted.past_levels),
            "window": f"frames of {card.trained_frames} latent frames, from the first on, without overlap",
            "prompts": prompts, "asked": {"prompts": wanted.prompts, "scenes": wanted.scenes},
            "scenes": [trial.first for trial in self.scenes], "return_way": RETURN_WAY, "ways": list(WAYS),
            "specs": {f"{cell.policy} {cell.budget or 'no limit'} {cell.positions}": cell.past for cell in self.cells},
            "quick": wanted.quick, "weights": str(wanted.weights) if wanted.weights else None,
        }  # fmt: skip


def extras(folder: Path | None) -> dict[str, dict[str, str]]:
    """Further options by policy that a folder holds: trained merging weights and a head profile.

    Raises ValueError for a folder without any.
    """
    if folder is None:
        return {}
    found = {
        policy: {"weights": str(path)}
        for policy, name in memory.TRAINED.items()
        if (path := folder / f"{name}.safetensors").is_file()
    }
    if (profile := folder / "heads.json").is_file():
        found["headwise"] = {"profile": str(profile)}
    if not found:
        raise ValueError(f"{folder} holds no trained weights; train them by `arvid train compressors`")
    return found


def _progress() -> Progress:
    """Refreshed by hand, between videos: no thread of its own disturbs what is timed."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=errors, auto_refresh=False,
    )  # fmt: skip
