"""kohya's files: read by sd-scripts' rules, spelt out here on plain tensors, written back the same, or refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter
from eckart.errors import FileFormatError, MismatchError, NotFiniteError, OutputError, SourceError
from eckart.formats import load_adapter
from eckart.operations.resizing.resize import resize

from .pipelines import layer

NAME = "lora_unet_mid_block_attentions_0_proj_in"


def parts(rank=3, out=8, inputs=6, *, kernel=(), dtype=torch.float32, **more):
    """The tensors of one module, and more of them by their ending."""
    generator = torch.Generator().manual_seed(1)
    ones = (1,) * len(kernel)
    tensors = {
        "lora_down.weight": torch.randn(rank, inputs, *kernel, generator=generator).to(dtype),
        "lora_up.weight": torch.randn(out, rank, *ones, generator=generator).to(dtype),
    } | more
    return {f"{NAME}.{end}": tensor for end, tensor in tensors.items() if tensor is not None}


def saved(path, tensors, **metadata):
    save_file(tensors, path / "a.safetensors", metadata or None)
    return path / "a.safetensors"


def texts(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (1.5, 0.5), (3e-6, 1e-6), (3e6, 1e6)])
@pytest.mark.parametrize("kernel", [(), (3, 3), (1, 1)])
def test_the_update_is_alpha_over_rank_times_up_times_down(dtype, alpha, scale, kernel, tmp_path):
    more = {} if alpha is None else {"alpha": torch.tensor(alpha, dtype=torch.float64)}
    tensors = parts(kernel=kernel, dtype=dtype, **more)
    (name, one), *others = load_adapter(saved(tmp_path, tensors)).items()
    assert (name, others) == (NAME, [])
    down, up = (tensors[f"{NAME}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
    torch.testing.assert_close(one.low_rank().dense(), scale * up @ down, rtol=1e-14, atol=0)


def test_a_tucker_core_is_multiplied_into_lora_a(tmp_path):
    mid = torch.randn(3, 3, 3, 3).half()
    tensors = parts(kernel=(1, 1), dtype=torch.float16, **{"lora_mid.weight": mid, "alpha": torch.tensor(2.0)})
    (one,) = load_adapter(saved(tmp_path, tensors)).values()
    down, up = (tensors[f"{NAME}.lora_{part}.weight"].double() for part in ("down", "up"))
    # As three convolutions, one after another, on the unit images.
    units = torch.eye(6 * 25, dtype=torch.float64).reshape(-1, 6, 5, 5)
    convolve = torch.nn.functional.conv2d
    expected = 2 / 3 * convolve(convolve(convolve(units, down), mid.double(), padding=1), up)
    found = convolve(units, one.low_rank().dense().reshape(8, 6, 3, 3), padding=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))


def test_what_is_read_is_written_back_with_its_texts(tmp_path):
    tensors = parts(
        alpha=torch.tensor(1.5), dora_scale=torch.rand(8, 1), diff_b=torch.randn(8), kernel=(), dtype=torch.bfloat16
    )
    path = saved(tmp_path, tensors, ss_network_dim="99", ss_tag="kept", sshs_model_hash="of another file")
    load_adapter(path).save(tmp_path / "b.safetensors")
    again = load_file(tmp_path / "b.safetensors")
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-6 if "diff_b" in name else 0, atol=0)
    assert texts(tmp_path / "b.safetensors") == {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_tag": "kept",
        "written_by": "eckart-output/1",
        "ss_network_dim": "3",
        "ss_network_alpha": "1.5",
    }


# The arguments of a network, the layers' ranks, and the arguments after a resize to rank 2.
ARGUMENTS = {
    "convolutions": ({"conv_dim": "4", "conv_alpha": "1"}, {"conv_dim": "2", "conv_alpha": "0.5"}),
    "blocks": ({"block_dims": "4,4", "conv_dim": "4", "dropout": "0.1"}, {"conv_dim": "2", "dropout": "0.1"}),
    "another kind": ({"algo": "loha", "conv_dim": "4", "use_tucker": "True"}, {"algo": "lora", "conv_dim": "2"}),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_arguments_of_the_network_state_the_present_ranks_and_alphas(case, tmp_path):
    before, after = ARGUMENTS[case]
    tensors = parts(rank=4, kernel=(3, 3), alpha=torch.tensor(1.0))
    tensors |= {f"lora_unet_mid_block_attentions_0_proj_out.lora_{part}.weight": torch.randn(shape)
                for part, shape in (("down", (4, 8)), ("up", (8, 4)))}  # fmt: skip
    path = saved(tmp_path, tensors, ss_network_args=json.dumps(before), ss_network_dim="4")
    load_adapter(path).save(tmp_path / "same.safetensors")
    assert texts(tmp_path / "same.safetensors")["ss_network_dim"] == "4"
    resize(path, rank=2, output=tmp_path / "b.safetensors")
    found = texts(tmp_path / "b.safetensors")
    assert json.loads(found["ss_network_args"]) == after
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("2", "2.0")


def test_the_change_of_a_bias_is_not_scaled_by_alpha(tmp_path):
    change = torch.randn(8)
    (one,) = load_adapter(saved(tmp_path, parts(alpha=torch.tensor(1.0), diff_b=change))).values()
    torch.testing.assert_close(one.bias * one.scaling, change)


def test_a_kohya_adapter_is_resized_without_knowing_its_model(tmp_path):
    path = saved(tmp_path, parts(rank=4, kernel=(3, 3), alpha=torch.tensor(2.0)), ss_tag="kept")
    result = resize(path, rank=4, output=tmp_path / "b.safetensors")
    assert result.error < 1e-6
    assert load_adapter(tmp_path / "b.safetensors")[NAME].lora_A.shape == (4, 6, 3, 3)
    assert texts(tmp_path / "b.safetensors")["ss_tag"] == "kept"


def test_only_headers_and_alphas_are_read_for_the_outline(tmp_path):
    path = saved(tmp_path, parts(alpha=torch.tensor(2.0)))
    adapter = load_adapter(path)
    path.unlink()
    assert adapter.params == 3 * (8 + 6)
    assert adapter.outline()[NAME].scaling == 2 / 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lora_up.weight": None}, "lora_B missing"),
        ({"lora_down.weight": torch.ones(2, 6)}, "are not a product of one rank"),
        ({"lora_up.weight": torch.ones(8, 3, 3, 3), "lora_down.weight": torch.ones(3, 6, 1, 1)}, "must end in ones"),
        ({"lora_down.weight": torch.ones(3, 6, 1, 1)}, "are not a product of one rank"),
        ({"alpha": torch.tensor(float("nan"))}, "alpha is nan"),
        ({"alpha": torch.ones(2)}, "alpha is one number"),
        ({"dora_scale": torch.ones(1, 8)}, r"dora_scale is \(1, 8\), expected norms of outputs"),
        ({"dora_scale": torch.ones(8)}, r"dora_scale is \(8,\)"),
        ({"lora_mid.weight": torch.ones(3, 4, 3, 3)}, "do not form an update: .*mid"),
        ({"diff_b": torch.ones(3)}, "diff_b is"),
        ({"diff": torch.ones(8, 6)}, "tensors of LoRA and of a full difference"),
        ({"hada_w1_a": torch.ones(8, 6)}, "tensors of LoHa and of LoRA"),
        ({"oft_blocks": torch.ones(8, 6)}, "OFT, a rotation"),
        ({"unheard_of": torch.ones(8)}, "not part of a LoRA"),
        ({"lora_A.weight": torch.ones(3, 6)}, "the same part of"),
    ],
)
def test_what_makes_no_lora_is_refused_by_name(more, said, tmp_path):
    with pytest.raises(FileFormatError, match=said) as caught:
        load_adapter(saved(tmp_path, parts(**more)))
    assert NAME in str(caught.value)


def test_a_value_that_is_not_finite_is_met_when_it_is_read(tmp_path):
    adapter = load_adapter(saved(tmp_path, parts(**{"lora_up.weight": torch.full((8, 3), float("inf"))})))
    with pytest.raises(NotFiniteError, match="24 values"):
        adapter[NAME]


def test_pickled_files_and_files_without_lora_are_refused(tmp_path):
    torch.save(parts(), tmp_path / "a.pt")
    with pytest.raises(SourceError, match="pickled"):
        load_adapter(tmp_path / "a.pt")
    with pytest.raises(SourceError, match="neither a PEFT adapter"):
        load_adapter(saved(tmp_path, {"w": torch.ones(2)}))


def test_only_flattened_names_in_one_file_are_written(tmp_path):
    there = Adapter({"unet.conv_in": layer((8, 6))}, format="kohya")
    with pytest.raises(OutputError, match=r"name it a\.safetensors"):
        there.save(tmp_path / "a")
    with pytest.raises(MismatchError, match="convert the adapter to kohya"):
        there.save(tmp_path / "a.safetensors")
    with pytest.raises(MismatchError, match="linear layers and convolutions"):
        replace(there, layers={"e": replace(layer((8, 6)), kind="embedding")}).save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
