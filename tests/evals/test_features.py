"""Metrics on embeddings: tiny CLIP and ViT of random weights, against the library's own forward and VBench's loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from arvid.evals import features, scores
from arvid.evals.clips import Clip, opened, pictures_of, stride
from arvid.evals.metric import measure
from arvid.rewards.clip import letterbox, tokenizer_of
from arvid.rewards.hps import HPSv2
from arvid.rewards.image_reward import ImageReward, ImageRewardConfig
from oracles import films

PROMPT = "a red circle moves right"
WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *PROMPT.split()]


def tokenizer() -> Any:
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=16,
    )  # fmt: skip


def picture_processor(kind: str) -> Any:
    made = getattr(transformers, kind)
    if kind.startswith("CLIP"):
        return made(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return made(size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights on disk."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 4, "bos_token_id": 5}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=12
    )
    place = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(place)
    picture_processor("CLIPImageProcessor").save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of random weights on disk, of the kind DINO's weights come in."""
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    place = tmp_path_factory.mktemp("dino")
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(place)
    picture_processor("ViTImageProcessor").save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """A video with a prompt."""
    film = films.fading(films.moving(frames=20, step=(3, 1)))
    return replace(opened(films.write(tmp_path_factory.mktemp("video") / "a.mp4", film)), prompt=PROMPT)


def embeddings(model: Path, clip: Clip, rate: float) -> torch.Tensor:
    """By the library's own calls, all frames at once."""
    pictures = [*pictures_of(clip.path)][:: stride(clip.fps, rate)]
    prepared = transformers.AutoImageProcessor.from_pretrained(model)(images=pictures, return_tensors="pt")
    with torch.inference_mode():
        if "clip" in model.name:
            text = transformers.AutoTokenizer.from_pretrained(model)([PROMPT], return_tensors="pt")
            text.pop("token_type_ids", None)
            told = transformers.CLIPModel.from_pretrained(model).eval()(**text, **prepared)
            return told.image_embeds
        return F.normalize(
            transformers.AutoModel.from_pretrained(model).eval()(**prepared).last_hidden_state[:, 0], dim=-1
        )


def test_alignment_is_the_cosine_that_clip_itself_gives(clip_model: Path, clip: Clip) -> None:
    pictures = [*pictures_of(clip.path)][:: stride(clip.fps, 4)]
    prepared = transformers.AutoImageProcessor.from_pretrained(clip_model)(images=pictures, return_tensors="pt")
    text = transformers.AutoTokenizer.from_pretrained(clip_model)([PROMPT], return_tensors="pt")
    model = transformers.CLIPModel.from_pretrained(clip_model).eval()
    with torch.inference_mode():
        told = model(input_ids=text["input_ids"], attention_mask=text["attention_mask"], **prepared)
        expected = float((told.logits_per_image / model.logit_scale.detach().exp()).mean())
    metric = features.ClipAlignment(str(clip_model), rate=4)
    found = measure(clip, [metric])["clip_alignment"]
    assert found.value == pytest.approx(expected, abs=1e-5)
    assert len(found.curve) == len(pictures)
    assert "no prompt" in measure(replace(clip, prompt=""), [metric])["clip_alignment"].note


@pytest.mark.parametrize("name", ["subject_consistency", "background_consistency"])
def test_consistency_is_vbenchs_loop(clip_model: Path, dino: Path, clip: Clip, name: str) -> None:
    model = dino if name == "subject_consistency" else clip_model
    kind = features.SubjectConsistency if name == "subject_consistency" else features.BackgroundConsistency
    vectors = embeddings(model, clip, 8)
    expected = []
    for index in range(1, len(vectors)):
        before = max(0.0, float(F.cosine_similarity(vectors[index - 1], vectors[index], dim=0)))
        first = max(0.0, float(F.cosine_similarity(vectors[0], vectors[index], dim=0)))
        expected.append((before + first) / 2)
    found = measure(clip, [kind(str(model))])[name]
    assert found.value == pytest.approx(np.mean(expected), abs=1e-5)
    cosines = (vectors @ vectors.T).numpy()
    by_distance = [np.diag(cosines, lag).mean() for lag in range(1, len(vectors))]
    assert found.curve_of == "distance" and found.curve == pytest.approx(by_distance, abs=1e-4)


