"""What a run needs of memory before anything is loaded, and which placement would make it fit.

Knows: how to run a model on tensors without data and count what is alive, what parts of a run are alive together, what
moving, shrinking or offloading a part changes. Does not know: which parts a run has (a caller measures them), files,
what a machine is.

Sizes are not formulas: the model's own code runs on the meta device, where tensors have shapes and no data, while a
ledger counts the storages that live. Fused attention is counted as fused. What libraries take beyond tensors (scratch
memory of convolutions, contexts of a GPU) is the reserve.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
META = torch.device("meta")
RESERVE = {"cpu": 0.5 * GIB, "cuda": 1.0 * GIB}
"""Bytes of a device, by its kind, that are left to libraries: the interpreter's own, a CUDA context and workspaces."""
SPARE = 0.03
"""Share of what is needed that fragmentation may take on top."""
INT8 = 0.52
"""Bytes of a transformer with weights of 8 bits, of those with 16: matrices are halved, scales and norms stay."""
AHEAD = 2
"""Layers that are on the device at once when the others rest on the CPU: the one that computes and the next."""
HOST = "transformers whose layers rest there, or that are rounded on their way"
"""What needs a CPU on which no part stands."""


class _Counting(TorchDispatchMode):
    """Adds up the storages of meta tensors that operators return, for as long as they live."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device == META:
                self.ledger.met(leaf.untyped_storage())
        return out


class _Fused(TorchFunctionMode):
    """Attention as the fused kernels do it: no weights of all pairs; a boolean mask becomes one of numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        q_BHLE, _, v_BHME = args[:3]
        mask: Tensor | None = given.get("attn_mask")
        numbers = None if mask is None or mask.dtype != torch.bool else q_BHLE.new_empty(mask.shape)
        batch, heads, length, _ = q_BHLE.shape
        out_BHLE = q_BHLE.new_empty(batch, length, heads, v_BHME.shape[-1]).transpose(1, 2)
        del numbers
        return out_BHLE


