"""Low-rank adapters (LoRA, 2106.09685) as files have them, merged into weights while these are read.

Knows: the namings of peft, diffusers and kohya, alpha and rank, plain differences of a weight beside them.
Does not know: how the base is read, families, training.

W' = W + strength * scale * up @ down, in fp32, with scale = alpha / rank, and 1 where no alpha is given (LongLive
trains with alpha = rank). An adapter is held in memory as a whole; a base is not.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from arvid.models.checkpoints.files import NAMED, Container
from arvid.models.checkpoints.maps import BLOCK, FUSED, TOP, bare, foreign, meaning

PEFT, KOHYA = "peft", "kohya"
_ROLES = (
    (re.compile(r"(.+)\.lora_A(?:\.([^.]+))?\.weight"), "down", PEFT),
    (re.compile(r"(.+)\.lora_B(?:\.([^.]+))?\.weight"), "up", PEFT),
    (re.compile(r"(.+)\.lora_down()\.weight"), "down", KOHYA),
    (re.compile(r"(.+)\.lora_up()\.weight"), "up", KOHYA),
    (re.compile(r"(.+)\.alpha()"), "alpha", KOHYA),
    (re.compile(r"(.+)\.diff()"), "diff.weight", KOHYA),
    (re.compile(r"(.+)\.diff_b()"), "diff.bias", KOHYA),
)
"""What a name ends in, what that is, and whose naming it is; the second group is the name of the adapter."""
_FLAT_PREFIX = re.compile(r"lora_(?:unet|transformer)_")
_SURE = ("down", "up")


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to one of our tensors: `up` [rows, rank] @ `down` [rank, columns] times `scale`, or `plain`."""

    up: Tensor | None = None
    down: Tensor | None = None
    scale: float = 1.0
    plain: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that it is added to."""
        if self.plain is not None:
            return tuple(self.plain.shape)
        assert self.up is not None and self.down is not None
        return (self.up.shape[0], self.down.shape[1])

    def value(self) -> Tensor:
        """The whole difference, in fp32."""
        if self.plain is not None:
            return self.scale * self.plain.float()
        assert self.up is not None and self.down is not None
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter under our names. `part` is the dictionary of a trainer's file that it was in."""

    name: str
    naming: str
    part: str
    deltas: dict[str, Delta] = field(default_factory=dict)

    @property
    def ranks(self) -> list[int]:
        """The ranks in use."""
        return sorted({delta.down.shape[0] for delta in self.deltas.values() if delta.down is not None})

    @property
    def parameters(self) -> int:
        """Number of weights, counting a factor that several tensors share once."""
        tensors = [tensor for d in self.deltas.values() for tensor in (d.up, d.down, d.plain) if tensor is not None]
        return sum({(tensor.data_ptr(), tensor.numel()): tensor.numel() for tensor in tensors}.values())

    def scaled(self, strength: float) -> Lora:
        """The same adapter, weaker or stronger."""
        return replace(self, deltas={name: replace(d, scale=d.scale * strength) for name, d in self.deltas.items()})

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A weight with its difference added, in the weight's dtype; the weight itself when it has none."""
        delta = self.deltas.get(name)
        return weight if delta is None else (weight.float() + delta.value()).to(weight.dtype)


