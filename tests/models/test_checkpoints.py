"""Checkpoints in every form that people have, all of one model's weights: they load to the same tensors, and what is
wrong with a file is said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from arvid.models.checkpoints.describing import describe
from arvid.models.checkpoints.files import Held
from arvid.models.checkpoints.maps import to_diffusers
from arvid.models.checkpoints.reading import (
    Checkpoint,
    Part,
    config_of,
    load_wan,
    look,
    open_checkpoint,
    open_lora,
    settings_of,
    wan_from_state,
    with_family,
)
from arvid.models.checkpoints.writing import convert
from arvid.models.lora import Lora
from arvid.models.wan.presets import WAN_1_3B, WAN_14B
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.samplers.timetable import Timetable
from oracles.dense_wan import CFG, shapes, weights

State = dict[str, Tensor]
HEADS = CFG["num_heads"]


@pytest.fixture(scope="module")
def held() -> State:
    """The weights that every form holds."""
    return weights(seed=1)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def sharded_names(state: State) -> State:
    """Names as FSDP, compilation and activation checkpointing leave them."""
    found = {}
    for name, value in state.items():
        block, _, rest = name.partition(".self_attn.")
        name = f"{block}._checkpoint_wrapped_module.self_attn.{rest}" if rest else name
        found[f"model._fsdp_wrapped_module._orig_mod.{name}"] = value
    return found


def fused(state: State, keep: bool = False) -> State:
    """Krea's form: q, k and v of self-attention in one matrix."""
    found = dict(state)
    for layer in range(CFG["num_layers"]):
        for leaf in ("weight", "bias"):
            parts = [f"blocks.{layer}.self_attn.{part}.{leaf}" for part in "qkv"]
            found[f"blocks.{layer}.self_attn.to_qkv.{leaf}"] = torch.cat([state[part] for part in parts])
            for part in parts:
                found.pop(part) if not keep else None
    return prefixed(found, "model.")


# ---------------------------------------------------------------- forms: each writes files and names what to open


def original(folder: Path, state: State) -> Path:
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": HEADS, "text_len": 7}))
    torch.save({"token_embedding.weight": torch.zeros(4, 4)}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save({"decoder.middle.0.residual.0.gamma": torch.zeros(4)}, folder / "Wan2.1_VAE.pth")
    return folder


def trainer(folder: Path, state: State) -> Path:
    wrong = {name: value + 1 for name, value in state.items()}
    parts = {"generator": prefixed(wrong, "model."), "critic": prefixed(wrong, "model."), "step": 600}
    torch.save({**parts, "generator_ema": sharded_names(state)}, folder / "model.pt")
    return folder / "model.pt"


def causvid(folder: Path, state: State) -> Path:
    torch.save({"generator": prefixed(state, "model."), "critic": prefixed({"x": state["patch_embedding.bias"]}, "")},
               folder / "model.pt")  # fmt: skip
    return folder / "model.pt"


def krea(folder: Path, state: State) -> Path:
    save_file(fused(state), folder / "any.safetensors", {"license": "cc-by-nc-sa-4.0"})
    return folder / "any.safetensors"


def krea_after_use(folder: Path, state: State) -> Path:
    torch.save(fused(state, keep=True), folder / "any.bin")
    return folder / "any.bin"


def krea_split(folder: Path, state: State) -> Path:
    save_file(prefixed(state, "model."), folder / "any.safetensors")
    return folder / "any.safetensors"


def diffusers(folder: Path, state: State) -> Path:
    inner = folder / "transformer"
    inner.mkdir()
    save_file({to_diffusers(name): value for name, value in state.items()}, inner / "x.safetensors")
    (inner / "config.json").write_text(
        json.dumps({"num_attention_heads": HEADS, "attention_head_dim": 24, "eps": 1e-6})
    )
    (folder / "vae").mkdir()
    save_file({"decoder.mid_block.resnets.0.bias": torch.zeros(4)}, folder / "vae" / "x.safetensors")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    return folder


def shards(folder: Path, state: State) -> Path:
    names = sorted(state)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, folder / file)
    where = {name: file for file, part in files.items() for name in part}
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def low_rank(name: str, rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, columns, generator=generator) * 0.1, torch.randn(rows, 2, generator=generator) * 0.1