def test_metrics_of_one_model_share_the_embeddings(
    clip_model: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    reader = features.encoder(str(clip_model))
    monkeypatch.setattr(type(reader), "picture", lambda self, rgb: seen.append(1) or torch.ones(12) / 12**0.5)
    measure(clip, [features.ClipAlignment(str(clip_model), 8), features.BackgroundConsistency(str(clip_model), 8)])
    assert len(seen) == 10


@pytest.mark.parametrize("kind", ["linear", "chain"])
def test_the_aesthetic_head_is_what_torch_makes_of_it(clip_model: Path, clip: Clip, tmp_path: Path, kind: str) -> None:
    one = torch.nn.Linear(12, 1)
    chain = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)).eval()
    head: torch.nn.Module = one if kind == "linear" else chain
    path = tmp_path / "head.pth"
    torch.save(
        head.state_dict() if kind == "linear" else {f"layers.{k}": v for k, v in head.state_dict().items()}, path
    )
    with torch.inference_mode():
        expected = float(head(embeddings(clip_model, clip, 2)).mean()) / 10
    found = measure(clip, [features.Aesthetic(str(clip_model), str(path))])["aesthetic"]
    assert found.value == pytest.approx(expected, abs=1e-5)


def test_image_reward_is_the_mean_of_its_own_scores(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ImageRewardConfig(32, 16, (16, 1, 2), (16, 1, 2), len(WORDS), 40, (("0", 8), ("7", 1)))
    tokenizer().save_pretrained(tmp_path / "words")
    torch.manual_seed(3)
    model = ImageReward(tokenizer(), small).eval()
    path = tmp_path / "ImageReward.safetensors"
    names = {name.replace("head.", "mlp.layers."): value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in names.items()}, path)
    build = ImageReward.from_weights
    monkeypatch.setattr(ImageReward, "from_weights", lambda weights, words: build(weights, words, small))
    pictures = np.stack([*pictures_of(clip.path)][:: stride(clip.fps, 2)])
    v_BTCHW = torch.from_numpy(pictures).movedim(-1, 1)[None].float() / 127.5 - 1
    expected = float(model.score(v_BTCHW, PROMPT).mean())
    found = measure(clip, [scores.ImageRewardScore(str(path), str(tmp_path / "words"))])["image_reward"]
    assert found.value == pytest.approx(expected, abs=1e-4)


def test_hps_is_the_mean_of_its_own_scores(
    clip_model: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "HPS.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    model = HPSv2(transformers.CLIPModel.from_pretrained(clip_model).eval(), tokenizer_of(clip_model), letterbox)
    asked: list[Any] = []
    monkeypatch.setattr(HPSv2, "from_weights", lambda weights, words: asked.append((weights, words)) or model)
    pictures = np.stack([*pictures_of(clip.path)][:: stride(clip.fps, 2)])
    expected = float(model.score(torch.from_numpy(pictures).movedim(-1, 1)[None].float() / 127.5 - 1, PROMPT).mean())
    found = measure(clip, [scores.HpsScore(str(path), str(clip_model))])["hps"]
    assert found.value == pytest.approx(expected, abs=1e-5) and len({expected, 0.0}) == 2
    assert asked[0][0]["a"].tolist() == [0, 1, 2] and asked[0][1] == clip_model
    assert "no prompt" in measure(replace(clip, prompt=""), [scores.HpsScore(str(path), str(clip_model))])["hps"].note


def test_models_that_are_not_there_are_named(clip: Clip, clip_model: Path, dino: Path, tmp_path: Path) -> None:
    assert (
        "no picture encoder" in measure(clip, [features.SubjectConsistency(str(tmp_path))])["subject_consistency"].note
    )
    assert "no text encoder" in measure(clip, [features.ClipAlignment(str(dino))])["clip_alignment"].note
    wide = tmp_path / "wide.safetensors"
    save_file({"weight": torch.zeros(3, 12), "bias": torch.zeros(3)}, wide)
    for path, said in ((tmp_path / "none.pth", "no aesthetic head"), (wide, "do not lead")):
        with pytest.raises(ValueError, match=said):
            features.Aesthetic(str(clip_model), str(path))
    with pytest.raises(ValueError, match="cannot read weights"):
        scores.read_weights(tmp_path / "none.pt")
