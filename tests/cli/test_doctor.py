"""`arvid doctor`: what it says of this machine and of others, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arvid.cli import doctor
from arvid.models.placement import Placement
from arvid.models.planning import GIB, Device, Need, after_text, ways
from arvid.models.preparing import How

Type = Callable[..., Any]


def machine(*gpus: float, cpu: float = 16) -> list[Device]:
    return [Device("cpu", "4 cores", int(cpu * GIB), int(cpu * GIB))] + [
        Device(f"cuda:{number}", "a card", int(size * GIB), int(size * GIB)) for number, size in enumerate(gpus)
    ]


def test_the_shipped_family_fits_and_is_told(arvid: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "devices", machine)
    result = arvid("doctor")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[:2] == ["cpu: 4 cores, 16.0 GiB, 16.0 GiB free", "no GPU"]
    assert "embedded: 64x64, 5 s in 7 blocks, past window:frames=9, bf16" in lines
    roles = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in
             {"target", "drafter", "text", "decoder", "reward"}]  # fmt: skip
    assert roles == ["target", "drafter", "text", "decoder", "reward"]
    assert lines[-1] == "fits: everything in one place"


def test_the_report_holds_the_numbers(arvid: Type, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: machine(80))
    result = arvid("doctor", "--model", toy, "--seconds", 2, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert list(report)[:2] == ["schema", "kind"]
    assert report["asked"] == {
        "model": str(toy), "drafter": None, "size": [64, 64], "seconds": 2.0, "past": "window:frames=9", "blocks": 3,
    }  # fmt: skip
    parts = {part["role"]: part for part in report["parts"]}
    total = sum(part["weights"] + part["kept"] for part in parts.values())
    most = max(part["working"] for part in parts.values())
    assert report["ways"][0]["bytes"] == {"cuda:0": total + most}
    assert report["ways"][0]["lacking"] == {}
    assert (report["fits"], report["way"]) == (True, "everything in one place")


def test_what_does_not_fit_says_what_would(arvid: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: machine(8))
    result = arvid("doctor", "--model", "wan-1.3b", "--seconds", 1, "--size", "832x480")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert any(line.startswith("no  everything in one place: cuda:0 ") and "more on cuda:0" in line for line in lines)
    assert lines[-1].startswith("does not fit. GPUs that would do, by what must be free: ")
    assert "(text, decoder and reward on a second GPU)" in lines[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "wan-99b"], "unknown model 'wan-99b'; known: embedded, embedded-drafter, embedded-target"),
        (["--size", "65x64"], "size 65x64: sides must be multiples of 16 and 16"),
        (["--size", "0x64"], "size 0x64"),
        (["--seconds", "0"], "0.0 seconds asked for"),
        (["--past", "attic"], "unknown past 'attic'"),
        (["--model", "no/such/checkpoint"], "no/such/checkpoint"),
    ],
)
def test_wrong_input_ends_with_one_line_and_2(arvid: Type, words: list[str], said: str) -> None:
    result = arvid("doctor", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert result.stderr.count("\n") == 1


GB = 10**9
PAIR = [
    Need("target", 0, 28 * GB, 4 * GB, 6 * GB, 40), Need("drafter", 0, 3 * GB, GB, 2 * GB, 30),
    Need("text", 0, 11 * GB, 0, GB), Need("decoder", 0, GB, 2 * GB, 5 * GB), Need("reward", 0, GB, 0, GB),
]  # fmt: skip


def required(here: list[Device], place: str, how: How, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said about a run; empty when it fits. torch is told that there are as many GPUs as the machine has."""
    monkeypatch.setattr(doctor, "devices", lambda: here)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(here) - 1)
    try:
        doctor.require(PAIR, Placement.parse(place), how, after_text)
    except ValueError as error:
        return str(error)
    return ""


