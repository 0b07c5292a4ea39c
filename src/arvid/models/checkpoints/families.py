"""Published families: how each wants to be run, by which signs a file of it is told, what goes together. Data.

Knows: step lists, shift, block, window, sizes; sources: the authors' configurations (Self-Forcing 2506.08009, CausVid
2412.07772, LongLive 2509.22622, Causal Forcing 2602.02214 and 2605.15141, Krea Realtime 14B, Wan 2.1). Does not know:
files, weights, how a rollout goes.

CausVid, Self-Forcing, Causal Forcing and LongLive's base share every name and shape. Their files differ at most in what
a trainer put beside the generator, so a file may fit several families, and then a person has to say which it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from arvid.models.wan.presets import WAN_1_3B, WAN_14B
from arvid.models.wan.transformer import WanConfig


@dataclass(frozen=True)
class Published:
    """A family as its authors run it. `timesteps` are on the scale of 1000, as the network is told them (none for a
    model of many steps that sees the whole video); `past` is a cache policy, which does not count the current block;
    `trained_frames` are latent; `router` is how they make blocks without a drafter; `note` says what the original does
    that this description leaves out."""

    title: str
    timesteps: tuple[float, ...] = ()
    shift: float = 5.0
    block: int = 3
    past: str = "full"
    trained_frames: int = 21
    size: tuple[int, int] = (832, 480)
    fps: int = 16
    router: str = "target"
    note: str = ""

    @property
    def causal(self) -> bool:
        """Whether it makes video block by block."""
        return bool(self.timesteps)


_FOUR_STEPS = (1000.0, 937.5, 2500 / 3, 625.0)
"""Quarters of the unshifted scale at shift 5."""
_FIRST_OF_FOUR = "target:first_steps=4"

FAMILIES = {
    "self-forcing": Published("Self-Forcing, Wan 2.1 T2V 1.3B", _FOUR_STEPS),
    "causvid": Published("CausVid, Wan 2.1 T2V 1.3B", (1000.0, 757.0, 522.0), shift=8.0),
    "longlive": Published(
        "LongLive 1.0, Wan 2.1 T2V 1.3B", _FOUR_STEPS, past="window:frames=6,sink=3", trained_frames=240,
        note="a new prompt makes the keys of the last 12 frames again",
    ),
    "causal-forcing": Published("Causal Forcing, chunk-wise, Wan 2.1 T2V 1.3B", _FOUR_STEPS),
    "causal-forcing-framewise": Published("Causal Forcing, frame-wise, Wan 2.1 T2V 1.3B", _FOUR_STEPS, block=1),
    "causal-forcing-framewise-2": Published(
        "Causal Forcing++, frame-wise in 2 steps, Wan 2.1 T2V 1.3B", (1000.0, 2500 / 3), block=1,
        router=_FIRST_OF_FOUR,
    ),
    "causal-forcing-framewise-1": Published(
        "Causal Forcing++, frame-wise in 1 step, Wan 2.1 T2V 1.3B", (1000.0,), block=1,
        router=_FIRST_OF_FOUR,
    ),
    "krea": Published(
        "Krea Realtime, Wan 2.1 T2V 14B", (*_FOUR_STEPS, 0.0), past="window:frames=3",
        note="its server makes all keys again before each block, at positions from 0, and takes the oldest frame of "
        "the window through the autoencoder",
    ),
    "wan-2.1": Published("Wan 2.1 T2V", note="sees the whole video in 50 guided steps: a base, not a causal model"),
}  # fmt: skip
"""Families by name."""

_CAUSAL_FORCING = tuple(name for name in FAMILIES if name.startswith("causal-forcing"))

SIZES: dict[str, tuple[WanConfig, ...]] = {
    "self-forcing": (WAN_1_3B,),
    "causvid": (WAN_1_3B,),
    "longlive": (WAN_1_3B,),
    **dict.fromkeys(_CAUSAL_FORCING, (WAN_1_3B,)),
    "krea": (WAN_14B,),
    "wan-2.1": (WAN_1_3B, WAN_14B),
}
"""Sizes in which a family was published."""

HEADS = {WAN_1_3B.dim: WAN_1_3B.num_heads, 3072: 24, WAN_14B.dim: WAN_14B.num_heads}
"""Heads by width of the published sizes (1.3B, Wan 2.2 5B, 14B); shapes do not tell them."""

SIGNS: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (frozenset({"lora:generator"}), ("longlive",)),
    (frozenset({"fused"}), ("krea",)),
    (frozenset({"flat", "wrapped", f"width:{WAN_14B.dim}"}), ("krea",)),
    (frozenset({"part:generator_ema"}), ("self-forcing", *_CAUSAL_FORCING)),
    (frozenset({"part:generator"}), ("self-forcing", "causvid", "longlive", *_CAUSAL_FORCING)),
    (frozenset({"wrapped"}), ("self-forcing", "krea", "causvid", "longlive", *_CAUSAL_FORCING)),
    (frozenset(), ("wan-2.1",)),
)
"""Signs of a file and the families that it may then be of; the first line whose signs are all there decides."""


def told_by(signs: frozenset[str]) -> tuple[str, ...]:
    """The families that a file with these signs may be of."""
    return next(families for wanted, families in SIGNS if wanted <= signs)


def published(name: str) -> Published:
    """A family by name. Raises ValueError naming the known ones."""
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def misfits(one: WanConfig, other: WanConfig) -> list[str]:
    """Why two models cannot share latents and prompts; empty when they can."""
    names = ("in_dim", "out_dim", "text_dim", "text_len")
    return [f"{name} {getattr(one, name)} and {getattr(other, name)}" for name in names
            if getattr(one, name) != getattr(other, name)]  # fmt: skip


def partners(config: WanConfig) -> list[tuple[str, str]]:
    """(role of the other, family) of published causal models that a model of this size can work with: their blocks are
    as long as those of a published one of this size, if there is any."""
    causal = {name: sizes for name, sizes in SIZES.items() if FAMILIES[name].causal}
    own = {FAMILIES[name].block for name, sizes in causal.items() if any(size.dim == config.dim for size in sizes)}
    found = []
    for name, sizes in causal.items():
        for size in sizes:
            if not misfits(config, size) and size.dim != config.dim and (not own or FAMILIES[name].block in own):
                found.append(("target" if size.dim > config.dim else "drafter", name))
    return found
