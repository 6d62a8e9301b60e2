"""Single layers weakened or removed by patterns, in every operation that takes them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter
from eckart.engine import Execution
from eckart.errors import MismatchError, OptionError
from eckart.formats import load_adapter
from eckart.operations.combination.combine import combine
from eckart.operations.layer_scales import parse_scales
from eckart.operations.merging.merge import merge
from eckart.operations.resizing.resize import resize

from .pipelines import layer

ONE = Execution(workers=1)
Q, V = "blocks.0.self_attn.q", "blocks.1.self_attn.v"


@pytest.fixture
def files(tmp_path):
    """A base, and an adapter of two of its layers."""
    base = {f"{name}.weight": torch.randn(8, 8) for name in (Q, V)}
    save_file(base, tmp_path / "base.safetensors")
    layers = {f"diffusion_model.{name}": layer((8, 8), alpha=2.0, seed=seed) for seed, name in enumerate((Q, V))}
    Adapter(layers, format="comfyui").save(tmp_path / "a.safetensors")
    return tmp_path


def updates(folder) -> dict[str, torch.Tensor]:
    return {name: one.low_rank().dense() for name, one in load_adapter(folder / "a.safetensors").items()}


@pytest.mark.parametrize("scale", [{Q: 0.5}, {Q: 0}, {r".*blocks\.0\..*": 2, V: -1}, {".*self_attn.*": 3, Q: 0.25}])
def test_a_merge_adds_the_scaled_updates(scale, files):
    merge(files / "base.safetensors", [files / "a.safetensors"], files / "m.safetensors", scale=scale, execution=ONE)
    base, merged = load_file(files / "base.safetensors"), load_file(files / "m.safetensors")
    factors = {Q: [w for key, w in scale.items() if key != V][-1], V: scale.get(V, scale.get(".*self_attn.*", 1.0))}
    for name, factor in factors.items():
        change = updates(files)[f"diffusion_model.{name}"]
        expected = base[f"{name}.weight"].double() + factor * change
        torch.testing.assert_close(merged[f"{name}.weight"].double(), expected, rtol=0, atol=1e-6)


def test_resize_and_combine_write_the_scaled_updates_without_the_removed(files):
    before = updates(files)
    resize(files / "a.safetensors", rank=2, scale={Q: 0.5, V: 0}, output=files / "r.safetensors", execution=ONE)
    ((name, one),) = load_adapter(files / "r.safetensors").items()
    torch.testing.assert_close(one.low_rank().dense(), 0.5 * before[name], rtol=1e-6, atol=1e-7)
    one_only = Adapter({f"diffusion_model.{V}": layer((8, 8), seed=5)}, format="comfyui")
    result = combine([files / "a.safetensors", one_only], scale={Q: 0.5}, output=files / "c.safetensors", execution=ONE)
    summed = result.adapter
    torch.testing.assert_close(summed[f"diffusion_model.{Q}"].low_rank().dense(), 0.5 * before[f"diffusion_model.{Q}"])


def test_other_scales_are_another_run(files):
    adapter = load_adapter(files / "a.safetensors")
    first = adapter.outline()[f"diffusion_model.{Q}"]
    changed = {name: replace(one, alpha=9.0) if name.endswith("q") else one for name, one in adapter.items()}
    other = replace(adapter, layers=changed)
    assert first.alpha == 2
    assert adapter.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("scale", "error", "said"),
    [
        ({"towers": 1.0}, MismatchError, "towers"),
        ({".*": 0.0}, MismatchError, "every layer would be removed"),
    ],
)
def test_patterns_that_leave_nothing_are_refused(scale, error, said, files):
    with pytest.raises(error, match=said):
        resize(files / "a.safetensors", rank=1, scale=scale)


def test_dora_is_no_multiple_of_its_factors():
    one = replace(layer((8, 8)), magnitude=torch.ones(8))
    with pytest.raises(MismatchError, match="DoRA renormalizes"):
        resize(Adapter({Q: one, V: one}), rank=1, scale={Q: 0.5})
    assert set(resize(Adapter({Q: one, V: one}), rank=1, scale={Q: 0}).adapter) == {V}


@pytest.mark.parametrize("text", ["attn", "attn=", "=1", "attn=x", "attn=nan"])
def test_a_scale_is_a_pattern_and_a_number(text):
    with pytest.raises(OptionError, match="`scale` must be"):
        parse_scales([text])
    assert parse_scales(["a=b=0.5", "c=-1"]) == {"a=b": 0.5, "c": -1.0}


def test_a_combination_lists_its_sources_and_keeps_what_they_share(files):
    for name, title in (("one", "One"), ("two", "Two")):
        texts = {"modelspec.title": title, "modelspec.architecture": "wan", "ss_tag": name}
        save_file(load_file(files / "a.safetensors"), files / f"{name}.safetensors", texts)
    combine([files / "one.safetensors", files / "two.safetensors"], output=files / "c.safetensors", execution=ONE)
    texts = load_adapter(files / "c.safetensors").config["metadata"]
    assert texts == {"modelspec.architecture": "wan", "modelspec.merged_from": "One, Two"}


def test_spellings_that_differ_are_combined_under_one(files):
    adapter = load_adapter(files / "a.safetensors")
    inner = {name: name.removeprefix("diffusion_model.") for name in adapter}
    forms = {
        "comfyui": lambda name: inner[name],
        "kohya": lambda name: f"lora_unet_{inner[name].replace('.', '_')}",
    }
    for form, spelled in forms.items():
        layers = {spelled(name): one for name, one in adapter.items()}
        summed = combine([files / "a.safetensors", Adapter(layers, format=form)], execution=ONE).adapter
        assert set(summed) == set(adapter)
        for name, one in summed.items():
            torch.testing.assert_close(one.low_rank().dense(), 2 * adapter[name].low_rank().dense())
