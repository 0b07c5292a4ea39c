"""Where text encoders and autoencoders are found, and how one is told from everything else that lies there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

import arvid.models.beside as beside
from arvid.models.beside import around, look_in, text_called, vae_called
from arvid.models.planning import bytes_of, need
from arvid.models.text import word_tokenizer
from arvid.models.umt5 import WanTextEncoder
from arvid.models.wan.vae import WanAutoencoder

WORDS = ["a", "red", "ball"]


def tokenizer(folder: Path) -> None:
    word_tokenizer(WORDS, 7).save_pretrained(str(folder))


def encoder(folder: Path, width: int = 8) -> None:
    config = UMT5Config(vocab_size=20, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
                        feed_forward_proj="gated-gelu")  # fmt: skip
    UMT5EncoderModel(config).save_pretrained(folder)


def original(path: Path) -> None:
    config = UMT5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
                        feed_forward_proj="gated-gelu")  # fmt: skip
    held = WanTextEncoder(word_tokenizer(WORDS, 7), UMT5EncoderModel(config), 7).to_original()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.clone() for name, value in held.items()}, path)


def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, num_res_blocks=1)


def test_the_folders_around_a_model(tmp_path: Path) -> None:
    for name in ("checkpoints/vae", "wan_models/one", "wan_models/two", "other"):
        (tmp_path / name).mkdir(parents=True)
    path = tmp_path / "checkpoints" / "x.pt"
    path.touch()
    found = ["checkpoints", "checkpoints/vae", "wan_models", "wan_models/one", "wan_models/two"]
    assert [folder.relative_to(tmp_path).as_posix() for folder in around(path)] == found
    assert around(path.parent) == around(path)
    assert [folder.name for folder in around(tmp_path)] == [
        tmp_path.name,
        "checkpoints",
        "other",
        "wan_models",
        "one",
        "two",
    ]


@pytest.mark.parametrize("where", [".", "google/umt5-xxl", "tokenizer", "../tokenizer", "../google/umt5-xxl"])
def test_the_tokenizer_lies_where_others_put_it(tmp_path: Path, where: str) -> None:
    original(tmp_path / "parts" / "any-name.bin")
    with pytest.raises(ValueError, match=r"no tokenizer for .*any-name\.bin"):
        text_called(str(tmp_path / "parts" / "any-name.bin"))
    assert look_in([tmp_path / "parts"]) == (None, None)
    tokenizer(tmp_path / "parts" / where)
    found = look_in([tmp_path / "parts"])[0]
    assert found is not None and found.path.name == "any-name.bin"
    assert found.load(5, torch.device("cpu")).encode(["a red ball"]).shape == (1, 5, 8)
    assert text_called(str(tmp_path / "parts")).config.d_model == 8, "a folder may be named in place of its file"


@pytest.mark.parametrize("where", ["text_encoder", "t5.pth"])
def test_an_encoder_is_as_large_as_it_is_planned_whatever_its_file_holds(tmp_path: Path, where: str) -> None:
    """Diffusers' folders of Wan hold fp32: 21.2 GiB, of which a plan knows 10.6."""
    encoder(tmp_path / "text_encoder")
    original(tmp_path / "t5.pth")
    tokenizer(tmp_path / "tokenizer")
    found = text_called(str(tmp_path / where))
    plan = need("text", lambda: UMT5EncoderModel(found.config), lambda module, ledger: (0, 0), torch.bfloat16)
    with torch.inference_mode():
        loaded = found.load(7, torch.device("cpu"))
        said, plain = loaded.encode(["a red ball"]), WanTextEncoder.load(found.path, 7, found.tokenizer)
        assert {weight.dtype for weight in plain.model.parameters()} == {torch.float32}
        assert bytes_of(loaded.model.parameters()) == plan.weights
        expected = plain.encode(["a red ball"])
    assert said.dtype == torch.float32
    assert 0 < (said - expected).norm() < 0.02 * expected.norm()


def test_the_first_encoder_and_wans_own_autoencoder(tmp_path: Path) -> None:
    """Damaged files and other models in between do not matter."""
    (tmp_path / "a.safetensors").write_bytes(b"junk")
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "b.safetensors")
    (tmp_path / "config.json").write_text("[]")
    encoder(tmp_path / "text_encoder", 12)
    tokenizer(tmp_path / "tokenizer")
    torch.save(WanAutoencoder(vae()).to_original(), tmp_path / "c.pth")
    vae().save_pretrained(tmp_path / "vae")
    text, found = look_in(around(tmp_path))
    assert text is not None and (text.path.name, text.config.d_model) == ("text_encoder", 12)
    assert found is not None and (found.path.name, found.channels, found.tiny) == ("c.pth", 16, False)
    assert look_in([tmp_path / "vae"])[1] is not None
    inner = vae_called(str(tmp_path / "vae" / "diffusion_pytorch_model.safetensors"))
    assert inner.path == tmp_path / "vae", "a file of diffusers is read with the configuration beside it"
    z = torch.randn(1, 2, 16, 2, 2)
    one, other = (part.load(torch.device("cpu"), torch.float32) for part in (inner, vae_called(str(tmp_path / "vae"))))
    assert torch.equal(one.decode(z)[0], other.decode(z)[0])
    shapes = {name: value.shape for name, value in found.build().state_dict().items()}
    assert shapes == {
        name: value.shape for name, value in found.load(torch.device("cpu"), torch.float32).state_dict().items()
    }


def test_what_is_neither_is_said_so(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"is no UMT5 encoder \(1 tensors: lm_head.weight\); give models_t5"):
        text_called(str(tmp_path / "b.safetensors"))
    with pytest.raises(
        ValueError, match=r"is no autoencoder of Wan 2.1 \(1 tensors: lm_head.weight\); give Wan2.1_VAE"
    ):
        vae_called(str(tmp_path / "b.safetensors"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match=r"is no autoencoder of Wan 2\.1; give"):
        vae_called(str(tmp_path / "empty"))


def test_an_encoder_on_the_hub_brings_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub fetches what is named and nothing else, so the tokenizer is asked for by name."""
    asked: list[str] = []

    def locate(name: str) -> Path:
        asked.append(name)
        if name.endswith("umt5-xxl"):
            raise ValueError("not there")
        if name.endswith("tokenizer"):
            tokenizer(tmp_path / "tokenizer")
        return tmp_path / name.split("/")[-1]

    encoder(tmp_path / "text_encoder")
    monkeypatch.setattr(beside, "locate", locate)
    found = text_called("owner/model/text_encoder")
    assert (found.tokenizer / "tokenizer.json").is_file()
    assert asked == ["owner/model/text_encoder", "owner/model/google/umt5-xxl", "owner/model/tokenizer"]
