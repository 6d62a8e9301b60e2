"""Layers and module kinds, read off module paths of real architectures."""

import pytest

from eckart.operations.analysis.places import Place, places

ARCHITECTURES = {
    "llama": {
        "model.embed_tokens": (None, "embed_tokens"),
        "model.layers.0.self_attn.q_proj": (0, "q_proj"),
        "model.layers.11.mlp.down_proj": (11, "down_proj"),
        "lm_head": (None, "lm_head"),
    },
    "gpt2: the suffix grows until it tells kinds apart": {
        "transformer.wte": (None, "wte"),
        "transformer.h.0.attn.c_attn": (0, "c_attn"),
        "transformer.h.0.attn.c_proj": (0, "attn.c_proj"),
        "transformer.h.3.mlp.c_proj": (3, "mlp.c_proj"),
    },
    "bert": {
        "encoder.layer.0.attention.self.query": (0, "query"),
        "encoder.layer.0.attention.output.dense": (0, "attention.output.dense"),
        "encoder.layer.0.output.dense": (0, "output.dense"),
    },
    "encoder-decoder: the stack is named where both have the kind": {
        "model.encoder.layers.0.self_attn.q_proj": (0, "encoder.q_proj"),
        "model.decoder.layers.0.self_attn.q_proj": (0, "decoder.q_proj"),
        "model.decoder.layers.0.mlp.fc1": (0, "fc1"),
    },
    "experts of a layer share a kind": {
        "model.layers.2.mlp.experts.gate_up_proj[0]": (2, "gate_up_proj"),
        "model.layers.2.mlp.experts.gate_up_proj[7]": (2, "gate_up_proj"),
        "model.layers.3.mlp.experts.5.w1": (3, "w1"),
        "model.layers.3.mlp.experts.6.w1": (3, "w1"),
    },
    "kohya's names have _ for every dot": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (4, "to_q"),
        "lora_unet_output_blocks_4_1_transformer_blocks_0_attn1_to_out_0": (4, "to_out.0"),
        "lora_te1_text_model_encoder_layers_11_mlp_fc1": (11, "mlp_fc1"),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_0_proj": (4, "ff_net.proj"),
    },
    "a number or a generic word alone is no kind": {
        "transformer.transformer_blocks.0.ff.net.0.proj": (0, "net.proj"),
        "transformer.transformer_blocks.0.attn.to_out.0": (0, "to_out.0"),
        "transformer.transformer_blocks.0.ff.net.2": (0, "net.2"),
    },
    "a plain Sequential has no layers": {"0": (None, "0"), "2": (None, "2")},
}


@pytest.mark.parametrize("expected", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_a_module_path_says_layer_and_kind(expected: dict[str, tuple[int | None, str]]) -> None:
    assert places(expected) == {name: Place(*place) for name, place in expected.items()}


def test_no_names_have_no_places() -> None:
    assert places([]) == {}


def test_kinds_too_long_to_show_are_shortened_and_stay_apart() -> None:
    names = [f"model.layers.0.{'x' * 60_000}{end}{'y' * 60_000}" for end in "ab"]
    kinds = [place.kind for place in places(names).values()]
    assert kinds == [f"{'x' * 32}…{'y' * 32} ({number})" for number in (1, 2)]
