"""The adapter as a value: equality, lookup by name, and outlines without torch."""

from dataclasses import replace

import pytest
import torch

from eckart.adapter import Adapter, AdapterLayer
from eckart.formats import load_adapter

Q = "model.layers.0.self_attn.q_proj"


def adapter(value: float = 1.0, *, alpha: float = 2.0) -> Adapter:
    layers = {Q: AdapterLayer(torch.full((2, 6), value), torch.ones(4, 2), alpha)}
    return Adapter(layers, {"model.norm.weight": torch.ones(4)})


def test_an_adapter_equals_what_is_read_back_from_its_files(tmp_path) -> None:
    adapter().save(tmp_path / "a")
    assert load_adapter(tmp_path / "a") == adapter()


@pytest.mark.parametrize(
    "other",
    [
        adapter(2.0),
        adapter(alpha=3.0),
        replace(adapter(), modules_to_save={}),
        replace(adapter(), layers={"other": adapter()[Q]}),
        replace(adapter(), layers={Q: replace(adapter()[Q], kind="conv1d")}),
        replace(adapter(), modules_to_save={"model.norm.weight": torch.zeros(4)}),
    ],
    ids=["values", "scale", "saved tensors", "names", "kinds", "saved values"],
)
def test_adapters_that_differ_are_not_equal(other) -> None:
    assert adapter() != other


def test_an_adapter_is_not_hashable_because_its_values_are_compared() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(adapter())


def test_a_short_module_name_is_answered_with_the_nearest_full_one() -> None:
    for mapping in (adapter(), adapter().outline()):
        with pytest.raises(KeyError, match=f"no layer 'q_proj'; nearest: {Q}"):
            mapping["q_proj"]


def test_an_outline_has_the_sizes_of_the_layers() -> None:
    outline = adapter().outline()
    assert outline == adapter().outline()
    assert (outline[Q].rank, outline[Q].update_shape, outline[Q].scaling) == (2, (4, 6), 1.0)
    assert (outline.params, outline.nbytes) == (24, 96)
