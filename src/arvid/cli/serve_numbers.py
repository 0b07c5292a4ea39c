"""What a load on a server amounts to: spreads, growth of memory, a few lines and a page.

Knows: how numbers are summed up and shown. Does not know: how they were measured (cli/serve_load.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from arvid.cli.serve_load import Ran, Wanted

LOOKS = 10
"""Fewer looks at the memory say nothing about its growth."""
MOST_ERRORS = 100
Row = dict[str, Any]
PAGE = """{% extends "frame.html" %}
{% block title %}arvid bench serve{% endblock %}
{% block style %}
  body { max-width: 56rem; }
  table { font-size: inherit; }
  th, td { padding: .2rem .9rem .2rem 0; border: 0; text-align: left; vertical-align: top; white-space: normal; }
{% endblock %}
{% block body %}
<h1>{{ report.config.sessions }} viewers and {{ report.config.jobs }} jobs for {{ report.config.seconds }} s</h1>
<p>{{ report.model }} at {{ report.config.url }}, {{ report.date }}, {{ report.machine.cpu }},
{{ report.machine.cores }} cores</p>
<table>{% for name, value in rows %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Memory of the server</h2>
{{ memory | safe }}
<h2>From a control to its receipt</h2>
{{ receipts | safe }}
<h2>Viewers</h2>
<table>
<tr><th>viewer</th><th>frames</th><th>first frame, s</th><th>missed deadlines</th><th>waited, s</th>
<th>receipts</th></tr>
{% for one in report.viewers %}<tr><td>{{ loop.index0 }}</td><td>{{ one.frames }}</td><td>{{ one.first }}</td>
<td>{{ one.missed }}</td><td>{{ one.waited }}</td><td>{{ one.receipts | length }}</td></tr>
{% endfor %}</table>
{% endblock %}
"""


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th percentile and largest; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": round(median(ordered), 4), "p95": round(high, 4), "max": round(ordered[-1], 4)}


def growth(memory: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    """How much memory grew from the second fifth of the time to the last, by their medians; None of too few looks. The
    first fifth is left out: in it a server comes to the size it needs."""
    if len(memory) < LOOKS:
        return None
    fifth = len(memory) // 5
    early, late = (median(size for _, size in part) for part in (memory[fifth : 2 * fifth], memory[-fifth:]))
    largest = max(size for _, size in memory)
    return {"early_bytes": early, "late_bytes": late, "max_bytes": largest, "growth": round(late / early - 1, 4)}


def summed(ran: Ran, wanted: Wanted, fps: float) -> Row:
    """The totals and rows of a report; `fps` are the frames that a second of video has."""
    receipts = [receipt for one in ran.seen for receipt in one.receipts]
    frames = sum(one.frames for one in ran.seen)
    jobs = ran.jobs
    errors = [error for one in ran.seen for error in one.errors] + jobs.errors
    totals = {
        "frames_per_second": round(frames / ran.seconds, 3),
        "real_time_share": round(frames / (ran.seconds * fps * wanted.sessions), 4) if wanted.sessions else None,
        "first_frame_s": spread([one.first for one in ran.seen if one.first is not None]),
        "missed_deadlines": sum(one.missed for one in ran.seen),
        "waited_s": round(sum(one.waited for one in ran.seen), 3),
        "receipts": len(receipts),
        "receipt_s": spread([receipt.seconds for receipt in receipts]),
        "receipt_blocks": spread([receipt.came for receipt in receipts]),
        "applied_blocks": spread([receipt.after for receipt in receipts if receipt.after is not None]),
        "jobs": {
            "accepted": jobs.accepted, **{name: jobs.states[name] for name in ("completed", "failed", "lost")},
            "frames": jobs.frames, "seconds": spread(jobs.took),
        },
        "memory": growth(ran.memory),
        "errors": len(errors),
    }  # fmt: skip
    return {"totals": totals, "errors": errors[:MOST_ERRORS], "viewers": [_row(asdict(one)) for one in ran.seen],
            "memory_bytes": ran.memory}  # fmt: skip


def _row(value: Any) -> Any:
    """Plain data with numbers as short as they are good for."""
    if isinstance(value, dict):
        return {name: _row(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_row(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def told(report: Row) -> list[tuple[str, str]]:
    """The report in a few lines: name and value."""
    totals, jobs, memory = report["totals"], report["totals"]["jobs"], report["totals"]["memory"]
    share = totals["real_time_share"]
    lines = [
        ("frames received per second",
         f"{totals['frames_per_second']:g}" + (f" ({share:.0%} of real time)" if share is not None else "")),
        ("first frame", _words(totals["first_frame_s"], " s")),
        ("missed deadlines", f"{totals['missed_deadlines']}, {totals['waited_s']:g} s waited in all"),
        ("control to receipt", _words(totals["receipt_s"], " s")),
        ("blocks between them", _words(totals["receipt_blocks"])),
        ("blocks until it shows", _words(totals["applied_blocks"])),
        ("receipts", str(totals["receipts"])),
        ("jobs", ", ".join(f"{jobs[name]} {name}" for name in ("accepted", "completed", "failed", "lost"))),
        ("a job", _words(jobs["seconds"], " s")),
        ("memory", f"{memory['late_bytes'] / 2**20:.0f} MiB, {memory['growth']:+.1%}" if memory else "too few looks"),
    ]  # fmt: skip
    if overhead := report.get("overhead"):
        bare = f"{overhead['bare_fps']:g} frames a second bare"
        words = f"{overhead['overhead']:+.1%} by the clock, {overhead['processor']:+.1%} of processor time ({bare})"
        lines.append(("overhead of the server", words))
    return [*lines, ("errors", "; ".join(report["errors"][:5]) or "none")]


def _words(found: dict[str, float] | None, unit: str = "") -> str:
    return "none" if found is None else ", ".join(f"{name} {value:g}{unit}" for name, value in found.items())


def rendered(report: Row) -> str:
    """The report as a page with everything in it."""
    from matplotlib.figure import Figure

    from arvid.evals.drawing import COLOURS, PAGES, as_svg, plain

    with plain():
        memory = Figure(figsize=(8, 2.6), layout="constrained")
        axes = memory.add_subplot()
        looks = report["memory_bytes"]
        axes.plot([at for at, _ in looks], [size / 2**20 for _, size in looks], color=COLOURS[0])
        axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
        receipts = Figure(figsize=(8, 2.6), layout="constrained")
        axes = receipts.add_subplot()
        taken = [receipt["seconds"] for one in report["viewers"] for receipt in one["receipts"]]
        axes.hist(taken or [0.0], bins=40, color=COLOURS[0])
        axes.set(xlabel="seconds", ylabel="receipts")
        plots = {"memory": as_svg(memory), "receipts": as_svg(receipts)}
    return PAGES.from_string(PAGE).render(report=report, rows=told(report), **plots)