def adapter(state: State) -> tuple[dict[str, tuple[Tensor, Tensor]], State]:
    """(down, up) of every matrix of the blocks, and the weights without what they add."""
    pairs, base = {}, dict(state)
    for seed, (name, value) in enumerate(sorted(state.items())):
        if name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2:
            pairs[name.removesuffix(".weight")] = low_rank(name, *value.shape, seed)
            down, up = pairs[name.removesuffix(".weight")]
            base[name] = value - up @ down
    return pairs, base


def peft(pairs: dict[str, tuple[Tensor, Tensor]], name: str = "") -> State:
    middle = f".{name}" if name else ""
    found = {}
    for module, (down, up) in pairs.items():
        found[f"base_model.model.{module}.lora_A{middle}.weight"] = down
        found[f"base_model.model.{module}.lora_B{middle}.weight"] = up
    return found


def longlive(folder: Path, state: State) -> Path:
    pairs, base = adapter(state)
    torch.save({"generator": prefixed(base, "model.")}, folder / "one.pt")
    torch.save({"generator_lora": peft(pairs), "critic_lora": peft(dict(list(pairs.items())[:1]))}, folder / "two.pt")
    return folder


def with_a_style(folder: Path, state: State) -> Path:
    """A trainer's base, and an adapter that somebody else trained on it: peft's naming, in no trainer's dictionary."""
    pairs, base = adapter(state)
    torch.save({"generator": prefixed(base, "model.")}, folder / "one.pt")
    save_file(peft(pairs), folder / "style.safetensors")
    return folder


def wrapped_by_peft(folder: Path, state: State) -> Path:
    pairs, base = adapter(state)
    found = {}
    for name, value in base.items():
        module, _, leaf = name.rpartition(".")
        found[f"base_model.model.{module}.base_layer.{leaf}" if module in pairs else f"base_model.model.{name}"] = value
    save_file({**found, **peft(pairs, "default")}, folder / "all.safetensors")
    return folder


CAUSAL_FORCING = (
    "causal-forcing", "causal-forcing-framewise", "causal-forcing-framewise-2", "causal-forcing-framewise-1"
)  # fmt: skip
FORMS: dict[Callable[[Path, State], Path], tuple[str, ...]] = {
    original: ("wan-2.1",),
    trainer: ("self-forcing", *CAUSAL_FORCING),
    causvid: ("self-forcing", "causvid", "longlive", *CAUSAL_FORCING),
    krea: ("krea",),
    krea_after_use: ("krea",),
    krea_split: ("self-forcing", "krea", "causvid", "longlive", *CAUSAL_FORCING),
    diffusers: ("wan-2.1",),
    shards: ("wan-2.1",),
    longlive: ("longlive",),
    with_a_style: ("self-forcing", "causvid", "longlive", *CAUSAL_FORCING),
    wrapped_by_peft: ("wan-2.1",),
}


def same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_loads_to_the_same_tensors(form: Callable[[Path, State], Path], held: State, tmp_path: Path) -> None:
    found = open_checkpoint(str(form(tmp_path, held)), heads=HEADS)
    assert found.families == FORMS[form]
    wanted = settings_of({**CFG, "text_len": 7 if form is original else WAN_1_3B.text_len})
    assert found.config == wanted
    same(dict(load_wan(found, dtype=torch.float32).state_dict()), held)


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_14B])
def test_a_published_width_tells_its_heads(config: WanConfig) -> None:
    """Shapes of the real models, without their weights."""
    with torch.device("meta"):
        state = CausalWan(config).state_dict()
    part = Part(Held(state), "", "original", {name: (name,) for name in state}, (), frozenset())
    assert config_of(part, {}) == config


def test_a_state_dict_and_its_constructor_are_enough(held: State) -> None:
    model = wan_from_state(held, settings_of({**CFG, "model_type": "t2v", "eps": 1e-6}))
    assert model.config.patch_size == (1, 2, 2)
    assert not model.training
    same(dict(model.state_dict()), held)
    assert wan_from_state(held, settings_of(CFG), dtype=torch.bfloat16).head.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qk_norm": False}, r"not supported \['qk_norm=False'\]"),
        ({"local_attn_size": 6}, r"not supported \['local_attn_size=6'\]"),
        ({"width": 3}, r"unknown \['width'\]"),
        ({"patch_size": [2, 2, 2]}, "joins 2 frames"),
    ],
)
def test_a_constructor_that_is_not_ours(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_of({**CFG, **change})
    with pytest.raises(ValueError, match=r"missing \['dim'\]"):
        settings_of({name: value for name, value in CFG.items() if name != "dim"})


# ---------------------------------------------------------------- adapters


def kohya(pairs: dict[str, tuple[Tensor, Tensor]]) -> State:
    """Half the strength by alpha, twice the factor; one bias and one norm by a plain difference."""
    found = {}
    for module, (down, up) in pairs.items():
        flat = "lora_unet_" + module.replace(".", "_") if "ffn" in module else f"diffusion_model.{module}"
        found |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up * 2,
            f"{flat}.alpha": torch.tensor(1.0),
        }
    return found


