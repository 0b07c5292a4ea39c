"""The card of the embedded family as numbers: what `arvid bench family` measures.

Knows: the held-out part of the shapes world, and what its card promises (autoencoder, world scores at one and three
times the training length, cost). Does not know: routing (`cli.bench_speculation`), how the weights were made.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from arvid.cli.report import Recorder, Row, head, speed_of
from arvid.evals import timing
from arvid.evals.online import OnlineQuality
from arvid.evals.pictures import Film
from arvid.evals.speculation import draw_prompts
from arvid.evals.statistics import PairedBootstrap
from arvid.models.family import Card, transformer_config
from arvid.models.tae import TIME_STRIDE, TinyAutoencoder
from arvid.models.wan.presets import flops_per_token
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.pipeline import Pipeline, Request
from arvid.video import to_bytes
from arvid.worlds import oracle, shapes

LONG = 3
"""How many times the training length the long videos are."""
BEST = 4
"""First blocks that the target chooses among in a further row."""
LISTENED = 4
"""Videos whose blocks are measured while they are made."""
EVERY_LEVEL = (1, 2, 3, 4)
"""Levels of the grammar: one thing; two; three things or an event; a new scene or a camera that pans."""


def measure(
    pipeline: Pipeline, prompts: int, levels: tuple[int, ...], device: str, keep: Callable[[Film], None]
) -> Row:
    """Every number of the card, over `prompts` held-out prompts; seed of prompt number i is i. `keep` is given the
    target's videos of training length, prompt by prompt. A family of one transformer has no rows of a drafter."""
    test = draw_prompts(prompts, levels, "family")
    card = pipeline.family.card
    seconds = (card.trained_frames - 1) * TIME_STRIDE / card.fps
    routers = alone(pipeline)
    warmed = sum(pipeline.generate(Request(test[0], 1.0, router=router)).seconds for router in routers.values())
    rows = {
        "autoencoder": _autoencoder(pipeline, test),
        "target": _videos(pipeline, test, routers["target"], seconds, keep),
    }
    rows |= {name: _videos(pipeline, test, router, seconds) for name, router in routers.items() if name != "target"}
    rows |= {f"{name}_{LONG}x": _videos(pipeline, test, router, LONG * seconds) for name, router in routers.items()}
    if pipeline.chooses:
        best = f"{routers['target']}{',' if ':' in routers['target'] else ':'}first_best={BEST}"
        rows |= {f"target_best{BEST}": _videos(pipeline, test, best, seconds)}
        rows |= {f"target_best{BEST}_{LONG}x": _videos(pipeline, test, best, LONG * seconds)}
    return {
        **head("bench family", device),
        "config": {
            "model": card.name,
            "prompts": prompts,
            "levels": list(levels),
            "seconds": seconds,
            "warm_up_s": round(warmed, 4),
        },
        **rows,
        "parameters": {name: _parameters(transformer_config(card, name)) for name in routers},
        "levels": _by_level(pipeline, prompts, seconds),
        "online": {router: _online(pipeline, test[:LISTENED], router, seconds) for router in routers.values()},
        **(_beside(card, test, rows) if "drafter" in routers else {}),
        "peak_memory_bytes": _peak_memory(),
    }


def alone(pipeline: Pipeline) -> dict[str, str]:
    """Under which router each transformer makes videos alone; a family of one does so as its card says."""
    if pipeline.family.drafter is None:
        return {"target": pipeline.family.card.router}
    return {"target": "target", "drafter": "draft"}


