"""Weight maps: what the tensors of a Wan transformer are called in the files people have. Data, and how it is read.

Knows: the names of the original (which are ours) and of diffusers' WanTransformer3DModel, fused projections, wrappers
that training code leaves in names, which dictionary of a trainer's file holds the generator. Does not know: files,
sizes, families.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ORIGINAL, DIFFUSERS = "original", "diffusers"

TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
"""Outside the blocks: original name and diffusers' name, without .weight and .bias."""

BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
"""Inside `blocks.N.`, likewise."""

FUSED = {
    "self_attn.to_qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "self_attn.qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attn1.to_qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "cross_attn.to_kv": ("cross_attn.k", "cross_attn.v"),
    "cross_attn.kv": ("cross_attn.k", "cross_attn.v"),
    "attn2.to_kv": ("cross_attn.k", "cross_attn.v"),
}
"""One matrix whose rows are several of ours, in this order (Krea writes the first)."""

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "base_layer.")
"""What sharding, checkpointing, compiling and adapters put into the middle of names."""
PREFIXES = ("base_model.model.", "module.", "generator.", "model.", "diffusion_model.", "transformer.")
"""What stands before names; several may."""
WRAPPED = "model."
"""The prefix of the original trainers' wrapper, a sign of where a file comes from."""

PARTS = ("generator_ema", "ema", "generator", "state_dict", "model_state_dict", "model", "module", "")
"""Dictionaries of a trainer's file that hold the generator, the preferred first; "" is the file itself."""
LORA_PARTS = ("generator_lora", "lora", *PARTS)
NOT_PARTS = ("critic", "critic_ema", "critic_lora", "fake_score", "real_score", "discriminator", "optimizer")
"""Dictionaries that are another network."""

ELSEWHERE = {
    "img_emb": "it is an image-to-video model, text-to-video models are read",
    "k_img": "it is an image-to-video model, text-to-video models are read",
    "add_k_proj": "it is an image-to-video model, text-to-video models are read",
    "image_embedder": "it is an image-to-video model, text-to-video models are read",
    "vace": "it is a VACE model, plain text-to-video models are read",
    "control_adapter": "it has a control adapter, plain text-to-video models are read",
    "scale_weight": "its weights are scaled fp8, give the bf16 or fp32 file",
    "lora_magnitude_vector": "it is a DoRA, plain LoRA is read",
    "token_embedding": "it is a text encoder, give the transformer",
    "encoder.block": "it is a text encoder, give the transformer",
    "decoder.middle": "it is an autoencoder, give the transformer",
    "decoder.mid_block": "it is an autoencoder, give the transformer",
}
"""Parts of names that tell what a file is when it is not what is read."""

_NAME = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")
_OURS_TOP, _OURS_BLOCK = ({theirs: ours for ours, theirs in table.items()} for table in (TOP, BLOCK))


@dataclass(frozen=True)
class Meaning:
    """What a name in a file stands for: tensors under our names (several when fused) and whose naming it is (None when
    both have it)."""

    names: tuple[str, ...]
    layout: str | None


def bare(name: str) -> str:
    """A name without wrappers and prefixes."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while found := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(found)
    return name


def meaning(name: str) -> Meaning | None:
    """What a bare name stands for; None when it is not of a Wan transformer. `name` may be that of a module, without
    .weight or .bias."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    block, module, leaf = found[1] or "", found[2], found[3] or ""
    if block and module in FUSED:
        layout = DIFFUSERS if module.startswith("attn") else ORIGINAL
        return Meaning(tuple(f"{block}{part}{leaf}" for part in FUSED[module]), layout)
    ours, theirs = (BLOCK, _OURS_BLOCK) if block else (TOP, _OURS_TOP)
    if module in ours:
        return Meaning((f"{block}{module}{leaf}",), None if module in theirs else ORIGINAL)
    if module in theirs:
        return Meaning((f"{block}{theirs[module]}{leaf}",), DIFFUSERS)
    return None


def to_diffusers(name: str) -> str:
    """diffusers' name of one of our tensors. Raises ValueError for a name that is not ours."""
    found = _NAME.fullmatch(name)
    table = BLOCK if found and found[1] else TOP
    if found is None or found[2] not in table:
        raise ValueError(f"{name} is no tensor of a Wan transformer; expected a name like blocks.0.self_attn.q.weight")
    return f"{found[1] or ''}{table[found[2]]}{found[3] or ''}"


def foreign(names: list[str]) -> str:
    """What names say about a file that is not read as it is; empty when nothing."""
    return next((what for sign, what in ELSEWHERE.items() if any(sign in name for name in names)), "")