def of_diffusers(pairs: dict[str, tuple[Tensor, Tensor]]) -> State:
    named = {f"transformer.{to_diffusers(module)}": pair for module, pair in pairs.items()}
    return {
        f"{name}.lora_{role}.weight": value
        for name, pair in named.items()
        for role, value in zip("AB", pair, strict=True)
    }


@pytest.mark.parametrize("naming", [peft, kohya, of_diffusers], ids=lambda naming: naming.__name__)
def test_adapters_of_every_naming(naming: Callable[..., State], held: State, tmp_path: Path) -> None:
    pairs, base = adapter(held)
    save_file(base, tmp_path / "base.safetensors")
    save_file(naming(pairs), tmp_path / "low.safetensors")
    names = str(tmp_path / "base.safetensors"), str(tmp_path / "low.safetensors")
    found = open_checkpoint(names[0], heads=HEADS, loras=[names[1]])
    same(dict(load_wan(found, dtype=torch.float32).state_dict()), held)
    assert isinstance(look(names[1]), Lora)
    assert open_lora(names[1]).ranks == [2]
    with pytest.raises(ValueError, match=r"is a LoRA of 20 tensors; give the transformer"):
        open_checkpoint(names[1])
    with pytest.raises(ValueError, match="is a whole transformer, not a LoRA"):
        open_checkpoint(names[0], heads=HEADS, loras=[names[0]])


def test_strength_alpha_and_plain_differences(held: State, tmp_path: Path) -> None:
    down, up = low_rank("q", 48, 48, 0)
    low = {"blocks.0.self_attn.q.lora_A.weight": down, "blocks.0.self_attn.q.lora_B.weight": up}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    save_file(low, tmp_path / "low.safetensors")
    found = open_lora(str(tmp_path / "low.safetensors"))
    expected = held["blocks.0.self_attn.q.weight"] + 0.5 * 3 * up @ down
    merged = found.scaled(0.5).merged("blocks.0.self_attn.q.weight", held["blocks.0.self_attn.q.weight"])
    torch.testing.assert_close(merged, expected)
    assert found.merged("patch_embedding.bias", held["patch_embedding.bias"]) is held["patch_embedding.bias"]
    plain = {"blocks.0.norm3.diff": torch.ones(48), "blocks.0.self_attn.q.diff_b": torch.ones(48)}
    save_file({**plain, "blocks.0.self_attn.q.lora_down.weight": down, "blocks.0.self_attn.q.lora_up.weight": up},
              tmp_path / "low.safetensors")  # fmt: skip
    found = open_lora(str(tmp_path / "low.safetensors"))
    assert set(found.deltas) == {
        f"blocks.0.{name}" for name in ("norm3.weight", "self_attn.q.bias", "self_attn.q.weight")
    }
    torch.testing.assert_close(found.merged("blocks.0.norm3.weight", torch.zeros(48)), torch.ones(48))
    for odd in ({"use_dora": True}, {"alpha_pattern": {"q": 3}}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(odd))
        with pytest.raises(ValueError, match="merge this adapter with peft"):
            open_lora(str(tmp_path / "low.safetensors"))


def test_an_adapter_of_fused_projections(held: State, tmp_path: Path) -> None:
    down, up = low_rank("qkv", 144, 48, 0)
    save_file({"blocks.1.self_attn.to_qkv.lora_A.weight": down, "blocks.1.self_attn.to_qkv.lora_B.weight": up},
              tmp_path / "low.safetensors")  # fmt: skip
    found = open_lora(str(tmp_path / "low.safetensors"))
    whole = torch.cat([found.deltas[f"blocks.1.self_attn.{part}.weight"].value() for part in "qkv"])
    torch.testing.assert_close(whole, up @ down)
    assert found.parameters == down.numel() + up.numel()


