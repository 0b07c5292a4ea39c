"""`arvid generate` on checkpoints as people have them: tiny random weights in published layouts, with a tiny text
encoder and a tiny autoencoder beside them. What comes out is what the rollout of the original would be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, UMT5Config, UMT5EncoderModel

import arvid.families as arvid_families
import arvid.models.preparing as arvid_preparing
from arvid.cli import doctor
from arvid.families import Source, find, open_family, reward_called
from arvid.models.beside import vae_called
from arvid.models.checkpoints.families import FAMILIES
from arvid.models.checkpoints.maps import to_diffusers
from arvid.models.checkpoints.reading import load_wan, open_checkpoint
from arvid.models.checkpoints.writing import convert
from arvid.models.planning import GIB, Device
from arvid.models.taehv import TAEHV, TAEHVConfig
from arvid.models.text import word_tokenizer
from arvid.models.umt5 import EncodeOnce, WanTextEncoder
from arvid.models.wan.vae import WanAutoencoder
from arvid.pipeline import Pipeline, Request
from arvid.rollout.replay import Recording, replay
from arvid.samplers.noise import SeededNoise
from arvid.video import read_video
from oracles import dense_wan

Type = Callable[..., Any]
State = dict[str, Tensor]
CFG: dict[str, Any] = {**dense_wan.CFG, "in_dim": 16, "out_dim": 16}
SMALL = {**CFG, "dim": 24, "ffn_dim": 40, "num_layers": 1}
PROMPT, SIDE = "a red ball rolls", 32
RUN = ("--seconds", 2, "--size", f"{SIDE}x{SIDE}", "--scale", 1, "--seed", 5, "--latents", "z.safetensors",
       "--json", "r.json")  # fmt: skip


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


# ---------------------------------------------------------------- parts on disk


def text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(3)
    config = UMT5Config(
        vocab_size=len(word_tokenizer(PROMPT.split(), 7)), d_model=CFG["text_dim"], d_kv=6, d_ff=16, num_layers=2,
        num_heads=2, dropout_rate=0.0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = UMT5EncoderModel(config).eval().requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    return model


def autoencoder() -> AutoencoderKLWan:
    torch.manual_seed(4)
    return AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval()


def original_parts(folder: Path) -> Path:
    """As Wan-AI publishes them."""
    words = folder / "google" / "umt5-xxl"
    word_tokenizer(PROMPT.split(), 7).save_pretrained(str(words))
    one = WanTextEncoder(word_tokenizer(PROMPT.split(), 7), text_encoder(), 7)
    torch.save({name: value.clone() for name, value in one.to_original().items()}, folder / "t5.pth")
    torch.save(WanAutoencoder(autoencoder()).to_original(), folder / "vae.pth")
    return folder


def diffusers_parts(folder: Path) -> Path:
    """As a pipeline of diffusers has them."""
    text_encoder().save_pretrained(folder / "text_encoder")
    word_tokenizer(PROMPT.split(), 7).save_pretrained(str(folder / "tokenizer"))
    autoencoder().save_pretrained(folder / "vae")
    return folder


def sized(folder: Path, cfg: dict[str, Any]) -> None:
    """What names and shapes do not tell."""
    (folder / "config.json").write_text(json.dumps({"num_heads": cfg["num_heads"], "text_len": cfg["text_len"]}))


# ---------------------------------------------------------------- layouts: each writes files and names what to open


def self_forcing(root: Path, state: State) -> Path:
    """The layout of its repository: checkpoints beside wan_models."""
    original_parts(root / "wan_models" / "Wan2.1")
    (root / "checkpoints").mkdir()
    parts = {"generator_ema": prefixed(state, "model._fsdp_wrapped_module."), "critic": prefixed(state, "model.")}
    torch.save(parts, root / "checkpoints" / "dmd.pt")
    sized(root / "checkpoints", CFG)
    return root / "checkpoints" / "dmd.pt"


def causvid(root: Path, state: State) -> Path:
    original_parts(root)
    torch.save({"generator": prefixed(state, "model.")}, root / "model.pt")
    sized(root, CFG)
    return root


def krea(root: Path, state: State) -> Path:
    """Fused and flat, in a pipeline of diffusers."""
    held = dict(state)
    for layer in range(CFG["num_layers"]):
        for leaf in ("weight", "bias"):
            rows = [held.pop(f"blocks.{layer}.self_attn.{part}.{leaf}") for part in "qkv"]
            held[f"blocks.{layer}.self_attn.to_qkv.{leaf}"] = torch.cat(rows)
    diffusers_parts(root)
    save_file(prefixed(held, "model."), root / "realtime.safetensors")
    sized(root, CFG)
    return root / "realtime.safetensors"


def longlive(root: Path, state: State) -> Path:
    original_parts(root)
    base, module = dict(state), "blocks.0.ffn.0"
    down, up = torch.randn(2, CFG["dim"]) * 0.1, torch.randn(CFG["ffn_dim"], 2) * 0.1
    base[f"{module}.weight"] = state[f"{module}.weight"] - up @ down
    low = {f"base_model.model.{module}.lora_A.weight": down, f"base_model.model.{module}.lora_B.weight": up}
    torch.save({"generator": prefixed(base, "model.")}, root / "base.pt")
    torch.save({"generator_lora": low}, root / "low.pt")
    sized(root, CFG)
    return root


def diffusers(root: Path, state: State) -> Path:
    """Nothing tells a family: a person says which it is."""
    diffusers_parts(root)
    (root / "transformer").mkdir()
    save_file({to_diffusers(name): value for name, value in state.items()}, root / "transformer" / "x.safetensors")
    sized(root / "transformer", CFG)
    return root


def original(root: Path, state: State) -> Path:
    """As Wan-AI publishes a base model, in two shards."""
    original_parts(root)
    names = sorted(state)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, root / file)
    where = {name: file for file, part in files.items() for name in part}
    (root / "x.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    sized(root, CFG)
    return root


LAYOUTS = {
    self_forcing: "self-forcing", causvid: "causvid", krea: "krea", longlive: "longlive", diffusers: "self-forcing",
    original: "self-forcing",
}  # fmt: skip
UNTOLD = (self_forcing, causvid, diffusers, original)
"""Layouts that do not tell their family."""
WINDOWS = {"krea": 6}
"""Frames in sight with the block's own; the others see all of a short video."""