def check(lora: Lora, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless every difference has a tensor of its shape."""
    lost = sorted(name for name in lora.deltas if name not in shapes)
    bent = [
        f"{name} {list(delta.shape)} for {list(shapes[name])}"
        for name, delta in sorted(lora.deltas.items())
        if name in shapes and delta.shape != shapes[name]
    ]
    if lost or bent:
        raise ValueError(
            f"the LoRA {lora.name} does not fit these weights: {len(lost)} tensors are not there {lost[:NAMED]}, "
            f"{len(bent)} have another shape {bent[:NAMED]}; use a LoRA that was trained on a model of this size"
        )


def role(name: str) -> tuple[str, str, str, str] | None:
    """(module, role, naming, adapter) of a tensor of an adapter; None when it belongs to none."""
    for pattern, what, naming in _ROLES:
        if found := pattern.fullmatch(name):
            return found[1], what, naming, found[2] or ""
    return None


def in_lora(name: str) -> bool:
    """Whether a tensor is a factor of an adapter, by its name."""
    found = role(name)
    return found is not None and found[1] in _SURE


def read_lora(container: Container, names: list[str], part: str, settings: Settings) -> Lora:
    """The adapter whose tensors are `names` of a container, all in the dictionary `part` (ending in /, or empty).

    Raises ValueError for tensors that have no counterpart, of modules that a Wan transformer does not have, of several
    adapters in one file, and for adapters of convolutions.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    surplus, adapters, namings = [], set(), set()
    for name, tensor in container.read(names):
        found = role(name.removeprefix(part))
        module = _module(found[0]) if found else None
        if found is None or module is None:
            surplus.append(name)
            continue
        namings.add(found[2])
        adapters.add(found[3])
        modules.setdefault(module, {})[found[1]] = tensor.clone()
    whole = {"up", "down"}
    halves = sorted(module for module, held in modules.items() if len(whole & held.keys()) == 1)
    if surplus or halves or len(adapters - {""}) > 1:
        hint = foreign(surplus)
        raise ValueError(
            f"the LoRA {container.name}: {len(surplus)} surplus tensors {sorted(surplus)[:NAMED]}, {len(halves)} "
            f"modules with half of a pair {halves[:NAMED]}, adapters {sorted(adapters)}; "
            f"{hint or 'expected one adapter of a Wan transformer, in the naming of peft, diffusers or kohya'}"
        )
    deltas: dict[str, Delta] = {}
    for module, held in modules.items():
        deltas |= _deltas(container.name, module, held, settings)
    return Lora(container.name, " and ".join(sorted(namings)), part.rstrip("/"), deltas)


@dataclass(frozen=True)
class Settings:
    """What an adapter's file does not say and its adapter_config.json does."""

    alpha: float | None = None
    root: bool = False

    @classmethod
    def beside(cls, path: Path) -> Settings:
        """From the adapter_config.json of the same directory; the defaults when there is none.

        Raises ValueError for options that change how an adapter is merged and are not read.
        """
        file = path.parent / "adapter_config.json"
        if not file.is_file():
            return cls()
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            alpha = found.get("lora_alpha")
            odd = [name for name in ("use_dora", "alpha_pattern", "fan_in_fan_out") if found.get(name)]
            made = cls(None if alpha is None else float(alpha), bool(found.get("use_rslora")))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not the configuration of an adapter ({error}); fetch it again") from error
        if odd:
            raise ValueError(f"{file} sets {', '.join(odd)}, which is not read; merge this adapter with peft")
        return made

    def scale(self, rank: int, own: float | None) -> float:
        """Of an adapter of this rank; its own alpha counts before that of the file."""
        alpha = self.alpha if own is None else own
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.root else rank)


def _module(name: str) -> str | None:
    """Our module of an adapter's, as `meaning` takes it; None when there is no such module."""
    if _FLAT_PREFIX.match(name):
        return _from_flat(_FLAT_PREFIX.sub("", name))
    stripped = bare(f"{name}.").removesuffix(".")
    return stripped if meaning(stripped) else None


def _from_flat(name: str) -> str | None:
    """kohya writes underscores for dots, so the name is looked up among all there are."""
    block = re.match(r"blocks_(\d+)_", name)
    rest = name[block.end() :] if block else name
    table: dict[str, Any] = {**BLOCK, **FUSED} if block else TOP
    known = [*table, *(BLOCK if block else TOP).values()]
    found = next((module for module in known if module.replace(".", "_") == rest), None)
    return None if found is None else f"blocks.{block[1]}.{found}" if block else found


def _deltas(file: str, module: str, held: dict[str, Tensor], settings: Settings) -> dict[str, Delta]:
    """The differences of one module, by the tensors that they are added to."""
    found: dict[str, Delta] = {}
    if "down" in held:
        up, down = held["up"], held["down"]
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"the LoRA {file}: {module} has factors {list(up.shape)} and {list(down.shape)}; expected "
                "[rows, rank] and [rank, columns] of a matrix"
            )
        own = float(held["alpha"]) if "alpha" in held else None
        scale = settings.scale(down.shape[0], own)
        names = _tensors(module, ".weight")
        found |= {n: Delta(rows, down, scale) for n, rows in zip(names, up.chunk(len(names)), strict=True)}
    for leaf in ("weight", "bias"):
        if (plain := held.get(f"diff.{leaf}")) is not None:
            names = _tensors(module, "" if module.endswith("modulation") else f".{leaf}")
            found |= {n: _added(found.get(n), rows) for n, rows in zip(names, plain.chunk(len(names)), strict=True)}
    return found


def _added(delta: Delta | None, plain: Tensor) -> Delta:
    if delta is None:
        return Delta(plain=plain)
    return Delta(plain=delta.value() + plain.float())


def _tensors(module: str, leaf: str) -> tuple[str, ...]:
    known = meaning(f"{module}{leaf}")
    assert known is not None  # _module has looked
    return known.names
