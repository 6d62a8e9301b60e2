"""A sweep of LoRA configurations: a merge computes what PEFT's live model does, or says why none can."""

import copy

import pytest
import torch

from eckart.errors import EckartError
from eckart.operations import combine, extract, resize
from eckart.operations.merging.merge import merge

from .peft_modules import MODULES, numbers, with_random_adapter
from .peft_table import (
    CLASSIFIER,
    COMBINED,
    CONFIGURATIONS,
    EXTRACTED,
    MODELS,
    REWRITTEN,
    TASKS,
)

# PEFT and transformers warn about their own internals; what is tested here is their numbers.
pytestmark = pytest.mark.filterwarnings("ignore")

EAGER = {"experts_implementation": "eager"}  # the others compute in float32 only
IMAGE_SIZES = {"vit": 16, "resnet": 32, "convnext": 32}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Name of a base -> the model, its file or folder, the model in a merged folder, and what a model computes."""
    built = {}

    def build(name):
        if name not in built:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("base")
            built[name] = custom_module(name, folder) if name in MODULES else transformers_model(name, folder)
        return built[name]

    return build


def custom_module(name, folder):
    from safetensors.torch import save_model

    build, inputs = MODULES[name]
    model = build().eval()
    model(inputs().float() if inputs().is_floating_point() else inputs())  # lazy modules get their sizes
    save_model(model, folder / "model.safetensors", {"format": "pt"})

    def reload(merged):
        return with_tensors(copy.deepcopy(model), merged / "model.safetensors")

    return model, folder / "model.safetensors", reload, lambda model: model.double()(inputs())


def transformers_model(name, folder):
    import transformers

    auto, kind, sizes = MODELS[name]
    model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(kind, **sizes), **EAGER)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms too
    model.save_pretrained(folder)

    def reload(merged):
        found, info = type(model).from_pretrained(merged, output_loading_info=True, **EAGER)
        assert not info["missing_keys"]
        return found.eval()

    def logits(model):
        ids = torch.tensor([[1, 3, 4, 5, 2], [6, 7, 8, 9, 2]])
        size = IMAGE_SIZES.get(kind)
        inputs = {"pixel_values": numbers(2, 3, size, size)()} if size else {"input_ids": ids}
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder and auto != CLASSIFIER else {}
        return model.double()(**inputs, **more).logits

    return type(model).from_pretrained(folder, **EAGER).eval(), folder, reload, logits


def with_tensors(model, file):
    """The module with the tensors of a file; names that share a parameter get their own if the file has several."""
    from safetensors.torch import load_file

    tensors, names_of, named = load_file(file), {}, model.state_dict(keep_vars=True)
    for name, tensor in named.items():
        names_of.setdefault(id(tensor), []).append(name)
    assert tensors.keys() <= named.keys()
    for names in names_of.values():
        stored = [name for name in names if name in tensors]
        assert stored
        for name in stored:
            if len(stored) == 1:
                named[name].data.copy_(tensors[name])
                continue
            owner, _, leaf = name.rpartition(".")
            separate = copy.copy(model.get_submodule(owner))
            separate._parameters = dict(separate._parameters)
            model.set_submodule(owner, separate)
            setattr(separate, leaf, torch.nn.Parameter(tensors[name]))
    return model


def lora_config(base, options):
    """PEFT's config for a row of the table."""
    from peft import LoraConfig
    from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

    task = TASKS.get(MODELS[base][0]) if base in MODELS else None
    options = {"r": 4, "lora_alpha": 10, "init_lora_weights": False, "task_type": task} | options
    for name in ("refused", "given"):
        options.pop(name, None)
    parts = {
        "velora_config": VeloraConfig, "kasa_config": KasaConfig, "monteclora_config": MontecloraConfig,
        "use_bdlora": BdLoraConfig,
    }  # fmt: skip
    return LoraConfig(**{name: parts[name](**value) if name in parts else value for name, value in options.items()})