@pytest.mark.parametrize(
    ("low", "said"),
    [
        ({"blocks.0.self_attn.q": (2, 40, 48)}, r"1 have another shape \['blocks.0.self_attn.q.weight \[48, 40\]"),
        ({"blocks.7.self_attn.q": (2, 48, 48)}, r"1 tensors are not there \['blocks.7.self_attn.q.weight'\]"),
        ({"layers.0.mlp": (2, 48, 48)}, "expected one adapter of a Wan transformer"),
    ],
)
def test_an_adapter_that_does_not_fit(
    low: dict[str, tuple[int, int, int]], said: str, held: State, tmp_path: Path
) -> None:
    state = {}
    for module, (rank, columns, rows) in low.items():
        state |= {
            f"{module}.lora_A.weight": torch.ones(rank, columns),
            f"{module}.lora_B.weight": torch.ones(rows, rank),
        }
    save_file(state, tmp_path / "low.safetensors")
    save_file(held, tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match=said):
        open_checkpoint(str(tmp_path / "base.safetensors"), heads=HEADS, loras=[str(tmp_path / "low.safetensors")])


# ---------------------------------------------------------------- families, facts, conversion


def test_a_file_that_may_be_of_several_families_has_to_be_named(held: State, tmp_path: Path) -> None:
    found = open_checkpoint(str(causvid(tmp_path, held)), heads=HEADS)
    with pytest.raises(ValueError, match="may be of self-forcing or causvid or longlive"):
        _ = found.family
    assert with_family(found, "causvid").family == "causvid"
    assert open_checkpoint(str(tmp_path / "model.pt"), "causvid", HEADS).family == "causvid"
    with pytest.raises(ValueError, match=r"unknown family 'sora'; known: self-forcing, causvid"):
        open_checkpoint(str(tmp_path / "model.pt"), "sora", HEADS)


def test_averaged_weights_do_not_tell_self_forcing_from_causal_forcing(held: State, tmp_path: Path) -> None:
    """Frame-wise models of the latter would make noise of blocks of three, without a word."""
    found = open_checkpoint(str(trainer(tmp_path, held)), heads=HEADS)
    with pytest.raises(ValueError, match="may be of self-forcing or causal-forcing or causal-forcing-framewise or"):
        _ = found.family
    facts = {family["name"]: family for family in describe(found)["families"]}  # type: ignore[attr-defined]
    told = {name: (family["block"], family["timesteps"]) for name, family in facts.items()}
    four = [1000, 937.5, 833.3333, 625]
    assert told == {
        "self-forcing": (3, four), "causal-forcing": (3, four), "causal-forcing-framewise": (1, four),
        "causal-forcing-framewise-2": (1, [1000, 833.3333]), "causal-forcing-framewise-1": (1, [1000]),
    }  # fmt: skip
    for steps, name in ((2, "causal-forcing-framewise-2"), (1, "causal-forcing-framewise-1")):
        assert told[name][1] == pytest.approx(Timetable(5).warped([1000, 500][:steps]), abs=1e-4)
        assert facts[name]["router"] == "target:first_steps=4"


def test_facts(held: State, tmp_path: Path) -> None:
    facts = describe(open_checkpoint(str(krea(tmp_path, held)), heads=HEADS))
    assert facts["parameters"] == sum(value.numel() for value in held.values())
    assert facts["dtypes"] == {"float32": len(held)}
    assert facts["bytes"] == 4 * sum(value.numel() for value in held.values())
    assert facts["licence"] == "cc-by-nc-sa-4.0"
    assert [family["timesteps"] for family in facts["families"]] == [[1000, 937.5, 833.3333, 625, 0]]  # type: ignore[attr-defined]
    assert describe(open_checkpoint(str(trainer(tmp_path, held)), heads=HEADS))["part"] == "generator_ema"


def test_a_page_says_the_licence_of_its_folder(held: State, tmp_path: Path) -> None:
    save_file(held, tmp_path / "x.safetensors")
    (tmp_path / "README.md").write_text("---\ntags: [video]\nlicense: apache-2.0\n---\nlicense: other\n")
    assert open_checkpoint(str(tmp_path), heads=HEADS).licence == "apache-2.0"


