"""Reading a Wan transformer from whatever somebody has: which tensors are what, are all there, and into a model.

Knows: containers, weight maps, signs of families, how sizes follow from shapes, LoRA to be merged on the way.
Does not know: text encoders, autoencoders, schedules, how a rollout goes.

Nothing is decided by the name of a file. One tensor at a time goes from the file to its device and dtype, so that the
peak of host memory is that of the loaded model, plus the tensor at hand, plus two mappings of a thirty-second of the
file each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from arvid.models.checkpoints import maps
from arvid.models.checkpoints.families import FAMILIES, HEADS, published, told_by
from arvid.models.checkpoints.files import LEVEL, NAMED, Container, Entry, Held, containers, locate, open_file
from arvid.models.lora import Lora, Settings, check, in_lora, read_lora
from arvid.models.wan.presets import WAN_1_3B
from arvid.models.wan.transformer import EPS, CausalWan, WanConfig

KNOWN_SHARE = 0.5
"""A dictionary is a Wan transformer when at least this share of its names are."""
KIND = "arvid-wan"
CONFIG = "config.json"

Shapes = dict[str, tuple[int, ...]]
Sources = dict[str, tuple[str, ...]]
"""Tensors of a container, and what of ours each holds; several when fused."""


@dataclass(frozen=True, eq=False)
class Part:
    """A dictionary of tensors in a container that was understood: `key` is its path, ending in / or empty."""

    container: Container
    key: str
    layout: str
    sources: Sources
    surplus: tuple[str, ...]
    signs: frozenset[str]

    @property
    def shapes(self) -> Shapes:
        """Shapes by our names."""
        found: Shapes = {}
        for source, names in self.sources.items():
            rows, *rest = self.container.entries[source].shape or (0,)
            for name in names:
                found[name] = (rows // len(names), *rest) if len(names) > 1 else self.container.entries[source].shape
        return found


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A transformer that is somewhere, checked against its sizes, not read yet. `families` are those it may be of;
    `licence` what the files say, if they do; `loras` are merged while it is read."""

    name: str
    part: Part
    config: WanConfig
    families: tuple[str, ...]
    licence: str | None = None
    loras: tuple[Lora, ...] = ()

    @property
    def family(self) -> str:
        """Its family. Raises ValueError when it may be of several that are run differently."""
        if len(self.families) > 1:
            raise ValueError(
                f"{self.name} may be of {' or '.join(self.families)}: their files look alike and their step lists "
                "differ; say which one it is (--family)"
            )
        return self.families[0]

    @property
    def entries(self) -> dict[str, Entry]:
        """Shape and dtype by our names."""
        held = self.part.container.entries
        shapes = self.part.shapes
        return {n: Entry(shapes[n], held[key].dtype) for key, names in self.part.sources.items() for n in names}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors under our names, LoRA merged, in the dtype of the file. Each may lie in the file: copy it, and
        let go of it before asking for the next."""
        for source, tensor in self.part.container.read(list(self.part.sources)):
            names = self.part.sources[source]
            for name, rows in zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True):
                for lora in self.loras:
                    rows = lora.merged(name, rows)
                yield name, rows


def look(name: str, family: str = "", heads: int = 0, loras: Sequence[str] = ()) -> Checkpoint | Lora:
    """What is called `name`: a transformer, or an adapter when there is nothing but that (see `open_checkpoint`)."""
    if family:
        published(family)
    bases, adapters, others = _understood(locate(name))
    if len(bases) + len(adapters) == 0 or len(bases) > 1 or len(adapters) > 1:
        _refuse(name, bases, adapters, others)
    if not bases:
        return adapters[0]
    base, said = bases[0], _said(Path(bases[0].container.name))
    taken = (*adapters, *(open_lora(lora) for lora in loras))
    config = config_of(base, said, heads)
    families = (family,) if family else _declared(said) or told_by(base.signs.union(*map(_signs, taken)))
    _complete(name, base, families, config)
    for lora in taken:
        check(lora, base.shapes)
    return Checkpoint(name, base, config, families, _licence(base, said), taken)


def open_checkpoint(name: str, family: str = "", heads: int = 0, loras: Sequence[str] = ()) -> Checkpoint:
    """The transformer called `name`: a file, a directory, or an id on the Hugging Face hub.

    `family` says what its names and shapes cannot, `heads` the number of attention heads where the width is not a
    published one; `loras` name adapters to merge, besides one that lies in the same directory or file. Raises
    ValueError when there is no transformer, several, one of another kind, or one whose tensors do not fit its sizes.
    """
    found = look(name, family, heads, loras)
    if isinstance(found, Lora):
        raise ValueError(
            f"{name} is a LoRA of {len(found.deltas)} tensors; give the transformer it belongs to, and it as --lora"
        )
    return found


def open_lora(name: str) -> Lora:
    """The adapter called `name` (see `open_checkpoint`). Raises ValueError when there is none, or several."""
    bases, adapters, others = _understood(locate(name))
    if len(adapters) == 1:
        return adapters[0]
    if bases and not adapters:
        raise ValueError(f"{name} is a whole transformer, not a LoRA; give it as the model")
    _refuse(name, bases, adapters, others)


def _signs(lora: Lora) -> set[str]:
    """What an adapter says about the family of its base."""
    found = {f"lora:{lora.naming}"}
    return found | {"lora:generator"} if lora.part.split(LEVEL)[-1] == maps.LORA_PARTS[0] else found


def load_wan(
    checkpoint: Checkpoint, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> CausalWan:
    """The model, ready to run, its tensors brought to `device` and `dtype` one by one."""
    with torch.device("meta"):
        model = CausalWan(checkpoint.config)
    where = torch.device(device)
    state = {name: tensor.to(where, dtype, copy=True) for name, tensor in checkpoint.tensors()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def wan_from_state(
    state: Mapping[str, Tensor],
    config: WanConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CausalWan:
    """A causal Wan of any size from a state dict under any known names. Raises ValueError for missing, surplus and
    misshapen tensors."""
    base, _ = _parts(Held(state))
    if base is None:
        raise ValueError(f"{_no_wan('the state dict', list(state))}")
    families = told_by(base.signs)
    _complete("the state dict", base, families, config)
    return load_wan(Checkpoint("the state dict", base, config, families), device, dtype)


def settings_of(constructor: Mapping[str, Any]) -> WanConfig:
    """Sizes from the arguments of the original constructor (or a config.json of it).

    Raises ValueError when one is missing, or asks for something that a causal Wan here does not have.
    """
    known = {field.name for field in fields(WanConfig)}
    fixed: dict[str, tuple[Any, ...]] = {
        "eps": (EPS,), "qk_norm": (True,), "cross_attn_norm": (True,), "model_type": ("t2v",),
        "window_size": ((-1, -1), [-1, -1]), "local_attn_size": (-1,), "sink_size": (0,),
    }  # fmt: skip
    odd = [
        f"{name}={constructor[name]!r}" for name, good in fixed.items() if constructor.get(name, good[0]) not in good
    ]
    unknown = sorted(name for name in set(constructor) - known - set(fixed) if not name.startswith("_"))
    lost = [name for name in ("dim", "ffn_dim", "num_heads", "num_layers") if name not in constructor]
    if odd or unknown or lost:
        raise ValueError(
            f"configuration of a causal Wan: missing {lost}, unknown {unknown}, not supported {odd}; expected "
            f"{', '.join(sorted(known))}"
        )
    given = {name: value for name, value in constructor.items() if name in known}
    if "patch_size" in given:
        given["patch_size"] = tuple(given["patch_size"])
    return WanConfig(**given)


def config_of(part: Part, said: Mapping[str, Any], heads: int = 0) -> WanConfig:
    """Sizes from shapes; heads and text length, which shapes do not tell, from what was said or is published.

    Raises ValueError when a tensor that tells a size is missing, or heads are unknown.
    """
    shapes = part.shapes
    telling = ("patch_embedding.weight", "text_embedding.0.weight", "time_embedding.0.weight", "head.head.weight",
               "blocks.0.ffn.0.weight")  # fmt: skip
    lost = [name for name in telling if len(shapes.get(name, ())) < 2]
    if lost or len(shapes["patch_embedding.weight"]) != 5:
        raise ValueError(
            f"{part.container.name} ({part.layout} names) is not complete: {len(lost)} tensors that tell its sizes are "
            f"missing or no matrices: {lost}; fetch it again"
        )
    dim, in_dim, *patch = shapes["patch_embedding.weight"]
    found = heads or _heads(said) or HEADS.get(dim, 0)
    if not found:
        raise ValueError(
            f"{part.container.name} is {dim} wide, which is no published size ({', '.join(map(str, HEADS))}), and "
            "shapes do not tell the number of attention heads; name it (--heads)"
        )
    layers = {int(known[1]) for name in shapes if (known := re.match(r"blocks\.(\d+)\.", name))}
    return WanConfig(
        dim=dim, ffn_dim=shapes["blocks.0.ffn.0.weight"][0], num_heads=found, num_layers=max(layers) + 1,
        text_dim=shapes["text_embedding.0.weight"][1], text_len=_text_len(said), in_dim=in_dim,
        out_dim=shapes["head.head.weight"][0] // prod(patch), freq_dim=shapes["time_embedding.0.weight"][1],
        patch_size=(patch[0], patch[1], patch[2]),
    )  # fmt: skip


def _understood(path: Path) -> tuple[list[Part], list[Lora], list[str]]:
    """Transformers and adapters at a path, and what else is there. Damaged files of a directory do not matter when
    exactly one transformer is found beside them."""
    if path.is_file():
        container = open_file(path)
        base, lora = _parts(container)
        return [base] if base else [], [lora] if lora else [], [_no_wan(str(path), list(container.entries))]
    bases: list[Part] = []
    adapters: list[Lora] = []
    others: list[str] = []
    for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        for file in containers(folder):
            try:
                base, lora = _parts(open_file(file))
            except ValueError as error:
                others.append(str(error))
                continue
            bases += [base] if base else []
            adapters += [lora] if lora else []
        if folder == path and bases:
            break
    return bases, adapters, others


def _parts(container: Container) -> tuple[Part | None, Lora | None]:
    """The transformer of a container and the adapter in it, each from the dictionary that is preferred."""
    groups: dict[str, list[str]] = {}
    for name in container.entries:
        level = name.rfind(LEVEL) + 1
        groups.setdefault(name[:level], []).append(name)
    bases: dict[str, Part] = {}
    adapters: dict[str, list[str]] = {}
    for key, names in groups.items():
        if _last(key) in maps.NOT_PARTS:
            continue
        low = {name for name in names if in_lora(name[len(key) :])}
        part = _part(container, key, [name for name in names if name not in low])
        if part is not None:
            bases[key] = part
        if low:
            adapters[key] = names if part is None else [name for name in names if name in low]
    base = bases[_preferred(list(bases), maps.PARTS)] if bases else None
    if not adapters:
        return base, None
    key = _preferred(list(adapters), maps.LORA_PARTS)
    lora = read_lora(container, adapters[key], key, Settings.beside(Path(container.name)))
    return base, lora


def _last(key: str) -> str:
    return key.rstrip(LEVEL).split(LEVEL)[-1]


def _preferred(keys: list[str], order: Sequence[str]) -> str:
    """The first by the order of names, unknown ones last."""
    return min(keys, key=lambda key: order.index(_last(key)) if _last(key) in order else len(order))


def _part(container: Container, key: str, names: list[str]) -> Part | None:
    """A dictionary as a transformer; None when it is none. Raises ValueError when two tensors mean the same."""
    sources: Sources = {}
    surplus: list[str] = []
    layouts: set[str] = set()
    wrapped = fused = False
    for name in names:
        inside = name[len(key) :]
        known = maps.meaning(maps.bare(inside))
        if known is None:
            surplus.append(name)
            continue
        sources[name] = known.names
        layouts |= {known.layout} if known.layout else set()
        fused |= len(known.names) > 1 and known.layout == maps.ORIGINAL
        wrapped |= inside.startswith(maps.WRAPPED)
    if len(sources) < KNOWN_SHARE * len(names) or not sources:
        return None
    sources = _unique(container, sources)
    layout = maps.DIFFUSERS if maps.DIFFUSERS in layouts else maps.ORIGINAL
    width = next((container.entries[source].shape[:1] for source, ours in sources.items()
                  if ours == ("patch_embedding.weight",)), ())  # fmt: skip
    signs = {f"part:{_last(key)}" if key else "flat", f"layout:{layout}", *(f"width:{side}" for side in width)}
    signs |= ({"wrapped"} if wrapped else set()) | ({"fused"} if fused else set())
    return Part(container, key, layout, sources, tuple(surplus), frozenset(signs))


def _unique(container: Container, sources: Sources) -> Sources:
    """Without split projections whose fused form is there too: code that fuses leaves them behind, runs the fused."""
    fused = {name for names in sources.values() if len(names) > 1 for name in names}
    kept = {source: names for source, names in sources.items() if len(names) > 1 or names[0] not in fused}
    count: dict[str, list[str]] = {}
    for source, names in kept.items():
        for name in names:
            count.setdefault(name, []).append(source)
    twice = sorted(f"{name} ({', '.join(held)})" for name, held in count.items() if len(held) > 1)
    if twice:
        raise ValueError(
            f"{container.name}: {len(twice)} tensors are there twice under different prefixes {twice[:NAMED]}; save "
            "one model per dictionary"
        )
    return kept


def _complete(name: str, part: Part, families: tuple[str, ...], config: WanConfig) -> None:
    """Raises ValueError unless a part has exactly the tensors of a model of this size."""
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in CausalWan(config).state_dict().items()}
    given = part.shapes
    missing, more = sorted(wanted.keys() - given.keys()), sorted({*part.surplus, *(given.keys() - wanted.keys())})
    bent = [f"{key} {list(given[key])} for {list(wanted[key])}" for key in sorted(wanted.keys() & given.keys())
            if wanted[key] != given[key]]  # fmt: skip
    if not (missing or more or bent):
        return
    remedy = maps.foreign(more) or (
        "fetch it again"
        if missing and not more and not bent
        else "use the configuration that came with these weights, or weights of a text-to-video Wan transformer"
    )
    raise ValueError(
        f"{name} (looks like {' or '.join(families)}, {part.layout} names, width {config.dim}, {config.num_layers} "
        f"layers): {len(missing)} tensors missing {missing[:NAMED]}, {len(more)} surplus {more[:NAMED]}, {len(bent)} "
        f"of another shape {bent[:NAMED]}; {remedy}"
    )


def _refuse(name: str, bases: list[Part], adapters: list[Lora], others: list[str]) -> NoReturn:
    """Raises ValueError: there is nothing that is read, or too much."""
    if bases or adapters:
        found = [part.container.name for part in bases] if len(bases) > 1 else [lora.name for lora in adapters]
        raise ValueError(f"{name} holds {len(found)} models: {', '.join(found[:NAMED])}; name one of them")
    raise ValueError(others[0] if others else f"{name} holds no weights; give a file, or a directory with one model")


def _no_wan(name: str, names: list[str]) -> str:
    what = maps.foreign(names) or "give the transformer of a Wan 2.1 text-to-video model"
    shown = ", ".join(names[:3]) or "none"
    return f"{name} is no Wan transformer: {len(names)} tensors ({shown}); {what}"


def _said(path: Path) -> dict[str, Any]:
    """The config.json beside a file; empty when there is none. Raises ValueError when it is damaged."""
    file = path.parent / CONFIG
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        inner = {**found, **found["config"]} if found.get("kind") == KIND else found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a configuration ({error}); fetch it again, or remove it") from error
    if float(inner.get("eps", EPS)) != EPS:
        raise ValueError(f"{file} sets eps {inner['eps']}; a causal Wan here has {EPS}")
    return dict(inner)


def _heads(said: Mapping[str, Any]) -> int:
    return int(said.get("num_heads") or said.get("num_attention_heads") or 0)


def _text_len(said: Mapping[str, Any]) -> int:
    return int(said.get("text_len") or WAN_1_3B.text_len)


def _declared(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Families that our own configuration names."""
    return tuple(name for name in said.get("families", ()) if name in FAMILIES) if said.get("kind") == KIND else ()


def _licence(part: Part, said: Mapping[str, Any]) -> str | None:
    """What the file, its configuration or the page beside it say."""
    held = part.container.metadata
    for source in (held, said):
        for key in ("license", "licence", "modelspec.license"):
            if source.get(key):
                return str(source[key])
    page = Path(part.container.name).parent / "README.md"
    if page.is_file():
        front = re.match(r"---\n(.*?)\n---", page.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        found = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if front else None
        return found[1] if found else None
    return None


def with_family(checkpoint: Checkpoint, family: str) -> Checkpoint:
    """The same weights, run as another family. Raises ValueError for an unknown one."""
    published(family)
    return replace(checkpoint, families=(family,))