def adapted(model, base, options, folder, seed=1):
    """A copy of the model with a random adapter of PEFT's, which is saved to a folder."""
    return with_random_adapter(copy.deepcopy(model), lora_config(base, options), folder, seed)


def loaded(model, folder):
    """A copy of the model with an adapter, as PEFT loads it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def assert_same(found, expected, tolerance=2e-5):
    found, expected = found.detach(), expected.detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def cases(table):
    return [pytest.param(name, row, id=f"{name}: {row}") for name, found in table.items() for row in found]


@pytest.mark.parametrize(("name", "row"), cases(CONFIGURATIONS))
def test_a_merge_computes_what_the_live_model_does_or_says_why_none_can(name, row, base, tmp_path, record_property):
    model, source, reload, compute = base(name)
    options = CONFIGURATIONS[name][row]
    expected = compute(adapted(model, name, options, tmp_path / "adapter"))
    if options.get("lora_alpha") != 0:
        assert not torch.allclose(expected, compute(copy.deepcopy(model)), rtol=1e-3)
    given = model if options.get("given") == "module" else source
    if said := options.get("refused"):
        with pytest.raises(EckartError, match=said):
            merge(given, tmp_path / "adapter", tmp_path / "merged")
    else:
        merge(given, tmp_path / "adapter", tmp_path / "merged")
        assert_same(compute(reload(tmp_path / "merged")), expected)
    record_property("PEFT configuration", "refused" if said else "right")


def test_the_sweep_has_240_configurations_of_which_few_are_refused():
    rows = [options for found in CONFIGURATIONS.values() for options in found.values()]
    assert len(rows) >= 240
    assert sum("refused" in options for options in rows) < len(rows) / 10


@pytest.mark.parametrize(("name", "row"), cases(REWRITTEN))
def test_peft_loads_what_resize_and_combine_write(name, row, base, tmp_path):
    model, source, _, compute = base(name)
    options = CONFIGURATIONS[name][row]
    expected = compute(adapted(model, name, options, tmp_path / "adapter"))
    resize(tmp_path / "adapter", rank=20, output=tmp_path / "resized")
    assert_same(compute(loaded(model, tmp_path / "resized")), expected)
    both = [tmp_path / "adapter", tmp_path / "resized"]
    if not options.get("use_dora"):  # a sum of DoRA layers has a rank of its own
        combine(both, weights=[0.25, 0.75], base=source, output=tmp_path / "combined")
        assert_same(compute(loaded(model, tmp_path / "combined")), expected)


@pytest.mark.parametrize(("name", "row"), cases(EXTRACTED))
def test_peft_loads_what_extract_writes(name, row, base, tmp_path):
    model, source, reload, compute = base(name)
    adapted(model, name, CONFIGURATIONS[name][row], tmp_path / "adapter")
    merge(source, tmp_path / "adapter", tmp_path / "merged")
    extract(
        source, tmp_path / "merged", rank=24, target=".*", modules_to_save=EXTRACTED[name][row],
        output=tmp_path / "extracted",
    )  # fmt: skip
    expected = compute(reload(tmp_path / "merged"))
    assert_same(compute(loaded(model, tmp_path / "extracted")), expected, tolerance=1e-4)


@pytest.mark.parametrize(("name", "first", "second"), COMBINED)
def test_a_combination_updates_every_module_of_both_adapters(name, first, second, base, tmp_path):
    model, source, reload, compute = base(name)
    adapters = [tmp_path / "first", tmp_path / "second"]
    for seed, options in enumerate((first, second)):
        adapted(model, name, options, adapters[seed], seed)
    weights = [1, 1] if "trainable_token_indices" in second else [0.7, -0.3]
    combine(adapters, weights=weights, base=source, output=tmp_path / "combined")
    merge(source, adapters, tmp_path / "merged", weights=weights)
    assert_same(compute(loaded(model, tmp_path / "combined")), compute(reload(tmp_path / "merged")))
