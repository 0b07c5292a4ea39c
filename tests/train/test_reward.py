"""What the frame reward is taught: the drawings against the renderer, the targets against their damage, the batches."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arvid.rewards.frame import FrameReward, FrameRewardConfig
from arvid.train import pictures, reward
from arvid.train.pictures import CHANGES, FLAWS, FRAME_FLAWS, NAMES, Flaw
from arvid.train.trainer import TrainConfig, train
from arvid.worlds import captions, grammar, shapes
from arvid.worlds.labels import label

FILM = 81


def read(prompts: list[str]) -> Tensor:
    """One random but fixed vector per word."""
    text_BLD = torch.zeros(len(prompts), 48, 128)
    for row, prompt in enumerate(prompts):
        for place, word in enumerate(prompt.split()[:48]):
            text_BLD[row, place] = torch.randn(128, generator=torch.Generator().manual_seed(sum(map(ord, word))))
    return text_BLD


class Pooling:
    """A crude codec: every latent frame is the mean picture of its frames, 8 x 8 cells of 2 x 2 pixels each."""

    def encode(self, v_BTCHW: Tensor) -> Tensor:
        first, rest = v_BTCHW[:, :1], v_BTCHW[:, 1:].unflatten(1, (-1, 4)).mean(2)
        small = torch.nn.functional.avg_pool2d(torch.cat([first, rest], 1).flatten(0, 1), 4)
        return torch.nn.functional.pixel_unshuffle(small, 2).unflatten(0, (len(v_BTCHW), -1))

    def decode(self, z_BTCHW: Tensor) -> tuple[Tensor, object]:
        v = torch.nn.functional.pixel_shuffle(z_BTCHW.flatten(0, 1), 2).unflatten(0, z_BTCHW.shape[:2])
        v = v.repeat_interleave(4, -1).repeat_interleave(4, -2)
        return torch.cat([v[:, :1], v[:, 1:].repeat_interleave(4, 1)], 1).clamp(-1, 1), None


def stories(count: int, levels: tuple[int, ...] = (1, 2, 3, 4)) -> list[str]:
    rng = random.Random(11)
    return [captions.sample(rng, levels).prompt for _ in range(count)]


def test_a_sound_drawing_is_the_rendered_frame() -> None:
    for number, prompt in enumerate(stories(12)):
        film, frames = shapes.takes(prompt, number, FILM), shapes.render(prompt, number, FILM)
        for time in (0, 13, 40, 41, 80):
            drawn = np.rint(pictures.draw(film, time)).clip(0, 255).astype(np.uint8)
            np.testing.assert_array_equal(drawn, frames[time])


@pytest.mark.parametrize("kind", FLAWS)
def test_a_flaw_spoils_more_the_stronger_it_is_and_keeps_its_word(kind: str) -> None:
    kept = []
    for strength in (0.0, 0.1, 0.5, 1.0):
        drawn, clean = [], []
        for number, prompt in enumerate(stories(16, (1, 2))):
            film = shapes.takes(prompt, number, FILM)
            flaw = Flaw(kind if strength else "", strength, number)
            drawn.append(pictures.draw(film, 30, flaw))
            clean.append(pictures.draw(film, 30))
            np.testing.assert_array_equal(drawn[-1], pictures.draw(film, 30, flaw))
        kept.append(float(pictures.fidelity(pictures.pixels(drawn), pictures.pixels(clean)).mean()))
    assert kept[0] == 1.0
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.6


def test_a_flaw_of_a_thing_leaves_the_rest_alone() -> None:
    film = shapes.takes("a small red star rests on a checkered beige background", 3, FILM)
    clean = pictures.draw(film, 0)
    far = np.hypot(
        *(np.mod(np.mgrid[0:64, 0:64][::-1] / 64 - film[0].tracks[0].path_T2[0][:, None, None] + 0.5, 1) - 0.5)
    )
    for kind in sorted(set(FLAWS) - set(FRAME_FLAWS) - {"double", "ghost"}):
        spoilt = pictures.draw(film, 0, Flaw(kind, 0.8, 1))
        np.testing.assert_array_equal(spoilt[far > 0.3], clean[far > 0.3])
        assert np.abs(spoilt - clean).max() > 30


def test_the_kept_share_is_a_half_where_the_damage_is_as_documented() -> None:
    clean = torch.zeros(1, 3, 64, 64)
    for side, expected in ((64, 0.5), (9, 0.5), (0, 1.0)):
        spoilt = clean.clone()
        spoilt[..., 20 : 20 + side, 20 : 20 + side] = pictures.HARM / 127.5
        assert pictures.fidelity(spoilt, clean).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_take_differs_in_that_field_only(kind: str) -> None:
    rng = random.Random(4)
    for number, prompt in enumerate(stories(20, (1, 2))):
        take = shapes.takes(prompt, number, FILM)[0]
        (ground, things), (new_ground, new_things) = (
            pictures.look(take),
            pictures.look(pictures.change(take, kind, rng)),
        )
        gone, come = set(things) - set(new_things), set(new_things) - set(things)
        assert (new_ground != ground) == (kind == "background")
        assert (len(gone), len(come)) == {
            "background": (0, 0), "missing": (1, 0), "added": (0, 1)
        }.get(kind, (1, 1))  # fmt: skip
        if kind in ("colour", "shape", "size"):
            fields = [
                getattr(gone.copy().pop(), f) == getattr(come.copy().pop(), f) for f in ("colour", "shape", "size")
            ]
            assert fields == [f != kind for f in ("colour", "shape", "size")]


def test_names_say_what_a_scene_holds() -> None:
    take = shapes.takes("a small red star moves left on a striped navy background", 0, FILM)[0]
    found = {name for name, held in zip(NAMES, pictures.named({pictures.look(take)}), strict=True) if held}
    assert found == {"star", "red", "small", "red star", "red small", "navy", "texture", "stripes"}


def test_what_stands_in_a_cell_is_what_the_renderer_says() -> None:
    things = unknown = 0
    for number, prompt in enumerate(stories(6, (1, 2))):
        film, truth = shapes.takes(prompt, number, FILM), label(prompt, number, FILM)
        shown = [pictures.mapped(pictures.take_at(film, time), time) for time in range(0, FILM, 8)]
        found = reward.standing(torch.from_numpy(np.stack(shown))).classes_BTYXK[:, 0].numpy()
        wanted = np.stack([truth.shape_TYX, truth.colour_TYX, truth.size_TYX], -1)[::8]
        known = found != reward.UNKNOWN
        np.testing.assert_array_equal(found[known], wanted[known])
        things, unknown = things + int((found > 0).sum()), unknown + int((~known).sum())
    assert things > 3 * 60 and things > unknown


def test_names_that_are_not_known_cost_nothing() -> None:
    logits, wanted = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 7)
    wanted[1], wanted[2, :3] = 1.0, -1.0
    known = wanted >= 0
    naive = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], wanted[known])
    torch.testing.assert_close(reward._entropy(logits, wanted), naive)
    assert float(reward._entropy(logits, torch.full((4, 7), -1.0))) == 0


def test_sights_are_sound_drawings_of_every_shape_and_size() -> None:
    source = reward.Sights(32)
    first, again = source(2), reward.Sights(32)(2)
    assert torch.equal(first.v_BCHW, again.v_BCHW) and torch.equal(first.shown_BLK, again.shown_BLK)
    assert not torch.equal(first.v_BCHW, source(3).v_BCHW)
    assert first.v_BCHW.shape == (32, 3, 64, 64) and first.shown_BLK.shape == (32, 64, len(NAMES))
    shows = first.shown_BLK.amax((0, 1))
    assert all(shows[NAMES.index(name)] == 1 for name in (*grammar.SHAPES, *grammar.SIZES))
    with pytest.raises(ValueError, match="6 drawings; expected a multiple of 4"):
        reward.Sights(6)


@pytest.mark.parametrize("codec", [None, Pooling()])
def test_batches_depend_on_seed_and_step_alone(codec: Pooling | None) -> None:
    source = reward.Pairs(read, codec, batch=32)
    first, other = source(3), source(4)
    again = reward.Pairs(read, codec, batch=32)(3)
    assert torch.equal(first.v_BCHW, again.v_BCHW) and torch.equal(first.target_B, again.target_B)
    assert torch.equal(first.text_BLD, again.text_BLD) and first.kinds == again.kinds
    assert not torch.equal(first.v_BCHW, other.v_BCHW)
    assert not torch.equal(first.v_BCHW, reward.Pairs(read, codec, batch=32, seed=1)(3).v_BCHW)


@pytest.mark.parametrize("codec", [None, Pooling()])
def test_targets_follow_from_what_a_pair_is(codec: Pooling | None) -> None:
    source = reward.Pairs(read, codec, batch=64)
    seen: set[str] = set()
    for step in range(6):
        batch = source(step)
        seen |= set(batch.kinds)
        assert batch.v_BCHW.shape == (64, 3, 64, 64) and float(batch.v_BCHW.abs().max()) <= 1
        assert bool(((batch.target_B >= 0) & (batch.target_B <= 1)).all())
        for kind, target in zip(batch.kinds, batch.target_B.tolist(), strict=True):
            assert target == {"clean": 1.0, "decoded": 1.0}.get(kind, 0.0 if kind in reward.WRONG else target)
        sound = [n for n, kind in enumerate(batch.kinds) if kind in ("clean", "decoded")]
        shows = batch.shown_BLK[sound].amax(1)
        assert bool((shows <= batch.told_BK[sound]).all()), "a sound frame shows only what is said"
    assert {"clean", "other", *CHANGES} <= seen
    assert ({"decoded", *reward.LATENT_FLAWS} <= seen) == (codec is not None)


def test_training_and_held_out_prompts_do_not_meet() -> None:
    told: dict[bool, list[str]] = {False: [], True: []}
    for held_out, heard in told.items():
        source = reward.Pairs(lambda prompts, heard=heard: heard.extend(prompts) or read(prompts), held_out=held_out)  # type: ignore[misc]
        source(0)
    for held_out, prompts in told.items():
        assert all(captions.is_held_out(grammar.parse(prompt).scene) == held_out for prompt in prompts)


def test_a_batch_of_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match="12 pairs; expected a multiple of 8"):
        reward.Pairs(read, batch=12)


def test_measured_numbers_are_those_of_a_known_judge() -> None:
    source = reward.Pairs(read, batch=64)
    known = [source(step) for step in range(3)]

    class Judge(torch.nn.Module):
        """Knows the targets: certain where they are, or the other way round."""

        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, v_BCHW: Tensor, text_BLD: Tensor) -> Tensor:
            batch = next(row for row in known if torch.equal(row.v_BCHW, v_BCHW))
            return self.sign * torch.logit(batch.target_B.clamp(1e-6, 1 - 1e-6))

    right, wrong = (reward.measure(Judge(sign), source, 3) for sign in (1.0, -1.0))
    assert right["auc"] == 1.0 and wrong["auc"] == 0.0
    assert right["calibration error"] == pytest.approx(0, abs=1e-4)
    assert wrong["calibration error"] > 0.5
    assert {f"auc {kind}" for kind in CHANGES} <= set(right)


def trained(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    model = FrameReward(read, FrameRewardConfig(widths=(32, 32, 32), heads=1))
    return nn.ModuleDict({"model": model, "reader": reward.cell_reader(model)})


def test_seeing_teaches_the_cells_alone() -> None:
    parts, batch = trained(), reward.Sights(8)(0)
    objective = reward.Seeing(parts["model"], parts["reader"])  # type: ignore[arg-type]
    taught = [*parts["model"].stem.parameters(), *parts["reader"].parameters()]  # type: ignore[union-attr]
    optimiser, losses = torch.optim.AdamW(taught, 2e-3), []
    for _ in range(8):
        numbers = objective(batch, torch.Generator())
        numbers["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(numbers["loss"].detach()))
    assert losses[-1] < 0.9 * losses[0]
    reached = {name.split(".")[1] for name, p in parts.named_parameters() if p.grad is not None}
    assert reached == {"cell", "concepts"}, "the optimiser has cleared the rest; words and the head were not reached"


def test_a_reward_with_too_few_concepts_is_refused() -> None:
    model = FrameReward(read, FrameRewardConfig(widths=(32, 32, 32), heads=1, concepts=8))
    with pytest.raises(ValueError, match="a reward of 8 concepts; expected at least 83"):
        reward.Faithfulness(model, reward.cell_reader(model))


def test_a_few_steps_lower_the_loss_and_resume(tmp_path: Path) -> None:
    batch = reward.Pairs(read, batch=16)(0)

    def run(steps: int, directory: Path) -> dict[str, Tensor]:
        parts = trained()
        config = TrainConfig(6, 2e-3, warmup=2, save_every=3, log_every=1)
        stop = [] if steps == 6 else [1]

        def source(step: int) -> reward.PairBatch:
            if stop and step == steps:
                raise KeyboardInterrupt
            return batch

        objective = reward.Faithfulness(parts["model"], parts["reader"])  # type: ignore[arg-type]
        return train(parts, objective, source, config, directory, report=rows.append)

    rows: list[dict[str, float]] = []
    whole = run(6, tmp_path / "whole")
    assert rows[-1]["loss"] < rows[0]["loss"]
    with pytest.raises(KeyboardInterrupt):
        run(3, tmp_path / "cut")
    resumed = run(6, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
