"""The benchmark of speculation: every policy makes the same videos in one process, a judge marks them.

Knows: the protocol (prompts, calibration, order, what is timed), the oracle of the shapes world. Does not know: models,
routers, how a video is made (a callable `Maker`), what the numbers of a table are (`evals.summary`), who reads them.
The oracle marks finished videos and never routes: routing sees only what the maker's own reward says.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from arvid.worlds import captions, oracle
from arvid.worlds.oracle import WorldScore

TARGET = "target"
DEFAULT_POLICIES = (
    "target",
    "target:steps=1",
    "target:steps=2",
    "target:steps=3",
    "target:steps=1,first_steps=4",
    "target:steps=2,first_steps=4",
    "target:commit=last",
    "draft",
    "first",
    "random:p=0.3",
    "random:p=0.5",
    "random:p=0.7",
    "stride:k=2",
    "stride:k=3",
    "reward:tau=q15",
    "reward:tau=q30",
    "reward:tau=q50",
    "reward:tau=q70",
    "reward:tau=q85",
    "quantile:accept=0.7",
    "cascade:tau=q50",
    "reward:tau=q50,repair=2",
    "reward:tau=q50,repair=3",
    "refine:levels=0.6",
    "refine:levels=0.8",
    "refine:levels=0.9",
    "refine:levels=0.8+0.4",
    "refine:levels=0.8,commit=last",
    "refine:levels=0.8,draft_steps=2",
    "refine:levels=0.8,draft_steps=1",
    "refine:levels=0.8,draft_steps=1,commit=last",
    "reward:tau=q50,refine=0.8",
    "stride:k=2,refine=0.8",
)
"""What a full run compares. `tau=q50` is the 50 % quantile of a policy's own scores (see `calibrate`)."""
QUICK_POLICIES = (
    "target",
    "first",
    "refine:levels=0.8",
    "target:steps=2",
    "reward:tau=q50",
    "draft",
    "refine:levels=0.8+0.4",
    "refine:levels=0.8,commit=last",
    "target:steps=1",
    "stride:k=2",
)
"""What a quick run compares, most telling first: it takes as many as fit into its time."""
SCORING = frozenset({"reward", "quantile", "cascade"})
"""Routers that need a reward model."""
ACCEPT_ALL = "reward:tau=-inf"
REMEDIES, CASCADES = ("repair", "refine", "once"), ("delta", "frames")
"""Options of what becomes of a draft that is not kept, and of a cascade's early stop."""
WARM_BLOCKS = 3
STRIP = 8
"""Frames of a video that are kept to be shown."""
FEWEST_POLICIES, FEWEST_ROUNDS, WANTED_ROUNDS = 4, 2, 4
PLACEHOLDER = re.compile(r"tau=q(\d{1,2})(?=,|$)")

Pixels = NDArray[np.uint8]
Judge = Callable[[Pixels, str], WorldScore]


@dataclass(frozen=True)
class BlockRun:
    """One finished block: wall-clock seconds since the one before (or since the request), who made it, the score its
    draft got (None: not scored; a rejected draft's score stays here), passes by name, seconds by stage, and how many
    frames it has (0: not told)."""

    seconds: float
    source: str
    score: float | None = None
    passes: dict[str, int] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    frames: int = 0


@dataclass(frozen=True, eq=False)
class Run:
    """One finished video: frames [T, H, W, 3] uint8, its blocks, wall-clock seconds of everything from the request
    (text, passes, scoring, decoding) to the last frame in main memory, and the processor seconds of all threads in that
    time (they tell a slow policy from a busy machine; 0: not measured)."""

    frames: Pixels
    blocks: tuple[BlockRun, ...]
    seconds: float
    cpu_seconds: float = 0.0


class Maker(Protocol):
    """Makes videos."""

    def __call__(self, policy: str, prompt: str, seed: int, blocks: int = 0) -> Run:
        """The video of a prompt and seed by a policy; `blocks` stops after so many (0: the whole video)."""
        ...


@dataclass(frozen=True, eq=False)
class Video:
    """One measured video: what was asked, what it cost (see `Run`), how it was marked, and a few of its frames side by
    side [H, STRIP * W, 3]."""

    policy: str
    prompt: str
    seed: int
    seconds: float
    world: WorldScore
    blocks: tuple[BlockRun, ...]
    strip: Pixels
    cpu_seconds: float = 0.0

    @property
    def score(self) -> float:
        """The world score in [0, 1]."""
        return self.world.score


@dataclass(frozen=True)
class Work:
    """What is compared on what: `target` is always among the policies; seed s of prompt number i is i + 1000 s, so
    that no two prompts share noise or the draws of a random router."""

    policies: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: int = 1

    @property
    def rounds(self) -> list[tuple[str, int]]:
        """(prompt, seed), all first seeds first: a run that is cut short has seen as many prompts as possible."""
        return [(prompt, i + 1000 * s) for s in range(self.seeds) for i, prompt in enumerate(self.prompts)]


@dataclass(frozen=True)
class Calibration:
    """Scores of drafts, all accepted, over prompts that are not in the test: by the policy that scored and accepted
    them (see `accepting`)."""

    prompts: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]

    def tau(self, policy: str, percent: int) -> float:
        """The score below which `percent` of a policy's drafts lie, to six digits."""
        return float(f"{np.quantile(self.scores[accepting(policy)], percent / 100):.6g}")


# ---------------------------------------------------------------- prompts and policies


