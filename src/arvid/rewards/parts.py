"""What judges are made of: residual convolutions, cells that look at words, and the directory a judge is kept in.

Knows: tensors, a configuration, two files. Does not know: what is judged, how a judge is trained, who asks.

Legend: N items of a batch, L cells, M words, D width, C channels, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Made = TypeVar("Made", bound=nn.Module)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same shape."""
        return F.relu(x_NCHW + self.second(F.relu(self.first(x_NCHW))))


class Look(nn.Module):
    """Cross-attention: every query adds what it finds among the keys and how that agrees, channel by channel, with
    what it is itself; without the product, whether two things are the same is learned very slowly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_query = nn.LayerNorm(width)
        self.before_key = nn.LayerNorm(width)
        self.query = nn.Linear(width, 2 * width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(2 * width, width, bias=False)

    def forward(self, x_NLD: Tensor, y_NMD: Tensor, mask_NM: Tensor | None) -> Tensor:
        """Queries [N, L, D] that have looked at keys [N or 1, M, D]; the mask is False where there is no key."""
        query_NLD, own_NLD = self.query(self.before_query(x_NLD)).chunk(2, -1)
        q_NHLD = query_NLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(self.before_key(y_NMD)).unflatten(-1, (2, self.heads, -1))
        k_NHMD, v_NHMD = pair.permute(2, 0, 3, 1, 4)
        mask = None if mask_NM is None else mask_NM[:, None, None]
        count = len(q_NHLD)
        seen_NHLD = F.scaled_dot_product_attention(
            q_NHLD, k_NHMD.expand(count, -1, -1, -1), v_NHMD.expand(count, -1, -1, -1), attn_mask=mask
        )
        seen_NLD = seen_NHLD.transpose(1, 2).flatten(2)
        return x_NLD + self.out(torch.cat([seen_NLD, seen_NLD * own_NLD], -1))


class Compared(nn.Module):
    """A map of what is seen against a text: one logit per item. The cells look at the words `rounds` times."""

    def __init__(self, width: int, text_width: int, heads: int, rounds: int) -> None:
        super().__init__()
        self.cell = nn.LayerNorm(width)
        self.word = nn.Sequential(nn.Linear(text_width, width), nn.LayerNorm(width))
        self.looks = nn.ModuleList(Look(width, heads) for _ in range(rounds))
        self.around = nn.ModuleList(Residual(width) for _ in range(rounds))
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x_NCHW: Tensor, text_NMD: Tensor) -> Tensor:
        """Logits [N] fp32 of maps against embeddings, zero where there is no token."""
        side = x_NCHW.shape[-2:]
        text_NMD, told_NM = words(text_NMD)
        x_NLD = self.cell(x_NCHW.flatten(2).transpose(1, 2))
        y_NMD = self.word(text_NMD.to(x_NLD.dtype))
        for look, around in zip(self.looks, self.around, strict=True):
            x_NLD = look(x_NLD, y_NMD, told_NM)
            x_NLD = around(x_NLD.transpose(1, 2).unflatten(2, side)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(torch.cat([x_NLD.amax(1), x_NLD.mean(1)], -1)))
        return logits[:, 0].float()


def words(text_NMD: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings cut after the last token of any row, and where there are tokens [N, M]. A row without any keeps one
    place, so that there is something to look at."""
    told_NM = (text_NMD != 0).any(-1)
    told_NM[:, 0] = True
    length = int(told_NM.any(0).nonzero().max()) + 1
    return text_NMD[:, :length], told_NM[:, :length]


def save(model: nn.Module, config: Any, directory: Path) -> None:
    """Write a judge: its weights, and its configuration (a dataclass)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, directory / WEIGHTS)


def load(what: str, make: Callable[[dict[str, Any]], Made], directory: Path) -> Made:
    """Read what `save` wrote, ready to score, in the type the weights are stored in; `make` builds the model of a
    configuration, `what` names it.

    Raises ValueError when a file is missing or damaged, or the weights are those of another configuration.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(f"no {what} in {directory}: {name} is missing; train one or fetch it again")
    try:
        raw: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(directory / WEIGHTS)
        model = make({name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()})
        model.load_state_dict(weights)
    except (ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the {what} in {directory} is damaged ({line}); fetch it again") from error
    return model.to(next(iter(weights.values())).dtype).eval()