@pytest.fixture(scope="module")
def state() -> State:
    return dense_wan.weights(CFG, seed=6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, state: State) -> tuple[Path, Path]:
    """A target with its parts, and a drafter in our own form."""
    root = tmp_path_factory.mktemp("pair")
    save_file(dense_wan.weights(SMALL, seed=7), root / "small.safetensors")
    sized(root, SMALL)
    convert(open_checkpoint(str(root / "small.safetensors"), "self-forcing"), root / "drafter")
    (root / "target").mkdir()
    return krea(root / "target", state), root / "drafter"


def recording(text_BLD: Tensor, name: str, seed: int) -> Recording:
    """The noise that a seed draws, in the order in which the original would have drawn it."""
    noise, sides = SeededNoise(seed), (16, SIDE // 8, SIDE // 8)
    facts = FAMILIES[name]
    steps = len(facts.timesteps)
    initial = torch.cat([noise.draw(block, 0, (1, 3, *sides)) for block in range(3)], 1)
    again = torch.stack([torch.stack([noise.draw(b, s, (1, 3, *sides)) for s in range(1, steps)]) for b in range(3)])
    return Recording(initial, again, text_BLD, facts.timesteps, facts.shift)


# ---------------------------------------------------------------- the same latents


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_engine_makes_what_the_original_rollout_makes(
    layout: Callable[[Path, State], Path], state: State, tmp_path: Path
) -> None:
    name = LAYOUTS[layout]
    said = name if layout in UNTOLD else ""
    parts = find(Source(str(layout(tmp_path, state)), family=said, size=(SIDE, SIDE)))
    assert (parts.card.name, parts.card.past) == (name, FAMILIES[name].past)
    family = open_family(parts, dtype=torch.float32)
    found = Pipeline(family).generate(Request(PROMPT, 2, 5))
    assert [block.frames_BTCHW.shape[1:] for block in found.blocks] == [(n, 3, SIDE, SIDE) for n in (9, 12, 12)]
    given = recording(family.text.encode([PROMPT]), name, 5)
    model = load_wan(parts.target, dtype=torch.float32)
    expected = replay(model, given, WINDOWS.get(name))
    torch.testing.assert_close(found.latents_BTCHW, expected, rtol=1e-5, atol=1e-5)
    if layout is causvid:
        dense = dense_wan.roll(
            state, CFG, given.noise_BTCHW, given.renoise_NSBFCHW, given.text_BLD[0], list(given.timesteps), 8.0
        )
        torch.testing.assert_close(found.latents_BTCHW.double(), dense, rtol=1e-5, atol=1e-5)
    whole = autoencoder().decode(found.latents_BTCHW.transpose(1, 2) * STD + MEAN).sample.transpose(1, 2)
    frames = torch.cat([block.frames_BTCHW for block in found.blocks], 1)
    torch.testing.assert_close(frames, whole, rtol=1e-4, atol=1e-4)


STD, MEAN = (torch.tensor(autoencoder().config[f"latents_{what}"]).view(1, 16, 1, 1, 1) for what in ("std", "mean"))


def test_the_command_makes_it_too(arvid: Type, pair: tuple[Path, Path]) -> None:
    """Target alone, in bf16 as the command runs it."""
    result = arvid("generate", PROMPT, "--model", pair[0], "-o", "x.mp4", *RUN)
    assert result.exit_code == 0, result.output
    assert read_video(Path("x.mp4")).shape == (33, SIDE, SIDE, 3)
    parts = find(Source(str(pair[0]), size=(SIDE, SIDE)))
    assert parts.text is not None
    text = parts.text.load(CFG["text_len"], torch.device("cpu")).encode([PROMPT])
    expected = replay(load_wan(parts.target), recording(text, "krea", 5), WINDOWS["krea"])
    found = load_file("z.safetensors")["latents"]
    assert (found - expected).norm() < 0.02 * expected.norm()
    other = replay(load_wan(parts.target), recording(text, "krea", 6), WINDOWS["krea"])
    assert (found - other).norm() > 0.3 * expected.norm()
    config = json.loads(Path("r.json").read_text())["config"]
    assert (config["model"], config["router"], config["world"]) == ("krea", "target", None)


@pytest.mark.parametrize(
    ("router", "sources"), [("refine:levels=0.8", {"target": 1, "refined": 2}), ("", {"target": 1, "draft": 2})]
)
def test_a_drafter_shares_the_work(arvid: Type, pair: tuple[Path, Path], router: str, sources: dict[str, int]) -> None:
    words = ["--router", router] if router else []
    result = arvid("generate", PROMPT, "--model", pair[0], "--drafter", pair[1], "-o", "x.mp4", *RUN, *words)
    assert result.exit_code == 0, result.output
    report = json.loads(Path("r.json").read_text())
    assert report["totals"]["blocks_by_source"] == sources
    assert report["totals"]["passes"]["drafter"] == 10, "five timesteps of two blocks"
    assert read_video(Path("x.mp4")).shape == (33, SIDE, SIDE, 3)


# ---------------------------------------------------------------- ways to run


def latents_of(arvid: Type, pair: tuple[Path, Path], *words: object) -> Tensor:
    result = arvid("generate", PROMPT, "--model", pair[0], "--drafter", pair[1], "-o", "x.mp4", *RUN, *words)
    assert result.exit_code == 0, result.output
    return load_file("z.safetensors")["latents"]


def test_placed_offloaded_and_compiled_it_is_the_same_video(
    arvid: Type, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU every role stands on it, layers visit it from itself, and the compiler is a stand-in that notes what it
    is given."""
    expected = latents_of(arvid, pair)
    placed = latents_of(arvid, pair, "--place", "target=cpu,drafter=cpu,vae=cpu:0,reward=cpu,text=cpu")
    assert torch.equal(placed, expected)
    assert torch.equal(latents_of(arvid, pair, "--offload", "target,drafter"), expected)
    compiled: list[str] = []

    def noting(part: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append(part.__name__)
        return part

    monkeypatch.setattr(torch, "compile", noting)
    assert torch.equal(latents_of(arvid, pair, "--compile"), expected)
    assert compiled == ["enter", "leave"] * (CFG["num_layers"] + SMALL["num_layers"])


def test_rounding_goes_block_by_block(arvid: Type, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torchao that doubles what it is given, so that it shows."""
    rounded: list[tuple[str, str]] = []

    def double(model: nn.Module, kind: str, within: str) -> int:
        rounded.append((kind, within))
        for name, part in model.named_modules():
            if isinstance(part, nn.Linear) and name.startswith(within):
                part.weight.mul_(2)
        return 1

    expected = latents_of(arvid, pair)
    monkeypatch.setattr(arvid_preparing, "quantise", double)
    assert not torch.equal(latents_of(arvid, pair, "--quantise", "int8"), expected)
    assert rounded == [("int8", "blocks.0."), ("int8", "blocks.0."), ("int8", "blocks.1.")]


@pytest.mark.filterwarnings("ignore")
def test_eight_bits_are_close(arvid: Type, pair: tuple[Path, Path]) -> None:
    pytest.importorskip("torchao")
    expected = latents_of(arvid, pair)
    found = latents_of(arvid, pair, "--quantise", "int8")
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()
    assert torch.equal(latents_of(arvid, pair, "--quantise", "int8", "--offload", "target,drafter"), found)


def test_a_killed_run_goes_on(arvid: Type, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the family was made of is kept with the run, by paths that mean the same from anywhere."""
    expected = latents_of(arvid, pair, "--lora", low_of(pair))
    monkeypatch.chdir(pair[0].parent)
    here = Path.cwd()
    words = ("--drafter", pair[1], *RUN[:8], "--latents", "z.safetensors", "-o", "x.mp4", "--save-every", 1)
    files = ("--lora", "low.safetensors", "--text", "text_encoder", "--vae", "vae")
    from arvid.rollout.session import Session

    whole, made = Session.__next__, []

    def two(session: Session) -> Any:
        if len(made) == 2:
            raise RuntimeError("power cut")
        made.append(whole(session))
        return made[-1]

    monkeypatch.setattr(Session, "__next__", two)
    with pytest.raises(RuntimeError, match="power cut"):
        arvid("generate", PROMPT, "--model", pair[0].name, *files, *words, catch_exceptions=False)
    monkeypatch.setattr(Session, "__next__", whole)
    monkeypatch.chdir("/")
    result = arvid("generate", "--resume", here / "x.run")
    assert result.exit_code == 0, result.output
    assert torch.equal(load_file(here / "z.safetensors")["latents"], expected)
    refused(arvid("generate", "--resume", here / "x.run"), "no run in")


def low_of(pair: tuple[Path, Path]) -> Path:
    """An adapter for the target."""
    path, module = pair[0].parent / "low.safetensors", "blocks.1.ffn.2"
    torch.manual_seed(8)
    state = {f"{module}.lora_A.weight": torch.randn(2, CFG["ffn_dim"]) * 0.3,
             f"{module}.lora_B.weight": torch.randn(CFG["dim"], 2) * 0.3}  # fmt: skip
    save_file(state, path)
    return path


# ---------------------------------------------------------------- what lies beside, and what does not


def refused(result: Any, said: str) -> None:
    """One line that says it, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr


def test_the_text_encoder_leaves_after_the_prompt(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that are known are encoded before anything else is loaded, and once."""
    order: list[str] = []

    def noted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given: Any, **more: Any) -> Any:
            order.append(name)
            return plain(*given, **more)

        return noting

    monkeypatch.setattr(WanTextEncoder, "load", noted("text", WanTextEncoder.load))
    monkeypatch.setattr(arvid_families, "load_wan", noted("transformer", load_wan))
    family = open_family(find(Source(str(pair[0]), size=(SIDE, SIDE))), prompts=[PROMPT])
    assert isinstance(family.text, EncodeOnce)
    Pipeline(family).generate(Request(PROMPT, 0.1))
    assert order == ["text", "transformer"]


def test_a_tiny_decoder_in_its_place(state: State, tmp_path: Path) -> None:
    parts = causvid(tmp_path, state)
    torch.manual_seed(2)
    tiny = TAEHV(TAEHVConfig(16, (6, 5, 4, 3), (1, 1, 1)))
    names = {own: own.replace("layers.", "decoder.").replace(".convolve.", ".conv.").replace(".split.", ".conv.")
             for own in tiny.decoder.state_dict()}  # fmt: skip
    save_file(
        {names[own]: w.contiguous() for own, w in tiny.decoder.state_dict().items()}, tmp_path / "tae.safetensors"
    )
    assert vae_called(str(tmp_path / "tae.safetensors")).tiny
    found = find(Source(str(parts), family="causvid", size=(SIDE, SIDE)))
    assert found.vae is not None and not found.vae.tiny, "Wan's own goes first"
    (tmp_path / "vae.pth").rename(tmp_path / "kept")
    family = open_family(
        find(Source(str(parts / "model.pt"), family="causvid", size=(SIDE, SIDE))), dtype=torch.float32
    )
    assert isinstance(family.decoder, TAEHV)
    made = Pipeline(family).generate(Request(PROMPT, 1))
    assert made.frames_BTCHW.shape[1:] == (17, 3, SIDE, SIDE)


def test_a_reward_decides_about_drafts(arvid: Type, pair: tuple[Path, Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 20, "max_position_embeddings": 9, "eos_token_id": 1, "bos_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=6)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    word_tokenizer(PROMPT.split(), 9).save_pretrained(str(tmp_path / "clip"))
    reward_called(str(tmp_path / "clip"))
    latents_of(arvid, pair, "--reward", tmp_path / "clip")
    report = json.loads(Path("r.json").read_text())
    assert report["config"]["router"] == "quantile:accept=0.7"
    assert [row["score"] is None for row in report["blocks"]] == [True, False, False]


def test_image_reward_brings_the_published_threshold(pair: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({"blip.visual_encoder.cls_token": torch.zeros(1)}, tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match=r"no tokenizer for .*bert-base-uncased"):
        reward_called(str(tmp_path / "r.safetensors"))
    (tmp_path / "bert-base-uncased").mkdir()
    (tmp_path / "bert-base-uncased" / "vocab.txt").write_text("a\n")
    source = Source(str(pair[0]), str(pair[1]), reward=str(tmp_path), size=(SIDE, SIDE))
    assert find(source).card.router == "reward:tau=-0.7"
    save_file({"module.visual.transformer.resblocks.0.x": torch.zeros(1)}, tmp_path / "r.safetensors")
    assert reward_called(str(tmp_path)).kind == "hps"
    assert find(source).card.router == "quantile:accept=0.7"
    save_file({"x": torch.zeros(1)}, tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="is no reward that is read"):
        reward_called(str(tmp_path))


def test_what_is_missing_is_named_with_its_remedy(arvid: Type, state: State, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "wan_models" / "Wan2.1").mkdir(parents=True)
    path = self_forcing(root, state)
    words = ("generate", PROMPT, "--model", path, "--size", "32x32")
    refused(arvid(*words), "may be of self-forcing or causal-forcing or")
    words += ("--family", "self-forcing")
    (root / "wan_models" / "Wan2.1" / "google").rename(root / "google")
    refused(arvid(*words), "no text encoder (--text: models_t5_umt5-xxl-enc-bf16.pth with google/umt5-xxl beside it")
    refused(arvid(*words, "--text", root / "wan_models" / "Wan2.1" / "t5.pth"), "no tokenizer for")
    (root / "google").rename(root / "wan_models" / "Wan2.1" / "google")
    (root / "wan_models" / "Wan2.1" / "vae.pth").unlink()
    refused(arvid(*words), "error: no autoencoder (--vae: Wan2.1_VAE.pth")
    refused(arvid(*words, "--vae", path), "is no autoencoder of Wan 2.1")
    refused(arvid(*words, "--text", path), "is no UMT5 encoder")
    refused(arvid(*words, "--reward", "nothing.pt"), "no file or directory nothing.pt")
    (path.parent / "config.json").unlink()
    refused(arvid(*words), "name it (--heads)")


def test_what_does_not_fit_is_named(arvid: Type, pair: tuple[Path, Path], state: State, tmp_path: Path) -> None:
    bent = {**SMALL, "text_dim": 20}
    save_file(dense_wan.weights(bent), tmp_path / "bent.safetensors")
    sized(tmp_path, bent)
    words = ("generate", PROMPT, "--size", "32x32")
    refused(arvid(*words, "--model", pair[0], "--drafter", tmp_path), "does not fit")
    refused(arvid(*words, "--model", tmp_path, "--family", "krea", "--text", pair[0].parent, "--vae", pair[0].parent),
            "is 12 wide")  # fmt: skip
    refused(arvid(*words, "--model", tmp_path), "is of the family wan-2.1, which sees the whole video")
    refused(arvid("generate", PROMPT, "--model", pair[0], "--size", "33x32"), "must be multiples of 16 and 16")
    refused(arvid("generate", PROMPT, "--vae", pair[0].parent), "--vae with embedded, a family directory that has its")
    torch.save({"generator": prefixed(state, "model.")}, tmp_path / "any.pt")
    refused(arvid(*words, "--model", tmp_path / "any.pt"), "may be of self-forcing or causvid or longlive")
    for options, said in (
        (("--quantise", "int4"), "unknown kind of quantisation 'int4'"),
        (("--quantise", "fp8-dynamic", "--offload", "target"), "rounded there to fp8-dynamic, which only a GPU can"),
        (("--offload", "vae"), "layers of 'vae' cannot be offloaded"),
        (("--offload", "target", "--compile"), "give --offload or --compile"),
        (("--place", "target=cuda:99"), "target is placed on cuda:99, and torch sees"),
        (("--place", "cook=cpu"), "unknown role 'cook'"),
    ):
        refused(arvid(*words, "--model", pair[0], *options), said)


def test_a_device_without_float64_is_refused_before_anything_is_read(
    arvid: Type, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch has it: noise levels and positions become angles in float64."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(arvid_families, "load_wan", None)
    words = ("generate", PROMPT, "--model", pair[0], *RUN)
    refused(arvid(*words, "--device", "mps"), "device 'mps' cannot be used here; use cpu, cuda or cuda:NUMBER")
    refused(arvid(*words, "--place", "vae=mps"), "vae is placed on mps, where no model runs; use cpu, cuda")


def test_damaged_and_foreign_files_are_one_line(arvid: Type, state: State, tmp_path: Path) -> None:
    path = self_forcing(tmp_path / "root", state)
    cut = path.with_name("cut.pt")
    cut.write_bytes(path.read_bytes()[:20_000])
    torch.save({"generator": state, "by": Path}, path.with_name("code.pt"))
    t5 = tmp_path / "root" / "wan_models" / "Wan2.1" / "t5.pth"
    for model, said in ((cut, "damaged"), (path.with_name("code.pt"), "holds code"), (t5, "it is a text encoder")):
        refused(arvid("generate", PROMPT, "--model", model, "--size", "32x32"), said)
    words = ("generate", PROMPT, "--model", path, "--family", "self-forcing", "--size", "32x32")
    for option, file in (("--text", t5), ("--vae", t5.with_name("vae.pth"))):
        file.write_bytes(file.read_bytes()[:5_000])
        refused(arvid(*words, option, file), "damaged")
    assert not Path("video.mp4").exists()


# ---------------------------------------------------------------- planned before loaded


def test_an_impossible_run_is_refused_before_weights_are_read(
    arvid: Type, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of half a gigabyte; then one whose GPU has room for a model of 8 bits only."""
    monkeypatch.setattr(doctor, "devices", lambda: [Device("cpu", "", GIB // 2, GIB // 2)])
    monkeypatch.setattr(arvid_families, "load_wan", None)
    monkeypatch.setattr(WanTextEncoder, "load", None)
    words = ("generate", PROMPT, "--model", pair[0], "--drafter", pair[1], *RUN)
    refused(arvid(*words), "cpu has 0.5 GiB free and ")
    assert not Path("video.mp4").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_verb_reads_every_layout(
    arvid: Type, layout: Callable[[Path, State], Path], state: State, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    path = layout(tmp_path / "root", state)
    said = ("--family", LAYOUTS[layout]) if layout in UNTOLD else ()
    facts = json.loads(arvid("models", "inspect", path, *said, "--json").output)
    assert [family["name"] for family in facts["families"]] == [LAYOUTS[layout]]
    result = arvid("models", "convert", path, *said, "-o", tmp_path / "new")
    assert result.exit_code == 0, result.output
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-6) for name, value in state.items())
    for model, words in ((path, said), (tmp_path / "new", ())):
        result = arvid("doctor", "--model", model, *words, "--size", "32x32", "--seconds", 1, "--json")
        assert result.exit_code == 0, result.output
        parts = {part["role"]: part["parameters"] for part in json.loads(result.output)["parts"]}
        assert parts["target"] == sum(value.numel() for value in state.values())


def test_doctor_measures_what_lies_there(arvid: Type, pair: tuple[Path, Path], state: State) -> None:
    result = arvid("doctor", "--model", pair[0], "--drafter", pair[1], "--size", "32x32", "--seconds", 2, "--json")
    assert result.exit_code == 0, result.output
    parts = {part["role"]: part for part in json.loads(result.output)["parts"]}
    assert parts["target"]["parameters"] == sum(value.numel() for value in state.values())
    assert parts["text"]["parameters"] == sum(p.numel() for p in text_encoder().parameters())
    assert parts["decoder"]["parameters"] == sum(p.numel() for p in autoencoder().parameters())
