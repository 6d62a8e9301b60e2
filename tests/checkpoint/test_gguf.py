"""GGUF files: bit for bit what transformers loads from them, by rows or whole; hostile files refused."""

import os
import re
import struct
import sys
import warnings

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eckart.checkpoint import layout, open_checkpoint
from eckart.checkpoint.gguf_header import read_gguf_header
from eckart.checkpoint.gguf_names import hf_name
from eckart.errors import EckartError, FileFormatError, MissingExtraError

Q = gguf.GGMLQuantizationType
SIZES = {
    "context_length": 64,
    "block_count": 2,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "head_count": 4,
    "head_count_kv": 2,
}


def load_with_transformers(file):
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


@pytest.fixture(scope="session")
def smollm2_in_transformers(smollm2):
    return load_with_transformers(smollm2)


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of the rows of q and k: the two halves of a head, taken in turn."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def write_gguf(file, model, architecture: str, kind=Q.F32):
    """A model as llama.cpp's converter writes it, its matrices in one storage type."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in SIZES.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_vocab_size(96)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5000.0)
    writer.add_token_list(["a"] * 96)
    if architecture == "qwen3":
        writer.add_key_length(128)
    state = model.state_dict()
    for name, hf in gguf_names(architecture):
        if hf not in state or (hf == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        weight = state[hf]
        if architecture == "llama" and re.search(r"attn_[qk]\.", name):
            weight = interleave(weight, SIZES["head_count"] if "attn_q" in name else SIZES["head_count_kv"])
        if weight.ndim == 2:
            writer.add_tensor(name, quantize(weight.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_names(architecture):
    """(GGUF name, Hugging Face name) pairs from the gguf package's own table."""
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    table = gguf.get_tensor_name_map(arch, SIZES["block_count"])
    parts = ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"]
    parts += [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    modules += [f"model.layers.{i}.{part}" for i in range(SIZES["block_count"]) for part in parts]
    for module in modules:
        for leaf in ("weight", "bias"):
            if name := table.get_name(module):
                yield f"{name}.{leaf}", f"{module}.{leaf}"


def test_smollm2_is_bit_for_bit_what_transformers_loads(smollm2, smollm2_in_transformers) -> None:
    checkpoint = open_checkpoint(smollm2)
    state = smollm2_in_transformers.state_dict()
    assert set(checkpoint.tensors) | set(checkpoint.tied) == set(state)
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name), state[name])


def test_the_config_is_what_transformers_derives(smollm2, smollm2_in_transformers) -> None:
    from transformers import AutoConfig

    config = dict(open_checkpoint(smollm2).config)
    assert config.pop("architectures") == ["LlamaForCausalLM"]
    expected = smollm2_in_transformers.config
    assert config.pop("rope_theta") == expected.rope_parameters["rope_theta"]
    assert {key: getattr(expected, key) for key in config} == config
    assert AutoConfig.for_model(**config, rope_theta=100000.0).rope_parameters == expected.rope_parameters


def test_the_header_is_what_the_gguf_package_reads(smollm2) -> None:
    header, reader = read_gguf_header(smollm2), gguf.GGUFReader(smollm2)
    expected = [(t.name, tuple(t.shape[::-1].tolist()), t.tensor_type.value, t.data_offset) for t in reader.tensors]
    assert [(t.name, t.shape, t.type_id, t.offset) for t in header.tensors] == expected
    fields = {key: field.contents() for key, field in reader.fields.items() if len(field.types) == 1}
    scalars = {key: value for key, value in header.metadata.items() if key in fields}
    assert scalars == {key: value for key, value in fields.items() if not key.startswith("GGUF.")}


@pytest.mark.parametrize(
    "name",
    ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"],
)
def test_rows_of_a_real_tensor_are_slices_of_the_whole(name, smollm2) -> None:
    checkpoint = open_checkpoint(smollm2)
    name = f"model.layers.3.{name}"
    whole = checkpoint.read(name)
    rows = whole.shape[0]
    for start, stop in [(0, rows), (0, 1), (5, 5), (31, 33), (60, 70), (63, 129), (rows - 1, rows)]:
        assert torch.equal(checkpoint.rows(name, start, stop), whole[start:stop])


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *(("llama", kind) for kind in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0)),
        *((architecture, kind) for architecture in ("qwen2", "qwen3") for kind in (Q.F32, Q.Q8_0)),
    ],
)
def test_each_architecture_is_what_transformers_loads(architecture, kind, tiny_model, tmp_path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_model(architecture), architecture, kind)
    checkpoint = open_checkpoint(file)
    expected = load_with_transformers(file).state_dict()
    assert set(checkpoint.tensors) | set(checkpoint.tied) == set(expected)
    for name, info in checkpoint.tensors.items():
        found = checkpoint.read(name)
        assert found.dtype == info.dtype.torch
        assert torch.equal(found.float(), expected[name])
    assert checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].quantization == (
        kind.name if kind in (Q.Q8_0, Q.Q4_0) else None
    )


OF_ACTIVATIONS = {"Q8_1", "Q8_K"}  # which no file contains
NOT_READ = {"Q1_0"}  # which the gguf package does not dequantize