@pytest.mark.parametrize("limit", [2**30, 20_000])
def test_what_is_converted_is_bit_by_bit_the_same(limit: int, held: State, tmp_path: Path) -> None:
    mixed = {name: value.bfloat16() if "ffn" in name else value for name, value in held.items()}
    first = open_checkpoint(str(krea(tmp_path, mixed)), heads=HEADS)
    files = convert(first, tmp_path / "new", limit)
    again = open_checkpoint(str(tmp_path / "new"))
    assert (again.config, again.families, again.licence) == (first.config, first.families, first.licence)
    found = {name: value.clone() for name, value in again.tensors()}
    assert found.keys() == mixed.keys()
    assert all(found[name].dtype == mixed[name].dtype and torch.equal(found[name], mixed[name]) for name in mixed)
    assert ("model.safetensors" in {file.name for file in files}) == (limit > 20_000)
    assert sum(file.suffix == ".safetensors" for file in files) == len(files) - (1 if limit > 20_000 else 2)
    with pytest.raises(ValueError, match="is not empty"):
        convert(first, tmp_path / "new")
    with pytest.raises(ValueError, match="does not exist"):
        convert(first, tmp_path / "no" / "new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["any.safetensors", "new"]


def test_a_merged_adapter_stays_merged(held: State, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    convert(open_checkpoint(str(longlive(tmp_path / "in", held)), heads=HEADS), tmp_path / "new")
    same(load_file(tmp_path / "new" / "model.safetensors"), held)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["merged"] == ["two.pt"]


def test_diffusers_reads_what_we_map_back(held: State) -> None:
    theirs = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12, freq_dim=16,
        ffn_dim=80, num_layers=2,
    )  # fmt: skip
    wanted = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {to_diffusers(name): value.shape for name, value in held.items()} == wanted


# ---------------------------------------------------------------- what is wrong is said in one line


class Bomb:
    """An object whose pickle runs a command when it is read by an unwary reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(held: State, tmp_path: Path) -> None:
    torch.save({"generator": held, "note": Bomb(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"holds code or objects \(posix.mkdir\) beside weights and is not read"
    ) as said:
        open_checkpoint(str(tmp_path / "x.pt"))
    assert "\n" not in str(said.value)
    torch.save({"generator": held}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="is a bare pickle, which can carry code"):
        open_checkpoint(str(tmp_path / "old.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", [krea_split, causvid], ids=lambda form: form.__name__)
@pytest.mark.parametrize("kept", [0.3, 0.98])
def test_a_truncated_file(form: Callable[[Path, State], Path], kept: float, held: State, tmp_path: Path) -> None:
    path = form(tmp_path, held)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"is damaged or not complete \(.+\); fetch it again"):
        open_checkpoint(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid 3\n", "is a Git LFS pointer"),
        (b"GGUF\x03\x00", "is a GGUF file"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"hello, this is a text and no weights at all", "neither safetensors nor a torch file"),
    ],
)
def test_what_is_no_weights_at_all(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        open_checkpoint(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.layers.0.mlp.up_proj.weight", "lm_head.weight"], "is no Wan transformer: 2 tensors"),
        (["token_embedding.weight", "blocks.0.attn.q.weight"], "it is a text encoder"),
        (["encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"], "it is an autoencoder"),
    ],
)
def test_another_kind_of_model(names: list[str], said: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=said):
        open_checkpoint(str(tmp_path / "x.safetensors"))


def test_missing_surplus_and_misshapen_tensors_are_listed(held: State, tmp_path: Path) -> None:
    state = {name: value for name, value in held.items() if not name.startswith("blocks.1.self_attn")}
    state |= {f"blocks.0.k_img_{number}": torch.zeros(1) for number in range(12)}
    state["blocks.0.ffn.2.bias"] = torch.zeros(3)
    save_file(prefixed(state, "model."), tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as said:
        open_checkpoint(str(tmp_path / "x.safetensors"), heads=HEADS)
    text = str(said.value)
    assert "10 tensors missing ['blocks.1.self_attn.k.bias', 'blocks.1.self_attn.k.weight'" in text
    assert "12 surplus ['model.blocks.0.k_img_0', 'model.blocks.0.k_img_1', 'model.blocks.0.k_img_10'" in text
    assert text.count("k_img_") == 10
    assert "1 of another shape ['blocks.0.ffn.2.bias [3] for [48]']; it is an image-to-video model" in text
    assert "looks like self-forcing or krea" in text
    assert "\n" not in text


def test_an_incomplete_model_is_to_be_fetched_again(held: State, tmp_path: Path) -> None:
    save_file({name: value for name, value in held.items() if name != "head.modulation"}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors missing \['head.modulation'\], 0 surplus .*; fetch it again"):
        open_checkpoint(str(tmp_path / "x.safetensors"), heads=HEADS)
    save_file({n: v for n, v in held.items() if n != "patch_embedding.weight"}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"tell its sizes are missing or no matrices: \['patch_embedding.weight'\]"):
        open_checkpoint(str(tmp_path / "x.safetensors"), heads=HEADS)


def test_a_width_that_does_not_tell_its_heads(held: State, tmp_path: Path) -> None:
    save_file(held, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"is 48 wide, which is no published size \(1536, 3072, 5120\).*--heads"):
        open_checkpoint(str(tmp_path))


def test_the_same_tensor_twice(held: State, tmp_path: Path) -> None:
    torch.save({**held, **prefixed(held, "model.")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="are there twice under different prefixes"):
        open_checkpoint(str(tmp_path), heads=HEADS)


def test_directories_that_do_not_name_one_model(held: State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        open_checkpoint(str(tmp_path))
    shards(tmp_path, held)
    (tmp_path / "b.safetensors").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"names 2 files, 1 are missing: \['b.safetensors'\]; fetch them"):
        open_checkpoint(str(tmp_path), heads=HEADS)
    (tmp_path / "kept").rename(tmp_path / "b.safetensors")
    save_file(held, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 models: .*index.json, .*c.safetensors; name one of them"):
        open_checkpoint(str(tmp_path), heads=HEADS)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    for name in (str(tmp_path / "x.pt"), "nowhere.pt", "some-folder/model.safetensors", "../x"):
        with pytest.raises(ValueError, match="no file or directory"):
            open_checkpoint(name)


def test_the_hub_when_it_is_off(held: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="repository owner/model is not at hand") as said:
        open_checkpoint("owner/model")
    assert "\n" not in str(said.value)
    folder = tmp_path / "models--owner--model"
    snapshot = folder / "snapshots" / "abc"
    (snapshot / "checkpoints").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    torch.save({"generator_ema": prefixed(held, "model.")}, snapshot / "checkpoints" / "x.pt")
    for name in ("owner/model", "owner/model/checkpoints/x.pt", "owner/model/checkpoints"):
        assert open_checkpoint(name, heads=HEADS).part.key == "generator_ema/"
    with pytest.raises(ValueError, match=r"has no y.pt"):
        open_checkpoint("owner/model/y.pt")


# ---------------------------------------------------------------- memory

MEASURE = """
import os, resource, sys, torch
from arvid.models.checkpoints.reading import load_wan, open_checkpoint
unit = 1 if sys.platform == "darwin" else 1024
for file, dtype in zip(sys.argv[2::2], sys.argv[3::2]):
    if os.fork() == 0:  # a fork begins with a peak of its own; the small one brings in the code's pages
        load_wan(open_checkpoint(sys.argv[1], heads=2), dtype=torch.float32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model = load_wan(open_checkpoint(file, heads=8), dtype=getattr(torch, dtype))
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_little_more_than_the_file(project: Path, held: State, tmp_path: Path) -> None:
    """In processes of their own. The pages of a mapped file count."""
    pytest.importorskip("resource")
    big = {**CFG, "dim": 512, "ffn_dim": 2048, "num_heads": 8, "num_layers": 6}
    state = {name: torch.full(shape, 0.5) for name, shape in shapes(big).items()}
    torch.save({"generator": prefixed(state, "model.")}, tmp_path / "big.pt")
    save_file(state, tmp_path / "big.safetensors")
    save_file(held, tmp_path / "small.safetensors")
    size = (tmp_path / "big.safetensors").stat().st_size
    wanted = [("big.pt", "float32", 1.2), ("big.safetensors", "float32", 1.2), ("big.safetensors", "bfloat16", 0.7)]
    words = [word for file, dtype, _ in wanted for word in (str(tmp_path / file), dtype)]
    environment = {**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small.safetensors"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    taken = [int(line) / size for line in done.stdout.split()]
    for (file, dtype, share), found in zip(wanted, taken, strict=True):
        assert 0.4 < found < share, f"{file} as {dtype}: {found:.2f} of the file; all: {taken}"


def test_tensors_come_one_by_one(held: State, tmp_path: Path) -> None:
    found = open_checkpoint(str(krea(tmp_path, held)), heads=HEADS)
    assert isinstance(found, Checkpoint)
    names = [name for name, _ in found.tensors()]
    assert sorted(names) == sorted(held)
    assert found.entries["blocks.0.self_attn.v.weight"].shape == (48, 48)
