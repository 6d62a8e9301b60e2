"""Layers and kinds of module names."""

import pytest

from eckart.checkpoint import layer_and_kind


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.3.self_attn.q_proj", 3, "self_attn.q_proj"),
        ("transformer.h.11.attn.c_attn", 11, "attn.c_attn"),
        ("h.0.mlp.c_fc", 0, "mlp.c_fc"),
        ("bert.encoder.layer.2.attention.output.dense", 2, "attention.output.dense"),
        ("encoder.block.0.layer.0.SelfAttention.q", 0, "layer.0.SelfAttention.q"),
        ("decoder.block.0.layer.0.SelfAttention.q", 0, "decoder.layer.0.SelfAttention.q"),
        ("model.language_model.layers.4.mlp.up_proj", 4, "language_model.mlp.up_proj"),
        ("model.layers.0.mlp.experts.gate_up_proj[3]", 0, "mlp.experts.gate_up_proj[3]"),
        ("lm_head", None, "lm_head"),
        ("model.embed_tokens", None, "model.embed_tokens"),
        ("0", None, "0"),
        ("net.0", None, "net.0"),
        ("", None, ""),
    ],
)
def test_a_name_gives_its_row_and_column_in_a_heat_map(name, layer, kind) -> None:
    assert layer_and_kind(name) == (layer, kind)
