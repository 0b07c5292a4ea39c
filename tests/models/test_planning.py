"""What a run needs, predicted: against closed forms, published numbers, and the memory of a process that runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from arvid.cli.needs import Ask, needs_of, parts_of
from arvid.models.planning import (
    GIB,
    META,
    Device,
    Ledger,
    Need,
    Way,
    build,
    by_layers,
    bytes_of,
    most,
    need,
    refuse,
    ways,
)

WITHIN = 0.10


def test_a_ledger_counts_what_lives_once() -> None:
    weight = torch.empty(10, 10, device=META)
    with Ledger([weight]) as ledger:
        turned = weight.T
        assert ledger.alive == 0
        x = torch.empty(4, 10, device=META)
        y = x @ turned
        part = y[:2]
        assert ledger.alive == 160 + 160
        del x
        assert ledger.alive == 160
        del y
        assert ledger.alive == 160, "a part keeps the whole alive"
        del part
        assert ledger.alive == 0
        assert ledger.peak == 320
        assert ledger.mark() == 0 == ledger.peak
    assert torch.ones(2).sum() == 2


def test_attention_is_counted_as_fused() -> None:
    """Queries, keys, values and the output; a mask of truths becomes one of numbers; no weights of all pairs."""
    batch, heads, length, size = 1, 2, 64, 8
    with Ledger() as ledger:
        q, k, v = (torch.empty(batch, heads, length, size, device=META) for _ in range(3))
        one = 4 * heads * length * size
        out = F.scaled_dot_product_attention(q, k, v)
        assert out.shape == q.shape
        assert ledger.peak == 4 * one
        mask = torch.empty(length, length, dtype=torch.bool, device=META)
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert ledger.peak == 5 * one + length**2 + 4 * length**2


def test_a_part_is_measured_in_its_type_without_data() -> None:
    def run(module: nn.Module, ledger: Ledger) -> tuple[int, int]:
        module(torch.empty(3, 4, dtype=torch.bfloat16, device=META))
        return 0, ledger.peak

    found = need("part", lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)), run, torch.bfloat16)
    # When the last layer has run, its input and output are alive; before, the first layer's input was there too.
    assert found == Need("part", 30 + 35, 2 * 65, 0, 2 * 3 * (4 + 6 + 5))
    tied = nn.Linear(3, 3, bias=False)
    assert bytes_of([tied.weight, tied.weight]) == 36


def test_like_layers_add_the_same() -> None:
    def measure(layers: int) -> tuple[int, ...]:
        return 7 + 3 * layers, 100

    assert by_layers(40, measure) == (127, 100)
    assert by_layers(1, measure) == (10, 100)


def test_what_is_drawn_out_from_three_layers_is_what_seven_need() -> None:
    parts = parts_of("embedded")
    seven = replace(parts, target=replace(parts.target, num_layers=7))
    found = {part.role: part for part in needs_of(seven, Ask(seconds=3, router="target"))}["target"]

    import arvid.cli.needs as module

    whole = pytest.MonkeyPatch()
    with whole.context() as patch:
        patch.setattr(module, "by_layers", lambda layers, measure: measure(layers))
        measured = {part.role: part for part in needs_of(seven, Ask(seconds=3, router="target"))}["target"]
    assert found == measured


@pytest.fixture(scope="module")
def published() -> dict[str, Need]:
    """The published pair at 832x480, on 3 latent frames of past."""
    return {part.role: part for part in needs_of(parts_of("wan-14b", "wan-1.3b"), Ask(seconds=2))}


def test_the_published_models_have_their_published_numbers(published: dict[str, Need]) -> None:
    assert round(published["target"].parameters / 1e9, 3) == 14.288
    assert round(published["drafter"].parameters / 1e9, 3) == 1.419
    assert published["target"].weights == 2 * published["target"].parameters
    assert published["target"].layers == 40
    # The decoder's state has 944,286,720 numbers; the frames of a block and latents come on top.
    state = 2 * 944_286_720
    assert state < published["decoder"].kept < 1.05 * state
    assert published["decoder"].working > 2 * state, "a draft and what replaces it are decoded on the same state"


def test_keys_and_values_of_frames_on_hold_are_in_it(published: dict[str, Need]) -> None:
    """3 frames of past, those a step back would bring again, and the block before with its keys: 9 at most."""
    per_frame = 2 * 2 * 40 * 1560 * 5120
    assert 3 * per_frame < published["target"].kept < 9.5 * per_frame


def of(role: str, **ask: Any) -> Need:
    """The need of one part of the shipped family."""
    return next(part for part in needs_of(parts_of("embedded"), Ask(**ask)) if part.role == role)


def test_longer_pasts_and_pending_blocks_need_more() -> None:
    frame, block = 2 * 2 * 8 * 16 * 256, 2 * 3 * 16 * 64 * 3 * 2
    short, long = (of("target", seconds=5, router="target", past=f"window:frames={n}") for n in (6, 12))
    assert long.kept - short.kept >= 6 * frame
    assert long.working - short.working >= 5 * frame, "rotated keys are made of all that is on view"
    pending = of("target", seconds=5, router="reward:tau=0.5", past="window:frames=6")
    assert pending.working > short.working + block


def test_moves_of_several_blocks_need_more() -> None:
    one, three = ("refine:levels=0.7,draft_steps=1,commit=last" + extra for extra in ("", ",ahead=3"))
    for role in ("target", "decoder"):
        alone, together = (of(role, seconds=5, router=router).working for router in (one, three))
        assert 1.2 * alone < together < 4 * alone, role


def needs() -> list[Need]:
    return [
        Need("target", 0, 28 * GIB, 4 * GIB, 6 * GIB, 40), Need("drafter", 0, 3 * GIB, GIB, 2 * GIB, 30),
        Need("text", 0, 11 * GIB, 0, GIB), Need("decoder", 0, GIB, 2 * GIB, 5 * GIB), Need("reward", 0, GIB, 0, GIB),
    ]  # fmt: skip


def machine(*gpus: int, cpu: int = 64) -> list[Device]:
    return [Device("cpu", "", cpu * GIB, cpu * GIB)] + [
        Device(f"cuda:{number}", "", size * GIB, size * GIB) for number, size in enumerate(gpus)
    ]


def test_parts_work_one_after_the_other_and_keep_side_by_side() -> None:
    together = most(needs(), {part.role: "cpu" for part in needs()})
    assert together == {"cpu": (28 + 4 + 3 + 1 + 11 + 3 + 1 + 6) * GIB}
    apart = most(needs(), {"target": "a", "drafter": "a", "text": "b", "decoder": "b", "reward": "b"})
    assert apart == {"a": (28 + 4 + 3 + 1 + 6) * GIB, "b": (11 + 3 + 1 + 5) * GIB}


@pytest.mark.parametrize(
    ("gpus", "first"),
    [
        ((80,), "everything in one place"),
        ((52,), "the text encoder leaves after the prompt"),
        ((46, 24), "text, decoder and reward on a second GPU"),
        ((36,), "transformers in 8 bits, the text encoder leaves"),
        ((24,), "layers of the transformers rest on the CPU, the text encoder leaves"),
        ((8,), None),
        ((), "everything in one place"),
    ],
)
def test_the_plainest_way_that_fits_is_found(gpus: tuple[int, ...], first: str | None) -> None:
    here = machine(*gpus)
    fitting = [way for way in ways(needs(), here) if not way.lacking(here)]
    assert (fitting[0].what if fitting else None) == first
    for way in fitting:
        assert all(count < {d.name: d.free for d in here}[name] for name, count in way.needed.items())


def test_an_impossible_run_is_refused_with_its_numbers() -> None:
    place = {part.role: "cuda:0" for part in needs()}
    everything = Way("as asked", place, most(needs(), place))
    refuse(needs(), machine(80), everything)
    with pytest.raises(ValueError) as found:
        refuse(needs(), machine(52), everything)
    said = str(found.value)
    assert said.startswith("cuda:0 has 52.0 GiB free and 57.0 GiB are needed (target 38.0 GiB, drafter 6.0 GiB")
    assert said.endswith("too much; what fits: the text encoder leaves after the prompt")
    assert "\n" not in said
    with pytest.raises(ValueError, match="no way to run it fits this machine: arvid doctor lists them"):
        refuse(needs(), machine(8), everything)
    with pytest.raises(ValueError, match=r"cuda:0 has 0 MiB free"):
        refuse(needs(), machine(), everything)


def test_a_module_is_built_without_data() -> None:
    module = build(lambda: nn.Linear(10**5, 10**5), torch.bfloat16)
    assert {(p.device, p.dtype, p.requires_grad) for p in module.parameters()} == {(META, torch.bfloat16, False)}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
def test_predicted_is_what_a_process_takes_at_three_sizes(project: Path) -> None:
    """The whole pipeline with random weights: peak resident memory beyond that of a process that has done it once.

    The C library is told to give blocks back when they are freed, as it does by itself when they are larger than
    32 MB; small tensors would stay with it otherwise.
    """
    environment = {**os.environ, "PYTHONPATH": f"{project / 'src'}{os.pathsep}{project / 'tests'}",
                   "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    found = subprocess.run(
        [sys.executable, str(project / "tests" / "oracles" / "resident.py")], capture_output=True, text=True,
        env=environment, check=True,
    )  # fmt: skip
    rows: list[dict[str, Any]] = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 3
    for row in rows:
        assert row["measured"] > 80 * 2**20, "large enough that the process's own small change does not count"
        assert abs(row["predicted"] / row["measured"] - 1) < WITHIN, row