@pytest.mark.parametrize("kind", [kind for kind in Q if kind.name not in OF_ACTIVATIONS], ids=lambda kind: kind.name)
def test_every_type_is_read_as_the_gguf_package_dequantizes_it_or_refused_by_number(kind, tmp_path) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, (6, 256 // block * nbytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in SIZES.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    if kind.name in NOT_READ:
        with pytest.raises(FileFormatError, match=f"type {kind.value}, which the installed gguf package cannot"):
            open_checkpoint(tmp_path / "model.gguf")
        return
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    name = "model.layers.0.mlp.up_proj.weight"
    found = checkpoint.read(name)
    assert found.shape == (6, 256)
    if checkpoint.tensors[name].quantization is None:
        assert found.view(torch.uint8).numpy().tobytes() == data.tobytes()
        return
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, kind)
    assert found.numpy().tobytes() == expected.tobytes()
    assert checkpoint.rows(name, 2, 5).numpy().tobytes() == expected[2:5].tobytes()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_names_are_those_of_the_gguf_package(architecture) -> None:
    for name, hf in gguf_names(architecture):
        assert hf_name(name) == hf


def test_an_output_layer_in_the_file_is_not_tied(tiny_model, tmp_path) -> None:
    write_gguf(tmp_path / "a.gguf", tiny_model("llama"), "llama")
    write_gguf(tmp_path / "b.gguf", tiny_model("qwen2"), "qwen2")
    untied, tied = open_checkpoint(tmp_path / "a.gguf"), open_checkpoint(tmp_path / "b.gguf")
    assert untied.tied == {}
    assert not untied.config["tie_word_embeddings"]
    assert tied.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert layout(tied).matrices[0].tied_modules == ("lm_head",)


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file, tiny_model("llama"), "llama", Q.Q8_0)
    return file


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def field(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


def raw(fields=(), tensors=(), *, version: int = 3, counts: tuple[int, int] | None = None) -> bytes:
    """A GGUF file of any header, right or wrong, with 64 bytes of data."""
    counted = counts or (len(tensors), len(fields))
    return b"GGUF" + struct.pack("<IQQ", version, *counted) + b"".join([*fields, *tensors]) + bytes(64)


LLAMA = [
    field("general.architecture", 8, string("llama")),
    *(
        field(f"llama.{key}", 4, struct.pack("<I", 2))
        for key in ("block_count", "embedding_length", "attention.head_count")
    ),
]
HUGE = struct.pack("<Q", 2**63)
HOSTILE = {
    "empty": (b"", "truncated"),
    "not GGUF": (b"GGML" + bytes(60), "does not begin with"),
    "version of tomorrow": (raw(version=4), "version 4"),
    "big-endian": (raw(version=0x03000000), "not supported"),
    "no architecture": (raw(), "architecture None is not supported"),
    "architecture of another kind": (raw([field("general.architecture", 8, string("mamba"))]), "llama, qwen2, qwen3"),
    "no sizes": (raw(LLAMA[:1]), "no usable num_attention_heads"),
    "heads for each layer": (
        raw([*LLAMA[:3], field("llama.attention.head_count", 9, struct.pack("<IQII", 4, 2, 1, 1))]),
        "no usable num_attention_heads",
    ),
    "more fields than there are": (raw(counts=(0, 2**62)), "duplicate metadata key"),
    "more tensors than there are": (raw(LLAMA, counts=(2**62, len(LLAMA))), "truncated"),
    "a text longer than the file": (raw([field("a", 8, HUGE)]), "bytes is declared"),
    "an array longer than the file": (raw([field("a", 9, struct.pack("<I", 10) + HUGE)]), "truncated"),
    "an endless array of texts": (raw([field("a", 9, struct.pack("<I", 8) + HUGE)]), "truncated"),
    "an array of arrays": (raw([field("a", 9, struct.pack("<IQ", 9, 1))]), "array of the unknown type"),
    "a type that is none": (raw([field("a", 99, b"")]), "unknown type 99"),
    "text that is not UTF-8": (raw([field("a", 8, struct.pack("<Q", 1) + b"\xff")]), "not UTF-8"),
    "a key twice": (raw([LLAMA[0], LLAMA[0]]), "duplicate metadata key"),
    "alignment of zero": (raw([*LLAMA, field("general.alignment", 4, bytes(4))]), "power of two"),
    "five dimensions": (raw(LLAMA, [tensor("output_norm.weight", (1, 1, 1, 1, 1))]), "5 dimensions"),
    "sizes that overflow": (raw(LLAMA, [tensor("output.weight", (2**40, 2**40))]), "impossible shape"),
    "a tensor beyond the end": (raw(LLAMA, [tensor("output_norm.weight", (2**20,))]), "beyond the end"),
    "an offset beyond the end": (raw(LLAMA, [tensor("output_norm.weight", (2,), 0, 2**63)]), "beyond the end"),
    "a tensor twice": (raw(LLAMA, [tensor("output.weight", (2, 2))] * 2), "same name"),
    "a tensor of another kind of model": (raw(LLAMA, [tensor("blk.0.ffn_up_exps.weight", (2, 2))]), "does not belong"),
    "a storage type that is none": (raw(LLAMA, [tensor("output.weight", (2, 2), 255)]), "type 255"),
    "rows that are no whole blocks": (raw(LLAMA, [tensor("output.weight", (33, 2), 8)]), "blocks of 32"),
    "rows that are no whole heads": (raw(LLAMA, [tensor("blk.0.attn_q.weight", (2, 3))]), "2 heads"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_by_name_and_fault(case, tmp_path) -> None:
    data, message = HOSTILE[case]
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(FileFormatError, match=message) as caught:
        open_checkpoint(file)
    assert "model.gguf" in str(caught.value)


def test_a_truncated_real_file_is_refused(smollm2, tmp_path) -> None:
    file = tmp_path / "model.gguf"
    with smollm2.open("rb") as source:
        head = source.read(4_000_000)
    for length in (10, 1000, 1_500_000, 4_000_000):
        file.write_bytes(head[:length])
        with pytest.raises(FileFormatError, match="truncated"):
            open_checkpoint(file)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_file_with_bytes_changed_is_read_or_refused_but_never_breaks(tiny_gguf, tmp_path, data) -> None:
    whole = bytearray(tiny_gguf.read_bytes())
    at = data.draw(st.integers(0, 6000))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    whole[at : at + len(patch)] = patch
    file = tmp_path / "model.gguf"
    file.write_bytes(whole)
    try:
        checkpoint = open_checkpoint(file)
    except EckartError:
        return
    for name, info in checkpoint.tensors.items():
        assert checkpoint.read(name).shape == info.shape


def split_gguf(file, folder, count=3, missing=0):
    """The files into which llama.cpp's `gguf-split` splits a model: metadata only in the first, tensors in all."""
    reader = gguf.GGUFReader(file)
    paths = []
    for number in range(count):
        paths.append(folder / f"model-{number + 1:05}-of-{count:05}.gguf")
        writer = gguf.GGUFWriter(paths[-1], "llama")
        fields = [f for f in reader.fields.values() if not f.name.startswith(("GGUF.", "general.arch"))]
        for field in fields if number == 0 else ():
            writer.add_key_value(
                field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors) + missing)
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def lead_out(file):
    """Move a file to another folder, and link to it."""
    elsewhere = file.parent.with_name(f"{file.parent.name}-elsewhere")
    elsewhere.mkdir()
    file.rename(elsewhere / file.name)
    file.symlink_to(elsewhere / file.name)


def forget_the_split(file):
    """Change the key of the metadata by which a reader knows that there are further files."""
    file.write_bytes(file.read_bytes().replace(b"split.count", b"split.Count"))


def test_a_split_model_without_some_of_its_tensors_is_refused(tiny_gguf, tmp_path) -> None:
    paths = split_gguf(tiny_gguf, tmp_path, missing=1)
    with pytest.raises(FileFormatError, match=r"contain (\d+) tensors, and its metadata says \d+"):
        open_checkpoint(paths[0])


def test_a_split_model_is_read_from_all_of_its_files(tiny_gguf, tmp_path) -> None:
    paths, whole = split_gguf(tiny_gguf, tmp_path), open_checkpoint(tiny_gguf)
    for source in (*paths, tmp_path):
        checkpoint = open_checkpoint(source)
        assert checkpoint.files == tuple(paths)
        assert checkpoint.config == whole.config
        assert set(checkpoint.tensors) == set(whole.tensors)
        for name in whole.tensors:
            assert torch.equal(checkpoint.read(name), whole.read(name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda paths: paths[1].unlink(), r"missing next to it: model-00002-of-00003.gguf"),
        (lambda paths: paths[0].rename(paths[0].with_name("other.gguf")), r"must be named NAME-00001-of-00003.gguf"),
        (lambda paths: paths[0].write_bytes(paths[1].read_bytes()), r"does not say that it is file 1 of 3"),
        (lambda paths: lead_out(paths[1]), r"model-00002-of-00003.gguf is a link to .*outside"),
        (
            lambda paths: forget_the_split(paths[2]),
            r"named as one of 3 files .* does not say so; if the model is whole",
        ),
    ],
)
def test_an_incomplete_split_model_is_refused(damage, message, tiny_gguf, tmp_path) -> None:
    paths = split_gguf(tiny_gguf, tmp_path)
    damage(paths)
    source = next(path for path in (tmp_path / "other.gguf", paths[2]) if path.is_file())
    with pytest.raises(FileFormatError, match=message):
        open_checkpoint(source)


def test_a_file_that_changes_after_it_was_opened_is_not_read(tiny_gguf, tmp_path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(tiny_gguf.read_bytes())
    checkpoint = open_checkpoint(file)
    before = checkpoint.fingerprint()
    os.utime(file, ns=(0, 0))
    assert checkpoint.fingerprint() != before
    with pytest.raises(FileFormatError, match="changed while"):
        checkpoint.read("model.norm.weight")


def test_without_the_gguf_package_its_extra_is_named(tiny_gguf, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(MissingExtraError, match=r"'gguf' extra: pip install '"):
        open_checkpoint(tiny_gguf)
