"""LyCORIS' other kinds of update: read as exact products, merged, resized and carried; LyCORIS is the oracle."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.engine import Execution
from eckart.errors import FileFormatError, MismatchError
from eckart.formats import load_adapter
from eckart.operations.combination.combine import combine
from eckart.operations.merging.merge import merge
from eckart.operations.merging.unmerge import unmerge
from eckart.operations.plain_lora.to_lora import to_lora
from eckart.operations.resizing.resize import resize

pytestmark = pytest.mark.filterwarnings("ignore")
ONE = Execution(workers=1)
NAME, MODULE = "lora_unet_blocks_0_self_attn_q", "blocks.0.self_attn.q"
CONV = "lora_unet_patch_embedding"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


def loha(*kernel: int, core: bool = False):
    from lycoris.functional.loha import diff_weight

    if core:  # w1_a is (rank, out) then
        parts = {"w1_a": random(3, 8), "w1_b": random(3, 6), "w2_a": random(3, 8) + 1, "w2_b": random(3, 6) - 1}
        parts |= {"t1": random(3, 3, *kernel), "t2": random(3, 3, *kernel) + 0.5}
    else:
        size = 6 * torch.Size(kernel).numel()
        parts = {"w1_a": random(8, 3), "w1_b": random(3, size), "w2_a": random(8, 3) + 1, "w2_b": random(3, size) - 1}
    order = [parts.get(name) for name in ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")]
    dense = diff_weight(*[each if each is None else each.double() for each in order], gamma=2 / 3)
    return {f"hada_{name}": part for name, part in parts.items()} | {"alpha": torch.tensor(2.0)}, dense


def lokr(first: str, second: str, *kernel: int):
    from lycoris.functional.lokr import diff_weight

    w1 = {"w1": random(2, 3)} if first == "whole" else {"w1_a": random(2, 2), "w1_b": random(2, 3)}
    w2 = {
        "whole": {"w2": random(4, 2, *kernel)},
        "factored": {"w2_a": random(4, 2), "w2_b": random(2, 2, *kernel)},
        "core": {"w2_a": random(2, 4), "w2_b": random(2, 2), "t2": random(2, 2, *kernel)},
    }[second]
    parts = w1 | w2
    order = [parts.get(name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
    dense = diff_weight(*[each if each is None else each.double() for each in order], gamma=1.5)
    return {f"lokr_{name}": part for name, part in parts.items()} | {"alpha": torch.tensor(1.5)}, dense


def locon():
    from lycoris.functional.locon import diff_weight

    down, up, mid = random(3, 6, 1, 1), random(8, 3, 1, 1), random(3, 3, 3, 3)
    dense = diff_weight(down.double(), up.double(), mid.double(), gamma=2 / 3)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid, "alpha": torch.tensor(2.0)}
    return parts, dense


CASES = {
    "LoHa": (loha, 9),
    "LoHa of a convolution": (lambda: loha(3, 3), 9),
    "LoHa with cores": (lambda: loha(3, 3, core=True), 9),
    "LoKr of whole factors": (lambda: lokr("whole", "whole"), 4),
    "LoKr, the second factored": (lambda: lokr("whole", "factored"), 4),
    "LoKr, both factored": (lambda: lokr("factored", "factored"), 4),
    "LoKr of a convolution": (lambda: lokr("whole", "whole", 3, 3), 8),
    "LoKr of a convolution, factored": (lambda: lokr("whole", "factored", 3, 3), 4),
    "LoKr with a core": (lambda: lokr("factored", "core", 3, 3), 4),
    "LoRA with a core": (locon, 3),
    "a full difference": (lambda: ({"diff": random(8, 6)}, random(8, 6).double()), 6),
    "a full difference of a convolution": (lambda: ({"diff": random(8, 6, 3, 3)}, random(8, 6, 3, 3).double()), 8),
}


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_lycoris_own_and_merges_as_it(case, tmp_path):
    make, rank = CASES[case]
    parts, dense = make()
    save_file({f"{NAME}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")
    (one,) = load_adapter(tmp_path / "a.safetensors").values()
    assert one.rank == rank == load_adapter(tmp_path / "a.safetensors").outline()[NAME].rank
    found = one.low_rank().dense().reshape(dense.shape)
    torch.testing.assert_close(found, dense, rtol=0, atol=3e-7 * float(dense.abs().max()))
    shape = (8, 6, 3, 3) if dense.numel() > 48 else (8, 6)
    base = {f"{MODULE}.weight": random(*shape)}
    save_file(base, tmp_path / "base.safetensors")
    merge(tmp_path / "base.safetensors", [tmp_path / "a.safetensors"], tmp_path / "m.safetensors", execution=ONE)
    merged = load_file(tmp_path / "m.safetensors")[f"{MODULE}.weight"]
    expected = base[f"{MODULE}.weight"].double() + dense.reshape(shape)
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_resized_update_is_plain_lora_at_the_least_error(case, tmp_path):
    parts, dense = CASES[case][0]()
    save_file({f"{NAME}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")
    result = resize(tmp_path / "a.safetensors", rank=2, output=tmp_path / "b.safetensors", execution=ONE)
    assert set(load_file(tmp_path / "b.safetensors")) >= {f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"}
    values = torch.linalg.svdvals(dense.reshape(8, -1))
    least = float((values[2:] ** 2).sum().sqrt() / (values**2).sum().sqrt())
    assert result.error == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("case", ["LoHa", "LoKr with a core", "a full difference"])
def test_a_file_becomes_plain_lora_without_its_model_and_its_plain_layers_stay(case, tmp_path):
    parts, dense = CASES[case][0]()
    tensors = {f"{NAME}.{part}": tensor for part, tensor in parts.items()}
    plain = {f"{CONV}.lora_down.weight": random(5, 6), f"{CONV}.lora_up.weight": random(8, 5)}
    save_file(tensors | plain, tmp_path / "a.safetensors")
    result = to_lora(tmp_path / "a.safetensors", error=1e-5, output=tmp_path / "b.safetensors", execution=ONE)
    found = load_file(tmp_path / "b.safetensors")
    assert {name for name in found if "hada" in name or "lokr" in name or name.endswith("diff")} == set()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    one = load_adapter(tmp_path / "b.safetensors")[NAME]
    distance = float((one.low_rank().dense().reshape(dense.shape) - dense).norm() / dense.norm())
    record = {each.name: each for each in result.layers}[NAME]
    assert distance < 1e-5
    assert distance == pytest.approx(record.error, abs=1e-6)
    with pytest.raises(MismatchError, match="plain LoRA already"):
        to_lora(tmp_path / "b.safetensors", execution=ONE)


@pytest.mark.parametrize("by", ["outputs", "inputs"])
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv"])
def test_dora_over_outputs_and_inputs_merges_as_lycoris_has_it(by, kernel, tmp_path):
    from lycoris.functional.general import weight_decompose

    weight, down, up = random(8, 6, *kernel), random(3, 6, *kernel), random(8, 3, *[1] * len(kernel))
    ones = [1] * len(kernel)
    scale = random(8, 1, *ones).abs() + 1 if by == "outputs" else random(1, 6, *ones).abs() + 1
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0), "dora_scale": scale}
    save_file({f"{NAME}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")
    save_file({f"{MODULE}.weight": weight}, tmp_path / "base.safetensors")
    merge(tmp_path / "base.safetensors", [tmp_path / "a.safetensors"], tmp_path / "m.safetensors", execution=ONE)
    changed = weight.double() + (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
    expected = weight_decompose(changed, scale.double(), 1, by == "outputs")
    found = load_file(tmp_path / "m.safetensors")[f"{MODULE}.weight"]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    resize(tmp_path / "a.safetensors", rank=2, output=tmp_path / "b.safetensors", execution=ONE)
    assert torch.equal(load_file(tmp_path / "b.safetensors")[f"{NAME}.dora_scale"], scale)


LORA = {f"{NAME}.lora_down.weight": random(3, 6), f"{NAME}.lora_up.weight": random(8, 3)}
NORM = "lora_unet_blocks_0_norm3"
VECTORS = {
    "norms of LyCORIS": ("w_norm", "b_norm"),
    "differences of ComfyUI": ("diff", "diff_b"),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_differences_of_norms_and_biases_are_merged_removed_kept_and_summed(kind, tmp_path):
    weight, bias = VECTORS[kind]
    base = {f"{MODULE}.weight": random(8, 6), "blocks.0.norm3.weight": random(8), "blocks.0.norm3.bias": random(8)}
    save_file(base, tmp_path / "base.safetensors")
    vectors = {f"{NORM}.{weight}": random(8) + 1, f"{NORM}.{bias}": random(8) - 1}
    embedding = {"bundle_emb.word.clip_l": random(2, 5)}
    save_file(LORA | vectors | embedding, tmp_path / "a.safetensors")
    merge(
        tmp_path / "base.safetensors",
        [tmp_path / "a.safetensors"],
        tmp_path / "m.safetensors",
        weights=[0.5],
        execution=ONE,
    )
    merged = load_file(tmp_path / "m.safetensors")
    for leaf, part in (("weight", weight), ("bias", bias)):
        key = f"blocks.0.norm3.{leaf}"
        torch.testing.assert_close(merged[key], base[key] + 0.5 * vectors[f"{NORM}.{part}"])
    unmerge(
        tmp_path / "m.safetensors",
        [tmp_path / "a.safetensors"],
        tmp_path / "u.safetensors",
        weights=[0.5],
        execution=ONE,
    )
    torch.testing.assert_close(load_file(tmp_path / "u.safetensors"), base)
    resize(tmp_path / "a.safetensors", rank=2, output=tmp_path / "b.safetensors", execution=ONE)
    smaller = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(smaller[key], tensor) for key, tensor in (vectors | embedding).items())
    save_file(LORA | vectors, tmp_path / "c.safetensors")
    combine(
        [tmp_path / "a.safetensors", tmp_path / "c.safetensors"], weights=[1.0, 2.0], output=tmp_path / "d.safetensors",
        execution=ONE,
    )  # fmt: skip
    summed = load_file(tmp_path / "d.safetensors")
    for key, tensor in vectors.items():
        torch.testing.assert_close(summed[key], 3 * tensor)
    assert torch.equal(summed["bundle_emb.word.clip_l"], embedding["bundle_emb.word.clip_l"])


def test_a_set_weight_replaces_that_of_the_base(tmp_path):
    base = {f"{MODULE}.weight": random(8, 6), "blocks.0.norm3.weight": random(8)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(LORA | {f"{NORM}.set_weight": torch.ones(8)}, tmp_path / "a.safetensors")
    merge(tmp_path / "base.safetensors", [tmp_path / "a.safetensors"], tmp_path / "m.safetensors", execution=ONE)
    assert torch.equal(load_file(tmp_path / "m.safetensors")["blocks.0.norm3.weight"], torch.ones(8))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"hada_w1_a": random(8, 3), "hada_w1_b": random(3, 6)}, "do not form an update"),
        ({"lokr_w1": random(2, 2), "lokr_w2_a": random(4, 2)}, "do not form an update"),
        ({"lokr_w1": random(2, 2), "hada_w1_a": random(8, 3)}, "tensors of LoHa and of LoKr"),
        ({"oft_blocks": random(2, 3, 3)}, "OFT, a rotation"),
        ({"alpha": torch.tensor(1.0)}, "missing"),
    ],
)
def test_what_forms_no_update_is_refused_by_name(parts, said, tmp_path):
    other = {f"{CONV}.lora_down.weight": random(3, 6), f"{CONV}.lora_up.weight": random(8, 3)}
    save_file(other | {f"{NAME}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match=said):
        load_adapter(tmp_path / "a.safetensors")