def test_a_run_is_planned_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on one device needs 28 + 4 + 3 + 1 + 1 + 2 + 1 and 6 to work with: 46 GB, the text alone 12."""
    alone, two = "cuda", "target=cuda:0,drafter=cuda:0,vae=cuda:1,reward=cuda:1,text=cuda:1"
    assert required(machine(48), alone, How(), monkeypatch) == ""
    said = required(machine(44, cpu=40), alone, How(), monkeypatch)
    assert said.startswith("cuda:0 has 44.0 GiB free and 42.8 GiB are needed (target 35.4 GiB, drafter 5.6 GiB")
    assert said.endswith("what fits: transformers in 8 bits, the text encoder leaves (--quantise int8)")
    said = required(machine(44, 24), alone, How(), monkeypatch)
    assert said.endswith("a second GPU (--place vae=cuda:1,reward=cuda:1,text=cuda:1)")
    assert required(machine(44, 24), two, How(), monkeypatch) == ""
    assert "cuda:1 has 10.0 GiB free" in required(machine(44, 10), two, How(), monkeypatch)
    assert required(machine(32, cpu=40), alone, How("int8"), monkeypatch) == ""
    assert "cpu has 20.0 GiB free" in required(machine(32, cpu=20), alone, How("int8"), monkeypatch)
    assert required(machine(24, cpu=40), alone, How(offload=("target", "drafter")), monkeypatch) == ""
    assert "cuda:0 has 19.0" in required(machine(19, cpu=40), alone, How(offload=("target",)), monkeypatch)
    assert "cpu has 30.0" in required(machine(24, cpu=30), alone, How(offload=("target", "drafter")), monkeypatch)


def asked_by(option: str) -> tuple[str, How]:
    """Placement and way to run of an option that a remedy names."""
    word, _, value = option.partition(" ")
    place = f"target=cuda,{value}" if word == "--place" else "cuda"
    roles = tuple(value.split(",")) if word == "--offload" else ()
    return place, How(value if word == "--quantise" else "", roles)


@pytest.mark.parametrize("gpu", [18, 24, 28, 32, 36, 44, 48])
@pytest.mark.parametrize("cpu", [8, 20, 28, 30, 34, 48])
def test_what_is_recommended_is_what_is_accepted(gpu: float, cpu: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Main memory counts for weights that rest there and for those that are rounded on their way."""
    here = machine(gpu, cpu=cpu)
    for way in ways(PAIR, here):
        said = required(here, *asked_by(way.option), monkeypatch) if "second" not in way.what else "needs another card"
        assert bool(said) == bool(way.lacking(here)) or way.what == "everything in one place", way.what
        remedy = re.search(r"what fits: .*?(?: \((--.*)\))?$", said)
        if remedy:
            assert required(here, *asked_by(remedy[1] or ""), monkeypatch) == "", said
        assert "(), " not in said


def test_a_gpu_to_get_is_as_large_as_a_run_on_it_needs(arvid: Type, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU writes eight pending blocks in one pass, a GPU one by one: what is recommended does not depend on which of
    the two this machine has."""
    said = []
    for here in (machine(cpu=1), machine(1, cpu=1)):
        monkeypatch.setattr(doctor, "devices", lambda here=here: here)
        result = arvid("doctor", "--model", toy, "--seconds", 9, "--size", "1024x1024")
        said.append(result.output.splitlines()[-1])
    assert said[0].startswith("does not fit. GPUs that would do, by what must be free: ")
    assert said[0] == said[1]
    assert re.search(r"\(transformers in 8 bits, the text encoder leaves, [\d.]+ GiB of main memory\)", said[0])


def test_generate_plans_before_it_loads(arvid: Type, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import arvid.families as families

    monkeypatch.setattr(doctor, "devices", lambda: machine(cpu=0.5))
    monkeypatch.setattr(families, "load", None)
    result = arvid("generate", "a red circle", "--model", toy, "--seconds", 1)
    assert result.exit_code == 2
    assert "cpu has 0.5 GiB free and " in result.stderr
    assert "too much; no way to run it fits this machine: arvid doctor lists them" in result.stderr
    assert not Path("video.mp4").exists()


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, limit, used = tmp_path / "meminfo", tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(doctor, "MEMINFO", told)
    monkeypatch.setattr(doctor, "GROUPS", ((str(limit), str(used)),))
    total, free = doctor.memory()
    assert total == free > 0, "a system that does not say what is available"
    told.write_text(f"MemTotal: 1 kB\nMemAvailable:   {512 * 1024} kB\n", encoding="ascii")
    assert doctor.memory() == (total, 512 * 2**20)
    limit.write_text(f"{2**28}\n", encoding="ascii")
    used.write_text(f"{2**27}\n", encoding="ascii")
    assert doctor.memory() == (2**28, 2**27)
    limit.write_text("max\n", encoding="ascii")
    assert doctor.memory() == (total, 512 * 2**20)


def test_this_machine_is_described() -> None:
    cpu, *gpus = doctor.devices()
    assert cpu.name == "cpu" and 0 < cpu.free <= cpu.total
    assert cpu.room < cpu.free
    assert [gpu.name for gpu in gpus] == [f"cuda:{number}" for number in range(len(gpus))]
