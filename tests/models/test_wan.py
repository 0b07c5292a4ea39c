"""The causal Wan transformer against diffusers' own, its published sizes, and what its parts promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from arvid.models.wan.presets import PRESETS, WAN_1_3B, WAN_14B, flops_per_token
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.types import Condition, Rotate, Span

TINY = WanConfig(
    dim=48, ffn_dim=80, num_heads=2, num_layers=2, text_dim=12, text_len=6, in_dim=4, out_dim=4, freq_dim=16
)

NAMES = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
LINEAR = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
BLOCK_NAMES = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in LINEAR.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in LINEAR.items()},
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


class Seeing:
    """A view of nothing, with a mask over the frames of the pass (None: all see all)."""

    def __init__(self, mask: Tensor | None = None) -> None:
        self._mask = mask

    @property
    def frames(self) -> tuple[int, ...]:
        return ()

    def read(self, layer: int, rotate: Rotate) -> None:
        return None

    def mask(self, frames: tuple[int, ...]) -> Tensor | None:
        return self._mask


def weights_of_diffusers(theirs: WanTransformer3DModel, layers: int) -> dict[str, Tensor]:
    """Their weights under our names."""
    held = theirs.state_dict()
    names = dict(NAMES)
    tables = {"head.modulation": "scale_shift_table"}
    for layer in range(layers):
        names |= {f"blocks.{layer}.{ours}": f"blocks.{layer}.{other}" for ours, other in BLOCK_NAMES.items()}
        tables[f"blocks.{layer}.modulation"] = f"blocks.{layer}.scale_shift_table"
    found = {ours: held.pop(other) for ours, other in tables.items()}
    for ours, other in names.items():
        for part in ("weight", "bias"):
            if f"{other}.{part}" in held:
                found[f"{ours}.{part}"] = held.pop(f"{other}.{part}")
    assert held == {}
    return found


def tiny(seed: int = 0, **changes: int) -> CausalWan:
    torch.manual_seed(seed)
    return CausalWan(replace(TINY, **changes)).eval()


def condition(seed: int = 0) -> Condition:
    return Condition("words", torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def reference() -> WanTransformer3DModel:
    torch.manual_seed(1)
    theirs = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=16, ffn_dim=80, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6,
        rope_max_seq_len=64,
    )  # fmt: skip
    for name, p in theirs.named_parameters():
        if "norm" in name:
            nn.init.normal_(p, 1.0 if name.endswith("weight") else 0.0, 0.2)
    return theirs.eval()


@pytest.mark.parametrize("sigma", [0.0, 0.03, 0.625, 1.0])
def test_ours_is_diffusers(reference: WanTransformer3DModel, sigma: float) -> None:
    ours = tiny(5)
    ours.load_state_dict(weights_of_diffusers(reference, 2))
    z_BTCHW, text_BSD = torch.randn(2, 3, 4, 6, 8), torch.randn(2, 6, 12)
    with torch.no_grad():
        theirs = reference(z_BTCHW.transpose(1, 2), torch.full((2,), 1000 * sigma), text_BSD, return_dict=False)[0]
        flow = ours.flow(z_BTCHW, torch.full((2, 3), sigma), ours.read_text(text_BSD), Seeing(), (0, 1, 2))
    assert theirs.abs().mean() > 0.1
    torch.testing.assert_close(flow.flow_BTCHW, theirs.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("config", "billions"), [(WAN_1_3B, 1.419), (WAN_14B, 14.288)])
def test_published_sizes(config: WanConfig, billions: float) -> None:
    with torch.device("meta"):
        model = CausalWan(config)
    assert round(model.parameters_count / 1e9, 3) == billions
    assert config.dim // config.num_heads == 128


def test_the_embedded_drafter_costs_at_most_a_sixth_of_the_target() -> None:
    target, drafter = (flops_per_token(PRESETS[name], 12 * 16) for name in ("embedded-target", "embedded-drafter"))
    assert drafter * 6 <= target


@pytest.mark.parametrize("cells", [0, 6])
def test_every_frame_has_its_own_noise_level(cells: int) -> None:
    """Frames that see only themselves come out as if each had been passed alone at its own level and place 0."""
    model, levels = tiny(cell_width=cells, cell_blocks=1), [0.9, 0.1, 0.4]
    z_BTCHW, context = torch.randn(1, 3, 4, 4, 4), tiny().read_text(torch.randn(1, 6, 12))
    with torch.no_grad():
        together = model.flow(
            z_BTCHW, torch.tensor([levels]), context, Seeing(torch.eye(3, dtype=torch.bool)), (5, 9, 11)
        ).flow_BTCHW
        alone = [
            model.flow(z_BTCHW[:, i : i + 1], torch.tensor([[level]]), context, Seeing(), (0,)).flow_BTCHW
            for i, level in enumerate(levels)
        ]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


def test_keys_are_handed_out_unrotated() -> None:
    model, z_BTCHW = tiny(num_layers=1), torch.randn(1, 1, 4, 4, 4)
    context = model.read_text(torch.randn(1, 6, 12))
    with torch.no_grad():
        (here,) = model.flow(z_BTCHW, torch.zeros(1, 1), context, Seeing(), (0,)).memory
        (there,) = model.flow(z_BTCHW, torch.zeros(1, 1), context, Seeing(), (17,)).memory
    assert here[0].shape == (1, 4, 2, 24)
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1], there[1])


def test_half_precision_returns_fp32_flow_and_half_memory() -> None:
    model = tiny().bfloat16()
    with torch.no_grad():
        estimate = model(torch.randn(1, 2, 4, 4, 4), torch.full((1, 2), 0.5), condition(), Seeing(), Span(0, 2))
    assert estimate.flow_BTCHW.dtype == torch.float32
    assert {tensor.dtype for pair in estimate.memory for tensor in pair} == {torch.bfloat16}


def test_text_is_read_once_per_prompt() -> None:
    model, said = tiny(), condition()
    with torch.no_grad():
        assert model.context(said) is model.context(said)
        first = model.context(said)
        for seed in range(10):
            model.context(condition(seed))
        assert model.context(said) is not first


def test_new_weights_forget_the_text_keys_of_the_old() -> None:
    """Held-out numbers are taken again and again with the same prompts and other weights."""
    model, other, said = tiny(1), tiny(2), condition()
    with torch.no_grad():
        model.context(said)
        model.load_state_dict(other.state_dict())
        for ours, expected in zip(model.context(said), other.context(said), strict=True):
            assert torch.equal(ours[0], expected[0])
        model.train()
        nn.init.zeros_(model.text_embedding[2].weight)
        model.eval()
        assert not torch.equal(model.context(said)[0][0], other.context(said)[0][0])


def test_gradients_flow_twice_through_one_prompt() -> None:
    model, said = tiny().train(), condition()
    for _ in range(2):
        model(torch.randn(1, 1, 4, 4, 4), torch.ones(1, 1), said, Seeing(), Span(0, 1)).flow_BTCHW.sum().backward()
    grad = model.text_embedding[0].weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_training_starts_from_no_flow() -> None:
    model = tiny()
    model.initialise(torch.Generator().manual_seed(3))
    with torch.no_grad():
        estimate = model(torch.randn(1, 2, 4, 4, 4), torch.ones(1, 2), condition(), Seeing(), Span(0, 2))
    assert (estimate.flow_BTCHW == 0).all()
    again = tiny(9)
    again.initialise(torch.Generator().manual_seed(3))
    for name, p in model.named_parameters():
        if "norm" not in name:
            assert torch.equal(p, again.get_parameter(name)), name


def test_settings_build_the_same_model() -> None:
    assert WanConfig(**tiny().settings) == TINY  # type: ignore[arg-type]


def test_errors_name_what_was_found_and_expected() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"width 13, this model expects 12"):
        model.read_text(torch.randn(1, 6, 13))
    with pytest.raises(ValueError, match=r"5 x 4 x 4; this model takes 4 channels"):
        model(torch.randn(1, 1, 5, 4, 4), torch.ones(1, 1), condition(), Seeing(), Span(0, 1))
    with pytest.raises(ValueError, match=r"multiples of 2 x 2"):
        model(torch.randn(1, 1, 4, 4, 5), torch.ones(1, 1), condition(), Seeing(), Span(0, 1))
    with pytest.raises(ValueError, match=r"width 50 does not give 3 heads"):
        replace(TINY, dim=50, num_heads=3)
    with pytest.raises(ValueError, match=r"joins 2 frames"):
        replace(TINY, patch_size=(2, 2, 2))
