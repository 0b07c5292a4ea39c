"""`arvid bench speculation --random-weights`: what speculation saves at a given acceptance, without any weights.

Knows: which pair is timed where, the report, the terminal. Does not know: arguments (`cli.bench`), how a video with
forced acceptance is made and timed (`cli.bench_engine`).

Time does not depend on what a model has learned, so published sizes can be timed with random weights; a reward that
costs what it costs and says what it is told forces the share of drafts that is kept.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.table import Table

from arvid.cli import bench_engine as engine
from arvid.cli import families
from arvid.cli.places import stdout
from arvid.cli.report import Row, head, write_report
from arvid.models.placement import Placement

PAIRS = {
    "wan": ("wan-14b", "wan-1.3b"),
    "embedded": ("embedded-target", "embedded-drafter"),
    "toy": ("toy", "toy"),
}
"""Target and drafter by the word that --model takes here."""
WIDTH = 96
"""Columns where no terminal says how many there are."""


def forced(
    model: str = "",
    device: str = "",
    threads: int = 0,
    quick: bool = False,
    seed: int = 0,
    json_file: Path | None = None,
) -> Row:
    """Time a pair at each forced share, show the table, write the report and return it. `model` is a word of PAIRS
    (empty: wan on a GPU, embedded on a CPU), `device` empty for a GPU if there is one. Raises ValueError for others."""
    if model and model not in PAIRS:
        raise ValueError(f"--model {model!r} has no random weights; known: {', '.join(PAIRS)}")
    families.set_up(threads)
    where = Placement(device or ("cuda:0" if torch.cuda.is_available() else "cpu")).home
    report = measured(model or ("wan" if where.type == "cuda" else "embedded"), where, quick, seed)
    if json_file:
        write_report(report, json_file)
    show(report)
    return report


@torch.inference_mode()
def measured(model: str, device: torch.device, quick: bool, seed: int) -> Row:
    """The report: a row per router and forced share."""
    target, drafter = PAIRS[model]
    plan = engine.planned(engine.Wanted((target,), seed=seed, quick=quick), device)
    rows = engine.speculation(plan, plan.cases[0].window, quick)
    setting = plan.setting
    return {
        **head("bench speculation", str(device)),
        "config": {
            "benchmark": "speculation", "weights": "random", "target": target, "drafter": drafter,
            "size": list(setting.pixels), "steps": setting.steps, "window": plan.cases[0].window,
            "dtype": str(setting.dtype).removeprefix("torch."), "clock": setting.clock, "seed": seed, "quick": quick,
        },
        "rows": rows,
    }  # fmt: skip


def show(report: Row) -> None:
    """The table on stdout."""
    console = stdout(WIDTH)
    config = report["config"]
    wide, high = config["size"]
    title = f"{config['target']} and {config['drafter']} with random weights, {wide}x{high}, {config['clock']} time"
    table = Table(title=title, title_justify="left")
    for name in ("router", "kept", "seconds", "frames a second", "speed-up"):
        table.add_column(name, justify="left" if name == "router" else "right")
    for row in report["rows"]:
        kept = f"{row['drafts']} of {row['blocks']} ({row['accept_rate']:.1%})"
        table.add_row(row["router"], kept, f"{row['seconds']:.2f}", f"{row['fps']:.1f}", f"{row['speedup']:.2f}")
    console.print(table)
