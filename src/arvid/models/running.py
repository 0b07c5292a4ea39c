"""A model run faster: compiled, with packed weights, or beside the main stream. Same tensors in, same tensors out.

Knows: which parts of a Wan block are worth compiling, how a CPU wants its matrices laid out, what a CUDA stream of its
own may do while the main stream goes on. Does not know: who calls, which block is made, what is measured.

Nothing here changes an interface: `compile_blocks`, `pack` and `unpack` work in place, `aside` and `held_back` wrap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from arvid.models.wan.transformer import CausalWan, WanBlock
from arvid.types import Decoder, DecoderState, Reward

Made = TypeVar("Made")

# ---------------------------------------------------------------- compiled


GRAPHS = 64
"""Graphs that a part of a block may have: one for every number of frames and of videos in a pass, of every model."""


def compile_blocks(model: CausalWan, mode: str = "default") -> int:
    """Compile, in place, what every block does apart from the past, which is longer at every block until the window is
    full; returns the number of compiled parts. All layers share one graph for each number of frames and of videos in a
    pass; a pass with new ones takes the time of compiling. Behind `GRAPHS` of them a pass runs as it is. `mode` is
    torch's: `reduce-overhead` records CUDA graphs."""
    # All models of a process have the same code, and torch counts its graphs by that; it stops at 8 by itself.
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, GRAPHS)
    for block in model.blocks:
        assert isinstance(block, WanBlock)
        for part in (block.enter, block.leave):
            setattr(block, part.__name__, torch.compile(part, mode=mode, dynamic=False))
    return 2 * len(model.blocks)


# ---------------------------------------------------------------- packed for a CPU


