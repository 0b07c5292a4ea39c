"""`arvid doctor`: what this machine is, what a run needs of it, and what would make it fit.

Knows: where an operating system tells its memory, how the findings are written. Does not know: what parts need
(cli/needs.py), which ways there are (models/planning.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arvid.cli.options import Drafter, Past, Router, Seconds, size_of

if TYPE_CHECKING:
    from arvid.cli.needs import Ask
    from arvid.models.planning import Device, Need, Way

MEMINFO = Path("/proc/meminfo")
GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where a container's limit and use are told."""


def doctor(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="embedded, a published size (wan-1.3b, wan-14b), a family directory or a checkpoint.",
        ),
    ] = "embedded",
    drafter: Drafter = "",
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Width and height. Default: the model's.")] = "",
    seconds: Seconds = 5.0,
    past: Past = "",
    router: Router = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine is, what a run would need of it, and whether it fits.

    Nothing is loaded: the models' code runs without data, in bf16, and what is alive is counted.
    """
    wanted = size_of(size)
    from arvid.cli.needs import Ask, needs_of, parts_of, plan_of
    from arvid.models.planning import ways

    parts, ask = parts_of(model, drafter), Ask(wanted, seconds, past, router)
    needs, here = needs_of(parts, ask), devices()
    found = list(ways(needs, here))
    asked = {"model": model, "drafter": drafter or None, "size": list(wanted or parts.card.size), "seconds": seconds,
             "past": past or parts.card.past, "blocks": len(plan_of(parts, ask))}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_report(asked, needs, here, found), indent=2))
        return
    for line in _told(asked, needs, here, found):
        typer.echo(line)


def require(model: str, drafter: str, device: str, ask: Ask) -> None:
    """Raises ValueError with the numbers when a run would not fit on `device`; nothing is loaded."""
    from arvid.cli.needs import needs_of, parts_of
    from arvid.models.planning import refuse

    needs = needs_of(parts_of(model, drafter), ask)
    name = "cuda:0" if device == "cuda" else device
    refuse(needs, devices(), {need.role: name for need in needs})


def devices() -> list[Device]:
    """This machine's places for tensors, the CPU first."""
    import torch

    from arvid.models.planning import Device

    total, free = memory()
    found = [Device("cpu", f"{len(_cores())} cores", total, free)]
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found.append(Device(f"cuda:{number}", torch.cuda.get_device_name(number), total, free))
    return found


def memory() -> tuple[int, int]:
    """Bytes of this machine's memory, in all and available; a container's limit counts. Where the system does not say
    what is available, all of it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = total
    if MEMINFO.is_file():
        told = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
        if "MemAvailable" in told:
            free = int(told["MemAvailable"].split()[0]) * 1024
    for limit, used in GROUPS:
        if Path(limit).is_file() and Path(used).is_file():
            most = Path(limit).read_text(encoding="ascii").strip()
            if most.isdigit() and int(most) < total:
                total = int(most)
                free = min(free, max(0, total - int(Path(used).read_text(encoding="ascii"))))
    return total, free


def _cores() -> set[int]:
    """The cores this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _report(asked: dict[str, Any], needs: list[Need], here: list[Device], found: list[Way]) -> dict[str, Any]:
    from dataclasses import asdict

    from arvid.cli.report import head

    fitting = [way.what for way in found if not way.lacking(here)]
    return {
        **head("doctor", "cpu"),
        "asked": asked,
        "devices": [asdict(device) for device in here],
        "parts": [asdict(need) for need in needs],
        "ways": [
            {"what": way.what, "place": dict(way.place), "bytes": dict(way.needed), "lacking": way.lacking(here)}
            for way in found
        ],
        "fits": bool(fitting),
        "way": fitting[0] if fitting else None,
    }


def _told(asked: dict[str, Any], needs: list[Need], here: list[Device], found: list[Way]) -> list[str]:
    """The findings as lines of text."""
    from arvid.models.planning import gib

    lines = [f"{device.name}: {device.what}, {gib(device.total)}, {gib(device.free)} free" for device in here]
    lines += ["no GPU"] if len(here) == 1 else []
    with_drafter = f" drafted by {asked['drafter']}" if asked["drafter"] else ""
    lines += ["", f"{asked['model']}{with_drafter}: {asked['size'][0]}x{asked['size'][1]}, {asked['seconds']:g} s in "
              f"{asked['blocks']} blocks, past {asked['past']}, bf16", ""]  # fmt: skip
    row = "{:<9}{:>12}{:>12}{:>12}{:>12}"
    lines.append(row.format("part", "parameters", "weights", "kept", "working"))
    for need in needs:
        count = f"{need.parameters / 1e6:.1f} M" if need.parameters < 1e9 else f"{need.parameters / 1e9:.2f} G"
        lines.append(row.format(need.role, count, gib(need.weights), gib(need.kept), gib(need.working)))
    lines.append("kept: past, text, decoder state between blocks; working: the most while a block is made")
    lines.append("")
    for way in found:
        lacking = way.lacking(here)
        sizes = ", ".join(f"{name} {gib(count)}" for name, count in way.needed.items())
        missing = ", ".join(f"{gib(count)} more on {name}" for name, count in lacking.items())
        lines.append(f"{'no ' if lacking else 'yes'} {way.what}: {sizes}{f'; lacks {missing}' if lacking else ''}")
    fitting = next((way.what for way in found if not way.lacking(here)), None)
    lines.append("")
    lines.append(f"fits: {fitting}" if fitting else _remedy(needs))
    return lines


def _remedy(needs: list[Need]) -> str:
    """What would help a machine on which nothing fits."""
    from arvid.models.planning import RESERVE, SPARE, Device, gib, ways

    cards = [Device(name, "", 0, 0) for name in ("cpu", "cuda:0", "cuda:1")]
    offers = []
    for way in ways(needs, cards):
        sizes = [gib(count * (1 + SPARE) + RESERVE["cuda"]) for name, count in way.needed.items() if name != "cpu"]
        offers.append(f"{' and '.join(sizes)} ({way.what})")
    return f"does not fit. GPUs that would do, by what must be free: {'; '.join(offers)}. A shorter --past needs less"
