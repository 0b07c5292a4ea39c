"""VBench and VBench-Long (2311.17982), run in an environment of their own, and their result files.

Knows: how their programs are called and what they write. Does not know: what their scores mean; they are passed on
under `vbench.DIMENSION`, the suite's own total beside the values of single videos. Nothing of theirs is imported.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

OWN_VIDEOS = ("subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree",
              "aesthetic_quality", "imaging_quality")  # fmt: skip
"""Dimensions that VBench can judge on any video."""
RESULTS = "*_eval_results.json"


@dataclass(frozen=True)
class Dimension:
    """One dimension of a run: the suite's own total, and the value of each video by its name."""

    name: str
    total: float
    videos: Mapping[str, float]


class Suite(Protocol):
    """Somebody else's suite."""

    def judge(self, videos: Sequence[Path], work: Path) -> list[Dimension]:
        """What the suite says about videos; it may write into `work`."""
        ...


@dataclass(frozen=True)
class Read:
    """Result files that are already there: one, or a folder of them."""

    file: str

    def judge(self, videos: Sequence[Path], work: Path) -> list[Dimension]:
        """What the file says."""
        return read_results(Path(self.file))


@dataclass(frozen=True)
class Run:
    """A run on a folder of videos. `python` is the interpreter of the environment in which vbench is installed;
    `dimensions` are joined by +; `long` is a checkout of VBench's repository, for VBench-Long; `mode` is theirs
    (empty: own videos)."""

    python: str
    dimensions: str = "+".join(OWN_VIDEOS)
    long: str = ""
    mode: str = ""

    def command(self, folder: Path, output: Path) -> list[str]:
        """The words of the call."""
        if self.long:
            program = [str(Path(self.long) / "vbench2_beta_long" / "eval_long.py")]
            mode = self.mode or "long_custom_input"
        else:
            program = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m"]
            program += ["vbench.launch.evaluate"]
            mode = self.mode or "custom_input"
        wanted = ["--videos_path", str(folder), "--output_path", str(output), "--mode", mode]
        return [self.python, *program, *wanted, "--dimension", *self.dimensions.split("+")]

    def judge(self, videos: Sequence[Path], work: Path) -> list[Dimension]:
        """Run it and read what it wrote under `work`. The videos have to lie in one folder, which is judged whole.

        Raises ValueError when they do not, and with the program's last words when it fails.
        """
        folders = {path.parent.resolve() for path in videos}
        if len(folders) != 1:
            raise ValueError(f"videos of {len(folders)} folders; VBench judges one folder: run it for each")
        work.mkdir(parents=True, exist_ok=True)
        words = self.command(folders.pop(), work.resolve())
        try:
            ended = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ValueError(f"cannot run {self.python} ({error.strerror}); name VBench's interpreter") from error
        if ended.returncode:
            last = (ended.stderr or ended.stdout or "it said nothing").strip().splitlines()[-1]
            by_hand = " ".join(words)
            raise ValueError(f"VBench ended with code {ended.returncode}: {last}; try it by hand: {by_hand}")
        return read_results(work)


SUITES: Mapping[str, Callable[..., Suite]] = {"run": Run, "read": Read}
"""How results come about, by name."""


def read_results(place: Path) -> list[Dimension]:
    """The dimensions of a result file, or of all of them in a folder (a later file wins).

    Raises ValueError when there is none or it is something else.
    """
    files = sorted(place.glob(RESULTS), key=lambda path: path.stat().st_mtime) if place.is_dir() else [place]
    found: dict[str, Dimension] = {}
    for path in files:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            for name, (total, videos, *_) in held.items():
                found[name] = Dimension(name, float(total), _by_name(videos))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{path} is no result of VBench ({error}); give its ..._eval_results.json") from error
    if not found:
        raise ValueError(f"no {RESULTS} in {place}; did VBench write somewhere else?")
    return [*found.values()]


def _by_name(rows: Any) -> dict[str, float]:
    """The value of each video, as VBench wrote it; nothing where a dimension lists none. The pieces that VBench-Long
    cuts a video into are averaged under the video's name."""
    pieces: dict[str, list[float]] = {}
    for row in rows if isinstance(rows, list) else []:
        path = Path(str(row["video_path"]))
        name = path.parent.name.partition("-Scene")[0] if "split_clip" in path.parts else path.stem
        pieces.setdefault(name, []).append(float(row["video_results"]))
    return {name: sum(values) / len(values) for name, values in pieces.items()}