class PackedLinear(nn.Linear):
    """A linear layer whose matrix is also kept in the order in which oneDNN multiplies; without that it is put in
    order at every call. For inference only: a change of the weight is not noticed. Moved to another device or type it
    is a plain layer."""

    def __init__(self, plain: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(plain.in_features, plain.out_features, plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self._packed: Tensor | None = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """As in `nn.Linear`."""
        if self._packed is None:
            return super().forward(x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        before = (self.weight.device, self.weight.dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (self.weight.device, self.weight.dtype) != before:
            self._packed = None
        return self


def pack(model: nn.Module) -> int:
    """Pack, in place, the linear layers of the blocks of a transformer that rests on a CPU in bf16; returns how many.
    Takes as much memory again as their weights, and gives the same numbers.

    Raises ValueError when the weights are elsewhere or of another type, or the CPU has no bf16 arithmetic.
    """
    found = _linear(model)
    if not packable(model):
        listed = ", ".join(sorted({f"{part.weight.dtype} on {part.weight.device}" for part in found.values()}))
        raise ValueError(
            f"linear layers are {listed or 'missing'}; packed is what is torch.bfloat16 on a CPU that knows bf16: "
            "run this model unpacked"
        )
    for name, part in found.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, PackedLinear(part))
    return len(found)


def unpack(model: nn.Module) -> int:
    """Take packed layers back, in place: plain ones on the same weights; returns how many."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, PackedLinear)}
    for name, part in found.items():
        with torch.device("meta"):
            plain = nn.Linear(part.in_features, part.out_features, part.bias is not None)
        plain.weight, plain.bias = part.weight, part.bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain.train(part.training))
    return len(found)


def packable(model: nn.Module) -> bool:
    """Whether `pack` can do something for a model where it is."""
    kinds = {(part.weight.device.type, part.weight.dtype) for part in _linear(model).values()}
    return kinds == {("cpu", torch.bfloat16)} and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of the blocks by name, unless they are packed or rounded."""
    return {
        name: part
        for name, part in model.named_modules()
        if name.startswith("blocks.") and type(part) is nn.Linear and type(part.weight) is nn.Parameter
    }


# ---------------------------------------------------------------- beside the main stream


class Arrival(Protocol):
    """How work that was begun elsewhere is waited for."""

    def wait(self, made: Tensor) -> None:
        """Let the stream of the caller wait, not the host, until `made` can be used there."""
        ...

    def fetch(self, made: Tensor) -> Tensor:
        """`made` in main memory; waits for it, and for nothing that was begun later."""
        ...


class Lane(Protocol):
    """Where work is done beside the main stream."""

    def do(self, work: Callable[[], Made], reads: Sequence[Tensor]) -> tuple[Made, Arrival]:
        """What `work` gives, perhaps before it is done. `reads` are the tensors of the main stream that it looks at."""
        ...


class Late(Tensor):
    """A tensor whose values are still being made. Its form is known at once; whatever uses its values first lets the
    stream it runs on wait for them, not the host. (After `AsyncCollectiveTensor` of torch, which does the same.)"""

    _plain: Tensor
    _arrival: Arrival

    @staticmethod
    def of(plain: Tensor, arrival: Arrival) -> Tensor:
        """`plain`, whose values are to be waited for."""
        late = plain.as_subclass(Late)
        late._plain, late._arrival = plain, arrival
        return late

    def arrived(self) -> Tensor:
        """The plain tensor; the stream of the caller waits for its values."""
        self._arrival.wait(self._plain)
        return self._plain

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Questions about the form are answered at once, everything else waits."""
        if func in FORM:
            return func(args[0]._plain, *args[1:], **(kwargs or {}))
        if func is Tensor.cpu:
            return args[0]._arrival.fetch(args[0]._plain)
        args, kwargs = tree_map_only(Late, Late.arrived, (args, kwargs or {}))
        return func(*args, **kwargs)


FORM = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "device", "dtype", "ndim", "layout", "is_cuda")),
        Tensor.size, Tensor.dim, Tensor.numel, Tensor.element_size, Tensor.__len__,
    ]
)  # fmt: skip
"""What can be asked of a tensor without its values."""


class CudaLane:
    """A CUDA stream of its own (see `Lane`), and another for what is fetched to the host: a block that is fetched shall
    not wait for the next one, which is already queued."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream, self.copies = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def do(self, work: Callable[[], Made], reads: Sequence[Tensor]) -> tuple[Made, Arrival]:
        """Queue `work` behind what the main stream has been told so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            made = work()
        for tensor in reads:
            if tensor.is_cuda and not isinstance(tensor, Late):
                tensor.record_stream(self.stream)
        return made, CudaArrival(self, self.stream.record_event())


class CudaArrival:
    """Work that is done when the lane has passed an event (see `Arrival`)."""

    def __init__(self, lane: CudaLane, done: torch.cuda.Event) -> None:
        self._lane, self._done = lane, done

    def wait(self, made: Tensor) -> None:
        """Queue a wait on the current stream; the memory is kept until that stream is done with it too."""
        current = torch.cuda.current_stream(self._lane.device)
        current.wait_event(self._done)
        made.record_stream(current)

    def fetch(self, made: Tensor) -> Tensor:
        """Copy on the lane's second stream; the host waits for the copy."""
        self._lane.copies.wait_event(self._done)
        made.record_stream(self._lane.copies)
        with torch.cuda.stream(self._lane.copies):
            return made.cpu()


class AsideDecoder:
    """A decoder in a lane (see `arvid.types.Decoder`): its frames are `Late`, its state never leaves the lane."""

    def __init__(self, inner: Decoder, lane: Lane) -> None:
        self.inner, self._lane = inner, lane

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Pixels of the next latents, on their way, and the state after them."""
        (frames, after), arrival = self._lane.do(lambda: self.inner.decode(z_BTCHW, state), (z_BTCHW,))
        return Late.of(frames, arrival), after


@runtime_checkable
class _Encoder(Protocol):
    def encode(self, v_BTCHW: Tensor) -> Tensor: ...


class AsideAutoencoder(AsideDecoder):
    """A decoder in a lane that has its encoder with it, which works where it is called."""

    def __init__(self, inner: Decoder, encoder: _Encoder, lane: Lane) -> None:
        super().__init__(inner, lane)
        self._encoder = encoder

    def encode(self, v_BTCHW: Tensor) -> Tensor:
        """Latents of a clip."""
        return self._encoder.encode(v_BTCHW)


class AsideReward:
    """A scorer in a lane (see `arvid.types.Reward`): its scores are `Late`. In the decoder's lane it follows the
    decoder."""

    def __init__(self, inner: Reward, lane: Lane) -> None:
        self.inner, self._lane = inner, lane

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        """Scores of frames, on their way."""
        scores, arrival = self._lane.do(lambda: self.inner.score(v_BTCHW, prompt), (v_BTCHW,))
        return Late.of(scores, arrival)


def aside(decoder: Decoder, reward: Reward | None, device: torch.device) -> tuple[Decoder, Reward | None]:
    """Decoder and reward in one lane of their device: the block after is begun while a block is decoded. A CPU has no
    lanes, and there they stay as they are."""
    if device.type != "cuda":
        return decoder, reward
    lane = CudaLane(device)
    if isinstance(decoder, _Encoder):
        beside: AsideDecoder = AsideAutoencoder(cast(Decoder, decoder), decoder, lane)
    else:
        beside = AsideDecoder(decoder, lane)
    return beside, None if reward is None else AsideReward(reward, lane)


def held_back(items: Iterable[Made], count: int = 1) -> Iterator[Made]:
    """The items in their order, each after `count` more were asked for. So the work of the next block is queued before
    the frames of this one are looked at; a viewer gets every block that much later."""
    waiting: deque[Made] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