def draw_prompts(count: int, levels: tuple[int, ...], purpose: str, without: Sequence[str] = ()) -> tuple[str, ...]:
    """`count` different held-out prompts; the same for the same `purpose`, none of them in `without`.

    Raises ValueError for a count below 1 or levels the grammar lacks.
    """
    if count < 1:
        raise ValueError(f"{count} prompts asked for; at least 1 is needed")
    rng = random.Random(f"speculation/{purpose}")
    found: dict[str, None] = {}
    while len(found) < count:
        prompt = captions.sample(rng, levels, held_out=True).prompt
        if prompt not in without:
            found[prompt] = None
    return tuple(found)


def router_of(policy: str) -> str:
    """The name of a policy's router: `reward` of `reward:tau=0.5`."""
    return policy.partition(":")[0]


def option_of(policy: str, name: str) -> str | None:
    """The text of one option of a policy, None when it is not given."""
    options = dict(part.partition("=")[::2] for part in policy.partition(":")[2].split(","))
    return options.get(name)


def accepting(policy: str) -> str:
    """The policy that scores drafts as this one does and accepts them all. What would become of the others is left out;
    a cascade, which stops scoring early, scores as `reward` does."""
    router, _, options = policy.partition(":")
    left_out = {"tau", *REMEDIES, *(CASCADES if router == "cascade" else ())}
    kept = [part for part in filter(None, options.split(",")) if part.partition("=")[0] not in left_out]
    return f"{'reward' if router == 'cascade' else router}:{','.join(['tau=-inf', *kept])}"


def scorers(policies: Sequence[str]) -> tuple[str, ...]:
    """The policies whose scores are needed because others name a threshold by its quantile."""
    return tuple(dict.fromkeys(accepting(policy) for policy in policies if PLACEHOLDER.search(policy)))


def calibrate(make: Maker, prompts: tuple[str, ...], policies: Sequence[str]) -> Calibration:
    """Draft everything behind block 0 on `prompts`, accept it, keep the scores: once for every way in which `policies`
    that name a quantile score.

    Raises ValueError when nothing was scored (videos of one block, a router that scores nothing).
    """
    found = {}
    for scorer in scorers(policies):
        runs = (make(scorer, prompt, 500_000 + number) for number, prompt in enumerate(prompts))
        found[scorer] = tuple(block.score for run in runs for block in run.blocks if block.score is not None)
        if not found[scorer]:
            raise ValueError(
                f"{scorer} scored no draft in the calibration: videos of one block; ask for more --seconds"
            )
    return Calibration(prompts, found)


def sampled(policies: Sequence[str]) -> tuple[str, ...]:
    """The policies with some number for every quantile, to see whether they can be made."""
    return tuple(PLACEHOLDER.sub("tau=0.5", policy) for policy in policies)


def resolve(policies: Sequence[str], calibration: Calibration | None) -> tuple[str, ...]:
    """The policies with numbers for quantiles, `target` first, each once.

    Raises ValueError when a quantile is named and there is no calibration.
    """
    if calibration is None and scorers(policies):
        raise ValueError("a policy names tau=qNN, but drafts were not scored; give tau a number")
    named = (TARGET, *policies)
    if calibration is not None:
        named = tuple(_resolved(policy, calibration) for policy in named)
    return tuple(dict.fromkeys(named))


def _resolved(policy: str, calibration: Calibration) -> str:
    return PLACEHOLDER.sub(lambda found: f"tau={calibration.tau(policy, int(found[1])):g}", policy)


# ---------------------------------------------------------------- the run


def fit(left: float, video: float, seconds: float, policies: Sequence[str]) -> tuple[tuple[str, ...], float]:
    """How many of the policies, and videos of how many seconds, fit into `left` seconds of wall-clock when one target
    video of `seconds` takes `video` to make and mark. No policy is counted as cheaper than the target."""
    fewest = FEWEST_POLICIES * (FEWEST_ROUNDS + 1)
    if fewest * video > left:
        return tuple(policies[:FEWEST_POLICIES]), max(1.0, round(seconds * left / (fewest * video), 1))
    count = int(left / ((WANTED_ROUNDS + 1) * video))
    return tuple(policies[: max(FEWEST_POLICIES, count)]), seconds


def warm_up(make: Maker, policies: Sequence[str], prompt: str) -> Iterator[str]:
    """Every policy makes the first blocks of a video that does not count; yields each when it has."""
    for policy in policies:
        make(policy, prompt, 600_000, WARM_BLOCKS)
        yield policy


def measure(make: Maker, work: Work, judge: Judge = oracle.judge, until: float = float("inf")) -> Iterator[Video]:
    """Every video, as soon as it is marked. In each round (a prompt and a seed) all policies take their turn, the
    first of them another one each round; no round begins that would probably end after `until` (time.monotonic)."""
    longest = 0.0
    for number, (prompt, seed) in enumerate(work.rounds):
        begin = time.monotonic()
        if number and begin + longest > until:
            return
        turn = number % len(work.policies)
        for policy in (*work.policies[turn:], *work.policies[:turn]):
            run = make(policy, prompt, seed)
            world = judge(run.frames, prompt)
            yield Video(policy, prompt, seed, run.seconds, world, run.blocks, strip(run.frames), run.cpu_seconds)
        longest = max(longest, time.monotonic() - begin)


def complete(videos: Sequence[Video], policies: Sequence[str]) -> list[Video]:
    """The videos of the rounds in which every policy finished."""
    made: dict[tuple[str, int], set[str]] = {}
    for video in videos:
        made.setdefault((video.prompt, video.seed), set()).add(video.policy)
    return [video for video in videos if made[video.prompt, video.seed] >= set(policies)]


def strip(frames: Pixels) -> Pixels:
    """STRIP evenly spaced frames side by side."""
    chosen = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
    shown: Pixels = np.concatenate(list(frames[chosen]), axis=1)
    return shown