class Ledger:
    """Bytes of meta tensors that are alive, and the most there were; `known` tensors and their views do not count."""

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        self.alive = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._held = {storage._cdata for storage in self._known}
        self._modes = (torch.no_grad(), _Fused(), _Counting(self))

    def __enter__(self) -> Ledger:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def met(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, once."""
        key = storage._cdata
        if key not in self._held:
            size = storage.nbytes()
            self._held.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.alive -= size

    def mark(self) -> int:
        """Forget the peak so far; the bytes alive now."""
        self.peak = self.alive
        return self.alive


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct tensors."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def build(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A module on the meta device, in `dtype`, as it is when it runs."""
    with META:
        module = make()
    return module.to(dtype).eval().requires_grad_(False)


def by_layers(layers: int, measure: Callable[[int], tuple[int, ...]]) -> tuple[int, ...]:
    """What `measure` gives for a number of like layers, from what it gives for two and three: every layer adds the
    same."""
    if layers <= 3:
        return measure(layers)
    two, three = measure(2), measure(3)
    return tuple(b + (layers - 3) * (b - a) for a, b in zip(two, three, strict=True))


@dataclass(frozen=True)
class Need:
    """What one part needs, in bytes: `weights`; `kept` from one block to the next (the past, a decoder's state);
    `working` beyond that while it computes. `layers` of equal size make up a transformer (0: none can be offloaded)."""

    role: str
    parameters: int
    weights: int
    kept: int = 0
    working: int = 0
    layers: int = 0


def need(
    role: str, make: Callable[[], nn.Module], run: Callable[[Any, Ledger], tuple[int, int]], dtype: torch.dtype
) -> Need:
    """The need of a part: `run` is given it on the meta device with an open ledger, and returns (kept, working)."""
    module = build(make, dtype)
    tensors = [*module.parameters(), *module.buffers()]
    with Ledger(tensors) as ledger:
        kept, working = run(module, ledger)
    return Need(role, sum(p.numel() for p in module.parameters()), bytes_of(tensors), kept, working)


@dataclass(frozen=True)
class Device:
    """A place for tensors: its name (cpu, cuda:0), what it is, its bytes in all and those free now."""

    name: str
    what: str
    total: int
    free: int

    @property
    def room(self) -> int:
        """Bytes that a run may plan with."""
        kind = self.name.split(":")[0]
        return max(0, int((self.free - RESERVE.get(kind, RESERVE["cuda"])) / (1 + SPARE)))


@dataclass(frozen=True)
class Way:
    """A way to run: what is done, where every part is, the most bytes at once on every device, and the option that asks
    for it where one is needed."""

    what: str
    place: Mapping[str, str]
    needed: Mapping[str, int]
    option: str = ""

    def lacking(self, devices: Sequence[Device]) -> dict[str, int]:
        """Bytes that are missing, by device; empty when the way fits."""
        room = {device.name: device.room for device in devices}
        return {name: bytes_ - room.get(name, 0) for name, bytes_ in self.needed.items() if bytes_ > room.get(name, 0)}


def most(needs: Sequence[Need], place: Mapping[str, str]) -> dict[str, int]:
    """The most bytes at once on every device: parts compute one after the other, and all they keep is alive."""
    found: dict[str, int] = {}
    for device in dict.fromkeys(place[part.role] for part in needs):
        here = [part for part in needs if place[part.role] == device]
        found[device] = sum(part.weights + part.kept for part in here) + max(part.working for part in here)
    return found


def ways(needs: Sequence[Need], devices: Sequence[Device]) -> Iterator[Way]:
    """Ways to run, the plainest first. Without a GPU everything is on the CPU; otherwise the first GPU is the main
    place, and a second one, present or not, is offered to what is not a transformer."""
    gpus = [device.name for device in devices if device.name != "cpu"]
    main = gpus[0] if gpus else "cpu"
    everything = {part.role: main for part in needs}
    yield Way("everything in one place", everything, most(needs, everything))
    lean = [part for part in needs if part.role != "text"]
    if len(lean) < len(needs):
        yield Way("the text encoder leaves after the prompt", everything, after_text(needs, everything))
    if main == "cpu":
        return
    second = gpus[1] if len(gpus) > 1 else "cuda:1"
    apart = {part.role: main if part.layers else second for part in needs}
    yield Way("text, decoder and reward on a second GPU", apart, most(needs, apart),
              f"--place vae={second},reward={second},text={second}")  # fmt: skip
    rounded = after_text(in_8_bits(needs), everything)
    yield Way("transformers in 8 bits, the text encoder leaves", everything, {
        **rounded, "cpu": unrounded(needs, everything)}, "--quantise int8")  # fmt: skip
    roles = tuple(part.role for part in needs if part.layers)
    needed = after_text(resting(needs, roles), everything)
    yield Way("layers of the transformers rest on the CPU, the text encoder leaves", everything, {
        **needed, "cpu": at_rest(needs, roles)}, f"--offload {','.join(roles)}")  # fmt: skip


def after_text(needs: Sequence[Need], place: Mapping[str, str]) -> dict[str, int]:
    """The most bytes when the text encoder works alone, before the other parts are loaded."""
    alone = most([part for part in needs if part.role == "text"], place)
    rest = most([part for part in needs if part.role != "text"], place)
    return {name: max(alone.get(name, 0), rest.get(name, 0)) for name in {**alone, **rest}}


def in_8_bits(needs: Sequence[Need]) -> list[Need]:
    """The needs when transformers have weights of 8 bits."""
    return [replace(part, weights=int(part.weights * INT8)) if part.layers else part for part in needs]


def unrounded(needs: Sequence[Need], place: Mapping[str, str]) -> int:
    """Bytes on the CPU while transformers are rounded to 8 bits on their way to another device: they begin there as
    they are, one after the other."""
    return max((part.weights for part in needs if part.layers and place[part.role] != "cpu"), default=0)


def resting(needs: Sequence[Need], roles: Sequence[str]) -> list[Need]:
    """The needs, where they compute, when the layers of some transformers rest on the CPU (see `at_rest`)."""
    return [_offloaded(part) if part.role in roles else part for part in needs]


def at_rest(needs: Sequence[Need], roles: Sequence[str]) -> int:
    """Bytes on the CPU of transformers whose layers rest there."""
    return sum(part.weights for part in needs if part.role in roles)


def _offloaded(part: Need) -> Need:
    """A transformer of which only some layers are on the device at once."""
    share = min(1.0, AHEAD / part.layers) if part.layers else 1.0
    return replace(part, weights=int(part.weights * share))


def refuse(needs: Sequence[Need], devices: Sequence[Device], asked: Way, as_run: Sequence[Need] | None = None) -> None:
    """Raise ValueError with the numbers when a run does not fit as it is asked for, naming the first way that would.
    `needs` are those of the plainest run; `as_run`, where they differ, those of this one."""
    lacking = asked.lacking(devices)
    if not lacking:
        return
    name, missing = next(iter(lacking.items()))
    here = next((device for device in devices if device.name == name), None)
    parts = ", ".join(
        f"{part.role} {gib(part.weights + part.kept + part.working)}"
        for part in as_run or needs
        if asked.place[part.role] == name
    )
    fitting = next((way for way in ways(needs, devices) if not way.lacking(devices)), None)
    remedy = "no way to run it fits this machine: arvid doctor lists them"
    if fitting:
        remedy = f"what fits: {fitting.what}{f' ({fitting.option})' if fitting.option else ''}"
    raise ValueError(
        f"{name} has {gib(here.free if here else 0)} free and {gib(asked.needed[name])} are needed ({parts or HOST}), "
        f"{gib(missing)} too much; {remedy}"
    )


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