def _beside(card: Card, prompts: tuple[str, ...], rows: Row) -> Row:
    """The drafter by the target: FLOPs of a pass, and score."""
    keys = (card.trained_frames // 2) * (card.size[0] // 16) * (card.size[1] // 16)
    cost = {name: flops_per_token(transformer_config(card, name), keys) for name in ("target", "drafter")}
    return {
        "flops_ratio": cost["drafter"] / cost["target"],
        "score_ratio": PairedBootstrap(prompts).ratio(rows["drafter"]["scores"], rows["target"]["scores"]).value,
    }


def _peak_memory() -> int:
    """Largest resident size of this process in bytes (macOS counts bytes, Linux KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _parameters(config: WanConfig) -> int:
    with torch.device("meta"):
        return CausalWan(config).parameters_count


@torch.inference_mode()
def _autoencoder(pipeline: Pipeline, prompts: tuple[str, ...]) -> Row:
    """PSNR (dB, over all pixels of all clips) and the world score that is left of the truth after a round trip."""
    vae = pipeline.family.decoder
    if not isinstance(vae, TinyAutoencoder):
        raise ValueError(f"the decoder of {pipeline.family.card.name} cannot encode; this card is of a family that can")
    errors, scores = [], []
    for seed, prompt in enumerate(prompts):
        truth = shapes.render(prompt, seed)
        v_BTCHW = torch.from_numpy(truth).movedim(-1, -3).float()[None] / 127.5 - 1
        again, _ = vae.decode(vae.encode(v_BTCHW.to(pipeline.family.device)))
        frames = to_bytes(again[0])
        errors.append(((frames.astype(np.float64) - truth) / 255) ** 2)
        scores.append(oracle.judge(frames, prompt).score)
    return {"psnr_db": float(-10 * np.log10(np.mean(errors))), **_mean(prompts, scores)}


def _videos(
    pipeline: Pipeline, prompts: tuple[str, ...], router: str, seconds: float,
    keep: Callable[[Film], None] = lambda film: None,
) -> Row:  # fmt: skip
    """World score and seconds of videos by one model; `keep` is given each of them."""
    scores, took, decode, attributes, speeds = [], [], [], [], []
    for seed, prompt in enumerate(prompts):
        request, recorder = Request(prompt, seconds, seed, router), Recorder()
        blocks = [block.frames_BTCHW[0] for block in recorder.watch(pipeline.stream(request))]
        took.append(recorder.seconds)
        decode.append(recorder.totals()["stage_seconds"].get("decode", 0.0))
        # Nothing was done with the blocks, so that took no time.
        rows = [{**row, "kept_s": 0.0} for row in recorder.rows]
        speeds.append(speed_of(request, pipeline.family.card, rows, recorder.device) or {})
        frames = to_bytes(torch.cat(blocks))
        world = oracle.judge(frames, prompt)
        keep(Film.of(prompt, seed, world.score, world.attributes, frames, pipeline.family.card.fps))
        scores.append(world.score)
        attributes.append(world.attributes)
    means = {name: float(np.mean([found[name] for found in attributes])) for name in attributes[0]}
    return {
        **_mean(prompts, scores),
        "attributes": means,
        "seconds_per_video": float(np.mean(took)),
        "decode_share": float(np.sum(decode) / (np.sum(took) - np.sum(decode))),
        "speed": timing.pooled(speeds),
    }


def _by_level(pipeline: Pipeline, prompts: int, seconds: float) -> Row:
    """World scores of the decoded truth and of each transformer, level by level over `prompts` prompts of each, and
    over all of them (`all`)."""
    drawn = {level: draw_prompts(prompts, (level,), f"family/level {level}") for level in EVERY_LEVEL}
    every = tuple(prompt for level in EVERY_LEVEL for prompt in drawn[level])
    found: Row = {"truth": {str(level): _autoencoder(pipeline, drawn[level]) for level in EVERY_LEVEL}}
    for name, router in alone(pipeline).items():
        found[name] = {str(level): _videos(pipeline, drawn[level], router, seconds) for level in EVERY_LEVEL}
    return {
        name: {
            **{level: {key: row[key] for key in ("score", "score_ci95", "scores")} for level, row in rows.items()},
            "all": _mean(every, [score for row in rows.values() for score in row["scores"]]),
        }
        for name, rows in found.items()
    }


class Timed:
    """A listener that measures quality, and how long that takes (see `arvid.types.Listener`)."""

    def __init__(self) -> None:
        self.quality, self.seconds = OnlineQuality(), 0.0

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Hand the event on."""
        begin = time.perf_counter()
        self.quality.on(event, payload)
        self.seconds += time.perf_counter() - begin


def _online(pipeline: Pipeline, prompts: tuple[str, ...], router: str, seconds: float) -> Row:
    """What a listener that measures every block costs: seconds of a block, and the share of what the block takes
    without it."""
    listening, whole, blocks = 0.0, 0.0, 0
    for seed, prompt in enumerate(prompts):
        ear, recorder = Timed(), Recorder()
        for _ in recorder.watch(pipeline.stream(Request(prompt, seconds, seed, router), (ear,))):
            pass
        listening, whole, blocks = listening + ear.seconds, whole + recorder.seconds, blocks + len(recorder.rows)
    return {"seconds_per_block": listening / blocks, "share": listening / (whole - listening)}


def _mean(prompts: tuple[str, ...], scores: list[float]) -> Row:
    found = PairedBootstrap(prompts).ratio(scores, [1.0] * len(scores))
    return {"score": found.value, "score_ci95": found.ci95, "scores": scores}


def told(report: Row) -> list[str]:
    """The card in a few lines."""
    lines = [
        f"autoencoder: {report['autoencoder']['psnr_db']:.1f} dB, truth keeps {report['autoencoder']['score']:.3f}"
    ]
    kinds = ("target", f"target_best{BEST}", "drafter")
    rows = [name for kind in kinds for name in (kind, f"{kind}_{LONG}x") if name in report]
    for name in rows:
        row = report[name]
        lines.append(
            f"{name}: world score {_interval(row)}, "
            f"{row['seconds_per_video']:.2f} s a video, "
            f"decoding {row['decode_share']:.0%} of the rest"
        )
    lines += [f"{name} by level: {_levels(rows)}" for name, rows in report["levels"].items()]
    if "flops_ratio" in report:
        ratio = report["score_ratio"] or 0
        lines.append(f"drafter by target: {report['flops_ratio']:.3f} of the FLOPs, {ratio:.2f} of the score")
    lines += [
        f"quality while it is made, by {name}: {1000 * found['seconds_per_block']:.2f} ms a block, {found['share']:.1%}"
        for name, found in report["online"].items()
    ]
    lines.append(f"peak memory of the process: {report['peak_memory_bytes'] / 1e9:.2f} GB")
    return lines


def _levels(rows: Row) -> str:
    """World scores with intervals, level by level."""
    return ", ".join(f"{level} {_interval(row)}" for level, row in rows.items())


def _interval(row: Row) -> str:
    low, high = row["score_ci95"] or (row["score"], row["score"])
    return f"{row['score']:.3f} ({low:.3f} to {high:.3f})"
