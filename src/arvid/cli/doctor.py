"""`arvid doctor`: what this machine is, what a run needs of it, and what would make it fit.

Knows: where an operating system tells its memory, how the findings are written. Does not know: what parts need
(cli/needs.py), which ways there are (models/planning.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from arvid.cli import options
from arvid.cli.options import Past, Router, Seconds, size_of

if TYPE_CHECKING:
    import torch

    from arvid.cli.needs import Ask
    from arvid.models.placement import Placement
    from arvid.models.planning import Device, Need, Way
    from arvid.models.preparing import How

MEMINFO = Path("/proc/meminfo")
GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where a container's limit and use are told."""


SMALL, SHORT = 100, 60
"""A family whose files are this many times smaller than what is free is not measured for videos of so many seconds."""
VAE = {"decoder": "vae"}
"""Parts whose role has another name in a placement."""


@options.grouped
def doctor(
    *,
    parts: options.Parts,
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Width and height. Default: the model's.")] = "",
    seconds: Seconds = 5.0,
    past: Past = "",
    router: Router = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine is, what a run would need of it, and whether it fits.

    --model and --drafter may also name published sizes: wan-1.3b, wan-14b. Nothing is loaded: the models' code runs
    without data, in bf16, and what is alive is counted.
    """
    wanted = size_of(size)
    from arvid.cli.families import source_of
    from arvid.cli.needs import Ask, needs_of, parts_of, plan_of
    from arvid.models.planning import ways
    from arvid.rollout.flow import together

    model, drafter = parts.model, parts.drafter
    known, ask = parts_of(model, drafter, source_of(parts)), Ask(wanted, seconds, past, router)
    here = devices()
    needs = needs_of(known, ask, together("cuda" if len(here) > 1 else "cpu"))
    found = list(ways(needs, here))
    asked = {"model": model, "drafter": drafter or None, "size": list(wanted or known.card.size), "seconds": seconds,
             "past": past or known.card.past, "blocks": len(plan_of(known, ask))}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(_report(asked, needs, here, found), indent=2))
        return
    for line in _told(asked, needs, here, found):
        typer.echo(line)
    fitting = next((way.what for way in found if not way.lacking(here)), None)
    typer.echo(f"fits: {fitting}" if fitting else _remedy(needs_of(known, ask, together("cuda"))))


class Alive(Protocol):
    """How needs add up to the most bytes at once by device."""

    def __call__(self, needs: Sequence[Need], place: Mapping[str, str], /) -> dict[str, int]:
        """Bytes by the name of a device."""
        ...


def require(needs: Sequence[Need], placement: Placement, how: How, alive: Alive) -> None:
    """Raises ValueError with the numbers when a run would not fit where it is placed, run as `how` says; `alive` says
    which parts are there at the same time."""
    from arvid.models.planning import Way, at_rest, in_8_bits, refuse, resting, unrounded

    place = {need.role: _named(placement.of(VAE.get(need.role, need.role))) for need in needs}
    asked = in_8_bits(needs) if how.quantise else list(needs)
    needed = alive(resting(asked, how.offload), place)
    host = at_rest(asked, how.offload) + (unrounded(needs, place) if how.quantise else 0)
    if host:
        needed["cpu"] = needed.get("cpu", 0) + host
    refuse(needs, devices(), Way("as asked", place, needed), resting(asked, how.offload))


def _named(device: torch.device) -> str:
    """The name under which `devices` lists a device."""
    return device.type if device.type == "cpu" else f"{device.type}:{device.index or 0}"


def small(bytes_: int, ask: Ask) -> bool:
    """Whether a family of so many bytes of weights is so small beside what is free that nobody needs to measure it,
    which takes a second."""
    return ask.seconds <= SHORT and SMALL * bytes_ < min(device.room for device in devices())


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
    return [*lines, ""]


def _remedy(needs: list[Need]) -> str:
    """What would help a machine on which nothing fits; the needs are those on a GPU."""
    from arvid.models.planning import RESERVE, SPARE, Device, gib, ways

    cards = [Device(name, "", 0, 0) for name in ("cpu", "cuda:0", "cuda:1")]
    offers = []
    for way in ways(needs, cards):
        sizes = {name: gib(count * (1 + SPARE) + RESERVE[name.split(":")[0]]) for name, count in way.needed.items()}
        host = f", {sizes.pop('cpu')} of main memory" if "cpu" in sizes else ""
        offers.append(f"{' and '.join(sizes.values())} ({way.what}{host})")
    return f"does not fit. GPUs that would do, by what must be free: {'; '.join(offers)}. A shorter --past needs less"
