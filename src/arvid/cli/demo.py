"""`arvid demo`: one prompt by speculation and by the target alone, side by side, with what it gained and cost.

Knows: the order of an honest comparison (warm up, then both on the same prompt and seed). Does not know: how blocks
are made; a benchmark over many prompts is `arvid bench`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arvid.cli.options import Device, Model, Quiet, Router, Seconds, Seed, Threads
from arvid.cli.places import folder_for

if TYPE_CHECKING:
    from arvid.cli.progress import Display
    from arvid.cli.report import Recorder
    from arvid.pipeline import Pipeline, Request
    from arvid.video import Strip

PROMPT = "a large red circle bounces up and down while a small cyan star drifts right on a striped navy background"
SEED = 3
"""Of eight seeds (0 to 7) the one whose worse video is the best: a demo shows what it is about, and how often that goes
wrong is what the family's card is for."""
SCALE = 6
WARM_UP_SECONDS = 1.0


def demo(
    prompt: Annotated[str, typer.Option("--prompt", help="What the videos show.")] = PROMPT,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where demo.mp4, .png and .json go.")] = Path("out"),
    seconds: Seconds = 5.0,
    seed: Seed = SEED,
    model: Model = "embedded",
    router: Router = "",
    threads: Threads = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Show speculation against the target alone: one prompt, two videos side by side, and what it gained and cost."""
    folder_for(out, "--out")
    from arvid.cli.families import check, check_specs, doubts, open_pipeline, set_up, warn
    from arvid.cli.progress import choose
    from arvid.pipeline import Request

    set_up(threads)
    check_specs(router, "")
    pipeline = open_pipeline(model, "", device)
    fast = Request(prompt, seconds, seed, router)
    slow = replace(fast, router="target")
    for request in (fast, slow):
        check(pipeline, request)
    if doubt := doubts(pipeline.family, prompt):
        warn(doubt)
    for request in (fast, slow):
        for _ in pipeline.stream(replace(request, seconds=min(seconds, WARM_UP_SECONDS))):
            pass
    display = choose(quiet)
    name = router or pipeline.family.card.router
    takes = [_take(pipeline, fast, f"speculation ({name})", display), _take(pipeline, slow, "target alone", display)]
    out.mkdir(exist_ok=True)
    report = _compared(pipeline, takes, out)
    _draw(pipeline, takes, report, out)
    if not quiet:
        typer.echo(_told(report, out))


@dataclass(frozen=True, eq=False)
class Take:
    """One of the two runs: what was asked for, what was recorded, its frames, its world score (None: not judged)."""

    request: Request
    recorder: Recorder
    strip: Strip
    score: float | None


def _take(pipeline: Pipeline, request: Request, label: str, display: Display) -> Take:
    from arvid.cli.families import check
    from arvid.cli.report import Recorder
    from arvid.video import Album

    recorder, album = Recorder(), Album(pipeline.family.card.fps, 1 << 20)
    display.begin(label, check(pipeline, request))
    with display:
        for block in recorder.watch(pipeline.stream(request, (recorder, display))):
            album.add(block.frames_BTCHW[0], block.source)
            display.block(recorder.rows[-1])
    display.end(recorder.totals(), [])
    strip = album.strip(label)
    score = _judged(strip, request.prompt) if pipeline.family.card.world == "shapes" else None
    return Take(request, recorder, strip, score)


def _judged(strip: Strip, prompt: str) -> float | None:
    """The world score, None for a prompt or a size the oracle cannot judge."""
    from arvid.worlds.oracle import judge

    try:
        return judge(strip.frames_THWC, prompt).score
    except ValueError:
        return None


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 4) if above is not None and below else None


def _compared(pipeline: Pipeline, takes: list[Take], out: Path) -> dict[str, Any]:
    from arvid.cli.report import head, run_of, write_report

    runs = [{**run_of(t.request, pipeline.family.card, t.recorder), "world_score": t.score} for t in takes]
    report = {
        **head("demo", str(pipeline.family.device)),
        "speculation": runs[0],
        "target": runs[1],
        "speedup": _ratio(takes[1].recorder.seconds, takes[0].recorder.seconds),
        "retention": _ratio(takes[0].score, takes[1].score),
        "outputs": {name: str(out / f"demo.{end}") for name, end in
                    (("video", "mp4"), ("contact_sheet", "png"), ("report", "json"))},
    }  # fmt: skip
    write_report(report, out / "demo.json")
    return report


def _draw(pipeline: Pipeline, takes: list[Take], report: dict[str, Any], out: Path) -> None:
    """The two videos side by side, and the sheet of both."""
    from arvid.video import VideoWriter, contact_sheet, side_by_side

    runs = (report["speculation"], report["target"])
    left, right = (
        replace(take.strip, label=f"{word}: {run['totals']['seconds']:.2f} s")
        for take, run, word in zip(takes, runs, ("speculation", "target alone"), strict=True)
    )
    fps = pipeline.family.card.fps
    pictures = side_by_side(left, right, max(1, SCALE * 64 // min(pipeline.family.card.size)))
    first = next(pictures)
    with VideoWriter(out / "demo.mp4", fps, first.shape[1], first.shape[0]) as film:
        film.append_bytes(first[None])
        for picture in pictures:
            film.append_bytes(picture[None])
    contact_sheet([left, right], out / "demo.png", takes[0].request.prompt)


def _told(report: dict[str, Any], out: Path) -> str:
    """The comparison in a few lines."""
    lines = ["", report["target"]["config"]["prompt"]]
    for name, run in (("speculation", report["speculation"]), ("target alone", report["target"])):
        score = "" if run["world_score"] is None else f"   world score {run['world_score']:.3f}"
        totals = run["totals"]
        lines.append(f"  {name:<13}{totals['seconds']:7.2f} s {totals['fps']:7.1f} frames per second{score}")
    kept = "" if report["retention"] is None else f", with {report['retention']:.1%} of its world score"
    lines.append(f"  speculation was {report['speedup']:.2f} times as fast as the target alone{kept}")
    lines.append("  one prompt is no proof; for many: arvid bench speculation --quick")
    lines.append(f"wrote {', '.join(str(out / f'demo.{end}') for end in ('mp4', 'png', 'json'))}")
    return "\n".join(lines)
